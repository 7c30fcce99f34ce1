"""An open project in the window: its context, its engine, what the rail and the menus show of it."""

from __future__ import annotations

import contextlib
import getpass
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PySide6.QtCore import QObject, QTimer
from PySide6.QtWidgets import QWidget

from ui.context import Context, Hub, Navigate
from ui.engine_service import EngineService, ServeClientLike
from ui.explain_drawer import stage_named
from ui.operations import bind_future, operations, run_task
from ui.panes import import_pane, pane_info
from ui.settings import Settings
from ui.single_instance import RaiseListener, socket_path
from ui.theme import Theme
from ui.window import MainWindow
from ui.words import LIVE_STATES
from workbench.folders import runtime_dir
from workbench.ids import new_id, now
from workbench.project import Project
from workbench.records import Change, Counts, Rater, RunRecord

RUNS_EVERY_MS = 2000
RELEASE_AFTER_MS = 5000
"""While a run is live an idle engine keeps its memory so long: the next request may follow at once."""
_log = logging.getLogger("tastemaker.ui")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the shell shows of a project, read in one go off the window's thread."""

    counts: Counts
    undo: str
    redo: str
    runs: list[RunRecord] = field(default_factory=list)


class Session(QObject):
    """Holds one open project until it is closed."""

    def __init__(
        self, project: Project, rater: Rater, window: MainWindow, theme: Theme, settings: Settings, navigate: Navigate
    ) -> None:
        super().__init__(window)
        self.project = project
        self.window = window
        self.listener: RaiseListener | None = None
        self._closed = False
        self._poll_open = False
        self._live = 0
        self._watch_fault = ""
        self.engine = EngineService(make_client, self)
        self.hub = Hub(self)
        self.context = Context(
            project=project,
            engine=self.engine,
            rater=rater,
            hub=self.hub,
            theme=theme,
            settings=settings,
            notify=window.status.notify,
            navigate=navigate,
            explain=window.explain,
        )
        self._unsubscribe = project.store.subscribe(self.hub.tell)
        self._refresh = QTimer(self)
        self._refresh.setSingleShot(True)
        self._refresh.setInterval(60)
        self._refresh.timeout.connect(self._read_facts)
        self._poll = QTimer(self)
        self._poll.setInterval(RUNS_EVERY_MS)
        self._poll.timeout.connect(self._poll_runs)
        self.hub.changed.connect(self._on_changed)
        self._release = QTimer(self)
        self._release.setSingleShot(True)
        self._release.setInterval(RELEASE_AFTER_MS)
        self._release.timeout.connect(lambda: self.engine.release())
        self.engine.state_changed.connect(window.status.set_engine)
        self.engine.state_changed.connect(self._on_engine)
        window.status.set_engine("off")
        window.drawer.set_source(self._live_values)
        window.status.set_rater(rater.name, read_only=project.read_only)
        if not project.read_only:
            with contextlib.suppress(OSError):
                self.listener = RaiseListener(socket_path(runtime_dir(), project.path), self)

    def start(self) -> None:
        """Begin to watch; after the first pane is on screen."""
        self._read_facts()
        self._poll.start()
        self._poll_runs()

    def make_pane(self, key: str) -> QWidget:
        """Import and build a pane."""
        return import_pane(pane_info(key))(self.context)

    def undo(self) -> None:
        """Take back the newest act on labels."""
        bind_future(self.project.store.undo(), lambda change: self._said("Undone", change), owner=self)

    def redo(self) -> None:
        """Do again what was undone."""
        bind_future(self.project.store.redo(), lambda change: self._said("Redone", change), owner=self)

    def rename_rater(self, name: str) -> None:
        """Use another name for new labels: the rater of that name, or a new one."""

        def find() -> Rater:
            return rater_named(self.project, name)

        run_task(find, self._on_rater, owner=self)

    def close(self, done: Callable[[], None] | None = None) -> None:
        """Finish all writes and let go of the project. With ``done`` this happens off the window's thread."""
        if self._closed:
            return
        self._closed = True
        self._poll.stop()
        self._refresh.stop()
        self._release.stop()
        self._unsubscribe()
        operations().stop_workers()
        if self.listener is not None:
            self.listener.close()
        self.window.drawer.set_source(None)
        end_engine = self.engine.detach()

        def finish() -> None:
            self.project.close()
            end_engine()

        if done is None:
            finish()
        else:
            run_task(finish, lambda _: done())

    # ---- what the shell shows ----

    def _live_values(self, stage: str) -> Mapping[str, float]:
        """Return the newest numbers of what the shown pane shows, where the stage is about it."""
        window = self.window
        asked = getattr(window.pane(window.current), "explain_values", None) if window.current else None
        return asked() if callable(asked) and stage == stage_named(window.stage()) else {}

    def _said(self, verb: str, change: Change) -> None:
        self.window.status.notify(f"{verb}: {change.label}" if change.label else verb, "good")

    def _on_rater(self, rater: Rater) -> None:
        self.context.rater = rater
        self.context.settings.values.rater_name = rater.name
        self.window.status.set_rater(rater.name, read_only=self.project.read_only)
        self.hub.changed.emit(Change(frozenset({"raters"}), (rater.id,)))

    def _on_changed(self, _change: Change) -> None:
        if not self._refresh.isActive() and not self._closed:
            self._refresh.start()

    def _read_facts(self) -> None:
        store, rater_id = self.project.store, self.context.rater.id
        run_task(
            lambda: Facts(store.counts(rater_id), store.undo_label(), store.redo_label(), store.runs()),
            self._on_facts,
            self._on_poll_failed,
            owner=self,
        )

    def _on_engine(self, state: str) -> None:
        if state == "ready" and self._live and not self._closed:
            self._release.start()
        else:
            self._release.stop()

    def _on_facts(self, facts: Facts) -> None:
        if self._closed:
            return
        self.window.menus.set_undo(facts.undo, facts.redo)
        rail = self.window.rail.buttons
        rail["rank"].set_badge(facts.counts.prompts_with_responses)
        live = sum(facts.counts.runs.get(state, 0) for state in LIVE_STATES)
        if live and not self._live:
            self.engine.release()
        self._live = live
        rail["runs"].set_badge(live, live=True)
        self.window.status.set_runs(facts.runs)

    def _poll_runs(self) -> None:
        if self._poll_open or self._closed or self.project.read_only:
            return
        self._poll_open = True
        run_task(lambda: refresh_runs(self.project), self._on_polled, self._on_poll_failed, owner=self)

    def _on_polled(self, _runs: object) -> None:
        self._poll_open = False

    def _on_poll_failed(self, error: BaseException) -> None:
        self._poll_open = False
        if not self._closed and str(error) != self._watch_fault:
            self._watch_fault = str(error)  # said once, not every two seconds
            _log.warning("the project could not be watched: %s", error)


def make_client() -> ServeClientLike:
    """Start the serving engine; called off the window's thread at the first request."""
    from workbench.serve_client import ServeClient

    return ServeClient()


def refresh_runs(project: Project) -> None:
    """Bring the run records up to what the run folders say, where there is any run."""
    if not project.runs_dir.is_dir() or not any(project.runs_dir.iterdir()):
        return
    from workbench import training

    training.refresh_runs(project)


def rater_named(project: Project, name: str) -> Rater:
    """Find the person of that name among the project's raters, or add them. Blocks until it is saved."""
    for rater in project.store.raters():
        if rater.kind == "person" and rater.name == name:
            return rater
    made = Rater(new_id(), name, created_at=now())
    if not project.read_only:
        project.store.save_rater(made).result()
    return made


def user_name() -> str:
    """Return the name of who is logged in, for a first rater."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "me"


def open_project(path: Path, settings: Settings, *, read_only: bool = False) -> tuple[Project, Rater]:
    """Open a project and find its rater; off the window's thread. Raises UserError."""
    project = Project.open(path, read_only=read_only)
    try:
        return project, rater_named(project, settings.values.rater_name or user_name())
    except BaseException:
        project.close()
        raise
