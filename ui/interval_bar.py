"""A share with its interval as a small picture: a dot on a line from 0 to 1, with a tick at one half."""

from __future__ import annotations

from PySide6.QtCore import QModelIndex, QPersistentModelIndex, QPointF, QSize, Qt
from PySide6.QtGui import QColor, QPainter, QPen
from PySide6.QtWidgets import QStyle, QStyledItemDelegate, QStyleOptionViewItem, QWidget

from ui.theme import S, colours
from workbench.judgement import Share

DOT = 4.0


class IntervalDelegate(QStyledItemDelegate):
    """Draws the :class:`Share` that a cell holds in its user role."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self._widget = parent

    def sizeHint(self, _option: QStyleOptionViewItem, _index: QModelIndex | QPersistentModelIndex) -> QSize:
        """Ask for room to tell intervals apart."""
        return QSize(96, 24)

    def paint(
        self, painter: QPainter, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex
    ) -> None:
        """Draw line, whisker and dot."""
        share: Share | None = index.data(Qt.ItemDataRole.UserRole)
        if share is None:
            return
        theme = colours(self._widget)
        box = option.rect.adjusted(S, 0, -S, 0)
        middle = box.center().y() + 0.5

        def at(value: float) -> QPointF:
            return QPointF(box.left() + value * box.width(), middle)

        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        if option.state & QStyle.StateFlag.State_Selected:
            painter.fillRect(option.rect, QColor(theme.accent_soft))
        painter.setPen(QPen(QColor(theme.border), 1))
        painter.drawLine(at(0), at(1))
        half = at(0.5)
        painter.setPen(QPen(QColor(theme.border_strong), 1))
        painter.drawLine(QPointF(half.x(), middle - 6), QPointF(half.x(), middle + 6))
        ink = QColor(theme.series(0))
        painter.setPen(QPen(ink, 2))
        painter.drawLine(at(share.low), at(share.high))
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(ink)
        painter.drawEllipse(at(share.accuracy), DOT, DOT)
        painter.restore()
