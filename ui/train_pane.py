"""Train: choose a method and where it starts, see what it will use and cost, start it. Every setting under Advanced."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import Qt
from PySide6.QtWidgets import (
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from ui.context import Context
from ui.method_cards import MethodCards, method_title
from ui.model_picker import ModelPicker
from ui.operations import run_task
from ui.recipe_form import RecipeForm
from ui.theme import L, M, S
from ui.train_parts import Disclosure, PageScroll, ProblemList
from ui.train_planner import Planned, TrainPlanner
from ui.train_setup import SetupCard
from ui.train_summary import TrainSummary
from ui.widgets import ErrorBanner, PageHeader, SectionTitle, Text, button, column, plural, row
from workbench.model_choice import default_reward, default_start
from workbench.protocol import RunSpec
from workbench.recipes import RECIPES, Recipe
from workbench.records import METHODS, Change, Counts, Method, ModelRecord, RunRecord
from workbench.run_folder import RunFolder
from workbench.settings_fields import Problem, settings_of

PAGE_WIDTH, SIDE_WIDTH, LEAST_SIDE_WIDTH = 1120, 432, 320
WIDE_PAGE = 600  # a narrower one has words below fields, not beside them


class TrainPane(QWidget):
    """The page on which a run is made."""

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("train-pane")
        self.setAccessibleName("Train")
        self._context = context
        self._models: list[ModelRecord] = []
        self._chosen_starts: dict[str, str] = {}  # by method, what the researcher picked
        self._changes: dict[str, dict[str, Any]] = {method: {} for method in METHODS}
        self._stale = True
        self.planner = TrainPlanner(context.project, context.engine, self)
        self.methods = MethodCards()
        self.setup = SetupCard(context)
        self.summary = TrainSummary()
        self.form = RecipeForm(hide=("rule",))
        self._make_page()
        self._connect()
        self.methods.choose("sft")
        self.setup.presets.choose("Balanced")

    # ---- building ----

    def _make_page(self) -> None:
        self.advanced = Disclosure("All settings", self.form, name="advanced")
        self._changed = Text("", "small", "muted")
        self._reset_all = button("Reset all", self.form.reset_all, kind="quiet", name="reset-all")
        self._reset_all.hide()
        page = QWidget()
        page.setObjectName("train-page")
        page.setLayout(
            column(
                SectionTitle("Method"),
                self.methods,
                S,
                SectionTitle("Set-up"),
                self.setup,
                S,
                row(self.advanced, self._changed, self._reset_all, None),
                self.form,
                None,
                margins=(L, 0, M, L),
            )
        )
        self.banner = ErrorBanner()
        self.problems = ProblemList()
        self._ready = Text("", "small", "muted", wrap=True)
        self._ready.setObjectName("start-reason")
        self.start = button("Start", kind="primary", name="start-run")
        self.start.setMinimumHeight(40)
        self.start.setEnabled(False)
        side = QWidget()
        side.setLayout(column(self.problems, self.summary, margins=(M, 0, L, 0), spacing=M))
        foot = QWidget()
        foot.setLayout(column(self.banner, self._ready, self.start, margins=(M, S, L, L), spacing=S))
        self._side = QWidget()
        self._side.setLayout(column(spacing=0))
        layout = self._side.layout()
        assert isinstance(layout, QVBoxLayout)
        layout.addWidget(PageScroll(side, hug=True), 100)
        layout.addWidget(foot)
        layout.addStretch(1)
        self._side.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Expanding)
        self._scroll = PageScroll(page)
        header = PageHeader("Train", "Choose a method, see what it will use and cost, and start it.")
        self._explain = button("Explain", self._on_explain, kind="quiet", name="explain-method")
        header.add_action(self._explain)
        body = row(spacing=0)
        body.addWidget(self._scroll, 1)
        body.addWidget(self._side)
        content = QWidget()
        content.setMaximumWidth(PAGE_WIDTH + SIDE_WIDTH)
        content.setLayout(column(row(header, margins=(L, 0, L, 0)), spacing=M, margins=(0, L, 0, 0)))
        layout = content.layout()
        assert isinstance(layout, QVBoxLayout)
        layout.addLayout(body, 1)
        outer = row(spacing=0)
        outer.addWidget(content, 1)
        outer.addStretch(0)
        self.setLayout(outer)

    def _connect(self) -> None:
        self.methods.chosen.connect(self._on_method)
        self.setup.presets.chosen.connect(lambda name: self.planner.choose(preset=name))
        for picker in self.setup.starts.values():
            picker.activated.connect(self._on_start_picked)
            picker.model_chosen.connect(self._on_start_chosen)
        self.setup.reward.model_chosen.connect(lambda model_id: self.planner.choose(reward_id=model_id))
        self.setup.by_rule.toggled.connect(self._on_rule)
        self.setup.rule.textEdited.connect(self._on_rule)
        self.setup.run_name.textEdited.connect(lambda text: self.planner.choose(name=text.strip()))
        self.setup.tags.chosen.connect(lambda tags: self.planner.choose(tags=tags))
        self.form.edited.connect(self._on_recipe)
        self.form.problems_changed.connect(self._show_problems)
        self.planner.planning.connect(self._on_planning)
        self.planner.planned.connect(self._on_planned)
        self.planner.failed.connect(self._on_plan_failed)
        self.planner.started.connect(self._on_started)
        self.planner.start_failed.connect(self._on_start_failed)
        self.problems.chosen.connect(self.go_to)
        self.start.clicked.connect(lambda _checked=False: self._on_start())
        self.summary.command.copied.connect(lambda: self._context.notify("The command was copied", "good"))
        self._context.changed.connect(self._on_changed)

    # ---- the pane's life ----

    def activate(self) -> None:
        """The pane is shown: read models and counts if they changed while it was hidden."""
        if self._stale:
            self._read()
        if self.focusWidget() is None or self.focusWidget() is self._explain:
            self.methods.cards[self.method].setFocus(Qt.FocusReason.OtherFocusReason)

    def show_item(
        self,
        method: str = "",
        start_model_id: str = "",
        reward_model_id: str = "",
        run_id: str = "",
        **_: str,
    ) -> None:
        """Choose a method, a model to start from, a reward model; or all that an earlier run was asked to do."""
        if run_id:
            folder = RunFolder(self._context.project.run_dir(run_id))
            run_task(folder.spec, self._on_spec, self.banner.show_error, owner=self)
            return
        if method in METHODS:
            self.methods.choose(method)
        if start_model_id:
            self._chosen_starts[self.method] = start_model_id
            self._picker().set_model_id(start_model_id)
        if reward_model_id:
            self.setup.by_model.setChecked(True)
            self.setup.reward.set_model_id(reward_model_id)

    def _on_spec(self, spec: RunSpec) -> None:
        """Take over the settings of a run; what its recipe did not know yet keeps the preset's value."""
        known = {one.name for one in settings_of(RECIPES[spec.method])} - set(spec.automatic)
        self._changes[spec.method] = {name: value for name, value in spec.recipe.items() if name in known}
        self._chosen_starts[spec.method] = spec.model.model_id
        self.methods.choose(spec.method)
        if spec.method == "ppo":
            rule = str(spec.recipe.get("rule") or "")
            self.setup.rule.setText(rule)
            (self.setup.by_rule if rule else self.setup.by_model).setChecked(True)
            if spec.reward is not None:
                self.setup.reward.set_model_id(spec.reward.model_id)
        self._picker().set_model_id(spec.model.model_id)
        self.setup.tags.set_tags(spec.tags)
        self.planner.choose(changes=tuple(self._changes[spec.method].items()), tags=spec.tags)
        self._context.notify(f"The settings of {spec.name} were taken over", "info")

    def explain_stage(self) -> str:
        """Return what Explain explains here: the chosen method."""
        return self.method

    @property
    def method(self) -> Method:
        """The chosen method."""
        return self.planner.choice.method

    def resizeEvent(self, event: object) -> None:
        """Give the summary a third of a wide window, and no more than it can use; stack what a narrow page is left."""
        super().resizeEvent(event)  # type: ignore[arg-type]
        side = max(LEAST_SIDE_WIDTH, min(SIDE_WIDTH, self.width() // 3))
        self._side.setFixedWidth(side)
        narrow = self.width() - side < WIDE_PAGE
        self.setup.set_narrow(narrow)
        self.form.set_narrow(narrow)

    def _on_changed(self, change: Change) -> None:
        if change.kinds & {"prompts", "demonstrations", "rankings", "responses", "models"}:
            self._stale = True
            if self.isVisible():
                self._read()

    def _read(self) -> None:
        self._stale = False
        store = self._context.store
        run_task(lambda: (store.counts(), store.models()), self._on_read, owner=self)
        self.planner.refresh()

    def _on_read(self, found: tuple[Counts, list[ModelRecord]]) -> None:
        counts, self._models = found
        self.methods.set_counts(counts)
        self.setup.hold_out.set_counts(counts)
        self._choose_defaults()

    # ---- choosing ----

    def _picker(self) -> ModelPicker:
        return self.setup.picker(self.method)

    def _on_method(self, method: Method) -> None:
        self.setup.show_method(method)
        self.summary.clear()
        self._explain.setAccessibleName(f"Explain {method_title(method)}")
        self.start.setText(f"Start {method_title(method)}")
        self.planner.choose(
            method=method,
            changes=tuple(self._changes[method].items()),
            start_id=self.setup.picker(method).model_id(),
        )
        self._choose_defaults()

    def _choose_defaults(self) -> None:
        """Suggest where to start, unless the researcher said so: SFT from a base, the others from the newest SFT."""
        wanted = self._chosen_starts.get(self.method, "")
        if not any(one.id == wanted for one in self._models):
            suggested = default_start(self._models, self.method)
            wanted = suggested.id if suggested else ""
        if wanted:
            self._picker().set_model_id(wanted)
        start = next((one for one in self._models if one.id == wanted), None)
        if self.setup.reward.record() is None or not self._fits(start):
            reward = default_reward(self._models, start)
            if reward is not None:
                self.setup.reward.set_model_id(reward.id)

    def _fits(self, start: ModelRecord | None) -> bool:
        chosen = self.setup.reward.record()
        return chosen is not None and (start is None or chosen.base_id == (start.base_id or start.id))

    def _on_start_picked(self) -> None:
        self._chosen_starts[self.method] = self._picker().model_id()

    def _on_start_chosen(self, _model_id: str) -> None:
        self.planner.choose(start_id=self._picker().model_id())

    def _on_rule(self) -> None:
        self._change("rule", self.setup.rule_text())

    def _on_recipe(self, recipe: Recipe) -> None:
        names = self.form.changed_fields()
        kept = {name: value for name, value in self._changes[self.method].items() if name == "rule"}
        self._changes[self.method] = kept | {name: getattr(recipe, name) for name in names}
        self._say_changed()
        self.planner.choose(changes=tuple(self._changes[self.method].items()))

    def _change(self, name: str, value: Any) -> None:
        changes = self._changes[self.method]
        if value:
            changes[name] = value
        else:
            changes.pop(name, None)
        self.planner.choose(changes=tuple(changes.items()))

    def _on_explain(self) -> None:
        self._context.explain(self.method)

    # ---- the plan ----

    def _on_planning(self) -> None:
        self.start.setEnabled(False)
        self._ready.setText("Starting…" if self.planner.starting else "Checking…")

    def _on_planned(self, planned: Planned) -> None:
        self.banner.hide()
        shown, standard = self.form.recipe(), self.form.standard()
        typing = bool(self.form.unreadable()) and type(shown) is type(planned.standard)
        if (shown, standard) != (planned.plan.recipe, planned.standard) and not typing:
            self.form.set_recipe(planned.plan.recipe, planned.standard, planned.choice.preset)
        self.summary.show_plan(planned.plan)
        self._say_changed()
        self._show_problems()

    def _on_plan_failed(self, error: BaseException) -> None:
        self.banner.show_error(error)
        self._ready.setText("The plan could not be made")

    def _say_changed(self) -> None:
        count = len(self.form.changed_fields())
        self._changed.setText(f"{plural(count, 'setting')} changed from {self.setup.presets.name()}" if count else "")
        self._reset_all.setVisible(count > 0)

    def _show_problems(self) -> None:
        planned = self.planner.current
        found = list(self.form.unreadable()) + ([_said(one) for one in planned.plan.problems] if planned else [])
        self.setup.show_problems(found)
        self.form.show_problems(found)
        self.problems.show_problems(found)
        self._say_ready(found)

    def _say_ready(self, problems: list[Problem]) -> None:
        planned = self.planner.current
        errors = [one for one in problems if one.severity == "error"]
        self.start.setEnabled(planned is not None and not errors and not self.planner.starting)
        if self.planner.starting:
            self._ready.setText("Starting…")
        elif planned is None:
            self._ready.setText("Checking…")
        elif errors:
            more = f" And {plural(len(errors) - 1, 'more thing')}." if len(errors) > 1 else ""
            self._ready.setText(f"Cannot start yet: {errors[0].message}.{more}")
        else:
            warnings = len(problems)
            self._ready.setText(f"Ready, with {plural(warnings, 'warning')}." if warnings else "Ready.")
        self._ready.set_tone("bad" if errors and planned is not None else "muted")
        self.start.setAccessibleDescription(self._ready.text())

    def go_to(self, field: str) -> None:
        """Lead to where a problem is mended."""
        if self.setup.go_to(field, self.method):
            return
        if field == "data":
            self._context.navigate({"sft": "demonstrate", "ppo": "demonstrate"}.get(self.method, "rank"))
        else:
            self.advanced.setChecked(True)
            if self.form.go_to(field):
                self._scroll.ensureWidgetVisible(self.form.rows[field], 0, 80)

    # ---- starting ----

    def _on_start(self) -> None:
        self.banner.hide()
        self.planner.start()
        self._say_ready([])

    def _on_started(self, record: RunRecord) -> None:
        self.setup.run_name.clear()
        self.planner.choose(name="")
        self.planner.refresh()
        self._context.notify(f"{record.name} started", "good")
        self._context.navigate("runs", run_id=record.id)

    def _on_start_failed(self, error: BaseException) -> None:
        self.banner.show_error(error)
        self._show_problems()


def _said(problem: Problem) -> Problem:
    """Say an empty rule as what it is to the researcher: not yet written."""
    if problem.field == "rule" and "' '" in problem.message:
        return Problem("rule", "The rule is not written yet", problem.remedy)
    return problem
