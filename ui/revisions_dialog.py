"""The revisions of a demonstration, newest first; any of them can be brought back as a new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from PySide6.QtCore import Qt, Signal, SignalInstance
from PySide6.QtWidgets import QDialog, QListWidget, QListWidgetItem, QSplitter, QWidget

from ui.plain_text import PlainText
from ui.theme import M, S
from ui.widgets import Text, button, column, plural, row
from workbench.records import Demonstration

TOGETHER = timedelta(minutes=2)


def gathered(history: Sequence[Demonstration]) -> list[Demonstration]:
    """Leave out the steps of one sitting: of drafts by one author within two minutes only the newest stays.

    Args:
        history: all revisions, newest first.
    """
    kept: list[Demonstration] = []
    for one in history:
        last = kept[-1] if kept else None
        step = (
            last is not None
            and one.status == "draft"
            and one.author == last.author
            and _time(last) - _time(one) < TOGETHER
            and not _emptied(one, last)
        )
        if not step:
            kept.append(one)
    return kept


def _emptied(older: Demonstration, newer: Demonstration) -> bool:
    return len(newer.text) < len(older.text) / 2  # much was deleted: what stood before is worth a line of its own


def _time(one: Demonstration) -> datetime:
    return datetime.fromisoformat(one.created_at)


class RevisionsDialog(QDialog):
    """``restored(Demonstration)`` is sent when one is brought back."""

    restored: SignalInstance = Signal(object)  # type: ignore[assignment]

    def __init__(
        self, history: Sequence[Demonstration], names: Mapping[str, str], parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self.setObjectName("revisions")
        self.setWindowTitle("Revisions")
        self.resize(880, 520)
        self.list = QListWidget()
        self.list.setAccessibleName("Revisions, newest first")
        self.list.setMinimumWidth(240)
        self.text = PlainText(name="Text of the revision")
        kept = gathered(history)
        for one in kept:
            when = _time(one).astimezone().strftime("%d %b %Y %H:%M")
            who = names.get(one.author, one.author)
            item = QListWidgetItem(f"{one.revision} · {one.status}\n{when} · {who}")
            item.setData(Qt.ItemDataRole.UserRole, one)
            self.list.addItem(item)
        self.list.currentItemChanged.connect(lambda item, _: self._on_current(item))
        self.list.itemActivated.connect(lambda _: self._on_restore())
        sides = QSplitter()
        sides.addWidget(self.list)
        sides.addWidget(self.text)
        sides.setStretchFactor(1, 1)
        left_out = len(history) - len(kept)
        about = f"{plural(left_out, 'step')} of less than two minutes not listed" if left_out else ""
        self.restore = button("Bring back", self._on_restore, kind="primary", name="bring-back")
        buttons = row(Text(about, "small", "muted"), None, button("Close", self.reject), self.restore, spacing=S)
        layout = column(sides, buttons, spacing=M, margins=(M, M, M, M))
        layout.setStretch(0, 1)
        self.setLayout(layout)
        if kept:
            self.list.setCurrentRow(0)

    def _on_current(self, item: QListWidgetItem | None) -> None:
        if item is not None:
            self.text.set_text(item.data(Qt.ItemDataRole.UserRole).text)
            self.restore.setEnabled(self.list.row(item) > 0)

    def _on_restore(self) -> None:
        item = self.list.currentItem()
        if item is not None and self.list.row(item) > 0:
            self.restored.emit(item.data(Qt.ItemDataRole.UserRole))
            self.accept()
