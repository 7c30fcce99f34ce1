"""A response with each token on a ground that shows a number of it: KL, reward, advantage, value, log-probability."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from PySide6.QtCore import QEvent, QRectF, Qt, QTimer
from PySide6.QtGui import QColor, QHelpEvent, QPainter, QPaintEvent, QTextCharFormat, QTextCursor, QTextOption
from PySide6.QtWidgets import QPlainTextEdit, QToolTip, QWidget

from ui.numbers import short
from ui.plain_text import VIEW_LIMIT, text_for_view
from ui.plot_key import blend
from ui.theme import XS, S, colours, font
from ui.widgets import safe_tip
from workbench.protocol import Sample

FIRST_TOKENS = 500
"""So many are coloured at once; the rest comes when asked for, in slices between frames."""
SLICE_TOKENS = 100


@dataclass(frozen=True, slots=True)
class TokenMeasure:
    """One number that every token may have."""

    name: str
    field: str
    unit: str
    signed: bool  # drawn on a scale with two ends around 0
    about: str


MEASURES: tuple[TokenMeasure, ...] = (
    TokenMeasure("KL", "token_kl", "nats", True, "log-probability under the policy minus that under the reference"),
    TokenMeasure("Reward", "token_rewards", "", True, "what PPO was paid: the KL penalty, and the score at the end"),
    TokenMeasure("Advantage", "token_advantages", "", True, "how much better than expected this token turned out"),
    TokenMeasure("Value", "token_values", "", True, "what the value model expected from here on"),
    TokenMeasure("Log-probability", "token_logps", "nats", False, "how sure the policy was of this token"),
)


def measures_of(sample: Sample) -> list[TokenMeasure]:
    """List the numbers that a sample has for each of its tokens."""
    count = len(sample.tokens)
    return [one for one in MEASURES if count and len(getattr(sample, one.field)) == count]


def scale_of(values: Sequence[float]) -> float:
    """Return the size at which colour is full: the 95th percentile of the sizes, so one outlier hides nothing."""
    sizes = sorted(abs(value) for value in values if math.isfinite(value))
    return sizes[min(len(sizes) - 1, int(0.95 * len(sizes)))] or 1.0 if sizes else 1.0


def strength(value: float, scale: float) -> float:
    """Return how strongly to colour a value, 0 to 1."""
    return min(1.0, abs(value) / scale) if math.isfinite(value) and scale > 0 else 0.0


class TokenText(QPlainTextEdit):
    """Plain text, coloured by token. Pointing at a token tells its number; :meth:`extremes` names them in words.

    A long response is shown by its beginning, until :meth:`show_all`.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setReadOnly(True)
        self.setAccessibleName("Response")
        self.setTabChangesFocus(True)
        self.setUndoRedoEnabled(False)
        self.setWordWrapMode(QTextOption.WrapMode.WrapAtWordBoundaryOrAnywhere)
        self.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByMouse | Qt.TextInteractionFlag.TextSelectableByKeyboard
        )
        self._sample: Sample | None = None
        self._measure: TokenMeasure | None = None
        self._ends: list[int] = []
        self._scale = 1.0
        self._whole = False
        self._hidden = ""
        self._slices = QTimer(self)
        self._slices.setInterval(0)
        self._slices.timeout.connect(lambda: self._write(SLICE_TOKENS))

    def show_sample(self, sample: Sample | None, measure: TokenMeasure | None) -> None:
        """Show a response, coloured by a measure that it has."""
        if sample is not self._sample:
            self._whole = False
        self._sample, self._measure = sample, measure
        self._fill()

    def show_all(self) -> None:
        """Show a long response to its end."""
        self._whole = True
        self._fill()

    def hidden(self) -> str:
        """Say what is not shown yet: '3,500 more tokens'; "" when all is, or is on its way."""
        return self._hidden

    def values(self) -> tuple[float, ...]:
        """Return the numbers that are shown, token by token."""
        if self._sample is None or self._measure is None:
            return ()
        found: tuple[float, ...] = getattr(self._sample, self._measure.field)
        return found if len(found) == len(self._sample.tokens) else ()

    def extremes(self, count: int = 3) -> list[tuple[str, float]]:
        """Return the tokens with the largest numbers by size, for those who do not see the colours."""
        values = self.values()
        if self._sample is None or not values:
            return []
        order = sorted(range(len(values)), key=lambda index: -abs(values[index]))[:count]
        return [(self._sample.tokens[index], values[index]) for index in order]

    def token_at(self, position: int) -> int:
        """Return the index of the token that covers a character, or -1."""
        index = bisect_right(self._ends, position)
        return index if index < len(self._ends) else -1

    def _fill(self) -> None:
        self._slices.stop()
        self.clear()
        self._ends, self._hidden = [], ""
        if self._sample is None:
            return
        values = self.values()
        if not values:
            shown = text_for_view(self._sample.response, None if self._whole else VIEW_LIMIT)
            self._hidden = f"{shown.hidden:,} more characters" if shown.hidden else ""
            self.setPlainText(shown.text or "(empty)")
            return
        self._scale = scale_of(values)
        self._write(FIRST_TOKENS)
        left = len(values) - len(self._ends)
        if left and self._whole:
            self._slices.start()
        elif left:
            self._hidden = f"{left:,} more tokens"
        self.moveCursor(QTextCursor.MoveOperation.Start)

    def _write(self, count: int) -> None:
        """Add the next tokens at the end."""
        assert self._sample is not None
        theme = colours(self)
        values, first = self.values(), len(self._ends)
        cursor = QTextCursor(self.document())
        cursor.movePosition(QTextCursor.MoveOperation.End)
        cursor.beginEditBlock()
        for index in range(first, min(first + count, len(values))):
            shape = QTextCharFormat()
            ground = self.ground(values[index], self._scale)
            if ground:
                shape.setBackground(QColor(ground))
                shape.setForeground(QColor(theme.text))
            cursor.insertText(text_for_view(self._sample.tokens[index]).text, shape)
            self._ends.append(cursor.position())
        cursor.endEditBlock()
        if len(self._ends) == len(values):
            self._slices.stop()

    def ground(self, value: float, scale: float) -> str:
        """Return the colour behind a token; "" for none."""
        theme = colours(self)
        share = strength(value, scale)
        if share < 0.08:
            return ""
        colour = theme.series(1) if value > 0 or not (self._measure and self._measure.signed) else theme.series(0)
        return blend(theme.surface, colour, 0.6 * share)

    def event(self, event: QEvent) -> bool:
        """Tell a token's number where the pointer rests."""
        if event.type() == QEvent.Type.ToolTip and isinstance(event, QHelpEvent):
            at = self.cursorForPosition(event.pos()).position()
            index = self.token_at(at)
            values = self.values()
            if self._sample is not None and self._measure is not None and 0 <= index < len(values):
                token = text_for_view(self._sample.tokens[index]).text
                text = f"“{token}”  {self._measure.name} {short(values[index], self._measure.unit)}"
                QToolTip.showText(event.globalPos(), safe_tip(text), self)
            else:
                QToolTip.hideText()
            return True
        return super().event(event)

    def changeEvent(self, event: QEvent) -> None:
        """Recolour with the theme."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange:
            self._fill()


class ScaleKey(QWidget):
    """The colours of a measure with the numbers at their ends."""

    def __init__(self, text: TokenText, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._text = text
        self._scale = 1.0
        self._measure: TokenMeasure | None = None
        self.setFixedHeight(20)
        self.setMinimumWidth(200)
        self.setFont(font("small"))

    def show_scale(self, measure: TokenMeasure | None, scale: float) -> None:
        """Show the key of a measure; nothing without one."""
        self._measure, self._scale = measure, scale
        self.setVisible(measure is not None)
        if measure is not None:
            low = f"-{short(scale)}" if measure.signed else "0"
            high = short(scale, measure.unit) if measure.signed else short(-scale, measure.unit)
            self.setAccessibleName(f"Colours from {low} to {high}")
        self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw the scale."""
        if self._measure is None:
            return
        painter = QPainter(self)
        theme = colours(self)
        metrics = painter.fontMetrics()
        low = f"-{short(self._scale)}" if self._measure.signed else "0"
        high = short(self._scale if self._measure.signed else -self._scale)
        left = metrics.horizontalAdvance(low) + S
        width = max(48, min(160, self.width() - left - metrics.horizontalAdvance(high) - 2 * S))
        painter.setPen(QColor(theme.muted))
        painter.drawText(0, 0, left, self.height(), int(Qt.AlignmentFlag.AlignVCenter), low)
        steps = 16
        for index in range(steps):
            share = index / (steps - 1)
            value = (2 * share - 1) * self._scale if self._measure.signed else -share * self._scale
            painter.fillRect(
                QRectF(left + index * width / steps, XS, width / steps + 1, self.height() - 2 * XS),
                QColor(self._text.ground(value, self._scale) or theme.surface),
            )
        painter.setPen(QColor(theme.border_strong))
        painter.drawRect(QRectF(left, XS, width, self.height() - 2 * XS))
        painter.setPen(QColor(theme.muted))
        painter.drawText(
            int(left + width + S), 0, self.width(), self.height(), int(Qt.AlignmentFlag.AlignVCenter), high
        )
