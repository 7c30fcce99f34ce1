"""Runs: the queue and history on the left, the chosen run on the right: live plots, samples, log and recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from PySide6.QtCore import QItemSelectionModel, QModelIndex, QPoint, Qt, QTimer
from PySide6.QtGui import QGuiApplication, QShowEvent
from PySide6.QtWidgets import QMenu, QSplitter, QStackedWidget, QVBoxLayout, QWidget

from ui.context import Context
from ui.operations import run_task
from ui.runs_list import RunRow, RunsListView, RunsModel, read_rows
from ui.theme import L, M, S
from ui.widgets import EmptyState, Text, button, column, plural, row
from workbench.records import Change
from workbench.run_folder import RunStatus

if TYPE_CHECKING:
    from ui.run_view import RunView

REFRESH_MS = 1000
LIST_WIDTH = 296


class RunsPane(QWidget):
    """All runs of the project."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("runs-pane")
        self.setAccessibleName("Runs")
        self._context = context
        self._wanted = ""
        self._reading = False
        self._again = False
        self._fault = ""
        self._loading = False
        self.view: RunView | None = None
        self.model = RunsModel(self)
        self.list = RunsListView(self.model)
        self._count = Text("", "small", "muted")
        head = row(Text("Runs", "title"), None, self._count, margins=(L, L, M, S))
        new = button("New run", lambda: context.navigate("train"), name="new-run")
        left = QWidget()
        left.setLayout(column(head, spacing=0))
        layout = left.layout()
        assert isinstance(layout, QVBoxLayout)
        layout.addWidget(self.list, 1)
        layout.addLayout(row(new, None, margins=(L, S, M, M)))
        left.setMinimumWidth(232)
        self._right = QStackedWidget()
        self._right.addWidget(EmptyState("runs", "Choose a run", "Its plots, samples, log and recipe appear here."))
        self.split = QSplitter(Qt.Orientation.Horizontal)
        self.split.addWidget(left)
        self.split.addWidget(self._right)
        self.split.setStretchFactor(0, 0)
        self.split.setStretchFactor(1, 1)
        self.split.setSizes([LIST_WIDTH, 900])
        self.split.setChildrenCollapsible(False)
        empty = EmptyState(
            "runs",
            "No runs yet",
            "A run trains a model by one of five methods. It goes on when you close this window, and you can watch it "
            "here, pause it, stop it and resume it exactly.",
            "Go to Train",
            lambda: context.navigate("train"),
        )
        self._pages = QStackedWidget()
        self._pages.addWidget(empty)
        self._pages.addWidget(self.split)
        self.setLayout(column(self._pages))
        self._timer = QTimer(self)
        self._timer.setInterval(REFRESH_MS)
        self._timer.timeout.connect(self.reload)
        self.list.selectionModel().currentChanged.connect(self._on_current)
        self.list.customContextMenuRequested.connect(self._on_menu)
        context.changed.connect(self._on_changed)
        self.reload()

    # ---- the pane's life ----

    def activate(self) -> None:
        """The pane is shown."""
        self.reload()

    def show_item(self, run_id: str = "", step: str = "", **_: str) -> None:
        """Go to a run, and in it to the samples of a step."""
        if not run_id:
            return
        self._wanted = run_id
        if self.model.line_of(run_id) >= 0:
            self._choose(run_id)
        self.reload()
        if step and self.view is not None and self.view.record is not None and self.view.record.id == run_id:
            self.view.show_samples_of(int(step))

    def explain_stage(self) -> str:
        """Return what Explain explains here: the method of the run that is shown."""
        return self.view.record.method if self.view is not None and self.view.record is not None else "ppo"

    def explain_values(self) -> Mapping[str, float]:
        """Return the newest numbers of the run that is shown, for what explains its method."""
        return self.view.history.newest() if self.view is not None and self.view.record is not None else {}

    def showEvent(self, event: QShowEvent) -> None:
        """Keep the list fresh while it is seen."""
        super().showEvent(event)
        self._timer.start()

    def hideEvent(self, event: object) -> None:
        """Rest while it is not; the session watches the runs."""
        super().hideEvent(event)  # type: ignore[arg-type]
        self._timer.stop()

    # ---- the list ----

    def reload(self) -> None:
        """Read the runs anew, off the window's thread."""
        if self._reading:
            self._again = True
            return
        self._reading = True
        known = {one.record.id: one for one in self.model.rows}
        project = self._context.project
        run_task(lambda: read_rows(project, known), self._on_rows, self._on_failed, owner=self)

    def _on_rows(self, rows: list[RunRow]) -> None:
        self._reading, self._fault = False, ""
        chosen = self._wanted or self._current_id()
        self.model.set_rows(rows)
        alive = sum(one.alive for one in rows)
        self._count.setText(f"{alive} at work or waiting" if alive else plural(len(rows), "run"))
        self._pages.setCurrentIndex(1 if rows else 0)
        if rows:
            if self.model.line_of(chosen) < 0:
                chosen = rows[0].record.id
            self._choose(chosen)
        if self._again:
            self._again = False
            self.reload()

    def _on_failed(self, error: BaseException) -> None:
        self._reading = False
        if str(error) != self._fault:
            self._fault = str(error)  # said once, not every second
            self._context.show_error(error)

    def _on_changed(self, change: Change) -> None:
        if "runs" in change.kinds:
            self.reload()
        if "models" in change.kinds and self.view is not None:
            self.view.refresh_model()
            self.view.checkpoints.refresh()  # which of them are kept as models

    def _current_id(self) -> str:
        found = self.list.currentIndex().data(Qt.ItemDataRole.UserRole)
        return found.record.id if isinstance(found, RunRow) else ""

    def _choose(self, run_id: str) -> None:
        line = self.model.line_of(run_id)
        if line < 0:
            return
        if run_id == self._wanted:
            self._wanted = ""
        if self._current_id() != run_id or not self.list.selectionModel().isSelected(self.model.index(line)):
            flags = QItemSelectionModel.SelectionFlag
            self.list.selectionModel().setCurrentIndex(self.model.index(line), flags.ClearAndSelect)
        self._show(self.model.rows[line])

    def _on_current(self, now: QModelIndex, _before: QModelIndex) -> None:
        found = now.data(Qt.ItemDataRole.UserRole)
        if isinstance(found, RunRow):
            self._show(found)

    # ---- the run ----

    def _show(self, found: RunRow) -> None:
        if self.view is None:
            self._load_view()
            return
        self.view.set_run(found.record, [one.record for one in self.model.rows])
        self._right.setCurrentWidget(self.view)

    def _load_view(self) -> None:
        """Import the right side on a worker thread (it brings numpy), then build it and show the chosen run."""
        if not self._loading:
            self._loading = True
            run_task(_import_view, self._on_view_class, self._context.show_error, owner=self)

    def _on_view_class(self, view_class: type[RunView]) -> None:
        self.view = view_class(self._context)
        self.view.seen.connect(self._on_seen)
        self._right.addWidget(self.view)
        found = self.list.currentIndex().data(Qt.ItemDataRole.UserRole)
        if isinstance(found, RunRow):
            self._show(found)

    def _on_seen(self, run_id: str, status: RunStatus) -> None:
        line = self.model.line_of(run_id)
        if line >= 0:
            before = self.model.rows[line]
            self.model.set_row(line, RunRow(before.record, status, before.headline))

    # ---- deeds of the list ----

    def _on_menu(self, at: QPoint) -> None:
        found = self.list.indexAt(at).data(Qt.ItemDataRole.UserRole)
        if not isinstance(found, RunRow):
            return
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        menu.addAction("New run with these settings").triggered.connect(
            lambda: self._context.navigate("train", run_id=found.record.id)
        )
        menu.addAction("Copy the folder's path").triggered.connect(
            lambda: QGuiApplication.clipboard().setText(str(self._context.project.run_dir(found.record.id)))
        )
        menu.addSeparator()
        delete = menu.addAction("Delete the run…")
        delete.setEnabled(not found.alive and not self._context.read_only)
        delete.triggered.connect(lambda: self.ask_delete(found))
        menu.popup(self.list.viewport().mapToGlobal(at))

    def ask_delete(self, found: RunRow) -> None:
        """Ask, then take a run off the list and remove its folder."""
        from ui.run_acts import ask

        ask(
            self,
            f"Delete {found.record.name} for good?",
            "Its plots, samples, checkpoints and log go with it. Labels are not touched.",
            "Delete",
            "Keep",
            lambda: self.delete(found.record.id),
        )

    def delete(self, run_id: str) -> None:
        """Delete a run, off the window's thread."""
        from workbench.run_registry import delete_run

        project = self._context.project
        if self.view is not None and self.view.record is not None and self.view.record.id == run_id:
            self.view.stop()
            self.view.record = None
        run_task(lambda: delete_run(project, run_id), lambda _: self.reload(), self._context.show_error, owner=self)


def _import_view() -> type[RunView]:
    from ui.run_view import RunView

    return RunView
