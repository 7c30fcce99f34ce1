"""Writes a new prompt: system, user and assistant turns, tags, and the split it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PySide6.QtCore import Qt, QTimer, Signal, SignalInstance
from PySide6.QtGui import QKeySequence, QShortcut
from PySide6.QtWidgets import QComboBox, QDialog, QFrame, QLineEdit, QPlainTextEdit, QScrollArea, QVBoxLayout, QWidget

from ui.context import Context
from ui.conversation_view import ROLE_NAMES
from ui.operations import bind_future, run_task
from ui.theme import L, M, S
from ui.widgets import ErrorBanner, IconButton, Text, button, column, plural, row
from workbench.ids import new_id, now
from workbench.near_duplicates import near, search_words
from workbench.records import Change, Message, Prompt, Role

CHECK_AFTER_MS = 400
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


def problem_of(messages: Sequence[Message]) -> str:
    """Say why a conversation cannot be a prompt; "" when it can."""
    if not messages or all(not one.content.strip() for one in messages):
        return "Write what the user says."
    for number, one in enumerate(messages, 1):
        if not one.content.strip():
            return f"Turn {number} ({ROLE_NAMES[one.role].lower()}) is empty."
        if one.role == "system" and number > 1:
            return "The system turn can only come first."
        if number > 1 and one.role == messages[number - 2].role:
            return f"Turns {number - 1} and {number} are both the {one.role}'s: user and assistant take turns."
    first = next((one for one in messages if one.role != "system"), None)
    if first is None or first.role != "user":
        return "After the system turn the user speaks first."
    if messages[-1].role != "user":
        return "The last turn must be the user's: the response comes after it."
    return ""


def tags_of(text: str) -> tuple[str, ...]:
    """Split comma-separated tags, each once, in the order written."""
    return tuple(dict.fromkeys(word for part in text.split(",") if (word := " ".join(part.split()))))


@dataclass(frozen=True, slots=True)
class _Alike:
    same: list[Prompt]
    near: list[tuple[float, Prompt]]


class TurnEditor(QFrame):
    """One turn: who speaks, and the words. ``changed()`` and ``removed()`` tell of edits."""

    changed: SignalInstance = Signal()  # type: ignore[assignment]
    removed: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(self, role: Role, text: str = "", parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.role = QComboBox()
        self.role.setAccessibleName("Who speaks")
        for one in ROLES:
            self.role.addItem(ROLE_NAMES[one], one)
        self.role.setCurrentIndex(ROLES.index(role))
        self.role.currentIndexChanged.connect(lambda _: self.changed.emit())
        self.text = QPlainTextEdit(text)
        self.text.setAccessibleName("Words of this turn")
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

    def message(self) -> Message:
        """Return the turn."""
        return Message(ROLES[self.role.currentIndex()], self.text.toPlainText().strip())


class PromptDialog(QDialog):
    """``added(prompt_id)`` is sent after the prompt is committed; ``opened(prompt_id)`` for one that exists."""

    added: SignalInstance = Signal(str)  # type: ignore[assignment]
    opened: SignalInstance = Signal(str)  # type: ignore[assignment]

    def __init__(self, context: Context, tags: Sequence[str] = (), parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("prompt-dialog")
        self.setWindowTitle("New prompt")
        self.resize(720, 560)
        self._context = context
        self._id = new_id()  # kept over a failed save: trying again cannot add it twice
        self._saving = False
        self._asked = 0
        self._turns: list[TurnEditor] = []
        self._box = QVBoxLayout()
        self._box.setContentsMargins(0, 0, 0, 0)
        self._box.setSpacing(M)
        self._box.addStretch(1)
        inner = QWidget()
        inner.setLayout(self._box)
        self.area = QScrollArea()
        self.area.setWidgetResizable(True)
        self.area.setFrameShape(QFrame.Shape.NoFrame)
        self.area.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.area.setWidget(inner)
        self.tags = QLineEdit(", ".join(tags))
        self.tags.setObjectName("tags")
        self.tags.setPlaceholderText("Tags, separated by commas")
        self.tags.setAccessibleName("Tags")
        self.split = QComboBox()
        self.split.setAccessibleName("Split")
        self.split.addItem("Train", "train")
        self.split.addItem("Held-out (never trains anything)", "held-out")
        self.about = Text("", "small", "muted", wrap=True)
        self.about.setObjectName("about")
        self.banner = ErrorBanner()
        self.banner.action_clicked.connect(self._open_same)
        self.add = button("Add prompt", self.save, kind="primary", name="add-prompt", tip="Ctrl+Enter")
        self._same: Prompt | None = None
        add_turn = button("Add turn", self.add_turn, name="add-turn")
        add_system = button("Add system turn", self.add_system, name="add-system")
        self.add_system_button = add_system
        ends = row(self.tags, self.split, spacing=S)
        ends.setStretch(0, 1)
        buttons = row(self.about, button("Cancel", self.reject), self.add, spacing=S)
        buttons.setStretch(0, 1)
        layout = column(spacing=M, margins=(L, L, L, M))
        layout.addWidget(self.area, 1)
        layout.addLayout(row(add_turn, add_system, None, spacing=S))
        layout.addLayout(ends)
        layout.addWidget(self.banner)
        layout.addLayout(buttons)
        self.setLayout(layout)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(CHECK_AFTER_MS)
        self._timer.timeout.connect(self._look_for_alike)
        shortcut = QShortcut(QKeySequence("Ctrl+Return"), self)
        shortcut.activated.connect(self.save)
        self._insert(0, "user").text.setFocus()
        self._refresh()

    # ---- turns ----------------------------------------------------------------------------------------------

    def messages(self) -> tuple[Message, ...]:
        """Return what is written."""
        return tuple(one.message() for one in self._turns)

    @property
    def turns(self) -> list[TurnEditor]:
        """The turns, first to last."""
        return list(self._turns)

    def add_turn(self) -> None:
        """Add a turn at the end, by whoever did not speak last."""
        last = self._turns[-1].message().role if self._turns else "assistant"
        self._insert(len(self._turns), "assistant" if last == "user" else "user").text.setFocus()

    def add_system(self) -> None:
        """Add a system turn at the start."""
        self._insert(0, "system").text.setFocus()

    def _insert(self, place: int, role: Role) -> TurnEditor:
        made = TurnEditor(role)
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
        self._timer.start()
        self._refresh()

    def _refresh(self) -> None:
        if not hasattr(self, "add_system_button"):
            return
        problem = problem_of(self.messages())
        self.about.setText(problem)
        self.add.setEnabled(not problem and not self._saving)
        self.add_system_button.setEnabled(not any(one.message().role == "system" for one in self._turns))
        for one in self._turns:
            one.remove.setEnabled(len(self._turns) > 1)

    # ---- near duplicates ------------------------------------------------------------------------------------

    def _look_for_alike(self) -> None:
        messages, store = self.messages(), self._context.store
        self._asked += 1
        asked = self._asked
        if problem_of(messages):
            self._show_alike(_Alike([], []))
            return

        def work() -> _Alike:
            same = store.find_duplicates(messages)
            words = search_words(messages)
            candidates = {one.id: one for some in (words, words[:1]) if some for one in _search(store, some)}
            for one in same:
                candidates.pop(one.id, None)
            return _Alike(same, near(messages, candidates.values()))

        run_task(work, lambda found: self._show_alike(found) if asked == self._asked else None, owner=self)

    def _show_alike(self, found: _Alike) -> None:
        self._same = found.same[0] if found.same else found.near[0][1] if found.near else None
        if found.same:
            self.banner.show_message("This prompt exists already", found.same[0].title[:200], "warn", "Open it")
        elif found.near:
            likeness, nearest = found.near[0]
            others = f" ({plural(len(found.near), 'prompt')} like it)" if len(found.near) > 1 else ""
            self.banner.show_message(
                f"Nearly the same as one you have: {likeness:.0%} of the words{others}",
                nearest.title[:200],
                "warn",
                "Open it",
            )
        else:
            self.banner.hide()

    def _open_same(self) -> None:
        if self._same is not None:
            self.opened.emit(self._same.id)
            self.reject()

    # ---- saving ---------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Save the prompt; the dialog closes after the commit."""
        messages = self.messages()
        if problem_of(messages) or self._saving:
            return
        self._saving = True
        self._refresh()
        prompt = Prompt(
            self._id,
            messages,
            tags_of(self.tags.text()),
            source="written",
            split=self.split.currentData(),
            created_at=now(),
        )
        bind_future(self._context.store.add_prompts([prompt]), self._on_saved, self._on_failed, owner=self)

    def _on_saved(self, _change: Change) -> None:
        self.added.emit(self._id)
        self.accept()

    def _on_failed(self, error: BaseException) -> None:
        self._saving = False
        self._same = None
        self.banner.show_error(error)
        self._refresh()


def _search(store: object, words: Sequence[str]) -> list[Prompt]:
    found: list[Prompt] = store.prompts(search=" ".join(words), limit=50)  # type: ignore[attr-defined]
    return found
