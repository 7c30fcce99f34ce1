"""The runs of a project as a list: what is at work or waits first, then history, newest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QAbstractListModel, QModelIndex, QObject, QPersistentModelIndex, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QPainter
from PySide6.QtWidgets import QListView, QStyle, QStyledItemDelegate, QStyleOptionViewItem, QWidget

from ui.method_cards import method_title
from ui.numbers import short
from ui.theme import XS, M, S, colours, font
from ui.times import ago
from ui.widgets import safe_tip, visible
from ui.words import STATE_TONES
from workbench.project import Project
from workbench.protocol import Metrics
from workbench.records import Method, RunRecord, step_word
from workbench.run_folder import EventTail, RunFolder, RunStatus

Index = QModelIndex | QPersistentModelIndex
_NONE = QModelIndex()
_TAIL_BYTES = 64 * 1024
HEADLINES: dict[Method, tuple[tuple[str, str], ...]] = {
    "sft": (("eval_loss", "held-out loss"), ("loss", "loss")),
    "reward": (("eval_accuracy", "held-out accuracy"), ("accuracy", "accuracy")),
    "dpo": (("eval_rewards/accuracies", "held-out accuracy"), ("rewards/accuracies", "accuracy"), ("loss", "loss")),
    "kto": (("eval_rewards/margins", "held-out margin"), ("rewards/margins", "margin"), ("loss", "loss")),
    "ppo": (("objective/scores", "score"),),
}
"""The one number of each method, the first that the run has logged."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as the list shows it."""

    record: RunRecord
    status: RunStatus
    headline: str = ""

    @property
    def alive(self) -> bool:
        """Whether it is at work or waits."""
        return self.status.alive

    @property
    def words(self) -> str:
        """Say the run in one line for a reader."""
        parts = [
            self.record.name,
            method_title(self.record.method),
            self.status.state,
            self.progress_words,
            self.headline,
        ]
        return ", ".join(part for part in parts if part)

    @property
    def progress_words(self) -> str:
        """Say how far it is."""
        if self.status.state == "queued":
            return self.status.detail or "waiting"
        unit = step_word(self.record.method)
        if self.status.total_steps:
            return f"{unit} {self.status.step} of {self.status.total_steps}"
        return f"{unit} {self.status.step}" if self.status.step else ""


def read_rows(project: Project, known: dict[str, RunRow]) -> list[RunRow]:
    """Read all runs; ended ones that are ``known`` already are not read again. Off the window's thread."""
    rows = []
    for record in project.store.runs():
        before = known.get(record.id)
        if before is not None and not before.alive and before.record == record:
            rows.append(before)
            continue
        folder = RunFolder(project.run_dir(record.id))
        try:
            status = folder.state()
            headline = last_headline(folder, record.method)
        except OSError:
            status, headline = RunStatus(record.state, detail=record.detail), ""
        rows.append(RunRow(record, status, headline))
    rows.sort(key=lambda one: (one.record.created_at, one.record.id), reverse=True)
    waiting = sorted(
        (one for one in rows if one.alive), key=lambda one: (one.status.state == "queued", one.record.created_at)
    )
    return waiting + [one for one in rows if not one.alive]


def last_headline(folder: RunFolder, method: Method) -> str:
    """Return the newest of the method's main number: 'score 1.24'."""
    try:
        size = folder.events_path.stat().st_size
    except OSError:
        return ""
    found: dict[str, float] = {}
    for event in EventTail(folder.events_path, max(0, size - _TAIL_BYTES)).read_new():
        if isinstance(event, Metrics):
            found.update(event.values)
    return next((f"{name} {short(found[key])}" for key, name in HEADLINES[method] if key in found), "")


