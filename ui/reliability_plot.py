"""The reliability curve of a reward model: how sure it is across, how often it is right upwards."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QSizePolicy, QWidget

from ui.theme import S, colours, font
from workbench.calibration import Bin

LOW = 0.5  # as unsure as can be
STEPS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
RIGHT_STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)


class ReliabilityPlot(QWidget):
    """Draws a dot for each bin, as large as it has pairs; on the dashed line a model is exactly as sure as right."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.bins: tuple[Bin, ...] = ()
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.setAccessibleName("Reliability curve")

    def set_bins(self, bins: Sequence[Bin]) -> None:
        """Show another curve; its numbers are the accessible description."""
        self.bins = tuple(bins)
        said = [f"sure to {one.confidence:.0%}: right in {one.accuracy:.0%} of {one.pairs}" for one in self._filled()]
        self.setAccessibleDescription("; ".join(said) or "no pairs")
        self.update()

    def sizeHint(self) -> QSize:
        """Ask for about the shape of a square with its labels."""
        return QSize(340, 268)

    def _filled(self) -> list[Bin]:
        return [one for one in self.bins if one.pairs]

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw axes, the line of perfect calibration, and the bins."""
        theme, painter = colours(self), QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setFont(font("small"))
        line = painter.fontMetrics().height()
        left = painter.fontMetrics().horizontalAdvance("100%") + S
        plot = QRectF(left, 1.5 * line + S, self.width() - 1.5 * left, self.height() - 3.5 * line - 3 * S)

        def at(confidence: float, accuracy: float) -> QPointF:
            return QPointF(
                plot.left() + (confidence - LOW) / (1 - LOW) * plot.width(), plot.bottom() - accuracy * plot.height()
            )

        muted = QColor(theme.muted)
        centre, right = Qt.AlignmentFlag.AlignHCenter, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        painter.setPen(muted)
        painter.drawText(QPointF(0, line - 3), "Right")
        painter.drawText(QRectF(plot.left(), self.height() - line, plot.width(), line), centre, "How sure")
        for value in RIGHT_STEPS:
            y = at(LOW, value).y()
            painter.setPen(QColor(theme.border))
            painter.drawLine(QPointF(plot.left(), y), QPointF(plot.right(), y))
            painter.setPen(muted)
            painter.drawText(QRectF(0, y - line / 2, left - S, line), right, f"{value:.0%}")
        for value in STEPS:
            x = at(value, 0).x()
            painter.drawText(QRectF(x - left, plot.bottom() + S, 2 * left, line), centre, f"{value:.0%}")
        painter.setPen(QPen(muted, 1, Qt.PenStyle.DashLine))
        painter.drawLine(at(LOW, LOW), at(1, 1))
        self._draw_bins(painter, at)

    def _draw_bins(self, painter: QPainter, at: object) -> None:
        assert callable(at)
        theme, filled = colours(self), self._filled()
        ink, wrong = QColor(theme.series(0)), QPen(QColor(theme.series(1)), 1)
        points = [at(one.confidence, one.accuracy) for one in filled]
        for one, point in zip(filled, points, strict=True):
            painter.setPen(wrong)  # what calibration would have to mend
            painter.drawLine(at(one.confidence, one.confidence), point)
        painter.setPen(QPen(ink, 2))
        painter.drawPolyline(points)
        most = max((one.pairs for one in filled), default=1)
        edge = QPen(QColor(theme.surface), 1.5)
        for one, point in zip(filled, points, strict=True):
            size = 3 + 6 * (one.pairs / most) ** 0.5  # the area says how many
            painter.setPen(edge)
            painter.setBrush(ink)
            painter.drawEllipse(point, size, size)
