"""The reward model: a scalar head on a LoRA adapter, trained on preferences with the Bradley-Terry loss.

Chosen and rejected pass through the model in one forward (chosen half, then rejected half). A response that stands in
several pairs of its ranking passes once: K responses give up to K(K-1)/2 pairs but only K sequences. A step is of
whole rankings, and these weigh alike, however many pairs each has.
The score is read at the last real token, by length and never by id: EOS, or the last word of a response that was cut
off (see :mod:`engine.templates`).
With several heads (:mod:`engine.heads`) each has a loss of its own on the pairs that its coin gave it; the score is
their mean, and how far they are apart says how much it is a guess.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from engine.adapters import Adapters
from engine.batching import Schedule, in_batches
from engine.calibration import calibrate, calibrate_checkpoint, draw_calibration
from engine.eval_samples import write_asked_samples, write_final_samples, write_scored_pairs
from engine.heads import ScalarHead, bootstrap_weights, has_head, load_head
from engine.losses import bradley_terry, centering
from engine.masking import Example
from engine.memory import MicroBatch, run_batches, run_micro_batched
from engine.meters import Meters, Throughput, calibration_error, wilson
from engine.optim import Group, Optimiser
from engine.pairs import EncodedPair, encode_pairs, micro_batches, ranking_weights, unique_sides
from engine.score import RewardModel, RewardStats, scores_by_head, spread
from engine.session import Session
from engine.trainee import EVAL_ROWS, Trainee, eval_due, open_start, window
from workbench.judgement import JudgedPair, Judgement
from workbench.recipes import RewardRecipe
from workbench.rows import PairRow
from workbench.statistics import effective_trials

REWARD = "reward"


def run(session: Session) -> None:
    """Train a reward model on preferences, from the session's start model to its ``final/`` folder."""
    recipe = cast(RewardRecipe, session.recipe)
    adapters = open_start(session, REWARD)
    head = _starting_head(session, adapters)
    session.phase("preparing", "tokenising the preferences")
    limit = window(session, adapters)
    train = encode_pairs(session, adapters, "train", limit, unusable)
    weights = bootstrap_weights((one.unit for one in train), head.count, recipe.seed)
    _warn_of_heads_alike(session, head, len(weights))
    every_heldout = encode_pairs(session, adapters, "heldout", limit, unusable)
    heldout = every_heldout[:EVAL_ROWS]
    schedule = Schedule(
        [one.length for one in train],
        batch=recipe.batch,
        epochs=recipe.epochs,
        max_steps=recipe.max_steps,
        seed=recipe.seed,
        units=[one.unit for one in train],
        by_unit=True,
    )
    total = schedule.total_steps
    groups = [
        Group(adapters.parameters(REWARD), recipe.learning_rate),
        Group(list(head.parameters()), recipe.head_learning_rate),
    ]
    micro_batch = MicroBatch(recipe.micro_batch)
    trainee = Trainee(adapters, REWARD, Optimiser(groups, recipe, total), Throughput(), micro_batch, head)
    meters, cut = Meters(), micro_batches(adapters.base)
    uncalibrated = RewardModel(adapters, REWARD, head, RewardStats(), limit)
    calibration = draw_calibration(session, uncalibrated, train)
    start = trainee.resume(session)
    session.progress(start, total)

    def measure(step: int) -> None:
        if heldout and eval_due(session, step, total):
            session.phase("evaluating")
            values, fitted = evaluate(session, adapters, head, heldout, micro_batch.rows)
            micro_batch.take(session, fitted)
            session.metrics(step, values)
            session.phase("training")

    def reset() -> None:
        trainee.optimiser.zero()
        meters.reset()

    def save(folder: Path) -> None:
        # A checkpoint may be kept as a model: its scores get a zero and a unit too.
        stats = calibrate_checkpoint(session, uncalibrated, calibration, micro_batch)
        session.phase("training")
        trainee.save(folder)  # the micro-batch that fitted among it
        if stats is not None:
            stats.write(folder)

    session.phase("training")
    if start == 0:
        measure(0)
    for step in range(start + 1, total + 1):
        trainee.throughput.restart()
        batch = [train[index] for index in schedule.rows(step - 1)]
        alike = ranking_weights(batch)

        def work(part: Sequence[EncodedPair], pairs: int = len(batch), alike: Mapping[str, float] = alike) -> int:
            chosen, rejected, tokens = pair_scores(adapters, head, part)
            loss = pair_loss(chosen, rejected, part, recipe, alike, weights)
            (loss.sum() / pairs).backward()
            _record(meters, chosen.mean(-1), rejected.mean(-1), loss, [one.tier_distance > 0 for one in part])
            return tokens

        tokens = micro_batch.run(session, batch, work, reset=reset, cut=cut)
        names = [one.id for one in batch]
        session.metrics(step, trainee.step(session, step, meters.flush(), names, sum(tokens), schedule.epoch(step)))
        measure(step)
        write_asked_samples(session, step, partial(write_scored_pairs, session, uncalibrated, step, micro_batch.rows))
        session.at_step_end(step, total, save)
    stats = calibrate(session, uncalibrated, calibration, micro_batch)
    judgement = judge(session, adapters, head, every_heldout, total, micro_batch.rows)

    def write_final(folder: Path) -> None:
        trainee.save_model(folder)
        stats.write(folder)
        if judgement is not None:
            judgement.write(folder)

    session.finish(write_final)
    finished = RewardModel(adapters, REWARD, head, stats, limit)
    write_final_samples(session, lambda: write_scored_pairs(session, finished, total, micro_batch.rows))


