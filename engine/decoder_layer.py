"""The decoder layers of the Llama family in one autograd step, on packed sequences.

``y = x + attention(norm(x))`` and ``out = y + mlp(norm(y))``, with LoRA on every linear layer. Module by module,
autograd passes over an activation a dozen times between two matrix products and keeps most of what it makes; here the
backward pass is written out. It keeps x, y, queries and keys (rotated; before their norm where they have one), values,
attention's output, gate and up, and makes the rest (norms, silu, the product) again, as each costs one pass over
memory. Under gradient checkpointing it keeps x alone and runs the forward pass again.

Attention is the CPU's flash kernel, a causal call per block (:mod:`engine.packing`); the kernel itself reads grouped
keys for several query heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.layer_parts import LayerParts, Norm, rotate, wide
from engine.lora_linear import MlpKept, Project, masters_of, mlp_backward, mlp_forward, project, project_grads, trains
from engine.packing import Block
from engine.side_by_side import shares, side_by_side

_ATTENTION_TOKENS = 1500  # that a token attends to cost as much as its products do
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Span(NamedTuple):
    """A block of packed tokens, and what it attends to."""

    place: slice  # where it lies
    keys: tuple[slice, ...]  # where the keys lie that it attends to: its root's, if it has one, and its own
    mask: Tensor | None  # [its tokens, keys] to add to the scores; None: causal


@dataclass(frozen=True, slots=True)
class Frame:
    """What every layer shares of some of a pass's tokens, which attend to one another alone. T tokens."""

    tokens: slice | Tensor  # [T] where they lie in the pass
    cosine: Tensor  # [T, 1, W]
    sine: Tensor  # [T, 1, W]
    spans: Sequence[Span]
    checkpointing: bool = False


Attention = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(query [T, H, W], key and value [T, G, W]) to (output [T, H, W], logsumexp of the scores for a backward pass)."""


class Kept(NamedTuple):
    """What a layer keeps for its backward pass. T tokens, H query heads, G key heads of width W."""

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
    y: Tensor  # [T, D]
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
    """Pass packed tokens [T, D] through all layers, frame beside frame. Returns [T, D]."""
    linears = [linear for parts in layers for linear in parts.linears]
    if trains(x, linears):
        return _Layers.apply(x, layers, frames, *masters_of(linears))
    done = side_by_side([partial(_forward, x, layers, frame, keep=False) for frame in frames])
    return _joined([out for out, _ in done], frames)


class _Layers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Sequence[LayerParts], frames: Sequence[Frame], *masters: Tensor) -> Tensor:
        done = side_by_side([partial(_forward, x, layers, frame, keep=True) for frame in frames])
        ctx.layers, ctx.frames = layers, frames
        ctx.save_for_backward(*(one for _, kept in done for one in kept), *masters)
        return _joined([out for out, _ in done], frames)

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
        return _joined(x_grads, ctx.frames) if x_grads else None, None, None, *masters


def _forward(
    x: Tensor, layers: Sequence[LayerParts], frame: Frame, *, keep: bool
) -> tuple[Tensor, list[Tensor | None]]:
    """Pass a frame's tokens through all layers. Returns them, and what the layers keep, one after the other."""
    hidden = x[frame.tokens]
    found: list[Tensor | None] = []
    for parts in layers:
        hidden, kept = layer_forward(hidden, parts, frame.cosine, frame.sine, _attention(parts, frame))
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
    left: Tensor | None = grad[frame.tokens]
    for number in reversed(range(len(layers))):
        assert left is not None
        own = kept[number * each : (number + 1) * each]
        left, masters = _layer_backwards(left, layers[number], frame, own, wants_input=wants_input or number > 0)
        by_layer.append(masters)
    return left, [one for masters in reversed(by_layer) for one in masters]


