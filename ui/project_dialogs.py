"""Dialogs about whole projects: make one, restore a backup, see what a check found, say who rates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import Qt, Signal, SignalInstance
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QDialog, QFileDialog, QFormLayout, QLineEdit, QListWidget, QListWidgetItem, QWidget

from ui.plain_text import PlainText
from ui.theme import L, M, S
from ui.unsaved import Unsaved
from ui.widgets import IconButton, IconLabel, Text, button, column, row

_BAD_NAME = re.compile(r'[/\\\x00-\x1f:*?"<>|]')


class Sheet(QDialog):
    """A dialog with a title, content in ``body`` and its buttons at the lower right; never blocks."""

    def __init__(self, title: str, text: str = "", parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle(title)
        self.setAccessibleName(title)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowModality(Qt.WindowModality.WindowModal)
        self.body = column(spacing=M)
        self.buttons = row(None, spacing=S)
        outer = column(Text(title, "title"), spacing=S, margins=(L, L, L, M))
        if text:
            outer.addWidget(Text(text, "body", "muted", wrap=True))
        outer.addSpacing(S)
        outer.addLayout(self.body, 1)
        outer.addSpacing(S)
        outer.addLayout(self.buttons)
        self.setLayout(outer)
        self.setMinimumWidth(520)


class NewProject(Sheet):
    """Name and place of a new project; ``chosen(str, bool)`` tells the folder and whether it gets the sample."""

    chosen: SignalInstance = Signal(str, bool)  # type: ignore[assignment]

    def __init__(self, place: Path, *, sample: bool = False, parent: QWidget | None = None) -> None:
        super().__init__(
            "Try the sample project" if sample else "New project",
            "Everything stays in this one folder: labels, runs, models. Keep it on a local disk.",
            parent,
        )
        self._sample = sample
        self.name = QLineEdit(_free_name(place, "Sample project" if sample else "My taste"))
        self.name.setObjectName("project-name")
        self.name.setAccessibleName("Name")
        self.place = QLineEdit(str(place))
        self.place.setObjectName("project-place")
        self.place.setAccessibleName("Folder")
        form = QFormLayout()
        form.setSpacing(S)
        form.addRow("Name", self.name)
        where = row(spacing=S)
        where.addWidget(self.place, 1)
        where.addWidget(IconButton("folder", "Choose the folder", self._on_browse))
        form.addRow("In folder", where)
        self.fault = Text("", "small", "bad", wrap=True)
        self.body.addLayout(form)
        self.body.addWidget(self.fault)
        self.body.addStretch(1)
        self.make = button("Create project", self._on_create, kind="primary", name="project-create")
        self.make.setDefault(True)
        self.buttons.addWidget(button("Cancel", self.reject))
        self.buttons.addWidget(self.make)
        self.name.textChanged.connect(self._check)
        self.place.textChanged.connect(self._check)
        self.name.selectAll()
        self._check()

    def path(self) -> Path:
        """Return the folder that would be made."""
        return Path(self.place.text()).expanduser() / self.name.text().strip()

    def _check(self) -> None:
        name, fault = self.name.text().strip(), ""
        if not name:
            fault = "Give the project a name."
        elif _BAD_NAME.search(name) or name in (".", ".."):
            fault = 'A name cannot hold / \\ : * ? " < > |'
        elif not Path(self.place.text()).expanduser().is_absolute():
            fault = "Choose a folder by its whole path."
        elif self.path().exists():
            fault = "There is something of that name already."
        self.fault.setText(fault)
        self.make.setEnabled(not fault)

    def _on_browse(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "Folder for the project", self.place.text())
        if chosen:
            self.place.setText(chosen)

    def _on_create(self) -> None:
        self.chosen.emit(str(self.path()), self._sample)
        self.accept()


class RestoreBackup(Sheet):
    """Choose a backup to put in the database's place; ``chosen(str)`` tells its file name."""

    chosen: SignalInstance = Signal(str)  # type: ignore[assignment]

    def __init__(self, project: str, backups: Sequence[tuple[str, str, int]], parent: QWidget | None = None) -> None:
        """Take (file name, time in words, bytes) of each backup, newest first."""
        super().__init__(
            "Restore a backup",
            f"The labels of {project} go back to what they were at that time. What is there now is set aside in "
            "the backups folder, not deleted. Runs and models on disk stay.",
            parent,
        )
        self.list = QListWidget()
        self.list.setAccessibleName("Backups")
        self.list.setMinimumHeight(220)
        for name, when, size in backups:
            item = QListWidgetItem(f"{when}      {size / 1e6:,.1f} MB")
            item.setData(Qt.ItemDataRole.UserRole, name)
            self.list.addItem(item)
        self.body.addWidget(self.list)
        self.restore = button("Restore this backup", self._on_restore, kind="danger", name="backup-restore")
        self.restore.setEnabled(bool(backups))
        if backups:
            self.list.setCurrentRow(0)
        else:
            self.body.addWidget(Text("There is no backup yet: one is made every half hour of work.", "body", "muted"))
        self.buttons.addWidget(button("Cancel", self.reject))
        self.buttons.addWidget(self.restore)

    def _on_restore(self) -> None:
        item = self.list.currentItem()
        if item is not None:
            self.chosen.emit(str(item.data(Qt.ItemDataRole.UserRole)))
            self.accept()


