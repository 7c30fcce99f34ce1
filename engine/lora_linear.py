"""A frozen linear layer with its LoRA in one autograd step: ``y = W x + b + scaling * B A x``.

Written out, the sum costs two more passes over the output forwards and two over the input backwards; here the small
products accumulate into the large ones (``addmm_``). LoRA masters are fp32 and are cast to the base's dtype in the
forward pass; their gradients are fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, base: nn.Module, first: Tensor, second: Tensor, scaling: float) -> Tensor:
        down, up = first.to(x.dtype), second.to(x.dtype)
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ down.T
        out: Tensor = base(rows)
        out.addmm_(inner, up.T, alpha=scaling)
        ctx.save_for_backward(rows, inner, first, second)
        ctx.base, ctx.scaling, ctx.shape = base, scaling, x.shape
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None, None]:
        rows, inner, first, second = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        inner_grad = (grad @ second.to(grad.dtype)).mul_(ctx.scaling)
        x_grad = first_grad = second_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = (grad @ dense_weight(ctx.base, grad.dtype)).addmm_(inner_grad, first.to(grad.dtype))
            x_grad = x_grad.view(ctx.shape)
        if ctx.needs_input_grad[2]:
            first_grad = (inner_grad.T @ rows).to(first.dtype)
        if ctx.needs_input_grad[3]:
            second_grad = (grad.T @ inner).mul_(ctx.scaling).to(second.dtype)
        return x_grad, None, first_grad, second_grad, None


def lora_linear(base: nn.Module, x: Tensor, first: Tensor, second: Tensor, scaling: float) -> Tensor:
    """Apply a frozen linear layer and its LoRA.

    Args:
        base: nn.Linear, bitsandbytes' Linear4bit, or GPT-2's Conv1D; no parameter of it trains.
        x: [..., I].
        first: A, [r, I], fp32 master.
        second: B, [O, r], fp32 master.
        scaling: alpha / r.

    Returns:
        [..., O], in x's dtype.
    """
    if torch.is_grad_enabled() and (x.requires_grad or first.requires_grad or second.requires_grad):
        return _LoraLinear.apply(x, base, first, second, scaling)
    rows = x.reshape(-1, x.shape[-1])
    out: Tensor = base(rows)
    out.addmm_(rows @ first.to(x.dtype).T, second.to(x.dtype).T, alpha=scaling)
    return out.view(*x.shape[:-1], out.shape[-1])


def dense_weight(base: nn.Module, dtype: torch.dtype) -> Tensor:
    """The weight [O, I] of a frozen layer as a dense matrix; a 4-bit one is unpacked."""
    weight: Any = base.weight
    state = getattr(weight, "quant_state", None)
    if state is not None:
        if getattr(state, "packing_format_for_cpu", False):
            raise RuntimeError("this 4-bit weight was repacked for inference; load the base with load_base")
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(weight.data, state).to(dtype)
    elif not isinstance(base, nn.Linear):
        weight = weight.T  # Conv1D keeps [I, O]
    return weight