def pair_scores(adapters: Adapters, head: ScalarHead, pairs: Sequence[EncodedPair]) -> tuple[Tensor, Tensor, int]:
    """Score both sides of some pairs in one forward, by head. Returns (chosen [P, K], rejected [P, K], tokens)."""
    unique, where = unique_sides(pairs)
    layout = adapters.lay_out(unique)
    scores = scores_by_head(adapters, REWARD, head, layout)
    both = scores[torch.tensor(where, device=scores.device)]
    return both[: len(pairs)], both[len(pairs) :], layout.tokens


def pair_loss(
    chosen: Tensor,
    rejected: Tensor,
    pairs: Sequence[EncodedPair],
    recipe: RewardRecipe,
    alike: Mapping[str, float],
    weights: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Bradley-Terry with the recipe's margin, label smoothing and centering, per pair [P]. A tie is half a label.

    Each pair's loss is times its ranking's weight in ``alike`` (:func:`engine.pairs.ranking_weights` of the whole
    step): the sum over a step's pairs, divided by their number, is the mean over rankings.

    ``chosen`` and ``rejected`` are [P, K] by head; a pair's loss is the mean over heads, ``mean_k w_k l_k`` where its
    ranking has ``weights`` [K] (:func:`engine.heads.bootstrap_weights`). Each head is centred by itself: that holds
    their levels together (Eisenstein et al. 2023, section 2).
    """
    tiers = torch.tensor([one.tier_distance for one in pairs], dtype=chosen.dtype, device=chosen.device)[:, None]
    margin = recipe.margin_per_tier * tiers if recipe.margin_per_tier else None
    target = None
    if recipe.ties or recipe.label_smoothing:
        target = torch.where(tiers > 0, 1 - recipe.label_smoothing, 0.5)
    loss = bradley_terry(chosen, rejected, margin, target)
    if recipe.center_coefficient:
        loss = loss + recipe.center_coefficient * centering(chosen, rejected)
    if weights is not None:
        loss = loss * torch.stack([weights[one.unit] for one in pairs]).to(loss)
    return loss.mean(-1) * torch.tensor([alike[one.unit] for one in pairs], dtype=loss.dtype, device=loss.device)


@torch.no_grad()
def evaluate(
    session: Session, adapters: Adapters, head: ScalarHead, pairs: Sequence[EncodedPair], micro_batch: int
) -> tuple[dict[str, float], int]:
    """Loss, strict accuracy with Wilson's interval over prompts, margin and calibration error on held-out pairs.

    All of the score, the mean over heads; of several heads also how far their margins are apart. Also returns the
    micro-batch that fitted.
    """
    recipe, alike = cast(RewardRecipe, session.recipe), ranking_weights(pairs)

    def work(part: Sequence[EncodedPair]) -> tuple[Tensor, Tensor, Tensor]:
        chosen, rejected, _ = pair_scores(adapters, head, part)
        std = spread(chosen - rejected)
        chosen, rejected = chosen.mean(-1, keepdim=True), rejected.mean(-1, keepdim=True)
        return (chosen - rejected)[:, 0], pair_loss(chosen, rejected, part, recipe, alike), std

    batches = in_batches(pairs, lambda one: one.length, micro_batch)
    found, micro_batch = run_batches(session, batches, micro_batch, work, cut=micro_batches(adapters.base))
    gaps, loss, stds = (torch.cat(one).double() for one in zip(*found, strict=True))
    # The pairs of one prompt hang together, whoever ranked it: as evidence they count as one.
    trials = effective_trials(one.group or one.unit for one in pairs)
    accuracy = wilson(float((gaps > 0).double().mean()) * trials, trials)
    more = {"eval_margin_std_heads": float(stds.mean())} if head.count > 1 else {}
    values = {
        "eval_loss": float(loss.mean()),
        "eval_accuracy": accuracy.value,
        "eval_accuracy_low": accuracy.low,
        "eval_accuracy_high": accuracy.high,
        "eval_margin": float(gaps.mean()),
        "eval_ece": calibration_error(gaps),
    }
    return values | more, micro_batch


@torch.no_grad()
def judge(
    session: Session,
    adapters: Adapters,
    head: ScalarHead,
    pairs: Sequence[EncodedPair],
    step: int,
    micro_batch: int,
) -> Judgement | None:
    """Score all held-out pairs once. None where there are none, on a stop, and where it goes wrong, which is told.

    The model is not saved yet, so that nothing here may end the run.
    """
    if not pairs:
        return None
    session.phase("evaluating", f"judging {len(pairs)} held-out pairs")
    raters = {row.id: row.rater_id for row in cast(list[PairRow], session.rows("heldout"))}

    def work(part: Sequence[EncodedPair]) -> list[JudgedPair]:
        session.control.check_cancelled()
        if session.control.stop_asked():
            return []
        chosen, rejected, _ = pair_scores(adapters, head, part)
        gaps, stds = (chosen.mean(-1) - rejected.mean(-1)).tolist(), spread(chosen - rejected).tolist()
        return [
            JudgedPair(one.id, one.unit, gap, one.tier_distance, one.length_difference, raters[one.id], std, one.group)
            for one, gap, std in zip(part, gaps, stds, strict=True)
        ]

    try:
        parts, _ = run_micro_batched(session, pairs, micro_batch, work, cut=micro_batches(adapters.base), learns=False)
    except (RuntimeError, MemoryError) as error:
        session.warn("judgement", f"The held-out pairs were not judged: {error}", "use a smaller micro_batch")
        return None
    judged = list(itertools.chain.from_iterable(parts))
    if len(judged) < len(pairs):
        return None  # a stop
    if not all(math.isfinite(one.gap) for one in judged):
        session.warn("judgement", "The held-out pairs were not judged: some scores are not finite")
        return None
    return Judgement(step=step, pairs=tuple(judged))


def unusable(chosen: Example, rejected: Example) -> str:
    """Why a pair cannot be scored within the window, "" where it can: a score is read at the end."""
    if chosen.cut_completion or rejected.cut_completion:
        return "a side would lose its ending"
    return "both sides are the same" if chosen.input_ids == rejected.input_ids else ""


def _starting_head(session: Session, adapters: Adapters) -> ScalarHead:
    """New heads, or those of the reward model that training continues."""
    start, base, recipe = session.spec.model.adapter, adapters.base, cast(RewardRecipe, session.recipe)
    if not start or not has_head(start):
        return ScalarHead(base.hidden_size, base.device, seed=recipe.seed, heads=recipe.heads)
    head = load_head(start, base.device)
    if head.count != recipe.heads:
        session.warn(
            "heads",
            f"The reward model that training continues has {head.count} heads, and keeps them: heads "
            f"{recipe.heads} is not heeded",
            "start from an SFT model or the base for another number of heads",
        )
    return head


def _warn_of_heads_alike(session: Session, head: ScalarHead, rankings: int) -> None:
    """N rankings can be chosen from in 2^N - 1 ways; of more heads than that some must learn from the same ones."""
    if head.count > 1 and head.count.bit_length() > rankings:  # K >= 2^N
        session.warn(
            "heads",
            f"{head.count} heads are too many for {rankings} rankings: some learn from the same ones, and are apart "
            "only by how they began",
            "rank more, or set heads to 1",
        )


def _record(meters: Meters, chosen: Tensor, rejected: Tensor, loss: Tensor, ordered: Sequence[bool]) -> None:
    """Count a micro-batch; a tie has no chosen side, so it counts in the loss and among all scores alone."""
    meters.add("loss", loss)
    both = torch.cat([chosen, rejected])
    keep = torch.tensor(ordered, device=chosen.device)
    chosen, rejected = chosen[keep], rejected[keep]
    meters.add("accuracy", chosen > rejected)
    meters.add("margin", chosen - rejected)
    meters.add("chosen_reward", chosen)
    meters.add("rejected_reward", rejected)
    meters.add("mean_reward", both)
    meters.add_low("min_reward", both)
    meters.add_high("max_reward", both)