class CheckReport(Sheet):
    """What a check of the project found."""

    def __init__(self, faults: Sequence[str], parent: QWidget | None = None) -> None:
        super().__init__("Check project", "", parent)
        head = row(IconLabel("check" if not faults else "error", 28, "good" if not faults else "bad"), spacing=M)
        head.addWidget(
            Text(
                "Everything is sound: the database is whole and every label matches its checksum."
                if not faults
                else f"{len(faults)} fault{'s' if len(faults) > 1 else ''} found. Restore a backup from before them "
                "(File menu), or keep working: the sound labels are not touched.",
                "body",
                wrap=True,
            ),
            1,
        )
        self.body.addLayout(head)
        if faults:
            self.body.addWidget(PlainText("\n".join(faults), name="Faults", role="mono-small"))
        close = button("Close", self.accept, kind="primary")
        close.setDefault(True)
        self.buttons.addWidget(close)


class RaterName(Sheet):
    """Whose labels are made here; ``chosen(str)`` tells the name."""

    chosen: SignalInstance = Signal(str)  # type: ignore[assignment]

    def __init__(self, name: str, parent: QWidget | None = None) -> None:
        super().__init__("Rater name", "Every label says whose judgement it is. New labels will say:", parent)
        self.name = QLineEdit(name)
        self.name.setAccessibleName("Rater name")
        self.name.selectAll()
        self.body.addWidget(self.name)
        self.use = button("Use this name", self._on_use, kind="primary", name="rater-use")
        self.use.setDefault(True)
        self.name.textChanged.connect(lambda text: self.use.setEnabled(bool(text.strip())))
        self.buttons.addWidget(button("Cancel", self.reject))
        self.buttons.addWidget(self.use)

    def _on_use(self) -> None:
        self.chosen.emit(self.name.text().strip())
        self.accept()


class UnsavedWork(Sheet):
    """What closing would lose. ``again()`` asks to save and close, ``anyway()`` to close all the same."""

    again: SignalInstance = Signal()  # type: ignore[assignment]
    anyway: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(self, found: Sequence[Unsaved], parent: QWidget | None = None) -> None:
        super().__init__(
            "Not saved yet",
            "This could not be written to the disk and would be lost. Free some space or bring the disk back, then "
            "try again; or copy it to a safe place first.",
            parent,
        )
        for one in found:
            self.body.addLayout(row(IconLabel("warning", 16, "warn"), Text(one.what, "body", wrap=True), spacing=S))
        self.body.addStretch(1)
        text = "\n\n".join(one.text for one in found if one.text)
        self.copy = button("Copy", lambda: QGuiApplication.clipboard().setText(text), name="unsaved-copy")
        self.copy.setEnabled(bool(text))
        self.close_anyway = button("Close anyway", lambda: self._end(self.anyway), kind="danger", name="unsaved-anyway")
        self.try_again = button("Try again", lambda: self._end(self.again), kind="primary", name="unsaved-again")
        self.try_again.setDefault(True)
        self.buttons.insertWidget(0, self.copy)
        self.buttons.addWidget(self.close_anyway)
        self.buttons.addWidget(button("Keep open", self.reject))
        self.buttons.addWidget(self.try_again)

    def _end(self, told: SignalInstance) -> None:
        self.accept()
        told.emit()


def _free_name(place: Path, name: str) -> str:
    if not (place / name).exists():
        return name
    return next(f"{name} {number}" for number in range(2, 1000) if not (place / f"{name} {number}").exists())
