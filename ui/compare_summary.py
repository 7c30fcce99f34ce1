"""The numbers of each model under its answers: score, length, endings, and the share of votes with its interval."""

from __future__ import annotations

from PySide6.QtCore import QRectF, QSize, Qt
from PySide6.QtGui import QColor, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QGridLayout, QSizePolicy, QWidget

from ui.compare_state import Board, WinRate, votes_needed
from ui.theme import L, M, colours
from ui.widgets import Card, ElidedLabel, Text, plural

_HEADS = ("Model", "Answers", "Mean score", "Mean length", "Ended by itself", "Votes won", "")


class IntervalBar(QWidget):
    """A share with its 95 % interval on a line from 0 to 1, one half marked."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._rate = WinRate(0, 0, 0.0, 1.0)
        self.setFixedHeight(16)
        self.setMinimumWidth(120)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def set(self, rate: WinRate) -> None:
        """Show a win rate."""
        self._rate = rate
        self.setAccessibleName(rate_text(rate))
        self.update()

    def sizeHint(self) -> QSize:
        """Wide enough to tell intervals apart."""
        return QSize(200, 16)

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw the line, the interval, and the share."""
        theme, rate = colours(self), self._rate
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        width, middle = self.width() - 8, self.height() / 2
        painter.setPen(QPen(QColor(theme.border), 2))
        painter.drawLine(4, int(middle), 4 + width, int(middle))
        painter.setPen(QPen(QColor(theme.border_strong), 1))
        painter.drawLine(4 + width // 2, 2, 4 + width // 2, self.height() - 2)
        if not rate.decided:
            return
        decided = rate.low > 0.5 or rate.high < 0.5
        ink = QColor(theme.accent if decided else theme.muted)
        painter.setPen(Qt.PenStyle.NoPen)
        band = QColor(ink)
        band.setAlpha(90)
        painter.setBrush(band)
        painter.drawRoundedRect(QRectF(4 + width * rate.low, middle - 4, width * (rate.high - rate.low), 8), 4, 4)
        painter.setBrush(ink)
        painter.drawEllipse(QRectF(4 + width * rate.share - 5, middle - 5, 10, 10))


class CompareSummary(Card):
    """One row a model; the last line says how sure the vote is."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent=parent, padding=M)
        self.body.setContentsMargins(M, 12, M, 12)
        self.grid = QGridLayout()
        self.grid.setHorizontalSpacing(L)
        self.grid.setVerticalSpacing(4)
        self._rows: list[tuple[ElidedLabel, list[Text], IntervalBar]] = []
        for place, words in enumerate(_HEADS):
            self.grid.addWidget(Text(words, "small", "muted"), 0, place)
        self.grid.setColumnStretch(0, 2)
        self.grid.setColumnStretch(len(_HEADS) - 1, 2)
        self.body.addLayout(self.grid)
        self.verdict = Text("", "small", "muted", wrap=True)
        self.verdict.setObjectName("verdict")
        self.body.addWidget(self.verdict)

    def show_board(self, board: Board) -> None:
        """Show the numbers of a comparison."""
        while len(self._rows) < board.columns:
            self._add_row()
        for column, (name, cells, bar) in enumerate(self._rows):
            used = column < board.columns
            for widget in (name, *cells, bar):
                widget.setVisible(used)
            if not used:
                continue
            summary, rate = board.summary(column), board.ballot.rate(column)
            score = "–" if summary.mean_score is None else f"{summary.mean_score:+.2f} σ"
            ended = f"{summary.share_ended:.0%}" if summary.answers else "–"
            length = f"{summary.mean_tokens:,.0f} tokens" if summary.answers else "–"
            name.setText(board.header.model_names[column])
            for label, words in zip(
                cells, (f"{summary.answers:,}", score, length, ended, rate_text(rate)), strict=True
            ):
                label.setText(words)
            bar.set(rate)
        self.verdict.setText(verdict(board))

    def _add_row(self) -> None:
        line = len(self._rows) + 1
        name, cells, bar = ElidedLabel("", "strong"), [Text() for _ in range(5)], IntervalBar()
        self.grid.addWidget(name, line, 0)
        for place, cell in enumerate(cells, 1):
            self.grid.addWidget(cell, line, place)
        self.grid.addWidget(bar, line, len(_HEADS) - 1)
        self._rows.append((name, cells, bar))


def rate_text(rate: WinRate) -> str:
    """Say a win rate with its interval."""
    if not rate.decided:
        return "no votes"
    return f"{rate.share:.0%}  ({rate.low:.0%} to {rate.high:.0%}), {rate.wins} of {rate.decided}"


def verdict(board: Board) -> str:
    """Say what the votes show so far, and how many more it takes."""
    ballot = board.ballot
    if not ballot.total:
        return "Votes are blind: names and scores show after each vote." if board.header.blind else ""
    ties = f"; {plural(ballot.ties, 'tie')} not counted" if ballot.ties else ""
    if board.columns != 2:
        return f"{plural(ballot.total, 'vote')}{ties}. Intervals are 95 % Wilson."
    rate = ballot.rate(0)
    needed = votes_needed(rate)
    first, second = board.header.model_names
    if needed == 0:
        better = first if rate.share > 0.5 else second
        return f"{better} is preferred (95 % interval clear of one half){ties}."
    more = f" At this rate about {plural(needed, 'vote')} more would decide." if needed > 0 else ""
    return f"Not decided yet{ties}.{more}"
