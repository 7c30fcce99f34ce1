"""What all plots of a page share: the range of steps, the cursor, smoothing and scale; and when a range moves."""

from __future__ import annotations

from PySide6.QtCore import QObject, Signal, SignalInstance


class PlotLink(QObject):
    """What all plots of a page share: the range of steps, the cursor, smoothing and scale."""

    range_changed: SignalInstance = Signal()  # type: ignore[assignment]
    cursor_moved: SignalInstance = Signal()  # type: ignore[assignment]
    options_changed: SignalInstance = Signal()  # type: ignore[assignment]
    step_chosen: SignalInstance = Signal(int)  # type: ignore[assignment]

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.x_range = (0.0, 1.0)
        self.follow = True
        self.share = 1.0  # the last share of the run that is followed
        self.cursor: float | None = None
        self.smoothing = 0.0
        self.log = False
        self.last = 0.0
        self.first = 0.0
        self.step_word = "step"  # what a step of the run is called

    def extend(self, first: float, last: float) -> None:
        """Tell how far the data reach; while following, the range grows in strides, so that axes rest between."""
        self.first, self.last = min(first, last), last
        if not self.follow:
            return
        low, high = self.x_range
        width = max(last - self.first, 1.0)
        if self.share < 1.0:
            span = max(width * self.share, 1.0)
            self._set(last - span, last + span * 0.02)
            return
        roomy = high - last > 0.25 * max(high - low, 1e-12)
        if last > high or roomy or low > self.first or self.first - low > 0.2 * width:
            self._set(self.first, last if width < 20 else self.first + width * 1.08)

    def zoom(self, low: float, high: float) -> None:
        """Show these steps and stop following."""
        if high - low < 2:
            middle = (low + high) / 2
            low, high = middle - 1, middle + 1
        self.follow = False
        self._set(max(low, self.first - 1), min(high, self.last + 1) if self.last > low else high)

    def fit(self, share: float | None = None) -> None:
        """Follow the whole run again, or its last share."""
        self.share = self.share if share is None else share
        self.follow = True
        self.x_range = (0.0, 0.0)
        self.extend(self.first, self.last)

    def set_cursor(self, step: float | None) -> None:
        """Move the linked cursor to a step, or take it away."""
        if step != self.cursor:
            self.cursor = step
            self.cursor_moved.emit()

    def set_smoothing(self, weight: float) -> None:
        """Smooth by an exponential moving average of this weight, 0 to 0.999."""
        if weight != self.smoothing:
            self.smoothing = weight
            self.options_changed.emit()

    def set_log(self, on: bool) -> None:
        """Use a logarithmic scale where all values are positive."""
        if on != self.log:
            self.log = on
            self.options_changed.emit()

    def _set(self, low: float, high: float) -> None:
        self.x_range = (low, max(high, low + 1.0))
        self.range_changed.emit()


def settled_range(
    now: tuple[float, float], extent: tuple[float, float] | None, *, log: bool = False
) -> tuple[float, float]:
    """Return the y range for data of this extent, keeping the present one while it still fits well.

    It changes only when data leave it or fill less than 55 % of it, so axes do not tremble with every point.
    """
    if extent is None:
        return now if now[1] > now[0] else (0.0, 1.0)
    low, high = extent
    if high - low < max(abs(low), abs(high)) * 1e-9 + 1e-300:
        room = abs(high) * 0.1 or 0.5
        low, high = low - (0.5 if log else room), high + (0.5 if log else room)
    inside = now[0] <= low and high <= now[1]
    if now[1] > now[0] and inside and high - low >= 0.55 * (now[1] - now[0]):
        return now
    pad = 0.08 * (high - low)
    floor = 0.0 if not log and 0 <= extent[0] < 0.25 * extent[1] else low - pad
    return min(floor, low), high + pad
