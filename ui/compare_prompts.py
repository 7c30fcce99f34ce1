"""Prompts of a comparison that are not taken by split or tag: typed ones, and ones chosen by hand."""

from __future__ import annotations

from PySide6.QtCore import Signal, SignalInstance
from PySide6.QtWidgets import QPlainTextEdit, QWidget

from ui.checklist import MOST, Checklist, Entry
from ui.context import Context
from ui.project_dialogs import Sheet
from ui.theme import S
from ui.turns_editor import TurnsEditor
from ui.widgets import Text, button, column, plural, row
from workbench.comparisons import Asked
from workbench.ids import new_id
from workbench.records import Message, Split


class TypedPrompts(QWidget):
    """One prompt a paragraph, and conversations of several turns beside. ``edited()`` tells of a change."""

    edited: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._conversations: list[tuple[Message, ...]] = []
        self.text = QPlainTextEdit()
        self.text.setObjectName("typed-prompts")
        self.text.setAccessibleName("Prompts, one a paragraph")
        self.text.setPlaceholderText("One prompt a paragraph; an empty line begins the next one")
        self.text.setTabChangesFocus(True)
        self.text.setFixedHeight(88)
        self.text.textChanged.connect(self.edited)
        self.about = Text("", "small", "muted")
        self.drop = button("Remove the last", self._on_drop, kind="quiet", name="drop-conversation")
        add = button("Add a conversation…", self.ask_conversation, kind="quiet", name="add-conversation")
        add.setToolTip("A prompt of several turns, or with a system turn")
        self.setLayout(column(self.text, row(self.about, None, self.drop, add, spacing=S), spacing=S))
        self._say()

    def prompts(self) -> list[Asked]:
        """Return what is typed."""
        paragraphs = [part.strip() for part in self.text.toPlainText().replace("\r\n", "\n").split("\n\n")]
        found = [(Message("user", part),) for part in paragraphs if part] + self._conversations
        return [Asked(key=new_id(), messages=messages) for messages in found]

    def is_empty(self) -> bool:
        """Whether nothing is typed."""
        return not self._conversations and not self.text.toPlainText().strip()

    def ask_conversation(self) -> None:
        """Open the editor for a prompt of several turns."""
        sheet = ConversationSheet(self)
        sheet.written.connect(self._on_written)
        sheet.open()

    def _on_written(self, messages: tuple[Message, ...]) -> None:
        self._conversations.append(messages)
        self._say()
        self.edited.emit()

    def _on_drop(self) -> None:
        self._conversations.pop()
        self._say()
        self.edited.emit()

    def _say(self) -> None:
        count = len(self._conversations)
        self.about.setText(f"And {plural(count, 'conversation')}" if count else "")
        self.drop.setVisible(count > 0)


class ConversationSheet(Sheet):
    """``written(tuple[Message, ...])`` tells of a conversation that ends in a user's turn."""

    written: SignalInstance = Signal(object)  # type: ignore[assignment]

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("Add a conversation", "The models answer its last turn.", parent)
        self.resize(680, 520)
        self.editor = TurnsEditor()
        self.editor.edited.connect(self._refresh)
        self.about = Text("", "small", "muted", wrap=True)
        self.body.addWidget(self.editor, 1)
        self.body.addWidget(self.about)
        self.add = button("Add", self._on_add, kind="primary", name="conversation-add")
        self.buttons.addWidget(button("Cancel", self.reject))
        self.buttons.addWidget(self.add)
        self.editor.setFocus()
        self._refresh()

    def _refresh(self) -> None:
        problem = self.editor.problem()
        self.about.setText(problem)
        self.add.setEnabled(not problem)

    def _on_add(self) -> None:
        self.written.emit(self.editor.messages())
        self.accept()


def prompt_checklist(context: Context, checked: list[str], parent: QWidget) -> Checklist:
    """Make the sheet that chooses prompts of the project: held-out ones first, since no model has trained on them."""
    store = context.store

    def read(search: str) -> list[Entry]:
        splits: tuple[Split, ...] = ("held-out", "train")
        found = [one for split in splits for one in store.prompts(search=search, split=split, limit=MOST)]
        return [
            Entry(
                one.id,
                one.title[:200] or "(no user turn)",
                " · ".join([*(["held-out"] if one.split == "held-out" else []), *one.tags]),
            )
            for one in found[:MOST]
        ]

    return Checklist(
        "Choose prompts",
        "Held-out prompts come first: what a model has trained on says little about the next question.",
        read,
        checked,
        parent,
    )
