"""A sheet with a searchable list to check things off, for prompts as for tags."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from PySide6.QtCore import Qt, QTimer, Signal, SignalInstance
from PySide6.QtWidgets import QLineEdit, QListWidget, QListWidgetItem, QWidget

from ui.operations import run_task
from ui.project_dialogs import Sheet
from ui.theme import S
from ui.widgets import Text, button, row

SEARCH_AFTER_MS = 150
MOST = 500
"""Lines shown at a time: more are found by searching."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: what it is called, and what is said beside."""

    key: str
    title: str
    detail: str = ""


class Checklist(Sheet):
    """``chosen(object)`` tells the list of keys that are checked, in the order in which they were.

    Args:
        title: of the sheet.
        text: what is chosen here, and what for.
        read: finds entries by a search, "" for all; called on a worker thread, and asked for at most ``MOST`` lines.
        checked: the keys that are checked to begin with.
        parent: the window below.
    """

    chosen: SignalInstance = Signal(object)  # type: ignore[assignment]

    def __init__(
        self,
        title: str,
        text: str,
        read: Callable[[str], Sequence[Entry]],
        checked: Iterable[str] = (),
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(title, text, parent)
        self.resize(600, 560)
        self._read = read
        self._checked = dict.fromkeys(checked)
        self._asked = 0
        self.search = QLineEdit()
        self.search.setObjectName("checklist-search")
        self.search.setPlaceholderText("Search")
        self.search.setAccessibleName("Search")
        self.search.setClearButtonEnabled(True)
        self.list = QListWidget()
        self.list.setObjectName("checklist")
        self.list.setAccessibleName(title)
        self.list.setTextElideMode(Qt.TextElideMode.ElideRight)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.itemChanged.connect(self._on_item)
        self.about = Text("", "small", "muted")
        self.body.addWidget(self.search)
        self.body.addWidget(self.list, 1)
        self.none = button("Uncheck all", self._on_none, kind="quiet", name="checklist-none")
        self.body.addLayout(row(self.about, None, self.none, spacing=S))
        self.use = button("Use these", self._on_use, kind="primary", name="checklist-use")
        self.use.setDefault(True)
        self.buttons.addWidget(button("Cancel", self.reject))
        self.buttons.addWidget(self.use)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(SEARCH_AFTER_MS)
        self._timer.timeout.connect(self._load)
        self.search.textChanged.connect(lambda _: self._timer.start())
        self._load()

    def checked(self) -> list[str]:
        """Return the keys that are checked, those that a search hides among them."""
        return list(self._checked)

    def _load(self) -> None:
        self._asked += 1
        asked, search, read = self._asked, self.search.text().strip(), self._read
        run_task(lambda: read(search), lambda found: self._show(found) if asked == self._asked else None, owner=self)

    def _show(self, entries: Sequence[Entry]) -> None:
        self.list.blockSignals(True)
        self.list.clear()
        for one in entries[:MOST]:
            item = QListWidgetItem(f"{one.title}\n{one.detail}" if one.detail else one.title)
            item.setData(Qt.ItemDataRole.UserRole, one.key)
            item.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable | Qt.ItemFlag.ItemIsUserCheckable)
            item.setCheckState(Qt.CheckState.Checked if one.key in self._checked else Qt.CheckState.Unchecked)
            self.list.addItem(item)
        self.list.blockSignals(False)
        self._say()

    def _say(self) -> None:
        more = f" · the first {MOST} are shown: search for others" if self.list.count() >= MOST else ""
        self.about.setText(("Nothing fits" if not self.list.count() else f"{len(self._checked):,} checked") + more)
        self.none.setEnabled(bool(self._checked))

    def _on_item(self, item: QListWidgetItem) -> None:
        key = str(item.data(Qt.ItemDataRole.UserRole))
        if item.checkState() == Qt.CheckState.Checked:
            self._checked[key] = None
        else:
            self._checked.pop(key, None)
        self._say()

    def _on_none(self) -> None:
        self._checked.clear()
        self._load()

    def _on_use(self) -> None:
        self.chosen.emit(self.checked())
        self.accept()
