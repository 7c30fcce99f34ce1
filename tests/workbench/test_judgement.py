"""What a reward model's scores of held-out pairs say about it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import UserError
from workbench.judgement import (
    JUDGEMENT_FILE,
    JudgedPair,
    Judgement,
    by,
    by_gap,
    confident_and_wrong,
    length_bias,
    length_correlation,
    report,
    share,
    uncertainty,
)
from workbench.statistics import wilson

LOG_3 = math.log(3)  # sigmoid(log 3) = 3/4


def pair(gap, unit="r", name="", **more):
    return JudgedPair(name or f"{unit}:{gap}", unit, gap, **more)


pairs = st.lists(
    st.builds(
        JudgedPair,
        id=st.text(max_size=3),
        unit=st.sampled_from("abcd"),
        gap=st.floats(-30, 30),
        tier_distance=st.integers(1, 4),
        length_difference=st.integers(-500, 500),
        rater=st.sampled_from(["me", "you"]),
    ),
    max_size=30,
)


def test_accuracy_counts_pairs_and_its_interval_what_their_rankings_are_worth():
    # 3 of 4 pairs are right, of rankings of 3 and 1: worth 4^2 / (3^2 + 1^2) = 1.6 trials, 1.2 of them right
    found = share("all", [pair(1, "a"), pair(2, "a"), pair(-1, "a"), pair(0.5, "b")])
    assert (found.pairs, found.rankings, found.prompts, found.accuracy) == (4, 2, 2, 0.75)
    assert (found.low, found.high) == pytest.approx(wilson(1.2, 1.6))


def test_two_raters_of_one_prompt_are_no_two_pieces_of_evidence():
    judged = [pair(1, f"{prompt}/{rater}", rater=rater, group=prompt) for prompt in "xyz" for rater in ("me", "you")]
    found = share("all", judged)
    assert (found.pairs, found.rankings, found.prompts) == (6, 6, 3)
    assert (found.low, found.high) == pytest.approx(wilson(3, 3))


def test_a_tie_is_wrong():
    assert share("all", [pair(0.0)]).accuracy == 0


def test_nothing_judged_says_nothing():
    found = report([])
    assert (found.accuracy.pairs, found.accuracy.low, found.accuracy.high) == (0, 0, 1)
    assert found.calibration_error == found.length.correlation == 0
    assert found.by_tag == found.by_gap == found.by_rater == found.confident_and_wrong == ()


def test_a_pair_counts_under_each_tag_of_its_prompt_and_under_none_without():
    judged = [pair(1, name="x"), pair(-1, name="y"), pair(1, name="z")]
    found = report(judged, tags={"x": ["science"], "y": ["science", "everyday"]}).by_tag
    assert [(one.name, one.pairs, one.accuracy) for one in found] == [("everyday", 1, 0.0), ("science", 2, 0.5)]


def test_tier_distances_are_in_the_order_of_numbers():
    judged = [pair(1, tier_distance=10), pair(1, tier_distance=2), pair(-1, tier_distance=2)]
    found = by(judged, lambda one: [one.tier_distance])
    assert [(one.name, one.accuracy) for one in found] == [("2", 0.5), ("10", 1.0)]


def test_raters_go_by_their_names():
    found = report([pair(1, rater="1"), pair(-1, rater="2"), pair(1)], raters={"1": "Ada"}).by_rater
    assert [(one.name, one.accuracy) for one in found] == [("unknown", 1.0), ("Ada", 1.0), ("2", 0.0)]


def test_gaps_fall_into_buckets_by_their_size_whatever_their_sign():
    found = by_gap([pair(0.1), pair(-0.2), pair(0.25), pair(-7)])
    assert [(one.name, one.pairs, one.accuracy) for one in found] == [
        ("0 to 0.25", 2, 0.5),
        ("0.25 to 0.5", 1, 1.0),
        ("over 2", 1, 0.0),
    ]


def test_length_bias_by_hand():
    judged = [
        pair(1, length_difference=10),  # the longer was chosen: right
        pair(2, length_difference=20),  # right
        pair(-1, length_difference=-10),  # the shorter was chosen, the model takes the longer: wrong
        pair(1, length_difference=-10),  # right
        pair(1, length_difference=0),
    ]
    found = length_bias(judged)
    assert (found.chosen_longer.accuracy, found.chosen_longer.pairs) == (1.0, 2)
    assert (found.chosen_shorter.accuracy, found.chosen_shorter.pairs) == (0.5, 2)
    assert (found.raters_prefer_longer, found.model_prefers_longer) == (0.5, 0.75)
    # sum(g d) = 10 + 40 + 10 - 10 = 50; sum(g^2) = 8; sum(d^2) = 700
    assert found.correlation == pytest.approx(50 / math.sqrt(8 * 700))


def test_a_score_that_is_a_multiple_of_the_length_correlates_wholly():
    judged = [pair(-0.5 * length, length_difference=length) for length in (3, -8, 40)]
    assert length_correlation(judged) == pytest.approx(-1)


def test_what_is_confident_and_wrong_comes_worst_first():
    judged = [pair(-0.8, name="unsure"), pair(-1, name="sure"), pair(3, name="right"), pair(-4, name="worst")]
    assert [one.id for one in confident_and_wrong(judged)] == ["worst", "sure"]


def test_the_spread_of_the_heads_is_compared_between_wrong_and_right_pairs_by_hand():
    judged = [pair(1, gap_std=0.1), pair(1, gap_std=0.3), pair(-1, gap_std=0.3), pair(-1, gap_std=0.5)]
    found = uncertainty(judged)
    assert (found.mean_std, found.right_std, found.wrong_std) == pytest.approx((0.3, 0.2, 0.4))
    # 0.3 beats 0.1 and ties with 0.3, 0.5 beats both: (1 + 1/2 + 1 + 1) / 4
    assert found.larger_on_wrong == pytest.approx(3.5 / 4)


def test_a_single_head_says_nothing_of_its_uncertainty_and_one_sided_pairs_say_nothing_of_mistakes():
    assert report([pair(1), pair(-1)]).uncertainty is None
    assert report([]).uncertainty is None
    assert uncertainty([pair(1, gap_std=0.5)]).larger_on_wrong == 0.5


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.1, 0.2, 0.3])), min_size=2, max_size=12))
def test_the_chance_of_the_larger_spread_counts_every_comparison(judged):
    made = [pair(1 if right else -1, gap_std=std) for right, std in judged]
    right = [std for good, std in judged if good]
    wrong = [std for good, std in judged if not good]
    shares = [(one > other) + (one == other) / 2 for one in wrong for other in right]
    expected = sum(shares) / len(shares) if shares else 0.5
    assert uncertainty(made).larger_on_wrong == pytest.approx(expected)


def test_a_judgement_of_an_older_version_has_no_spread(tmp_path):
    (tmp_path / JUDGEMENT_FILE).write_text('{"step": 1, "pairs": [{"id": "a", "unit": "r", "gap": 0.5}], "version": 1}')
    assert Judgement.read(tmp_path).pairs == (JudgedPair("a", "r", 0.5),)


@given(pairs)
def test_the_parts_make_the_whole(judged):
    found = report(judged)
    for parts in (found.by_tier_distance, found.by_gap, found.by_rater, found.reliability):
        assert sum(one.pairs for one in parts) == len(judged)
        assert sum(one.pairs * one.accuracy for one in parts) == pytest.approx(sum(one.right for one in judged))
    assert 0 <= found.calibration_error <= 1
    assert -1 - 1e-9 <= found.length.correlation <= 1 + 1e-9
    assert found.accuracy.low <= found.accuracy.accuracy + 1e-9


@given(pairs)
def test_turning_a_pair_round_changes_no_correlation(judged):
    turned = [pair(-one.gap, length_difference=-one.length_difference) for one in judged]
    assert length_correlation(turned) == pytest.approx(length_correlation(judged))


def test_a_judgement_comes_back_as_it_was_written(tmp_path):
    assert Judgement.read(tmp_path) is None
    written = Judgement(step=7, pairs=(pair(0.123456789, length_difference=-3, tier_distance=2, rater="me"),))
    written.write(tmp_path)
    assert Judgement.read(tmp_path) == written


def test_a_damaged_judgement_is_a_user_error(tmp_path):
    for content in ('{"pairs": [', '{"pairs": [{"id": 3}]}'):
        (tmp_path / JUDGEMENT_FILE).write_text(content)
        with pytest.raises(UserError, match="cannot be read"):
            Judgement.read(tmp_path)
