"""The reward model: a scalar head on a LoRA adapter, trained on preferences with the Bradley-Terry loss.

Chosen and rejected pass through the model in one forward (chosen half, then rejected half). A response that stands in
several pairs of its ranking passes once: K responses give up to K(K-1)/2 pairs but only K sequences.
The score is read at the last real token, EOS, by length and never by id (see :mod:`engine.templates`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from engine.adapters import Adapters
from engine.batching import Schedule, by_length, collate
from engine.heads import ScalarHead, has_head, load_head
from engine.losses import bradley_terry, centering
from engine.masking import Example, pair_examples
from engine.memory import run_micro_batched
from engine.meters import Meters, Throughput, calibration_error, wilson
from engine.optim import Group, Optimiser
from engine.score import RewardModel, RewardStats, score
from engine.session import Session
from engine.trainee import EVAL_ROWS, Trainee, eval_due, open_start, refuse_empty, report_fit, window
from workbench.recipes import RewardRecipe
from workbench.rows import PairRow, SftRow

REWARD = "reward"
CALIBRATION_ROWS = 512
"""At most so many sequences are scored to find the mean and spread of the scores."""


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """An encoded preference."""

    id: str
    unit: str  # its ranking: such pairs share responses and stay together
    chosen: Example
    rejected: Example
    margin: float

    @property
    def length(self) -> int:
        """Tokens of the longer side."""
        return max(len(self.chosen.input_ids), len(self.rejected.input_ids))


def run(session: Session) -> None:
    """Train a reward model on preferences, from the session's start model to its ``final/`` folder."""
    recipe = cast(RewardRecipe, session.recipe)
    adapters = open_start(session, REWARD)
    head = _starting_head(session, adapters)
    session.phase("preparing", "tokenising the preferences")
    limit = window(session, adapters)
    train = encode(session, adapters, "train", limit)
    heldout = encode(session, adapters, "heldout", limit)
    schedule = Schedule(
        [one.length for one in train],
        batch=recipe.batch,
        epochs=recipe.epochs,
        max_steps=recipe.max_steps,
        seed=recipe.seed,
        units=[one.unit for one in train],
    )
    total = schedule.total_steps
    groups = [
        Group(adapters.parameters(REWARD), recipe.learning_rate),
        Group(list(head.parameters()), recipe.head_learning_rate),
    ]
    trainee = Trainee(adapters, REWARD, Optimiser(groups, recipe, total), Throughput(), head)
    meters, micro_batch = Meters(), recipe.micro_batch
    recent: deque[float] = deque(maxlen=CALIBRATION_ROWS)  # training scores: the statistics of a checkpoint
    start = trainee.resume(session)
    session.progress(start, total)

    def measure(step: int) -> None:
        if heldout and eval_due(session, step, total):
            session.phase("evaluating")
            part = heldout if step == total else heldout[:EVAL_ROWS]
            session.metrics(step, evaluate(adapters, head, part, recipe))
            session.phase("training")

    def reset() -> None:
        trainee.optimiser.zero()
        meters.reset()

    def save(folder: Path) -> None:
        trainee.save(folder)
        RewardStats.of(list(recent) or [0.0], "training responses").write(folder)

    session.phase("training")
    if start == 0:
        measure(0)
    for step in range(start + 1, total + 1):
        trainee.throughput.restart()
        batch = [train[index] for index in schedule.rows(step - 1)]

        def work(part: Sequence[ScoredPair], pairs: int = len(batch)) -> tuple[Tensor, int]:
            chosen, rejected, tokens = pair_scores(adapters, head, part)
            loss = pair_loss(chosen, rejected, part, recipe)
            (loss.sum() / pairs).backward()
            _record(meters, chosen, rejected, loss)
            return torch.cat([chosen, rejected]).detach(), tokens

        rate = trainee.optimiser.learning_rate
        done, micro_batch = run_micro_batched(session, batch, micro_batch, work, reset=reset)
        values = meters.flush()
        names = [one.id for one in batch]
        session.check_finite(step, "loss", values["loss"], names)
        norm = trainee.optimiser.clip()
        session.check_finite(step, "grad_norm", norm, names)
        trainee.optimiser.step()
        for scores, tokens in done:
            recent.extend(scores.tolist())
            trainee.throughput.add(tokens, len(scores) // 2)
        values |= trainee.throughput.flush()
        values |= {"grad_norm": float(norm), "learning_rate": rate, "epoch": schedule.epoch(step)}
        session.metrics(step, values)
        measure(step)
        session.at_step_end(step, total, save)
    stats = calibrate(session, adapters, head, train, limit)

    def write_final(folder: Path) -> None:
        trainee.save_model(folder)
        stats.write(folder)

    session.finish(write_final)


def pair_scores(adapters: Adapters, head: ScalarHead, pairs: Sequence[ScoredPair]) -> tuple[Tensor, Tensor, int]:
    """Score both sides of some pairs in one forward. Returns (chosen [P], rejected [P], tokens passed)."""
    sides = [one.chosen for one in pairs] + [one.rejected for one in pairs]
    place: dict[tuple[int, ...], int] = {}
    where = [place.setdefault(one.input_ids, len(place)) for one in sides]
    unique = [sides[where.index(index)] for index in range(len(place))]
    batch = collate(unique, adapters.base.device)
    scores = score(adapters, REWARD, head, batch.input_ids, batch.attention_mask)
    both = scores[torch.tensor(where, device=scores.device)]
    return both[: len(pairs)], both[len(pairs) :], sum(len(one.input_ids) for one in unique)


def pair_loss(chosen: Tensor, rejected: Tensor, pairs: Sequence[ScoredPair], recipe: RewardRecipe) -> Tensor:
    """Bradley-Terry with the recipe's margin and centering, per pair [P]."""
    margin = None
    if recipe.margin_per_tier:
        margin = torch.tensor([one.margin for one in pairs], dtype=chosen.dtype, device=chosen.device)
    loss = bradley_terry(chosen, rejected, margin)
    if recipe.center_coefficient:
        loss = loss + recipe.center_coefficient * centering(chosen, rejected)
    return loss


@torch.no_grad()
def evaluate(
    adapters: Adapters, head: ScalarHead, pairs: Sequence[ScoredPair], recipe: RewardRecipe
) -> dict[str, float]:
    """Loss, strict accuracy with Wilson's interval, margin and calibration error on held-out pairs."""
    margins, losses = [], []
    for rows in by_length([one.length for one in pairs], recipe.micro_batch):
        part = [pairs[index] for index in rows]
        chosen, rejected, _ = pair_scores(adapters, head, part)
        margins.append(chosen - rejected)
        losses.append(pair_loss(chosen, rejected, part, recipe))
    gaps, loss = torch.cat(margins).double(), torch.cat(losses).double()
    accuracy = wilson(float((gaps > 0).sum()), len(pairs))
    return {
        "eval_loss": float(loss.mean()),
        "eval_accuracy": accuracy.value,
        "eval_accuracy_low": accuracy.low,
        "eval_accuracy_high": accuracy.high,
        "eval_margin": float(gaps.mean()),
        "eval_ece": calibration_error(gaps),
    }


def calibrate(
    session: Session, adapters: Adapters, head: ScalarHead, train: Sequence[ScoredPair], limit: int
) -> RewardStats:
    """Find where scores lie on the demonstrations (or, without any, on the training responses)."""
    session.phase("evaluating", "calibrating the scores")
    model = RewardModel(adapters, REWARD, head, RewardStats(), limit)
    shown = cast(list[SftRow], session.rows("demonstrations"))[:CALIBRATION_ROWS]
    micro_batch = 2 * session.recipe.micro_batch
    if shown:
        return RewardStats.of(
            model.score([(one.prompt, one.completion) for one in shown], micro_batch), "demonstrations"
        )
    responses = list(dict.fromkeys(side.input_ids for one in train for side in (one.chosen, one.rejected)))
    return RewardStats.of(model.score_ids(responses[:CALIBRATION_ROWS], micro_batch).tolist(), "training responses")


def encode(session: Session, adapters: Adapters, name: str, limit: int) -> list[ScoredPair]:
    """Encode a data file. A pair one of whose sides would lose its ending is left out: a score is read at EOS."""
    recipe = cast(RewardRecipe, session.recipe)
    rows = cast(list[PairRow], session.rows(name))
    pairs = []
    for row in rows:
        chosen, rejected = pair_examples(adapters.base.tokenizer, row.prompt, row.chosen, row.rejected, limit)
        if chosen.cut_completion or rejected.cut_completion or chosen.input_ids == rejected.input_ids:
            continue
        margin = recipe.margin_per_tier * row.tier_distance
        pairs.append(ScoredPair(row.id, row.ranking_id or row.id, chosen, rejected, margin))
    what = "pairs" if name == "train" else "held-out pairs"
    report_fit(session, what, len(rows), len(rows) - len(pairs), [one.chosen for one in pairs], limit)
    if name == "train" and not pairs:
        refuse_empty(what, len(rows), limit)
    return pairs


def _starting_head(session: Session, adapters: Adapters) -> ScalarHead:
    """A new head, or that of the reward model that training continues."""
    start, base = session.spec.model.adapter, adapters.base
    if start and has_head(start):
        return load_head(start, base.device)
    return ScalarHead(base.hidden_size, base.device, seed=session.recipe.seed)


def _record(meters: Meters, chosen: Tensor, rejected: Tensor, loss: Tensor) -> None:
    meters.add("loss", loss)
    meters.add("accuracy", chosen > rejected)
    meters.add("margin", chosen - rejected)
    meters.add("chosen_reward", chosen)
    meters.add("rejected_reward", rejected)
    both = torch.cat([chosen, rejected])
    meters.add("mean_reward", both)
    meters.add_low("min_reward", both)
    meters.add_high("max_reward", both)
