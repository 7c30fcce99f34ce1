"""What to compare: two to four models, the prompts, the reward model beside, and how answers are drawn."""

from __future__ import annotations

from PySide6.QtCore import Signal, SignalInstance
from PySide6.QtWidgets import QComboBox, QDoubleSpinBox, QSpinBox, QWidget

from ui.compare_prompts import TypedPrompts, prompt_checklist
from ui.compare_runner import ComparePlan
from ui.context import Context
from ui.model_picker import ModelPicker
from ui.operations import run_task
from ui.theme import XS, M, S
from ui.widgets import Card, IconButton, Text, button, plural, row
from workbench.comparisons import Asked
from workbench.records import Change, Prompt, Sampling

MOST_MODELS = 4
WHICH = (
    ("Held-out", "held-out"),
    ("Train", "train"),
    ("Chosen by hand", "chosen"),
    ("Typed here", "typed"),
)


class CompareSetup(Card):
    """``asked(ComparePlan)`` is sent by the button."""

    asked: SignalInstance = Signal(object)  # type: ignore[assignment]

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent=parent, padding=M)
        self.body.setContentsMargins(M, 12, M, 12)
        self._context = context
        self._asked_for: ModelPicker | None = None  # holds the model that somebody came here with
        self.models = [ModelPicker(context, name=f"Model {number}") for number in range(1, MOST_MODELS + 1)]
        for number, picker in enumerate(self.models):
            picker.setObjectName(f"compare-model-{number + 1}")
            if number >= 2:
                picker.hide()
            picker.model_chosen.connect(lambda _: self.refresh())
        self.more = IconButton("plus", "Add a model", lambda: self._show_models(self.shown + 1))
        self.fewer = IconButton("close", "Remove the last model", lambda: self._show_models(self.shown - 1))
        self.which = QComboBox()
        self.which.setObjectName("compare-prompts")
        self.which.setAccessibleName("Prompts")
        self.which.currentIndexChanged.connect(lambda _: self._on_which())
        self.most = QSpinBox()
        self.most.setObjectName("compare-most")
        self.most.setRange(1, 1000)
        self.most.setValue(12)
        self.most.setAccessibleName("At most this many prompts")
        self.most.setPrefix("at most ")
        self.reward = ModelPicker(context, roles=("reward",), none_text="No score", name="Reward model beside")
        self.reward.setObjectName("compare-reward")
        self.temperature = QDoubleSpinBox()
        self.temperature.setRange(0.0, 2.0)
        self.temperature.setSingleStep(0.1)
        self.temperature.setValue(0.7)
        self.temperature.setAccessibleName("Temperature; 0 takes the likeliest token")
        self.tokens = QSpinBox()
        self.tokens.setRange(8, 8192)
        self.tokens.setSingleStep(32)
        self.tokens.setValue(256)
        self.tokens.setAccessibleName("At most this many tokens an answer")
        self.chosen: list[str] = []  # prompts that were chosen by hand
        self.choose = button("Choose…", self.ask_prompts, name="compare-choose")
        self.choose.hide()
        self.typed = TypedPrompts()
        self.typed.hide()
        self.typed.edited.connect(self.refresh)
        self.go = button("Compare", self._on_go, kind="primary", name="compare-go")
        self.about = Text("", "small", "warn", wrap=True)
        self._build()
        context.changed.connect(self._on_changed)
        self._show_models(2)
        self._fill_which([])
        self._load_tags()

    def _build(self) -> None:
        models = row(spacing=S)
        for picker in self.models:
            models.addWidget(picker, 1)
        models.addWidget(self.fewer)
        models.addWidget(self.more)
        choices = row(spacing=M)
        for words, widget, stretch in (
            ("Prompts", self.which, 2),
            ("", self.most, 0),
            ("", self.choose, 0),
            ("Score", self.reward, 2),
            ("Temperature", self.temperature, 0),
            ("Tokens", self.tokens, 0),
        ):
            pair = row(Text(words, "small", "muted"), spacing=XS) if words else row(spacing=0)
            pair.addWidget(widget, 1)
            choices.addLayout(pair, stretch)
        choices.addWidget(self.go)
        self.body.addLayout(models)
        self.body.addLayout(choices)
        self.body.addWidget(self.typed)
        self.body.addWidget(self.about)
        self.about.hide()

    @property
    def shown(self) -> int:
        """How many models can be chosen now."""
        return sum(not one.isHidden() for one in self.models)

    def refresh(self) -> None:
        """Say what is missing, and whether it can begin."""
        chosen = [one.model_id() for one in self.models[: self.shown]]
        problem = ""
        if not all(chosen):
            problem = "Choose two models; add or train one under Models or Train."
        elif len(set(chosen)) < len(chosen):
            problem = "The same model twice: choose different ones."
        elif self.which.currentData() == "typed" and self.typed.is_empty():
            problem = "Type at least one prompt."
        elif self.which.currentData() == "chosen" and not self.chosen:
            problem = "Choose at least one prompt."
        self.about.setText(problem)
        self.about.setVisible(bool(problem))
        self.go.setEnabled(not problem)

    def make_plan(self, prompts: list[Asked]) -> ComparePlan | None:
        """Return the plan for prompts that were read; None when a model is missing."""
        models = [one.record() for one in self.models[: self.shown]]
        found = tuple(one for one in models if one is not None)
        if len(found) < 2 or not prompts:
            return None
        sampling = Sampling(self.temperature.value(), 1.0, 0, self.tokens.value())
        return ComparePlan(found, tuple(prompts), self.reward.record(), sampling)

    def _show_models(self, count: int) -> None:
        count = max(2, min(MOST_MODELS, count))
        for number, picker in enumerate(self.models):
            picker.setVisible(number < count)
        self.more.setEnabled(count < MOST_MODELS)
        self.fewer.setEnabled(count > 2)
        self._spread()
        self.refresh()

    def _spread(self) -> None:
        """Choose different models where nobody has chosen yet."""
        kept = self._asked_for
        taken = {kept.model_id()} if kept else set()
        for picker in self.models[: self.shown]:
            if picker is not kept and picker.model_id() in taken:
                free = [one.id for one in picker.models() if one.id not in taken]
                if free:
                    picker.set_model_id(free[0])
            taken.add(picker.model_id())

    def compare(self, model_id: str, with_model_id: str = "") -> None:
        """Set up two models, the second beside the one it is to be compared with."""
        first, second = self.models[:2]
        first.set_model_id(with_model_id or first.model_id())
        second.set_model_id(model_id)
        self._asked_for = second
        self._spread()

    def models_loaded(self) -> None:
        """The project's models have been read: choose different ones, once."""
        self._spread()
        self.refresh()

    def _on_changed(self, change: Change) -> None:
        if "prompts" in change.kinds:
            self._load_tags()

    def _load_tags(self) -> None:
        run_task(self._context.store.tags, self._fill_which, owner=self)

    def _fill_which(self, tags: list[tuple[str, int]]) -> None:
        keep = self.which.currentData() or "held-out"
        self.which.blockSignals(True)
        self.which.clear()
        for text, value in WHICH:
            self.which.addItem(text, value)
        for tag, count in tags[:30]:
            self.which.addItem(f"Tagged {tag[:40]} ({count:,})", f"tag:{tag}")
        self.which.setCurrentIndex(max(0, self.which.findData(keep)))
        self.which.blockSignals(False)
        self._on_which()

    def _on_which(self) -> None:
        which = self.which.currentData()
        self.typed.setVisible(which == "typed")
        self.choose.setVisible(which == "chosen")
        self.most.setVisible(which not in ("typed", "chosen"))
        self.refresh()

    def ask_prompts(self) -> None:
        """Open the list in which prompts are chosen by hand."""
        sheet = prompt_checklist(self._context, self.chosen, self)
        sheet.chosen.connect(self._on_chosen)
        sheet.open()

    def _on_chosen(self, ids: list[str]) -> None:
        self.chosen = ids
        self.choose.setText(f"{plural(len(ids), 'prompt')}…" if ids else "Choose…")
        self.choose.setAccessibleName(f"{plural(len(ids), 'prompt')} chosen by hand: choose others")
        self.refresh()

    def _on_go(self) -> None:
        which, most, store = str(self.which.currentData()), self.most.value(), self._context.store
        if which == "typed":
            self._on_prompts(self.typed.prompts())
            return
        chosen = list(self.chosen)

        def work() -> list[Asked]:
            found: list[Prompt]
            if which == "chosen":
                known = store.prompts_by_id(chosen)
                found = [known[one] for one in chosen if one in known]
            elif which.startswith("tag:"):
                found = store.prompts(tag=which[4:], limit=most)
            else:
                found = store.prompts(split="held-out" if which == "held-out" else "train", limit=most)
            return [Asked(key=one.id, messages=one.messages, prompt_id=one.id) for one in found]

        run_task(work, self._on_prompts, self._context.show_error, owner=self)

    def _on_prompts(self, prompts: list[Asked]) -> None:
        plan = self.make_plan(prompts)
        if plan is not None:
            self.asked.emit(plan)
        elif not prompts:
            self.about.setText("There is no prompt of this kind in the project: choose other prompts or type some.")
            self.about.show()
