"""Frozen linear layers with their LoRA in one autograd step, ``y = W x + b + scaling * B A x``; a gated MLP of three.

Written out, the sum costs two more passes over the output forwards and two over the input backwards; here the small
products accumulate into the large ones (``addmm_``). LoRA masters are fp32 and are cast to the base's dtype in the
forward pass; their gradients are fp32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Lora(NamedTuple):
    """A frozen layer and the LoRA on it."""

    base: nn.Module  # nn.Linear, bitsandbytes' Linear4bit, or GPT-2's Conv1D; no parameter of it trains
    first: Tensor  # A, [r, I], fp32 master
    second: Tensor  # B, [O, r], fp32 master
    scaling: float  # alpha / r


def _forward(layer: Lora, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output [N, O] and ``A x`` [N, r]."""
    inner = rows @ layer.first.to(rows.dtype).T
    out: Tensor = layer.base(rows)
    return out.addmm_(inner, layer.second.to(rows.dtype).T, alpha=layer.scaling), inner


def _inner_grad(layer: Lora, grad: Tensor) -> Tensor:
    """Gradient of ``A x``, [N, r]."""
    return (grad @ layer.second.to(grad.dtype)).mul_(layer.scaling)


def _input_grad(layer: Lora, grad: Tensor, inner_grad: Tensor) -> Tensor:
    """Gradient of the input, [N, I]."""
    return (grad @ dense_weight(layer.base, grad.dtype)).addmm_(inner_grad, layer.first.to(grad.dtype))


def _master_grads(layer: Lora, rows: Tensor, inner: Tensor, grad: Tensor, inner_grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of A and B in their own dtype."""
    first = (inner_grad.T @ rows).to(layer.first.dtype)
    return first, (grad.T @ inner).mul_(layer.scaling).to(layer.second.dtype)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, base: nn.Module, first: Tensor, second: Tensor, scaling: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out, inner = _forward(Lora(base, first, second, scaling), rows)
        ctx.save_for_backward(rows, inner, first, second)
        ctx.base, ctx.scaling, ctx.shape = base, scaling, x.shape
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None, None]:
        rows, inner, first, second = ctx.saved_tensors
        layer = Lora(ctx.base, first, second, ctx.scaling)
        grad = grad.reshape(-1, grad.shape[-1])
        inner_grad = _inner_grad(layer, grad)
        x_grad = first_grad = second_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = _input_grad(layer, grad, inner_grad).view(ctx.shape)
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            first_grad, second_grad = _master_grads(layer, rows, inner, grad, inner_grad)
        return x_grad, None, first_grad, second_grad, None


class _GatedMlp(torch.autograd.Function):
    """``down(silu(gate x) * up x)``; between forward and backward it keeps gate and up, and makes the rest again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bases: Any, scalings: Any, *masters: Tensor) -> Tensor:
        gate, up, down = _three(bases, scalings, masters)
        rows = x.reshape(-1, x.shape[-1])
        gated, gate_inner = _forward(gate, rows)
        raised, up_inner = _forward(up, rows)
        product = torch.nn.functional.silu(gated).mul_(raised)
        out, down_inner = _forward(down, product)
        ctx.save_for_backward(rows, gated, raised, gate_inner, up_inner, down_inner, *masters)
        ctx.bases, ctx.scalings, ctx.shape = bases, scalings, x.shape
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        rows, gated, raised, gate_inner, up_inner, down_inner, *masters = ctx.saved_tensors
        gate, up, down = _three(ctx.bases, ctx.scalings, masters)
        grad = grad.reshape(-1, grad.shape[-1])
        inner_grad = _inner_grad(down, grad)
        product_grad = _input_grad(down, grad, inner_grad)
        share = torch.sigmoid(gated)
        silu = gated * share
        down_grads = _master_grads(down, silu * raised, down_inner, grad, inner_grad)
        # d silu(g) / dg = s + g s (1 - s) = s + silu (1 - s)
        gated_grad = torch.addcmul(share, silu, 1 - share).mul_(raised).mul_(product_grad)
        raised_grad = product_grad.mul_(silu)
        gate_inner_grad, up_inner_grad = _inner_grad(gate, gated_grad), _inner_grad(up, raised_grad)
        gate_grads = _master_grads(gate, rows, gate_inner, gated_grad, gate_inner_grad)
        up_grads = _master_grads(up, rows, up_inner, raised_grad, up_inner_grad)
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = _input_grad(gate, gated_grad, gate_inner_grad)
            x_grad += _input_grad(up, raised_grad, up_inner_grad)
            x_grad = x_grad.view(ctx.shape)
        return x_grad, None, None, *gate_grads, *up_grads, *down_grads


def _three(bases: Any, scalings: Any, masters: Any) -> tuple[Lora, Lora, Lora]:
    one, two, three = (
        Lora(base, masters[2 * place], masters[2 * place + 1], scaling)
        for place, (base, scaling) in enumerate(zip(bases, scalings, strict=True))
    )
    return one, two, three


def lora_linear(layer: Lora, x: Tensor) -> Tensor:
    """Apply a frozen linear layer and its LoRA to ``x`` [..., I]. Returns [..., O], in x's dtype."""
    if _trains(x, layer):
        return _LoraLinear.apply(x, *layer)
    out, _ = _forward(layer, x.reshape(-1, x.shape[-1]))
    return out.view(*x.shape[:-1], out.shape[-1])


def lora_gated_mlp(gate: Lora, up: Lora, down: Lora, x: Tensor) -> Tensor:
    """Apply a SwiGLU MLP whose three layers have LoRA (Shazeer 2020): ``down(silu(gate x) * up x)``, [..., D].

    Layer by layer autograd keeps four tensors of the MLP's inner width for the backward pass; this keeps two.
    """
    layers = (gate, up, down)
    if _trains(x, *layers):
        masters = [part for layer in layers for part in (layer.first, layer.second)]
        return _GatedMlp.apply(
            x, tuple(layer.base for layer in layers), tuple(layer.scaling for layer in layers), *masters
        )
    rows = x.reshape(-1, x.shape[-1])
    product = torch.nn.functional.silu(_forward(gate, rows)[0], inplace=True).mul_(_forward(up, rows)[0])
    return _forward(down, product)[0].view(x.shape)


def _trains(x: Tensor, *layers: Lora) -> bool:
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or any(one.first.requires_grad or one.second.requires_grad for one in layers)


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
