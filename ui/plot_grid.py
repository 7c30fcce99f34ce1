"""All plots of a run on one page, linked: the same steps, the same cursor, one smoothing, one scale."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import QPoint, QRect, Qt, QTimer, Signal, SignalInstance
from PySide6.QtGui import QShowEvent
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QGridLayout,
    QMenu,
    QPushButton,
    QScrollArea,
    QSlider,
    QVBoxLayout,
    QWidget,
)

from ui.operations import run_task
from ui.plot_export import columns_of, save_csv, save_png, save_svg
from ui.plot_link import PlotLink
from ui.plot_table import PlotTable, PlotTableDialog
from ui.plots import CARD_WIDTH, MetricPlot
from ui.run_history import RunHistory
from ui.theme import M, S
from ui.widgets import SectionTitle, Text, button, row, safe_tip, visible
from workbench.errors import UserError
from workbench.metrics import Metric, plots_for
from workbench.records import Method, step_word

FRAME_MS = 100
"""New data are drawn ten times a second at most."""
HAND_MS = 33
"""While the hand is on a plot it follows thirty times a second."""
MACHINERY = frozenset(
    {"Gradient norm", "Learning rate", "Epoch", "Episodes", "Tokens", "Throughput", "Throughput, samples", "Memory"}
    | {"KL coefficient", "EOS count", "Ratio variance"}
)
"""Plots about how training runs rather than what it learns: they come last, under their own heading."""
HINT = (
    "Click a point for the samples of its {step}. Drag to zoom, Ctrl and the wheel too; double click to fit. With the "
    "keyboard: arrows walk, plus and minus zoom, 0 fits, Enter opens the samples. A tick at the foot is a "
    "checkpoint, a dashed line across a resume, a red line a loss that was no number."
)
SHARES = (("Whole run", 1.0), ("Last quarter", 0.25), ("Last tenth", 0.1))


class PlotGrid(QWidget):
    """The plots of one run. Plots without data are hidden; those out of sight draw nothing.

    ``step_chosen(int)``: the researcher asked for the samples of a step. ``overlay_wanted(str)``: the id of a run to
    lay behind, or "". ``failed(object)``: an export could not be written; ``exported(str)``: it was.
    """

    step_chosen: SignalInstance = Signal(int)  # type: ignore[assignment]
    overlay_wanted: SignalInstance = Signal(str)  # type: ignore[assignment]
    exported: SignalInstance = Signal(str)  # type: ignore[assignment]
    failed: SignalInstance = Signal(object)  # type: ignore[assignment]

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.link = PlotLink(self)
        self.plots: list[MetricPlot] = []
        self._history = RunHistory()
        self._overlay: RunHistory | None = None
        self._choices: list[tuple[str, str]] = []
        self._name = "run"
        self._method: Method | None = None
        self._loading = False
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self._on_frame)
        self._text_age = 0
        self._make_toolbar()
        self._page = QWidget()
        self._grid = QGridLayout(self._page)
        self._grid.setContentsMargins(0, 0, S, M)
        self._grid.setSpacing(S)
        self._machinery = SectionTitle("Training machinery")
        self._hint = Text("", "small", "muted", wrap=True)
        self._empty = Text("", "body", "muted")
        self._empty.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self._scroll = QScrollArea()
        self._scroll.setWidgetResizable(True)
        self._scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._scroll.setWidget(self._page)
        self._scroll.setAccessibleName("Plots")
        self._scroll.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self._scroll.verticalScrollBar().valueChanged.connect(lambda _value: self._soon(HAND_MS))
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, S, 0, 0)
        layout.setSpacing(S)
        layout.addWidget(self._toolbar)
        layout.addWidget(self._empty, 1)
        layout.addWidget(self._scroll, 1)
        self._scroll.hide()
        self.link.range_changed.connect(lambda: self._soon(HAND_MS))
        self.link.options_changed.connect(lambda: self._soon(HAND_MS))
        self.link.cursor_moved.connect(self._on_cursor)
        self.link.step_chosen.connect(self.step_chosen)
        self._say_steps()

    def _make_toolbar(self) -> None:
        self._smooth = QSlider(Qt.Orientation.Horizontal)
        self._smooth.setObjectName("smoothing")
        self._smooth.setRange(0, 100)
        self._smooth.setFixedWidth(120)
        self._smooth.setAccessibleName("Smoothing")
        self._smooth.setToolTip(safe_tip("Exponential moving average; the raw line stays behind it"))
        self._smooth_value = Text("off", "small", "muted")
        self._smooth_value.setMinimumWidth(self._smooth_value.fontMetrics().horizontalAdvance("0.999"))
        self._smooth.valueChanged.connect(self._on_smooth)
        self.log = QCheckBox("Log scale")
        self.log.setObjectName("log-scale")
        self.log.setToolTip(safe_tip("Logarithmic values where all of a plot's values are positive"))
        self.log.toggled.connect(self.link.set_log)
        self.share = QComboBox()
        for name, _ in SHARES:
            self.share.addItem(name)
        self.share.activated.connect(lambda index: self.link.fit(SHARES[index][1]))
        self.fit = button("Fit", lambda: self.link.fit(), kind="quiet", tip="Show the whole range again (0)")
        self.fit.setEnabled(False)
        self.link.range_changed.connect(lambda: self.fit.setEnabled(not self.link.follow))
        self.overlay = QComboBox()
        self.overlay.setObjectName("overlay")
        self.overlay.setAccessibleName("Second run behind this one")
        self.overlay.setMinimumContentsLength(14)
        self.overlay.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.overlay.addItem("No second run", "")
        self.overlay.activated.connect(lambda _index: self.overlay_wanted.emit(str(self.overlay.currentData() or "")))
        self.save = QPushButton("Export")
        self.save.setObjectName("export-plots")
        menu = QMenu(self.save)
        for text, kind in (("All plots as PNG…", "png"), ("All plots as SVG…", "svg"), ("All numbers as CSV…", "csv")):
            menu.addAction(text).triggered.connect(lambda _checked=False, kind=kind: self._on_export(kind, None))
        self.save.setMenu(menu)
        label = Text("Smoothing", "small", "muted")
        label.setBuddy(self._smooth)
        self._toolbar = QWidget()
        self._toolbar.hide()
        line = row(
            label, self._smooth, self._smooth_value, S, self.log, None, self.share, self.fit, self.overlay, self.save
        )
        self._toolbar.setLayout(line)

    # ---- what is shown ----

    def set_run(self, method: Method, history: RunHistory, name: str = "run") -> None:
        """Show another run."""
        self._history, self._name = history, name
        self._overlay = None
        self.overlay.setCurrentIndex(0)
        self.link.x_range, self.link.first, self.link.last, self.link.follow = (0.0, 1.0), 0.0, 0.0, True
        self.link.set_cursor(None)
        if method != self._method:
            self._method = method
            self.link.step_word = step_word(method)
            self._say_steps()
            for plot in self.plots:
                self._grid.removeWidget(plot)
                plot.hide()
                plot.deleteLater()
            self.plots = [self._new_plot(title, metrics) for title, metrics in plots_for(method).items()]
        for plot in self.plots:
            plot.set_runs(history)
            plot.hide()
        self._scroll.verticalScrollBar().setValue(0)
        self.mark_dirty()

    def _say_steps(self) -> None:
        word = self.link.step_word
        self._empty.setText(f"Numbers appear here with the first {word}.")
        self._hint.setText(HINT.format(step=word))
        self.share.setAccessibleName(f"Range of {word}s")

    def _new_plot(self, title: str, metrics: Sequence[Metric]) -> MetricPlot:
        plot = MetricPlot(title, metrics, self.link, self._page)
        plot.menu_wanted.connect(self._on_menu)
        plot.hide()
        return plot

    def set_overlay(self, history: RunHistory | None, name: str = "") -> None:
        """Lay a second run behind, or take it away."""
        self._overlay = history
        for plot in self.plots:
            plot.set_runs(self._history, history, visible(name))
        self.mark_dirty()

    def set_overlay_choices(self, runs: Sequence[tuple[str, str]]) -> None:
        """Offer runs (id, name) to lay behind; keeps the choice where it is still there."""
        if list(runs) == self._choices:
            return  # told every second: the box may be open, under the hand
        self._choices = list(runs)
        chosen = str(self.overlay.currentData() or "")
        self.overlay.blockSignals(True)
        self.overlay.clear()
        self.overlay.addItem("No second run", "")
        for run_id, name in runs:
            self.overlay.addItem(f"Behind: {visible(name)}", run_id)
        self.overlay.setCurrentIndex(max(0, self.overlay.findData(chosen)))
        self.overlay.setEnabled(bool(runs))
        self.overlay.blockSignals(False)
        if chosen and not self.overlay.currentIndex():
            self.overlay_wanted.emit("")

    def mark_dirty(self, keys: set[str] | None = None) -> None:
        """Tell that lines have new points; they are drawn with the next frame if they are in sight."""
        for plot in self.plots:
            if keys is None or not keys.isdisjoint(plot.metric_keys()):
                plot.dirty = True
        self._text_age = max(self._text_age, 1)
        self._soon(FRAME_MS)

    # ---- frames ----

    def _soon(self, wait_ms: int) -> None:
        if not self.isVisible():
            return  # showEvent catches up
        if not self._timer.isActive() or self._timer.remainingTime() > wait_ms:
            self._timer.start(wait_ms)

    def _on_frame(self) -> None:
        self.draw_now()

    def draw_now(self) -> None:
        """Draw one frame: new cards, ranges, the lines that are in sight, and every card's text now and then."""
        last = self._history.last_step()
        first = min((float(line.x[0]) for line in self._history.lines.values() if len(line)), default=0.0)
        if self._overlay is not None:
            last = max(last, self._overlay.last_step())
        self.link.extend(min(first, 1.0), last)
        self._show_filled()
        seen = [plot for plot in self.plots if self._in_sight(plot)]
        unbuilt = [plot for plot in seen if not plot.built]
        if unbuilt and not self._ready():
            return
        if unbuilt:
            unbuilt[0].build()  # one a frame: making a plot takes longer than drawing it
        for plot in seen:
            plot.redraw()
        if self._text_age:
            self._text_age = 0
            for plot in self.plots:
                if plot.has_data():
                    plot.refresh_text()
        if len(unbuilt) > 1:
            self._soon(0)
        elif unbuilt:
            self._soon(HAND_MS)

    def _ready(self) -> bool:
        """Whether pyqtgraph is loaded; it is brought in on a worker thread, so that the window does not stop."""
        if hasattr(sys.modules.get("ui.plot_canvas"), "Canvas"):  # there, and not still being imported
            return True
        if not self._loading:
            self._loading = True
            run_task(_load_canvas, lambda _none: self._soon(0), owner=self)
        return False

    def _in_sight(self, plot: MetricPlot) -> bool:
        if not plot.isVisible():
            return False
        port = self._scroll.viewport()
        place = QRect(plot.mapTo(port, QPoint(0, 0)), plot.size())
        return place.intersects(port.rect())

    def _show_filled(self) -> None:
        filled = [plot for plot in self.plots if plot.has_data()]
        hidden = [plot for plot in filled if plot.isHidden()]
        gone = [plot for plot in self.plots if not plot.isHidden() and plot not in filled]
        if hidden or gone:
            for plot in gone:
                plot.hide()
            self._place()
        self._empty.setVisible(not filled)
        self._toolbar.setVisible(bool(filled))
        self._scroll.setVisible(bool(filled))

    def _columns(self) -> int:
        return max(1, (self.width() - 2 * S) // (CARD_WIDTH + S))

    def _place(self) -> None:
        """Lay the cards out in as many columns as fit, learning first, machinery after its heading."""
        columns = self._columns()
        for plot in self.plots:
            self._grid.removeWidget(plot)
        self._grid.removeWidget(self._machinery)
        self._grid.removeWidget(self._hint)
        for index in range(self._grid.columnCount()):
            self._grid.setColumnStretch(index, 1 if index < columns else 0)
        filled = [plot for plot in self.plots if plot.has_data()]
        at = 0
        for plot in (one for one in filled if one.title not in MACHINERY):
            self._grid.addWidget(plot, at // columns, at % columns)
            at += 1
        line = -(-at // columns)
        rest = [one for one in filled if one.title in MACHINERY]
        if rest:
            self._grid.addWidget(self._machinery, line, 0, 1, columns)
            for index, plot in enumerate(rest):
                self._grid.addWidget(plot, line + 1 + index // columns, index % columns)
        rows = line + (1 + -(-len(rest) // columns) if rest else 0)
        self._grid.addWidget(self._hint, rows, 0, 1, columns)
        self._hint.setVisible(bool(filled))
        self._machinery.setVisible(bool(rest))  # in the grid by now: without a parent it would be a window
        for plot in filled:
            plot.show()
        for index in range(columns):
            self._grid.setColumnStretch(index, 1)
        for index in range(self._grid.rowCount()):
            self._grid.setRowStretch(index, 0)
        self._grid.setRowStretch(self._grid.rowCount(), 1)

    def resizeEvent(self, event: object) -> None:
        """Reflow when another number of columns fits."""
        super().resizeEvent(event)  # type: ignore[arg-type]
        if self.plots and self._columns() != self._shown_columns():
            self._place()
        self._soon(HAND_MS)

    def _shown_columns(self) -> int:
        return sum(self._grid.columnStretch(index) > 0 for index in range(self._grid.columnCount()))

    def showEvent(self, event: QShowEvent) -> None:
        """Catch up with what came while the page was hidden."""
        super().showEvent(event)
        self._text_age = 1
        self._soon(0)

    # ---- controls ----

    def _on_smooth(self, value: int) -> None:
        weight = 0.0 if value == 0 else round(1 - 10 ** (-value / 100 * 2.5), 3)
        self._smooth_value.setText(f"{weight:.2f}" if 0 < weight < 0.985 else f"{weight:.3f}" if weight else "off")
        self.link.set_smoothing(weight)

    def _on_cursor(self) -> None:
        if self.link.cursor is None:
            self._text_age = 1
            self._soon(HAND_MS)

    # ---- export ----

    def _on_menu(self, plot: MetricPlot) -> None:
        menu = QMenu(self)
        menu.addAction("Show the numbers as a table").triggered.connect(lambda: self.show_table(plot))
        menu.addSeparator()
        for text, kind in (("Save as PNG…", "png"), ("Save as SVG…", "svg"), ("Save numbers as CSV…", "csv")):
            menu.addAction(text).triggered.connect(lambda _checked=False, kind=kind: self._on_export(kind, plot))
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        menu.popup(plot.menu_position())

    def show_table(self, plot: MetricPlot) -> None:
        """Open the numbers of a plot as a table."""
        PlotTableDialog(
            plot.title, plot.summary(), PlotTable(self._history, plot.looks, self.link.step_word), self
        ).open()

    def _on_export(self, kind: str, plot: MetricPlot | None) -> None:
        stem = "".join(
            c if c.isalnum() or c in "-_ " else "-" for c in f"{self._name} {plot.title if plot else 'plots'}"
        )
        path, _ = QFileDialog.getSaveFileName(self, "Save", f"{stem}.{kind}", f"{kind.upper()} (*.{kind})")
        if path:
            self.export(Path(path), kind, plot)

    def export(self, path: Path, kind: str, plot: MetricPlot | None = None) -> None:
        """Write one plot, or all that have data, as png, svg or csv; a long run's numbers on a worker thread."""
        chosen = [plot] if plot else [one for one in self.plots if one.has_data()]
        if kind == "csv":
            columns = columns_of(self._history, [key for one in chosen for key in one.metric_keys()])
            run_task(
                lambda: save_csv(columns, path),
                lambda _count: self.exported.emit(str(path)),
                self.failed.emit,
                owner=self,
            )
            return
        try:
            if not chosen:
                raise UserError(
                    "There is nothing to save yet",
                    "the run has logged no numbers",
                    f"wait for its first {self.link.step_word}",
                )
            else:
                for one in chosen:
                    one.build()
                    one.redraw()
                (save_png(chosen, path) if kind == "png" else save_svg(chosen, path, self._name))
        except UserError as error:
            self.failed.emit(error)
            return
        self.exported.emit(str(path))


def _load_canvas() -> None:
    import ui.plot_canvas  # noqa: F401
