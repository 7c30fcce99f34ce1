import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ui.numbers import byte_ticks, duration, log_ticks, short, ticks
from workbench.terminal import in_bytes


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.03123, "0.0312"),
        (0.5, "0.500"),
        (1.2345, "1.23"),
        (12.345, "12.3"),
        (420, "420"),
        (12345.6, "12346"),
        (1_234_567, "1.23M"),
        (0, "0"),
        (-0.5678, "-0.568"),
        (3.1e-5, "3.1e-5"),
        (2e-4, "2e-4"),
        (float("nan"), "NaN"),
        (float("-inf"), "-∞"),
    ],
)
def test_values_are_short(value, text):
    assert short(value) == text


def test_units_are_said():
    assert short(4.56, "nats") == "4.56 nats"


@pytest.mark.parametrize("count", [12, 2048, 5 * 1024**2, 1.6e9, 3e12])
def test_a_plot_says_memory_as_cost_card_log_and_plan_do(count):
    """1.6e9 bytes are 1.49 times 1024^3: a decimal unit would say 1.6 beside the plan's 1.5."""
    assert short(count, "bytes") == in_bytes(count)
    assert short(1.6e9, "bytes") == "1.5 GiB"


def test_ticks_of_bytes_are_round_in_the_unit_that_they_say():
    gib = 1024**3
    assert byte_ticks(0, 2 * gib, 5) == [(n * gib / 2, text) for n, text in enumerate(["0", *HALVES])]
    assert [text for _, text in byte_ticks(600 * 2**20, 900 * 2**20, 4)] == ["600 MiB", "700 MiB", "800 MiB", "900 MiB"]
    logs = byte_ticks(math.log10(gib), math.log10(64 * gib), 4, log=True)
    assert [text for _, text in logs] == ["1 GiB", "3 GiB", "10 GiB", "30 GiB"]
    assert 10 ** logs[2][0] == pytest.approx(10 * gib)
    assert byte_ticks(0, math.inf, 3) == byte_ticks(1, 1, 3) == []


HALVES = ("0.5 GiB", "1.0 GiB", "1.5 GiB", "2.0 GiB")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.6, "5 s"), (60, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (90_000, "1 d 1 h"), (-1, "")],
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text


def test_ticks_are_round():
    assert ticks(0, 1, 5) == [(0, "0"), (0.25, "0.25"), (0.5, "0.50"), (0.75, "0.75"), (1, "1.00")]
    assert [text for _, text in ticks(0, 47, 5)] == ["0", "10", "20", "30", "40"]
    assert [text for _, text in ticks(0, 1_000_000, 5)] == ["0", "250k", "500k", "750k", "1M"]
    assert [text for _, text in ticks(-0.02, 0.021, 4)] == ["-0.02", "0", "0.02"]
    assert [text for _, text in ticks(0, 13, 5, whole=True)] == ["0", "5", "10"]
    assert [text for _, text in ticks(0, 2, 6, whole=True)] == ["0", "1", "2"]
    assert ticks(1, 1, 4) == ticks(0, math.inf, 3) == []


def test_log_ticks_are_powers_of_ten():
    assert [text for _, text in log_ticks(-3, 1, 6)] == ["1e-3", "0.01", "0.1", "1", "10"]
    assert [value for value, _ in log_ticks(-3, 1, 6)] == [-3, -2, -1, 0, 1]
    assert log_ticks(0.01, 0.2, 5)  # within one decade there still are some
    assert log_ticks(2, 1, 5) == []


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 9))
def test_ticks_are_few_within_range_and_told_apart(low, width, most):
    high = low + width
    if high - low < abs(low) * 1e-9:
        return
    found = ticks(low, high, most)
    assert 1 <= len(found) <= most
    step = (found[1][0] - found[0][0]) if len(found) > 1 else width
    assert all(low - step * 1e-6 <= value <= high + step * 1e-6 for value, _ in found)
    if width > abs(low) / 50 and width < 1e9 and width > 1e-3:
        assert len({text for _, text in found}) == len(found)