class RunsModel(QAbstractListModel):
    """The rows; the user role is the :class:`RunRow`."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.rows: list[RunRow] = []

    def set_rows(self, rows: Sequence[RunRow]) -> None:
        """Show other rows; the same runs in the same order keep their selection."""
        if [one.record.id for one in rows] == [one.record.id for one in self.rows]:
            for line, row in enumerate(rows):
                self.set_row(line, row)
            return
        self.beginResetModel()
        self.rows = list(rows)
        self.endResetModel()

    def set_row(self, line: int, row: RunRow) -> None:
        """Replace one row."""
        if self.rows[line] != row:
            self.rows[line] = row
            self.dataChanged.emit(self.index(line), self.index(line))

    def line_of(self, run_id: str) -> int:
        """Return a run's line, or -1."""
        return next((line for line, one in enumerate(self.rows) if one.record.id == run_id), -1)

    def rowCount(self, parent: Index = _NONE) -> int:
        """Return the number of runs."""
        return 0 if parent.isValid() else len(self.rows)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return a run."""
        if not 0 <= index.row() < len(self.rows):
            return None
        row = self.rows[index.row()]
        if role == Qt.ItemDataRole.UserRole:
            return row
        if role == Qt.ItemDataRole.DisplayRole:
            return row.record.name
        if role == Qt.ItemDataRole.AccessibleTextRole:
            return row.words
        if role == Qt.ItemDataRole.ToolTipRole:
            return safe_tip(f"{row.words}\n{row.record.detail}".strip())
        return None


class RunDelegate(QStyledItemDelegate):
    """Draws a run: name and state, then method and main number, then progress while it is at work."""

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:
        """Return two lines' height, three while the run is at work."""
        row = index.data(Qt.ItemDataRole.UserRole)
        lines = option.fontMetrics.height() * 2 + XS
        return QSize(200, lines + 2 * S + (S + XS if isinstance(row, RunRow) and row.alive else 0))

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        """Draw a row."""
        row = index.data(Qt.ItemDataRole.UserRole)
        if not isinstance(row, RunRow):
            return
        widget = option.widget
        theme = colours(widget)
        area = option.rect
        state = option.state
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        if state & QStyle.StateFlag.State_Selected:
            painter.fillRect(area, QColor(theme.accent_soft))
            painter.fillRect(area.left(), area.top(), 3, area.height(), QColor(theme.accent))
        elif state & QStyle.StateFlag.State_MouseOver:
            painter.fillRect(area, QColor(theme.raised))
        inner = area.adjusted(M, S, -M, -S)
        line = option.fontMetrics.height()
        ink, ground = theme.tone(STATE_TONES[row.status.state])
        painter.setFont(font("small"))
        pill_width = painter.fontMetrics().horizontalAdvance(row.status.state) + 2 * S
        pill = QRectF(inner.right() - pill_width, inner.top(), pill_width, line)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(ground))
        painter.drawRoundedRect(pill, line / 2, line / 2)
        painter.setPen(QColor(ink))
        painter.drawText(pill, int(Qt.AlignmentFlag.AlignCenter), row.status.state)
        flags = int(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        painter.setPen(QColor(theme.text))
        painter.setFont(font("strong"))
        room = int(pill.left() - inner.left() - S)
        name = painter.fontMetrics().elidedText(visible(row.record.name), Qt.TextElideMode.ElideRight, room)
        painter.drawText(inner.left(), inner.top(), room, line, flags, name)
        self._second_line(painter, row, inner.left(), inner.top() + line + XS, inner.width(), line, theme.muted)
        if row.alive:
            bar = QRectF(inner.left(), inner.bottom() - XS + 1, inner.width(), XS)
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(QColor(theme.border))
            painter.drawRoundedRect(bar, 2, 2)
            if row.status.total_steps:
                bar.setWidth(bar.width() * min(1.0, row.status.step / row.status.total_steps))
                painter.setBrush(QColor(theme.accent_fill))
                painter.drawRoundedRect(bar, 2, 2)
        if state & QStyle.StateFlag.State_HasFocus:
            painter.setPen(QColor(theme.accent))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRoundedRect(QRectF(area).adjusted(1.5, 1.5, -1.5, -1.5), 4, 4)
        painter.restore()

    def _second_line(
        self, painter: QPainter, row: RunRow, left: int, top: int, width: int, height: int, ink: str
    ) -> None:
        painter.setFont(font("small"))
        painter.setPen(QColor(ink))
        metrics = painter.fontMetrics()
        right = row.progress_words if row.alive else ago(row.record.ended_at or row.record.created_at)
        right = metrics.elidedText(right, Qt.TextElideMode.ElideRight, width * 3 // 4)
        room = metrics.horizontalAdvance(right)
        words = " · ".join(part for part in (method_title(row.record.method), row.headline) if part)
        fitted = metrics.elidedText(words, Qt.TextElideMode.ElideRight, max(0, width - room - S))
        middle = int(Qt.AlignmentFlag.AlignVCenter)
        painter.drawText(left, top, width, height, int(Qt.AlignmentFlag.AlignLeft) | middle, fitted)
        painter.drawText(left, top, width, height, int(Qt.AlignmentFlag.AlignRight) | middle, right)


class RunsListView(QListView):
    """The list itself, with the delegate."""

    def __init__(self, model: RunsModel, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("runs-list")
        self.setAccessibleName("Runs")
        self.setModel(model)
        self.setItemDelegate(RunDelegate(self))
        self.setMouseTracking(True)
        self.setVerticalScrollMode(QListView.ScrollMode.ScrollPerPixel)
        self.setUniformItemSizes(False)
        self.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
