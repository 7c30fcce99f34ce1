"""A share with its interval as a small picture: a dot on a line from 0 to 1, with a tick at one half."""

from __future__ import annotations

from PySide6.QtCore import QModelIndex, QPersistentModelIndex, QPointF, QRect, QSize, Qt
from PySide6.QtGui import QColor, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QStyle, QStyledItemDelegate, QStyleOptionViewItem, QWidget

from ui.theme import S, colours
from workbench.judgement import Share

DOT = 4.0
BAR_HEIGHT = 20
BAR_WIDTH = 420


def draw_interval(painter: QPainter, box: QRect, widget: QWidget, share: float, low: float, high: float) -> None:
    """Draw line, whisker and dot in a box."""
    theme = colours(widget)
    middle = box.center().y() + 0.5

    def at(value: float) -> QPointF:
        return QPointF(box.left() + value * box.width(), middle)

    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.setPen(QPen(QColor(theme.border), 1))
    painter.drawLine(at(0), at(1))
    half = at(0.5)
    painter.setPen(QPen(QColor(theme.border_strong), 1))
    painter.drawLine(QPointF(half.x(), middle - 6), QPointF(half.x(), middle + 6))
    ink = QColor(theme.series(0))
    painter.setPen(QPen(ink, 2))
    painter.drawLine(at(low), at(high))
    painter.setPen(Qt.PenStyle.NoPen)
    painter.setBrush(ink)
    painter.drawEllipse(at(share), DOT, DOT)


class IntervalBar(QWidget):
    """The picture by itself, from 0 at the left to 1 at the right; the words beside it say the numbers."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._shown = (0.0, 0.0, 1.0)
        self.setFixedHeight(BAR_HEIGHT)
        self.setMaximumWidth(BAR_WIDTH)

    def set(self, share: float, low: float, high: float) -> None:
        """Show another share."""
        self._shown = (share, low, high)
        self.setAccessibleName(f"{share:.0%}, {low:.0%} to {high:.0%}")
        self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw it, with room for the dot at both ends."""
        draw_interval(QPainter(self), self.rect().adjusted(int(DOT), 0, -int(DOT), 0), self, *self._shown)


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
        painter.save()
        if option.state & QStyle.StateFlag.State_Selected:
            painter.fillRect(option.rect, QColor(colours(self._widget).accent_soft))
        box = option.rect.adjusted(S, 0, -S, 0)
        draw_interval(painter, box, self._widget, share.accuracy, share.low, share.high)
        painter.restore()
