"""The pipeline painted as a map: eight stages that can be clicked, and the arrows between them."""

from __future__ import annotations

from collections.abc import Mapping

from PySide6.QtCore import QPoint, QPointF, QRect, QRectF, QSize, Qt, Signal, SignalInstance
from PySide6.QtGui import QColor, QPainter, QPainterPath, QPaintEvent, QPen, QPolygonF, QResizeEvent
from PySide6.QtWidgets import QAbstractButton, QSizePolicy, QWidget

from ui.icons import pixmap
from ui.pipeline import STATE_WORDS, Stage
from ui.theme import XS, M, S, colours, font
from ui.widgets import safe_tip

# Left edge and width in columns, and row in half rows: with room in seven columns, else in four.
_WIDE = {
    "demonstrate": (0, 1, 1),
    "sft": (1, 1, 1),
    "sample": (2, 1, 1),
    "rank": (3, 1, 1),
    "reward": (4, 1, 0),
    "ppo": (5, 1, 0),
    "dpo": (4, 2, 2),
    "compare": (6, 1, 1),
}
_NARROW = {
    "demonstrate": (0, 1, 0),
    "sft": (1, 1, 0),
    "sample": (2, 1, 0),
    "rank": (3, 1, 0),
    "reward": (0, 1.5, 2),
    "ppo": (1.5, 1.5, 2),
    "dpo": (0, 3, 4),
    "compare": (3, 1, 3),
}
_ARROWS = (
    ("demonstrate", "sft"),
    ("sft", "sample"),
    ("sample", "rank"),
    ("rank", "reward"),
    ("reward", "ppo"),
    ("rank", "dpo"),
    ("ppo", "compare"),
    ("dpo", "compare"),
)
_DOTS = {"waiting": "", "ready": "accent", "active": "accent", "done": "good", "failed": "bad"}
NARROW_BELOW = 900
GAP = 24
BUS, CORNER = 24, 6  # room for the line along the left edge of a narrow map, and its rounding


