"""One model's answer beside the others': nameless while a blind vote is open."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QObject, QRectF, Qt, Signal, SignalInstance
from PySide6.QtGui import (
    QColor,
    QFocusEvent,
    QGuiApplication,
    QPainter,
    QPaintEvent,
    QPen,
    QTextCharFormat,
    QTextCursor,
)
from PySide6.QtWidgets import QSizePolicy, QWidget

from ui.compare_state import Cell
from ui.plain_text import PlainText
from ui.rank_state import LETTERS
from ui.theme import RADIUS, XS, M, S, colours
from ui.widgets import ElidedLabel, IconButton, KeyHint, Pill, button, column, row


class CompareCard(QWidget):
    """``voted(position)`` tells of the button under the answer."""

    voted: SignalInstance = Signal(int)  # type: ignore[assignment]

    def __init__(self, position: int, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.position = position
        self._won = False
        self._cell = Cell()
        self.setObjectName(f"answer-{LETTERS[position]}")
        self.setMinimumWidth(200)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.name = ElidedLabel("", "heading")
        self.score = Pill()
        self.about = Pill()
        self.best = Pill("voted best", "good")
        self.copy = IconButton("copy", f"Copy answer {LETTERS[position]}", self._on_copy)
        head = row(self.name, self.copy, spacing=S)
        head.setStretch(0, 1)
        about = row(self.best, self.about, self.score, None, spacing=XS)
        self.text = PlainText(name=f"Answer {LETTERS[position]}", frame=False)
        self.text.view.document().setDocumentMargin(0)
        self.text.view.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.text.view.installEventFilter(self)
        self.vote = button(
            f"{LETTERS[position]} is best", lambda: self.voted.emit(self.position), name=f"vote-{position + 1}"
        )
        self.key = KeyHint(str(position + 1))
        self.vote_bar = QWidget()
        self.vote_bar.setLayout(row(self.vote, self.key, None, spacing=S))
        layout = column(head, about, self.text, self.vote_bar, spacing=S, margins=(M, S, M, 12))
        layout.setStretch(2, 1)
        self.setLayout(layout)

    def show_cell(self, cell: Cell, name: str, *, hidden: bool, votable: bool, won: bool | None) -> None:
        """Show an answer.

        Args:
            cell: the answer as far as it has come.
            name: its model.
            hidden: say neither name nor score, since the vote is still open.
            votable: offer the vote.
            won: whether it was voted best; None before the vote and after a tie.
        """
        self._cell, self._won = cell, bool(won)
        self.name.setText(f"Answer {LETTERS[self.position]}" if hidden else name)
        self.score.setVisible(cell.score is not None and not hidden)
        if cell.score is not None:
            self.score.set(f"{cell.score:+.2f} σ", "good" if cell.score > 0 else "")
            self.score.setToolTip("Reward model's score in standard deviations; 0 is the mean of its calibration set")
        words = {
            "length": ("cut off", "warn"),
            "failed": ("failed", "bad"),
            "stopped": ("stopped", "warn"),
            "stop": ("" if hidden else f"{cell.token_count:,} tokens", ""),
        }.get(cell.finish_reason, ("writing…", "accent") if cell.text else ("waiting", ""))
        self.about.setVisible(bool(words[0]))
        self.about.set(*words)
        if self.text.text() != cell.text or not cell.text:
            self.text.set_text(cell.text)
            if cell.done and not cell.text.strip():
                quiet = QTextCharFormat()
                quiet.setForeground(QColor(colours(self).muted))
                QTextCursor(self.text.view.document()).insertText(cell.error or "(empty)", quiet)
        self.best.setVisible(bool(won))
        self.vote_bar.setVisible(votable)
        self.setAccessibleName(
            ", ".join(word for word in (self.name.text(), words[0], "voted best" if won else "") if word)
        )
        self.setAccessibleDescription(cell.text[:2000] or "(empty)")
        self.update()

    def append(self, text: str) -> None:
        """Add words that have just come."""
        self.text.append_text(text)
        self.about.set("writing…", "accent")

    def _on_copy(self) -> None:
        QGuiApplication.clipboard().setText(self._cell.text)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Draw the ring with the focus of the text."""
        if isinstance(event, QFocusEvent):
            self.update()
        return super().eventFilter(watched, event)

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw the sheet; the one that won has the accent's edge."""
        theme = colours(self)
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        focused = self.text.view.hasFocus()
        ink = theme.good if self._won else theme.accent if focused else theme.border
        width = 2 if self._won or focused else 1
        painter.setPen(QPen(QColor(ink), width))
        painter.setBrush(QColor(theme.surface))
        inset = width / 2
        painter.drawRoundedRect(QRectF(self.rect()).adjusted(inset, inset, -inset, -inset), RADIUS + 2, RADIUS + 2)
