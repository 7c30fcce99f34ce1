"""Text that came from a model or a file, shown as it is: never as markup, never able to freeze the window."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from PySide6.QtCore import QEvent, QSize, Qt
from PySide6.QtGui import QTextOption
from PySide6.QtWidgets import QFrame, QPlainTextEdit, QPushButton, QSizePolicy, QVBoxLayout, QWidget

from ui.theme import XS, FontRole, font

VIEW_LIMIT = 20_000
"""So much is laid out at once; more takes longer than a frame or two, and is shown when asked for."""
TEXT_LIMIT = 200_000
UNBROKEN_LIMIT = 2_000
# Characters that change what the reader sees without being seen: bidi controls, zero width, C0/C1 controls.
_UNSEEN = re.compile("[\u202a-\u202e\u2066-\u2069\u200b\u200e\u200f\u2060\ufeff\u061c\x00-\x08\x0b-\x1f\x7f-\x9f]")
_UNBROKEN = re.compile(rf"\S{{{UNBROKEN_LIMIT}}}")
_NAMES = {
    "\u202a": "LRE",
    "\u202b": "RLE",
    "\u202c": "PDF",
    "\u202d": "LRO",
    "\u202e": "RLO",
    "\u2066": "LRI",
    "\u2067": "RLI",
    "\u2068": "FSI",
    "\u2069": "PDI",
    "\u200b": "ZWSP",
    "\u200e": "LRM",
    "\u200f": "RLM",
    "\u2060": "WJ",
    "\ufeff": "BOM",
    "\u061c": "ALM",
    "\x00": "NUL",
    "\x1b": "ESC",
}


class Shown(NamedTuple):
    """What the view shows of a text: ``hidden`` characters were cut off, ``marked`` unseen ones made visible."""

    text: str
    hidden: int
    marked: int


def text_for_view(text: str, limit: int | None = TEXT_LIMIT) -> Shown:
    """Prepare any text for display: cap it, break endless lines, make unseen characters visible.

    A Qt text view takes half a minute over one unbroken line of a megabyte, hence the breaks; they are in the view
    only, the record keeps its text.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    hidden = 0 if limit is None else max(0, len(text) - limit)
    if hidden:
        text = text[:limit]
    text, marked = _UNSEEN.subn(_mark, text)
    text = _drawable(text)
    text = _UNBROKEN.sub(lambda found: found.group() + "\n", text)
    return Shown(text, hidden, marked)


def visible(text: str) -> str:
    """Return words for a label or a row of a list, with the characters that nobody sees made visible."""
    return _drawable(_UNSEEN.sub(_mark, text.replace("\r", "\n")))


def _drawable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate cannot be drawn


def starts_rtl(text: str) -> bool:
    """Whether the first letter that has a direction runs from right to left."""
    for char in text[:1000]:
        kind = unicodedata.bidirectional(char)
        if kind in ("L", "R", "AL"):
            return kind != "L"
    return False


def _mark(found: re.Match[str]) -> str:
    char = found.group()
    return f"\u27e6{_NAMES.get(char, f'{ord(char):02X}')}\u27e7"


