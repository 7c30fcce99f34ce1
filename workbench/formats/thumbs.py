"""Rows of unpaired preference files: a prompt, one completion, and whether it is wanted."""

from __future__ import annotations

from typing import Any

from workbench.formats import demonstrations
from workbench.formats.parsed import RowError
from workbench.formats.values import kind
from workbench.records import Message

Judged = tuple[tuple[Message, ...], str, bool]
LABELS = ("label", "kto_tag")
USED: dict[str, frozenset[str]] = {
    "trl": demonstrations.USED["prompt-completion"] | {"messages", *LABELS},
    "sharegpt": demonstrations.USED["sharegpt"] | {"messages", *LABELS},
    "alpaca": demonstrations.USED["alpaca"] | {*LABELS},
}
_WORDS = {"true": True, "false": False, "1": True, "0": False}


def read_trl(row: dict[str, Any]) -> Judged:
    """Read {prompt, completion, label}, as texts or as message lists; {messages, label} too."""
    shown, label = _without_label(row)
    read = demonstrations.read_messages if "messages" in shown else demonstrations.read_prompt_completion
    return (*read(shown), label)


def read_sharegpt(row: dict[str, Any]) -> Judged:
    """Read {conversations, kto_tag} or {messages, kto_tag}; the last turn is what was judged."""
    shown, label = _without_label(row)
    read = demonstrations.read_messages if "messages" in shown else demonstrations.read_sharegpt
    return (*read(shown), label)


def read_alpaca(row: dict[str, Any]) -> Judged:
    """Read {instruction, input, output, kto_tag}."""
    shown, label = _without_label(row)
    return (*demonstrations.read_alpaca(shown), label)


def label_of(row: dict[str, Any]) -> str:
    """Return the name of the field that says whether a completion is wanted; "" for none."""
    return next((name for name in LABELS if _as_bool(row.get(name)) is not None), "")


def _without_label(row: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The row as a demonstration's, which refuses bad answers, and what was said of it."""
    name = next((name for name in LABELS if row.get(name) is not None), "label")
    label = _as_bool(row.get(name))
    if label is None:
        found = f"is {kind(row[name])}, not true or false" if row.get(name) is not None else "is missing"
        raise RowError(f'"{name}" {found}')
    return {key: value for key, value in row.items() if key not in LABELS}, label


def _as_bool(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    return _WORDS.get(str(value).strip().lower()) if isinstance(value, str | int) else None
