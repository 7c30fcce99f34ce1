"""A conversation as plain text: who speaks in a quiet line, then exactly what was said."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QEvent
from PySide6.QtGui import QColor, QTextCharFormat, QTextCursor
from PySide6.QtWidgets import QWidget

from ui.plain_text import PlainText, text_for_view
from ui.theme import colours, font
from workbench.records import Message

ROLE_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}


class ConversationView(PlainText):
    """Shows messages; a lone user turn stands without its role, since there is nothing to tell apart."""

    def __init__(
        self, *, name: str = "Prompt", fit: bool = True, max_lines: int = 10, parent: QWidget | None = None
    ) -> None:
        self._messages: tuple[Message, ...] = ()
        super().__init__(name=name, fit=fit, max_lines=max_lines, frame=False, parent=parent)
        self.view.document().setDocumentMargin(0)

    def messages(self) -> tuple[Message, ...]:
        """Return what is shown."""
        return self._messages

    def set_messages(self, messages: Sequence[Message]) -> None:
        """Show a conversation, scrolled to its last turn when it does not fit."""
        self._messages = tuple(messages)
        if len(messages) == 1 and messages[0].role == "user":
            self.set_text(messages[0].content)
            return
        self.set_text("")
        self._full = "\n\n".join(f"{ROLE_NAMES[one.role]}\n{one.content}" for one in messages)
        self._align(messages[-1].content if messages else "")
        plain, quiet = QTextCharFormat(), QTextCharFormat()
        quiet.setFont(font("small"))
        quiet.setForeground(QColor(colours(self).muted))
        cursor = QTextCursor(self.view.document())
        cursor.beginEditBlock()
        for index, one in enumerate(messages):
            cursor.insertText(("\n\n" if index else "") + ROLE_NAMES[one.role] + "\n", quiet)
            cursor.insertText(text_for_view(one.content).text or "(empty)", plain)
        cursor.endEditBlock()
        bar = self.view.verticalScrollBar()
        bar.setValue(bar.maximum())

    def changeEvent(self, event: QEvent) -> None:
        """Draw the role lines anew when the theme changes."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange and len(self._messages) > 1:
            self.set_messages(self._messages)
