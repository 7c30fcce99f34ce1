"""The queue of prompts: a list that reads a page at a time, so that 100,000 prompts open like a hundred."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PySide6.QtCore import (
    QAbstractListModel,
    QModelIndex,
    QObject,
    QPersistentModelIndex,
    QRect,
    QRectF,
    QSize,
    Qt,
    Signal,
    SignalInstance,
)
from PySide6.QtGui import QColor, QPainter, QTextLayout, QTextOption
from PySide6.QtWidgets import QStyle, QStyledItemDelegate, QStyleOptionViewItem

from ui.context import Context
from ui.operations import run_task
from ui.plain_text import starts_rtl
from ui.theme import S, colours, font
from workbench.records import Prompt, Split
from workbench.store_reads import Need

PAGE = 200
Index = QModelIndex | QPersistentModelIndex
ROW = Qt.ItemDataRole.UserRole
STATE_WORDS = {"": "no demonstration", "draft": "draft", "final": "final"}


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One line of the queue."""

    prompt: Prompt
    state: str = ""  # of its demonstration: "", "draft" or "final"


@dataclass(frozen=True, slots=True)
class PromptQuery:
    """What the queue shows."""

    search: str = ""
    tag: str = ""
    split: Split | None = None
    need: Need | None = None


class PromptListModel(QAbstractListModel):
    """Pages of prompts, read on a worker thread. ``loaded(int)`` tells how many lines there are after each page."""

    loaded: SignalInstance = Signal(int)  # type: ignore[assignment]

    def __init__(self, context: Context, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self._query = PromptQuery()
        self._rows: list[PromptRow] = []
        self._places: dict[str, int] = {}
        self._more = False
        self._loading = False
        self._asked = 0

    # ---- Qt -------------------------------------------------------------------------------------------------

    def rowCount(self, parent: Index | None = None) -> int:
        """Return how many lines are loaded."""
        return 0 if parent is not None and parent.isValid() else len(self._rows)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return the title, the words for a screen reader, or the whole row."""
        if not index.isValid() or not 0 <= index.row() < len(self._rows):
            return None
        row = self._rows[index.row()]
        if role == Qt.ItemDataRole.DisplayRole:
            return row.prompt.title[:300] or "(no user turn)"
        if role == ROW:
            return row
        if role == Qt.ItemDataRole.AccessibleTextRole:
            held = ", held-out" if row.prompt.split == "held-out" else ""
            return f"{row.prompt.title[:300]}, {STATE_WORDS[row.state]}{held}"
        return None

    def canFetchMore(self, parent: Index) -> bool:
        """Whether there are pages that were not read."""
        return not parent.isValid() and self._more and not self._loading

    def fetchMore(self, parent: Index) -> None:
        """Read the next page."""
        if self.canFetchMore(parent):
            self._read(len(self._rows), PAGE, self._append)

    # ---- what is shown --------------------------------------------------------------------------------------

    @property
    def query(self) -> PromptQuery:
        """What is shown."""
        return self._query

    @property
    def has_more(self) -> bool:
        """Whether there are pages that were not read."""
        return self._more

    def show(self, query: PromptQuery) -> None:
        """Show something else, from its start."""
        self._query = query
        self._read(0, PAGE, self._replace)

    def reload(self, reach: int = -1) -> None:
        """Read anew what is loaded, since the project has changed: at most five pages, and the line ``reach``."""
        self._read(0, max(PAGE, min(len(self._rows), 5 * PAGE), reach + 1), self._replace)

    def row_of(self, prompt_id: str) -> int:
        """Return the line of a prompt, -1 if it is not loaded."""
        return self._places.get(prompt_id, -1)

    def row(self, line: int) -> PromptRow | None:
        """Return a line."""
        return self._rows[line] if 0 <= line < len(self._rows) else None

    def set_state(self, prompt_id: str, state: str) -> None:
        """Show the new state of a prompt's demonstration; the line stays even where the filter no longer fits."""
        line = self.row_of(prompt_id)
        if line >= 0 and self._rows[line].state != state:
            self._rows[line] = replace(self._rows[line], state=state)
            self.dataChanged.emit(self.index(line), self.index(line))

    def next_open(self, after: int) -> int:
        """Return the first line after ``after`` without a final demonstration, from the top again; -1 for none."""
        count = len(self._rows)
        lines = ((after + step) % count for step in range(1, count))
        return next((line for line in lines if self._rows[line].state != "final"), -1) if count else -1

    # ---- reading --------------------------------------------------------------------------------------------

    def _read(self, offset: int, limit: int, then: Callable[[list[PromptRow]], None]) -> None:
        self._asked += 1
        self._loading = True
        asked, query, store = self._asked, self._query, self._context.store

        def work() -> list[PromptRow]:
            found = store.prompts(
                search=query.search,
                tag=query.tag,
                split=query.split,
                need=query.need,
                limit=limit + 1,  # one more than shown tells whether there is more
                offset=offset,
            )
            states = store.demonstration_states([one.id for one in found])
            return [PromptRow(one, states.get(one.id, "")) for one in found]

        def done(rows: list[PromptRow]) -> None:
            if asked == self._asked:  # else something else was asked for meanwhile
                self._more = len(rows) > limit
                then(rows[:limit])
                self._loading = False  # only now: views ask for more while the lines go in
                self.loaded.emit(len(self._rows))

        run_task(work, done, self._context.show_error, owner=self)

    def _replace(self, rows: Sequence[PromptRow]) -> None:
        self.beginResetModel()
        self._rows = list(rows)
        self._places = {one.prompt.id: line for line, one in enumerate(self._rows)}
        self.endResetModel()

    def _append(self, rows: Sequence[PromptRow]) -> None:
        if not rows:
            return
        first = len(self._rows)
        self.beginInsertRows(QModelIndex(), first, first + len(rows) - 1)
        self._rows += rows
        self._places |= {one.prompt.id: first + line for line, one in enumerate(rows)}
        self.endInsertRows()


class PromptDelegate(QStyledItemDelegate):
    """Draws a line: the state as a shape (so never by colour alone), two lines of the prompt, its tags."""

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        """Draw one prompt."""
        row: PromptRow | None = index.data(ROW)
        if row is None:
            return
        theme = colours(option.widget)
        rect: QRect = option.rect
        state = option.state
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        if state & QStyle.StateFlag.State_Selected:
            painter.fillRect(rect, QColor(theme.accent_soft))
            painter.fillRect(QRect(rect.left(), rect.top(), 3, rect.height()), QColor(theme.accent))
        elif state & QStyle.StateFlag.State_MouseOver:
            painter.fillRect(rect, QColor(theme.raised))
        _draw_state(painter, QRectF(rect.left() + 12, rect.top() + 13, 10, 10), row.state, theme)
        words = font("body")
        line = option.fontMetrics.lineSpacing()
        area = QRectF(rect.left() + 32, rect.top() + S, rect.width() - 40, 2 * line + 2)
        painter.setFont(words)
        painter.setPen(QColor(theme.text))
        _draw_lines(painter, area, row.prompt.title[:300] or "(no user turn)", 2)
        small = font("small")
        painter.setFont(small)
        painter.setPen(QColor(theme.muted))
        held = ["held-out"] if row.prompt.split == "held-out" else []
        below = QRectF(area.left(), area.bottom() + 1, area.width(), line)
        text = " · ".join([*held, *row.prompt.tags]) or STATE_WORDS[row.state]
        painter.drawText(below, int(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter), text)
        painter.fillRect(QRect(rect.left(), rect.bottom(), rect.width(), 1), QColor(theme.border))
        painter.restore()

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:  # noqa: ARG002
        """Three lines and air."""
        return QSize(200, 3 * option.fontMetrics.lineSpacing() + 2 * S + 4)


def _draw_lines(painter: QPainter, area: QRectF, text: str, most: int) -> None:
    """Draw at most so many lines; the last one is shortened where there is more."""
    layout = QTextLayout(text, painter.font())
    option = QTextOption()
    option.setWrapMode(QTextOption.WrapMode.WrapAtWordBoundaryOrAnywhere)
    if starts_rtl(text):
        option.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignAbsolute)
        painter.setLayoutDirection(Qt.LayoutDirection.RightToLeft)
    layout.setTextOption(option)
    layout.beginLayout()
    metrics = painter.fontMetrics()
    top = area.top()
    for number in range(most):
        line = layout.createLine()
        if not line.isValid():
            break
        line.setLineWidth(area.width())
        start, length = line.textStart(), line.textLength()
        last = number == most - 1 and start + length < len(text)
        words = (
            metrics.elidedText(text[start:], Qt.TextElideMode.ElideRight, int(area.width()))
            if last
            else text[start : start + length]
        )
        box = QRectF(area.left(), top, area.width(), metrics.lineSpacing())
        painter.drawText(box, int(option.alignment() | Qt.AlignmentFlag.AlignVCenter), words.rstrip())
        top += metrics.lineSpacing()
    layout.endLayout()
    painter.setLayoutDirection(Qt.LayoutDirection.LeftToRight)


def _draw_state(painter: QPainter, box: QRectF, state: str, theme: Any) -> None:
    """An open ring: nothing yet; a half: a draft; a full disc: final."""
    ink = QColor({"final": theme.good, "draft": theme.warn}.get(state, theme.border_strong))
    painter.setPen(ink)
    painter.setBrush(ink if state == "final" else Qt.BrushStyle.NoBrush)
    painter.drawEllipse(box)
    if state == "draft":
        painter.setBrush(ink)
        painter.drawPie(box, 90 * 16, 180 * 16)
