"""A block of packed tokens cut into pieces attends to what the whole block attends to, forwards and backwards."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine import attention
from engine.attention import attend, attend_backward, spans_of
from engine.packing import Block

F64 = torch.float64
HEADS, KEY_HEADS, WIDTH = 4, 2, 8
SHARED = HEADS // KEY_HEADS


def by_definition(query: Tensor, key: Tensor, value: Tensor, sees: Tensor, scaling: float) -> Tensor:
    """softmax(scaling Q K^T) V over the keys that a token sees, head by head."""
    key, value = key.repeat_interleave(SHARED, 1), value.repeat_interleave(SHARED, 1)
    scores = torch.einsum("qhw,khw->hqk", query, key) * scaling
    return torch.einsum("hqk,khw->qhw", scores.masked_fill(~sees, -torch.inf).softmax(-1), value)


def seen(blocks: list[Block]) -> Tensor:
    """Which tokens each token sees, [T, T]: its root's, and its block's up to itself."""
    places = torch.arange(sum(block.length for block in blocks)).split([block.length for block in blocks])
    sees = torch.zeros(2 * (sum(block.length for block in blocks),), dtype=torch.bool)
    for own, block in zip(places, blocks, strict=True):
        for token in own.tolist():
            sees[token, own[0] : token + 1] = True
            if block.root >= 0:
                sees[token, places[block.root]] = True
    return sees


def both_ways(blocks: list[Block]) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients of query, key and value: by the kernel in pieces, and by definition."""
    tokens = sum(block.length for block in blocks)
    source = torch.Generator().manual_seed(tokens)
    query, grad = (torch.randn(tokens, HEADS, WIDTH, dtype=F64, generator=source) for _ in range(2))
    key, value = (torch.randn(tokens, KEY_HEADS, WIDTH, dtype=F64, generator=source) for _ in range(2))
    spans = spans_of(blocks, F64, SHARED)
    out, log_sum = attend(query, key, value, spans, 0.3)
    ours = [out, *attend_backward(grad, query, key, value, out, log_sum, spans, 0.3)]
    leaves = [one.clone().requires_grad_() for one in (query, key, value)]
    whole = by_definition(*leaves, seen(blocks), 0.3)
    return ours, [whole.detach(), *torch.autograd.grad(whole, leaves, grad)]


def blocks_of(lengths: list[int], roots: list[bool]) -> list[Block]:
    """Blocks of which some attend to the first."""
    return [
        Block(length, 0 if number and rooted else -1)
        for number, (length, rooted) in enumerate(zip(lengths, roots, strict=False))
    ]


