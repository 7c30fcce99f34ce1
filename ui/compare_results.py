"""The answers of one prompt side by side, the list of prompts, and the vote."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from PySide6.QtCore import Qt, QTimer, Signal, SignalInstance
from PySide6.QtGui import QKeySequence, QShortcut
from PySide6.QtWidgets import QHBoxLayout, QListWidget, QListWidgetItem, QSplitter, QWidget

from ui.compare_card import CompareCard
from ui.compare_state import Board, Cell
from ui.compare_summary import CompareSummary
from ui.conversation_view import ConversationView
from ui.labelling import READ_ONLY
from ui.theme import XS, M, S
from ui.widgets import Card, KeyHint, Pill, Text, button, column, row
from workbench.comparisons import TIE, WITHDRAWN

MOST = 4


class CompareResults(QWidget):
    """``voted(row, winner)`` tells of a vote: a column, -1 for a tie, -2 for one that is withdrawn.

    ``label_asked(row)`` asks for the prompt's answers to be ranked.
    """

    voted: SignalInstance = Signal(int, int)  # type: ignore[assignment]
    label_asked: SignalInstance = Signal(int)  # type: ignore[assignment]

    def __init__(self, parent: QWidget | None = None, *, read_only: bool = False) -> None:
        super().__init__(parent)
        self.board: Board | None = None
        self.row = 0
        self._read_only = read_only
        self._counted = QTimer(self)  # many cells at once (a comparison that is stopped) are counted once
        self._counted.setSingleShot(True)
        self._counted.setInterval(0)
        self._counted.timeout.connect(self._count)
        self.list = QListWidget()
        self.list.setObjectName("compare-list")
        self.list.setAccessibleName("Prompts of this comparison")
        self.list.setUniformItemSizes(True)
        self.list.setTextElideMode(Qt.TextElideMode.ElideRight)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.currentRowChanged.connect(self._on_row)
        self.prompt = ConversationView(max_lines=6)
        self.split_pill = Pill()
        self.label = button("Rank these…", lambda: self.label_asked.emit(self.row), kind="quiet", name="send-to-rank")
        self.label.setToolTip(READ_ONLY if read_only else "Add these answers to the project and rank them")
        card = Card(padding=M)
        card.body.setContentsMargins(M, S, S, 12)
        card.body.setSpacing(XS)
        card.body.addLayout(row(Text("Prompt", "small", "muted"), self.split_pill, None, self.label, spacing=S))
        card.body.addWidget(self.prompt)
        self.cards = [CompareCard(position) for position in range(MOST)]
        self._columns = QHBoxLayout()
        self._columns.setSpacing(M)
        for one in self.cards:
            one.voted.connect(self._on_card_voted)
            self._columns.addWidget(one, 1)
        self.tie = button("Tie", lambda: self.vote_for(None), kind="quiet", name="vote-tie")
        self.withdraw = button("Take the vote back", self.withdraw_vote, kind="quiet", name="vote-withdraw")
        self.next = button("Next", self.go_on, name="vote-next")
        self.message = Text("", "small", "muted")
        self.message.setObjectName("compare-message")
        acts = row(self.message, None, self.withdraw, spacing=M)
        for act, key in ((self.tie, "="), (self.next, "Enter")):
            acts.addLayout(row(act, KeyHint(key), spacing=XS))
        self.summary = CompareSummary()
        side = column(card, spacing=M, margins=(M, 0, 0, 0))
        side.addLayout(self._columns, 1)
        side.addLayout(acts)
        side.addWidget(self.summary)
        right = QWidget()
        right.setLayout(side)
        left = QWidget()
        left.setLayout(column(self.list, margins=(0, 0, M, 0)))
        self.split = QSplitter(Qt.Orientation.Horizontal)
        self.split.addWidget(left)
        self.split.addWidget(right)
        self.split.setStretchFactor(1, 1)
        self.split.setSizes([232, 1000])
        self.split.setChildrenCollapsible(False)
        self.setLayout(column(self.split))
        for number in range(1, MOST + 1):
            self._key(str(number), partial(self._vote_shown, number - 1))
        for keys, deed in (
            ("=", lambda: self.vote_for(None)),
            ("0", lambda: self.vote_for(None)),
            ("Backspace", self.withdraw_vote),
            ("Return", self.go_on),
            ("Enter", self.go_on),
        ):
            self._key(keys, deed)

    def _key(self, keys: str, act: Callable[[], None]) -> None:
        made = QShortcut(QKeySequence(keys), self)
        made.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
        made.activated.connect(act)

    # ---- showing --------------------------------------------------------------------------------------------

    def show_board(self, board: Board) -> None:
        """Show a comparison from its first prompt."""
        self.board = board
        self.row = 0
        self.list.blockSignals(True)
        self.list.clear()
        for asked in board.prompts:
            last = next((one.content for one in reversed(asked.messages) if one.role == "user"), "")
            self.list.addItem(QListWidgetItem(" ".join(last.split())[:200]))
        for place in range(len(board.prompts)):
            self._mark(place)
        self.list.setCurrentRow(0)
        self.list.blockSignals(False)
        self._on_row(0)

    def refresh_row(self, place: int) -> None:
        """An answer to a prompt, or the score of one, has come."""
        board = self.board
        if board is None:
            return
        self._mark(place)
        if place == self.row:
            self._show_acts()
        self._counted.start()

    def _count(self) -> None:
        if self.board is not None:
            self.summary.show_board(self.board)

    def stream(self, place: int, column_: int, text: str) -> None:
        """Words of an answer have come."""
        if self.board is not None and place == self.row:
            self.cards[self.board.order(place).index(column_)].append(text)

    def refresh(self) -> None:
        """Show the current prompt anew."""
        self._on_row(self.row)

    def _mark(self, place: int) -> None:
        board = self.board
        if board is None:
            return
        item = self.list.item(place)
        title = item.data(Qt.ItemDataRole.UserRole) or item.text()
        item.setData(Qt.ItemDataRole.UserRole, title)
        mark = "✓ " if board.voted(place) else "● " if board.whole(place) else "○ "
        item.setText(mark + title)
        state = "voted" if board.voted(place) else "ready" if board.whole(place) else "being written"
        item.setData(Qt.ItemDataRole.AccessibleTextRole, f"{title}, {state}")

    def _on_row(self, place: int) -> None:
        board = self.board
        if board is None or not 0 <= place < len(board.prompts):
            return
        self.row = place
        self.prompt.set_messages(board.prompts[place].messages)
        self.split_pill.set("typed here" if not board.prompts[place].prompt_id else "")
        self.split_pill.setVisible(not board.prompts[place].prompt_id)
        for position in range(MOST):
            self.cards[position].setVisible(position < board.columns)
            if position < board.columns:
                self._show_card(position)
        self._show_acts()
        self.summary.show_board(board)

    def _show_card(self, position: int) -> None:
        board = self.board
        if board is None:
            return
        column_ = board.order(self.row)[position]
        cell: Cell = board.cells[self.row, column_]
        voted = board.voted(self.row)
        winner = board.ballot.winner_of(board.prompts[self.row].key) if voted else None
        self.cards[position].show_cell(
            cell,
            board.header.model_names[column_],
            hidden=board.hidden(self.row),
            votable=board.whole(self.row) and not voted,
            won=(winner == column_) if winner is not None else None,
        )

    def _show_acts(self) -> None:
        board = self.board
        if board is None:
            return
        whole, voted = board.whole(self.row), board.voted(self.row)
        for position in range(board.columns):
            self._show_card(position)
        self.tie.setEnabled(whole and not voted)
        self.withdraw.setVisible(voted)
        self.label.setEnabled(whole and not self._read_only)
        if not whole:
            words = "The answers are being written."
        elif not voted:
            words = f"Which answer is best? 1 to {board.columns}, or = for a tie."
        elif board.ballot.winner_of(board.prompts[self.row].key) is None:
            words = "Voted a tie."
        else:
            words = "Voted."
        self.message.setText(words)

    # ---- voting ---------------------------------------------------------------------------------------------

    def vote_for(self, column_: int | None) -> None:
        """Vote for a model's answer, or for none of them."""
        board = self.board
        if board is None or not board.whole(self.row) or board.voted(self.row):
            return
        board.ballot.vote(board.prompts[self.row].key, column_)
        self._after(TIE if column_ is None else column_)

    def withdraw_vote(self) -> None:
        """Take the vote on this prompt back."""
        board = self.board
        if board is not None and board.voted(self.row):
            board.ballot.withdraw(board.prompts[self.row].key)
            self._after(WITHDRAWN)

    def go_on(self) -> None:
        """Go to the next prompt without a vote, or else to the next one."""
        board = self.board
        if board is None:
            return
        open_ = board.next_to_vote(self.row)
        place = open_ if open_ >= 0 else (self.row + 1) % max(1, len(board.prompts))
        self.list.setCurrentRow(place)

    def _after(self, winner: int) -> None:
        self._mark(self.row)
        self._on_row(self.row)
        self.voted.emit(self.row, winner)

    def _vote_shown(self, position: int) -> None:
        board = self.board
        if board is not None and position < board.columns:
            self.vote_for(board.order(self.row)[position])

    def _on_card_voted(self, position: int) -> None:
        self._vote_shown(position)
