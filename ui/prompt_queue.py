"""The left side of Demonstrate: search, filters, and the queue of prompts."""

from __future__ import annotations

from PySide6.QtCore import QItemSelectionModel, QModelIndex, Qt, QTimer, Signal, SignalInstance
from PySide6.QtWidgets import QAbstractItemView, QComboBox, QFrame, QLineEdit, QListView, QWidget

from ui.context import Context
from ui.operations import run_task
from ui.prompt_list import PromptDelegate, PromptListModel, PromptQuery
from ui.theme import S
from ui.widgets import Text, button, column, plural, row
from workbench.records import Change, Prompt

SEARCH_AFTER_MS = 150
NEEDS = (
    ("All prompts", None),
    ("Needs a demonstration", "demonstration"),
    ("Drafts", "draft"),
    ("Final", "final"),
)


class PromptQueue(QWidget):
    """Chooses a prompt. ``chosen(Prompt)`` tells of one; ``new_asked()`` of the button below."""

    chosen: SignalInstance = Signal(object)  # type: ignore[assignment]
    new_asked: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self._wanted = ""  # to be chosen as soon as its page is loaded
        self.model = PromptListModel(context, self)
        self.search = QLineEdit()
        self.search.setObjectName("search")
        self.search.setPlaceholderText("Search prompts")
        self.search.setAccessibleName("Search prompts")
        self.search.setClearButtonEnabled(True)
        self.need = QComboBox()
        self.need.setObjectName("need")
        self.need.setAccessibleName("Which prompts")
        for text, value in NEEDS:
            self.need.addItem(text, value)
        self.tag = QComboBox()
        self.tag.setObjectName("tag")
        self.tag.setAccessibleName("Tag")
        self.tag.addItem("Any tag", "")
        self.tag.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.tag.setMinimumContentsLength(7)
        self.list = QListView()
        self.list.setObjectName("prompt-queue")
        self.list.setAccessibleName("Prompts")
        self.list.setModel(self.model)
        self.list.setItemDelegate(PromptDelegate(self.list))
        self.list.setUniformItemSizes(True)
        self.list.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.setMouseTracking(True)
        self.list.setFrameShape(QFrame.Shape.StyledPanel)
        self.about = Text("", "small", "muted")
        self.new = button("New prompt…", self.new_asked.emit, name="new-prompt", tip="Ctrl+Shift+N")
        filters = row(self.need, self.tag, spacing=S)
        filters.setStretch(0, 1)
        layout = column(self.search, spacing=S)
        layout.addLayout(filters)
        layout.addWidget(self.list, 1)
        layout.addLayout(row(self.about, None, self.new, spacing=S))
        self.setLayout(layout)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(SEARCH_AFTER_MS)
        self._timer.timeout.connect(self.apply)
        self._again = QTimer(self)  # many changes at once (an import) are one reading
        self._again.setSingleShot(True)
        self._again.setInterval(100)
        self._again.timeout.connect(self._reload)
        self.search.textChanged.connect(lambda _: self._timer.start())
        self.search.returnPressed.connect(self._to_list)
        self.need.currentIndexChanged.connect(lambda _: self.apply())
        self.tag.currentIndexChanged.connect(lambda _: self.apply())
        self.model.loaded.connect(self._on_loaded)
        self.list.selectionModel().currentChanged.connect(self._on_current)

    def query(self) -> PromptQuery:
        """Return what is asked for."""
        return PromptQuery(self.search.text().strip(), self.tag.currentData() or "", None, self.need.currentData())

    def apply(self) -> None:
        """Show what is asked for."""
        self._timer.stop()
        self.model.show(self.query())

    def start(self) -> None:
        """Read the queue and the tags for the first time."""
        self.apply()
        self._load_tags()

    def choose(self, prompt_id: str) -> bool:
        """Mark a prompt's line, now or once its page is read; returns whether it is there now."""
        line = self.model.row_of(prompt_id)
        if line < 0:
            self._wanted = prompt_id
            return False
        self._wanted = ""
        self._select(line)
        return True

    def next_open(self, prompt_id: str) -> Prompt | None:
        """Go to the next prompt without a final demonstration; None when there is none in what is loaded."""
        line = self.model.next_open(max(-1, self.model.row_of(prompt_id)))
        found = self.model.row(line)
        if found is None:
            return None
        self._select(line)
        return found.prompt

    def step(self, step: int) -> None:
        """Go to the line above (-1) or below (1)."""
        line = self.list.currentIndex().row() + step
        if 0 <= line < self.model.rowCount():
            self._select(line)

    def current(self) -> Prompt | None:
        """The prompt that is marked."""
        found = self.model.row(self.list.currentIndex().row())
        return found.prompt if found else None

    def on_changed(self, change: Change) -> None:
        """Follow the project."""
        if "prompts" in change.kinds or ("demonstrations" in change.kinds and not change.label):
            self._again.start()  # (a change without a label is an undo: which states it changed is not told)

    def _reload(self) -> None:
        current = self.current()
        self._wanted = self._wanted or (current.id if current else "")
        self.model.reload()
        self._load_tags()

    def _load_tags(self) -> None:
        run_task(self._context.store.tags, self._on_tags, owner=self)

    def _on_tags(self, tags: list[tuple[str, int]]) -> None:
        keep = self.tag.currentData()
        self.tag.blockSignals(True)
        self.tag.clear()
        self.tag.addItem("Any tag", "")
        for tag, count in tags[:200]:
            self.tag.addItem(f"{tag[:40]} ({count:,})", tag)
        self.tag.setCurrentIndex(max(0, self.tag.findData(keep)))
        self.tag.blockSignals(False)
        if self.tag.currentData() != keep:
            self.apply()

    def _on_loaded(self, count: int) -> None:
        more = " and more" if self.model.has_more else ""
        self.about.setText(f"{plural(count, 'prompt')}{more}" if count else "No prompt fits")
        if self._wanted:
            self.choose(self._wanted)
        elif count and not self.list.currentIndex().isValid():
            self._select(0)

    def _select(self, line: int) -> None:
        index = self.model.index(line)
        flag = QItemSelectionModel.SelectionFlag.ClearAndSelect
        self.list.selectionModel().setCurrentIndex(index, flag)
        self.list.scrollTo(index)

    def _on_current(self, index: QModelIndex, _before: QModelIndex) -> None:
        found = self.model.row(index.row()) if index.isValid() else None
        if found is not None:
            self.chosen.emit(found.prompt)

    def _to_list(self) -> None:
        self.apply()
        self.list.setFocus()
