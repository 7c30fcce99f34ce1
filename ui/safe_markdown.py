"""Markdown into a text document by hand: no HTML, no images, no links that open anything."""

from __future__ import annotations

from collections.abc import Sequence

from markdown_it import MarkdownIt
from markdown_it.token import Token
from PySide6.QtGui import (
    QBrush,
    QColor,
    QTextBlockFormat,
    QTextCharFormat,
    QTextCursor,
    QTextDocument,
    QTextFormat,
    QTextFrameFormat,
    QTextListFormat,
)

from ui.plain_text import text_for_view
from ui.theme import M, S, colours, font

_PARSER = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable("table").disable("image")


def render(text: str, document: QTextDocument) -> None:
    """Replace a document's content by Markdown, in the theme's type and colours."""
    document.clear()
    document.setDefaultFont(font("body"))
    document.setIndentWidth(M + S)
    _Writer(document).write(_PARSER.parse(text_for_view(text).text))


class _Writer:
    def __init__(self, document: QTextDocument) -> None:
        self._document = document
        self._cursor = QTextCursor(document)
        self._first = True
        self._lists: list[QTextListFormat.Style] = []
        self._item_open = False
        self._quote = 0
        self._theme = colours()

    def write(self, tokens: Sequence[Token]) -> None:
        cells: list[str] = []
        for at, token in enumerate(tokens):
            kind = token.type
            if kind == "heading_open":
                self._heading(int(token.tag[1:]), tokens[at + 1])
            elif kind == "inline" and tokens[at - 1].type == "paragraph_open":
                self._paragraph(token)
            elif kind in ("fence", "code_block"):
                self._code(token.content)
            elif kind in ("bullet_list_open", "ordered_list_open"):
                ordered = kind.startswith("ordered")
                self._lists.append(QTextListFormat.Style.ListDecimal if ordered else QTextListFormat.Style.ListDisc)
            elif kind in ("bullet_list_close", "ordered_list_close"):
                self._lists.pop()
            elif kind == "list_item_open":
                self._item_open = True
            elif kind == "blockquote_open":
                self._quote += 1
            elif kind == "blockquote_close":
                self._quote -= 1
            elif kind == "inline" and tokens[at - 1].type in ("th_open", "td_open"):
                cells.append(_flat(token))
            elif kind == "tr_close":
                self._block(S // 2, 0)
                self._cursor.insertText("   ".join(cells), self._char())
                cells = []

    def _block(self, above: int, below: int, *, indent: int = 0) -> None:
        shape = QTextBlockFormat()
        shape.setTopMargin(0 if self._first else above)
        shape.setBottomMargin(below)
        shape.setLeftMargin(M * (indent + self._quote))
        shape.setLineHeight(125, QTextBlockFormat.LineHeightTypes.ProportionalHeight.value)
        if self._first:
            self._cursor.setBlockFormat(shape)
        else:
            self._cursor.insertBlock(shape, QTextCharFormat())
        self._first = False

    def _heading(self, level: int, inline: Token) -> None:
        self._block(M + S if level > 1 else 0, S)
        shape = self._cursor.blockFormat()
        shape.setHeadingLevel(level)
        self._cursor.setBlockFormat(shape)
        self._inline(inline, _with_font(self._char(), "title" if level == 1 else "heading"))

    def _paragraph(self, inline: Token) -> None:
        in_list = bool(self._lists)
        self._block(2 if in_list else S, 2 if in_list else S)
        if in_list and self._item_open:
            look = QTextListFormat()
            look.setStyle(self._lists[-1])
            look.setIndent(len(self._lists))
            before = self._cursor.block().previous()
            existing = before.textList() if before.isValid() else None
            if existing is not None and existing.format().indent() == len(self._lists):
                existing.add(self._cursor.block())
            else:
                self._cursor.createList(look)
            self._item_open = False
        self._inline(inline, self._char())

    def _code(self, content: str) -> None:
        frame = QTextFrameFormat()
        frame.setBackground(QBrush(QColor(self._theme.raised)))
        frame.setBorderStyle(QTextFrameFormat.BorderStyle.BorderStyle_None)
        frame.setPadding(S)
        frame.setTopMargin(S)
        frame.setBottomMargin(S)
        self._cursor.insertFrame(frame)
        self._first = True
        self._block(0, 0)
        lines = "\u2028".join(content.rstrip("\n").split("\n"))
        self._cursor.insertText(lines, _with_font(self._char(), "mono-small"))
        self._cursor = self._document.rootFrame().lastCursorPosition()
        self._first = True  # the block after the frame is there already

    def _inline(self, inline: Token, look: QTextCharFormat) -> None:
        stack = [look]
        target = ""
        for token in inline.children or ():
            kind = token.type
            if kind == "text":
                self._cursor.insertText(token.content, stack[-1])
            elif kind == "code_inline":
                code = _with_font(QTextCharFormat(stack[-1]), "mono")
                code.setBackground(QBrush(QColor(self._theme.raised)))
                self._cursor.insertText(token.content, code)
            elif kind == "strong_open":
                stack.append(_with_font(QTextCharFormat(stack[-1]), "strong"))
            elif kind == "em_open":
                slanted = QTextCharFormat(stack[-1])
                slanted.setFontItalic(True)
                stack.append(slanted)
            elif kind == "link_open":
                target = str(token.attrs.get("href", ""))
            elif kind == "link_close":
                self._cursor.insertText(f" <{target}>", stack[-1])
            elif kind in ("strong_close", "em_close"):
                stack.pop()
            elif kind in ("softbreak", "hardbreak"):
                self._cursor.insertText(" " if kind == "softbreak" else "\u2028", stack[-1])

    def _char(self) -> QTextCharFormat:
        look = QTextCharFormat()
        look.setForeground(QBrush(QColor(self._theme.muted if self._quote else self._theme.text)))
        look.setProperty(QTextFormat.Property.UserProperty, 0)
        return look


def _with_font(look: QTextCharFormat, role: str) -> QTextCharFormat:
    look.setFont(font(role))  # type: ignore[arg-type]
    return look


def _flat(inline: Token) -> str:
    return "".join(child.content for child in inline.children or ())