class StageCard(QAbstractButton):
    """One stage: icon, name, its number and its state."""

    def __init__(self, stage: Stage, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.stage = stage
        self.is_next = False
        self.setObjectName(f"stage-{stage.key}")
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setAttribute(Qt.WidgetAttribute.WA_Hover)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.set_stage(stage, is_next=False)

    def set_stage(self, stage: Stage, *, is_next: bool) -> None:
        """Show another state of the stage; ``is_next`` marks the one thing worth doing."""
        self.stage, self.is_next = stage, is_next
        self.setText(stage.title)
        words = f"{stage.title}: {stage.number} {stage.unit}, {STATE_WORDS[stage.state]}. {stage.detail}"
        self.setAccessibleName(f"Next: {words}" if is_next else words)
        self.setToolTip(safe_tip(f"{stage.title}: {STATE_WORDS[stage.state]}\n{stage.detail}"))
        self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw the card."""
        theme = colours()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        stage = self.stage
        quiet = stage.state == "waiting"
        edge = (
            theme.accent
            if self.is_next or self.hasFocus()
            else theme.border_strong
            if self.underMouse()
            else theme.border
        )
        painter.setPen(QPen(QColor(edge), 2 if self.is_next or self.hasFocus() else 1))
        painter.setBrush(QColor(theme.window if quiet else theme.surface))
        painter.drawRoundedRect(QRectF(self.rect()).adjusted(1, 1, -1, -1), 8, 8)
        inner = self.rect().adjusted(M - XS, M - XS, -(M - XS), -(M - XS))
        ink = theme.muted if quiet else theme.text
        painter.drawPixmap(inner.topLeft(), pixmap(stage.icon, 18, theme.muted, self.devicePixelRatioF()))
        self._dot(painter, QPointF(inner.right() - 5, inner.top() + 9))
        painter.setFont(font("strong"))
        line = painter.fontMetrics().lineSpacing()
        y = inner.top() + 18 + S
        painter.setPen(QColor(ink))
        self._line(painter, inner, y, stage.title)
        y += line + XS
        if stage.number not in ("", "0"):
            painter.setFont(font("number"))
            painter.drawText(inner.left(), y + painter.fontMetrics().ascent(), stage.number)
            x = inner.left() + painter.fontMetrics().horizontalAdvance(stage.number) + XS + 2
            base = y + painter.fontMetrics().ascent()
            painter.setFont(font("small"))
            painter.setPen(QColor(theme.muted))
            room = inner.right() - x
            painter.drawText(x, base, painter.fontMetrics().elidedText(stage.unit, Qt.TextElideMode.ElideRight, room))
        painter.setFont(font("small"))
        painter.setPen(QColor(theme.bad if stage.state == "failed" else theme.muted))
        low = inner.bottom() - painter.fontMetrics().lineSpacing() + 2
        self._line(painter, inner, low, stage.detail)

    def _line(self, painter: QPainter, inner: QRect, y: int, text: str) -> None:
        metrics = painter.fontMetrics()
        shown = metrics.elidedText(text, Qt.TextElideMode.ElideRight, inner.width())
        painter.drawText(inner.left(), y + metrics.ascent(), shown)

    def _dot(self, painter: QPainter, centre: QPointF) -> None:
        theme, state = colours(), self.stage.state
        ink = theme.tone(_DOTS[state])[0] if _DOTS[state] else theme.border_strong
        if state in ("done", "failed"):
            name = "check" if state == "done" else "error"
            place = QPoint(round(centre.x()) - 9, round(centre.y()) - 9)
            painter.drawPixmap(place, pixmap(name, 18, ink, self.devicePixelRatioF()))
            return
        painter.save()
        painter.setPen(QPen(QColor(ink), 1.6))
        painter.setBrush(QColor(ink) if state == "active" else Qt.BrushStyle.NoBrush)
        painter.drawEllipse(centre, 4.5, 4.5)
        painter.restore()


class PipelineMap(QWidget):
    """All stages in their places; ``stage_chosen(str)`` tells the key of the one that was picked."""

    stage_chosen: SignalInstance = Signal(str)  # type: ignore[assignment]

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("pipeline-map")
        self.setAccessibleName("Pipeline")
        self.cards: dict[str, StageCard] = {}
        policy = QSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setSizePolicy(policy)

    def set_stages(self, stages: Mapping[str, Stage], next_key: str) -> None:
        """Show the stages; ``next_key`` is marked as the next thing worth doing."""
        for key in _WIDE:
            stage = stages[key]
            if key not in self.cards:
                self.cards[key] = card = StageCard(stage, self)
                card.clicked.connect(lambda _checked=False, one=key: self.stage_chosen.emit(one))
                card.show()
            self.cards[key].set_stage(stage, is_next=key == next_key)
        self._place()
        self.update()

    def is_narrow(self) -> bool:
        """Whether the stages stand in two rows of four."""
        return self.width() < NARROW_BELOW

    def card_height(self) -> int:
        """Return the height of a card in the current text size."""
        number = font("number")
        return round(18 + S + self.fontMetrics().lineSpacing() * 2.1 + number.pointSizeF() * 1.9 + S + 2 * (M - XS))

    def sizeHint(self) -> QSize:
        """Hold two rows, or three on a narrow window."""
        rows = 3 if self.is_narrow() else 2
        return QSize(640, self.card_height() * rows + GAP * (rows - 1))

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Put the cards into their places."""
        super().resizeEvent(event)
        self._place()

    def _place(self) -> None:
        narrow = self.is_narrow()
        columns, left = (4, BUS) if narrow else (7, 0)
        width = (self.width() - left - GAP * (columns - 1)) / columns
        height = self.card_height()
        half = (height + GAP) / 2
        for key, (column, span, row) in (_NARROW if narrow else _WIDE).items():
            if key in self.cards:
                x = left + column * (width + GAP)
                wide = width * span + GAP * (span - 1)
                self.cards[key].setGeometry(round(x), round(row * half), round(wide), height)
        self.updateGeometry()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw the arrows under the cards."""
        theme = colours()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        for source, target in _ARROWS:
            if source not in self.cards or target not in self.cards:
                continue
            lit = self.cards[target].stage.state != "waiting"
            ink = QColor(theme.border_strong if lit else theme.border)
            self._arrow(painter, self.cards[source].geometry(), self.cards[target].geometry(), ink)

    def _arrow(self, painter: QPainter, source: QRect, target: QRect, ink: QColor) -> None:
        painter.setPen(QPen(ink, 1.5))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        if source.right() < target.left():
            start = QPointF(source.right() + 3, source.center().y())
            end = QPointF(target.left() - 3, target.center().y())
            bend = (start.x() + end.x()) / 2
            path = QPainterPath(start)
            path.cubicTo(QPointF(bend, start.y()), QPointF(bend, end.y()), end)
            head = QPolygonF([end, QPointF(end.x() - 6, end.y() - 4), QPointF(end.x() - 6, end.y() + 4)])
        else:  # from the first row of a narrow map, along the left edge to the rows below it
            between, x = source.bottom() + GAP / 2 + 1, BUS / 2 - 4
            start = QPointF(source.center().x(), source.bottom() + 3)
            end = QPointF(target.left() - 3, target.center().y())
            path = QPainterPath(start)
            path.lineTo(start.x(), between - CORNER)
            path.quadTo(start.x(), between, start.x() - CORNER, between)
            path.lineTo(x + CORNER, between)
            path.quadTo(x, between, x, between + CORNER)
            path.lineTo(x, end.y() - CORNER)
            path.quadTo(x, end.y(), x + CORNER, end.y())
            path.lineTo(end)
            head = QPolygonF([end, QPointF(end.x() - 6, end.y() - 4), QPointF(end.x() - 6, end.y() + 4)])
        painter.drawPath(path)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(ink)
        painter.drawPolygon(head)
