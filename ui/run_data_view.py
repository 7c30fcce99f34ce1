"""What a run was trained and measured on, row by row, with the way back to each label, and what changed since."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from PySide6.QtCore import QModelIndex, Qt, QTimer, Signal, SignalInstance
from PySide6.QtWidgets import (
    QCheckBox,
    QHeaderView,
    QLineEdit,
    QSplitter,
    QStackedWidget,
    QWidget,
)

from ui.operations import run_task
from ui.row_table import row_table
from ui.run_data_model import RunDataModel, narrowed
from ui.theme import M, S
from ui.widgets import EmptyState, ErrorBanner, Pill, PlainText, SectionTitle, Text, button, column, plural, row
from workbench.run_folder import RunFolder
from workbench.run_labels import RunLabel, RunLabels, run_labels
from workbench.store import Store

_TONES = {"current": "", "superseded": "warn", "gone": "bad"}
_STANDS = {"current": "the label stands", "superseded": "changed since", "gone": "gone since"}
SEARCH_AFTER_MS = 150


class RunDataView(QWidget):
    """Reads a run's rows whenever it is looked at.

    ``opened(pane, what)``: go to a label, in Rank (by ``prompt_id`` and ``ranking_id``) or Demonstrate (``prompt_id``).
    """

    opened: SignalInstance = Signal(str, object)  # type: ignore[assignment]

    def __init__(self, store: Store, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._store = store
        self._run: RunFolder | None = None
        self._labels: Sequence[RunLabel] = ()
        self._turn = 0  # of the newest search
        self.model = RunDataModel(self)
        self.changed = ErrorBanner()
        self.changed.setObjectName("labels-changed")
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search in prompts and responses")
        self.search.setAccessibleName("Search in the run's data")
        self.search.setClearButtonEnabled(True)
        self.search.setMinimumWidth(260)
        self.only_changed = QCheckBox("Only what changed since")
        self.count = Text("", "small", "muted")
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(SEARCH_AFTER_MS)
        self._soon.timeout.connect(self._narrow)
        self.search.textChanged.connect(lambda _: self._soon.start())
        self.only_changed.toggled.connect(lambda _: self._narrow())
        self._make_table()
        self._make_detail()
        split = QSplitter(Qt.Orientation.Vertical)
        split.addWidget(self.table)
        split.addWidget(self.detail)
        split.setStretchFactor(0, 3)
        split.setStretchFactor(1, 2)
        split.setSizes([320, 260])
        split.setChildrenCollapsible(False)
        full = QWidget()
        bar = row(self.search, self.only_changed, None, self.count, spacing=M)
        body = column(self.changed, bar, split, spacing=S, margins=(0, S, 0, S))
        body.setStretch(2, 1)
        full.setLayout(body)
        self.empty = EmptyState("runs", "Reading the data…", "")
        self._stack = QStackedWidget()
        self._stack.addWidget(self.empty)
        self._stack.addWidget(full)
        self.setLayout(column(self._stack))

    def _make_table(self) -> None:
        self.table = row_table(self.model, "run-data")
        self.table.setAccessibleName("Data of the run")
        header = self.table.horizontalHeader()
        for section, width in enumerate((112, 128)):
            header.setSectionResizeMode(section, QHeaderView.ResizeMode.Fixed)
            self.table.setColumnWidth(section, width)
        for section in (2, 3, 4):
            header.setSectionResizeMode(section, QHeaderView.ResizeMode.Stretch)
        self.table.selectionModel().currentRowChanged.connect(self._on_row)
        self.table.activated.connect(lambda index: self._open(self.model.label(index.row())))

    def _make_detail(self) -> None:
        self.since = Pill()
        self.open = button("Open in Rank", lambda: self._open(self.current), name="open-label")
        self.prompt = PlainText(name="Prompt", fit=True, max_lines=4)
        self.chosen = PlainText(name="Chosen")
        self.rejected = PlainText(name="Rejected")
        self._chosen_title = SectionTitle("Chosen")
        self._sides = QWidget()
        self._right = QWidget()
        self._right.setLayout(column(SectionTitle("Rejected"), self.rejected, spacing=S))
        left = QWidget()
        left.setLayout(column(self._chosen_title, self.chosen, spacing=S))
        sides = row(left, self._right, spacing=M)
        sides.setStretch(0, 1)
        sides.setStretch(1, 1)
        self._sides.setLayout(sides)
        self.detail = QWidget()
        body = column(
            row(Text("Prompt", "small", "muted"), self.since, None, self.open, spacing=S),
            self.prompt,
            self._sides,
            spacing=S,
            margins=(0, S, 0, 0),
        )
        body.setStretch(2, 1)
        self.detail.setLayout(body)

    # ---- which run ----

    def set_run(self, run: RunFolder | None) -> None:
        """Show another run's data when it is looked at."""
        self._run, self._labels = run, ()
        self._turn += 1
        self.model.set_labels(())
        self.changed.hide()
        self._stack.setCurrentWidget(self.empty)
        if self.isVisible():
            self._load()

    def showEvent(self, event: object) -> None:
        """Read whenever it is looked at: labels may have changed."""
        super().showEvent(event)  # type: ignore[arg-type]
        self._load()

    def _load(self) -> None:
        run, store = self._run, self._store
        if run is None:
            return
        run_task(
            lambda: run_labels(store, run),
            lambda found: self._on_read(run, found),
            lambda error: self._on_failed(run, error),
            owner=self,
        )

    def _on_failed(self, run: RunFolder, error: BaseException) -> None:
        if run is self._run:
            more = " ".join(filter(None, (getattr(error, "cause", ""), getattr(error, "remedy", ""))))
            self.empty.set(getattr(error, "what", "") or "The data cannot be read", more or str(error))
            self._stack.setCurrentWidget(self.empty)

    def _on_read(self, run: RunFolder, found: RunLabels) -> None:
        if run is not self._run:
            return
        if not found.rows:
            self.empty.set("No rows", "This run was given no data of the project.")
            self._stack.setCurrentWidget(self.empty)
            return
        self._labels = found.rows
        self._say_changed(found)
        self._stack.setCurrentIndex(1)
        self._narrow()

    def _say_changed(self, found: RunLabels) -> None:
        lost = found.superseded + found.gone
        self.only_changed.setVisible(bool(lost) or any(one.since != "current" for one in found.rows))
        if not lost:
            self.changed.hide()
            return
        parts = [f"{found.superseded:,} changed"] if found.superseded else []
        parts += [f"{found.gone:,} deleted or archived"] if found.gone else []
        stand = "stands" if lost == 1 else "stand"
        self.changed.show_message(
            f"{lost:,} of the {plural(found.trained, 'label')} that trained this model no longer {stand}",
            f"{' and '.join(parts)} since. A new run with the same settings takes the labels as they are now.",
            "warn",
        )

    def _narrow(self) -> None:
        self._turn += 1
        labels, words, only = self._labels, self.search.text(), self.only_changed.isChecked()
        run_task(
            lambda: narrowed(labels, words, changed_only=only),
            partial(self._on_narrowed, self._turn),
            owner=self,
        )

    def _on_narrowed(self, turn: int, found: Sequence[RunLabel]) -> None:
        if turn != self._turn:
            return  # a slow search of other words, or of another run
        line = max(0, min(self.table.currentIndex().row(), len(found) - 1))
        self.model.set_labels(found)
        self.count.setText(plural(len(found), "row"))
        self.detail.setVisible(bool(found))
        if found:
            self.table.selectRow(line)

    # ---- which row ----

    @property
    def current(self) -> RunLabel | None:
        """The label that is shown below the table."""
        return self.model.label(self.table.currentIndex().row())

    def _on_row(self, index: QModelIndex, _before: QModelIndex) -> None:
        one = self.model.label(index.row())
        if one is None:
            return
        self.since.set(_STANDS[one.since], _TONES[one.since])
        self.open.setText("Open in Rank" if one.is_ranking else "Open in Demonstrate")
        self.prompt.set_text(one.prompt)
        self._sides.setVisible(one.is_ranking or bool(one.chosen))
        self._right.setVisible(one.wanted is None and one.is_ranking)
        title = {True: "Thumbs up", False: "Thumbs down", None: "Chosen" if one.is_ranking else "Demonstration"}[
            one.wanted
        ]
        self._chosen_title.setText("One of a tie" if one.tie else title)
        self.chosen.set_text(one.chosen)
        self.rejected.set_text(one.rejected)

    def _open(self, one: RunLabel | None) -> None:
        if one is not None and one.is_ranking:
            self.opened.emit("rank", {"prompt_id": one.prompt_id, "ranking_id": one.ranking_id})
        elif one is not None:
            self.opened.emit("demonstrate", {"prompt_id": one.prompt_id})
