"""The page without a project: make one, open one, try the sample, or go on where you were."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PySide6.QtCore import QRectF, QSize, Qt, Signal, SignalInstance
from PySide6.QtGui import QColor, QPainter, QPaintEvent
from PySide6.QtWidgets import QAbstractButton, QSizePolicy, QVBoxLayout, QWidget

from ui.icons import pixmap
from ui.theme import RADIUS, XS, M, S, colours, font
from ui.widgets import IconButton, SectionTitle, Text, column, row, safe_tip

WIDTH = 640


class ChoiceButton(QAbstractButton):
    """A wide button with an icon, a title and a line of what it does."""

    def __init__(
        self, icon_name: str, title: str, text: str, *, primary: bool = False, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self._icon, self._words, self._primary = icon_name, text, primary
        self.setText(title)
        self.setAccessibleName(title)
        self.setAccessibleDescription(text)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setAttribute(Qt.WidgetAttribute.WA_Hover)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def sizeHint(self) -> QSize:
        """Hold two lines of text."""
        return QSize(WIDTH, self.fontMetrics().height() * 2 + M + S)

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw ground, icon, title and text."""
        theme = colours()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        area = QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5)
        fill = theme.accent_soft if self._primary else theme.raised if self.underMouse() else theme.surface
        painter.setPen(
            QColor(theme.accent if self.hasFocus() or (self._primary and self.underMouse()) else theme.border)
        )
        painter.setBrush(QColor(fill))
        painter.drawRoundedRect(area, RADIUS, RADIUS)
        ink = theme.accent if self._primary else theme.muted
        painter.drawPixmap(M, (self.height() - 24) // 2, pixmap(self._icon, 24, ink, self.devicePixelRatioF()))
        left = M + 24 + M
        half = self.height() // 2
        painter.setPen(QColor(theme.text))
        painter.setFont(font("strong"))
        flags = Qt.AlignmentFlag.AlignLeft
        width = self.width() - left - M
        painter.drawText(left, 0, width, half, flags | Qt.AlignmentFlag.AlignBottom, self.text())
        painter.setPen(QColor(theme.muted))
        painter.setFont(font("small"))
        shown = painter.fontMetrics().elidedText(self._words, Qt.TextElideMode.ElideMiddle, width)
        painter.drawText(left, half + 1, width, half, flags | Qt.AlignmentFlag.AlignTop, shown)


class Welcome(QWidget):
    """Says what Tastemaker is in one line and offers the ways in."""

    new_asked: SignalInstance = Signal()  # type: ignore[assignment]
    open_asked: SignalInstance = Signal()  # type: ignore[assignment]
    sample_asked: SignalInstance = Signal()  # type: ignore[assignment]
    recent_chosen: SignalInstance = Signal(str)  # type: ignore[assignment]
    forget_asked: SignalInstance = Signal(str)  # type: ignore[assignment]

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("welcome")
        self.setAccessibleName("Welcome")
        self.new = ChoiceButton("plus", "New project", "An empty folder for your prompts, labels, runs and models")
        self.open = ChoiceButton("folder", "Open a project", "A folder that holds a project.db")
        self.sample = ChoiceButton(
            "explain",
            "Try the sample project",
            "Prompts, demonstrations and rankings of a rater who likes short, honest answers",
            primary=True,
        )
        self.new.clicked.connect(lambda _checked=False: self.new_asked.emit())
        self.open.clicked.connect(lambda _checked=False: self.open_asked.emit())
        self.sample.clicked.connect(lambda _checked=False: self.sample_asked.emit())
        self._recent_title = SectionTitle("Recent projects")
        self._recent = QVBoxLayout()
        self._recent.setSpacing(XS)
        box = column(
            Text("Tastemaker", "display"),
            Text("Teach a language model your own taste, on your own machine.", "body", "muted"),
            M,
            self.sample,
            self.new,
            self.open,
            M,
            self._recent_title,
            spacing=S,
        )
        box.addLayout(self._recent)
        inner = QWidget()
        inner.setLayout(box)
        inner.setMaximumWidth(WIDTH)
        inner.setMinimumWidth(min(WIDTH, 480))
        across = row(None)
        across.addWidget(inner, 10)
        across.addStretch(1)
        outer = column(spacing=0, margins=(M, M, M, M))
        outer.addStretch(2)
        outer.addLayout(across)
        outer.addStretch(3)
        self.setLayout(outer)
        self.set_recent(())

    def set_recent(self, paths: Sequence[str]) -> None:
        """List the recent projects, newest first."""
        while (item := self._recent.takeAt(0)) is not None:
            inner = item.widget()
            if inner is not None:
                inner.hide()
                inner.deleteLater()
        for path in paths[:5]:
            line = QWidget()
            choice = ChoiceButton("folder", Path(path).name, str(Path(path).parent))
            choice.setToolTip(safe_tip(path))
            choice.clicked.connect(lambda _checked=False, chosen=path: self.recent_chosen.emit(chosen))
            forget = IconButton("close", f"Take {Path(path).name} off this list", partial(self.forget_asked.emit, path))
            layout = row(spacing=XS)
            layout.addWidget(choice, 1)
            layout.addWidget(forget)
            line.setLayout(layout)
            self._recent.addWidget(line)
        self._recent_title.setVisible(bool(paths))
