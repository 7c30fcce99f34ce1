"""How a pass is parted into frames of equal work."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.frames import Frame, frames_of
from engine.packing import Block

WIDTH = 8


pytestmark = pytest.mark.usefixtures("two_threads")


def parted(*blocks: Block, read: Tensor | None = None) -> list[Frame]:
    angles = torch.zeros(sum(block.length for block in blocks), 1, WIDTH)
    return frames_of(blocks, angles, angles, shared=2, read=read)


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
