"""The end of a run's log as it grows, and what the engine warned of in plain words above it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import QTimer, Signal, SignalInstance
from PySide6.QtGui import QTextCursor
from PySide6.QtWidgets import QCheckBox, QLineEdit, QPlainTextEdit, QVBoxLayout, QWidget

from ui.operations import run_task
from ui.plain_text import text_for_view
from ui.theme import XS, S, font
from ui.widgets import IconLabel, Text, button, clear, column, row
from workbench.protocol import Noted, Warned

FIRST_BYTES = 64 * 1024
EVERY_MS = 500
LINES_KEPT = 5000
WARNINGS_SHOWN = 8
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")


class LogTail:
    """Reads what was added to a log since the last time; starts near its end, and anew when it was set aside."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = -1
        self._rest = b""

    def read_new(self) -> str:
        """Return the new whole lines, without colours, and of a progress bar only its last state."""
        try:
            with self._path.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                if self._offset < 0 or end < self._offset:
                    self._offset, self._rest = max(0, end - FIRST_BYTES), b""
                log.seek(self._offset)
                new = log.read(4 * FIRST_BYTES)
        except OSError:
            return ""
        self._offset += len(new)
        whole, newline, self._rest = (self._rest + new).rpartition(b"\n")
        if len(self._rest) > FIRST_BYTES:  # a line without an end
            whole, newline, self._rest = whole + newline + self._rest, b"\n", b""
        return clean(whole.decode("utf-8", "replace")) + ("\n" if newline else "")


def clean(text: str) -> str:
    """Take colours out and keep what a carriage return would have left on the line."""
    lines = _ANSI.sub("", text).replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)


class LogView(QWidget):
    """The log of one run; reads only while it is seen."""

    copied: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._tail: LogTail | None = None
        self._reading = False
        self._path = ""
        self.warnings = QWidget()
        self._warnings = QVBoxLayout(self.warnings)
        self._warnings.setContentsMargins(0, 0, 0, S)
        self._warnings.setSpacing(XS)
        self.warnings.hide()
        self._told: list[Warned] = []
        self.notes = Text("", "small", "muted", wrap=True, selectable=True)
        self.notes.setObjectName("run-notes")
        self.notes.hide()
        self.follow = QCheckBox("Follow the end")
        self.follow.setChecked(True)
        self.search = QLineEdit()
        self.search.setPlaceholderText("Find in the log")
        self.search.setAccessibleName("Find in the log")
        self.search.setClearButtonEnabled(True)
        self.search.setMaximumWidth(240)
        self.search.returnPressed.connect(self._on_find)
        self.view = QPlainTextEdit()
        self.view.setObjectName("log")
        self.view.setAccessibleName("Engine log")
        self.view.setReadOnly(True)
        self.view.setTabChangesFocus(True)
        self.view.setUndoRedoEnabled(False)
        self.view.setMaximumBlockCount(LINES_KEPT)
        self.view.setLineWrapMode(QPlainTextEdit.LineWrapMode.WidgetWidth)
        self.view.setFont(font("mono-small"))
        self.view.setPlaceholderText("The engine has written nothing yet.")
        copy = button("Copy all", self._on_copy, kind="quiet", name="copy-log")
        self._where = Text("", "small", "muted", selectable=True)
        bar = row(self.search, self.follow, None, self._where, copy)
        self.setLayout(column(bar, self.notes, self.warnings, self.view, margins=(0, S, 0, 0)))
        self._timer = QTimer(self)
        self._timer.setInterval(EVERY_MS)
        self._timer.timeout.connect(self._read)

    def set_log(self, path: Path | None) -> None:
        """Show another log."""
        self._tail = LogTail(path) if path else None
        self._where.setText(path.name if path else "")
        self._where.setToolTip(str(path or "").replace("<", ""))
        self.view.clear()
        self.set_warnings([])
        self.set_notes([])
        if self.isVisible():
            self._read()

    def set_warnings(self, warnings: Sequence[Warned]) -> None:
        """Show what the engine warned of, newest last."""
        if list(warnings) == self._told:
            return
        self._told = list(warnings)
        clear(self._warnings)
        if len(self._told) > WARNINGS_SHOWN:
            older = len(self._told) - WARNINGS_SHOWN
            self._warnings.addWidget(Text(f"{older} earlier warnings are in the run's events", "small", "muted"))
        for warned in self._told[-WARNINGS_SHOWN:]:
            line = QWidget()
            text = warned.message + (f". {warned.remedy}" if warned.remedy else "")
            layout = row(IconLabel("warning", 16, "warn"), spacing=S)
            layout.addWidget(Text(text, "body", wrap=True, selectable=True), 1)
            line.setLayout(layout)
            line.setAccessibleName(f"Warning: {text}")
            self._warnings.addWidget(line)
        self.warnings.setVisible(bool(self._told))

    def set_notes(self, notes: Sequence[Noted]) -> None:
        """Show what the run says of itself that is no warning: what the memory plan chose, what memory it held."""
        self.notes.setText("\n".join(one.message + "." for one in notes[-WARNINGS_SHOWN:]))
        self.notes.setVisible(bool(notes))

    def showEvent(self, event: object) -> None:
        """Begin to read."""
        super().showEvent(event)  # type: ignore[arg-type]
        self._timer.start()
        self._read()

    def hideEvent(self, event: object) -> None:
        """Stop reading."""
        super().hideEvent(event)  # type: ignore[arg-type]
        self._timer.stop()

    def _read(self) -> None:
        tail = self._tail
        if tail is not None and not self._reading:
            self._reading = True
            run_task(tail.read_new, lambda text: self._on_text(tail, text), self._on_failed, owner=self)

    def _on_text(self, tail: LogTail, text: str) -> None:
        self._reading = False
        if tail is not self._tail or not text:
            return
        bar = self.view.verticalScrollBar()
        at = bar.value()
        cursor = QTextCursor(self.view.document())
        cursor.movePosition(QTextCursor.MoveOperation.End)
        cursor.insertText(text_for_view(text, None).text)
        bar.setValue(bar.maximum() if self.follow.isChecked() else at)

    def _on_failed(self, _error: BaseException) -> None:
        self._reading = False

    def _on_find(self) -> None:
        self.follow.setChecked(False)
        if not self.view.find(self.search.text()):
            self.view.moveCursor(QTextCursor.MoveOperation.Start)
            self.view.find(self.search.text())

    def _on_copy(self) -> None:
        self.view.selectAll()
        self.view.copy()
        self.view.moveCursor(QTextCursor.MoveOperation.End)
        self.copied.emit()
