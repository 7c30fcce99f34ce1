"""Small parts that every pane is made of. They know neither panes nor records."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QEvent, QRect, QRectF, QSize, Qt, Signal, SignalInstance
from PySide6.QtGui import QColor, QPainter, QPaintEvent
from PySide6.QtWidgets import QFrame, QPushButton, QSizePolicy, QToolButton, QVBoxLayout, QWidget

from ui.icons import icon
from ui.labels import (
    FONT_EVENTS,
    ElidedLabel,
    IconLabel,
    KeyHint,
    Pill,
    SectionTitle,
    Text,
    announce,
    clear,
    column,
    plural,
    row,
    safe_tip,
    sentence,
)
from ui.plain_text import PlainText, starts_rtl, visible
from ui.theme import RADIUS, XS, L, M, S, colours
from workbench.errors import UserError

__all__ = [
    "Card",
    "Divider",
    "ElidedLabel",
    "EmptyState",
    "ErrorBanner",
    "IconButton",
    "IconLabel",
    "KeyHint",
    "PageHeader",
    "Pill",
    "PlainText",
    "SectionTitle",
    "Text",
    "announce",
    "button",
    "clear",
    "column",
    "plural",
    "row",
    "safe_tip",
    "sentence",
    "starts_rtl",
    "visible",
]

EMPTY_WIDTH = 460


class IconButton(QToolButton):
    """A button that is only an icon: ``label`` is its accessible name and its tool tip."""

    def __init__(
        self, name: str, label: str, on_click: Callable[[], None] | None = None, *, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self._name = name
        self.setAccessibleName(label)
        self.setToolTip(safe_tip(label))
        self.setIconSize(QSize(20, 20))
        self.setAutoRaise(True)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setIcon(icon(name, colours(self).muted))
        if on_click is not None:
            self.clicked.connect(lambda _checked=False: on_click())

    def set_icon(self, name: str, label: str = "") -> None:
        """Show another icon, and say another name where one is given."""
        self._name = name
        self.setIcon(icon(name, colours(self).muted))
        if label:
            self.setAccessibleName(label)
            self.setToolTip(safe_tip(label))

    def changeEvent(self, event: QEvent) -> None:
        """Draw the icon anew when the theme changes."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange:
            self.setIcon(icon(self._name, colours(self).muted))


def button(
    text: str,
    on_click: Callable[[], None] | None = None,
    *,
    kind: str = "",
    tip: str = "",
    name: str = "",
    parent: QWidget | None = None,
) -> QPushButton:
    """Make a push button; ``kind`` is primary (one a page), quiet, danger or plain; ``name`` its objectName."""
    made = QPushButton(text, parent)
    made.setAutoDefault(False)
    if kind:
        made.setProperty("kind", kind)
    if tip:
        made.setToolTip(safe_tip(tip))
    if name:
        made.setObjectName(name)
    if on_click is not None:
        made.clicked.connect(lambda _checked=False: on_click())
    return made


class Card(QFrame):
    """A raised sheet with an optional heading; put content into ``body``."""

    def __init__(self, title: str = "", *, parent: QWidget | None = None, padding: int = M) -> None:
        super().__init__(parent)
        self.setProperty("card", "true")
        self.body = QVBoxLayout(self)
        self.body.setContentsMargins(padding, padding, padding, padding)
        self.body.setSpacing(S)
        self.title = SectionTitle(title) if title else None
        if self.title:
            self.body.addWidget(self.title)


class Divider(QFrame):
    """A hairline."""

    def __init__(self, parent: QWidget | None = None, *, vertical: bool = False) -> None:
        super().__init__(parent)
        if vertical:
            self.setFixedWidth(1)
        else:
            self.setFixedHeight(1)

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Fill with the border's colour."""
        QPainter(self).fillRect(self.rect(), QColor(colours(self).border))


class PageHeader(QWidget):
    """Title and one line of purpose at the top of a pane, its actions at the right."""

    def __init__(self, title: str, subtitle: str = "", parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.title = Text(title, "title")
        self.subtitle = ElidedLabel(subtitle, "body", "muted")
        if not subtitle:  # (shown before it has a parent it would be a window of its own for a moment)
            self.subtitle.hide()
        self._actions = row(spacing=S)
        words = column(self.title, self.subtitle, spacing=2)
        outer = row(spacing=M)
        outer.addLayout(words, 1)
        outer.addLayout(self._actions)
        self.setLayout(outer)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)

    def set_subtitle(self, text: str) -> None:
        """Say another line of purpose or state."""
        self.subtitle.setText(text)
        self.subtitle.setVisible(bool(text))

    def add_action(self, widget: QWidget) -> None:
        """Add a control at the right."""
        self._actions.addWidget(widget)


