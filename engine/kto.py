"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024): single responses, each judged wanted or unwanted.

``r = log pi(y|x) - log ref(y|x)``, summed over the completion's tokens, EOS included. A response is a gain or a loss
against ``z``, an estimate of ``KL(pi || ref)``; its loss is ``w (1 - sigmoid(+-beta (r - z)))``
(:func:`engine.losses.kto_loss`).

z comes from the prompts of the **whole optimiser step**, each with another prompt's response, before any gradient:
a step has two passes, and neither z nor the loss depends on the micro-batch. No gradient flows through z.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor

from engine.adapters import Adapters
from engine.batching import Schedule, cutter, in_batches
from engine.completions import encode_completions
from engine.eval_samples import write_asked_samples, write_eval_samples, write_final_samples
from engine.losses import kto_loss, kto_zero
from engine.masking import Example, fit
from engine.memory import MicroBatch, run_batches
from engine.meters import Meters, Throughput
from engine.optim import Group, Optimiser
from engine.reference import Reference, reference_logps
from engine.session import Session
from engine.templates import end_of_turn
from engine.trainee import EVAL_ROWS, Trainee, eval_due, open_start, refuse_empty, window
from workbench.recipes import KtoRecipe
from workbench.rows import ThumbRow

POLICY = "policy"


@dataclass(frozen=True, slots=True)
class EncodedThumb:
    """A judged response in token ids; of a mismatched one, ``desirable`` means nothing."""

    id: str
    example: Example
    desirable: bool = False

    @property
    def sides(self) -> tuple[Example]:
        """The one completion."""
        return (self.example,)

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.example.input_ids)


def run(session: Session) -> None:
    """Train a policy on judged responses, from the session's start model to its ``final/`` folder."""
    recipe = cast(KtoRecipe, session.recipe)
    adapters = open_start(session, POLICY)
    session.phase("preparing", "tokenising the judged responses")
    limit = window(session, adapters)
    train = encode(session, adapters, "train", limit)
    heldout = encode(session, adapters, "heldout", limit)[:EVAL_ROWS]
    schedule = unsorted_schedule(train, recipe)
    total, micro_batch = schedule.total_steps, MicroBatch(recipe.micro_batch)
    bos = end_of_turn(adapters.base.tokenizer).bos
    batches = [
        sorted((train[index] for index in schedule.rows(step)), key=length_of, reverse=True) for step in range(total)
    ]
    others = [mismatched(batch, limit, bos) for batch in batches]
    eval_batches = in_batches(heldout, length_of, recipe.micro_batch)
    eval_others = in_batches(mismatched(heldout, limit, bos), length_of, recipe.micro_batch)
    cut = cutter(length_of, adapters.base)
    every = [*batches, *others, *eval_batches, *eval_others]
    sums = partial(completion_sums, adapters)
    reference = reference_logps(session, adapters, every, micro_batch, sums, cut, "responses")
    optimiser = Optimiser([Group(adapters.parameters(POLICY), recipe.learning_rate)], recipe, total)
    trainee = Trainee(adapters, POLICY, optimiser, Throughput(), micro_batch)
    meters = Meters()
    start = trainee.resume(session)
    session.progress(start, total)

    def measure(step: int) -> None:
        if heldout and eval_due(session, step, total):
            session.phase("evaluating")
            values, fitted = evaluate(session, adapters, eval_batches, eval_others, reference, micro_batch.rows)
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
        ratios = micro_batch.run(
            session, others[step - 1], lambda part: log_ratios(adapters, part, reference), cut=cut, learns=False
        )
        zero = zero_of(ratios, session.device)

        def work(part: Sequence[EncodedThumb], zero: Tensor = zero, rows: int = len(batch)) -> int:
            loss, tokens = thumb_loss(adapters, part, reference, zero, recipe, meters)
            (loss.sum() / rows).backward()
            return tokens

        tokens = micro_batch.run(session, batch, work, reset=reset, cut=cut)
        values = with_margin(meters.flush()) | {"kl": float(zero)}
        names = [one.id for one in batch]
        session.metrics(step, trainee.step(session, step, values, names, sum(tokens), schedule.epoch(step)))
        measure(step)
        write_asked_samples(session, step, partial(write_eval_samples, session, adapters, POLICY, step))
        session.at_step_end(step, total, trainee.save)
    session.finish(trainee.save_model)
    write_final_samples(session, lambda: write_eval_samples(session, adapters, POLICY, total))


