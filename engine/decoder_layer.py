"""The decoder layers of the Llama family in one autograd step, on packed sequences.

``y = x + attention(norm(x))`` and ``out = y + mlp(norm(y))``, with LoRA on every linear layer. Module by module,
autograd passes over an activation a dozen times between two matrix products and keeps most of what it makes; here the
backward pass is written out. It keeps x, y, queries and keys (rotated; before their norm where they have one), values,
attention's output, gate and up, and makes the rest (norms, silu, the product) again, as each costs one pass over
memory. Under gradient checkpointing it keeps x alone and runs the forward pass again.

Behind its attention the last layer runs for the tokens that are read alone: those that predict a trained one, or a
sequence's last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.attention import Attention, attend, attend_backward
from engine.frames import Frame, joined
from engine.layer_parts import LayerParts, Norm, rotate
from engine.lora_linear import MlpKept, Project, masters_of, mlp_backward, mlp_forward, project, project_grads, trains
from engine.side_by_side import side_by_side

Seen = Callable[[int, Frame, Tensor, Tensor], None]
"""Takes the number of a layer, and a frame's keys and values [T, G, W] there."""


class Kept(NamedTuple):
    """What a layer keeps for its backward pass. T tokens, of which R go on; H query heads, G key heads of width W."""

    x: Tensor  # [T, D]
    x_scale: Tensor
    query: Tensor  # [T, H, W], rotated; with a norm over heads as it was before it
    query_scale: Tensor | None  # of that norm
    key: Tensor  # [T, G, W]
    key_scale: Tensor | None
    value: Tensor  # [T, G, W]
    inner: Tensor | None
    attended: Tensor  # [T, H, W]
    log_sum: Tensor | None  # [1, T, H]; None where attention has no backward pass
    output_inner: Tensor | None
    y: Tensor  # [R, D]
    y_scale: Tensor
    mlp_gate: Tensor
    mlp_up: Tensor
    mlp_inner: Tensor | None
    mlp_down_inner: Tensor | None

    @property
    def mlp(self) -> MlpKept:
        """The MLP's part of it."""
        return MlpKept(self.mlp_gate, self.mlp_up, self.mlp_inner, self.mlp_down_inner)


def run_layers(x: Tensor, layers: Sequence[LayerParts], frames: Sequence[Frame]) -> Tensor:
    """Pass packed tokens [T, D] through all layers, frame beside frame. Returns what is read, [R, D]."""
    linears = [linear for parts in layers for linear in parts.linears]
    if trains(x, linears):
        return _Layers.apply(x, layers, frames, *masters_of(linears))
    return pass_layers(x, layers, frames)


def pass_layers(
    x: Tensor, layers: Sequence[LayerParts], frames: Sequence[Frame], run: Project = project, seen: Seen | None = None
) -> Tensor:
    """As :func:`run_layers`, without a backward pass. ``seen`` is told keys and values, by the frames' threads."""
    works = [partial(_forward, x, layers, frame, run=run, seen=seen, keep=False) for frame in frames]
    return joined([out for out, _ in side_by_side(works, frames[0].meeting)], [frame.places for frame in frames])


class _Layers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Sequence[LayerParts], frames: Sequence[Frame], *masters: Tensor) -> Tensor:
        done = side_by_side([partial(_forward, x, layers, frame) for frame in frames], frames[0].meeting)
        ctx.layers, ctx.frames = layers, frames
        ctx.save_for_backward(*(one for _, kept in done for one in kept), *masters)
        return joined([out for out, _ in done], [frame.places for frame in frames])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        each = len(ctx.layers) * (1 if ctx.frames[0].checkpointing else len(Kept._fields))
        saved = ctx.saved_tensors
        works = [
            partial(
                _backwards,
                grad,
                ctx.layers,
                frame,
                saved[number * each : (number + 1) * each],
                wants_input=ctx.needs_input_grad[0],
            )
            for number, frame in enumerate(ctx.frames)
        ]
        done = side_by_side(works, ctx.frames[0].meeting)
        x_grads = [x_grad for x_grad, _ in done if x_grad is not None]
        masters = done[0][1]
        for _, more in done[1:]:
            for total, one in zip(masters, more, strict=True):
                total += one
        tokens = [frame.tokens for frame in ctx.frames]
        return joined(x_grads, tokens) if x_grads else None, None, None, *masters


