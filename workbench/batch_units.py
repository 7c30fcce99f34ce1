"""What a batch counts: a reward run of a version whose batch counted pairs is not resumed with one of rankings.

It is read, and its models and checkpoints are of use, as ever.
"""

from __future__ import annotations

from workbench.errors import UserError
from workbench.protocol import RunSpec
from workbench.recipes import RECIPES
from workbench.rows import rankings_of
from workbench.run_folder import RunFolder


def refuse_batch_of_pairs(folder: RunFolder, spec: RunSpec) -> None:
    """Raise UserError for a run whose steps would be others now, before anything would be written into it.

    Where every ranking has one pair it is the same either way.
    """
    if spec.batch_of or not RECIPES[spec.method]().batch_counts_rankings:
        return
    rows = folder.rows("train", spec)
    rankings = rankings_of(rows)
    if rankings < len(rows):
        raise UserError(
            f"The run {spec.name!r} cannot be taken up by this version of Tastemaker",
            f"its batch counted pairs and now counts rankings, and its {len(rows)} pairs are of {rankings} rankings: "
            "it would have fewer steps, and end untrained",
            "start a new run with its settings; its models and checkpoints are of use as they are",
        )