def length_of(one: EncodedThumb) -> int:
    """Tokens of prompt and completion."""
    return one.length


def unsorted_schedule(train: Sequence[EncodedThumb], recipe: KtoRecipe) -> Schedule:
    """The rows of every step, drawn whatever their length.

    Unwanted responses are often the longer ones, or the shorter: buckets of one length would have steps of one kind,
    pushed one way only, and a KL of that kind. What pads is sorted within the step.
    """
    return Schedule(
        [1] * len(train),
        batch=recipe.batch,
        epochs=recipe.epochs,
        max_steps=recipe.max_steps,
        seed=recipe.seed,
        fixed=True,
    )


def encode(session: Session, adapters: Adapters, name: str, limit: int) -> list[EncodedThumb]:
    """Encode a data file ("train" or "heldout") within ``limit`` tokens; what is left out is said.

    Raises UserError when nothing is left to train on.
    """
    what = "judged responses"
    found = encode_completions(session, adapters, name, what, limit)
    if name == "train" and not found:
        refuse_empty(what, len(session.rows(name)), limit)
    return [EncodedThumb(row.id, one, cast(ThumbRow, row).desirable) for row, one in found]


def mismatched(batch: Sequence[EncodedThumb], limit: int, bos: int | None = None) -> list[EncodedThumb]:
    """Each prompt of a batch with the completion of another prompt, every completion once (section 4.1).

    Rows are put prompt by prompt and the completions moved on by as many places as the commonest prompt has rows: then
    none meets its own prompt while that prompt has at most half of the rows. Those that still do are left out, since
    a response to its own prompt measures its reward and not the KL. Where all prompts differ this is TRL's rotation:
    x_i with y_(i-1). Prompts are cut to ``limit`` tokens as everywhere; ``bos`` stays at their start.
    """
    prompts = [one.example.input_ids[: one.example.prompt_length] for one in batch]
    counts = Counter(prompts)
    first = {prompt: place for place, prompt in reversed(list(enumerate(prompts)))}
    order = sorted(range(len(batch)), key=lambda place: first[prompts[place]])
    shift = max(counts.values(), default=0)
    found = []
    for place, row in enumerate(order):
        other = order[(place - shift) % len(order)]
        if prompts[row] == prompts[other]:
            continue
        answer = batch[other].example
        prompt, [completion], *_ = fit(prompts[row], [answer.input_ids[answer.prompt_length :]], limit, bos=bos)
        mask = (False,) * len(prompt) + (True,) * len(completion)
        example = Example((*prompt, *completion), mask, len(prompt))
        found.append(EncodedThumb(f"{batch[row].id}~{batch[other].id}", example))
    return found


class Completions(NamedTuple):
    """What a forward pass says of B completions of N tokens in all."""

    logps: Tensor  # [B] summed log-probabilities, fp32
    entropy: Tensor  # [N], nats
    correct: Tensor  # [N] bool: the token is the argmax
    tokens: int  # passed through the model


def completion_logps(adapters: Adapters, name: str | None, rows: Sequence[EncodedThumb]) -> Completions:
    """Log-probabilities of completions under an adapter, in one forward."""
    layout = adapters.lay_out([one.example for one in rows])
    logps, entropy, correct = adapters.token_stats(name, layout)
    return Completions(layout.sums(logps), entropy, correct, layout.tokens)


