"""The drawing area of one plot. The only module that imports pyqtgraph: it is loaded when the first plot is drawn.

What makes it fast, measured: at most two points a pixel (:mod:`ui.pyramid`), lines of width 1, no antialiasing over a
thousand points, no automatic range and no ``showGrid`` (own grid lines in one item), no finite check. The mouse is
read from the viewport itself and the cursor is a widget above it, so that pointing redraws no line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QEvent, QObject, QPoint, QPointF, QRect, QRectF, Qt, Signal, SignalInstance
from PySide6.QtGui import QColor, QFontMetrics, QMouseEvent, QPainter, QPaintEvent, QPen, QWheelEvent
from PySide6.QtWidgets import QRubberBand, QVBoxLayout, QWidget

from ui.numbers import byte_ticks, log_ticks, ticks
from ui.pyramid import Array
from ui.theme import Colours, S, font

AXIS_WIDTH = 56  # or what its labels take: one that does not fit is not drawn at all
AXIS_HEIGHT = 24
SMOOTH_BELOW = 1000
"""Antialias up to so many points; above it costs more than it shows."""
DASHES_BELOW = 400
"""Dash a line up to so many points; in a dense line dashes cannot be seen and cost the most."""
DOTS_BELOW = {"o": 12, "s": 48}
"""Mark single points of a line up to so many: rare held-out numbers (squares) longer than a report of every step."""
EDGE_PIXELS = 5
_DRAG_PIXELS = 6


@dataclass(frozen=True, slots=True)
class Stroke:
    """One line to draw; ``dashes`` as QPen takes them, () for solid; ``dots`` marks single points when few."""

    key: str
    x: Array
    y: Array
    colour: str
    dashes: tuple[float, ...] = ()
    dots: str = ""  # "o", "s" or "" for none
    depth: float = 0.0  # higher is in front


@dataclass(frozen=True, slots=True)
class MarkLines:
    """Steps marked in a plot, by kind."""

    checkpoints: Sequence[float] = ()
    resumes: Sequence[float] = ()
    diverged: Sequence[float] = ()


@lru_cache(maxsize=256)
def _pen(colour: str, dashes: tuple[float, ...]) -> QPen:
    pen: QPen = pg.mkPen(colour, width=1, dash=list(dashes) or None)
    return pen


class Canvas(QWidget):
    """Axes, grid, lines and marks of one plot, and what the mouse does on it.

    Sends ``hovered(step or None)``, ``clicked(step)``, ``zoomed(x0, x1)`` and ``fitted()``.
    """

    hovered: SignalInstance = Signal(object)  # type: ignore[assignment]
    clicked: SignalInstance = Signal(float)  # type: ignore[assignment]
    zoomed: SignalInstance = Signal(float, float)  # type: ignore[assignment]
    fitted: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(self, theme: Colours, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        # built from its parts: a PlotItem makes menus and dialogs that take longer than all the rest
        self._view: Any = pg.GraphicsView(parent=self, background=theme.surface)
        self._view.setAntialiasing(False)
        self._view.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self._box: Any = pg.ViewBox(enableMenu=False, enableMouse=False, defaultPadding=0)
        self._box.disableAutoRange()
        self._left: Any = pg.AxisItem("left")
        self._bottom: Any = pg.AxisItem("bottom")
        parts: Any = pg.GraphicsLayout()
        parts.setContentsMargins(0, S, S, 0)
        parts.setSpacing(0)
        for part, line, place in ((self._left, 0, 0), (self._box, 0, 1), (self._bottom, 1, 1)):
            parts.addItem(part, line, place)
        self._view.setCentralItem(parts)
        self._left.setWidth(AXIS_WIDTH)
        self._bottom.setHeight(AXIS_HEIGHT)
        for axis in (self._left, self._bottom):
            axis.linkToView(self._box)
            axis.setStyle(tickLength=0, tickTextOffset=6, autoExpandTextSpace=False)
        self._grid = self._add_curve(-10, connect="pairs")
        self._marks = {
            kind: self._add_curve(depth, connect="pairs")
            for kind, depth in (("checkpoints", -3), ("resumes", -2), ("diverged", 9))
        }
        self._marked: dict[str, tuple[tuple[float, ...], float, float]] = {}
        self._curves: dict[str, Any] = {}
        self._dots: dict[str, Any] = {}
        self._x_range = (0.0, 1.0)
        self._y_range = (0.0, 1.0)
        self._log = False
        self._ticks: tuple[Any, ...] = ()
        self._pressed: QPoint | None = None
        self._band = QRubberBand(QRubberBand.Shape.Rectangle, self._view.viewport())
        self._cursor = _Cursor(self._view.viewport())
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._view)
        self._view.viewport().installEventFilter(self)
        self._view.viewport().setMouseTracking(True)
        self._view.viewport().setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self._theme = theme
        self.set_theme(theme)

    def _add_curve(self, depth: float, connect: str = "all") -> Any:
        curve = pg.PlotCurveItem(skipFiniteCheck=True, connect=connect)
        curve.setZValue(depth)
        self._box.addItem(curve, ignoreBounds=True)
        return curve

    # ---- drawing ----

    def set_theme(self, theme: Colours) -> None:
        """Recolour everything but the lines, which bring their colour."""
        self._theme = theme
        self._view.setBackground(theme.surface)
        for axis in (self._left, self._bottom):
            axis.setPen(pg.mkPen(theme.border))
            axis.setTextPen(pg.mkPen(theme.muted))
            axis.setStyle(tickFont=font("small"))
        self._grid.setPen(pg.mkPen(theme.raised, width=1))
        self._marks["checkpoints"].setPen(pg.mkPen(theme.good, width=1))
        self._marks["resumes"].setPen(pg.mkPen(theme.border_strong, width=1, dash=[4, 4]))
        self._marks["diverged"].setPen(pg.mkPen(theme.bad, width=1))
        self._cursor.ink = QColor(theme.border_strong)
        self._ticks = ()

    def columns(self) -> int:
        """Return how many pixels wide the lines' area is."""
        return max(16, int(self._box.width()))

    def draw(
        self,
        strokes: Sequence[Stroke],
        marks: MarkLines,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        *,
        log: bool = False,
        unit: str = "",
    ) -> None:
        """Show these lines in these ranges; with ``log`` the y values are log10 already. Ticks say ``bytes`` alone."""
        edge = EDGE_PIXELS / self.columns() * (x_range[1] - x_range[0])
        x_range = (x_range[0] - edge, x_range[1] + edge)  # points at the ends are drawn whole
        if (x_range, y_range, log) != (self._x_range, self._y_range, self._log):
            self._x_range, self._y_range, self._log = x_range, y_range, log
            self._box.setRange(xRange=x_range, yRange=y_range, padding=0, disableAutoRange=True)
        self._draw_ticks(unit)
        seen = set()
        for stroke in strokes:
            seen.add(stroke.key)
            self._draw_stroke(stroke)
        for key in set(self._curves) - seen:
            self._box.removeItem(self._curves.pop(key))
        for key in set(self._dots) - {one.key for one in strokes if len(one.x) <= DOTS_BELOW.get(one.dots, 0)}:
            self._box.removeItem(self._dots.pop(key))
        self._draw_marks(marks)

    def _draw_stroke(self, stroke: Stroke) -> None:
        curve = self._curves.get(stroke.key)
        if curve is None:
            curve = self._curves[stroke.key] = self._add_curve(stroke.depth)
        dashes = stroke.dashes if len(stroke.x) <= DASHES_BELOW else ()
        finite = bool(np.isfinite(stroke.y).all())
        curve.setZValue(stroke.depth)
        curve.setData(
            stroke.x,
            stroke.y,
            pen=_pen(stroke.colour, dashes),
            antialias=len(stroke.x) <= SMOOTH_BELOW,
            connect="all" if finite else "finite",
            skipFiniteCheck=finite,
        )
        if len(stroke.x) <= DOTS_BELOW.get(stroke.dots, 0):
            dots = self._dots.get(stroke.key)
            if dots is None:
                dots = self._dots[stroke.key] = pg.ScatterPlotItem(size=5, pxMode=True)
                self._box.addItem(dots, ignoreBounds=True)
            dots.setZValue(stroke.depth)
            keep = np.isfinite(stroke.y)
            dots.setData(
                stroke.x[keep],
                stroke.y[keep],
                symbol=stroke.dots,
                pen=pg.mkPen(stroke.colour),
                brush=pg.mkBrush(stroke.colour),
            )

    def _draw_ticks(self, unit: str) -> None:
        across = max(2, self.columns() // 56)
        down = max(2, int(self._box.height()) // 28)
        state = (self._x_range, self._y_range, self._log, across, down, unit)
        if state == self._ticks:
            return
        self._ticks = state
        if unit == "bytes":
            rows = byte_ticks(*self._y_range, down, log=self._log)
        else:
            rows = (log_ticks if self._log else ticks)(*self._y_range, down)
        metrics = QFontMetrics(font("small"))
        self._left.setWidth(max([AXIS_WIDTH, *(metrics.horizontalAdvance(text) + 2 * S for _, text in rows)]))
        self._left.setTicks([rows])
        self._bottom.setTicks([[one for one in ticks(*self._x_range, across, whole=True) if one[0] >= 0]])
        self._grid.setData(
            np.tile(np.array(self._x_range, dtype=float), len(rows)),
            np.repeat(np.array([value for value, _ in rows], dtype=float), 2),
        )

    def _draw_marks(self, marks: MarkLines) -> None:
        low, high = self._y_range
        short = low + 0.04 * (high - low)
        for kind, top in (("checkpoints", short), ("resumes", high), ("diverged", high)):
            steps = tuple(getattr(marks, kind))
            curve = self._marks[kind]
            if self._marked.get(kind) == (steps, low, top):
                continue
            self._marked[kind] = (steps, low, top)
            curve.setVisible(bool(steps))
            if steps:
                curve.setData(np.repeat(np.array(steps), 2), np.tile(np.array((low, top)), len(steps)))

    # ---- the cursor ----

    def set_cursor(self, x: float | None, points: Sequence[tuple[float, str]] = ()) -> None:
        """Show the linked cursor at a step, with a dot on each (y, colour); y as drawn."""
        area = self._area()
        if x is None or not self._x_range[0] <= x <= self._x_range[1]:
            self._cursor.show_at(None, area, [])
            return
        at = [(self._y_pixel(y, area), colour) for y, colour in points if math.isfinite(y)]
        self._cursor.show_at(self._x_pixel(x, area), area, at)

    def _area(self) -> QRectF:
        rect = self._box.sceneBoundingRect()
        return QRectF(rect)

    def _x_pixel(self, x: float, area: QRectF) -> float:
        low, high = self._x_range
        return area.left() + (x - low) / (high - low) * area.width()

    def _y_pixel(self, y: float, area: QRectF) -> float:
        low, high = self._y_range
        return area.bottom() - (y - low) / (high - low) * area.height()

    def _x_at(self, pixel: float) -> float:
        area = self._area()
        low, high = self._x_range
        return low + (pixel - area.left()) / max(1.0, area.width()) * (high - low)

    # ---- the mouse ----

    def eventFilter(self, _watched: QObject, event: QEvent) -> bool:
        """Read the mouse from the viewport: point, click, drag to zoom, double click to fit, Ctrl+wheel."""
        kind = event.type()
        if kind == QEvent.Type.Resize:
            self._cursor.setGeometry(self._view.viewport().rect())
            return False
        if isinstance(event, QWheelEvent):
            return self._on_wheel(event)
        if kind == QEvent.Type.Leave:
            self.hovered.emit(None)
            return False
        if not isinstance(event, QMouseEvent):
            return False
        at = event.position().toPoint()
        if kind == QEvent.Type.MouseMove:
            self._on_move(at)
        elif kind == QEvent.Type.MouseButtonPress and event.button() == Qt.MouseButton.LeftButton:
            self._pressed = at
        elif kind == QEvent.Type.MouseButtonRelease and event.button() == Qt.MouseButton.LeftButton:
            self._on_release(at)
        elif kind == QEvent.Type.MouseButtonDblClick:
            self._pressed = None
            self.fitted.emit()
        else:
            return False
        return True

    def _on_move(self, at: QPoint) -> None:
        if self._pressed is not None and abs(at.x() - self._pressed.x()) >= _DRAG_PIXELS:
            area = self._area().toRect()
            band = QRect(QPoint(self._pressed.x(), area.top()), QPoint(at.x(), area.bottom())).normalized()
            self._band.setGeometry(band.intersected(area))
            self._band.show()
        inside = self._area().contains(QPointF(at))
        self.hovered.emit(self._x_at(at.x()) if inside else None)

    def _on_release(self, at: QPoint) -> None:
        pressed, self._pressed = self._pressed, None
        self._band.hide()
        if pressed is None:
            return
        if abs(at.x() - pressed.x()) < _DRAG_PIXELS:
            self.clicked.emit(self._x_at(at.x()))
            return
        ends = sorted((self._x_at(pressed.x()), self._x_at(at.x())))
        low, high = max(ends[0], self._x_range[0]), min(ends[1], self._x_range[1])
        if high > low:
            self.zoomed.emit(low, high)

    def _on_wheel(self, event: QWheelEvent) -> bool:
        if not event.modifiers() & Qt.KeyboardModifier.ControlModifier:
            event.ignore()
            return True  # the page scrolls, not the plot
        factor = 0.8 if event.angleDelta().y() > 0 else 1.25
        centre = self._x_at(event.position().x())
        low, high = self._x_range
        self.zoomed.emit(centre - (centre - low) * factor, centre + (high - centre) * factor)
        event.accept()
        return True


class _Cursor(QWidget):
    """A vertical line and dots above a plot; repaints only the strips that it leaves and enters."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self.ink = QColor("#888888")
        self._x: float | None = None
        self._area = QRectF()
        self._points: list[tuple[float, str]] = []

    def show_at(self, x: float | None, area: QRectF, points: list[tuple[float, str]]) -> None:
        """Move to a pixel column; None hides the cursor."""
        if x is None and self._x is None:
            return
        for column in (self._x, x):
            if column is not None:
                self.update(QRect(int(column) - S // 2, 0, S + 1, self.height()))
        self._x, self._area, self._points = x, area, points

    def paintEvent(self, _event: QPaintEvent) -> None:
        if self._x is None:
            return
        painter = QPainter(self)
        painter.setPen(QPen(self.ink, 1))
        x = round(self._x)
        painter.drawLine(x, round(self._area.top()), x, round(self._area.bottom()))
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        for y, colour in self._points:
            if self._area.top() - 1 <= y <= self._area.bottom() + 1:
                painter.setBrush(QColor(colour))
                painter.drawEllipse(QPointF(x, y), 3, 3)
