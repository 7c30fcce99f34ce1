"""Supervised fine-tuning: maximise the log-probability of the demonstrations' completions.

``L = -sum_t log p(x_t | x_<t) / N`` over the N trained tokens of the whole optimiser step, so that a token counts the
same in every micro-batch, and one step of 8 rows equals eight accumulated steps of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch

from engine.adapters import Adapters
from engine.batching import Schedule, cutter, in_batches
from engine.completions import encode_demonstrations
from engine.eval_samples import write_asked_samples, write_eval_samples, write_final_samples
from engine.masking import Example
from engine.memory import MicroBatch, run_batches
from engine.meters import Meters, Throughput
from engine.neftune import noisy_embeddings
from engine.optim import Group, Optimiser
from engine.session import Session
from engine.trainee import EVAL_ROWS, Trainee, eval_due, open_start, refuse_empty, window
from workbench.recipes import SftRecipe

POLICY = "policy"


def run(session: Session) -> None:
    """Train an adapter on demonstrations, from the session's start model to its ``final/`` folder."""
    recipe = cast(SftRecipe, session.recipe)
    adapters = open_start(session, POLICY)
    session.phase("preparing", "tokenising the demonstrations")
    limit = window(session, adapters)
    train, ids = encode_demonstrations(session, adapters, "train", limit, recipe.train_on)
    heldout, _ = encode_demonstrations(session, adapters, "heldout", limit, recipe.train_on)
    if not train:
        refuse_empty("demonstrations", len(session.rows("train")), limit)
    schedule = Schedule(
        [tokens_of(one) for one in train],
        batch=recipe.batch,
        epochs=recipe.epochs,
        max_steps=recipe.max_steps,
        seed=recipe.seed,
    )
    total = schedule.total_steps
    optimiser = Optimiser([Group(adapters.parameters(POLICY), recipe.learning_rate)], recipe, total)
    micro_batch = MicroBatch(recipe.micro_batch)
    trainee = Trainee(adapters, POLICY, optimiser, Throughput(), micro_batch)
    meters, cut = Meters(), cutter(tokens_of, adapters.base)
    start = trainee.resume(session)
    session.progress(start, total)

    def measure(step: int) -> None:
        if heldout and eval_due(session, step, total):
            session.phase("evaluating")
            values, fitted = evaluate(session, adapters, heldout[:EVAL_ROWS], micro_batch.rows)
            micro_batch.take(session, fitted)
            session.metrics(step, values)
            session.phase("training")

    def reset() -> None:
        optimiser.zero()
        meters.reset()

    session.phase("training")
    if start == 0:
        measure(0)
    for step in range(start + 1, total + 1):
        trainee.throughput.restart()
        rows = schedule.rows(step - 1)
        batch = sorted((train[index] for index in rows), key=tokens_of, reverse=True)
        tokens = sum(one.trained_tokens for one in batch)

        def work(part: Sequence[Example], tokens: int = tokens) -> None:
            loss = loss_sum(adapters, part, meters, recipe.neftune_alpha)
            (loss / tokens).backward()

        micro_batch.run(session, batch, work, reset=reset, cut=cut)
        names, passed = [ids[index] for index in rows], sum(map(tokens_of, batch))
        session.metrics(step, trainee.step(session, step, meters.flush(), names, passed, schedule.epoch(step)))
        measure(step)
        write_asked_samples(session, step, partial(write_eval_samples, session, adapters, POLICY, step))
        session.at_step_end(step, total, trainee.save)
    session.finish(trainee.save_model)
    write_final_samples(session, lambda: write_eval_samples(session, adapters, POLICY, total))


def tokens_of(one: Example) -> int:
    """Tokens of a demonstration, its prompt among them."""
    return len(one.input_ids)


def loss_sum(
    adapters: Adapters, examples: Sequence[Example], meters: Meters, neftune_alpha: float = 0.0
) -> torch.Tensor:
    """Sum of ``-log p`` over the trained tokens of some rows; the meters get loss, accuracy and entropy."""
    layout = adapters.lay_out(examples)
    with noisy_embeddings(adapters.base.decoder, layout, neftune_alpha):
        logps, entropy, correct = adapters.token_stats(POLICY, layout)
    meters.add("loss", -logps)
    meters.add("mean_token_accuracy", correct)
    meters.add("entropy", entropy)
    return -logps.sum()


@torch.no_grad()
def evaluate(
    session: Session, adapters: Adapters, heldout: Sequence[Example], micro_batch: int
) -> tuple[dict[str, float], int]:
    """Loss and token accuracy over the trained tokens of held-out rows, and the micro-batch that fitted."""
    meters, cut = Meters(), cutter(tokens_of, adapters.base)
    batches = in_batches(heldout, tokens_of, micro_batch)
    _, micro_batch = run_batches(
        session, batches, micro_batch, lambda part: loss_sum(adapters, part, meters), cut=cut, reset=meters.reset
    )
    values = meters.flush("eval_")
    values.pop("eval_entropy", None)
    return values, micro_batch
