"""The zero and the unit of a reward model's scores: drawn and encoded once, scored at every checkpoint and at the end.

InstructGPT and N+ shift scores so that demonstrations score 0 on average; without any the ranked responses' mean takes
their place. The spread is that of responses of all sorts, as Ziegler et al. 2019 take that of the policy's:
demonstrations are all good and lie close together.
"""

from __future__ import annotations

import contextlib
import random
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

from engine.batching import cutter
from engine.memory import MicroBatch, run_micro_batched
from engine.pairs import EncodedPair, unique_sides
from engine.score import RewardModel, RewardStats, TooLong
from engine.session import Session
from workbench.rows import SftRow

CALIBRATION_ROWS = 192
"""At most so many demonstrations and so many responses are scored to find the zero and the unit of the scores."""
CHECKPOINT_ROWS = 32
"""The same for a checkpoint: training, and whoever stopped it, waits."""


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Token ids of what is scored, in an order fixed by the run's seed: the first few are a sample of all."""

    responses: tuple[Sequence[int], ...]  # ranked ones
    demonstrations: tuple[Sequence[int], ...] = ()


def draw_calibration(session: Session, model: RewardModel, train: Sequence[EncodedPair]) -> CalibrationSet:
    """Draw and encode what will be scored. Demonstrations that do not fit into the window are left out, and told.

    Raises UserError if the frozen demonstrations were changed: before anything is trained.
    """
    source = random.Random(f"{session.recipe.seed}/calibration")
    responses, _ = unique_sides(train)
    drawn = tuple(one.input_ids for one in source.sample(responses, min(CALIBRATION_ROWS, len(responses))))
    every = cast(list[SftRow], session.rows("demonstrations"))
    shown = source.sample(every, min(CALIBRATION_ROWS, len(every)))
    fitting = []
    for one in shown:
        with contextlib.suppress(TooLong):
            fitting.append(model.encode(one.prompt, one.completion))
    if len(fitting) < len(shown):
        session.warn(
            "rows-dropped",
            f"{len(shown) - len(fitting)} of {len(shown)} demonstrations were left out of the zero of the scores: "
            f"they would lose their ending within {model.max_length} tokens",
            "raise max_length, or shorten them",
        )
    return CalibrationSet(drawn, tuple(fitting))


def calibrate(
    session: Session,
    model: RewardModel,
    drawn: CalibrationSet,
    micro_batch: MicroBatch,
    most: int = CALIBRATION_ROWS,
) -> RewardStats:
    """Score at most so many demonstrations and ranked responses; the run goes on with the micro-batch that fitted."""
    session.phase("evaluating", "calibrating the scores")
    at_once = 2 * micro_batch.rows  # sequences: a pair has two
    cut: Callable[[Sequence[Sequence[int]], int], list[Sequence[Sequence[int]]]] = cutter(len, model.adapters.base)

    def stats_of(rows: Sequence[Sequence[int]], reference: str) -> RewardStats:
        nonlocal at_once
        rows = sorted(rows[:most], key=len, reverse=True)
        found, at_once = run_micro_batched(
            session, rows, at_once, lambda part: model.ids_by_head(part, len(part)), cut=cut, learns=False
        )
        micro_batch.take(session, max(1, at_once // 2))
        return RewardStats.of(torch.cat(found), reference)

    stats = stats_of(drawn.responses, "ranked responses")
    if not drawn.demonstrations:
        return stats
    return replace(stats_of(drawn.demonstrations, "demonstrations"), std=stats.std)


def calibrate_checkpoint(
    session: Session, model: RewardModel, drawn: CalibrationSet, micro_batch: MicroBatch
) -> RewardStats | None:
    """Calibrate on a few rows; None where that goes wrong, which is told: a checkpoint is worth more than its zero."""
    try:
        return calibrate(session, model, drawn, micro_batch, CHECKPOINT_ROWS)
    except Exception as error:
        traceback.print_exception(error)  # for the engine's log
        session.warn(
            "calibration",
            f"The scores of the checkpoint have no zero and no unit: {error}",
            "the checkpoint is whole and resumes; use a smaller micro_batch if memory ran out",
        )
        return None
