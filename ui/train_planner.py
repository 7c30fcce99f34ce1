"""Plans a run while the researcher chooses: debounced, off the window's thread, the newest choice wins."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QObject, QTimer, Signal, SignalInstance

from ui.engine_service import EngineLike
from ui.operations import run_task
from workbench.project import Project
from workbench.recipes import RECIPES, Recipe
from workbench.records import Method, RunRecord
from workbench.settings_fields import settings_of
from workbench.training import RunPlan, plan_run, preset_for, start_run

DEBOUNCE_MS = 150


@dataclass(frozen=True, slots=True)
class Choice:
    """What the researcher chose; ``changes`` are the settings that differ from the preset."""

    method: Method = "sft"
    start_id: str = ""
    reward_id: str = ""
    preset: str = "Balanced"
    changes: tuple[tuple[str, Any], ...] = ()
    name: str = ""
    tags: tuple[str, ...] = ()  # only prompts with one of these train


@dataclass(frozen=True, slots=True)
class Planned:
    """A choice with the preset it was resolved to and everything that Start would do."""

    choice: Choice
    standard: Recipe
    plan: RunPlan


def make_plan(project: Project, choice: Choice, leaving: int = 0) -> Planned:
    """Resolve a choice; blocks for some tens of milliseconds on a large project.

    ``leaving`` is the process that ends as the run starts, 0 for none.
    """
    standard = preset_for(project, choice.method, choice.preset, choice.start_id, choice.tags)
    known = {one.name for one in settings_of(RECIPES[choice.method])}
    changes: dict[str, Any] = {name: value for name, value in choice.changes if name in known}
    recipe = dataclasses.replace(standard, **changes)
    plan = plan_run(
        project,
        choice.method,
        start_model_id=choice.start_id,
        reward_model_id=choice.reward_id if choice.method == "ppo" else "",
        recipe=recipe,
        name=choice.name,
        tags=choice.tags,
        leaving=leaving,
    )
    return Planned(choice, standard, plan)


class TrainPlanner(QObject):
    """Keeps the plan of the present choice.

    ``planned(Planned)``, ``planning()`` when the plan is out of date, ``failed(error)``, ``started(RunRecord)``.
    """

    planned: SignalInstance = Signal(object)  # type: ignore[assignment]
    planning: SignalInstance = Signal()  # type: ignore[assignment]
    failed: SignalInstance = Signal(object)  # type: ignore[assignment]
    started: SignalInstance = Signal(object)  # type: ignore[assignment]
    start_failed: SignalInstance = Signal(object)  # type: ignore[assignment]

    def __init__(self, project: Project, engine: EngineLike, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._project = project
        self._engine = engine
        self._choice = Choice()
        self._asked = 0
        self._open = False
        self.starting = False  # a run is being frozen and launched: nothing else can be started meanwhile
        self._current: Planned | None = None
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(DEBOUNCE_MS)
        self._timer.timeout.connect(self._plan)

    @property
    def choice(self) -> Choice:
        """What is chosen now."""
        return self._choice

    @property
    def current(self) -> Planned | None:
        """The plan of the present choice; None while it is being made."""
        return self._current

    def choose(self, **changes: Any) -> None:
        """Change the choice and plan again soon."""
        choice = dataclasses.replace(self._choice, **changes)
        if choice != self._choice or self._current is None:
            self._choice = choice
            self.refresh()

    def refresh(self) -> None:
        """Plan again soon: the choice, the labels or the models changed."""
        self._current = None
        self._asked += 1
        self._timer.start()
        self.planning.emit()

    def start(self) -> None:
        """Start the planned run, off the window's thread; an idle engine leaves its memory to it.

        Does nothing without a current plan.
        """
        planned, project = self._current, self._project
        if planned is not None and not self.starting:
            self.starting = True
            self._engine.release()
            run_task(lambda: start_run(project, planned.plan), self._on_started, self._on_start_failed, owner=self)

    def _plan(self) -> None:
        if self._open:
            return  # the answer under way sees that more was asked
        self._open = True
        asked, choice, project, leaving = self._asked, self._choice, self._project, self._engine.idle_process
        run_task(
            lambda: make_plan(project, choice, leaving),
            lambda planned: self._on_planned(asked, planned),
            lambda error: self._on_failed(asked, error),
            owner=self,
        )

    def _on_planned(self, asked: int, planned: Planned) -> None:
        self._open = False
        if asked != self._asked:
            if not self._timer.isActive():
                self._plan()
            return
        self._current = planned
        self.planned.emit(planned)

    def _on_failed(self, asked: int, error: BaseException) -> None:
        self._open = False
        if asked != self._asked:
            if not self._timer.isActive():
                self._plan()
            return
        self.failed.emit(error)

    def _on_start_failed(self, error: BaseException) -> None:
        self.starting = False
        self.start_failed.emit(error)

    def _on_started(self, record: RunRecord) -> None:
        self.starting = False
        self.started.emit(record)
