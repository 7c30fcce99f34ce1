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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.attention import Attention, Span, attend, attend_backward, spans_of
from engine.layer_parts import LayerParts, Norm, rotate
from engine.lora_linear import MlpKept, Project, masters_of, mlp_backward, mlp_forward, project, project_grads, trains
from engine.packing import Block
from engine.side_by_side import shares, side_by_side

_ATTENTION_TOKENS = 1500  # that a token attends to cost as much as its products do


@dataclass(frozen=True, slots=True)
class Frame:
    """What every layer shares of some of a pass's tokens, which attend to one another alone. T tokens."""

    tokens: slice | Tensor  # [T] where they lie in the pass
    places: slice | Tensor  # [R] where those of them that are read lie among what is read of the pass
    cosine: Tensor  # [T, 1, W]
    sine: Tensor  # [T, 1, W]
    spans: Sequence[Span]
    checkpointing: bool = False
    read: Tensor | None = None  # [R] which of them are read behind the last layer, each once; None: all


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
    done = side_by_side([partial(_forward, x, layers, frame, keep=False) for frame in frames])
    return _joined([out for out, _ in done], [frame.places for frame in frames])


class _Layers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Sequence[LayerParts], frames: Sequence[Frame], *masters: Tensor) -> Tensor:
        done = side_by_side([partial(_forward, x, layers, frame, keep=True) for frame in frames])
        ctx.layers, ctx.frames = layers, frames
        ctx.save_for_backward(*(one for _, kept in done for one in kept), *masters)
        return _joined([out for out, _ in done], [frame.places for frame in frames])

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
        done = side_by_side(works)
        x_grads = [x_grad for x_grad, _ in done if x_grad is not None]
        masters = done[0][1]
        for _, more in done[1:]:
            for total, one in zip(masters, more, strict=True):
                total += one
        tokens = [frame.tokens for frame in ctx.frames]
        return _joined(x_grads, tokens) if x_grads else None, None, None, *masters


def _forward(
    x: Tensor, layers: Sequence[LayerParts], frame: Frame, *, keep: bool
) -> tuple[Tensor, list[Tensor | None]]:
    """Pass a frame's tokens through all layers. Returns those read, and what the layers keep, one after the other."""
    hidden = x[frame.tokens]
    found: list[Tensor | None] = []
    for number, parts in enumerate(layers, 1):
        read = frame.read if number == len(layers) else None
        hidden, kept = layer_forward(hidden, parts, frame.cosine, frame.sine, _attention(parts, frame), read=read)
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
        _, whole = layer_forward(kept[0], parts, frame.cosine, frame.sine, _attention(parts, frame), read=read)
    else:
        whole = Kept(*kept)
    return _backward(grad, parts, frame, whole, read, wants_input=wants_input)


def _joined(parts: Sequence[Tensor], places: Sequence[slice | Tensor]) -> Tensor:
    """What the frames have, each row in its place in the pass."""
    if len(parts) == 1:
        return parts[0]
    out = parts[0].new_empty(sum(len(part) for part in parts), parts[0].shape[1])
    for part, place in zip(parts, places, strict=True):
        out[place] = part
    return out


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
    query_grad, key_grad, value_grad = attend_backward(
        _among(attended_grad, read, len(kept.x)).view_as(kept.attended), query, key, kept.value, kept.attended,
        kept.log_sum,
        frame.spans, parts.scaling,
    )  # fmt: skip
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


def _attention(parts: LayerParts, frame: Frame) -> Attention:
    return partial(attend, spans=frame.spans, scaling=parts.scaling)


def frames_of(
    blocks: Sequence[Block], cosine: Tensor, sine: Tensor, *, checkpointing: bool, read: Tensor | None = None
) -> list[Frame]:
    """Part a layout's blocks into frames of about equal work, one for each thread.

    Args:
        blocks: of the layout's T tokens.
        cosine: [T, 1, W].
        sine: [T, 1, W].
        checkpointing: run the forward pass again in the backward pass.
        read: [R] the tokens that are read behind the last layer, in order, each once; None: all.
    """
    units: dict[int, list[int]] = {}  # blocks that attend to one another, by their root
    for number, block in enumerate(blocks):
        units.setdefault(block.root if block.root >= 0 else number, []).append(number)
    lengths = [block.length for block in blocks]
    grouped = list(units.values())
    parts = shares([sum(_cost(blocks, number) for number in unit) for unit in grouped])
    if len(parts) == 1:
        return [Frame(slice(None), slice(None), cosine, sine, spans_of(blocks, cosine.dtype), checkpointing, read)]
    pieces = torch.arange(sum(lengths)).split(lengths)
    frames = []
    for part in parts:
        numbers = sorted(number for unit in part for number in grouped[unit])
        moved = {number: place for place, number in enumerate(numbers)}
        own = [replace(blocks[number], root=moved.get(blocks[number].root, -1)) for number in numbers]
        tokens = torch.cat([pieces[number] for number in numbers])
        own_read, places = _read_of(tokens, read)
        spans = spans_of(own, cosine.dtype)
        frames.append(Frame(tokens, places, cosine[tokens], sine[tokens], spans, checkpointing, own_read))
    return frames


def _read_of(tokens: Tensor, read: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """Which of a frame's tokens (ascending) are read, and where they lie among all that is read."""
    if read is None:
        return None, tokens
    places = torch.isin(read, tokens).nonzero()[:, 0]
    return torch.searchsorted(tokens, read[places]), places


def _cost(blocks: Sequence[Block], number: int) -> float:
    """The work of a block in tokens: its products, and its attention as measured beside them."""
    block = blocks[number]
    seen = block.length / 2 + (blocks[block.root].length if block.root >= 0 else 0)
    return block.length * (1 + seen / _ATTENTION_TOKENS)
