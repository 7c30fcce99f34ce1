"""The lineage as a tree: every model under the one that training started from, joined by painted lines."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QModelIndex, QPersistentModelIndex, QPointF, QRect, QRectF, QSize, Qt, Signal, SignalInstance
from PySide6.QtGui import QColor, QPainter, QPainterPath, QPen, QStandardItem, QStandardItemModel
from PySide6.QtWidgets import QAbstractItemView, QStyle, QStyledItemDelegate, QStyleOptionViewItem, QTreeView, QWidget

from ui.theme import RADIUS, XS, M, S, colours, font
from ui.times import ago
from ui.widgets import safe_tip, visible
from ui.words import ROLE_TONES
from workbench.records import ROLE_WORDS, ModelRecord

_ID = Qt.ItemDataRole.UserRole
_RECORD = Qt.ItemDataRole.UserRole + 1
_Index = QModelIndex | QPersistentModelIndex
INDENT = 24


class LineageTree(QTreeView):
    """All models as a tree; ``model_chosen(str)`` tells the id of the one that is current."""

    model_chosen: SignalInstance = Signal(str)  # type: ignore[assignment]

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("lineage")
        self.setAccessibleName("Models by lineage")
        self.setHeaderHidden(True)
        self.setStyleSheet("QTreeView { selection-background-color: transparent; }")  # the delegate draws its own
        self.setIndentation(INDENT)
        self.setRootIsDecorated(False)
        self.setItemsExpandable(False)
        self.setExpandsOnDoubleClick(False)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setUniformRowHeights(True)
        self._items = QStandardItemModel(self)
        self.setModel(self._items)
        self.setItemDelegate(_Row(self))
        self.selectionModel().currentChanged.connect(self._on_current)

    def set_models(self, models: Sequence[ModelRecord]) -> None:
        """Show models; the one that was chosen stays chosen while it is there."""
        keep = self.current_id()
        self.selectionModel().blockSignals(True)
        self._items.clear()
        made: dict[str, QStandardItem] = {}
        known = {one.id for one in models}
        for one in models:
            item = QStandardItem(one.name)
            item.setData(one.id, _ID)
            item.setData(one, _RECORD)
            item.setData(f"{one.name}, {ROLE_WORDS[one.role]}", Qt.ItemDataRole.AccessibleTextRole)
            item.setToolTip(safe_tip(f"{one.name}\n{one.source or one.run_id}"))
            made[one.id] = item
        for one in models:  # a parent that is not in the list leaves its children at the root
            origin = one.parent_id if one.parent_id in known else one.base_id
            parent = made.get(origin) if origin != one.id else None
            (parent or self._items.invisibleRootItem()).appendRow(made[one.id])
        self.expandAll()
        self.selectionModel().blockSignals(False)
        chosen = keep if keep in made else (models[-1].id if models else "")
        if chosen:
            self.choose(chosen)

    def choose(self, model_id: str) -> None:
        """Make a model the current one."""
        for index in self._all(QModelIndex()):
            if index.data(_ID) == model_id:
                self.setCurrentIndex(index)
                self.scrollTo(index)
                self.model_chosen.emit(model_id)
                return

    def current_id(self) -> str:
        """Return the current model's id, or ""."""
        return str(self.currentIndex().data(_ID) or "")

    def drawBranches(self, painter: QPainter, rect: QRect, index: _Index) -> None:
        """Draw the lines from parents to children."""
        theme = colours()
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(QColor(theme.border_strong), 1.5))
        start = self._items.index(index.row(), 0, index.parent())
        level, here = 0, start
        while here.parent().isValid():
            level, here = level + 1, here.parent()
        middle = rect.center().y() + 0.5
        here = start
        for column in range(level - 1, -1, -1):
            x = rect.left() + column * INDENT + INDENT / 2 + 2
            has_next = here.row() + 1 < self._items.rowCount(here.parent())
            if column == level - 1:
                path = QPainterPath(QPointF(x, rect.top()))
                path.lineTo(QPointF(x, middle - 6))
                path.quadTo(QPointF(x, middle), QPointF(x + 6, middle))
                path.lineTo(QPointF(x + INDENT / 2 - 1, middle))
                painter.drawPath(path)
                if has_next:
                    painter.drawLine(QPointF(x, middle - 6), QPointF(x, rect.bottom() + 1))
            elif has_next:
                painter.drawLine(QPointF(x, rect.top()), QPointF(x, rect.bottom() + 1))
            here = here.parent()
        painter.restore()

    def _all(self, parent: QModelIndex) -> list[QModelIndex]:
        found = []
        for at in range(self._items.rowCount(parent)):
            index = self._items.index(at, 0, parent)
            found += [index, *self._all(index)]
        return found

    def _on_current(self, current: QModelIndex) -> None:
        self.model_chosen.emit(str(current.data(_ID) or ""))


class _Row(QStyledItemDelegate):
    def sizeHint(self, option: QStyleOptionViewItem, _index: _Index) -> QSize:
        """Hold two lines."""
        return QSize(200, option.fontMetrics.height() * 2 + M)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: _Index) -> None:
        """Draw name, role and origin."""
        record = index.data(_RECORD)
        if not isinstance(record, ModelRecord):
            return
        theme = colours()
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        area = QRectF(option.rect).adjusted(2, 2, -2, -2)
        state = option.state
        if state & QStyle.StateFlag.State_Selected:
            painter.setPen(QColor(theme.accent) if state & QStyle.StateFlag.State_HasFocus else Qt.PenStyle.NoPen)
            painter.setBrush(QColor(theme.accent_soft))
            painter.drawRoundedRect(area, RADIUS, RADIUS)
        elif state & QStyle.StateFlag.State_MouseOver:
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(QColor(theme.raised))
            painter.drawRoundedRect(area, RADIUS, RADIUS)
        ink, ground = theme.tone(ROLE_TONES[record.role])
        painter.setFont(font("small"))
        word = ROLE_WORDS[record.role]
        width = painter.fontMetrics().horizontalAdvance(word) + M
        height = painter.fontMetrics().height() + 2
        pill = QRectF(area.right() - width - S, area.top() + XS + 2, width, height)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(ground))
        painter.drawRoundedRect(pill, height / 2, height / 2)
        painter.setPen(QColor(ink))
        painter.drawText(pill, Qt.AlignmentFlag.AlignCenter, word)
        room = round(pill.left() - area.left()) - M
        painter.setFont(font("strong"))
        metrics = painter.fontMetrics()
        painter.setPen(QColor(theme.text))
        y = round(area.top()) + XS + metrics.ascent()
        name = metrics.elidedText(visible(record.name), Qt.TextElideMode.ElideMiddle, room)
        painter.drawText(round(area.left()) + S, y, name)
        painter.setFont(font("small"))
        painter.setPen(QColor(theme.muted))
        below = f"step {record.step:,}  ·  {ago(record.created_at)}" if record.run_id else ago(record.created_at)
        painter.drawText(round(area.left()) + S, y + metrics.descent() + painter.fontMetrics().ascent() + 1, below)
        painter.restore()
