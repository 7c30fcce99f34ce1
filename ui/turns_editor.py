"""Writes a conversation: system, user and assistant turns, one under the other."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import Qt, Signal, SignalInstance
from PySide6.QtWidgets import QComboBox, QFrame, QPlainTextEdit, QScrollArea, QVBoxLayout, QWidget

from ui.conversation_view import ROLE_NAMES
from ui.labels import sentence
from ui.theme import M, S
from ui.widgets import IconButton, button, column, row
from workbench.records import Message, Role
from workbench.turns import prompt_fault

ROLES: tuple[Role, ...] = ("system", "user", "assistant")


class TurnEditor(QFrame):
    """One turn: who speaks, and the words. ``changed()`` and ``removed()`` tell of edits."""

    changed: SignalInstance = Signal()  # type: ignore[assignment]
    removed: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(self, role: Role, text: str = "", parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.role = QComboBox()
        for one in ROLES:
            self.role.addItem(ROLE_NAMES[one], one)
        self.role.setCurrentIndex(ROLES.index(role))
        self.role.currentIndexChanged.connect(lambda _: self.changed.emit())
        self.text = QPlainTextEdit(text)
        self.text.setTabChangesFocus(True)
        self.text.setMinimumHeight(72)
        self.text.textChanged.connect(self.changed)
        remove = IconButton("trash", "Remove this turn", self.removed.emit)
        self.remove = remove
        side = column(self.role, row(remove, None), None, spacing=S)
        line = row(spacing=S)
        line.addLayout(side)
        line.addWidget(self.text, 1)
        self.setLayout(line)
        self.role.setFixedWidth(112)

    def set_number(self, number: int) -> None:
        """Say which turn it is."""
        self.role.setAccessibleName(f"Turn {number}: who speaks")
        self.text.setAccessibleName(f"Turn {number}: words")
        self.remove.setAccessibleName(f"Remove turn {number}")

    def message(self) -> Message:
        """Return the turn."""
        return Message(ROLES[self.role.currentIndex()], self.text.toPlainText().strip())


class TurnsEditor(QWidget):
    """A conversation that is being written. ``edited()`` tells of every change."""

    edited: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(self, messages: Sequence[Message] = (), parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._turns: list[TurnEditor] = []
        self._box = QVBoxLayout()
        self._box.setContentsMargins(0, 0, 0, 0)
        self._box.setSpacing(M)
        self._box.addStretch(1)
        inner = QWidget()
        inner.setLayout(self._box)
        area = QScrollArea()
        area.setWidgetResizable(True)
        area.setFrameShape(QFrame.Shape.NoFrame)
        area.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        area.setWidget(inner)
        self._add_system = button("Add system turn", self.add_system, name="add-system")
        layout = column(spacing=M)
        layout.addWidget(area, 1)
        layout.addLayout(row(button("Add turn", self.add_turn, name="add-turn"), self._add_system, None, spacing=S))
        self.setLayout(layout)
        for one in messages or (Message("user", ""),):
            self._insert(len(self._turns), one.role, one.content)
        self.setFocusProxy(self._turns[-1].text)

    @property
    def turns(self) -> list[TurnEditor]:
        """The turns, first to last."""
        return list(self._turns)

    def messages(self) -> tuple[Message, ...]:
        """Return what is written."""
        return tuple(one.message() for one in self._turns)

    def problem(self) -> str:
        """Say why this cannot be a prompt; "" when it can."""
        return "Write what the user says." if self.is_blank() else sentence(prompt_fault(self.messages()))

    def is_blank(self) -> bool:
        """Whether no turn has a word."""
        return not any(one.content for one in self.messages())

    def add_turn(self) -> None:
        """Add a turn at the end, by whoever did not speak last."""
        last = self._turns[-1].message().role if self._turns else "assistant"
        self._insert(len(self._turns), "assistant" if last == "user" else "user").text.setFocus()

    def add_system(self) -> None:
        """Add a system turn at the start."""
        self._insert(0, "system").text.setFocus()

    def _insert(self, place: int, role: Role, text: str = "") -> TurnEditor:
        made = TurnEditor(role, text)
        made.changed.connect(self._on_edited)
        made.removed.connect(lambda: self._remove(made))
        self._turns.insert(place, made)
        self._box.insertWidget(place, made)
        self._on_edited()
        return made

    def _remove(self, turn: TurnEditor) -> None:
        if len(self._turns) > 1:
            self._turns.remove(turn)
            self._box.removeWidget(turn)
            turn.deleteLater()
            self._on_edited()

    def _on_edited(self) -> None:
        self._add_system.setEnabled(not any(one.message().role == "system" for one in self._turns))
        for number, one in enumerate(self._turns, 1):
            one.set_number(number)
            one.remove.setEnabled(len(self._turns) > 1)
        self.edited.emit()