def _layer_backwards(
    grad: Tensor, parts: LayerParts, frame: Frame, kept: Sequence[Any], *, wants_input: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """One layer of it; what a checkpointed one makes again is gone before the next."""
    if frame.checkpointing:
        _, whole = layer_forward(kept[0], parts, frame.cosine, frame.sine, _attention(parts, frame))
    else:
        whole = Kept(*kept)
    return _backward(grad, parts, frame, whole, wants_input=wants_input)


def _joined(parts: Sequence[Tensor], frames: Sequence[Frame]) -> Tensor:
    """The frames' tokens as they lay in the pass."""
    if len(parts) == 1:
        return parts[0]
    out = parts[0].new_empty(sum(len(part) for part in parts), parts[0].shape[1])
    for part, frame in zip(parts, frames, strict=True):
        out[frame.tokens] = part
    return out


def layer_forward(
    x: Tensor, parts: LayerParts, cosine: Tensor, sine: Tensor, attention: Attention, run: Project = project
) -> tuple[Tensor, Kept]:
    """Pass tokens [T, D] through a layer with whatever attention they have. Returns ([T, D], what backward needs).

    ``run`` applies the linear layers; one that keeps nothing (:class:`engine.decoder.Decoder`) has no backward pass.
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
    [out], output_inner = run((parts.output,), attended.flatten(1))
    y = out.add_(x)
    normed, y_scale = parts.mlp_norm(y)
    out, mlp = mlp_forward(parts.mlp, normed, run)
    kept = Kept(
        x, x_scale, kept_query, query_scale, kept_key, key_scale, value, inner, attended, log_sum, output_inner, y,
        y_scale, *mlp,
    )  # fmt: skip
    return out.add_(y), kept


def _backward(
    grad: Tensor, parts: LayerParts, frame: Frame, kept: Kept, *, wants_input: bool
) -> tuple[Tensor | None, list[Tensor]]:
    normed = parts.mlp_norm.again(kept.y, kept.y_scale)
    normed_grad, mlp_masters = mlp_backward(parts.mlp, normed, kept.mlp, grad, wants_input=True)
    assert normed_grad is not None
    y_grad = parts.mlp_norm.grad(kept.y, kept.y_scale, normed_grad).add_(grad)
    attended_grad, output_masters = project_grads(
        (parts.output,), kept.attended.flatten(1), kept.output_inner, [y_grad], wants_input=True
    )
    assert attended_grad is not None
    assert kept.log_sum is not None
    query = _rotated_again(kept.query, kept.query_scale, parts.query_norm, parts, frame)
    key = _rotated_again(kept.key, kept.key_scale, parts.key_norm, parts, frame)
    query_grad, key_grad, value_grad = attend_backward(
        attended_grad.view_as(kept.attended), query, key, kept.value, kept.attended, kept.log_sum,
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
    return parts.attention_norm.grad(kept.x, kept.x_scale, normed_grad).add_(y_grad), masters


def attend(query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scaling: float) -> tuple[Tensor, Tensor]:
    """Attention within blocks, and from a block to its root.

    query [T, H, W], key and value [T, G, W]. Returns (the output [T, H, W], the scores' logsumexp [1, T, H]).
    """
    query, key, value = (one.contiguous() for one in (query, key, value))  # what the kernel takes for granted
    out = torch.empty_like(query)
    log_sum = query.new_empty(1, *query.shape[:2], dtype=wide(query).dtype)
    for place, keys, mask in spans:
        part, sums = _flash(
            _heads(query[place]),
            _heads(_take(key, keys)),
            _heads(_take(value, keys)),
            0.0,
            mask is None,
            attn_mask=mask,
            scale=scaling,
        )
        out[place] = part[0].transpose(0, 1)
        log_sum[:, place] = sums.view(1, query.shape[1], -1).transpose(1, 2)
    return out, log_sum


def attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_sum: Tensor,
    spans: Sequence[Span],
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value, from that of :func:`attend`'s output [T, H, W]."""
    query, key, value = (one.contiguous() for one in (query, key, value))
    query_grad, key_grad, value_grad = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    shared = query.shape[1] // key.shape[1]  # query heads of a key head; the kernel wants a key head for each
    for place, keys, mask in spans:
        grads = _flash_backward(
            _heads(grad[place]),
            _heads(query[place]),
            _heads(_take(key, keys)).repeat_interleave(shared, 1),
            _heads(_take(value, keys)).repeat_interleave(shared, 1),
            _heads(out[place]),
            log_sum[:, place].transpose(1, 2).contiguous(),
            0.0,
            mask is None,
            attn_mask=mask,
            scale=scaling,
        )
        query_grad[place] = grads[0][0].transpose(0, 1)
        for total, one in ((key_grad, grads[1]), (value_grad, grads[2])):
            summed = one[0].unflatten(0, (-1, shared)).sum(1).transpose(0, 1)  # [tokens, G, W]
            begin = 0
            for span in keys:
                size = span.stop - span.start
                total[span] += summed[begin : begin + size]
                begin += size
    return query_grad, key_grad, value_grad


def _rotated_again(states: Tensor, scale: Tensor | None, norm: Norm | None, parts: LayerParts, frame: Frame) -> Tensor:
    """Queries or keys as attention had them, from what a layer kept of them."""
    if norm is None or scale is None:
        return states
    normed = norm.again(states, scale)
    return rotate(normed, frame.cosine, frame.sine) if parts.rotary else normed


def _attention(parts: LayerParts, frame: Frame) -> Attention:
    return partial(attend, spans=frame.spans, scaling=parts.scaling)


def frames_of(blocks: Sequence[Block], cosine: Tensor, sine: Tensor, *, checkpointing: bool) -> list[Frame]:
    """Part a layout's blocks into frames of about equal work, one for each thread; cosine and sine [T, 1, W]."""
    units: dict[int, list[int]] = {}  # blocks that attend to one another, by their root
    for number, block in enumerate(blocks):
        units.setdefault(block.root if block.root >= 0 else number, []).append(number)
    lengths = [block.length for block in blocks]
    grouped = list(units.values())
    parts = shares([sum(_cost(blocks, number) for number in unit) for unit in grouped])
    if len(parts) == 1:
        return [Frame(slice(None), cosine, sine, spans_of(blocks, cosine.dtype), checkpointing)]
    pieces = torch.arange(sum(lengths)).split(lengths)
    frames = []
    for part in parts:
        numbers = sorted(number for unit in part for number in grouped[unit])
        moved = {number: place for place, number in enumerate(numbers)}
        own = [replace(blocks[number], root=moved.get(blocks[number].root, -1)) for number in numbers]
        tokens = torch.cat([pieces[number] for number in numbers])
        frames.append(Frame(tokens, cosine[tokens], sine[tokens], spans_of(own, cosine.dtype), checkpointing))
    return frames


def _cost(blocks: Sequence[Block], number: int) -> float:
    """The work of a block in tokens: its products, and its attention as measured beside them."""
    block = blocks[number]
    seen = block.length / 2 + (blocks[block.root].length if block.root >= 0 else 0)
    return block.length * (1 + seen / _ATTENTION_TOKENS)


def spans_of(blocks: Sequence[Block], dtype: torch.dtype) -> list[Span]:
    """Find where the blocks of a layout lie, once for all layers of a pass."""
    places: list[slice] = []
    begin = 0
    for block in blocks:
        places.append(slice(begin, begin + block.length))
        begin += block.length
    return [
        Span(place, (place,) if block.root < 0 else (places[block.root], place), additive(block.mask, dtype))
        for place, block in zip(places, blocks, strict=True)
    ]


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask to add to scores, from one that is True where a key is seen."""
    return None if mask is None else torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)


def _take(states: Tensor, spans: tuple[slice, ...]) -> Tensor:
    return states[spans[0]] if len(spans) == 1 else torch.cat([states[span] for span in spans])


def _heads(states: Tensor) -> Tensor:
    """[T, H, W] as the kernel wants it, [1, H, T, W]."""
    return states.transpose(0, 1)[None]
