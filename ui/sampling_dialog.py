"""Asks how responses are to be sampled: from which model, how many, how, for which prompts, and how far ahead."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from PySide6.QtCore import Signal, SignalInstance
from PySide6.QtWidgets import QComboBox, QDialog, QDoubleSpinBox, QFormLayout, QSpinBox, QWidget

from ui.context import Context
from ui.model_picker import ModelPicker
from ui.operations import run_task
from ui.sampler import SamplingPlan
from ui.theme import L, M, S
from ui.widgets import SectionTitle, Text, button, column, plural, row
from workbench.records import Sampling

_SETTING = "rank.sampling"


class _Choices(msgspec.Struct, omit_defaults=True):
    """What was chosen last, kept with the window's settings."""

    model_id: str = ""
    count: int = 4
    temperature: float = 0.8
    top_p: float = 1.0
    max_new_tokens: int = 256
    ahead: int = 8
    quantisation: str = "bf16"


@dataclass(frozen=True, slots=True)
class PromptSets:
    """Ids of the prompts that the dialog offers."""

    without: list[str]
    train: list[str]
    held_out: list[str]
    by_tag: dict[str, list[str]]


class SamplingDialog(QDialog):
    """``planned(SamplingPlan)`` is sent when it is accepted."""

    planned: SignalInstance = Signal(object)  # type: ignore[assignment]

    def __init__(
        self,
        context: Context,
        current_prompt_id: str = "",
        parent: QWidget | None = None,
        *,
        choose_current: bool = False,
    ) -> None:
        super().__init__(parent)
        self.setObjectName("sampling-dialog")
        self.setWindowTitle("Get responses")
        self.setMinimumWidth(520)
        self._context = context
        self._current = current_prompt_id
        self._choose_current = choose_current and bool(current_prompt_id)
        self._sets: PromptSets | None = None
        last = _last(context)
        self.model = ModelPicker(context, name="Model to sample from")
        self.model.setObjectName("sampling-model")
        if last.model_id:
            self.model.set_model_id(last.model_id)
        self.model.model_chosen.connect(lambda _: self._refresh())
        self.count = _spin(2, 9, last.count, "Responses to each prompt", "count")
        self.temperature = _decimal(0.05, 2.0, 0.05, last.temperature, "Temperature", "temperature")
        self.top_p = _decimal(0.05, 1.0, 0.05, last.top_p, "Top p", "top-p")
        self.tokens = _spin(8, 8192, last.max_new_tokens, "At most this many tokens a response", "max-tokens")
        self.tokens.setSingleStep(32)
        self.which = QComboBox()
        self.which.setObjectName("which-prompts")
        self.which.setAccessibleName("Which prompts")
        self.which.currentIndexChanged.connect(lambda _: self._on_which())
        self.most = _spin(1, 1_000_000, 20, "At most this many prompts", "most-prompts")
        self.most.valueChanged.connect(lambda _: self._refresh())
        self.count.valueChanged.connect(lambda _: self._refresh())
        self.ahead = _spin(0, 1000, last.ahead, "Prompts kept ready ahead; 0 draws all at once", "ahead")
        self.ahead.setSpecialValueText("all of them")
        self.quantisation = QComboBox()
        self.quantisation.setAccessibleName("Weights of the base while sampling")
        for text, value in (("bf16", "bf16"), ("4-bit NF4 (least memory)", "nf4"), ("float32", "fp32")):
            self.quantisation.addItem(text, value)
        self.quantisation.setCurrentIndex(max(0, self.quantisation.findData(last.quantisation)))
        self.about = Text("", "small", "muted", wrap=True)
        self.about.setObjectName("sampling-about")
        self.go = button("Get responses", self._on_go, kind="primary", name="start-sampling")
        self.go.setDefault(True)
        self._build()
        run_task(lambda: _read_sets(context), self._on_sets, owner=self)

    def _build(self) -> None:
        form = QFormLayout()
        form.setHorizontalSpacing(M)
        form.setVerticalSpacing(S)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Model", self.model)
        form.addRow("Weights", self.quantisation)
        form.addRow("Responses to each prompt", self.count)
        form.addRow(SectionTitle("For which prompts"))
        form.addRow("Prompts", self.which)
        form.addRow("At most", self.most)
        form.addRow("Keep ready ahead", self.ahead)
        form.addRow(SectionTitle("How they are drawn"))
        form.addRow("Temperature", self.temperature)
        form.addRow("Top p", self.top_p)
        form.addRow("Tokens at most", self.tokens)
        buttons = row(None, button("Cancel", self.reject), self.go, spacing=S)
        layout = column(form, self.about, spacing=M, margins=(L, L, L, M))
        layout.addLayout(buttons)
        self.setLayout(layout)

    def plan(self) -> SamplingPlan | None:
        """Return what is chosen; None while a model or prompts are missing."""
        model, ids = self.model.record(), self._ids()
        if model is None or not ids:
            return None
        sampling = Sampling(self.temperature.value(), self.top_p.value(), 0, self.tokens.value())
        return SamplingPlan(
            model, tuple(ids), self.count.value(), sampling, self.ahead.value(), self.quantisation.currentData()
        )

    def _on_sets(self, sets: PromptSets) -> None:
        self._sets = sets
        add = self.which.addItem
        if self._current:
            add("The prompt on screen", "current")
        add(f"Without responses ({len(sets.without):,})", "without")
        add(f"All of train ({len(sets.train):,})", "train")
        add(f"All of held-out ({len(sets.held_out):,})", "held-out")
        for tag, ids in sets.by_tag.items():
            add(f"Tagged {tag} ({len(ids):,})", f"tag:{tag}")
        best = "current" if self._choose_current else "without" if sets.without else "train"
        self.which.setCurrentIndex(self.which.findData(best))
        self._on_which()

    def _all_ids(self) -> list[str]:
        sets, which = self._sets, str(self.which.currentData() or "")
        if sets is None:
            return []
        if which == "current":
            return [self._current]
        if which.startswith("tag:"):
            return sets.by_tag[which[4:]]
        return {"without": sets.without, "train": sets.train, "held-out": sets.held_out}.get(which, [])

    def _ids(self) -> list[str]:
        return self._all_ids()[: self.most.value()]

    def _on_which(self) -> None:
        every = len(self._all_ids())
        self.most.setMaximum(max(1, every))
        self.most.setValue(min(every, 50))
        self.most.setEnabled(every > 1)
        self._refresh()

    def _refresh(self) -> None:
        plan = self.plan()
        self.go.setEnabled(plan is not None)
        if plan is not None:
            total = plan.count * len(plan.prompt_ids)
            self.about.setText(
                f"{plural(total, 'response')} to {plural(len(plan.prompt_ids), 'prompt')}, shuffled and without names. "
                "You can rank the first as soon as it is whole; the rest is drawn while you do."
            )
        elif self._sets is not None and not self.model.models():
            self.about.setText("This project has no model yet. Add one under Models.")
        elif self._sets is not None:
            self.about.setText("There is no prompt of this kind. Write or import prompts first.")

    def _on_go(self) -> None:
        plan = self.plan()
        if plan is None:
            return
        kept = _Choices(
            plan.model.id,
            plan.count,
            plan.sampling.temperature,
            plan.sampling.top_p,
            plan.sampling.max_new_tokens,
            plan.ahead,
            plan.quantisation,
        )
        self._context.settings.set_pane(_SETTING, msgspec.json.encode(kept).decode())
        self.planned.emit(plan)
        self.accept()


def _last(context: Context) -> _Choices:
    try:
        return msgspec.json.decode(context.settings.pane(_SETTING, "{}"), type=_Choices)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return _Choices()


def _read_sets(context: Context) -> PromptSets:
    store = context.store

    def ids(**what: object) -> list[str]:
        return [one.id for one in store.prompts(limit=-1, **what)]  # type: ignore[arg-type]

    tags = {tag: ids(tag=tag) for tag, _ in store.tags()[:12]}
    return PromptSets(ids(need="responses"), ids(split="train"), ids(split="held-out"), tags)


def _spin(low: int, high: int, value: int, name: str, key: str) -> QSpinBox:
    made = QSpinBox()
    made.setRange(low, high)
    made.setValue(value)
    made.setGroupSeparatorShown(True)
    made.setAccessibleName(name)
    made.setObjectName(key)
    return made


def _decimal(low: float, high: float, step: float, value: float, name: str, key: str) -> QDoubleSpinBox:
    made = QDoubleSpinBox()
    made.setRange(low, high)
    made.setSingleStep(step)
    made.setDecimals(2)
    made.setValue(value)
    made.setAccessibleName(name)
    made.setObjectName(key)
    return made
