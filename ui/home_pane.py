"""Home: the pipeline as a map, the one next thing worth doing, and what happened last."""

from __future__ import annotations

from dataclasses import dataclass

from PySide6.QtCore import QRectF, QSize, Qt, QTimer
from PySide6.QtGui import QColor, QPainter, QPaintEvent
from PySide6.QtWidgets import QAbstractButton, QFrame, QHBoxLayout, QScrollArea, QSizePolicy, QVBoxLayout, QWidget

from ui.context import Context
from ui.operations import run_task
from ui.pipeline import NextStep, Stage, next_step, stages
from ui.pipeline_map import PipelineMap
from ui.theme import RADIUS, XS, L, M, S, colours
from ui.times import ago
from ui.widgets import Card, ElidedLabel, PageHeader, Pill, SectionTitle, Text, button, column, plural, row
from ui.words import STATE_TONES, judges_by_thumbs, thumbs_said
from workbench.journal import JournalEntry
from workbench.records import Change, Counts, ModelRecord, RunRecord, RunState

SHOWN_ACTS, SHOWN_RUNS = 5, 5
MAX_WIDTH = 1440


@dataclass(frozen=True, slots=True)
class Read:
    """All that Home shows, read in one go."""

    counts: Counts
    models: list[ModelRecord]
    runs: list[RunRecord]
    acts: list[JournalEntry]


class NextCard(QFrame):
    """The next thing worth doing: what, why, and the button that leads there."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("next-step")
        self._progress = -1.0
        self.label = Text("Next", "small", "accent")
        self.title = Text("", "title", wrap=True)
        self.why = Text("", "body", "muted", wrap=True)
        self.go = button("", kind="primary", name="next-go")
        words = column(self.label, self.title, self.why, spacing=XS)
        box = row(spacing=L, margins=(L, M, L, M))
        box.addLayout(words, 1)
        box.addWidget(self.go, 0, Qt.AlignmentFlag.AlignVCenter)
        self.setLayout(box)
        self.go.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Maximum)

    def show_step(self, step: NextStep) -> None:
        """Show a step."""
        self.title.setText(step.title)
        self.why.setText(step.why)
        self.go.setText(step.action)
        self.go.setAccessibleName(f"{step.action}: {step.title}")
        self._progress = step.progress
        self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw the ground, and how far it is."""
        theme = colours()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(theme.accent_soft))
        area = QRectF(self.rect())
        painter.drawRoundedRect(area, RADIUS + 2, RADIUS + 2)
        if self._progress >= 0:
            line = QRectF(area.left() + L, area.bottom() - 6, area.width() - 2 * L, 3)
            painter.setBrush(QColor(theme.border))
            painter.drawRoundedRect(line, 1.5, 1.5)
            line.setWidth(line.width() * min(1.0, self._progress))
            painter.setBrush(QColor(theme.accent))
            painter.drawRoundedRect(line, 1.5, 1.5)


