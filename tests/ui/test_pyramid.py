import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ui.pyramid import Pyramid, Smoother


def filled(y, pieces=(), x=None):
    line = Pyramid()
    x = np.arange(len(y), dtype=float) if x is None else np.asarray(x, dtype=float)
    edges = [0, *sorted(pieces), len(y)]
    for a, b in itertools.pairwise(edges):
        line.append(x[a:b], y[a:b])
    return line


@st.composite
def lines(draw):
    count = draw(st.integers(1, 6000))
    seed = draw(st.integers(0, 2**31))
    random = np.random.default_rng(seed)
    y = random.standard_normal(count) * 10 ** random.uniform(-3, 3)
    if draw(st.booleans()):
        y[random.random(count) < 0.1] = np.nan
    gaps = random.integers(0, 4, count) if draw(st.booleans()) else np.ones(count)
    x = np.cumsum(gaps).astype(float)
    pieces = sorted(random.integers(0, count + 1, draw(st.integers(0, 6))))
    return filled(y, pieces, x), x, y


@settings(max_examples=150, deadline=None)
@given(lines(), st.floats(-0.2, 1.2), st.floats(0.0, 1.2), st.integers(8, 700))
def test_a_view_has_few_points_and_loses_no_extreme(line, start, width, pixels):
    pyramid, x, y = line
    x0 = x[0] + start * (x[-1] - x[0])
    x1 = x0 + width * (x[-1] - x[0])
    seen_x, seen_y = pyramid.view(x0, x1, pixels)
    assert len(seen_x) == len(seen_y) <= 2 * pixels
    assert np.all(np.diff(seen_x) >= 0)
    assert np.isin(seen_x, x).all()
    assert np.isin(seen_y[~np.isnan(seen_y)], y).all()
    inside = y[(x >= x0) & (x <= x1)]
    if np.isfinite(inside).any():
        assert np.nanmin(seen_y) <= np.nanmin(inside)
        assert np.nanmax(seen_y) >= np.nanmax(inside)
    first = max(0, np.searchsorted(x, x0) - 1)  # the plain scan: the range and one neighbour on either side
    last = min(len(x), np.searchsorted(x, x1, side="right") + 1)
    scan = y[first:last]
    if np.isfinite(scan).any():
        assert np.nanmin(seen_y) == np.nanmin(scan)
        assert np.nanmax(seen_y) == np.nanmax(scan)


@settings(max_examples=60, deadline=None)
@given(st.integers(2_000, 40_000), st.integers(20, 400), st.integers(0, 2**31))
def test_every_pixel_column_reaches_as_low_and_high_as_a_plain_scan(count, pixels, seed):
    y = np.random.default_rng(seed).standard_normal(count)
    seen_x, seen_y = filled(y).view(0, count - 1, pixels)
    width = count / pixels
    for column in range(0, pixels, max(1, pixels // 17)):
        scan = y[int(column * width) : int((column + 1) * width)]
        near = seen_y[(seen_x >= (column - 2) * width) & (seen_x <= (column + 2) * width)]
        assert near.min() <= scan.min()
        assert near.max() >= scan.max()


def test_one_spike_in_a_million_points_is_drawn():
    y = np.zeros(1_000_000)
    y[654_321] = 7.0
    seen_x, seen_y = filled(y).view(0, 1e6, 800)
    assert seen_y.max() == 7.0
    assert abs(seen_x[seen_y.argmax()] - 654_321) <= 1e6 / 700


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 5000), st.integers(0, 3000), st.integers(0, 2**31))
def test_cutting_and_going_on_equals_never_having_had_the_rest(count, cut, more, seed):
    random = np.random.default_rng(seed)
    cut = min(cut, count - 1)
    y, again = random.standard_normal(count), random.standard_normal(more)
    line = filled(y)
    assert line.cut_after(float(cut)) == count - cut - 1
    line.append(np.arange(cut + 1, cut + 1 + more, dtype=float), again)
    fresh = filled(np.concatenate((y[: cut + 1], again)))
    assert np.array_equal(line.y, fresh.y)
    for pixels in (10, 100):
        for a, b in zip(line.view(0, count + more, pixels), fresh.view(0, count + more, pixels), strict=True):
            assert np.array_equal(a, b)


def test_the_nearest_point_is_found():
    line = filled([1.0, 2.0, 4.0], x=[0, 10, 20])
    assert line.at(-5) == (0, 1.0)
    assert line.at(14.9) == (10, 2.0)
    assert line.at(15.1) == (20, 4.0)
    assert line.at(99) == (20, 4.0)
    assert Pyramid().at(1) is None


def test_x_that_falls_and_uneven_lengths_are_refused():
    line = filled([1.0, 2.0])
    with pytest.raises(ValueError, match="fall"):
        line.append([0.5], [1.0])
    with pytest.raises(ValueError, match="fall"):
        line.append([3, 2], [1.0, 1.0])
    with pytest.raises(ValueError, match="2 x for 1 y"):
        line.append([3, 4], [1.0])
    line.append([], [])
    assert len(line) == 2
    line.clear()
    assert len(line) == 0
    assert line.view(0, 1, 10)[0].size == 0


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.one_of(st.floats(-1e3, 1e3), st.just(float("nan"))), min_size=1, max_size=300),
    st.sampled_from([0.0, 0.3, 0.6, 0.9, 0.99]),
    st.integers(0, 300),
)
def test_smoothing_in_pieces_equals_the_plain_recursion(values, weight, split):
    smoother = Smoother(weight)
    got = np.concatenate((smoother.feed(values[:split]), smoother.feed(values[split:])))
    total = mass = 0.0
    for value, smooth in zip(values, got, strict=True):
        finite = np.isfinite(value)
        total = weight * total + (value if finite else 0.0)
        mass = weight * mass + (1.0 if finite else 0.0)
        want = (value if weight == 0 else np.nan) if mass == 0 or (weight == 0 and not finite) else total / mass
        assert np.isclose(smooth, want, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_a_view_of_a_million_points_takes_a_few_milliseconds():
    line = filled(np.random.default_rng(0).standard_normal(1_000_000))
    best = min(timed(lambda: line.view(0, 1e6, 1000)) for _ in range(5))
    assert best < 0.010
    assert min(timed(lambda: Smoother(0.9).feed(line.y)) for _ in range(3)) < 0.5


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