class EmptyState(QWidget):
    """What a pane shows while it has nothing: what belongs here, and the one action that brings it."""

    def __init__(
        self,
        icon_name: str,
        title: str,
        text: str = "",
        action: str = "",
        on_action: Callable[[], None] | None = None,
        *,
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self.title = Text(title, "title")
        self.title.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.text = Text(text, "body", "muted", wrap=True)
        self.text.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.text.setFixedWidth(EMPTY_WIDTH)
        self.icon = IconLabel(icon_name, 48)
        self.action = button(action or "…", on_action, kind="primary")
        if not action:
            self.action.hide()
        box = column(None, margins=(L, L, L, L), spacing=M)
        for part in (self.icon, self.title, self.text, self.action):
            box.addWidget(part, 0, Qt.AlignmentFlag.AlignHCenter)
        box.addStretch(2)
        self.setLayout(box)
        self._fit()

    def set(self, title: str, text: str) -> None:
        """Say something else."""
        self.title.setText(title)
        self.text.setText(text)
        self._fit()

    def changeEvent(self, event: QEvent) -> None:
        """Follow the text size."""
        super().changeEvent(event)
        if event.type() in FONT_EVENTS:
            self._fit()

    def _fit(self) -> None:
        """Give the text the height of its lines: a centred label is not asked for it by the layout."""
        wrap = Qt.TextFlag.TextWordWrap | Qt.AlignmentFlag.AlignCenter
        lines = self.text.fontMetrics().boundingRect(QRect(0, 0, EMPTY_WIDTH, 10_000), wrap, self.text.text())
        self.text.setFixedHeight(lines.height() + XS)


class ErrorBanner(QFrame):
    """A fault in its place: what happened, why, what to do; hidden until there is one.

    ``action_clicked`` is sent by the optional button, ``dismissed`` when it is closed by hand.
    """

    action_clicked: SignalInstance = Signal()  # type: ignore[assignment]
    dismissed: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._tone = "bad"
        self._icon = IconLabel("error", 20, "bad")
        self.what = Text("", "strong", wrap=True)
        self.more = Text("", "body", wrap=True, selectable=True)
        self.action = button("", self.action_clicked.emit)
        self.action.hide()
        self._close = IconButton("close", "Dismiss", self._on_close)
        words = column(self.what, self.more, spacing=2)
        outer = row(spacing=S, margins=(M, S, S, S))
        outer.addWidget(self._icon, 0, Qt.AlignmentFlag.AlignTop)
        outer.addLayout(words, 1)
        outer.addWidget(self.action, 0, Qt.AlignmentFlag.AlignTop)
        outer.addWidget(self._close, 0, Qt.AlignmentFlag.AlignTop)
        self.setLayout(outer)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Maximum)
        self.hide()

    def _on_close(self) -> None:
        self.hide()
        self.dismissed.emit()

    def show_error(self, error: BaseException, action: str = "") -> None:
        """Show an error; a :class:`UserError` by its parts, anything else as our bug."""
        if isinstance(error, UserError):
            more = " ".join(filter(None, (sentence(error.cause), sentence(error.remedy))))
            self.show_message(sentence(error.what).rstrip("."), more, "bad", action)
        else:
            self.show_message(
                "Something went wrong inside Tastemaker", f"{type(error).__name__}: {error}", "bad", action
            )

    def show_message(self, what: str, more: str = "", tone: str = "bad", action: str = "") -> None:
        """Show a message in the tone bad, warn, good or accent, with an optional button."""
        self._tone = tone
        self._icon.set({"bad": "error", "warn": "warning", "good": "check"}.get(tone, "info"), tone)
        self.what.setText(what)
        self.more.setText(more)
        self.more.setVisible(bool(more))
        self.action.setText(action)
        self.action.setVisible(bool(action))
        said = f"{what}. {more}".strip()
        if self.isHidden() or said != self.accessibleName():
            announce(self, said, urgent=tone in ("bad", "warn"))
        self.setAccessibleName(said)
        self.show()
        self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw a soft ground in the tone."""
        ink, ground = colours(self).tone(self._tone)
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        edge = QColor(ink)
        edge.setAlpha(90)
        painter.setPen(edge)
        painter.setBrush(QColor(ground))
        painter.drawRoundedRect(QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5), RADIUS, RADIUS)
