"""The rail on the left: the project, the seven panes with what waits in each, and the way to the explanations."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QRectF, QSize, Qt, Signal, SignalInstance
from PySide6.QtGui import QColor, QFontMetrics, QPainter, QPaintEvent
from PySide6.QtWidgets import QAbstractButton, QButtonGroup, QSizePolicy, QWidget

from ui.icons import pixmap
from ui.panes import PANES, PaneInfo
from ui.theme import RADIUS, XS, M, S, colours, font
from ui.widgets import ElidedLabel, Text, column, safe_tip

WIDE, NARROW = 176, 60


class RailButton(QAbstractButton):
    """One pane: icon, name and, where something waits, how much."""

    def __init__(self, info: PaneInfo, key: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.info = info
        self.wide = True
        self._badge = 0
        self._live = False
        self._key = key
        self.setText(info.title)
        self.setObjectName(f"rail-{info.key}")
        self.setCheckable(True)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAttribute(Qt.WidgetAttribute.WA_Hover)
        self._name()

    def set_badge(self, count: int, *, live: bool = False) -> None:
        """Show how many things wait; ``live`` shows them as running."""
        if (count, live) != (self._badge, self._live):
            self._badge, self._live = count, live
            self._name()
            self.update()

    def _name(self) -> None:
        waiting = f", {self._badge} {'running' if self._live else 'waiting'}" if self._badge else ""
        self.setAccessibleName(self.info.title + waiting)
        self.setAccessibleDescription(self.info.tip)
        self.setToolTip(safe_tip(f"{self.info.title} ({self._key})\n{self.info.tip}"))

    def sizeHint(self) -> QSize:
        """Be tall enough to hit and to read."""
        return QSize(WIDE - M, max(36, QFontMetrics(self.font()).height() + M))

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw ground, icon, name and badge."""
        theme = colours()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        area = QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5)
        ground = theme.accent_soft if self.isChecked() else theme.raised if self.underMouse() else ""
        painter.setPen(QColor(theme.accent) if self.hasFocus() else Qt.PenStyle.NoPen)
        painter.setBrush(QColor(ground) if ground else Qt.BrushStyle.NoBrush)
        painter.drawRoundedRect(area, RADIUS, RADIUS)
        ink = theme.accent if self.isChecked() else theme.muted
        x = M - XS if self.wide else (self.width() - 20) // 2
        y = (self.height() - 20) // 2
        painter.drawPixmap(x, y, pixmap(self.info.icon, 20, ink, self.devicePixelRatioF()))
        if self.wide:
            painter.setFont(font("strong" if self.isChecked() else "body"))
            painter.setPen(QColor(theme.text))
            room = self.rect().adjusted(x + 20 + S + XS, 0, -S, 0)
            painter.drawText(room, Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft, self.text())
        if self._badge:
            self._paint_badge(painter)

    def _paint_badge(self, painter: QPainter) -> None:
        theme = colours()
        if not self.wide:
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(QColor(theme.good if self._live else theme.accent))
            painter.drawEllipse(QRectF(self.width() / 2 + 8, self.height() / 2 - 13, 7, 7))
            return
        text = "999+" if self._badge > 999 else str(self._badge)
        painter.setFont(font("small"))
        width = max(20, painter.fontMetrics().horizontalAdvance(text) + 12)
        place = QRectF(self.width() - width - S, (self.height() - 18) / 2, width, 18)
        ink, ground = theme.tone("good" if self._live else "accent" if self.isChecked() else "")
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(theme.surface if self.isChecked() else ground))
        painter.drawRoundedRect(place, 9, 9)
        painter.setPen(QColor(ink))
        painter.drawText(place, Qt.AlignmentFlag.AlignCenter, text)

    def event(self, event: QEvent) -> bool:
        """Repaint under the pointer."""
        if event.type() in (QEvent.Type.HoverEnter, QEvent.Type.HoverLeave):
            self.update()
        return super().event(event)


class Rail(QWidget):
    """All panes; ``chosen(str)`` tells the key of the one that was picked."""

    chosen: SignalInstance = Signal(str)  # type: ignore[assignment]

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("rail")
        self.setAccessibleName("Panes")
        self.project = ElidedLabel("", "heading")
        self.place = ElidedLabel("", "small", "muted")
        self.buttons: dict[str, RailButton] = {}
        self._group = QButtonGroup(self)
        self._words = QWidget()
        self._words.setLayout(column(self.project, self.place, spacing=0, margins=(S + XS, S, S, S)))
        box = column(self._words, S, spacing=2, margins=(S, S, S, M))
        for number, info in enumerate(PANES, 1):
            made = RailButton(info, f"Ctrl+{number}")
            self._group.addButton(made)
            self.buttons[info.key] = made
            made.clicked.connect(lambda _checked=False, key=info.key: self.chosen.emit(key))
            box.addWidget(made)
        box.addStretch(1)
        self.hint = Text("F1 explains this page", "small", "muted")
        self.hint.setContentsMargins(S + XS, 0, 0, 0)
        box.addWidget(self.hint)
        self.setLayout(box)
        self.set_wide(True)

    def set_project(self, name: str, place: str) -> None:
        """Name the project that is open."""
        self.project.setText(name)
        self.place.setText(place)

    def set_current(self, key: str) -> None:
        """Mark the pane that is shown."""
        self.buttons[key].setChecked(True)

    def set_wide(self, wide: bool) -> None:
        """Show names beside the icons, or the icons alone."""
        self.setFixedWidth(WIDE if wide else NARROW)
        self._words.setVisible(wide)
        self.hint.setVisible(wide)
        for one in self.buttons.values():
            one.wide = wide
            one.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw the hairline towards the pane."""
        painter = QPainter(self)
        painter.fillRect(self.width() - 1, 0, 1, self.height(), QColor(colours().border))
