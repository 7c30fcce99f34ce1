"""Attention on packed sequences: the CPU's flash kernel, called block by block (:mod:`engine.packing`).

The query heads that share a key head are laid under one another, as if they were more queries: the kernel reads a key
once for all of them, and its backward pass, which knows no grouped keys, makes one gradient of a key instead of one a
query head (a fifth to a quarter less time than with keys repeated). It goes through a query's keys 512 at a time, those
in the query's future too, so that a block of some hundred tokens costs twice what is needed: a block is cut into pieces
that see the keys up to their own end. (Measured on two cores; the backward kernel deals key heads out to its threads,
so that a frame with more of those than the model has key heads leaves some idle.)

In bf16 the kernel's backward pass multiplies in fp32 all the same. There the gradients are made of matrix products,
which takes half of the time: see :func:`_product_grads`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.layer_parts import wide
from engine.packing import Block

PIECE = 288
"""Rows of a call of the attention kernel, about: queries times the query heads of a key head. Fewer multiply badly."""
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Span(NamedTuple):
    """A piece of a block of packed tokens, and what it attends to."""

    place: slice  # where it lies among the queries
    keys: tuple[slice, ...]  # where the keys lie: its root's, if it has one, and its block's up to its own end
    mask: Tensor  # [rows, keys] to add to the scores; a token's rows, a query head of a key head each, are neighbours


Attention = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(query [T, H, W], key and value [T, G, W]) to (output [T, H, W], logsumexp of the scores for a backward pass)."""


def attend(query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scaling: float) -> tuple[Tensor, Tensor]:
    """Attention within blocks, and from a block to its root.

    query [T, H, W], key and value [S, G, W], which may be more: the spans say where each query's lie. Returns (the
    output [T, H, W], the scores' logsumexp [1, T, H]).
    """
    groups = key.shape[1]
    rows, key, value = _rows(query, groups), key.contiguous(), value.contiguous()
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    log_sum = query.new_empty(1, *query.shape[:2], dtype=wide(query).dtype)
    for place, keys, mask in spans:
        part, sums = _flash(
            _piece(rows, place),
            _heads(_take(key, keys)),
            _heads(_take(value, keys)),
            0.0,
            False,
            attn_mask=mask,
            scale=scaling,
        )
        _put(part, out, place)
        _put(sums[..., None], log_sum[0, :, :, None], place)
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
    groups = key.shape[1]
    key, value = key.contiguous(), value.contiguous()
    query_grad = torch.empty_like(query, memory_format=torch.contiguous_format)
    key_grad, value_grad = torch.zeros_like(key), torch.zeros_like(value)
    grad, query, out, log_sum = (_rows(one, groups) for one in (grad, query, out, log_sum[0, :, :, None]))
    make = _product_grads if query.dtype == torch.bfloat16 else _flash_grads
    for place, keys, mask in spans:
        grads = make(
            _piece(grad, place),
            _piece(query, place),
            _heads(_take(key, keys)),
            _heads(_take(value, keys)),
            _piece(out, place),
            _piece(log_sum, place)[..., 0],
            mask,
            scaling,
        )
        _put(grads[0], query_grad, place)
        for total, one in ((key_grad, grads[1]), (value_grad, grads[2])):
            begin = 0
            for span in keys:
                size = _length(span)
                total[span] += one[0, :, begin : begin + size].transpose(0, 1)
                begin += size
    return query_grad, key_grad, value_grad


