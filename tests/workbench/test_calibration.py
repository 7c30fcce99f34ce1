"""How sure a reward model is, beside how often it is right."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.calibration import BINS, calibration_error, confidence, reliability

LOG_3 = math.log(3)  # sigmoid(log 3) = 3/4


def test_confidence_is_a_half_at_a_tie_and_the_same_on_either_side():
    assert confidence(0.0) == 0.5
    assert confidence(LOG_3) == confidence(-LOG_3) == pytest.approx(0.75)
    assert confidence(-1e9) == 1


def test_a_model_as_often_right_as_it_is_sure_is_calibrated():
    # sure to 3/4 (gap log 3), and right in 3 of 4
    gaps = [LOG_3, LOG_3, LOG_3, -LOG_3]
    assert calibration_error(gaps) == pytest.approx(0)
    [filled] = [one for one in reliability(gaps) if one.pairs]
    assert (filled.pairs, filled.accuracy) == (4, 0.75)
    assert filled.confidence == pytest.approx(0.75)


def test_calibration_error_weighs_the_bins_by_their_pairs():
    # 1 pair sure to 1/2 and wrong: 1/2 off; 3 pairs sure to 3/4 and right: 1/4 off; (1 x 1/2 + 3 x 1/4) / 4
    assert calibration_error([0.0, LOG_3, LOG_3, LOG_3]) == pytest.approx((0.5 + 0.75) / 4)


def test_the_curve_has_ten_bins_from_a_half_to_one():
    curve = reliability([100.0])
    assert len(curve) == BINS == 10
    assert (curve[0].low, curve[-1].high) == pytest.approx((0.5, 1.0))
    assert [one.pairs for one in curve] == [0] * 9 + [1]  # sure to 1 belongs to the last


def test_nothing_judged_has_no_error_and_a_gap_that_is_no_number_gives_none():
    assert calibration_error([]) == 0
    assert math.isnan(calibration_error([1.0, math.nan]))


@given(st.lists(st.floats(-50, 50)))
def test_every_pair_is_in_one_bin_and_the_error_is_a_share(gaps):
    assert sum(one.pairs for one in reliability(gaps)) == len(gaps)
    assert 0 <= calibration_error(gaps) <= 1
