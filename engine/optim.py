"""AdamW over named groups of fp32 masters, its schedule, gradient clipping, and its state on disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workbench.recipes import CommonRecipe


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that share a learning rate."""

    parameters: Sequence[nn.Parameter]
    learning_rate: float


def schedule_factor(step: int, total: int, warmup: int, schedule: str) -> float:
    """What the learning rate is multiplied by at optimiser step ``step`` (0-based) of ``total``.

    Warm-up rises linearly from 1/warmup; then "linear" falls towards 0 after the last step, "cosine" the same along
    half a cosine, "constant" stays. As transformers' schedules, which TRL uses, but for a first step that learns.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


class Optimiser:
    """AdamW(0.9, 0.999) with clipping over exactly the parameters that it was given.

    Lists are explicit, never ``requires_grad``: several adapters share one base.
    """

    def __init__(self, groups: Sequence[Group], recipe: CommonRecipe, total_steps: int, eps: float = 1e-8) -> None:
        self._rates = [group.learning_rate for group in groups]
        self._parameters = [one for group in groups for one in group.parameters]
        self._recipe = recipe
        self.total_steps = total_steps
        self.step_count = 0
        self._adamw = torch.optim.AdamW(
            [{"params": list(group.parameters), "lr": group.learning_rate} for group in groups],
            betas=(0.9, 0.999),
            eps=eps,
            weight_decay=recipe.weight_decay,
            fused=True,
        )

    @property
    def learning_rate(self) -> float:
        """Of the first group, at the next step."""
        return self._rates[0] * self._factor()

    def zero(self) -> None:
        """Drop all gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def clip(self) -> Tensor:
        """Shorten the gradient to the recipe's limit. Returns its length before, a scalar on the device."""
        return nn.utils.clip_grad_norm_(self._parameters, self._recipe.max_grad_norm)

    def step(self) -> None:
        """Update with the present learning rates, drop the gradients, move the schedule on."""
        factor = self._factor()
        for group, rate in zip(self._adamw.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._adamw.step()
        self.step_count += 1
        self.zero()

    def state(self) -> dict[str, Any]:
        """Everything that going on needs."""
        return {"adamw": self._adamw.state_dict(), "step_count": self.step_count}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state`."""
        self._adamw.load_state_dict(state["adamw"])
        self.step_count = int(state["step_count"])

    def _factor(self) -> float:
        return schedule_factor(self.step_count, self.total_steps, self._recipe.warmup_steps, self._recipe.schedule)
