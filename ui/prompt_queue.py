"""The left side of Demonstrate: search, filters, and the queue of prompts."""

from __future__ import annotations

from PySide6.QtCore import QItemSelectionModel, QModelIndex, Qt, QTimer, Signal, SignalInstance
from PySide6.QtWidgets import QAbstractItemView, QComboBox, QFrame, QLineEdit, QListView, QWidget

from ui.context import Context
from ui.operations import run_task
from ui.prompt_list import PromptDelegate, PromptListModel, PromptQuery
from ui.prompt_menu import move_to
from ui.theme import S
from ui.widgets import Text, button, column, plural, row
from workbench.records import Change, Prompt, Split

SEARCH_AFTER_MS = 150
NEEDS = (
    ("All prompts", None),
    ("Needs a demonstration", "demonstration"),
    ("Drafts", "draft"),
    ("Final", "final"),
)
SPLITS: tuple[tuple[str, Split], ...] = (("In train", "train"), ("Held out", "held-out"))


class PromptQueue(QWidget):
    """Chooses a prompt. ``chosen(Prompt)`` tells of one; ``new_asked()`` of the button below."""

    chosen: SignalInstance = Signal(object)  # type: ignore[assignment]
    new_asked: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self._reloading = False
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
        for text, value in (*NEEDS, *SPLITS):
            self.need.addItem(text, value)
        self.need.insertSeparator(len(NEEDS))
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
        self.list.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
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
        layout.addWidget(self._make_bar())
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
        self.model.modelAboutToBeReset.connect(self._on_reset)
        self.list.selectionModel().selectionChanged.connect(lambda *_: self._show_bar())
        self.search.textChanged.connect(lambda _: self._timer.start())
        self.search.returnPressed.connect(self._to_list)
        self.need.currentIndexChanged.connect(lambda _: self.apply())
        self.tag.currentIndexChanged.connect(lambda _: self.apply())
        self.model.loaded.connect(self._on_loaded)
        self.list.selectionModel().currentChanged.connect(self._on_current)

    def query(self) -> PromptQuery:
        """Return what is asked for."""
        which = self.need.currentData()
        split = next((one for _, one in SPLITS if one == which), None)
        return PromptQuery(self.search.text().strip(), self.tag.currentData() or "", split, None if split else which)

    def apply(self) -> None:
        """Show what is asked for."""
        self._timer.stop()
        self.model.show(self.query())

    def start(self) -> None:
        """Read the queue and the tags for the first time."""
        self.apply()
        self._load_tags()

    def show_split(self, split: str) -> None:
        """Show the prompts of a split alone."""
        self.need.setCurrentIndex(max(0, self.need.findData(split)))

    def choose(self, prompt_id: str) -> bool:
        """Mark a prompt's line, now or once its page is read; returns whether it is there now."""
        line = self.model.row_of(prompt_id)
        if line < 0:
            self._wanted = prompt_id
            return False
        self._wanted = ""
        if line != self.list.currentIndex().row():  # (else others may be marked beside it)
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
        self._reloading = True
        self.model.reload(self.list.currentIndex().row())
        self._load_tags()

    def _on_reset(self) -> None:
        """Find the line again that is marked now: another one may have been chosen while the list was read."""
        current = self.current()
        if self._reloading and current is not None:
            self._wanted = self._wanted or current.id
        self._reloading = False

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
            self._wanted = ""  # a choice of one's own goes before what was asked for earlier
            self.chosen.emit(found.prompt)

    # ---- several at once ------------------------------------------------------------------------------------

    def selected(self) -> list[Prompt]:
        """The prompts that are marked, top to bottom."""
        lines = sorted(index.row() for index in self.list.selectionModel().selectedIndexes())
        return [row.prompt for line in lines if (row := self.model.row(line)) is not None]

    def _make_bar(self) -> QWidget:
        self.marked = Text("", "small", "muted")
        self.hold_out = button("Hold out", lambda: self._move("held-out"), name="hold-out")
        self.hold_out.setToolTip("Keep these out of all training, to measure on")
        self.let_train = button("Move to train", lambda: self._move("train"), name="let-train")
        self.bar = QWidget()
        self.bar.setLayout(row(self.marked, None, self.hold_out, self.let_train, spacing=S))
        self.bar.hide()
        return self.bar

    def _show_bar(self) -> None:
        found = self.selected()
        self.bar.setVisible(len(found) > 1)
        if len(found) > 1:
            writable = not self._context.read_only
            self.marked.setText(f"{len(found):,} marked")
            self.hold_out.setEnabled(writable and any(one.split == "train" for one in found))
            self.let_train.setEnabled(writable and any(one.split == "held-out" for one in found))

    def _move(self, split: Split) -> None:
        ids = [one.id for one in self.selected() if one.split != split]
        move_to(self, self._context, ids, split)

    def _to_list(self) -> None:
        self.apply()
        self.list.setFocus()
