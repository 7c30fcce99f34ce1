"""Frozen linear layers with their LoRA in one autograd step, ``y = W x + b + scaling * B A x``; a gated MLP of three.

Written out, the sum costs two more passes over the output forwards and two over the input backwards; here the small
products accumulate into the large ones (``addmm_``). Layers that read the same input (query, key and value; gate and
up) share one product with their A matrices laid under one another. LoRA masters are fp32 and are cast to the base's
dtype in the forward pass; their gradients are fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.dense_weights import dense_weight
from engine.half_weights import half_for, half_linear

FEW_ROWS = 96


class Lora(NamedTuple):
    """A frozen layer and the LoRA on it, if it has any."""

    base: nn.Module  # nn.Linear, bitsandbytes' Linear4bit, or GPT-2's Conv1D; no parameter of it trains
    first: Tensor | None = None  # A, [r, I], fp32 master
    second: Tensor | None = None  # B, [O, r], fp32 master
    scaling: float = 0.0  # alpha / r


def project(layers: Sequence[Lora], rows: Tensor) -> tuple[list[Tensor], Tensor | None]:
    """Run layers on the same input [N, I]. Returns each output [N, O], and ``A x`` of all side by side [N, R]."""
    firsts = [layer.first.to(rows.dtype) for layer in layers if layer.first is not None]
    inner = rows @ torch.cat(firsts).T if firsts else None
    outs = linears([layer.base for layer in layers], rows)
    for out, lora in zip(outs, _adapted(layers, inner), strict=True):
        if lora is not None:
            _, second, scaling, part = lora
            out.addmm_(part, second.to(rows.dtype).T, alpha=scaling)
    return outs, inner


Project = Callable[[Sequence[Lora], Tensor], tuple[list[Tensor], Tensor | None]]
"""What :func:`project` is: layers and their input to each output, and A x where it is kept."""


def linears(bases: Sequence[nn.Module], rows: Tensor) -> list[Tensor]:
    """Frozen layers on the same input [N, I]: in one product where they are held in 16 bits and that pays."""
    half = half_for(bases, len(rows))
    if half is None:
        return [_linear(base, rows) for base in bases]
    return list(half_linear(half, rows).split(half.widths, 1))


def _linear(base: nn.Module, rows: Tensor) -> Tensor:
    """A frozen layer on [N, I]. With few rows, as in decoding, a CPU is up to twice as fast at ``W x^T``."""
    if len(rows) > FEW_ROWS or rows.device.type != "cpu" or not isinstance(base, nn.Linear):
        out: Tensor = base(rows)
        return out
    out = (dense_weight(base, rows.dtype) @ rows.T).T
    return out if base.bias is None else out.add_(base.bias)


def project_grads(
    layers: Sequence[Lora], rows: Tensor, inner: Tensor | None, grads: Sequence[Tensor], *, wants_input: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """The backward pass of :func:`project`.

    ``d A = (s B^T g)^T x``, ``d B = s g^T (A x)`` and ``d x = sum over layers of g W + (s g B) A``.

    Args:
        layers: as they were.
        rows: their input [N, I].
        inner: what ``project`` gave.
        grads: of the outputs, each [N, O].
        wants_input: whether the gradient of the input is needed.

    Returns:
        (gradient of the input [N, I] or None, gradients of A and B of every layer with LoRA, in their own dtype).
    """
    adapted = [(*one, grad) for one, grad in zip(_adapted(layers, inner), grads, strict=True) if one is not None]
    inner_grads = [(grad @ second.to(grad.dtype)).mul_(scaling) for _, second, scaling, _, grad in adapted]
    masters: list[Tensor] = []
    if inner_grads:
        inner_grad = torch.cat(inner_grads, 1)
        # x^T on the left: the product with a tall thin matrix is three times as fast as with a flat one.
        first_grads = (rows.T @ inner_grad).T.split([one.shape[1] for one in inner_grads])
        for (first, second, scaling, part, grad), first_grad in zip(adapted, first_grads, strict=True):
            masters += [first_grad.to(first.dtype), (grad.T @ part).mul_(scaling).to(second.dtype)]
    if not wants_input:
        return None, masters
    total = grads[0] @ dense_weight(layers[0].base, rows.dtype)
    for layer, grad in zip(layers[1:], grads[1:], strict=True):
        total.addmm_(grad, dense_weight(layer.base, rows.dtype))
    if inner_grads:
        total.addmm_(inner_grad, torch.cat([first.to(rows.dtype) for first, *_ in adapted]))
    return total, masters


def _adapted(layers: Sequence[Lora], inner: Tensor | None) -> list[tuple[Tensor, Tensor, float, Tensor] | None]:
    """Of each layer with LoRA (A, B, scaling, its columns of ``A x``); None for one without."""
    found: list[tuple[Tensor, Tensor, float, Tensor] | None] = []
    begin = 0
    for layer in layers:
        if layer.first is None or layer.second is None or inner is None:
            found.append(None)
            continue
        found.append((layer.first, layer.second, layer.scaling, inner[:, begin : begin + len(layer.first)]))
        begin += len(layer.first)
    return found


def masters_of(layers: Sequence[Lora]) -> list[Tensor]:
    """A and B of every layer that has them, in the order in which :func:`project_grads` gives their gradients."""
    return [part for layer in layers for part in (layer.first, layer.second) if part is not None]


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Lora, *masters: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        [out], inner = project((layer,), rows)
        ctx.save_for_backward(rows, inner, *masters)
        ctx.layer, ctx.shape = layer, x.shape
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, *_ = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        x_grad, masters = project_grads((ctx.layer,), rows, inner, [grad], wants_input=ctx.needs_input_grad[0])
        return None if x_grad is None else x_grad.view(ctx.shape), None, *masters


class GatedMlp(NamedTuple):
    """The layers of ``down(silu(gate x) * up x)``."""

    gate: Lora
    up: Lora
    down: Lora


class MlpKept(NamedTuple):
    """What a gated MLP keeps for its backward pass: two tensors of the inner width; the rest is made again."""

    gate: Tensor  # [N, I], before silu
    up: Tensor  # [N, I]
    inner: Tensor | None  # A x of gate and up
    down_inner: Tensor | None


def mlp_forward(mlp: GatedMlp, rows: Tensor, run: Project = project) -> tuple[Tensor, MlpKept]:
    """Run a gated MLP on [N, D]. Returns its output [N, D] and what its backward pass needs."""
    (gate, up), inner = run(mlp[:2], rows)
    [out], down_inner = run((mlp.down,), nn.functional.silu(gate).mul_(up))
    return out, MlpKept(gate, up, inner, down_inner)


def mlp_backward(
    mlp: GatedMlp, rows: Tensor, kept: MlpKept, grad: Tensor, *, wants_input: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """The gradients of a gated MLP's input [N, D] and of its masters (gate, up, down), from that of its output."""
    silu = nn.functional.silu(kept.gate)
    product_grad, down_masters = project_grads((mlp.down,), silu * kept.up, kept.down_inner, [grad], wants_input=True)
    assert product_grad is not None
    up_grad = silu.mul_(product_grad)
    gate_grad = torch.ops.aten.silu_backward(product_grad.mul_(kept.up), kept.gate)
    x_grad, masters = project_grads(mlp[:2], rows, kept.inner, [gate_grad, up_grad], wants_input=wants_input)
    return x_grad, [*masters, *down_masters]


