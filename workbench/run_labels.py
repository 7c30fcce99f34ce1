"""The labels that a run was given, row by row, and what became of each since: the way from a model to its labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from workbench.protocol import RunSpec
from workbench.rows import PairRow, PromptRow, SftRow, ThumbRow
from workbench.run_folder import Row, RunFolder
from workbench.store import Store

Since = Literal["current", "superseded", "gone"]
Part = Literal["train", "heldout", "demonstrations"]
PARTS: tuple[Part, ...] = ("train", "heldout", "demonstrations")


@dataclass(frozen=True, slots=True)
class RunLabel:
    """One frozen row: where it was used, its texts, and whether its label still stands."""

    part: Part
    prompt_id: str
    prompt: str  # the last turn
    chosen: str  # or the completion; "" for a bare prompt
    rejected: str = ""
    wanted: bool | None = None  # of a thumb
    tie: bool = False
    since: Since = "current"
    ranking_id: str = ""  # of what was made in Rank

    @property
    def is_ranking(self) -> bool:
        """Whether the label was made in Rank, rather than in Demonstrate."""
        return bool(self.rejected) or self.wanted is not None or self.tie


@dataclass(frozen=True, slots=True)
class RunLabels:
    """All rows of a run, and how many *labels* (rankings, demonstrations, prompts) that trained it changed since."""

    rows: tuple[RunLabel, ...]
    trained: int  # labels that trained it, each counted once
    superseded: int
    gone: int


def run_labels(store: Store, run: RunFolder, spec: RunSpec | None = None) -> RunLabels:
    """Read a run's frozen data and look for each label in the project. Raises UserError when a file is damaged."""
    spec = spec or run.spec()
    read = [(part, row) for part in PARTS for row in run.rows(part, spec)]
    since = _since(store, [row for _, row in read])
    made = tuple(_label(part, row, since[_key(row)]) for part, row in read)
    trained = {_key(row) for part, row in read if part != "heldout"}
    became = Counter(since[key] for key in trained)
    return RunLabels(made, len(trained), became["superseded"], became["gone"])


def _key(row: Row) -> str:
    return row.ranking_id if isinstance(row, PairRow | ThumbRow) else row.id


def _since(store: Store, rows: Iterable[Row]) -> dict[str, Since]:
    found: dict[str, Since] = {}
    rows = list(rows)
    if any(isinstance(row, PairRow | ThumbRow) for row in rows):
        standing = {one.id for one in store.rankings()}
        replaced = store.superseded_by().keys()
    if any(isinstance(row, SftRow) for row in rows):
        newest = {one.prompt_id: one for one in store.demonstrations()}
    prompts = store.live_prompts([row.id for row in rows if isinstance(row, PromptRow)])
    for row in rows:
        key = _key(row)
        if key in found:
            continue
        if isinstance(row, PairRow | ThumbRow):
            found[key] = "current" if key in standing else "superseded" if key in replaced else "gone"
        elif isinstance(row, SftRow):
            one = newest.get(row.group)
            same = one is not None and (one.id, one.status) == (row.id, "final")
            found[key] = "current" if same else "superseded" if one is not None else "gone"
        else:
            found[key] = "current" if key in prompts else "gone"
    return found


def _label(part: Part, row: Row, since: Since) -> RunLabel:
    prompt = row.prompt[-1].content if row.prompt else ""
    match row:
        case PairRow():
            tie, of = row.tier_distance == 0, row.ranking_id
            return RunLabel(part, row.group, prompt, row.chosen, row.rejected, tie=tie, since=since, ranking_id=of)
        case ThumbRow():
            wanted, of = row.desirable, row.ranking_id
            return RunLabel(part, row.group, prompt, row.completion, wanted=wanted, since=since, ranking_id=of)
        case SftRow():
            return RunLabel(part, row.group, prompt, row.completion, since=since)
        case _:
            return RunLabel(part, row.id, prompt, "", since=since)
