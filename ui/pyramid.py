"""A growing series that can be drawn at any zoom in constant time: a pyramid of block minima and maxima.

A line of a million points has at most two values that matter in each column of pixels: the lowest and the highest.
:class:`Pyramid` keeps them for blocks of 16, 64, 256, ... points, so a view of any width costs about as much as its
pixels. No spike is ever lost, unlike with sub-sampling. :class:`Smoother` is the moving average drawn above it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
FIRST_BLOCK = 16
FACTOR = 4
_SMALLEST = 1024


class _Growing:
    """A float64 array that doubles its room, so that appending costs amortised constant time."""

    __slots__ = ("_room", "count")

    def __init__(self, room: int = _SMALLEST) -> None:
        self._room = np.empty(room, dtype=np.float64)
        self.count = 0

    @property
    def values(self) -> Array:
        return self._room[: self.count]

    def extend(self, new: Array) -> None:
        end = self.count + len(new)
        if end > len(self._room):
            grown = np.empty(max(end, 2 * len(self._room)), dtype=np.float64)
            grown[: self.count] = self._room[: self.count]
            self._room = grown
        self._room[self.count : end] = new
        self.count = end


class _Level:
    """Minima and maxima of whole blocks of ``block`` points; the unfinished block at the end is not in it."""

    __slots__ = ("block", "high", "low")

    def __init__(self, block: int) -> None:
        self.block = block
        self.low = _Growing(64)
        self.high = _Growing(64)


class Pyramid:
    """One line: x never falls, y may be NaN (a gap). Not thread-safe."""

    def __init__(self) -> None:
        self._x = _Growing()
        self._y = _Growing()
        self._levels: list[_Level] = []

    def __len__(self) -> int:
        return self._x.count

    @property
    def x(self) -> Array:
        """All x, without a copy; valid until the next append."""
        return self._x.values

    @property
    def y(self) -> Array:
        """All y, without a copy; valid until the next append."""
        return self._y.values

    def append(self, x: ArrayLike, y: ArrayLike) -> None:
        """Add points at the end. Raises ValueError when the lengths differ or x would fall."""
        new_x = np.atleast_1d(np.asarray(x, dtype=np.float64))
        new_y = np.atleast_1d(np.asarray(y, dtype=np.float64))
        if new_x.shape != new_y.shape:
            raise ValueError(f"{new_x.size} x for {new_y.size} y")
        if not new_x.size:
            return
        if (len(self) and new_x[0] < self.x[-1]) or bool(np.any(np.diff(new_x) < 0)):
            raise ValueError("x must not fall")
        self._x.extend(new_x)
        self._y.extend(new_y)
        self._grow_levels()

    def cut_after(self, x: float) -> int:
        """Forget all points right of ``x`` (a run went back to a checkpoint). Returns how many went."""
        keep = int(np.searchsorted(self.x, x, side="right"))
        gone = len(self) - keep
        self._x.count = self._y.count = keep
        for level in self._levels:
            level.low.count = level.high.count = min(level.low.count, keep // level.block)
        return gone

    def clear(self) -> None:
        """Forget everything."""
        self.cut_after(-np.inf)

    def view(self, x0: float, x1: float, pixels: int) -> tuple[Array, Array]:
        """Return the points to draw for [x0, x1]: every one if they are few, else at most two a pixel.

        One neighbour on either side is included, so that the line runs on to the edges. The lowest and highest
        value of the range are always among the points.
        """
        first = max(0, int(np.searchsorted(self.x, x0, side="left")) - 1)
        last = min(len(self), int(np.searchsorted(self.x, x1, side="right")) + 1)
        pixels = max(8, int(pixels))
        if last - first <= 2 * pixels:
            return self.x[first:last], self.y[first:last]
        return self._columns(first, last, x0, x1, pixels - 5)  # the rest is for the ragged ends

    def at(self, x: float) -> tuple[float, float] | None:
        """Return the point nearest to ``x``, or None when there is none."""
        if not len(self):
            return None
        right = int(np.searchsorted(self.x, x))
        near = min(right, len(self) - 1)
        if right > 0 and (right == len(self) or x - self.x[right - 1] <= self.x[right] - x):
            near = right - 1
        return float(self.x[near]), float(self.y[near])

    def _columns(self, first: int, last: int, x0: float, x1: float, columns: int) -> tuple[Array, Array]:
        level = self._level_for((last - first) // (4 * max(1, columns)))
        if level is None:
            low = high = self.y
            block = 1
        else:
            low, high, block = level.low.values, level.high.values, level.block
        start, stop = -(-first // block), min(last // block, len(low))
        if stop <= start:  # all in ragged ends: few points
            return self.x[first:last], self.y[first:last]
        edges = np.linspace(max(x0, self.x[first]), min(x1, self.x[last - 1]), columns + 1)[:-1]
        at = np.unique(np.clip(np.searchsorted(self.x, edges) // block, start, stop - 1))
        if at[0] != start:
            at = np.concatenate(([start], at))
        lows = np.fmin.reduceat(low[start:stop], at - start)
        highs = np.fmax.reduceat(high[start:stop], at - start)
        body_x = np.repeat(self.x[at * block], 2)
        body_y = np.stack((lows, highs), axis=1).ravel()
        head, tail = self._extremes(first, start * block), self._extremes(stop * block, last)
        return np.concatenate((head[0], body_x, tail[0])), np.concatenate((head[1], body_y, tail[1]))

    def _extremes(self, first: int, last: int) -> tuple[Array, Array]:
        """A ragged end: its first, lowest, highest and last point, in order."""
        if last - first <= 4:
            return self.x[first:last], self.y[first:last]
        part = self.y[first:last]
        chosen = {0, last - first - 1}
        if not np.isnan(part).all():
            chosen |= {int(np.nanargmin(part)), int(np.nanargmax(part))}
        at = np.array(sorted(chosen)) + first
        return self.x[at], self.y[at]

    def _level_for(self, points: int) -> _Level | None:
        fitting = [level for level in self._levels if level.block <= points]
        return fitting[-1] if fitting else None

    def _grow_levels(self) -> None:
        low, high, block, parent = self.y, self.y, FIRST_BLOCK, 1
        for index in range(64):
            whole = len(self) // block
            if whole == 0:
                return
            if index == len(self._levels):
                self._levels.append(_Level(block))
            level = self._levels[index]
            done, ratio = level.low.count, block // parent
            if whole > done:
                span = slice(done * ratio, whole * ratio)
                level.low.extend(np.fmin.reduce(low[span].reshape(-1, ratio), axis=1))
                level.high.extend(np.fmax.reduce(high[span].reshape(-1, ratio), axis=1))
            low, high = level.low.values, level.high.values
            parent, block = block, block * FACTOR


class Smoother:
    """An exponential moving average without the pull towards 0 at the start (debiased), fed in pieces.

    ``s_t = sum_k w^k y_(t-k) / sum_k w^k`` over the finite y so far; weight 0 is the line itself.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self._sum = 0.0
        self._mass = 0.0

    def feed(self, y: ArrayLike) -> Array:
        """Return the average at each of the new values (NaN where there has been none yet)."""
        raw = np.atleast_1d(np.asarray(y, dtype=np.float64))
        if not self.weight or not raw.size:
            return raw.copy()
        finite = np.isfinite(raw)
        total = self._decayed(np.where(finite, raw, 0.0), self._sum)
        mass = self._decayed(finite.astype(np.float64), self._mass)
        self._sum, self._mass = float(total[-1]), float(mass[-1])
        return np.divide(total, mass, out=np.full_like(total, np.nan), where=mass > 0)

    def _decayed(self, values: Array, before: float) -> Array:
        """``out_t = w out_(t-1) + values_t`` for all t at once, by doubling: S_2m[t] = S_m[t] + w^m S_m[t-m]."""
        out = values.copy()
        span, decay = 1, self.weight
        while span < len(out) and decay > 1e-15:
            shifted = decay * out[:-span]
            out[span:] += shifted
            span, decay = 2 * span, decay * decay
        if before:
            out += before * self.weight ** np.arange(1, len(out) + 1)
        return out
