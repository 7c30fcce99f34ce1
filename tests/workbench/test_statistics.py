"""How much evidence outcomes are that come in groups."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.statistics import FEWEST, effective_trials, mean_interval, wilson, wilson_of_groups


def test_a_ranking_of_36_pairs_beside_36_of_one_pair_is_worth_four_trials_and_not_37() -> None:
    # N = 72: 72^2 / (36^2 + 36 x 1^2) = 5184 / 1332 = 3.89. The 36 pairs are half the share, and one piece of evidence
    groups = ["large"] * 36 + [f"small {n}" for n in range(36)]
    assert effective_trials(groups) == pytest.approx(5184 / 1332)
    # the large one all right, of the small ones every other: 54 of 72
    judged = [(one, one == "large" or int(one[6:]) % 2 == 0) for one in groups]
    share, low, high = wilson_of_groups(judged)
    assert share == 0.75
    assert (low, high) == pytest.approx(wilson(0.75 * 5184 / 1332, 5184 / 1332))
    assert low < 0.5 < wilson(0.75 * 37, 37)[0]  # counted as 37 it would have been told apart from a coin


def test_equal_groups_count_once_each_and_single_outcomes_are_themselves() -> None:
    assert effective_trials("aaabbbccc") == 3
    assert effective_trials("abcd") == 4
    assert effective_trials("") == 0
    assert wilson_of_groups([]) == (0, 0, 1)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.floats(0.05, 0.95))
def test_the_share_of_groups_that_go_together_varies_as_that_of_so_many_independent_outcomes(
    sizes: list[int], chance: float
) -> None:
    # over all 2^G ways that G groups come out: E (share - p)^2 = p (1 - p) / effective
    variance = 0.0
    for outcome in itertools.product((0, 1), repeat=len(sizes)):
        share = sum(right * size for right, size in zip(outcome, sizes, strict=True)) / sum(sizes)
        likely = math.prod(chance if right else 1 - chance for right in outcome)
        variance += likely * (share - chance) ** 2
    trials = effective_trials(group for group, size in enumerate(sizes) for _ in range(size))
    assert variance == pytest.approx(chance * (1 - chance) / trials)


@pytest.mark.parametrize(("count", "quantile"), [(5, 2.776), (10, 2.262), (30, 2.045), (1000, 1.962)])
def test_the_interval_of_a_mean_is_students(count: int, quantile: float) -> None:
    values = [float(one) for one in range(count)]
    mean, low, high = mean_interval(values)
    deviation = math.sqrt(sum((one - mean) ** 2 for one in values) / (count - 1))
    assert mean == pytest.approx((count - 1) / 2)
    assert high - mean == pytest.approx(mean - low) == pytest.approx(quantile * deviation / math.sqrt(count), rel=0.01)


def test_too_few_values_have_no_interval() -> None:
    with pytest.raises(ValueError, match="4 values"):
        mean_interval([1.0] * (FEWEST - 1))
    assert mean_interval([2.0] * FEWEST) == (2.0, 2.0, 2.0)
