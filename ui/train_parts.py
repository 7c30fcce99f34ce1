"""The parts of the Train pane: presets, the bar of memory, the list of problems, the command line."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QEvent, QObject, QRectF, Qt, Signal, SignalInstance
from PySide6.QtGui import QColor, QGuiApplication, QKeyEvent, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import (
    QButtonGroup,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from ui.labels import stack
from ui.theme import XS, S, colours
from ui.widgets import ElidedLabel, IconButton, IconLabel, PlainText, Text, button, column, row
from workbench.settings_fields import Problem
from workbench.terminal import in_bytes

PRESET_WORDS = {
    "Quick look": "Minutes: shows that everything works",
    "Balanced": "The field's usual settings",
    "Thorough": "More passes, for your best result",
}


class PageScroll(QScrollArea):
    """A page that scrolls down only and is exactly as high as its content at this width."""

    def __init__(self, page: QWidget, parent: QWidget | None = None, *, hug: bool = False) -> None:
        super().__init__(parent)
        self._content = page
        self._hug = hug  # be no higher than the page, so that what follows comes right after it
        self.setWidgetResizable(True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.setWidget(page)
        page.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Fit the height again when the content asks for another."""
        if event.type() == QEvent.Type.LayoutRequest:
            self._fit()
        return super().eventFilter(watched, event)

    def resizeEvent(self, event: object) -> None:
        """Fit the height to the new width."""
        super().resizeEvent(event)  # type: ignore[arg-type]
        self._fit()

    def _fit(self) -> None:
        layout = self._content.layout()
        if layout is None:
            return
        width = self.viewport().width()
        height = layout.totalHeightForWidth(width) if layout.hasHeightForWidth() else layout.totalSizeHint().height()
        if self._hug and self.maximumHeight() != height:
            self.setMaximumHeight(height)
        height = height if self._hug else max(height, self.viewport().height())
        if self._content.maximumHeight() != height:
            self._content.setFixedHeight(height)


class PresetBar(QWidget):
    """The presets side by side, one chosen. Sends ``chosen(name)``."""

    chosen: SignalInstance = Signal(str)  # type: ignore[assignment]

    def __init__(self, names: Sequence[str], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.buttons: dict[str, QPushButton] = {}
        self._group = QButtonGroup(self)
        self._words = ElidedLabel("", "small", "muted")
        self._line = row(spacing=S)
        buttons = row(spacing=S)
        for name in names:
            made = button(name, name=f"preset-{name}", tip=PRESET_WORDS[name])
            made.setCheckable(True)
            made.setAccessibleName(f"Preset {name}")
            made.setAccessibleDescription(PRESET_WORDS[name])
            made.toggled.connect(lambda on, name=name: self._on_toggled(name) if on else None)
            self._group.addButton(made)
            self.buttons[name] = made
            buttons.addWidget(made)
        self._line.addLayout(buttons)
        self._line.addWidget(self._words, 1)
        self.setLayout(self._line)

    def set_narrow(self, narrow: bool) -> None:
        """Put the words below the buttons, or beside them."""
        stack(self._line, stacked=narrow)

    def choose(self, name: str) -> None:
        """Choose a preset."""
        self.buttons[name].setChecked(True)

    def name(self) -> str:
        """Return the chosen preset."""
        return next((name for name, one in self.buttons.items() if one.isChecked()), "")

    def _on_toggled(self, name: str) -> None:
        self._words.setText(PRESET_WORDS[name])
        self.chosen.emit(name)


class MemoryBar(QWidget):
    """How much memory a run needs against what is free; says it in words too."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._needed = self._free = 0
        self.setFixedHeight(S)
        self.setAccessibleName("Memory")

    def show_need(self, needed: int, free: int) -> str:
        """Show a need; returns the sentence beside it."""
        self._needed, self._free = needed, free
        text = self.sentence()
        self.setAccessibleDescription(text)
        self.update()
        return text

    def tone(self) -> str:
        """Return good, warn (above three quarters) or bad (more than there is)."""
        if not self._free or not self._needed:
            return ""
        share = self._needed / self._free
        return "bad" if share > 1 else "warn" if share > 0.75 else "good"

    def sentence(self) -> str:
        """Say need and room."""
        if not self._needed:
            return ""
        if not self._free:
            return f"about {in_bytes(self._needed)}"
        verdict = {"bad": "more than is free", "warn": "tight", "good": "fits"}[self.tone()]
        return f"about {in_bytes(self._needed)} of {in_bytes(self._free)} free: {verdict}"

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw the bar; what is over its end is drawn to the end with a mark where the room ends."""
        theme = colours(self)
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(theme.raised))
        area = QRectF(self.rect())
        painter.drawRoundedRect(area, S / 2, S / 2)
        if not self._needed or not self._free:
            return
        share = self._needed / self._free
        painter.setBrush(QColor(theme.tone(self.tone())[0]))
        painter.drawRoundedRect(QRectF(0, 0, area.width() * min(1.0, share), S), S / 2, S / 2)
        if share > 1:
            painter.setPen(QPen(QColor(theme.surface), 2))
            at = area.width() / share
            painter.drawLine(int(at), 0, int(at), S)


