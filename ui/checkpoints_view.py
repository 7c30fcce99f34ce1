"""A run's checkpoints: what was measured at each, and keeping one as a model that outlives the run's own tidying."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from PySide6.QtCore import Qt
from PySide6.QtGui import QShowEvent
from PySide6.QtWidgets import QGridLayout, QStackedWidget, QWidget

from ui.context import Context
from ui.numbers import short
from ui.operations import run_task
from ui.theme import XS, L, M, S
from ui.times import ago, moment
from ui.train_parts import PageScroll
from ui.widgets import Card, Divider, EmptyState, ErrorBanner, Text, button, clear, column, row
from workbench.kept_checkpoints import MEASURES, KeptCheckpoint, Measured, keep_checkpoint, list_checkpoints
from workbench.metrics import GLOSSARY
from workbench.records import ModelRecord, RunRecord, step_word
from workbench.terminal import in_bytes

ABOUT = (
    "A run keeps only its newest checkpoints on disk (keep_checkpoints). One that you keep as a model stays, and can "
    "be compared, chatted with, sampled from and trained further like any other."
)


class CheckpointsView(QWidget):
    """Reads the run's checkpoints when it is looked at, and again when a new one was written."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self._run: RunRecord | None = None
        self._turn = 0
        self._stale = True
        self.banner = ErrorBanner()
        self.empty = EmptyState(
            "models",
            "No checkpoint yet",
            "One is written every few steps (save_every), or at once with Save now while the run is at work.",
        )
        self.card = Card(padding=L - S)
        self._grid = QGridLayout()
        self._grid.setHorizontalSpacing(L)
        self._grid.setVerticalSpacing(S)
        self.card.body.addLayout(self._grid)
        page = QWidget()
        page.setLayout(column(Text(ABOUT, "small", "muted", wrap=True), self.card, spacing=M, margins=(0, M, S, L)))
        page.layout().addStretch(1)  # type: ignore[union-attr]
        self._stack = QStackedWidget()
        self._stack.addWidget(self.empty)
        scroll = PageScroll(page)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAsNeeded)  # a narrow window loses no button
        self._stack.addWidget(scroll)
        self.setLayout(column(self.banner, self._stack, spacing=S))

    def set_run(self, run: RunRecord) -> None:
        """Show another run's checkpoints."""
        self._run = run
        self._turn += 1
        self.banner.hide()
        self._stack.setCurrentIndex(0)
        self.refresh()

    def refresh(self) -> None:
        """Read the checkpoints again, now or when the page is next looked at."""
        self._stale = True
        if self.isVisible():
            self._read()

    def showEvent(self, event: QShowEvent) -> None:
        """Read what is there when the page is looked at."""
        super().showEvent(event)
        if self._stale:
            self._read()

    def _read(self) -> None:
        run, project = self._run, self._context.project
        if run is None:
            return
        self._stale = False
        self._turn += 1
        turn = self._turn
        run_task(
            lambda: list_checkpoints(project, run),
            lambda found: self._on_read(turn, found),
            lambda error: self._on_unread(turn, error),
            owner=self,
        )

    def _on_unread(self, turn: int, error: BaseException) -> None:
        if turn == self._turn:
            self.banner.show_error(error)

    def _on_read(self, turn: int, found: Sequence[KeptCheckpoint]) -> None:
        run = self._run
        if turn != self._turn or run is None:
            return
        self._stack.setCurrentIndex(1 if found else 0)
        clear(self._grid)
        keys = [key for key in MEASURES[run.method] if any(key == part.key for one in found for part in one.measured)]
        word = step_word(run.method)
        titles = [word.capitalize(), "Written", *(_title(key) for key in keys), ""]
        for place, title in enumerate(titles):
            self._grid.addWidget(Text(title, "small", "muted"), 0, place)
        for number, one in enumerate(found):
            self._grid.addWidget(Divider(), 2 * number + 1, 0, 1, len(titles))
            self._add(one, 2 * number + 2, keys, word)
        for place in range(self._grid.columnCount()):
            self._grid.setColumnStretch(place, int(place == len(titles) - 1))

    def _add(self, one: KeptCheckpoint, line: int, keys: Sequence[str], word: str) -> None:
        known = {part.key: part for part in one.measured}
        written = Text(ago(one.created_at), "body", "muted")
        written.setToolTip(f"{moment(one.created_at)}, {in_bytes(one.model_bytes)}")
        cells: list[QWidget] = [Text(f"{one.step:,}", "strong"), written]
        cells += [_value(known.get(key), one.step, word) for key in keys]
        for place, cell in enumerate(cells):
            self._grid.addWidget(cell, line, place, Qt.AlignmentFlag.AlignVCenter)
        holder = QWidget()
        deeds = row(spacing=S, margins=(0, XS, 0, XS))
        holder.setLayout(deeds)
        deeds.addStretch(1)
        if one.model is None:
            keep = button("Keep as model", name=f"keep-{one.step}")
            keep.clicked.connect(partial(self._keep, one.step))
            keep.setAccessibleDescription(f"Make the checkpoint of {word} {one.step} a model of the project")
            keep.setEnabled(not self._context.read_only)
            deeds.addWidget(keep)
        else:
            deeds.addWidget(Text("Kept as model", "body", "good"))
            shows = one.model.role == "reward"  # which writes nothing to compare
            show = button("Show" if shows else "Compare", name=f"show-{one.step}")
            show.setAccessibleDescription(
                f"Show {one.model.name} in Models" if shows else f"Open {one.model.name} beside what it came from"
            )
            show.clicked.connect(partial(self._show_kept, one.model))
            deeds.addWidget(show)
        self._grid.addWidget(holder, line, len(cells))

    def _keep(self, step: int, _checked: bool = False) -> None:
        run, project = self._run, self._context.project
        made = self.findChild(QWidget, f"keep-{step}")
        if run is None or made is None:
            return
        made.setEnabled(False)
        self.banner.hide()
        run_task(
            lambda: keep_checkpoint(project, run, step),
            self._on_kept,
            lambda error: self._on_refused(run, error),
            owner=self,
        )

    def _on_kept(self, model: ModelRecord) -> None:
        self._context.notify(f"{model.name} is a model of this project now", "good")
        self.refresh()

    def _on_refused(self, run: RunRecord, error: BaseException) -> None:
        if self._shows(run):
            self.banner.show_error(error)
            self.refresh()
        else:
            self._context.show_error(error)

    def _shows(self, run: RunRecord) -> bool:
        return self._run is not None and self._run.id == run.id

    def _show_kept(self, model: ModelRecord, _checked: bool = False) -> None:
        if model.role == "reward":
            self._context.navigate("models", model_id=model.id)
            return
        self._context.navigate("compare", model_id=model.id, with_model_id=model.parent_id or model.base_id)


def _title(key: str) -> str:
    label = GLOSSARY[key].label
    return label[:1].upper() + label[1:]


def _value(part: Measured | None, step: int, word: str) -> QWidget:
    """A number, and under it at which step it was measured where that is another one."""
    if part is None:
        return Text("–", "body", "muted")
    number = Text(short(part.value, GLOSSARY[part.key].unit), "body")
    if part.step == step:
        return number
    both = QWidget()
    both.setLayout(column(number, Text(f"at {word} {part.step:,}", "small", "muted"), spacing=0))
    return both