class HomePane(QWidget):
    """The first thing that is seen of a project."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.setObjectName("home-pane")
        self.setAccessibleName("Home")
        self._context = context
        self._stages: dict[str, Stage] = {}
        self._step: NextStep | None = None
        self._read_open = False
        self._stale = True
        self.header = PageHeader(context.project.name, " ")
        self.header.add_action(button("Import labels…", lambda: context.navigate("import"), name="home-import"))
        self.next = NextCard()
        self.next.go.clicked.connect(lambda _checked=False: self._on_go())
        self.map = PipelineMap()
        self.map.stage_chosen.connect(self._on_stage)
        self._acts = _Lines("Recent work", "Nothing has been done here yet.")
        self._runs = _Lines("Runs", "No run yet: training starts from the Train page.")
        lower = row(self._acts, self._runs, spacing=M)
        inner = QWidget()
        inner.setLayout(
            column(
                self.header,
                self.next,
                XS,
                SectionTitle("Pipeline"),
                self.map,
                XS,
                lower,
                None,
                spacing=M,
                margins=(L, L, L, L),
            )
        )
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        scroll.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        inner.setMaximumWidth(MAX_WIDTH)
        whole = QWidget()
        across = row(spacing=0)
        across.addStretch(0)
        across.addWidget(inner, 1)
        across.addStretch(0)
        whole.setLayout(across)
        scroll.setWidget(whole)
        outer = column(scroll, spacing=0)
        self.setLayout(outer)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(50)
        self._timer.timeout.connect(self._read)
        context.changed.connect(self._on_changed)
        self._read()

    def activate(self) -> None:
        """Read anew what may have changed while another pane was shown."""
        if self._stale:
            self._read()

    def _on_changed(self, _change: Change) -> None:
        self._stale = True
        if self.isVisible() and not self._timer.isActive():
            self._timer.start()

    def _read(self) -> None:
        if self._read_open:
            return
        self._read_open, self._stale = True, False
        store, rater_id = self._context.store, self._context.rater.id
        run_task(
            lambda: Read(store.counts(rater_id), store.models(), store.runs(), store.journal(SHOWN_ACTS)),
            self._on_read,
            self._on_read_failed,
            owner=self,
        )

    def _on_read_failed(self, error: BaseException) -> None:
        self._read_open = False
        self._context.show_error(error)

    def _on_read(self, read: Read) -> None:
        self._read_open = False
        counts = read.counts
        self._step = next_step(counts, read.models, read.runs)
        self._stages = stages(counts, read.models, read.runs)
        held = f" ({counts.prompts_held_out:,} held out)" if counts.prompts_held_out else ""
        known = (
            plural(counts.prompts, "prompt") + held,
            plural(counts.demonstrations_final, "demonstration"),
            plural(counts.rankings, "ranking"),
            thumbs_said(counts) if judges_by_thumbs(counts) else "",
            plural(len(read.models), "model"),
        )
        self.header.set_subtitle("  ·  ".join(one for one in known if one))
        self.next.show_step(self._step)
        self.map.set_stages(self._stages, self._step.stage)
        self._acts.clear()
        for act in read.acts:
            line = QWidget()
            line.setLayout(_line(act.label or act.act.replace("_", " "), ago(act.at)))
            self._acts.add(line)
        self._runs.clear()
        for run in reversed(read.runs[-SHOWN_RUNS:]):
            shown = _RunLine(run.name, run.state, ago(run.ended_at or run.created_at))
            shown.clicked.connect(lambda _checked=False, one=run.id: self._context.navigate("runs", run_id=one))
            self._runs.add(shown)
        if self._stale:
            self._timer.start()

    def _on_go(self) -> None:
        if self._step is not None:
            self._context.navigate(self._step.pane, **dict(self._step.what))

    def _on_stage(self, key: str) -> None:
        stage = self._stages[key]
        self._context.navigate(stage.pane, **dict(stage.what))


class _RunLine(QAbstractButton):
    """One run: a click leads to it."""

    def __init__(self, name: str, state: RunState, when: str) -> None:
        super().__init__()
        self.setAccessibleName(f"{name}, {state}, {when}")
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setAttribute(Qt.WidgetAttribute.WA_Hover)
        self.setLayout(_line(name, when, Pill(state, STATE_TONES[state])))
        for part in self.findChildren(QWidget):
            part.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)

    def sizeHint(self) -> QSize:
        """Be as tall as its words."""
        layout = self.layout()
        return layout.sizeHint() if layout is not None else super().sizeHint()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw a ground under the pointer and a ring in focus."""
        theme = colours()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QColor(theme.accent) if self.hasFocus() else Qt.PenStyle.NoPen)
        painter.setBrush(QColor(theme.raised) if self.underMouse() else Qt.BrushStyle.NoBrush)
        painter.drawRoundedRect(QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5), RADIUS, RADIUS)


def _line(text: str, when: str, *parts: QWidget) -> QHBoxLayout:
    box = row(spacing=S, margins=(S, 5, S, 5))
    box.addWidget(ElidedLabel(text), 1)
    for part in (*parts, Text(when, "small", "muted")):
        box.addWidget(part)
    return box


class _Lines(Card):
    def __init__(self, title: str, empty: str) -> None:
        super().__init__(title)
        self._lines = QVBoxLayout()
        self._lines.setSpacing(0)
        self._empty = Text(empty, "body", "muted", wrap=True)
        self.body.addWidget(self._empty)
        self.body.addLayout(self._lines)
        self.body.addStretch(1)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)

    def clear(self) -> None:
        while (item := self._lines.takeAt(0)) is not None:
            inner = item.widget()
            if inner is not None:
                inner.hide()
                inner.deleteLater()
        self._empty.show()

    def add(self, line: QWidget) -> None:
        self._lines.addWidget(line)
        self._empty.hide()
