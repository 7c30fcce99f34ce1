"""The plots of a run: one card for each plot, on a shared range of steps and with a shared cursor.

A card shows its title, its newest value, a key to its lines and the lines; the drawing itself is
:mod:`ui.plot_canvas`, loaded with the first card that is seen. Cards outside the visible part of the page draw nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PySide6.QtCore import QEvent, QPoint, QSize, Qt, Signal, SignalInstance
from PySide6.QtGui import QColor, QKeyEvent, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QFrame, QSizePolicy, QVBoxLayout, QWidget

from ui.numbers import short
from ui.plot_key import DOTTED, KeyEntry, LineKey, Look, blend, looks_of
from ui.plot_link import PlotLink, settled_range
from ui.pyramid import Array, Pyramid, Smoother
from ui.run_history import RunHistory, trend
from ui.theme import XS, Colours, M, S, colours
from ui.widgets import IconButton, Text, row, safe_tip
from workbench.metrics import Metric

if TYPE_CHECKING:
    from ui.plot_canvas import Canvas, MarkLines, Stroke

CARD_HEIGHT = 256
CARD_WIDTH = 336


class _Smoothed:
    """The moving average of one line, kept up with it."""

    def __init__(self) -> None:
        self._weight = -1.0
        self._line = Pyramid()
        self._smoother = Smoother(0.0)
        self._tail: tuple[int, float] = (0, 0.0)

    def of(self, raw: Pyramid, weight: float) -> Pyramid:
        """Return the average of ``raw``, computing only what is new."""
        if not weight:
            return raw
        done = len(self._line)
        if weight != self._weight or done > len(raw) or (done and self._tail != (done, float(raw.y[done - 1]))):
            self._weight, self._line, self._smoother, done = weight, Pyramid(), Smoother(weight), 0
        if done < len(raw):
            self._line.append(raw.x[done:], self._smoother.feed(raw.y[done:]))
            self._tail = (len(raw), float(raw.y[-1]))
        return self._line


class MetricPlot(QFrame):
    """One plot as a card. Focus it and use the arrow keys to walk through its points, Enter for their samples."""

    menu_wanted: SignalInstance = Signal(object)  # type: ignore[assignment]  # the plot itself

    def __init__(self, title: str, metrics: Sequence[Metric], link: PlotLink, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.title = title
        self.looks = looks_of(metrics)
        self.link = link
        self.history = RunHistory()
        self.overlay: RunHistory | None = None
        self.overlay_name = ""
        self.dirty = True
        self.is_log = False
        self._smoothed = {look.metric.key: _Smoothed() for look in self.looks}
        self._overlay_smoothed = {look.metric.key: _Smoothed() for look in self.looks}
        self._canvas: Canvas | None = None
        self._y_range = (0.0, 1.0)
        self.setProperty("card", "true")
        self.setObjectName(f"plot-{title}")
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setFixedHeight(CARD_HEIGHT)
        self.setMinimumWidth(CARD_WIDTH - M)
        self._title = Text(title, "strong")
        self._scale = Text("log", "small", "muted")
        self._scale.hide()
        self._value = Text("", "strong")
        self._unit = Text("", "small", "muted")
        self._menu_button = IconButton("more", f"Save or read the plot {title}", self._on_menu)
        self._menu_button.setIconSize(QSize(16, 16))
        self._menu_button.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self._key = LineKey()
        self._area = QWidget()
        self._area.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        QVBoxLayout(self._area).setContentsMargins(0, 0, 0, 0)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(M, S, S, XS)
        layout.setSpacing(XS)
        layout.addLayout(row(self._title, self._scale, None, self._value, self._unit, self._menu_button, spacing=XS))
        layout.addWidget(self._key)
        layout.addWidget(self._area, 1)
        self.setToolTip(safe_tip("\n".join(f"{one.metric.label}: {one.metric.formula}" for one in self.looks)))
        self.setAccessibleName(f"{title}, plot")
        link.range_changed.connect(self._mark)
        link.options_changed.connect(self._on_options)
        link.cursor_moved.connect(self._on_cursor)

    # ---- data ----

    def set_runs(self, history: RunHistory, overlay: RunHistory | None = None, overlay_name: str = "") -> None:
        """Show a run, and a second one behind it."""
        self.history, self.overlay, self.overlay_name = history, overlay, overlay_name
        self._smoothed = {key: _Smoothed() for key in self._smoothed}
        self._overlay_smoothed = {key: _Smoothed() for key in self._smoothed}
        self._y_range = (0.0, 1.0)
        self.dirty = True

    def has_data(self) -> bool:
        """Whether there is anything to draw."""
        return any(self.history.lines.get(look.metric.key) for look in self.looks)

    def metric_keys(self) -> list[str]:
        """Return the metric keys of this plot."""
        return [look.metric.key for look in self.looks]

    def summary(self) -> str:
        """Say the plot in a sentence: 'KL 0.031 nats, rising, step 420'."""
        parts: list[str] = []
        for look in self.looks:
            line = self.history.lines.get(look.metric.key)
            if not line:
                continue
            name = self.title if not parts else look.name
            value = short(float(line.y[-1]), look.metric.unit)
            parts.append(f"{name} {value}, {trend(line)}, {self.link.step_word} {int(line.x[-1])}")
        return "; ".join(parts) or f"{self.title}: nothing yet"

    def value_at(self, key: str, step: float | None) -> tuple[float, float] | None:
        """Return the (step, value) of a line nearest to a step, or its newest."""
        line = self.history.lines.get(key)
        if not line:
            return None
        return line.at(step) if step is not None else (float(line.x[-1]), float(line.y[-1]))

    # ---- drawing ----

    def build(self) -> None:
        """Make the drawing area, once; this is what loads pyqtgraph."""
        if self._canvas is not None:
            return
        from ui.plot_canvas import Canvas

        self._canvas = Canvas(colours(self), self._area)
        self._canvas.hovered.connect(self.link.set_cursor)
        self._canvas.clicked.connect(self._on_clicked)
        self._canvas.zoomed.connect(self.link.zoom)
        self._canvas.fitted.connect(self.link.fit)
        layout = self._area.layout()
        assert layout is not None
        layout.addWidget(self._canvas)
        self.dirty = True

    @property
    def built(self) -> bool:
        """Whether the drawing area is there."""
        return self._canvas is not None

    def redraw(self) -> None:
        """Draw what changed; does nothing before :meth:`build`."""
        if self._canvas is None or not self.dirty:
            return
        self.dirty = False
        theme = colours(self)
        columns = self._canvas.columns()
        strokes: list[Stroke] = []
        for look in self.looks:
            strokes += self._strokes(look, theme, columns)
        self.is_log = self.link.log and self._all_positive()
        self._scale.setVisible(self.is_log)
        if self.is_log:
            strokes = [_logged(one) for one in strokes]
        self._y_range = settled_range(self._y_range, _extent(strokes), log=self.is_log)
        unit = self.looks[0].metric.unit
        self._canvas.draw(strokes, self._mark_lines(), self.link.x_range, self._y_range, log=self.is_log, unit=unit)
        self._point()

    def _strokes(self, look: Look, theme: Colours, columns: int) -> list[Stroke]:
        from ui.plot_canvas import Stroke

        key, colour = look.metric.key, theme.series(look.index)
        low, high = self.link.x_range
        found = []
        raw = self.history.lines.get(key)
        smooth = self._weight(key, raw)
        if raw:
            if smooth:  # the raw line behind
                x, y = raw.view(low, high, columns)
                found.append(Stroke(f"{key} raw", x, y, blend(colour, theme.surface, 0.68), depth=1))
            x, y = self._smoothed[key].of(raw, smooth).view(low, high, columns)
            found.append(Stroke(key, x, y, colour, look.dashes, look.dots, depth=4 - look.index / 10))
        other = self.overlay.lines.get(key) if self.overlay else None
        if other:
            x, y = self._overlay_smoothed[key].of(other, self._weight(key, other)).view(low, high, columns)
            found.append(Stroke(f"{key} other", x, y, blend(colour, theme.surface, 0.35), DOTTED, depth=2))
        return found

    def _weight(self, key: str, line: Pyramid | None) -> float:
        """Held-out numbers are means over their whole set already, and rare: an average would only lag behind."""
        return self.link.smoothing if line is not None and not key.startswith("eval_") else 0.0

    def _all_positive(self) -> bool:
        lines = [self.history.lines.get(key) for key in self.metric_keys()]
        with np.errstate(invalid="ignore"):
            return all(not line or bool(np.nanmin(line.view(-np.inf, np.inf, 64)[1]) > 0) for line in lines)

    def _mark_lines(self) -> MarkLines:
        from ui.plot_canvas import MarkLines

        by_kind: dict[str, list[float]] = {"checkpoint": [], "resume": [], "diverged": []}
        for mark in self.history.marks:
            by_kind[mark.kind].append(float(mark.step))
        return MarkLines(by_kind["checkpoint"], by_kind["resume"], by_kind["diverged"])

    def refresh_text(self) -> None:
        """Bring value, key and the accessible summary up to the data (cheap; also for cards out of sight)."""
        step = self.link.cursor
        entries = []
        theme = colours(self)
        for look in self.looks:
            found = self.value_at(look.metric.key, step)
            if found is not None:
                text = short(found[1]) if look.metric.unit != "bytes" else short(found[1], "bytes")
                entries.append(KeyEntry(look.name, text, theme.series(look.index), look.dashes))
        if self.overlay is not None and any(self.overlay.lines.get(key) for key in self.metric_keys()):
            entries.append(KeyEntry(self.overlay_name, self._overlay_value(step), theme.muted, DOTTED))
        self._key.set_entries(entries if len(entries) > 1 else [])
        first = self.value_at(self.looks[0].metric.key, step) if len(self.looks) == 1 or entries else None
        self._value.setText(_value_text(first, self.looks[0].metric.unit))
        unit = self.looks[0].metric.unit
        at = f"at {self.link.step_word} {int(first[0])}" if first is not None and step is not None else ""
        self._unit.setText(" ".join(part for part in ("" if unit == "bytes" else unit, at) if part))
        if step is None:
            summary = self.summary()
            if summary != self.accessibleDescription():
                self.setAccessibleDescription(summary)

    def _overlay_value(self, step: float | None) -> str:
        assert self.overlay is not None
        line = self.overlay.lines.get(self.looks[0].metric.key)
        if not line:
            return ""
        found = line.at(step) if step is not None else (0.0, float(line.y[-1]))
        return _value_text(found, self.looks[0].metric.unit)

    # ---- what happens on it ----

    def _mark(self) -> None:
        self.dirty = True

    def _on_options(self) -> None:
        self._y_range = (0.0, 0.0)
        self.dirty = True

    def _on_cursor(self) -> None:
        if self.isVisible():
            self.refresh_text()
            self._point()

    def _point(self) -> None:
        """Bring the cursor's line and dots to where it is now."""
        if self._canvas is None:
            return
        step = self.link.cursor
        if step is None:
            self._canvas.set_cursor(None)
            return
        theme = colours(self)
        points = []
        for look in self.looks:
            line = self.history.lines.get(look.metric.key)
            if not line:
                continue
            key = look.metric.key
            found = self._smoothed[key].of(line, self._weight(key, line)).at(step)
            if found is not None and (not self.is_log or found[1] > 0):
                points.append((math.log10(found[1]) if self.is_log else found[1], theme.series(look.index)))
        self._canvas.set_cursor(self._nearest(step), points)

    def _nearest(self, step: float) -> float:
        found = self.value_at(self.looks[0].metric.key, step)
        return step if found is None else found[0]

    def _on_clicked(self, step: float) -> None:
        self.setFocus(Qt.FocusReason.MouseFocusReason)
        self.link.step_chosen.emit(round(self._nearest(step)))

    def _on_menu(self) -> None:
        self.menu_wanted.emit(self)

    def menu_position(self) -> QPoint:
        """Where the card's menu opens."""
        return self._menu_button.mapToGlobal(self._menu_button.rect().bottomLeft())

    def contextMenuEvent(self, _event: object) -> None:
        """Open the card's menu on a right click or the menu key."""
        self.menu_wanted.emit(self)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Walk with the arrows, zoom with + and -, fit with 0, open samples with Enter."""
        key = event.key()
        if key in (Qt.Key.Key_Left, Qt.Key.Key_Right):
            self._walk(1 if key == Qt.Key.Key_Right else -1)
        elif key in (Qt.Key.Key_Home, Qt.Key.Key_End):
            self.link.set_cursor(self.link.x_range[0] if key == Qt.Key.Key_Home else self.link.last)
        elif key in (Qt.Key.Key_Plus, Qt.Key.Key_Equal, Qt.Key.Key_Minus):
            low, high = self.link.x_range
            centre = self.link.cursor if self.link.cursor is not None else (low + high) / 2
            factor = 1.25 if key == Qt.Key.Key_Minus else 0.8
            self.link.zoom(centre - (centre - low) * factor, centre + (high - centre) * factor)
        elif key == Qt.Key.Key_0:
            self.link.fit()
        elif key in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and self.link.cursor is not None:
            self.link.step_chosen.emit(round(self._nearest(self.link.cursor)))
        elif key == Qt.Key.Key_Escape and self.link.cursor is not None:
            self.link.set_cursor(None)
        else:
            super().keyPressEvent(event)
            return
        event.accept()

    def _walk(self, direction: int) -> None:
        line = next((found for key in self.metric_keys() if (found := self.history.lines.get(key))), None)
        if line is None:
            return
        if self.link.cursor is None:
            self.link.set_cursor(float(line.x[-1]))
        else:
            side = "right" if direction > 0 else "left"
            index = int(np.searchsorted(line.x, self.link.cursor, side=side)) - (0 if direction > 0 else 1)  # type: ignore[call-overload]
            self.link.set_cursor(float(line.x[min(max(index, 0), len(line) - 1)]))
        self.setAccessibleDescription(self._spoken())

    def _spoken(self) -> str:
        parts = []
        for look in self.looks:
            found = self.value_at(look.metric.key, self.link.cursor)
            if found is not None:
                parts.append(f"{look.name} {short(found[1], look.metric.unit)}")
        step = 0 if self.link.cursor is None else int(self._nearest(self.link.cursor))
        return f"{self.link.step_word} {step}: " + ", ".join(parts)

    def focusOutEvent(self, event: object) -> None:
        """Take the cursor away with the focus."""
        super().focusOutEvent(event)  # type: ignore[arg-type]
        self.link.set_cursor(None)

    def resizeEvent(self, event: object) -> None:
        """Draw anew at the new width."""
        super().resizeEvent(event)  # type: ignore[arg-type]
        self.dirty = True

    def changeEvent(self, event: QEvent) -> None:
        """Recolour when the theme changes: pyqtgraph does not do it."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.PaletteChange, QEvent.Type.ApplicationFontChange):
            if self._canvas is not None:
                self._canvas.set_theme(colours(self))
            self.dirty = True

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draw the card, with a ring while it has the focus."""
        super().paintEvent(event)
        if self.hasFocus():
            painter = QPainter(self)
            painter.setRenderHint(QPainter.RenderHint.Antialiasing)
            painter.setPen(QPen(QColor(colours(self).accent), 2))
            painter.drawRoundedRect(self.rect().adjusted(1, 1, -1, -1), 8, 8)


def _logged(stroke: Stroke) -> Stroke:

    with np.errstate(divide="ignore", invalid="ignore"):
        return replace(stroke, y=np.where(stroke.y > 0, np.log10(stroke.y), np.nan))


def _extent(strokes: Sequence[Stroke]) -> tuple[float, float] | None:
    parts: list[Array] = [one.y[np.isfinite(one.y)] for one in strokes]
    parts = [one for one in parts if len(one)]
    return (min(float(one.min()) for one in parts), max(float(one.max()) for one in parts)) if parts else None


def _value_text(found: tuple[float, float] | None, unit: str) -> str:
    if found is None:
        return ""
    return short(found[1], "bytes" if unit == "bytes" else "")