class ProblemList(QWidget):
    """What stands in the way of Start, errors first; each leads to its field. Sends ``chosen(field)``."""

    chosen: SignalInstance = Signal(str)  # type: ignore[assignment]

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._box = QVBoxLayout(self)
        self._box.setContentsMargins(0, 0, 0, 0)
        self._box.setSpacing(S)
        self._shown: tuple[Problem, ...] = ()

    def show_problems(self, problems: Sequence[Problem]) -> None:
        """List problems."""
        ordered = tuple(sorted(problems, key=lambda one: one.severity != "error"))
        if ordered == self._shown:
            return
        self._shown = ordered
        while self._box.count():
            item = self._box.takeAt(0)
            widget = item.widget() if item else None
            if widget is not None:
                widget.hide()
                widget.deleteLater()
        for problem in ordered:
            self._box.addWidget(self._line(problem))
        self.setVisible(bool(ordered))

    def problems(self) -> tuple[Problem, ...]:
        """Return what is listed."""
        return self._shown

    def _line(self, problem: Problem) -> QWidget:
        error = problem.severity == "error"
        line = QWidget()
        message = problem.message[:1].upper() + problem.message[1:]
        words = column(Text(message + ".", "body", wrap=True), spacing=0)
        if problem.remedy:
            remedy = problem.remedy[:1].upper() + problem.remedy[1:]
            words.addWidget(Text(remedy + ("" if remedy[-1] in ".!?" else "."), "small", "muted", wrap=True))
        if problem.field:
            show = button("Show", lambda: self.chosen.emit(problem.field), kind="quiet")
            show.setAccessibleName(f"Show the field of: {problem.message}")
        icon = IconLabel("error" if error else "warning", 20, "bad" if error else "warn")
        layout = row(spacing=S)
        layout.addWidget(icon, 0, Qt.AlignmentFlag.AlignTop)
        layout.addLayout(words, 1)
        if problem.field:
            layout.addWidget(show, 0, Qt.AlignmentFlag.AlignTop)
        line.setLayout(layout)
        line.setAccessibleName(("Error: " if error else "Warning: ") + problem.message)
        return line


class CommandLine(QWidget):
    """The command that does the same without the window, with a button to copy it. Sends ``copied()``."""

    copied: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.view = PlainText(name="The same as a command", role="mono-small", fit=True, max_lines=16)
        self.view.view.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.copy = IconButton("copy", "Copy the command", self._on_copy)
        self.copy.setObjectName("copy-command")
        head = row(Text("The same as a command", "small", "muted"), None, self.copy)
        self.setLayout(column(head, self.view, spacing=XS))

    def set_text(self, text: str) -> None:
        """Show a command."""
        if text != self.view.text():
            self.view.set_text(text)
        self.copy.setEnabled(bool(text))

    def _on_copy(self) -> None:
        QGuiApplication.clipboard().setText(self.view.text())
        self.copied.emit()


class Disclosure(QPushButton):
    """A heading that opens and closes what is below it; named for the reader by its state."""

    def __init__(self, text: str, body: QWidget, *, name: str = "", parent: QWidget | None = None) -> None:
        super().__init__(text, parent)
        self._body = body
        self._label = text
        self.setObjectName(name)
        self.setCheckable(True)
        self.setProperty("kind", "quiet")
        self.setSizePolicy(QSizePolicy.Policy.Maximum, QSizePolicy.Policy.Fixed)
        self.toggled.connect(self._on_toggled)
        body.setVisible(False)
        self._dress()

    def _on_toggled(self, on: bool) -> None:
        self._body.setVisible(on)
        self._dress()

    def _dress(self) -> None:
        self.setText(("▾  " if self.isChecked() else "▸  ") + self._label)
        self.setAccessibleName(f"{self._label}, {'open' if self.isChecked() else 'closed'}")

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Right opens, Left closes."""
        if event.key() in (Qt.Key.Key_Right, Qt.Key.Key_Left):
            self.setChecked(event.key() == Qt.Key.Key_Right)
            event.accept()
        else:
            super().keyPressEvent(event)
