"""Attention on packed sequences: the CPU's flash kernel, called block by block (:mod:`engine.packing`).

The kernel reads grouped keys for several query heads itself. It goes through a query's keys 512 at a time, those in the
query's future too, so that a block of some hundred tokens costs twice what is needed: such a block is cut into pieces
that see the keys up to their own end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.layer_parts import wide
from engine.packing import Block

PIECE = 128
"""Queries of a call of the attention kernel, about; fewer multiply badly."""
LONG = 768
"""From so many tokens on a block is one causal call: the kernel skips what lies 512 ahead, and no mask is needed."""
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Span(NamedTuple):
    """A piece of a block of packed tokens, and what it attends to."""

    place: slice  # where it lies among the queries
    keys: tuple[slice, ...]  # where the keys lie: its root's, if it has one, and its block's up to its own end
    mask: Tensor | None  # [its tokens, keys] to add to the scores; None: causal


Attention = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(query [T, H, W], key and value [T, G, W]) to (output [T, H, W], logsumexp of the scores for a backward pass)."""


def attend(query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scaling: float) -> tuple[Tensor, Tensor]:
    """Attention within blocks, and from a block to its root.

    query [T, H, W], key and value [S, G, W], which may be more: the spans say where each query's lie. Returns (the
    output [T, H, W], the scores' logsumexp [1, T, H]).
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
    """The gradients of query, key and value, from that of :func:`attend`'s output [T, H, W].

    Those of keys and values [S, G, W] are as far as these queries make them.
    """
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


def spans_of(blocks: Sequence[Block], dtype: torch.dtype, tokens: slice | None = None) -> list[Span]:
    """Cut what of a layout's blocks lies among some of its tokens (None: all) into pieces, once for all layers.

    The spans' own places begin at 0 with the first of the tokens; those of their keys are the layout's.
    """
    places: list[slice] = []
    begin = 0
    for block in blocks:
        places.append(slice(begin, begin + block.length))
        begin += block.length
    tokens = tokens or slice(0, begin)
    pieces = [
        piece
        for place, block in zip(places, blocks, strict=True)
        for piece in _pieces(place, None if block.root < 0 else places[block.root], tokens)
    ]
    # Keys that all of a piece sees lie before those that some of it sees: every mask is a part of one.
    masked = [one for one in pieces if one.before]
    longest = max((_length(one.own) for one in masked), default=0)
    most = max((one.before for one in masked), default=0)
    whole = additive(torch.ones(longest, most + longest, dtype=torch.bool).tril(most), dtype)
    return [
        Span(
            slice(one.own.start - tokens.start, one.own.stop - tokens.start),
            one.keys,
            whole[: _length(one.own), most - one.before : most + _length(one.own)] if one.before else None,
        )
        for one in pieces
    ]


class _Piece(NamedTuple):
    """A piece of a block, all in places of the layout."""

    own: slice
    keys: tuple[slice, ...]
    before: int  # keys that all of it sees


def _pieces(block: slice, root: slice | None, tokens: slice) -> list[_Piece]:
    """Cut a block, as far as it lies among the tokens, into pieces of about PIECE of them.

    The first of a block without a root needs no mask.
    """
    first, end = max(block.start, tokens.start), min(block.stop, tokens.stop)
    length = end - first
    if length <= 0:
        return []
    seen = 0 if root is None else _length(root)
    whole = root is None and first == block.start and length >= LONG
    size = -(-length // (1 if whole else max(1, round(length / PIECE))))
    pieces = []
    for begin in range(first, end, size):
        own = slice(begin, min(begin + size, end))
        keys = (slice(block.start, own.stop),) if root is None else (root, slice(block.start, own.stop))
        pieces.append(_Piece(own, keys, seen + begin - block.start))
    return pieces


def _length(place: slice) -> int:
    length: int = place.stop - place.start
    return length


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add to scores, from one that is True where a key is seen."""
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)


def _take(states: Tensor, spans: tuple[slice, ...]) -> Tensor:
    return states[spans[0]] if len(spans) == 1 else torch.cat([states[span] for span in spans])


def _heads(states: Tensor) -> Tensor:
    """[T, H, W] as the kernel wants it, [1, H, T, W]."""
    return states.transpose(0, 1)[None]
