"""What a run trains: one adapter, perhaps a scalar head, and their optimiser; saved and restored as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.adapters import UNPACKED, Adapters
from engine.base_model import load_base
from engine.checkpoints import load_state, save_state
from engine.heads import ScalarHead, load_head
from engine.masking import Example
from engine.memory import MicroBatch
from engine.meters import Throughput
from engine.optim import Optimiser
from engine.session import Session
from engine.templates import generation_gap
from workbench.errors import UserError
from workbench.model_folders import refuse_changed_model

_STATE = "state_training.pt"
_HALVES = "halves"
_TWICE = "are held a second time as this processor multiplies them fastest; that rounds nothing"
_HELD = {
    UNPACKED: "The layers in 4 bits are unpacked once for all that is sampled, not at every token",
    "all": f"All layers that are not in 4 bits {_TWICE}",
    "wide": f"The widest layers {_TWICE}",
    "wide layers": f"The widest layers but the LM head {_TWICE}",
    "none": "No layer is held twice: memory has no room, weights would be rounded, or torch has no kernel here",
}
NOTHING_TO_TRAIN = "they have nothing to train"
EVAL_ROWS = 256
"""At most so many held-out rows are measured during a run: a measurement must not cost more than the training."""


@dataclass
class Trainee:
    """An adapter under training and all that resuming it needs."""

    adapters: Adapters
    name: str
    optimiser: Optimiser
    throughput: Throughput
    micro_batch: MicroBatch
    head: ScalarHead | None = None

    def save_model(self, folder: Path) -> None:
        """Write the adapter (and head) as a plain peft folder."""
        self.adapters.save(self.name, folder, None if self.head is None else self.head.weight)

    def save(self, folder: Path) -> None:
        """Write a resumable checkpoint."""
        self.save_model(folder)
        state = {
            "optimiser": self.optimiser.state(),
            "num_tokens": self.throughput.num_tokens,
            "micro_batch": self.micro_batch.state(),
        }
        save_state(folder / _STATE, state)

    def resume(self, session: Session) -> int:
        """Go on from the newest sound checkpoint. Returns the steps already done, 0 at a first start."""
        folder = session.latest_checkpoint()
        if folder is None:
            return 0
        self.adapters.restore(self.name, folder)
        if self.head is not None:
            with torch.no_grad():
                self.head.weight.copy_(load_head(folder).weight)
        state = load_state(folder / _STATE)
        self.optimiser.restore(state["optimiser"])
        self.throughput.num_tokens = int(state["num_tokens"])
        if "micro_batch" in state:  # not in a checkpoint of an earlier version
            self.micro_batch.restore(session, state["micro_batch"])
        session.restore_rng()
        return self.optimiser.step_count

    def step(
        self, session: Session, step: int, values: dict[str, float], names: Sequence[str], tokens: int, epoch: float
    ) -> dict[str, float]:
        """Make an optimiser step from the gradients of its rows.

        Args:
            session: the run.
            step: its number, from 1.
            values: what the rows' losses say, "loss" among it.
            names: the rows' ids.
            tokens: that passed through the model.
            epoch: passes over the data when the step is done.

        Returns:
            The step's metrics, ``values`` among them.

        Raises:
            DivergedError: loss or gradient is not finite; the event names the rows.
        """
        rate = self.optimiser.learning_rate
        session.check_finite(step, "loss", values["loss"], names)
        norm = self.optimiser.clip()
        session.check_finite(step, "grad_norm", norm, names)
        self.optimiser.step()
        self.throughput.add(tokens, len(names))
        return values | self.throughput.flush() | {"grad_norm": float(norm), "learning_rate": rate, "epoch": epoch}


def open_start(session: Session, name: str, *, sampling: bool = False) -> Adapters:
    """Load the run's base, and its starting adapter under ``name`` to be trained; a new one where there is none.

    ``sampling``: the run samples much.
    """
    recipe, model = session.recipe, session.spec.model
    session.phase("loading", model.name)
    refuse_changed_model(model)
    base = load_base(model.base, quantisation=recipe.quantisation, device=session.device)
    if base.template_note:
        session.warn("template", base.template_note)
    gap = generation_gap(base.tokenizer)
    if gap:
        session.warn(
            "template",
            f"This model's chat template opens an answer with {gap!r}, which it leaves out of finished turns: "
            "sampled answers begin behind it, trained ones in front of it",
            "write demonstrations that begin with it, or choose a model without thinking turns",
        )
    base.head_rows = recipe.head_rows or base.head_rows
    adapters = Adapters(base)
    _hold_halves(session, adapters, sampling=sampling)
    if model.adapter:
        adapters.load(name, model.adapter, trainable=True)
    else:
        adapters.add(name, rank=recipe.lora_rank, alpha=recipe.lora_alpha, trainable=True, seed=recipe.seed)
    adapters.checkpointing(recipe.gradient_checkpointing)
    return adapters


def _hold_halves(session: Session, adapters: Adapters, *, sampling: bool) -> None:
    """Hold layers a second time, as what is free allows, and say so; a resumed run does as it did before."""
    before = session.choices.get(_HALVES, "")
    head = session.spec.method != "reward"
    chosen = session.choices[_HALVES] = adapters.hold_halves(sampling=sampling, head=head, as_before=before)
    if not before and adapters.base.packs and (sampling or adapters.base.dtype == torch.float32):
        session.note(_HALVES, _HELD[chosen])


def window(session: Session, adapters: Adapters) -> int:
    """The longest sequence of this run in tokens: the recipe's, within the model's context; a cut is said aloud."""
    wanted, context = session.recipe.max_length, adapters.base.context
    if wanted > context:
        session.warn("context", f"max_length {wanted} is more than the model's context; {context} is used")
    return min(wanted, context)


def report_fit(
    session: Session, what: str, rows: int, dropped: Mapping[str, int], examples: Sequence[Example], limit: int
) -> None:
    """Say how many rows were left out (by reason, "they ...") and how many cut, with the remedy."""
    for reason, count in dropped.items():
        session.warn(
            "rows-dropped",
            f"{count} of {rows} {what} were left out: {reason} within {limit} tokens",
            "raise max_length, or shorten them",
        )
    cut_prompts = sum(1 for one in examples if one.cut_prompt)
    cut_answers = sum(1 for one in examples if one.cut_completion)
    if cut_prompts:
        session.warn(
            "rows-cut",
            f"{cut_prompts} prompts of the {what} are longer than {limit} tokens allow; their beginnings were cut",
            "raise max_length",
        )
    if cut_answers:
        session.warn(
            "rows-cut",
            f"{cut_answers} responses of the {what} were cut at {limit} tokens and train without their ending",
            "raise max_length",
        )


def refuse_empty(what: str, rows: int, limit: int) -> None:
    """Raise the UserError of a run that has nothing to train."""
    if rows:
        cause = f"none of the {rows} {what} fits into {limit} tokens"
        raise UserError("There is nothing to train", cause, "raise max_length, or shorten the texts")
    raise UserError("There is nothing to train", f"this run has no {what}", "add labels and start a new run")


def eval_due(session: Session, step: int, total: int) -> bool:
    """Whether held-out data is measured after this step (0: before the first)."""
    every = session.recipe.eval_every
    return step in (0, total) or (every > 0 and step % every == 0)
