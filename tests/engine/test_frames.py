"""How a pass is parted into frames of equal work, and that a frame's attention is the whole pass's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine import attention
from engine.attention import attend, attend_backward, spans_of
from engine.frames import Frame, frames_of
from engine.packing import Block

F64 = torch.float64
HEADS, KEY_HEADS, WIDTH = 4, 2, 8


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def parted(*blocks: Block, read: Tensor | None = None) -> list[Frame]:
    angles = torch.zeros(sum(block.length for block in blocks), 1, WIDTH)
    return frames_of(blocks, angles, angles, read=read)


def tokens(frame: Frame) -> list[int]:
    return torch.arange(10_000)[frame.tokens].tolist()


def test_sequences_of_even_work_are_dealt_out_whole() -> None:
    first, second = parted(Block(40), Block(30), Block(20), Block(10))
    assert (first.meeting, second.meeting) == (None, None)
    assert tokens(first) == [*range(40), *range(90, 100)]
    assert tokens(second) == list(range(40, 90))


def test_responses_stay_with_the_prompt_that_they_share() -> None:
    first, second = parted(Block(20), Block(60, 0), Block(20), Block(20, 2), Block(45, 2))
    assert tokens(first) + tokens(second) in ([*range(165)], [*range(80, 165), *range(80)])
    assert first.meeting is None


def test_a_short_pass_that_does_not_part_evenly_is_one_frame() -> None:
    [frame] = parted(Block(300), Block(100))
    assert (frame.tokens, frame.meeting) == (slice(None), None)
    assert len(parted(Block(60), Block(50))) == 2  # 0.55: the other thread waits less than it gains


def test_a_long_one_is_cut_where_half_of_its_work_is_done() -> None:
    for blocks in ([Block(800)], [Block(200), Block(250, 0), Block(300, 0)], [Block(500), Block(400)]):
        first, second = parted(*blocks)
        assert first.meeting is second.meeting is not None
        assert (first.number, second.number) == (0, 1)
        assert tokens(first) + tokens(second) == list(range(sum(block.length for block in blocks)))
    first, _ = parted(Block(800))
    assert 420 < len(tokens(first)) < 450  # a token's work grows with what it attends to


def test_one_thread_has_all() -> None:
    torch.set_num_threads(1)
    assert len(parted(Block(400), Block(400))) == 1


@pytest.mark.parametrize("blocks", [[Block(300), Block(300)], [Block(600)]], ids=["whole", "cut"])
def test_what_is_read_is_found_in_its_frame(blocks: list[Block]) -> None:
    read = torch.tensor([0, 7, 310, 311, 599])
    found = parted(*blocks, read=read)
    assert len(found) == 2
    for frame in found:
        assert frame.read is not None
        assert torch.arange(600)[frame.tokens][frame.read].tolist() == read[frame.places].tolist()
    assert sorted(one for frame in found for one in read[frame.places].tolist()) == read.tolist()


def test_nothing_may_be_read_of_a_frame() -> None:
    first, second = parted(Block(600), read=torch.tensor([598, 599]))
    assert first.read is not None
    assert second.read is not None
    assert (len(first.read), len(second.read)) == (0, 2)


@given(
    lengths=st.lists(st.integers(1, 25), min_size=1, max_size=4),
    roots=st.lists(st.booleans(), min_size=4),
    cut=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_queries_before_and_behind_a_cut_attend_as_the_whole_does(
    lengths: list[int], roots: list[bool], cut: int
) -> None:
    blocks = [
        Block(length, 0 if number and rooted else -1)
        for number, (length, rooted) in enumerate(zip(lengths, roots, strict=False))
    ]
    total = sum(lengths)
    cut = min(cut, total)
    source = torch.Generator().manual_seed(total)
    query, grad = (torch.randn(total, HEADS, WIDTH, dtype=F64, generator=source) for _ in range(2))
    key, value = (torch.randn(total, KEY_HEADS, WIDTH, dtype=F64, generator=source) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "PIECE", 3)
        patch.setattr(attention, "LONG", 20)
        spans = spans_of(blocks, F64)
        out, log_sum = attend(query, key, value, spans, 0.3)
        whole = attend_backward(grad, query, key, value, out, log_sum, spans, 0.3)
        outs, query_grads, sums = [], [], [torch.zeros_like(key), torch.zeros_like(value)]
        for part in (slice(0, cut), slice(cut, total)):
            own = spans_of(blocks, F64, part)
            half, half_sum = attend(query[part], key, value, own, 0.3)
            mine, *others = attend_backward(grad[part], query[part], key, value, half, half_sum, own, 0.3)
            outs.append(half)
            query_grads.append(mine)
            for total_grad, one in zip(sums, others, strict=True):
                total_grad += one
    for ours, theirs in zip((torch.cat(outs), torch.cat(query_grads), *sums), (out, *whole), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_masks_of_a_long_block_take_no_more_than_a_piece_beside_all_keys() -> None:
    masks = [span.mask for span in spans_of([Block(4096)], F64, slice(2048, 4096)) if span.mask is not None]
    assert len(masks) == 16
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in masks}
    assert sum(storages.values()) == 8 * 128 * (4096 - 128 + 128)
