"""Direct preference optimisation (Rafailov et al. 2023) against the frozen starting model.

``D = (log pi(y_c|x) - log ref(y_c|x)) - (log pi(y_r|x) - log ref(y_r|x))``, each a sum over the completion's tokens,
EOS included; ``L = -log sigmoid(beta D)`` and its relatives in :mod:`engine.losses`.

The reference is the adapter that training starts from (the bare base where there is none). Its log-probabilities are
computed once, in exactly the micro-batches, padding and kernels of the policy, so that low-precision errors cancel and
the first loss is ln 2; they are kept on disk under a hash of everything that they depend on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from engine.adapters import Adapters
from engine.batching import Schedule, by_length, collate
from engine.checkpoints import load_tensors, save_tensors
from engine.eval_samples import write_eval_samples
from engine.logps import predicting, summed_logps, token_logps
from engine.losses import dpo_loss
from engine.masking import Example, pair_examples
from engine.memory import run_micro_batched
from engine.meters import Meters, Throughput
from engine.optim import Group, Optimiser
from engine.session import Session
from engine.trainee import EVAL_ROWS, Trainee, eval_due, open_start, refuse_empty, report_fit, window
from workbench.recipes import DpoRecipe
from workbench.rows import PairRow

POLICY, REFERENCE = "policy", "reference"


@dataclass(frozen=True, slots=True)
class Preference:
    """An encoded preference."""

    id: str
    unit: str  # its ranking: such pairs share responses and stay together
    chosen: Example
    rejected: Example

    @property
    def length(self) -> int:
        """Tokens of the longer side."""
        return max(len(self.chosen.input_ids), len(self.rejected.input_ids))


Reference = dict[str, tuple[float, float]]
"""Summed reference log-probabilities (chosen, rejected) by pair id."""


def run(session: Session) -> None:
    """Train a policy on preferences, from the session's start model to its ``final/`` folder."""
    recipe = cast(DpoRecipe, session.recipe)
    adapters = open_start(session, POLICY)
    session.phase("preparing", "tokenising the preferences")
    limit = window(session, adapters)
    train = encode(session, adapters, "train", limit)
    heldout = encode(session, adapters, "heldout", limit)[:EVAL_ROWS]
    schedule = Schedule(
        [one.length for one in train],
        batch=recipe.batch,
        epochs=recipe.epochs,
        max_steps=recipe.max_steps,
        seed=recipe.seed,
        units=[one.unit for one in train],
        fixed=True,
    )
    total, micro_batch = schedule.total_steps, recipe.micro_batch
    eval_batches = [[heldout[index] for index in rows] for rows in by_length([p.length for p in heldout], micro_batch)]
    batches = [[train[index] for index in schedule.rows(step)] for step in range(total)]
    reference = reference_logps(session, adapters, [*batches, *eval_batches], micro_batch)
    optimiser = Optimiser([Group(adapters.parameters(POLICY), recipe.learning_rate)], recipe, total)
    trainee = Trainee(adapters, POLICY, optimiser, Throughput())
    meters = Meters()
    start = trainee.resume(session)
    session.progress(start, total)

    def measure(step: int) -> None:
        if heldout and eval_due(session, step, total):
            session.phase("evaluating")
            session.metrics(step, evaluate(adapters, eval_batches, reference, recipe))
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

        def work(part: Sequence[Preference], pairs: int = len(batch)) -> int:
            loss, tokens = pair_loss(adapters, part, reference, recipe, meters)
            (loss.sum() / pairs).backward()
            return tokens

        rate = optimiser.learning_rate
        tokens, micro_batch = run_micro_batched(session, batch, micro_batch, work, reset=reset)
        values = meters.flush()
        names = [one.id for one in batch]
        session.check_finite(step, "loss", values["loss"], names)
        norm = optimiser.clip()
        session.check_finite(step, "grad_norm", norm, names)
        optimiser.step()
        trainee.throughput.add(sum(tokens), len(batch))
        values |= trainee.throughput.flush()
        values |= {"grad_norm": float(norm), "learning_rate": rate, "epoch": schedule.epoch(step)}
        session.metrics(step, values)
        measure(step)
        if session.sample_asked() or step == total:
            write_eval_samples(session, adapters, POLICY, step)
        session.at_step_end(step, total, trainee.save)
    session.finish(trainee.save_model)


def completion_logps(adapters: Adapters, name: str | None, pairs: Sequence[Preference]) -> tuple[Tensor, Tensor, int]:
    """Summed log-probabilities of both completions of some pairs in one forward; a shared response passes once.

    Returns (chosen [P], rejected [P], tokens passed), fp32.
    """
    sides = [one.chosen for one in pairs] + [one.rejected for one in pairs]
    place: dict[tuple[tuple[int, ...], int], int] = {}
    where = [place.setdefault((one.input_ids, one.prompt_length), len(place)) for one in sides]
    unique = [sides[where.index(index)] for index in range(len(place))]
    batch = collate(unique, adapters.base.device)
    with adapters.use(name):
        hidden = adapters.hidden(batch.input_ids, batch.attention_mask)
    picked, targets = predicting(hidden, batch.input_ids, batch.loss_mask)
    logps, _ = token_logps(picked, targets, adapters.base.head_weight)
    sums = summed_logps(logps, batch.loss_mask)
    both = sums[torch.tensor(where, device=sums.device)]
    return both[: len(pairs)], both[len(pairs) :], sum(len(one.input_ids) for one in unique)


