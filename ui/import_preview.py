"""The first rows of a file as text: as they were understood, or as the model's template renders them."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QPersistentModelIndex, Qt
from PySide6.QtGui import QBrush, QColor, QTextBlockFormat, QTextCharFormat, QTextCursor, QTextDocument

from ui.conversation_view import ROLE_NAMES
from ui.plain_text import text_for_view, visible
from ui.theme import M, S, colours, font
from workbench.formats.parsed import Rejected
from workbench.formats.preview import PreviewRow, RenderedAnswer

TEXT_LIMIT = 4000
_Index = QModelIndex | QPersistentModelIndex
_ANSWER_WORDS = {
    "completion": "Demonstration",
    "wanted": "Wanted",
    "unwanted": "Unwanted",
    "chosen": "Chosen",
    "rejected": "Rejected",
    "prompt": "Prompt",
}
_ANSWER_TONES = {"completion": "accent", "wanted": "good", "unwanted": "bad", "chosen": "good", "rejected": "bad"}


def write_rows(document: QTextDocument, rows: Sequence[PreviewRow], numbered_by: str = "line") -> None:
    """Show rows as conversations: who says what, and which text is the label."""
    out = _Writer(document)
    for row in rows:
        out.head(numbered_by, row)
        for message in row.prompt:
            out.turn(ROLE_NAMES[message.role], message.content, "")
        for name, text in row.answers:
            if name != "prompt":
                out.turn(_ANSWER_WORDS[name], text, _ANSWER_TONES[name])


def write_rendered(
    document: QTextDocument,
    rows: Sequence[PreviewRow],
    rendered: Sequence[Sequence[RenderedAnswer]],
    numbered_by: str = "line",
) -> None:
    """Show rows as the engine rendered them, trained spans on a coloured ground and underlined."""
    out = _Writer(document)
    for row, answers in zip(rows, rendered, strict=True):
        out.head(numbered_by, row)
        for answer in answers:
            out.spans(f"{_ANSWER_WORDS[answer.name]}, {answer.tokens:,} tokens", answer)


class _Writer:
    def __init__(self, document: QTextDocument) -> None:
        document.clear()
        document.setDefaultFont(font("body"))
        document.setDocumentMargin(S)
        self._cursor = QTextCursor(document)
        self._theme = colours()
        self._first = True

    def head(self, word: str, row: PreviewRow) -> None:
        self._block(M + S)
        self._put(f"{word.capitalize()} {row.line}", self._look("heading"))
        if row.note:
            self._put(f"    {row.note}", self._look("small", self._theme.muted))

    def turn(self, who: str, text: str, tone: str) -> None:
        self._block(S)
        self._put(who, self._look("small", self._theme.tone(tone)[0] if tone else self._theme.muted))
        self._text(text or "(empty)", self._look("body"))

    def spans(self, title: str, answer: RenderedAnswer) -> None:
        self._block(S)
        self._put(title, self._look("small", self._theme.muted))
        self._block(2)
        left = TEXT_LIMIT
        for text, trained in answer.spans:
            look = self._look("mono")
            if trained:
                look.setBackground(QBrush(QColor(self._theme.trained)))
                look.setUnderlineStyle(QTextCharFormat.UnderlineStyle.DotLine)
                look.setUnderlineColor(QColor(self._theme.good))
            for number, line in enumerate(text_for_view(text, left).text.split("\n")):
                if number:
                    self._put("\u2028", look)
                self._put(line, look)
            left = max(0, left - len(text))

    def _text(self, text: str, look: QTextCharFormat) -> None:
        shown = text_for_view(text, TEXT_LIMIT)
        for number, line in enumerate(shown.text.split("\n")):
            self._block(2 if number == 0 else 0)
            self._put(line, look)
        if shown.hidden:
            self._block(0)
            self._put(f"… {shown.hidden:,} more characters", self._look("small", self._theme.muted))

    def _block(self, above: int) -> None:
        shape = QTextBlockFormat()
        shape.setTopMargin(0 if self._first else above)
        if self._first:
            self._cursor.setBlockFormat(shape)
        else:
            self._cursor.insertBlock(shape, QTextCharFormat())
        self._first = False

    def _put(self, text: str, look: QTextCharFormat) -> None:
        self._cursor.insertText(text, look)

    def _look(self, role: str, colour: str = "") -> QTextCharFormat:
        look = QTextCharFormat()
        look.setFont(font(role))  # type: ignore[arg-type]
        look.setForeground(QBrush(QColor(colour or self._theme.text)))
        return look


class RejectedModel(QAbstractTableModel):
    """Rows that cannot be imported: where, why, and how they begin."""

    _HEADS = ("Line", "Why it is left out", "How it begins")

    def __init__(self, rejected: Sequence[Rejected] = (), numbered_by: str = "line") -> None:
        super().__init__()
        self._rows = list(rejected)
        self._word = numbered_by

    def set_rows(self, rejected: Sequence[Rejected], numbered_by: str) -> None:
        """Show other rows."""
        self.beginResetModel()
        self._rows, self._word = list(rejected), numbered_by
        self.endResetModel()

    def rowCount(self, parent: _Index | None = None) -> int:
        """Count the rows."""
        return 0 if parent is not None and parent.isValid() else len(self._rows)

    def columnCount(self, parent: _Index | None = None) -> int:
        """Count the columns."""
        return 0 if parent is not None and parent.isValid() else 3

    def data(self, index: _Index, role: int = Qt.ItemDataRole.DisplayRole) -> str | None:
        """Return a cell's text."""
        if not index.isValid() or role not in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.AccessibleTextRole):
            return None
        row = self._rows[index.row()]
        return visible((f"{row.line:,}", row.reason, row.excerpt)[index.column()])

    def headerData(
        self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole
    ) -> str | None:
        """Return a column's heading."""
        if orientation != Qt.Orientation.Horizontal or role != Qt.ItemDataRole.DisplayRole:
            return None
        return self._word.capitalize() if section == 0 else self._HEADS[section]
