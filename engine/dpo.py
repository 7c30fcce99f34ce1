"""Direct preference optimisation (Rafailov et al. 2023) against the frozen starting model.

``D = (log pi(y_c|x) - log ref(y_c|x)) - (log pi(y_r|x) - log ref(y_r|x))``, each a sum over the completion's tokens,
EOS included; ``L = -log sigmoid(beta D)`` and its relatives in :mod:`engine.losses`. SimPO and ORPO need no reference.

The reference is the adapter that training starts from (the bare base where there is none): :mod:`engine.reference`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor

from engine.adapters import Adapters
from engine.batching import Schedule, in_batches
from engine.eval_samples import write_asked_samples, write_eval_samples, write_final_samples
from engine.losses import dpo_loss, orpo_loss, simpo_loss
from engine.masking import Example
from engine.memory import MicroBatch, run_batches
from engine.meters import Meters, Throughput
from engine.optim import Group, Optimiser
from engine.pairs import EncodedPair, encode_pairs, micro_batches, unique_sides
from engine.reference import Reference, reference_logps
from engine.session import Session
from engine.trainee import EVAL_ROWS, NOTHING_TO_TRAIN, Trainee, eval_due, open_start, window
from workbench.recipes import DpoRecipe

POLICY = "policy"


def run(session: Session) -> None:
    """Train a policy on preferences, from the session's start model to its ``final/`` folder."""
    recipe = cast(DpoRecipe, session.recipe)
    adapters = open_start(session, POLICY)
    session.phase("preparing", "tokenising the preferences")
    limit = window(session, adapters)
    train = encode_pairs(session, adapters, "train", limit, unusable)
    heldout = encode_pairs(session, adapters, "heldout", limit, unusable)[:EVAL_ROWS]
    schedule = Schedule(
        [one.length for one in train],
        batch=recipe.batch,
        epochs=recipe.epochs,
        max_steps=recipe.max_steps,
        seed=recipe.seed,
        units=[one.unit for one in train],
        fixed=True,
    )
    total, micro_batch = schedule.total_steps, MicroBatch(recipe.micro_batch)
    eval_batches = in_batches(heldout, lambda one: one.length, recipe.micro_batch)
    batches = [[train[index] for index in schedule.rows(step)] for step in range(total)]
    cut = micro_batches(adapters.base)
    reference: Reference = {}
    if recipe.needs_reference:
        both = [*batches, *eval_batches]
        reference = reference_logps(session, adapters, both, micro_batch, partial(side_logps, adapters), cut, "pairs")
    optimiser = Optimiser([Group(adapters.parameters(POLICY), recipe.learning_rate)], recipe, total)
    trainee = Trainee(adapters, POLICY, optimiser, Throughput(), micro_batch)
    meters = Meters()
    start = trainee.resume(session)
    session.progress(start, total)

    def measure(step: int) -> None:
        if heldout and eval_due(session, step, total):
            session.phase("evaluating")
            values, fitted = evaluate(session, adapters, eval_batches, reference, micro_batch.rows)
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
        batch = batches[step - 1]

        def work(part: Sequence[EncodedPair], pairs: int = len(batch)) -> int:
            loss, tokens = pair_loss(adapters, part, reference, recipe, meters)
            (loss.sum() / pairs).backward()
            return tokens

        tokens = micro_batch.run(session, batch, work, reset=reset, cut=cut)
        names = [one.id for one in batch]
        session.metrics(step, trainee.step(session, step, meters.flush(), names, sum(tokens), schedule.epoch(step)))
        measure(step)
        write_asked_samples(session, step, partial(write_eval_samples, session, adapters, POLICY, step))
        session.at_step_end(step, total, trainee.save)
    session.finish(trainee.save_model)
    write_final_samples(session, lambda: write_eval_samples(session, adapters, POLICY, total))


class Completions(NamedTuple):
    """What a forward pass says of the completions of P pairs; a shared response passed once. U responses, N tokens."""

    chosen: Tensor  # [P] summed log-probabilities, fp32
    rejected: Tensor  # [P]
    entropy: Tensor  # [N], nats, of every completion token of the U responses
    correct: Tensor  # [N] bool: the token is the argmax
    tokens: int  # passed through the model


