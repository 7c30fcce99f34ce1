"""A packed pass parted into frames, one for each thread, that cost about the same.

Best are frames of whole sequences, which need nothing of each other. Where these do not part evenly, tokens are parted
in the middle: everything but attention is done token by token. For attention a frame then takes the keys and values of
all tokens from the other (:class:`engine.side_by_side.Meeting`), and in the backward pass it gives back the gradients
of the other's. Waiting for each other costs a twentieth; a short pass loses more, since each thread reads all weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from engine.attention import Span, spans_of
from engine.packing import Block
from engine.side_by_side import WAYS, Meeting

EVEN = 0.53
"""The share of the work in the larger of two frames that need not meet: more, and the other waits longer than meeting
takes."""
UNEVEN = 0.56
"""As EVEN, in a pass that is too short to be cut instead."""
LEAST_CUT = 512
"""Tokens of a pass that is cut in the middle, at least."""
_ATTENTION_TOKENS = 1500  # that a token attends to cost as much as its products do


@dataclass(frozen=True, slots=True)
class Frame:
    """What every layer shares of T tokens of a pass, of which R are read behind the last layer."""

    tokens: slice | Tensor  # [T] where they lie in the pass; with a meeting, neighbours
    places: slice | Tensor  # [R] where those of them that are read lie among what is read of the pass
    cosine: Tensor  # [T, 1, W]
    sine: Tensor  # [T, 1, W]
    spans: Sequence[Span]  # of the frame's tokens; their keys are what :meth:`gather` gives
    checkpointing: bool = False
    read: Tensor | None = None  # [R] which of them are read behind the last layer, each once; None: all
    meeting: Meeting | None = None  # with the pass's other frames; None: none is needed
    number: int = 0  # among them

    def gather(self, *own: Tensor) -> list[Tensor]:
        """Tensors of the frame's tokens [T, ...] with those of the other frames, in the order of the pass."""
        if self.meeting is None:
            return list(own)
        return [torch.cat(parts) for parts in zip(*self.meeting.hand_round(self.number, own), strict=True)]

    def scatter(self, *sums: Tensor) -> list[Tensor]:
        """Of tensors of all tokens of the pass the frame's rows [T, ...], summed over the frames in their order."""
        if self.meeting is None:
            return list(sums)
        found = []
        for first, *others in zip(*self.meeting.hand_round(self.number, sums), strict=True):
            total = first[self.tokens].clone()
            for other in others:
                total += other[self.tokens]
            found.append(total)
        return found


def frames_of(
    blocks: Sequence[Block],
    cosine: Tensor,
    sine: Tensor,
    *,
    shared: int,
    checkpointing: bool = False,
    read: Tensor | None = None,
) -> list[Frame]:
    """Part a layout's blocks into frames of about equal work, one for each thread.

    Args:
        blocks: of the layout's T tokens.
        cosine: [T, 1, W].
        sine: [T, 1, W].
        shared: query heads of a key head.
        checkpointing: run the forward pass again in the backward pass.
        read: [R] the tokens that are read behind the last layer, in order, each once; None: all.
    """
    whole = _Pass(blocks, cosine, sine, shared, checkpointing, read)
    total = len(cosine)
    if torch.get_num_threads() >= WAYS:
        costs = _costs(blocks)
        lengths = [block.length for block in blocks]
        parts, share = _dealt(blocks, [float(one.sum()) for one in costs.split(lengths)])
        if share <= (EVEN if total >= LEAST_CUT else UNEVEN):
            return [_frame_of(whole, part) for part in parts]
        if total >= LEAST_CUT:
            done = costs.cumsum(0)
            return _cut(whole, min(int(torch.searchsorted(done, done[-1] / 2)) + 1, total - 1))
    spans = spans_of(blocks, cosine.dtype, shared)
    return [Frame(slice(None), slice(None), cosine, sine, spans, checkpointing, read)]


def joined(parts: Sequence[Tensor], places: Sequence[slice | Tensor]) -> Tensor:
    """What the frames have, each row in its place in the pass."""
    if len(parts) == 1:
        return parts[0]
    out = parts[0].new_empty(sum(len(part) for part in parts), *parts[0].shape[1:])
    for part, place in zip(parts, places, strict=True):
        out[place] = part
    return out


class _Pass(NamedTuple):
    """What :func:`frames_of` is given."""

    blocks: Sequence[Block]
    cosine: Tensor
    sine: Tensor
    shared: int
    checkpointing: bool
    read: Tensor | None


def _frame_of(whole: _Pass, part: Sequence[int]) -> Frame:
    """A frame of whole blocks, given by their numbers, with all that they attend to."""
    blocks, cosine, sine, shared, checkpointing, read = whole
    pieces = torch.arange(len(cosine)).split([block.length for block in blocks])
    moved = {number: place for place, number in enumerate(part)}
    own = [replace(blocks[number], root=moved.get(blocks[number].root, -1)) for number in part]
    tokens = torch.cat([pieces[number] for number in part])
    own_read, places = None, tokens
    if read is not None:
        places = torch.isin(read, tokens).nonzero()[:, 0]
        own_read = torch.searchsorted(tokens, read[places])
    spans = spans_of(own, cosine.dtype, shared)
    return Frame(tokens, places, cosine[tokens], sine[tokens], spans, checkpointing, own_read)


def _cut(whole: _Pass, cut: int) -> list[Frame]:
    """A frame of the tokens before the cut and one of those behind it, which meet for attention."""
    blocks, cosine, sine, shared, checkpointing, read = whole
    meeting, frames = Meeting(WAYS), []
    for number, tokens in enumerate((slice(0, cut), slice(cut, len(cosine)))):
        places, own = tokens, None
        if read is not None:
            begin, end = torch.searchsorted(read, torch.tensor([tokens.start, tokens.stop])).tolist()
            places, own = slice(begin, end), read[begin:end] - tokens.start
        spans = spans_of(blocks, cosine.dtype, shared, tokens)
        frames.append(Frame(tokens, places, cosine[tokens], sine[tokens], spans, checkpointing, own, meeting, number))
    return frames


def _costs(blocks: Sequence[Block]) -> Tensor:
    """The work of each token in products of a token, [T]: these, and its attention as measured beside them."""
    seen = [torch.arange(block.length) + (blocks[block.root].length if block.root >= 0 else 0) for block in blocks]
    return 1 + torch.cat(seen) / _ATTENTION_TOKENS


def _dealt(blocks: Sequence[Block], costs: Sequence[float]) -> tuple[list[list[int]], float]:
    """Deal blocks out to the threads, the dearest first, each to whom has least (Graham 1969).

    Those that attend to one another stay together. Returns the numbers of the blocks of each part, in order, and the
    largest part's share of the costs.
    """
    units: dict[int, list[int]] = {}
    for number, block in enumerate(blocks):
        units.setdefault(block.root if block.root >= 0 else number, []).append(number)
    priced = sorted(((sum(costs[number] for number in unit), unit) for unit in units.values()), key=lambda one: -one[0])
    parts: list[list[int]] = [[] for _ in range(WAYS)]
    sums = [0.0] * WAYS
    for cost, unit in priced:
        least = sums.index(min(sums))
        parts[least] += unit
        sums[least] += cost
    return [sorted(part) for part in parts], max(sums) / sum(sums)
