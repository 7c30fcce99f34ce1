"""The adapter under which the demo model's reference numbers were made: noise of one seed in all linear layers."""

from __future__ import annotations

import torch

from engine.adapters import Adapters
from engine.base_model import LoadedBase


def noise_adapter(base: LoadedBase, name: str) -> Adapters:
    """Give a base a trainable adapter of rank 16 and alpha 32, drawn in the order of peft's names for its weights.

    One generator of seed 1234: A is N(0, 1 / columns), B is N(0, 0.02^2).
    """
    adapters = Adapters(base)
    adapters.add(name, rank=16, alpha=32, trainable=True)
    source = torch.Generator().manual_seed(1234)
    state = adapters.state(name)
    for key in sorted(state, key=lambda one: one.replace(".weight", ".default.weight")):
        noise = torch.randn(state[key].shape, generator=source)
        state[key].copy_(noise / state[key].shape[1] ** 0.5 if "lora_A" in key else noise * 0.02)
    return adapters