def completion_logps(adapters: Adapters, name: str | None, pairs: Sequence[EncodedPair]) -> Completions:
    """Log-probabilities of both completions of some pairs under an adapter, in one forward."""
    unique, where = unique_sides(pairs)
    layout = adapters.lay_out(unique)
    logps, entropy, correct = adapters.token_stats(name, layout)
    both = layout.sums(logps)[torch.tensor(where, device=logps.device)]
    return Completions(both[: len(pairs)], both[len(pairs) :], entropy, correct, layout.tokens)


def side_logps(adapters: Adapters, name: str | None, pairs: Sequence[EncodedPair]) -> Tensor:
    """Summed log-probabilities [P, 2] of the chosen and the rejected completion of P pairs under an adapter."""
    found = completion_logps(adapters, name, pairs)
    return torch.stack([found.chosen, found.rejected], 1)


class Judged(NamedTuple):
    """What a loss says of P pairs. All [P]; the implicit rewards are what the loss compares, without its margin."""

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor


def pair_loss(
    adapters: Adapters, pairs: Sequence[EncodedPair], reference: Reference, recipe: DpoRecipe, meters: Meters
) -> tuple[Tensor, int]:
    """The recipe's loss per pair [P], and the tokens passed; the meters get the implicit rewards."""
    found = completion_logps(adapters, POLICY, pairs)
    judged = judge(found.chosen, found.rejected, pairs, reference, recipe)
    meters.add("loss", judged.loss)
    meters.add("rewards/chosen", judged.chosen_reward)
    meters.add("rewards/rejected", judged.rejected_reward)
    meters.add("rewards/accuracies", judged.chosen_reward > judged.rejected_reward)
    meters.add("rewards/margins", judged.chosen_reward - judged.rejected_reward)
    meters.add("logps/chosen", found.chosen)
    meters.add("logps/rejected", found.rejected)
    meters.add("entropy", found.entropy)
    meters.add("mean_token_accuracy", found.correct)
    return judged.loss, found.tokens


def judge(
    chosen: Tensor, rejected: Tensor, pairs: Sequence[EncodedPair], reference: Reference, recipe: DpoRecipe
) -> Judged:
    """Loss and implicit rewards of pairs from summed log-probabilities [P] of their completions under the policy."""
    chosen_tokens = torch.tensor([one.chosen.trained_tokens for one in pairs], device=chosen.device)
    rejected_tokens = torch.tensor([one.rejected.trained_tokens for one in pairs], device=chosen.device)
    if not recipe.needs_reference:
        chosen, rejected = chosen / chosen_tokens, rejected / rejected_tokens
        if recipe.loss_type == "simpo":
            loss, scale = simpo_loss(chosen, rejected, beta=recipe.beta, gamma=recipe.simpo_gamma), recipe.beta
        else:
            loss, scale = orpo_loss(chosen, rejected, weight=recipe.orpo_lambda), recipe.orpo_lambda
        return Judged(loss, scale * chosen, scale * rejected)
    ref = torch.tensor([reference[one.id] for one in pairs], dtype=chosen.dtype, device=chosen.device)
    chosen, rejected = chosen - ref[:, 0], rejected - ref[:, 1]
    loss = dpo_loss(
        chosen,
        rejected,
        beta=recipe.beta,
        loss_type=recipe.loss_type,
        label_smoothing=recipe.label_smoothing,
        chosen_tokens=chosen_tokens,
        rejected_tokens=rejected_tokens,
    )
    return Judged(loss, recipe.beta * chosen, recipe.beta * rejected)


@torch.no_grad()
def evaluate(
    session: Session,
    adapters: Adapters,
    batches: Sequence[Sequence[EncodedPair]],
    reference: Reference,
    micro_batch: int,
) -> tuple[dict[str, float], int]:
    """Loss and implicit rewards on held-out pairs, and the micro-batch that fitted."""
    meters, recipe = Meters(), cast(DpoRecipe, session.recipe)
    _, micro_batch = run_batches(
        session,
        batches,
        micro_batch,
        lambda part: pair_loss(adapters, part, reference, recipe, meters),
        cut=micro_batches(adapters.base),
        reset=meters.reset,
    )
    values = meters.flush("eval_")
    kept = {key: value for key, value in values.items() if key == "eval_loss" or key.startswith("eval_rewards/")}
    return kept, micro_batch


def unusable(chosen: Example, rejected: Example) -> str:
    """Why a pair has nothing to compare within the window, "" where it has."""
    if not chosen.trained_tokens or not rejected.trained_tokens:
        return NOTHING_TO_TRAIN
    return "both sides are the same" if chosen.input_ids == rejected.input_ids else ""
