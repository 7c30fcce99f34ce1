"""The weights of frozen linear layers of whatever kind, as dense matrices [outputs, inputs]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def dense_weight(base: nn.Module, dtype: torch.dtype) -> Tensor:
    """The weight [O, I] of a frozen layer as a dense matrix; a 4-bit one is unpacked."""
    weight: Any = base.weight
    state = _packed_state(base)
    if state is not None:
        if getattr(state, "packing_format_for_cpu", False):
            raise RuntimeError("this 4-bit weight was repacked for inference; load the base with load_base")
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(weight.data, state).to(dtype)
    elif not isinstance(base, nn.Linear):
        weight = weight.T  # Conv1D keeps [I, O]
    return weight


def is_packed(base: nn.Module) -> bool:
    """Whether a layer is held in 4 bits."""
    return _packed_state(base) is not None


def weight_shape(base: nn.Module) -> tuple[int, int]:
    """The shape [O, I] of a frozen layer's weight, unpacked or not."""
    weight: Any = base.weight
    state = _packed_state(base)
    outputs, inputs = weight.shape if state is None else state.shape
    return (outputs, inputs) if isinstance(base, nn.Linear) else (inputs, outputs)


def _packed_state(base: nn.Module) -> Any:
    return getattr(base.weight, "quant_state", None)
