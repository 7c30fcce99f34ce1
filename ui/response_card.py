"""One response on the ranking screen: its place large enough to read at a glance, its whole text, its place buttons."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QEvent, QObject, QRectF, QSize, Qt, Signal, SignalInstance
from PySide6.QtGui import (
    QColor,
    QFocusEvent,
    QFont,
    QGuiApplication,
    QKeyEvent,
    QMouseEvent,
    QPainter,
    QPaintEvent,
    QPen,
    QTextCharFormat,
    QTextCursor,
)
from PySide6.QtWidgets import QHBoxLayout, QSizePolicy, QTextEdit, QToolButton, QVBoxLayout, QWidget

from ui.plain_text import PlainText
from ui.rank_state import LETTERS
from ui.theme import RADIUS, M, S, colours, font
from ui.widgets import Pill, Text, column, row

BADGE = 40
FEW = 5  # up to here the place buttons and the remarks fit beside each other
EMPTY = "(empty)"


class PlaceBadge(QWidget):
    """The place of a response as a large figure; an open ring while it has none."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._place = ""
        self.setFixedSize(BADGE, BADGE)

    def set(self, place: str) -> None:
        """Show "1", "2=" or "" for none."""
        if place != self._place:
            self._place = place
            self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw it: the first place filled, the others soft."""
        theme = colours(self)
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        box = QRectF(self.rect()).adjusted(1, 1, -1, -1)
        if not self._place:
            pen = QPen(QColor(theme.border_strong), 1.5, Qt.PenStyle.DashLine)
            painter.setPen(pen)
            painter.drawRoundedRect(box, S, S)
            return
        first = self._place.startswith("1")
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(theme.accent_fill if first else theme.accent_soft))
        painter.drawRoundedRect(box, S, S)
        painter.setPen(QColor(theme.on_accent if first else theme.accent))
        figure = font("number")
        figure.setWeight(QFont.Weight.Bold)
        painter.setFont(figure)
        painter.drawText(box, int(Qt.AlignmentFlag.AlignCenter), self._place)


class ResponseCard(QWidget):
    """A response with its place.

    ``place_clicked(position, place)`` tells of a place button, ``focused(position)`` of a click or Tab into the card.
    """

    place_clicked: SignalInstance = Signal(int, int)  # type: ignore[assignment]
    focused: SignalInstance = Signal(int)  # type: ignore[assignment]

    def __init__(self, position: int, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.position = position
        self.letter = LETTERS[position]
        self._current = False
        self._marks: list[tuple[int, int]] = []
        self._pills_below = False
        self._response = ""
        self.setObjectName(f"card-{self.letter}")
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setMinimumSize(232, 192)  # two rows fit a window of 1280 x 800
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.badge = PlaceBadge()
        self.name = Text(self.letter, "heading")
        self.origin = Text("", "small", "muted")  # who wrote it; filled only where the card is not blind
        self.pills = QHBoxLayout()
        self.pills.setSpacing(4)
        self._pills: list[Pill] = []
        self.text = PlainText(name=f"Response {self.letter}", frame=False)
        view = self.text.view
        view.document().setDocumentMargin(0)
        view.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        view.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        view.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        view.viewport().installEventFilter(self)
        self._places: list[QToolButton] = []
        self._place_row = row(spacing=2)
        self._head = row(self.badge, self.name, spacing=12)
        self._head.addLayout(self.pills)
        self._head.addStretch(1)
        self._head.addLayout(self._place_row)
        self.origin.hide()
        outer = column(self._head, self.origin, self.text, spacing=S, margins=(M, 12, M, 12))
        outer.setStretch(2, 1)
        self.setLayout(outer)

    def sizeHint(self) -> QSize:
        """Ask for a readable column."""
        return QSize(360, 320)

    # ---- content --------------------------------------------------------------------------------------------

    def set_response(self, text: str, count: int) -> None:
        """Show a whole response on a card of ``count``; an empty one says so."""
        self._response = text
        self._marks = []
        self.text.view.setExtraSelections([])
        self.text.set_text(text if text.strip() else "")
        if not text.strip():
            quiet = QTextCharFormat()
            quiet.setForeground(QColor(colours(self).muted))
            QTextCursor(self.text.view.document()).insertText(EMPTY, quiet)
        self.text.view.verticalScrollBar().setValue(0)
        self._set_place_count(count)

    def append(self, text: str) -> None:
        """Add words to a response that is being written."""
        self._response += text
        bar = self.text.view.verticalScrollBar()
        at_end = bar.value() >= bar.maximum() - 4
        self.text.append_text(text)
        if at_end:
            bar.setValue(bar.maximum())

    def start_stream(self) -> None:
        """Empty the card for a response that is about to be written."""
        self._response = ""
        self.text.set_text("")
        self._set_place_count(0)
        self.show_place("", 0)

    def response(self) -> str:
        """Return the response as it was given."""
        return self._response

    def shown_text(self) -> str:
        """Return the text as it stands in the view, which is what differences are computed on."""
        return self.text.view.toPlainText()

    def copy(self) -> None:
        """Copy the selected words, or the whole response."""
        selected = self.text.view.textCursor().selectedText().replace("\u2029", "\n")
        QGuiApplication.clipboard().setText(selected or self._response)

    def set_pills(self, pills: Sequence[tuple[str, str]]) -> None:
        """Show short remarks as (word, tone): twins, cut off, flags."""
        while len(self._pills) < len(pills):
            made = Pill()
            self._pills.append(made)
            self.pills.insertWidget(len(self._pills) - 1, made)
        for index, pill in enumerate(self._pills):
            pill.setVisible(index < len(pills))
            if index < len(pills):
                pill.set(*pills[index])

    def set_origin(self, text: str) -> None:
        """Say who wrote it; "" keeps it blind."""
        self.origin.setText(text)
        self.origin.setVisible(bool(text))

    def show_place(self, shown: str, place: int) -> None:
        """Show the place in words on the badge and as the pressed button."""
        self.badge.set(shown)
        for index, one in enumerate(self._places, 1):
            one.setChecked(index == place)
        said = f"place {shown.replace('=', ', tied')}" if shown else "no place yet"
        words = [f"Response {self.letter}", said, *(pill.text() for pill in self._pills if not pill.isHidden())]
        self.setAccessibleName(", ".join(words))
        self.setAccessibleDescription(self._response[:2000] or EMPTY)

    def show_differences(self, spans: Sequence[tuple[int, int]]) -> None:
        """Mark stretches of the shown text; none clears."""
        self._marks = list(spans)
        self._paint_marks()

    def _paint_marks(self) -> None:
        look = QTextCharFormat()
        theme = colours(self)
        look.setBackground(QColor(theme.warn_soft))
        found = []
        for start, end in self._marks:
            cursor = QTextCursor(self.text.view.document())
            cursor.setPosition(start)
            cursor.setPosition(end, QTextCursor.MoveMode.KeepAnchor)
            mark = QTextEdit.ExtraSelection()
            mark.cursor = cursor
            mark.format = look
            found.append(mark)
        self.text.view.setExtraSelections(found)

    def _set_place_count(self, count: int) -> None:
        while len(self._places) < count:
            place = len(self._places) + 1
            one = QToolButton()
            one.setText(str(place))
            one.setCheckable(True)
            one.setFocusPolicy(Qt.FocusPolicy.NoFocus)
            one.setObjectName(f"place-{self.letter}-{place}")
            one.setAccessibleName(f"Give response {self.letter} place {place}")
            one.clicked.connect(lambda _checked=False, place=place: self.place_clicked.emit(self.position, place))
            self._place_row.addWidget(one)
            self._places.append(one)
        width = 28 if count <= FEW else 22
        for index, one in enumerate(self._places):
            one.setFixedSize(width, 28)
            one.setVisible(index < count)
        self._set_pills_below(count > FEW)

    def _set_pills_below(self, below: bool) -> None:
        """Nine place buttons leave no room for remarks beside them."""
        layout = self.layout()
        if below == self._pills_below or not isinstance(layout, QVBoxLayout):
            return
        self._pills_below = below
        (self._head if below else layout).removeItem(self.pills)
        if below:
            layout.insertLayout(1, self.pills)
            self.pills.addStretch(1)
        else:
            self.pills.takeAt(self.pills.count() - 1)
            self._head.insertLayout(2, self.pills)

    # ---- focus ----------------------------------------------------------------------------------------------

    def set_current(self, current: bool) -> None:
        """Draw the ring that says: the next digit is for this card."""
        if current != self._current:
            self._current = current
            self.update()

    def is_current(self) -> bool:
        """Whether the next digit is for this card."""
        return self._current

    def scroll_text(self, step: str) -> None:
        """Scroll the text: "line-up", "line-down", "page-up", "page-down", "top" or "end"."""
        bar = self.text.view.verticalScrollBar()
        if step in ("top", "end"):
            bar.setValue(bar.minimum() if step == "top" else bar.maximum())
            return
        size = 3 if step.startswith("line") else max(1, bar.pageStep() - 1)
        bar.setValue(bar.value() + (size if step.endswith("down") else -size))

    def focusInEvent(self, event: QFocusEvent) -> None:
        """Become the current card."""
        super().focusInEvent(event)
        self.focused.emit(self.position)
        self.update()

    def focusOutEvent(self, event: QFocusEvent) -> None:
        """Draw the quieter ring."""
        super().focusOutEvent(event)
        self.update()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Scroll the text with the paging keys."""
        steps = {
            Qt.Key.Key_PageUp: "page-up",
            Qt.Key.Key_PageDown: "page-down",
            Qt.Key.Key_Space: "page-down",
            Qt.Key.Key_Home: "top",
            Qt.Key.Key_End: "end",
        }
        step = steps.get(Qt.Key(event.key()))
        if step is None:
            super().keyPressEvent(event)
        else:
            self.scroll_text(step)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Take the focus wherever the card is clicked."""
        self.setFocus(Qt.FocusReason.MouseFocusReason)
        super().mousePressEvent(event)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Take the focus when the text is clicked, and leave the click to the text."""
        if event.type() == QEvent.Type.MouseButtonPress:
            self.setFocus(Qt.FocusReason.MouseFocusReason)
        return super().eventFilter(watched, event)

    def changeEvent(self, event: QEvent) -> None:
        """Draw the marks in the new theme's colours."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange and self._marks:
            self._paint_marks()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw the sheet and, on the current card, the ring."""
        theme = colours(self)
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setBrush(QColor(theme.surface))
        if self._current:
            colour = theme.accent if self.hasFocus() else theme.border_strong
            painter.setPen(QPen(QColor(colour), 2))
            painter.drawRoundedRect(QRectF(self.rect()).adjusted(1, 1, -1, -1), RADIUS + 2, RADIUS + 2)
            return
        painter.setPen(QColor(theme.border))
        painter.drawRoundedRect(QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5), RADIUS + 2, RADIUS + 2)