def _forward(
    x: Tensor,
    layers: Sequence[LayerParts],
    frame: Frame,
    *,
    run: Project = project,
    seen: Seen | None = None,
    keep: bool = True,
) -> tuple[Tensor, list[Tensor | None]]:
    """Pass a frame's tokens through all layers. Returns those read, and what the layers keep, one after the other."""
    hidden = x[frame.tokens]
    found: list[Tensor | None] = []
    for number, parts in enumerate(layers):
        read = frame.read if number == len(layers) - 1 else None
        tell = None if seen is None else partial(seen, number, frame)
        attention = partial(_attention, frame=frame, scaling=parts.scaling, tell=tell)
        hidden, kept = layer_forward(hidden, parts, frame.cosine, frame.sine, attention, run, read=read)
        if keep:
            found += kept[:1] if frame.checkpointing else kept
        del kept  # or it would lie beside what the next layer makes
    return hidden, found


def _backwards(
    grad: Tensor, layers: Sequence[LayerParts], frame: Frame, kept: Sequence[Any], *, wants_input: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """The gradients of a frame's input and of the masters of all layers, from what the layers kept."""
    each = len(kept) // len(layers)
    by_layer: list[list[Tensor]] = []
    left: Tensor | None = grad[frame.places]
    for number in reversed(range(len(layers))):
        assert left is not None
        own = kept[number * each : (number + 1) * each]
        read = frame.read if number == len(layers) - 1 else None
        left, masters = _layer_backwards(left, layers[number], frame, own, read, wants_input=wants_input or number > 0)
        by_layer.append(masters)
    return left, [one for masters in reversed(by_layer) for one in masters]


def _layer_backwards(
    grad: Tensor, parts: LayerParts, frame: Frame, kept: Sequence[Any], read: Tensor | None, *, wants_input: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """One layer of it; what a checkpointed one makes again is gone before the next."""
    if frame.checkpointing:
        attention = partial(_attention, frame=frame, scaling=parts.scaling)
        _, whole = layer_forward(kept[0], parts, frame.cosine, frame.sine, attention, read=read)
    else:
        whole = Kept(*kept)
    return _backward(grad, parts, frame, whole, read, wants_input=wants_input)


def layer_forward(
    x: Tensor,
    parts: LayerParts,
    cosine: Tensor,
    sine: Tensor,
    attention: Attention,
    run: Project = project,
    *,
    read: Tensor | None = None,
) -> tuple[Tensor, Kept]:
    """Pass tokens [T, D] through a layer with whatever attention they have. Returns ([R, D], what backward needs).

    ``run`` applies the linear layers; one that keeps nothing (:class:`engine.decoder.Decoder`) has no backward pass.
    ``read`` [R] are the tokens that go on behind attention; None: all.
    """
    normed, x_scale = parts.attention_norm(x)
    outs, inner = run((parts.query, parts.key, parts.value), normed)
    del normed
    query, key, value = (one.view(len(x), -1, parts.width) for one in outs)
    query_scale = key_scale = None
    raw = query, key
    if parts.query_norm is not None and parts.key_norm is not None:
        query, query_scale = parts.query_norm(query)
        key, key_scale = parts.key_norm(key)
    if parts.rotary:
        query, key = rotate(query, cosine, sine), rotate(key, cosine, sine)
    kept_query, kept_key = (query, key) if query_scale is None else raw
    attended, log_sum = attention(query, key, value)
    [out], output_inner = run((parts.output,), _only(attended, read).flatten(1))
    y = out.add_(_only(x, read))
    normed, y_scale = parts.mlp_norm(y)
    out, mlp = mlp_forward(parts.mlp, normed, run)
    kept = Kept(
        x, x_scale, kept_query, query_scale, kept_key, key_scale, value, inner, attended, log_sum, output_inner, y,
        y_scale, *mlp,
    )  # fmt: skip
    return out.add_(y), kept


def _backward(
    grad: Tensor, parts: LayerParts, frame: Frame, kept: Kept, read: Tensor | None, *, wants_input: bool
) -> tuple[Tensor | None, list[Tensor]]:
    normed = parts.mlp_norm.again(kept.y, kept.y_scale)
    normed_grad, mlp_masters = mlp_backward(parts.mlp, normed, kept.mlp, grad, wants_input=True)
    assert normed_grad is not None
    y_grad = parts.mlp_norm.grad(kept.y, kept.y_scale, normed_grad).add_(grad)
    attended_grad, output_masters = project_grads(
        (parts.output,), _only(kept.attended, read).flatten(1), kept.output_inner, [y_grad], wants_input=True
    )
    assert attended_grad is not None
    assert kept.log_sum is not None
    query = _rotated_again(kept.query, kept.query_scale, parts.query_norm, parts, frame)
    key = _rotated_again(kept.key, kept.key_scale, parts.key_norm, parts, frame)
    attended_grad = _among(attended_grad, read, len(kept.x)).view_as(kept.attended)
    key, value = frame.gather(key, kept.value)
    query_grad, *sums = attend_backward(
        attended_grad, query, key, value, kept.attended, kept.log_sum, frame.spans, parts.scaling
    )
    key_grad, value_grad = frame.scatter(*sums)
    if parts.rotary:  # a rotation's transpose is the rotation back
        back = -frame.sine
        query_grad, key_grad = (rotate(one, frame.cosine, back) for one in (query_grad, key_grad))
    if parts.query_norm is not None and kept.query_scale is not None:
        query_grad = parts.query_norm.grad(kept.query, kept.query_scale, query_grad)
    if parts.key_norm is not None and kept.key_scale is not None:
        key_grad = parts.key_norm.grad(kept.key, kept.key_scale, key_grad)
    normed_grad, input_masters = project_grads(
        (parts.query, parts.key, parts.value),
        parts.attention_norm.again(kept.x, kept.x_scale),
        kept.inner,
        [one.flatten(1) for one in (query_grad, key_grad, value_grad)],
        wants_input=wants_input,
    )
    masters = [*input_masters, *output_masters, *mlp_masters]
    if normed_grad is None:
        return None, masters
    x_grad = parts.attention_norm.grad(kept.x, kept.x_scale, normed_grad)
    return x_grad.add_(y_grad) if read is None else x_grad.index_add_(0, read, y_grad), masters


def _only(rows: Tensor, read: Tensor | None) -> Tensor:
    return rows if read is None else rows[read]


def _among(rows: Tensor, read: Tensor | None, count: int) -> Tensor:
    """Rows where they were read, among ``count`` that are 0."""
    return rows if read is None else rows.new_zeros(count, rows.shape[1]).index_copy_(0, read, rows)


def _rotated_again(states: Tensor, scale: Tensor | None, norm: Norm | None, parts: LayerParts, frame: Frame) -> Tensor:
    """Queries or keys as attention had them, from what a layer kept of them."""
    if norm is None or scale is None:
        return states
    normed = norm.again(states, scale)
    return rotate(normed, frame.cosine, frame.sine) if parts.rotary else normed


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    frame: Frame,
    scaling: float,
    tell: Callable[[Tensor, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of a frame's queries to the keys of the whole pass. Of its own someone else may be told."""
    if tell is not None:
        tell(key, value)
    key, value = frame.gather(key, value)
    return attend(query, key, value, frame.spans, scaling)