@given(lengths=st.lists(st.integers(1, 25), min_size=1, max_size=4), roots=st.lists(st.booleans(), min_size=4))
@settings(max_examples=60, deadline=None)
def test_pieces_attend_as_the_definition_says(lengths: list[int], roots: list[bool]) -> None:
    blocks = blocks_of(lengths, roots)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "PIECE", 6)
        for ours, whole in zip(*both_ways(blocks), strict=True):
            torch.testing.assert_close(ours, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("length", [191, 192, 193, 511, 767, 768])
def test_blocks_of_real_lengths_attend_so_too(length: int) -> None:
    for blocks in ([Block(length)], [Block(70), Block(length, 0)]):
        for ours, whole in zip(*both_ways(blocks), strict=True):
            torch.testing.assert_close(ours, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("blocks", [[Block(300)], [Block(70), Block(90, 0), Block(1, 0)]], ids=["alone", "root"])
def test_gradients_made_of_products_are_the_kernels(monkeypatch: pytest.MonkeyPatch, blocks: list[Block]) -> None:
    monkeypatch.setattr(attention, "_flash_grads", attention._product_grads)
    for ours, whole in zip(*both_ways(blocks), strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [0.3, 3.0, 12.0], ids=["even", "usual", "nearly one key alone"])
def test_in_bf16_they_are_as_near_as_its_rounding_allows_however_large_the_scores(size: float) -> None:
    """The definition in fp64 on the same bf16 numbers; scores rounded to bf16 by themselves would be 1 to 5 % off."""
    blocks = [Block(60), Block(120, 0)]
    source = torch.Generator().manual_seed(0)
    query, grad = (torch.randn(180, HEADS, 64, generator=source).bfloat16() for _ in range(2))
    key, value = (torch.randn(180, KEY_HEADS, 64, generator=source).bfloat16() for _ in range(2))
    query *= size
    spans = spans_of(blocks, torch.bfloat16, SHARED)
    ours = attend_backward(grad, query, key, value, *attend(query, key, value, spans, 0.125), spans, 0.125)
    leaves = [one.double().requires_grad_() for one in (query, key, value)]
    exact = torch.autograd.grad(by_definition(*leaves, seen(blocks), 0.125), leaves, grad.double())
    for found, wanted in zip(ours, exact, strict=True):
        assert (found.double() - wanted).norm() < 0.01 * wanted.norm()


def test_a_block_is_cut_into_like_pieces_of_about_288_rows() -> None:
    def cuts(*blocks: Block, shared: int = 3) -> list[tuple[int, int]]:
        return [(span.place.start, span.place.stop) for span in spans_of(blocks, F64, shared)]

    assert cuts(Block(140)) == [(0, 140)]
    assert cuts(Block(190)) == [(0, 95), (95, 190)]
    assert cuts(Block(300)) == [(0, 100), (100, 200), (200, 300)]
    assert cuts(Block(300), shared=1) == [(0, 300)]
    assert cuts(Block(10), Block(200, 0)) == [(0, 10), (10, 110), (110, 210)]
    assert cuts(Block(3), shared=500) == [(0, 1), (1, 2), (2, 3)]


def test_a_piece_sees_the_keys_up_to_its_own_end() -> None:
    _, second = spans_of([Block(288)], F64, SHARED)
    assert second.keys == (slice(0, 288),)
    assert second.mask.shape == (SHARED * 144, 288)
    assert [int((row == 0).sum()) for row in second.mask] == [count for count in range(145, 289) for _ in range(SHARED)]
    root, answer = spans_of([Block(4), Block(2, 0)], F64, 1)
    assert [int((row == 0).sum()) for row in root.mask] == [1, 2, 3, 4]
    assert answer.keys == (slice(0, 4), slice(4, 6))
    assert answer.mask.tolist() == [[0.0] * 5 + [-torch.inf], [0.0] * 6]


@given(
    lengths=st.lists(st.integers(1, 25), min_size=1, max_size=4),
    roots=st.lists(st.booleans(), min_size=4),
    cut=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_queries_before_and_behind_a_cut_attend_as_the_whole_does(
    lengths: list[int], roots: list[bool], cut: int
) -> None:
    blocks = blocks_of(lengths, roots)
    total = sum(lengths)
    cut = min(cut, total)
    source = torch.Generator().manual_seed(total)
    query, grad = (torch.randn(total, HEADS, WIDTH, dtype=F64, generator=source) for _ in range(2))
    key, value = (torch.randn(total, KEY_HEADS, WIDTH, dtype=F64, generator=source) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "PIECE", 6)
        spans = spans_of(blocks, F64, SHARED)
        out, log_sum = attend(query, key, value, spans, 0.3)
        whole = attend_backward(grad, query, key, value, out, log_sum, spans, 0.3)
        outs, query_grads, sums = [], [], [torch.zeros_like(key), torch.zeros_like(value)]
        for part in (slice(0, cut), slice(cut, total)):
            own = spans_of(blocks, F64, SHARED, part)
            half, half_sum = attend(query[part], key, value, own, 0.3)
            mine, *others = attend_backward(grad[part], query[part], key, value, half, half_sum, own, 0.3)
            outs.append(half)
            query_grads.append(mine)
            for total_grad, one in zip(sums, others, strict=True):
                total_grad += one
    for ours, theirs in zip((torch.cat(outs), torch.cat(query_grads), *sums), (out, *whole), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_masks_of_a_long_block_take_no_more_than_a_piece_beside_all_keys() -> None:
    masks = [span.mask for span in spans_of([Block(4608)], F64, 3, slice(2304, 4608))]
    assert len(masks) == 24
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in masks}
    assert sum(storages.values()) == 8 * 288 * 4608
