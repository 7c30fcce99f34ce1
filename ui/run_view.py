"""One run, live or ended: where it is, its plots, samples, log and recipe, and what can be done with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QTimer, Signal, SignalInstance
from PySide6.QtWidgets import QTabWidget, QWidget

from ui.checkpoints_view import CheckpointsView
from ui.context import Context
from ui.judgement_view import JudgementView
from ui.log_view import LogView, clean
from ui.operations import bind_future, run_task
from ui.plot_grid import PlotGrid
from ui.recipe_view import RecipeView
from ui.run_acts import COMMANDS, GOES_ON, ToRank, alarm_lines, ask, to_rank
from ui.run_data_view import RunDataView
from ui.run_follower import RunFollower, Seen
from ui.run_header import RunHeader
from ui.run_history import Batch, RunHistory
from ui.samples_view import SamplesView
from ui.theme import L, M, S
from ui.widgets import ErrorBanner, PlainText, column, plural, sentence
from workbench import supervisor
from workbench.alarms import Alarm, reward_hacking
from workbench.errors import UserError
from workbench.judged_model import JudgedModel, judged_model
from workbench.model_choice import furthest_of_run
from workbench.moved_runs import resume_run
from workbench.protocol import RunSpec, Sample
from workbench.protocol_version import is_newer, problem_of
from workbench.records import ModelRecord, RunRecord, step_word
from workbench.run_folder import RunFolder, RunStatus

ALARM_EVERY_S = 1.0
LAST_LINES = 12


class RunView(QWidget):
    """Follows the run that it shows from a thread. ``seen(run_id, RunStatus)`` tells the list beside it."""

    seen: SignalInstance = Signal(str, object)  # type: ignore[assignment]

    def __init__(self, context: Context, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._context = context
        self.record: RunRecord | None = None
        self.history = RunHistory()
        self.status = Seen(RunStatus("queued"))
        self._known = False
        self._spec: RunSpec | None = None
        self._model: ModelRecord | None = None
        self._others: list[RunRecord] = []
        self._follower: RunFollower | None = None
        self._overlay: RunFollower | None = None
        self._overlay_history = RunHistory()
        self._alarm: Alarm | None = None
        self._alarm_dismissed: frozenset[str] = frozenset()
        self._alarm_at = 0.0
        self._failure_of = ""
        self._judged = False  # whether the judgement of a reward run was looked for
        self._alarm_timer = QTimer(self)
        self._alarm_timer.setSingleShot(True)
        self._alarm_timer.timeout.connect(self._look_for_alarm)
        self._build()
        self._connect()

    def _build(self) -> None:
        self.header = RunHeader()
        self.failure = ErrorBanner()
        self.failure.setObjectName("run-failure")
        self.last_lines = PlainText(name="Last lines of the log", role="mono-small", fit=True, max_lines=LAST_LINES)
        self.last_lines.hide()
        self.alarm = ErrorBanner()
        self.alarm.setObjectName("reward-alarm")
        self.command_failed = ErrorBanner()
        self.command_failed.setObjectName("command-failed")
        self.plots = PlotGrid()
        self.samples = SamplesView()
        self.judgement = JudgementView()
        self.checkpoints = CheckpointsView(self._context)
        self.log = LogView()
        self.recipe = RecipeView()
        self.data = RunDataView(self._context.store)
        self.tabs = QTabWidget()
        self.tabs.setDocumentMode(True)
        self.tabs.tabBar().setDrawBase(False)
        self.tabs.setAccessibleName("Views of the run")
        self.tabs.setMinimumHeight(240)  # whatever its pages would like: they scroll
        for view, title in (
            (self.plots, "Plots"),
            (self.judgement, "Judgement"),
            (self.samples, "Samples"),
            (self.checkpoints, "Checkpoints"),
            (self.log, "Log"),
            (self.recipe, "Recipe"),
            (self.data, "Data"),
        ):
            self.tabs.addTab(view, title)
        self._show_judgement(None)
        self.version = ErrorBanner()
        self.version.setObjectName("other-version")
        body = column(
            self.header,
            self.version,
            self.command_failed,
            self.failure,
            self.last_lines,
            self.alarm,
            spacing=S,
            margins=(L, L, M, 0),
        )
        body.addSpacing(S)
        body.addWidget(self.tabs, 1)
        self.setLayout(body)

    def _connect(self) -> None:
        self.header.asked.connect(self.act)
        self.alarm.action_clicked.connect(self._on_alarm_action)
        self.alarm.dismissed.connect(self._on_alarm_closed)
        self.plots.step_chosen.connect(self.show_samples_of)
        self.plots.overlay_wanted.connect(self._on_overlay_wanted)
        self.plots.exported.connect(lambda path: self._context.notify(f"Saved {Path(path).name}", "good"))
        self.plots.failed.connect(self._context.show_error)
        self.samples.failed.connect(self._context.show_error)
        self.samples.to_rank.connect(self._on_to_rank)
        self.judgement.wrong.to_rank.connect(lambda label: self._context.navigate("rank", **label))
        self.log.copied.connect(lambda: self._context.notify("The log was copied", "good"))
        self.recipe.again.connect(self._on_again)
        self.data.opened.connect(lambda pane, label: self._context.navigate(pane, **label))

    # ---- which run ----

    def set_run(self, record: RunRecord, others: list[RunRecord] | None = None) -> None:
        """Show a run; ``others`` may be laid behind its plots."""
        if self.record is not None and record.id == self.record.id:
            self.record = record
            self.header.update_record(record)
            self.set_others(others or self._others)
            return
        self.stop()
        self.record = record
        self.history = RunHistory()
        self.status, self._known = Seen(RunStatus(record.state, detail=record.detail)), False
        self._spec = self._model = None
        self._alarm, self._alarm_dismissed, self._alarm_at, self._failure_of = None, frozenset(), 0.0, ""
        for banner in (self.failure, self.alarm, self.command_failed, self.last_lines, self.version):
            banner.hide()
        folder = RunFolder(self.run_dir)
        self.header.set_record(record)
        self.plots.set_run(record.method, self.history, record.name)
        self.samples.set_run(folder, record.method)
        self.checkpoints.set_run(record)
        self.log.set_log(folder.path / "engine.log")
        self.recipe.set_spec(None)
        self.data.set_run(folder)
        self.tabs.setTabText(self.tabs.indexOf(self.log), "Log")
        self._judged = False
        self._show_judgement(None)
        self.set_others(others or [])
        self._show_status()
        self._follower = RunFollower(self.run_dir, self)
        self._follower.batch.connect(self._on_batch)
        self._follower.seen.connect(self._on_seen)
        self._follower.failed.connect(self.command_failed.show_error)
        self._follower.start()
        run_task(folder.spec, lambda spec: self._on_spec(record.id, spec), self._on_no_spec, owner=self)
        self.refresh_model()

    @property
    def run_dir(self) -> Path:
        """The folder of the run that is shown."""
        assert self.record is not None
        return self._context.project.run_dir(self.record.id)

    def set_others(self, others: list[RunRecord]) -> None:
        """Tell which runs there are: those of the same method can be laid behind."""
        self._others = others
        record = self.record
        if record is not None:
            fitting = [one for one in others if one.method == record.method and one.id != record.id]
            self.plots.set_overlay_choices([(one.id, one.name) for one in fitting])

    def refresh_model(self) -> None:
        """Look for the model that came from this run."""
        record, store = self.record, self._context.store
        if record is not None:
            run_task(store.models, lambda models: self._on_models(record.id, models), owner=self)

    def stop(self) -> None:
        """Stop following; the run goes on."""
        self._stop_overlay()
        if self._follower is not None:
            self._follower.stop()
            self._follower.deleteLater()
            self._follower = None

    def _stop_overlay(self) -> None:
        if self._overlay is not None:
            self._overlay.stop()
            self._overlay.deleteLater()
            self._overlay = None

    def show_samples_of(self, step: int) -> None:
        """Show the samples of a step, or of the nearest one that has some."""
        self.samples.show_step(step)
        self.tabs.setCurrentWidget(self.samples)

    def _on_spec(self, run_id: str, spec: RunSpec) -> None:
        if self.record is not None and self.record.id == run_id:
            self._spec = spec
            self.recipe.set_spec(spec)
            if (problem := problem_of(spec)) is not None:
                more = " ".join((sentence(problem.cause), sentence(problem.remedy)))
                self.version.show_message(problem.what, more, "warn")
                self._show_status()

    def _on_no_spec(self, error: BaseException) -> None:
        self.command_failed.show_error(error)

    def _on_models(self, run_id: str, models: list[ModelRecord]) -> None:
        if self.record is None or self.record.id != run_id:
            return
        self._model = furthest_of_run(models, run_id)
        self._show_status()

    # ---- what arrives ----

    def _on_batch(self, batch: Batch) -> None:
        changed = self.history.apply(batch)
        self.plots.mark_dirty(None if batch.cut_after is not None or batch.marks else changed)
        if batch.marks or batch.cut_after is not None:
            self.checkpoints.refresh()
        if batch.samples or batch.cut_after is not None:
            self.samples.set_batches(self.history.samples)
        if batch.notes:
            self.log.set_notes(self.history.notes)
        if batch.warnings:
            self.log.set_warnings(self.history.warnings)
            self.tabs.setTabText(self.tabs.indexOf(self.log), f"Log ({plural(len(self.history.warnings), 'warning')})")
        self._show_status()
        if self.record is not None and self.record.method == "ppo" and not self._alarm_timer.isActive():
            wait = max(0.0, ALARM_EVERY_S - (time.monotonic() - self._alarm_at))
            self._alarm_timer.start(int(wait * 1000))

    def _on_seen(self, seen: Seen) -> None:
        before, self.status, self._known = self.status, seen, True
        if before.status.state != seen.status.state:
            self.header.ready()
            self.command_failed.hide()
            if not seen.status.alive:
                self.refresh_model()
        self._show_status()
        if self.record is not None:
            self.seen.emit(self.record.id, seen.status)

    def _show_status(self) -> None:
        self.header.show_seen(
            self.status,
            self.history,
            has_model=self._model is not None,
            read_only=self._context.read_only or (self._spec is not None and is_newer(self._spec)),
        )
        self._show_failure()
        self._look_for_judgement()

    # ---- what a reward model is worth ----

    def _look_for_judgement(self) -> None:
        """Read how a reward run was judged, once, when it is done."""
        record = self.record
        if record is None or record.method != "reward" or self.status.status.state != "done" or self._judged:
            return
        self._judged = True
        store, folder = self._context.store, RunFolder(self.run_dir)
        run_task(
            lambda: judged_model(store, folder.path / "final", folder),
            lambda judged: self._on_judged(record.id, judged),
            self.command_failed.show_error,
            owner=self,
        )

    def _on_judged(self, run_id: str, judged: JudgedModel | None) -> None:
        if self.record is not None and self.record.id == run_id:
            self._show_judgement(judged)

    def _show_judgement(self, judged: JudgedModel | None) -> None:
        some = judged is not None and judged.report.accuracy.pairs > 0
        self.judgement.show_judged(judged if some else None)
        self.tabs.setTabVisible(self.tabs.indexOf(self.judgement), some)

    def _show_failure(self) -> None:
        status = self.status.status
        if not self._known:
            return  # the record knows less than the folder, which is being read
        if status.state not in ("failed", "interrupted"):
            if self._failure_of:
                self._failure_of = ""
                self.failure.hide()
                self.last_lines.hide()
            return
        said = f"{status.state}|{status.detail}|{status.cause}"
        if said == self._failure_of:
            return
        self._failure_of = said
        what = status.detail or ("The run failed" if status.state == "failed" else "The run was interrupted")
        more = " ".join(sentence(part) for part in (status.cause, status.remedy) if part)
        self.failure.show_message(sentence(what), more, "bad" if status.state == "failed" else "warn")
        run_task(RunFolder(self.run_dir).log_tail, self._on_last_lines, owner=self)

    def _on_last_lines(self, text: str) -> None:
        lines = [line for line in clean(text).splitlines() if line.strip()]
        self.last_lines.setVisible(bool(lines) and bool(self._failure_of))
        self.last_lines.set_text("\n".join(lines[-LAST_LINES:]))

    # ---- the alarm ----

    def _look_for_alarm(self) -> None:
        self._alarm_at = time.monotonic()
        recipe = self._spec.recipe if self._spec else {}
        found = reward_hacking(
            alarm_lines(self.history),
            response_length=int(recipe.get("response_length") or 0),
            max_kl=float(recipe.get("max_kl") or 0.0),
        )
        self._alarm = found
        keys = frozenset(one.key for one in found.signals) if found else frozenset()
        if found is None or keys <= self._alarm_dismissed:
            self.alarm.hide()
        elif self.alarm.isHidden() or self.alarm.what.text() != found.headline:
            self.alarm.show_message(found.headline, found.advice, "warn", f"Samples of {step_word('ppo')} {found.step}")

    def _on_alarm_action(self) -> None:
        if self._alarm is not None:
            self.show_samples_of(self._alarm.step)

    def _on_alarm_closed(self) -> None:
        if self._alarm is not None:
            self._alarm_dismissed = frozenset(one.key for one in self._alarm.signals)

    # ---- a second run behind ----

    def _on_overlay_wanted(self, run_id: str) -> None:
        self._stop_overlay()
        other = next((one for one in self._others if one.id == run_id), None)
        if other is None:
            self.plots.set_overlay(None)
            return
        self._overlay_history = history = RunHistory()
        self._overlay = RunFollower(self._context.project.run_dir(other.id), self)
        self._overlay.batch.connect(lambda batch: self.plots.mark_dirty(history.apply(batch)))
        self._overlay.failed.connect(self.command_failed.show_error)
        self._overlay.start()
        self.plots.set_overlay(history, other.name)

    # ---- deeds ----

    def act(self, action: str) -> None:
        """Do what a button says. Errors stay in the run's page."""
        run_dir = self.run_dir
        if action == "compare":
            self._on_compare()
        elif action == "resume":
            project, run_id = self._context.project, run_dir.name
            self._do(action, lambda: resume_run(project, run_id), "It was put in the queue again")
        elif action == "kill":
            self._do(action, lambda: supervisor.kill(run_dir), "The process was ended")
        elif action == "stop":
            self.ask_stop()
        else:
            self._send(action)

    def _send(self, action: str) -> None:
        run_dir = self.run_dir
        command, said = COMMANDS[action]
        said = said.format(step=step_word(self.record.method if self.record else ""))
        self._do(action, lambda: supervisor.send(run_dir, command), said)

    def _do(self, action: str, work: Callable[[], object], said: str) -> None:
        self.header.busy(action)
        self.command_failed.hide()
        run_task(work, lambda _: self._on_done(action, said), self._on_refused, owner=self)

    def _on_done(self, action: str, said: str) -> None:
        self._context.notify(said)
        if self._follower is not None:
            self._follower.look_now()
        if action in GOES_ON:
            self.header.ready()

    def _on_refused(self, error: BaseException) -> None:
        self.header.ready()
        self.command_failed.show_error(error)
        if self._follower is not None:
            self._follower.look_now()

    def ask_stop(self) -> None:
        """Ask whether to stop without saving, and say what is kept."""
        last = max((mark.step for mark in self.history.marks if mark.kind == "checkpoint"), default=0)
        word = step_word(self.record.method if self.record else "")
        kept = f"The checkpoint of {word} {last} is kept." if last else "There is no checkpoint yet: all of it is lost."
        ask(
            self,
            "Stop this run without saving?",
            f"It is at {word} {self.status.status.step}. {kept}",
            "Stop without saving",
            "Go on training",
            lambda: self._send("stop"),
        )

    def _on_compare(self) -> None:
        if self._model is not None:
            with_id = self._model.parent_id or self._model.base_id
            self._context.navigate("compare", model_id=self._model.id, with_model_id=with_id)

    def _on_again(self) -> None:
        if self.record is not None:
            self._context.navigate("train", run_id=self.record.id)

    def _on_to_rank(self, samples: list[Sample]) -> None:
        record, store, model = self.record, self._context.store, self._model
        if record is None:
            return

        run_task(
            lambda: to_rank(store, samples, record, model), self._add_responses, self._context.show_error, owner=self
        )

    def _add_responses(self, sent: ToRank) -> None:
        if not sent.responses:
            cause = "their prompts are no longer in this project"
            remedy = "add the prompts again"
            if sent.repeated:
                cause, remedy = "the project has all of them already", "look for them in Rank"
            self._context.show_error(UserError("There is nothing new to rank in these samples", cause, remedy))
            return
        future = self._context.store.add_responses(sent.responses)
        bind_future(future, lambda _: self._context.notify(sent.said(), "good"), self._context.show_error, owner=self)