def _flash_grads(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor, mask: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a piece's queries [1, G, R, W], keys and values [1, G, S, W], by the kernel."""
    found: tuple[Tensor, Tensor, Tensor] = _flash_backward(
        grad, query, key, value, out, sums, 0.0, False, attn_mask=mask, scale=scaling
    )
    return found


def _product_grads(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor, mask: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`_flash_grads`, of products in bf16: ``P = exp(S - logsumexp)``, ``d S = P (g V^T - sum(g out))``.

    A product is summed up in fp32 and then rounded to eight bits. A score is large, and rounded it would shift its
    probability by percents; its distance from the logsumexp is small wherever the probability is not. So what is to be
    taken off takes part in the sum: two more columns of the queries hold it, in two parts, beside ones in the keys.
    """
    grad, query, key, value, out, sums = (one[0] for one in (grad, query, key, value, out, sums))
    shifted = _with(query, sums / -scaling)
    powers = torch.baddbmm(mask.expand(len(query), -1, -1), shifted, _with_ones(key).mT, alpha=scaling).exp_()
    value_grad = powers.mT @ grad
    centred = _with(grad, -(wide(grad) * out).sum(-1))
    score_grad = (centred @ _with_ones(value).mT).mul_(powers)
    query_grad, key_grad = (score_grad @ key).mul_(scaling), (score_grad.mT @ query).mul_(scaling)
    return query_grad[None], key_grad[None], value_grad[None]


def _with(rows: Tensor, more: Tensor) -> Tensor:
    """Rows [G, R, W] with numbers [G, R] as two more columns, the second what the first's rounding leaves."""
    rounded = more.to(rows.dtype)
    return torch.cat([rows, rounded[..., None], (more - rounded).to(rows.dtype)[..., None]], -1)


def _with_ones(rows: Tensor) -> Tensor:
    """Rows [G, S, W] with two columns of ones."""
    return torch.cat([rows, rows.new_ones(*rows.shape[:-1], 2)], -1)


def _rows(states: Tensor, groups: int) -> Tensor:
    """[T, H, W] by key heads, [G, T, H / G, W]."""
    return states.unflatten(1, (groups, -1)).transpose(0, 1).contiguous()


def _piece(rows: Tensor, place: slice) -> Tensor:
    """Some tokens of these as the kernel wants them, [1, G, their rows, W]."""
    return rows[:, place].flatten(1, 2)[None]


def _put(rows: Tensor, into: Tensor, place: slice) -> None:
    """Write a piece's rows [1, G, rows, W] to where its tokens lie in [T, H, W]."""
    groups = rows.shape[1]
    into[place].unflatten(1, (groups, -1)).copy_(rows[0].unflatten(1, (_length(place), -1)).transpose(0, 1))


def spans_of(blocks: Sequence[Block], dtype: torch.dtype, shared: int, tokens: slice | None = None) -> list[Span]:
    """Cut what of a layout's blocks lies among some of its tokens (None: all) into pieces, once for all layers.

    The spans' own places begin at 0 with the first of the tokens; those of their keys are the layout's. ``shared``:
    query heads of a key head.
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
        for piece in _pieces(place, None if block.root < 0 else places[block.root], tokens, shared)
    ]
    # Keys that all of a piece sees lie before those that some of it sees: every mask is a part of one.
    longest = max((_length(one.own) for one in pieces), default=0)
    most = max((one.before for one in pieces), default=0)
    sees = torch.ones(longest, most + longest, dtype=torch.bool).tril(most)
    whole = additive(sees.repeat_interleave(shared, 0), dtype)
    return [
        Span(
            slice(one.own.start - tokens.start, one.own.stop - tokens.start),
            one.keys,
            whole[: shared * _length(one.own), most - one.before : most + _length(one.own)],
        )
        for one in pieces
    ]


class _Piece(NamedTuple):
    """A piece of a block, all in places of the layout."""

    own: slice
    keys: tuple[slice, ...]
    before: int  # keys that all of it sees


def _pieces(block: slice, root: slice | None, tokens: slice, shared: int) -> list[_Piece]:
    """Cut a block, as far as it lies among the tokens, into pieces of about PIECE rows."""
    first, end = max(block.start, tokens.start), min(block.stop, tokens.stop)
    length = end - first
    if length <= 0:
        return []
    seen = 0 if root is None else _length(root)
    size = -(-length // max(1, round(length * shared / PIECE)))
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