def pair_loss(
    adapters: Adapters, pairs: Sequence[Preference], reference: Reference, recipe: DpoRecipe, meters: Meters
) -> tuple[Tensor, int]:
    """The recipe's DPO loss per pair [P], and the tokens passed; the meters get the implicit rewards."""
    chosen, rejected, tokens = completion_logps(adapters, POLICY, pairs)
    ref = torch.tensor([reference[one.id] for one in pairs], dtype=chosen.dtype, device=chosen.device)
    chosen_ratio, rejected_ratio = chosen - ref[:, 0], rejected - ref[:, 1]
    loss = dpo_loss(
        chosen_ratio,
        rejected_ratio,
        beta=recipe.beta,
        loss_type=recipe.loss_type,
        label_smoothing=recipe.label_smoothing,
        chosen_tokens=torch.tensor([one.chosen.trained_tokens for one in pairs], device=chosen.device),
        rejected_tokens=torch.tensor([one.rejected.trained_tokens for one in pairs], device=chosen.device),
    )
    meters.add("loss", loss)
    meters.add("rewards/chosen", recipe.beta * chosen_ratio)
    meters.add("rewards/rejected", recipe.beta * rejected_ratio)
    meters.add("rewards/accuracies", chosen_ratio > rejected_ratio)
    meters.add("rewards/margins", recipe.beta * (chosen_ratio - rejected_ratio))
    meters.add("logps/chosen", chosen)
    meters.add("logps/rejected", rejected)
    return loss, tokens


@torch.no_grad()
def evaluate(
    adapters: Adapters, batches: Sequence[Sequence[Preference]], reference: Reference, recipe: DpoRecipe
) -> dict[str, float]:
    """Loss and implicit rewards on held-out pairs."""
    meters = Meters()
    for part in batches:
        pair_loss(adapters, part, reference, recipe, meters)
    return {key: value for key, value in meters.flush("eval_").items() if not key.startswith("eval_logps")}


@torch.no_grad()
def reference_logps(
    session: Session, adapters: Adapters, batches: Sequence[Sequence[Preference]], micro_batch: int
) -> Reference:
    """Log-probabilities under the frozen start of every pair of these batches; read from disk when they are there."""
    parts = {
        tuple(one.id for one in batch[start : start + micro_batch]): batch[start : start + micro_batch]
        for batch in batches
        for start in range(0, len(batch), micro_batch)
    }
    file = session.folder / "cache" / f"reference-{_content_hash(session, adapters, list(parts.values()))}.safetensors"
    ids = [one.id for part in parts.values() for one in part]
    if file.is_file():
        kept = load_tensors(file).get("logps")
        if kept is not None and kept.shape == (len(ids), 2):
            return {name: (float(pair[0]), float(pair[1])) for name, pair in zip(ids, kept, strict=True)}
    session.phase("reference", f"log-probabilities of {len(set(ids))} pairs under the start model")
    start = None  # the bare base
    if session.spec.model.adapter:
        adapters.load(REFERENCE, session.spec.model.adapter, trainable=False)
        start = REFERENCE
    rows = []
    for part in parts.values():
        session.control.check_cancelled()
        chosen, rejected, _ = completion_logps(adapters, start, part)
        rows.append(torch.stack([chosen, rejected], 1).cpu())
    if start:
        adapters.remove(REFERENCE)
    found = torch.cat(rows)
    file.parent.mkdir(exist_ok=True)
    draft = file.with_suffix(".tmp")
    save_tensors(draft, {"logps": found})
    draft.replace(file)
    return {name: (float(pair[0]), float(pair[1])) for name, pair in zip(ids, found, strict=True)}


def encode(session: Session, adapters: Adapters, name: str, limit: int) -> list[Preference]:
    """Encode a data file; pairs that became identical (or empty) within the window are left out and counted."""
    rows = cast(list[PairRow], session.rows(name))
    pairs = []
    for row in rows:
        chosen, rejected = pair_examples(adapters.base.tokenizer, row.prompt, row.chosen, row.rejected, limit)
        if chosen.input_ids != rejected.input_ids and chosen.trained_tokens and rejected.trained_tokens:
            pairs.append(Preference(row.id, row.ranking_id or row.id, chosen, rejected))
    what = "pairs" if name == "train" else "held-out pairs"
    sides = [side for one in pairs for side in (one.chosen, one.rejected)]
    report_fit(session, what, len(rows), len(rows) - len(pairs), sides, limit)
    if name == "train" and not pairs:
        refuse_empty(what, len(rows), limit)
    return pairs


def _content_hash(session: Session, adapters: Adapters, parts: Sequence[Sequence[Preference]]) -> str:
    model, base = session.spec.model, adapters.base
    digest = hashlib.sha256()
    for one in (model.base_sha256 or model.base, model.adapter_sha256 or model.adapter, base.quantisation, base.dtype):
        digest.update(f"{one}\n".encode())
    digest.update(f"{base.device.type} {torch.__version__}\n".encode())
    for part in parts:
        for pair in part:
            for side in (pair.chosen, pair.rejected):
                digest.update(torch.tensor([side.prompt_length, *side.input_ids]).numpy().tobytes())
        digest.update(b"/")
    return digest.hexdigest()[:16]