def completion_sums(adapters: Adapters, name: str | None, rows: Sequence[EncodedThumb]) -> Tensor:
    """Summed log-probabilities [B, 1], as :func:`engine.reference.reference_logps` wants them."""
    return completion_logps(adapters, name, rows).logps[:, None]


@torch.no_grad()
def log_ratios(adapters: Adapters, rows: Sequence[EncodedThumb], reference: Reference) -> Tensor:
    """``log pi - log ref`` [B] of completions, in nats, without a gradient."""
    found = completion_logps(adapters, POLICY, rows).logps
    return found - _of_reference(rows, reference, found)


def zero_of(ratios: list[Tensor], device: torch.device) -> Tensor:
    """KTO's zero [] from the log-ratios of mismatched responses, micro-batch by micro-batch; 0 without any."""
    return kto_zero(torch.cat(ratios) if ratios else torch.zeros(0, device=device))


def thumb_loss(
    adapters: Adapters,
    rows: Sequence[EncodedThumb],
    reference: Reference,
    zero: Tensor,
    recipe: KtoRecipe,
    meters: Meters,
) -> tuple[Tensor, int]:
    """The loss per judged response [B] against ``zero`` [], and the tokens passed; the meters get the rewards."""
    found = completion_logps(adapters, POLICY, rows)
    desirable = torch.tensor([one.desirable for one in rows], device=found.logps.device)
    ratio = found.logps - _of_reference(rows, reference, found.logps)
    loss = kto_loss(
        ratio,
        desirable,
        zero,
        beta=recipe.beta,
        desirable_weight=recipe.desirable_weight,
        undesirable_weight=recipe.undesirable_weight,
    )
    meters.add("loss", loss)
    for name, chosen in (("desirable", desirable), ("undesirable", ~desirable)):
        meters.add(f"rewards/{name}", recipe.beta * ratio[chosen])
        meters.add(f"logps/{name}", found.logps[chosen])
    meters.add("entropy", found.entropy)
    meters.add("mean_token_accuracy", found.correct)
    return loss, found.tokens


def with_margin(values: dict[str, float], prefix: str = "") -> dict[str, float]:
    """Add the difference of the mean rewards, where there were responses of both kinds."""
    wanted, unwanted = (values.get(f"{prefix}rewards/{name}") for name in ("desirable", "undesirable"))
    if wanted is None or unwanted is None:
        return values
    return values | {f"{prefix}rewards/margins": wanted - unwanted}


@torch.no_grad()
def evaluate(
    session: Session,
    adapters: Adapters,
    batches: Sequence[Sequence[EncodedThumb]],
    others: Sequence[Sequence[EncodedThumb]],
    reference: Reference,
    micro_batch: int,
) -> tuple[dict[str, float], int]:
    """Loss, rewards and KL on held-out responses, and the micro-batch that fitted; all of them share one zero."""
    meters, recipe, cut = Meters(), cast(KtoRecipe, session.recipe), cutter(length_of, adapters.base)
    ratios, micro_batch = run_batches(
        session, others, micro_batch, lambda part: log_ratios(adapters, part, reference), cut=cut
    )
    zero = zero_of(ratios, session.device)
    _, micro_batch = run_batches(
        session,
        batches,
        micro_batch,
        lambda part: thumb_loss(adapters, part, reference, zero, recipe, meters),
        cut=cut,
        reset=meters.reset,
    )
    values = with_margin(meters.flush("eval_"), "eval_")
    kept = {key: value for key, value in values.items() if key == "eval_loss" or key.startswith("eval_rewards/")}
    return kept | {"eval_kl": float(zero)}, micro_batch


def _of_reference(rows: Sequence[EncodedThumb], reference: Reference, like: Tensor) -> Tensor:
    return torch.tensor([reference[one.id][0] for one in rows], dtype=like.dtype, device=like.device)