class PlainText(QWidget):
    """A read-only view of plain text with 'show all' for what is over ``VIEW_LIMIT`` characters.

    With ``fit=True`` it grows to its content (up to ``max_lines``) and scrolls inside only beyond that.
    """

    def __init__(
        self,
        text: str = "",
        *,
        name: str = "Text",
        role: FontRole = "body",
        fit: bool = False,
        max_lines: int = 40,
        frame: bool = True,
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self._full = ""
        self._limit: int | None = VIEW_LIMIT
        self._role: FontRole = role
        self._fit = fit
        self._max_lines = max_lines
        self.view = _View(self)
        self.view.setAccessibleName(name)
        if not frame:
            self.view.setFrameShape(QFrame.Shape.NoFrame)
            self.view.setStyleSheet("QPlainTextEdit { border: none; background: transparent; padding: 0; }")
        self._all = QPushButton(self)
        self._all.setProperty("kind", "quiet")
        self._all.hide()
        self._all.clicked.connect(self._on_all)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(XS)
        layout.addWidget(self.view, 1)
        layout.addWidget(self._all, 0, Qt.AlignmentFlag.AlignLeft)
        self.setFocusProxy(self.view)
        self._set_font()
        if fit:
            self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Maximum)
            self.view.resized = self._refit
            self.view.document().documentLayout().documentSizeChanged.connect(self._refit)
        self.set_text(text)

    def set_text(self, text: str) -> None:
        """Show ``text``."""
        self._full = text
        self._limit = VIEW_LIMIT
        self._show()

    def append_text(self, text: str) -> None:
        """Add text at the end (streaming); what is over the limit is kept, and shown when asked for."""
        before = len(self._full)
        self._full += text
        if before < 100:
            self._align(self._full)
        room = None if self._limit is None else max(0, self._limit - before)
        shown = text_for_view(text, room)
        cursor = self.view.textCursor()
        cursor.movePosition(cursor.MoveOperation.End)
        cursor.insertText(shown.text)
        if shown.hidden:
            self._offer(len(self._full) - (self._limit or 0))

    def text(self) -> str:
        """Return the whole text as it was given, not as it is shown."""
        return self._full

    def _on_all(self) -> None:
        self._limit = None
        self._show()

    def _show(self) -> None:
        shown = text_for_view(self._full, self._limit)
        self._align(shown.text)
        self.view.setPlainText(shown.text)
        self._offer(shown.hidden)

    def _offer(self, hidden: int) -> None:
        self._all.setText(f"Show all ({hidden:,} more characters)")
        self._all.setVisible(hidden > 0)

    def _align(self, text: str) -> None:
        # Qt orders the words of each paragraph by itself, but leaves right-to-left ones at the left edge.
        side = Qt.AlignmentFlag.AlignRight if starts_rtl(text) else Qt.AlignmentFlag.AlignLeft
        option = self.view.document().defaultTextOption()
        if option.alignment() != side:
            option.setAlignment(side)
            self.view.document().setDefaultTextOption(option)

    def changeEvent(self, event: QEvent) -> None:
        """Follow the text size."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.ApplicationFontChange, QEvent.Type.FontChange):
            self._set_font()

    def _set_font(self) -> None:
        wanted = font(self._role)
        if self.view.font() != wanted:
            self.view.setFont(wanted)

    def _refit(self) -> None:
        wanted = max(1, round(self.view.document().size().height()))
        lines = min(self._max_lines, wanted)
        bar = Qt.ScrollBarPolicy.ScrollBarAlwaysOff if wanted <= lines else Qt.ScrollBarPolicy.ScrollBarAsNeeded
        self.view.setVerticalScrollBarPolicy(bar)  # else rounding shows one for a fraction of a line
        # Two pixels more than the lines: with less than one Qt shows a scroll bar over nothing.
        padding = 2 * XS + 2 if self.view.frameShape() != QFrame.Shape.NoFrame else 2
        content = self.view.fontMetrics().lineSpacing() * lines + 2 * self.view.document().documentMargin()
        height = round(content) + padding
        if self.view.minimumHeight() != height or self.view.maximumHeight() != height:
            self.view.setFixedHeight(height)


class _View(QPlainTextEdit):
    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.resized = _nothing
        self.setReadOnly(True)
        self.setTabChangesFocus(True)
        self.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByMouse | Qt.TextInteractionFlag.TextSelectableByKeyboard
        )
        self.setLineWrapMode(QPlainTextEdit.LineWrapMode.WidgetWidth)
        self.setWordWrapMode(QTextOption.WrapMode.WrapAtWordBoundaryOrAnywhere)
        option = self.document().defaultTextOption()
        option.setTextDirection(Qt.LayoutDirection.LayoutDirectionAuto)
        self.document().setDefaultTextOption(option)
        self.setUndoRedoEnabled(False)

    def resizeEvent(self, event: object) -> None:
        super().resizeEvent(event)  # type: ignore[arg-type]
        self.resized()

    def minimumSizeHint(self) -> QSize:
        return QSize(80, self.fontMetrics().lineSpacing() * 2)


def _nothing() -> None:
    return None