class _GatedMlpStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mlp: GatedMlp, *masters: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out, kept = mlp_forward(mlp, rows)
        ctx.save_for_backward(rows, *kept, *masters)
        ctx.mlp, ctx.shape = mlp, x.shape
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        rows, *kept = ctx.saved_tensors[: 1 + len(MlpKept._fields)]
        grad = grad.reshape(-1, grad.shape[-1])
        x_grad, masters = mlp_backward(ctx.mlp, rows, MlpKept(*kept), grad, wants_input=ctx.needs_input_grad[0])
        return None if x_grad is None else x_grad.view(ctx.shape), None, *masters


def lora_linear(layer: Lora, x: Tensor) -> Tensor:
    """Apply a frozen linear layer and its LoRA to ``x`` [..., I]. Returns [..., O], in x's dtype."""
    if trains(x, (layer,)):
        return _LoraLinear.apply(x, layer, *masters_of((layer,)))
    [out], _ = project((layer,), x.reshape(-1, x.shape[-1]))
    return out.view(*x.shape[:-1], out.shape[-1])


def lora_gated_mlp(mlp: GatedMlp, x: Tensor) -> Tensor:
    """Apply a SwiGLU MLP whose three layers have LoRA (Shazeer 2020): ``down(silu(gate x) * up x)``, [..., D].

    Layer by layer autograd keeps four tensors of the MLP's inner width for the backward pass; this keeps two.
    """
    if trains(x, mlp):
        return _GatedMlpStep.apply(x, mlp, *masters_of(mlp))
    out, _ = mlp_forward(mlp, x.reshape(-1, x.shape[-1]))
    return out.view(x.shape)


def trains(x: Tensor, layers: Sequence[Lora]) -> bool:
    """Whether a pass over these layers needs a backward pass."""
    return torch.is_grad_enabled() and (x.requires_grad or any(one.requires_grad for one in masters_of(layers)))
