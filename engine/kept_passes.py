"""Forward passes that a rollout measures and its first update learns from, done once.

The rollout measures policy and value under the weights with which the update's first mini-batch begins, and so the
update would compute the same numbers again. Their graphs are kept from one to the other as far as memory allows
(:func:`workbench.memory_plan.kept_room`): with one mini-batch and two epochs a sixth of PPO's arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from engine.base_model import LoadedBase
from engine.memory import free_bytes
from workbench.memory_plan import graph_per_token, kept_room
from workbench.model_shape import shape_of


class Pass(NamedTuple):
    """What policy and value say of a micro-batch of C episodes, R positions; 0 beyond a response."""

    logps: Tensor  # [C, R]
    entropy: Tensor  # [C, R]
    values: Tensor | None  # [C, R]; None without a value function

    def detached(self) -> Pass:
        """The numbers without their graph."""
        values = None if self.values is None else self.values.detach()
        return Pass(self.logps.detach(), self.entropy, values)


@dataclass
class KeptPasses:
    """The passes over some episodes of a rollout, with their graphs, while there is room."""

    episodes: range = range(0)  # the mini-batch that is learnt from first
    tokens: int = 0  # that there is room for
    _passes: dict[tuple[int, ...], Pass] = field(default_factory=dict)  # by their episodes

    def wants(self, part: Sequence[int], tokens: int) -> bool:
        """Whether a micro-batch of so many tokens is to be kept."""
        return tokens <= self.tokens and part[0] in self.episodes

    def keep(self, part: Sequence[int], tokens: int, made: Pass) -> None:
        """Keep a pass for :meth:`take`."""
        self._passes[tuple(part)] = made
        self.tokens -= tokens

    def take(self, part: Sequence[int]) -> Pass | None:
        """The pass over exactly these episodes in this order, if it was kept; a second time there is none."""
        return self._passes.pop(tuple(part), None)

    def drop(self) -> None:
        """Keep nothing more: memory ran out, or the weights have changed."""
        self._passes.clear()
        self.tokens = 0


def room_for_passes(base: LoadedBase, rank: int, passes: int, *, checkpointing: bool) -> int:
    """How many tokens' graphs may be kept at once, of so many passes over each."""
    gpu = base.device.type == "cuda"
    shape = shape_of(base.model.config.get_text_config().to_dict(), 0)
    width = torch.finfo(base.dtype).bits // 8
    one = graph_per_token(shape, rank, width, gpu=gpu, checkpointing=checkpointing)
    return kept_room(free_bytes(base.device), gpu=gpu) // (passes * one)
