"""The samples of a run, step by step: what the model wrote, how it was scored, and each token's KL and reward."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QItemSelectionModel, QModelIndex, Qt, Signal, SignalInstance
from PySide6.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QHeaderView,
    QSplitter,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from ui.numbers import short
from ui.operations import run_task
from ui.row_table import row_table
from ui.samples_model import SamplesModel, length_of
from ui.theme import M, S
from ui.token_text import ScaleKey, TokenMeasure, TokenText, measures_of, scale_of
from ui.widgets import ElidedLabel, EmptyState, IconButton, Pill, PlainText, Text, button, column, row, safe_tip
from workbench.protocol import Sample, SampleBatch
from workbench.records import step_word
from workbench.run_folder import RunFolder

SHOWN_SAMPLES = 512


class SamplesView(QWidget):
    """Follows the newest step until the researcher picks another. ``to_rank(list[Sample])``: judge these by hand."""

    to_rank: SignalInstance = Signal(object)  # type: ignore[assignment]
    failed: SignalInstance = Signal(object)  # type: ignore[assignment]
    step_shown: SignalInstance = Signal(int)  # type: ignore[assignment]

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._folder: RunFolder | None = None
        self._batches: list[SampleBatch] = []
        self._step = -1
        self._loaded = -1
        self._follow = True
        self._measure = "KL"
        self.model = SamplesModel(self)
        self._make_bar()
        self._make_table()
        self._make_detail()
        self._say_steps(step_word(""))
        split = QSplitter(Qt.Orientation.Vertical)
        split.addWidget(self.table)
        split.addWidget(self._detail)
        split.setStretchFactor(0, 2)
        split.setStretchFactor(1, 3)
        split.setSizes([260, 320])
        split.setChildrenCollapsible(False)
        full = QWidget()
        full.setLayout(column(self._bar, split, margins=(0, S, 0, 0)))
        self._empty = EmptyState(
            "sample", "No samples yet", "The engine writes samples at its first measurement; PPO writes every rollout."
        )
        self._stack = QStackedWidget()
        self._stack.addWidget(self._empty)
        self._stack.addWidget(full)
        self.setLayout(column(self._stack))

    def _make_bar(self) -> None:
        self.steps = QComboBox()
        self.steps.setObjectName("sample-step")
        self.steps.setMinimumContentsLength(10)
        self.steps.activated.connect(lambda index: self._pick(int(self.steps.itemData(index))))
        self.back = IconButton("chevron-left", "", lambda: self._move(-1))
        self.on = IconButton("chevron-right", "", lambda: self._move(1))
        self.latest = button("Latest", self._on_latest, kind="quiet", tip="Follow the newest samples", name="latest")
        self.latest.setCheckable(True)
        self.latest.setChecked(True)
        self._summary = ElidedLabel("", "small", "muted")
        self._rank = button("Send to Rank", self._on_rank, kind="", name="send-to-rank")
        self._rank.setToolTip("Add the responses of the chosen lines to their prompts, to be ranked by you")
        self._bar = QWidget()
        self._step_label = Text("", "small", "muted")
        line = row(self._step_label, self.back, self.steps, self.on, self.latest, S)
        line.addWidget(self._summary, 1)
        line.addWidget(self._rank)
        self._bar.setLayout(line)

    def _make_table(self) -> None:
        self.table = row_table(self.model, "samples")
        self.table.setSortingEnabled(True)
        self.table.sortByColumn(-1, Qt.SortOrder.DescendingOrder)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        for section, width in enumerate((88, 88, 80, 80)):
            self.table.setColumnWidth(section, width)
        header.setStretchLastSection(True)
        self.table.selectionModel().currentRowChanged.connect(self._on_row)

    def _make_detail(self) -> None:
        self._score = Pill()
        self._kl = Pill()
        self._length = Pill()
        self._end = Pill()
        self.measure = QComboBox()
        self.measure.setObjectName("token-measure")
        self.measure.setAccessibleName("Colour the tokens by")
        self.measure.activated.connect(self._on_measure)
        self.text = TokenText()
        self.scale = ScaleKey(self.text)
        self.whole = button("", self._on_whole, kind="quiet", name="show-all")
        self.whole.hide()
        self._extremes = Text("", "small", "muted", wrap=True)
        self._prompt = PlainText(name="Prompt", fit=True, max_lines=4)
        self._colour_label = Text("Colour by", "small", "muted")
        top = row(self._score, self._kl, self._length, self._end, None, self._colour_label, self.measure, self.scale)
        self._detail = QWidget()
        self._detail.setLayout(
            column(
                top,
                Text("Prompt", "small", "muted"),
                self._prompt,
                Text("Response", "small", "muted"),
                margins=(0, M, 0, 0),
                spacing=S,
            )
        )
        layout = self._detail.layout()
        assert isinstance(layout, QVBoxLayout)
        layout.addWidget(self.text)
        layout.addWidget(self.whole, 0, Qt.AlignmentFlag.AlignLeft)
        layout.addWidget(self._extremes)

    # ---- which run, which step ----

    def set_run(self, folder: RunFolder | None, method: str = "") -> None:
        """Show another run's samples."""
        self._folder = folder
        self._say_steps(step_word(method))
        self._rank.setVisible(method != "reward")  # it scores responses that are in the project already
        self._batches = []
        self._step = self._loaded = -1
        self._follow = True
        self.latest.setChecked(True)
        self.steps.clear()
        self.model.set_samples([])
        self._show_sample(None)
        self._stack.setCurrentIndex(0)

    def _say_steps(self, word: str) -> None:
        self._step_label.setText(word.capitalize())
        self.steps.setAccessibleName(word.capitalize())
        self.table.setAccessibleName(f"Samples of the {word}")
        for one, text in ((self.back, f"Samples of the {word} before"), (self.on, f"Samples of the next {word}")):
            one.setAccessibleName(text)
            one.setToolTip(safe_tip(text))

    def set_batches(self, batches: Sequence[SampleBatch]) -> None:
        """Tell which samples there are; loads the newest step's while it is followed and the view is seen."""
        if list(batches) == self._batches:
            return
        before = self._of(self._loaded)
        self._batches = list(batches)
        steps = sorted({one.step for one in self._batches})
        self._stack.setCurrentIndex(1 if steps else 0)
        if not steps:
            return
        shown = [self.steps.itemData(index) for index in range(self.steps.count())]
        if shown != steps[::-1]:
            self.steps.blockSignals(True)
            self.steps.clear()
            for step in reversed(steps):
                self.steps.addItem(f"{self._step_label.text()} {step}", step)
            self.steps.blockSignals(False)
        if self._follow or self._step not in steps:
            self._step = steps[-1]
        if self._of(self._loaded) != before:
            self._loaded = -1  # else what is shown stays, however far the run has gone on
        self._show_step()

    def _of(self, step: int) -> list[SampleBatch]:
        return [one for one in self._batches if one.step == step]

    def show_step(self, step: int) -> None:
        """Go to the samples of a step, or of the nearest step that has some."""
        steps = sorted({one.step for one in self._batches})
        if steps:
            self._pick(min(steps, key=lambda one: (abs(one - step), -one)))

    def step(self) -> int:
        """Return the step that is shown, -1 for none."""
        return self._step

    def _pick(self, step: int) -> None:
        self._step = step
        self._follow = step == max((one.step for one in self._batches), default=step)
        self.latest.setChecked(self._follow)
        self._show_step()

    def _move(self, by: int) -> None:
        steps = sorted({one.step for one in self._batches})
        if self._step in steps:
            at = steps.index(self._step) + by
            if 0 <= at < len(steps):
                self._pick(steps[at])

    def _on_latest(self) -> None:
        steps = [one.step for one in self._batches]
        self.latest.setChecked(True)
        if steps:
            self._pick(max(steps))

    def _show_step(self) -> None:
        steps = sorted({one.step for one in self._batches})
        self.steps.setCurrentIndex(self.steps.findData(self._step))
        self.back.setEnabled(self._step > steps[0])
        self.on.setEnabled(self._step < steps[-1])
        if self._loaded != self._step and self.isVisible():
            self._load()

    def _load(self) -> None:
        folder, step = self._folder, self._step
        if folder is None or step < 0:
            return
        self._loaded = step
        wanted = self._of(step)

        def read() -> list[Sample]:
            found: list[Sample] = []
            for one in wanted:
                found += folder.samples(one.offset, min(one.count, SHOWN_SAMPLES - len(found)))
            return found

        run_task(read, lambda samples: self._on_samples(folder, step, samples), self.failed.emit, owner=self)

    def showEvent(self, event: object) -> None:
        """Load what is due now that somebody looks."""
        super().showEvent(event)  # type: ignore[arg-type]
        if self._loaded != self._step:
            self._load()

    def _on_samples(self, folder: RunFolder, step: int, samples: list[Sample]) -> None:
        if folder is not self._folder or step != self._step:
            return
        current = self.model.sample(self.table.currentIndex().row())
        keep = current.prompt_id if current else ""
        self.model.set_samples(samples)
        self._summary.setText(_summary(samples))
        line = next((n for n, one in enumerate(self.model.samples()) if one.prompt_id == keep), 0)
        if samples:
            self.table.setCurrentIndex(self.model.index(line, 0))
            flags = QItemSelectionModel.SelectionFlag
            self.table.selectionModel().select(self.model.index(line, 0), flags.ClearAndSelect | flags.Rows)
        else:
            self._show_sample(None)
        self.step_shown.emit(step)

    # ---- one sample ----

    def _on_row(self, now: QModelIndex, _before: QModelIndex) -> None:
        self._show_sample(self.model.sample(now.row()))

    def _show_sample(self, sample: Sample | None) -> None:
        self._detail.setVisible(sample is not None)
        if sample is None:
            self.text.show_sample(None, None)
            return
        self._score.set(f"Score {short(sample.score)}" if sample.score is not None else "No score", "accent")
        self._kl.setVisible(sample.kl is not None)
        self._kl.set(f"KL {short(sample.kl or 0.0, 'nats')}")
        self._length.set(f"{length_of(sample)} {'tokens' if sample.tokens else 'words'}")
        self._end.set("ended by EOS" if sample.ended else "cut off", "good" if sample.ended else "warn")
        self._prompt.set_text(sample.prompt)
        found = measures_of(sample)
        self.measure.blockSignals(True)
        self.measure.clear()
        self.measure.addItem("Nothing", "")
        for one in found:
            self.measure.addItem(one.name, one.field)
            self.measure.setItemData(self.measure.count() - 1, one.about, Qt.ItemDataRole.ToolTipRole)
        self.measure.setCurrentIndex(max(0, self.measure.findText(self._measure)))
        self.measure.blockSignals(False)
        for widget in (self._colour_label, self.measure):
            widget.setVisible(bool(found))
        self._colour(sample)

    def _on_measure(self) -> None:
        self._measure = self.measure.currentText()
        sample = self.model.sample(self.table.currentIndex().row())
        if sample is not None:
            self._colour(sample)

    def _colour(self, sample: Sample) -> None:
        measure: TokenMeasure | None = next(
            (one for one in measures_of(sample) if one.field == self.measure.currentData()), None
        )
        self.text.show_sample(sample, measure)
        self._offer_whole()
        self.scale.show_scale(measure, scale_of(self.text.values()))
        extremes = self.text.extremes()
        words = ", ".join(f"“{token.strip() or '␣'}” {short(value)}" for token, value in extremes)
        self._extremes.setText(f"Largest {measure.name}: {words}" if measure and extremes else "")
        self._extremes.setVisible(bool(extremes))
        self.text.setAccessibleDescription(self._extremes.text())

    def _on_whole(self) -> None:
        self.text.show_all()
        self._offer_whole()
        self.text.setFocus()

    def _offer_whole(self) -> None:
        hidden = self.text.hidden()
        self.whole.setText(f"Show all ({hidden})")
        self.whole.setVisible(bool(hidden))

    def _on_rank(self) -> None:
        lines = sorted({one.row() for one in self.table.selectionModel().selectedRows()})
        chosen = [found for line in lines if (found := self.model.sample(line)) is not None]
        if chosen:
            self.to_rank.emit(chosen)


def _summary(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    scores = [one.score for one in samples if one.score is not None]
    kls = [one.kl for one in samples if one.kl is not None]
    ended = sum(one.ended for one in samples)
    parts = [f"{len(samples)} samples"]
    if scores:
        parts.append(f"mean score {short(sum(scores) / len(scores))}")
    if kls:
        parts.append(f"mean KL {short(sum(kls) / len(kls))}")
    parts.append(f"{ended} of {len(samples)} ended by EOS")
    return "  ·  ".join(parts)
