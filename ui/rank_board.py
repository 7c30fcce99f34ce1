"""The responses of one prompt side by side: up to four columns, more wrap into rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PySide6.QtCore import Qt, Signal, SignalInstance
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QFrame, QGridLayout, QScrollArea, QWidget

from ui.operations import run_task
from ui.rank_state import RankState
from ui.response_card import ResponseCard
from ui.text_diff import different_spans
from ui.theme import M

MOST_COLUMNS = 4
READABLE = 340  # a narrower column breaks lines too often to be read fast


def columns_for(count: int, width: int, wanted: int = 0) -> int:
    """Choose columns: ``wanted`` if given, else as many readable ones as fit, with rows as even as can be."""
    if count < 1:
        return 1
    if wanted:
        return min(wanted, count, MOST_COLUMNS)
    most = max(1, min(MOST_COLUMNS, width // READABLE))
    return math.ceil(count / math.ceil(count / most))


class RankBoard(QScrollArea):
    """The cards. ``place_clicked(position, place)`` and ``focused(position)`` come from the cards."""

    place_clicked: SignalInstance = Signal(int, int)  # type: ignore[assignment]
    focused: SignalInstance = Signal(int)  # type: ignore[assignment]

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("rank-board")
        self.setAccessibleName("Responses")
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setWidgetResizable(True)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._sheet = QWidget()
        self._grid = QGridLayout(self._sheet)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setSpacing(M)
        self.setWidget(self._sheet)
        self._cards: list[ResponseCard] = []
        self._count = 0
        self._wanted = 0
        self._laid = (0, 0)
        self._asked = 0  # the newest comparison; an older one that comes late is dropped

    @property
    def cards(self) -> list[ResponseCard]:
        """The cards in use, in the order shown."""
        return self._cards[: self._count]

    @property
    def columns(self) -> int:
        """Columns in use."""
        return self._laid[1] or 1

    def set_count(self, count: int) -> None:
        """Show ``count`` cards; cards are kept and used again, which is what makes the next prompt quick."""
        while len(self._cards) < count:
            card = ResponseCard(len(self._cards))
            card.place_clicked.connect(self.place_clicked)
            card.focused.connect(self.focused)
            self._cards.append(card)
        self._count = count
        self._lay_out()

    def set_columns(self, wanted: int) -> None:
        """Choose the columns; 0 lets the width choose."""
        self._wanted = wanted
        self._lay_out()

    def show_state(self, state: RankState, *, take_focus: bool) -> None:
        """Show places and focus."""
        for position, card in enumerate(self.cards):
            card.show_place(state.shown_place(position), state.places[position])
            card.set_current(position == state.focus)
        current = self.cards[state.focus]
        if take_focus and not current.hasFocus():
            current.setFocus(Qt.FocusReason.OtherFocusReason)
        self.ensureWidgetVisible(current, 0, M)

    def show_differences(self, focus: int | None) -> None:
        """Mark, in every other card, the words that the focused one lacks; None clears. Computed off this thread."""
        self._asked += 1
        asked = self._asked
        if focus is None:
            for card in self.cards:
                card.show_differences([])
            return
        texts = [card.shown_text() for card in self.cards]

        def work() -> list[list[tuple[int, int]]]:
            return [
                [] if i == focus or asked != self._asked else different_spans(texts[focus], text) or []
                for i, text in enumerate(texts)
            ]

        def done(spans: list[list[tuple[int, int]]]) -> None:
            if asked == self._asked:
                for card, found in zip(self.cards, spans, strict=True):
                    card.show_differences(found)

        run_task(work, done, owner=self)

    def set_texts(self, texts: Sequence[str]) -> None:
        """Show whole responses, one a card."""
        self._asked += 1
        self.set_count(len(texts))
        for card, text in zip(self.cards, texts, strict=True):
            card.set_response(text, len(texts))

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Choose the columns anew."""
        super().resizeEvent(event)
        self._lay_out()

    def _lay_out(self) -> None:
        columns = columns_for(self._count, self.viewport().width(), self._wanted)
        if self._laid == (self._count, columns):
            return
        self._laid = (self._count, columns)
        for index, card in enumerate(self._cards):
            self._grid.removeWidget(card)
            if index < self._count:
                self._grid.addWidget(card, index // columns, index % columns)
            card.setVisible(index < self._count)
        rows = math.ceil(self._count / columns)
        for index in range(MOST_COLUMNS):
            self._grid.setColumnStretch(index, 1 if index < columns else 0)
        for index in range(9):
            self._grid.setRowStretch(index, 1 if index < rows else 0)
