"""A reward model's judgement with what the project knows of it: texts, tags and the names of raters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from workbench.agreement import Noise, measure
from workbench.errors import UserError
from workbench.judgement import Judgement, Report, report
from workbench.rows import PairRow
from workbench.run_folder import RunFolder
from workbench.store import Store


@dataclass(frozen=True, slots=True)
class JudgedModel:
    """A report, and the pairs that it speaks of. ``rows`` lacks those whose run is no longer there."""

    step: int
    report: Report
    rows: Mapping[str, PairRow] = field(default_factory=dict)
    noise: Noise | None = None  # of the project's labels, which bounds the accuracy; None where it is not known


def judged_model(store: Store, folder: Path, run: RunFolder | None = None) -> JudgedModel | None:
    """Read what is known of a reward model in a folder; None where it was never judged.

    ``run`` is the one that made it, whose frozen rows have the texts. Raises UserError when a file is damaged.
    """
    judgement = Judgement.read(folder)
    if judgement is None:
        return None
    rows = _rows(run)
    prompts = store.prompts_by_id({row.group for row in rows.values()})
    tags = {id_: prompts[row.group].tags for id_, row in rows.items() if row.group in prompts}
    raters = {one.id: one.name for one in store.raters()}
    return JudgedModel(judgement.step, report(judgement.pairs, tags=tags, raters=raters), rows, measure(store).noise)


def _rows(run: RunFolder | None) -> dict[str, PairRow]:
    if run is None:
        return {}
    try:
        return {row.id: row for row in run.rows("heldout") if isinstance(row, PairRow)}
    except UserError:  # deleted or changed: the numbers stand without their texts
        return {}
