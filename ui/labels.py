"""Words on the screen: plain text that follows theme and size, pills, keys, icons, and how to lay them out."""

from __future__ import annotations

import html
from typing import TypeVar

from PySide6.QtCore import QEvent, QRectF, QSize, Qt
from PySide6.QtGui import (
    QAccessible,
    QAccessibleAnnouncementEvent,
    QColor,
    QFontMetrics,
    QPainter,
    QPaintEvent,
    QPalette,
)
from PySide6.QtWidgets import QBoxLayout, QHBoxLayout, QLabel, QLayout, QSizePolicy, QVBoxLayout, QWidget

from ui.icons import pixmap
from ui.plain_text import starts_rtl, text_for_view, visible
from ui.theme import XS, FontRole, S, colours, font

LOOK_EVENTS = (QEvent.Type.PaletteChange, QEvent.Type.ApplicationPaletteChange, QEvent.Type.StyleChange)
FONT_EVENTS = (QEvent.Type.ApplicationFontChange, QEvent.Type.FontChange)
Part = QWidget | QLayout | int | None
B = TypeVar("B", bound=QBoxLayout)


def row(*parts: Part, spacing: int = S, margins: tuple[int, int, int, int] = (0, 0, 0, 0)) -> QHBoxLayout:
    """Lay parts out from left to right: widgets, layouts, an int for a gap, None for a stretch."""
    return _fill(QHBoxLayout(), parts, spacing, margins)


def column(*parts: Part, spacing: int = S, margins: tuple[int, int, int, int] = (0, 0, 0, 0)) -> QVBoxLayout:
    """Lay parts out from top to bottom; see :func:`row`."""
    return _fill(QVBoxLayout(), parts, spacing, margins)


def stack(line: QBoxLayout, *, stacked: bool) -> None:
    """Lay the parts of a row below one another, as a narrow page wants it, or side by side again."""
    line.setDirection(QBoxLayout.Direction.TopToBottom if stacked else QBoxLayout.Direction.LeftToRight)


def _fill(box: B, parts: tuple[Part, ...], spacing: int, margins: tuple[int, int, int, int]) -> B:
    box.setSpacing(spacing)
    box.setContentsMargins(*margins)
    for part in parts:
        if part is None:
            box.addStretch(1)
        elif isinstance(part, int):
            box.addSpacing(part)
        elif isinstance(part, QWidget):
            box.addWidget(part)
        else:
            box.addLayout(part)
    return box


def clear(layout: QLayout) -> None:
    """Take everything out of a layout and let it go; widgets are hidden at once, so that none shows for a frame."""
    while (item := layout.takeAt(0)) is not None:
        widget = item.widget()
        if widget is not None:
            widget.hide()
            widget.deleteLater()


def announce(source: QWidget, text: str, *, urgent: bool = False) -> None:
    """Have a screen reader say something that appears without being looked at."""
    event = QAccessibleAnnouncementEvent(source, text)
    if urgent:
        event.setPoliteness(QAccessible.AnnouncementPoliteness.Assertive)
    QAccessible.updateAccessibility(event)


def safe_tip(text: str) -> str:
    """Return text for a tool tip that cannot turn into markup, whatever it holds."""
    return f"<span>{html.escape(text_for_view(text, 1000).text)}</span>".replace("\n", "<br>") if text else ""


def plural(count: int, one: str, many: str = "") -> str:
    """Say a count: ``plural(1, "prompt")`` is '1 prompt', ``plural(1200, "prompt")`` '1,200 prompts'."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def sentence(text: str) -> str:
    """Begin with a capital and end with a full stop."""
    text = text.strip()
    if not text:
        return ""
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?…" else text + "."


class Text(QLabel):
    """Plain text in one of the theme's roles and tones (``muted``, ``good``, ``warn``, ``bad``, ``accent``)."""

    def __init__(
        self,
        text: str = "",
        role: FontRole = "body",
        tone: str = "",
        *,
        wrap: bool = False,
        selectable: bool = False,
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self._role: FontRole = role
        self._tone = tone
        self._settling = False
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setForegroundRole(QPalette.ColorRole.WindowText)  # inside a button a label would take the button's
        self.setWordWrap(wrap)
        if wrap:
            policy = QSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Minimum)
            policy.setHeightForWidth(True)
            self.setSizePolicy(policy)
        if selectable:
            self.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.setText(text)
        self._dress()

    def setText(self, text: str) -> None:
        """Show ``text``; it may hold a name that came from a file, so nothing in it stays unseen."""
        super().setText(visible(text))

    def set_tone(self, tone: str) -> None:
        """Change the colour by meaning."""
        if tone != self._tone:
            self._tone = tone
            self._dress()

    def changeEvent(self, event: QEvent) -> None:
        """Follow theme and text size."""
        super().changeEvent(event)
        if event.type() in LOOK_EVENTS or event.type() in FONT_EVENTS:
            self._dress()

    def _dress(self) -> None:
        if self._settling:
            return
        self._settling = True
        wanted = font(self._role)
        if self.font() != wanted:
            self.setFont(wanted)
        theme = colours(self)
        text = theme.text if not self._tone else theme.muted if self._tone == "muted" else theme.tone(self._tone)[0]
        if self.palette().color(QPalette.ColorRole.WindowText).name() != text:
            palette = self.palette()
            palette.setColor(QPalette.ColorRole.WindowText, QColor(text))
            self.setPalette(palette)
        self._settling = False


