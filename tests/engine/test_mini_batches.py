"""The mini-batches of an update: every episode once an epoch, in company that changes, prompts with their responses."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from engine.mini_batches import in_order, mini_batches, of_epoch
from engine.ppo_models import Episode


def episodes(prompts: int, count: int) -> list[Episode]:
    source = random.Random(0)
    return [
        Episode(str(group), "", (1,) * 5, (2,) * source.randint(1, 9), True, "", group)
        for group in range(prompts)
        for _ in range(count)
    ]


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.integers(0, 3), st.integers(0, 4))
def test_an_epoch_has_every_episode_once_in_mini_batches_of_the_same_sizes(
    prompts: int, count: int, parts: int, seed: int, epoch: int
) -> None:
    rows = episodes(prompts, count)
    minis = mini_batches(len(rows), parts)
    found = of_epoch(rows, minis, seed, 1, epoch)
    assert sorted(row for mini in found for row in mini) == list(range(len(rows)))
    assert sorted(map(len, found)) == sorted(map(len, minis))
    assert [list(one) for one in of_epoch(rows, minis, seed, 1, epoch)] == [
        list(one) for one in found
    ]  # on a resume too


def test_every_epoch_after_the_first_deals_the_prompts_out_anew() -> None:
    rows = episodes(12, 2)
    minis = mini_batches(24, 3)
    first, *later = ({frozenset(mini) for mini in of_epoch(rows, minis, 0, 1, epoch)} for epoch in range(4))
    assert first == {frozenset(mini) for mini in minis}  # the passes over its first one were kept
    assert of_epoch(rows, minis, 0, 1, 0) == in_order(minis, 0, 1, 0)
    for one, other in zip([first, *later], later, strict=False):
        assert one != other
    assert later[0] != {frozenset(mini) for mini in of_epoch(rows, minis, 0, 2, 1)}  # nor is it that of another step
    for epoch in later:  # a prompt's responses share its pass
        assert all(len({rows[row].group for row in mini}) == 4 for mini in epoch)


def test_a_mini_batch_lies_by_length_with_the_responses_to_a_prompt_together() -> None:
    rows = episodes(8, 3)
    for mini in of_epoch(rows, mini_batches(24, 2), 0, 1, 2):
        groups = [rows[row].group for row in mini]
        assert groups[::3] == groups[1::3] == groups[2::3]
        longest = [max(rows[row].tokens for row in mini[start : start + 3]) for start in range(0, 12, 3)]
        assert longest == sorted(longest, reverse=True)


def test_one_mini_batch_is_the_rollout_in_every_epoch() -> None:
    rows = episodes(4, 2)
    assert [of_epoch(rows, [range(8)], 0, 1, epoch) for epoch in range(3)] == [[range(8)]] * 3
