"""Fields that any JSON or table row may carry beside its text: tags, split, source, rater."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from workbench.records import Split

_SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "held-out": "held-out",
    "heldout": "held-out",
    "held_out": "held-out",
    "test": "held-out",
    "validation": "held-out",
    "valid": "held-out",
    "eval": "held-out",
}
OURS = frozenset({"ranking_id", "prompt_id", "tier_distance", "id", "created_at"})
"""Written by our own exports for other programs; on import they are told by content instead."""


_FARTHEST = 1000


@dataclass(slots=True)
class Extras:
    """Reads the fields beside the text, and counts those that are not kept so that it can be said."""

    not_kept: Counter[str] = field(default_factory=Counter)

    def tags(self, row: dict[str, Any]) -> tuple[str, ...]:
        """A list of texts, or a text with commas."""
        value = row.get("tags")
        if isinstance(value, str):
            return tuple(tag for part in value.split(",") if (tag := part.strip()))
        if isinstance(value, list) and all(isinstance(tag, str) for tag in value):
            return tuple(value)
        self._lost("tags", value)
        return ()

    def split(self, row: dict[str, Any]) -> Split | None:
        """Train or held-out, where the row says."""
        value = row.get("split")
        found = _SPLITS.get(value.lower()) if isinstance(value, str) else None
        if found is None:
            self._lost("split", value)
        return found

    def text(self, row: dict[str, Any], name: str) -> str | None:
        """A field that is text, or None."""
        value = row.get(name)
        if isinstance(value, str):
            return value
        self._lost(name, value)
        return None

    def tier_distance(self, row: dict[str, Any]) -> int:
        """How many tiers lie from chosen to rejected; 1 where the row does not say."""
        value = row.get("tier_distance")
        text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
        if text.isdecimal() and 1 <= int(text[:6]) <= _FARTHEST:
            return int(text[:6])
        self._lost("tier_distance", value)
        return 1

    def rest(self, row: dict[str, Any], used: Iterable[str]) -> None:
        """Count what nothing reads."""
        for name in row.keys() - used - OURS - {"tags", "split", "source", "rater"}:
            self._lost(name, row[name])

    def warnings(self) -> list[str]:
        """Say what was left out."""
        return [
            f'The field "{name[:60]}" is not kept ({count} {"row has" if count == 1 else "rows have"} it).'
            for name, count in sorted(self.not_kept.items())
        ]

    def _lost(self, name: str, value: Any) -> None:
        if value not in (None, "", [], {}):
            self.not_kept[name] += 1