class SectionTitle(Text):
    """The heading of a part of a pane."""

    def __init__(self, text: str, parent: QWidget | None = None) -> None:
        super().__init__(text, "heading", parent=parent)


class ElidedLabel(Text):
    """One line that gives way with an ellipsis; the whole text is in the tool tip."""

    def __init__(
        self, text: str = "", role: FontRole = "body", tone: str = "", *, parent: QWidget | None = None
    ) -> None:
        super().__init__(text, role, tone, parent=parent)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)

    def minimumSizeHint(self) -> QSize:
        """Leave room for a few letters."""
        return QSize(self.fontMetrics().horizontalAdvance("mmm…"), super().minimumSizeHint().height())

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw the text, shortened where it does not fit."""
        metrics = QFontMetrics(self.font())
        shown = " ".join(self.text().split())
        fitted = metrics.elidedText(shown, Qt.TextElideMode.ElideRight, self.width())
        tip = safe_tip(self.text()) if fitted != shown else ""
        if tip != self.toolTip():
            self.setToolTip(tip)
        painter = QPainter(self)
        painter.setPen(self.palette().color(QPalette.ColorRole.WindowText))
        side = Qt.AlignmentFlag.AlignRight if starts_rtl(shown) else self.alignment()
        painter.drawText(self.rect(), side | Qt.AlignmentFlag.AlignVCenter, fitted)


class Pill(QLabel):
    """A short word on a soft coloured ground: a state, a role, a split."""

    def __init__(self, text: str = "", tone: str = "", parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._tone = tone
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setSizePolicy(QSizePolicy.Policy.Maximum, QSizePolicy.Policy.Fixed)
        self.setContentsMargins(S, 2, S, 2)
        self.set(text, tone)

    def set(self, text: str, tone: str = "") -> None:
        """Show ``text`` in the tone good, warn, bad, accent or neutral."""
        self._tone = tone
        self.setText(visible(text))
        self.setFont(font("small"))
        self.updateGeometry()
        self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw the ground and the word."""
        ink, ground = colours(self).tone(self._tone)
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(ground))
        painter.drawRoundedRect(QRectF(self.rect()), self.height() / 2, self.height() / 2)
        painter.setPen(QColor(ink))
        painter.drawText(self.rect(), Qt.AlignmentFlag.AlignCenter, self.text())

    def changeEvent(self, event: QEvent) -> None:
        """Follow the text size."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.ApplicationFontChange:
            self.setFont(font("small"))


class KeyHint(Pill):
    """A key as it is on the keyboard, beside what it does."""

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw a key cap."""
        theme = colours(self)
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QColor(theme.border_strong))
        painter.setBrush(QColor(theme.surface))
        painter.drawRoundedRect(QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5), XS, XS)
        painter.setPen(QColor(theme.muted))
        painter.drawText(self.rect(), Qt.AlignmentFlag.AlignCenter, self.text())


class IconLabel(QWidget):
    """An icon alone, for decoration; it follows the theme."""

    def __init__(self, name: str, size: int = 20, tone: str = "muted", parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._name, self._size, self._tone = name, size, tone
        self.setFixedSize(size, size)

    def set(self, name: str, tone: str = "muted") -> None:
        """Show another icon."""
        self._name, self._tone = name, tone
        self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw the icon in its tone."""
        theme = colours(self)
        ink = theme.muted if self._tone == "muted" else theme.tone(self._tone)[0]
        QPainter(self).drawPixmap(0, 0, pixmap(self._name, self._size, ink, self.devicePixelRatioF()))
