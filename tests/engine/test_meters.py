from __future__ import annotations

import pytest
import torch

from engine.meters import Meters, Throughput, calibration_error, wilson


def test_a_mean_is_over_values_and_not_over_micro_batches():
    meters = Meters()
    meters.add("loss", torch.tensor([1.0, 2.0, 3.0]))
    meters.add("loss", torch.tensor([10.0]))
    meters.add_sum("share", 3, 4)
    meters.add("share", 1.0)
    # (1 + 2 + 3 + 10) / 4 and not (2 + 10) / 2
    assert meters.flush("eval_") == {"eval_loss": 4.0, "eval_share": 0.8}
    assert meters.flush() == {}


def test_lowest_and_highest_are_over_every_micro_batch():
    meters = Meters()
    for part in ([1.0, -2.0], [5.0, 0.0]):
        meters.add_low("low", torch.tensor(part))
        meters.add_high("high", torch.tensor(part))
    assert meters.flush() == {"low": -2.0, "high": 5.0}


def test_nothing_counted_gives_no_number():
    meters = Meters()
    meters.add("loss", torch.zeros(0))
    assert meters.flush() == {}


def test_meters_hold_no_graph():
    meters = Meters()
    weight = torch.ones(2, requires_grad=True)
    meters.add("loss", weight * 2)
    assert meters.flush() == {"loss": 2.0}


def test_throughput_counts_all_tokens_and_rates_the_last():
    meter = Throughput(num_tokens=100)
    meter.add(50, 2)
    values = meter.flush()
    assert values["num_tokens"] == 150
    assert values["perf/tokens_per_s"] == pytest.approx(25 * values["perf/samples_per_s"])
    assert meter.flush()["perf/tokens_per_s"] == 0


def test_wilson_by_hand():
    # p = 8/10, z = 1.96: centre (0.8 + 0.19207)/(1.38415) = 0.71674, reach 0.22659
    found = wilson(8, 10)
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.49016, 0.94332), abs=1e-4)
    assert wilson(0, 5).low == 0
    assert wilson(5, 5).high == pytest.approx(1)
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0, 1)


def test_calibration_error_by_hand():
    # four margins of log 3: confidence 3/4; three of them right: no error; all right: 1/4
    sure = torch.log(torch.tensor(3.0)) * torch.tensor([1, 1, 1, -1])
    assert calibration_error(sure) == pytest.approx(0, abs=1e-6)
    assert calibration_error(sure.abs()) == pytest.approx(0.25, abs=1e-6)
    assert calibration_error(torch.zeros(0)) == 0
