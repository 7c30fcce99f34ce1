"""The whole loop in the real window, driven by keys and clicks, with the real engine on a tiny random model."""

from __future__ import annotations

import os

os.environ["QT_QPA_PLATFORM"] = "offscreen"

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import QEvent, QObject, Qt, QTimer
from PySide6.QtWidgets import QApplication, QLabel, QMainWindow, QSpinBox, QWidget

from ui.app import App
from ui.error_card import ErrorCard
from ui.operations import operations
from ui.panes import KEYS
from ui.sampling_dialog import SamplingDialog
from ui.settings import Settings
from ui.widgets import ErrorBanner
from workbench import comparisons, supervisor
from workbench.folders import config_dir
from workbench.ids import new_id, now
from workbench.project import Project
from workbench.records import Demonstration, Message, ModelRecord, Prompt, Ranking, Rater, Response
from workbench.run_folder import RunFolder

pytestmark = [pytest.mark.timeout(300)]
K = Qt.Key
CTRL = Qt.KeyboardModifier.ControlModifier
LIMIT_MS = 150_000  # for what an engine does: loading torch alone takes many seconds on a shared machine
STEPS = 400
SPARING = {"epochs": 900, "eval_every": 200, "save_every": 200}  # the preset measures and saves every few steps


class Strays(QObject):
    """Notes windows that nobody asked for: widgets that were shown before they had a parent."""

    def __init__(self, qapp: QApplication) -> None:
        super().__init__(qapp)
        self.shown: list[str] = []
        qapp.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.Show and isinstance(watched, QWidget) and watched.isWindow():
            kinds = Qt.WindowType.Popup, Qt.WindowType.ToolTip, Qt.WindowType.Dialog
            if not isinstance(watched, QMainWindow) and watched.windowType() not in kinds:
                self.shown.append(f"{type(watched).__name__} {watched.objectName()}".strip())
        return False


class Desk:
    """A person at the window: presses keys where the focus is, clicks what is on screen, and waits to see."""

    def __init__(self, qtbot: Any, app: App) -> None:
        self.qtbot = qtbot
        self.app = app

    @property
    def window(self) -> QWidget:
        return self.app.window

    @property
    def project(self) -> Project:
        assert self.app.session is not None
        return self.app.session.project

    def see(self, condition: Callable[[], Any], what: str, limit_ms: int = LIMIT_MS) -> None:
        """Wait until something is seen. An error card on the way ends the test with its words."""

        def look() -> bool:
            for card in self.window.findChildren(ErrorCard):
                assert not card.isVisible(), f"{card.what.text()} {card.cause.text()} {card.remedy.text()}"
            return bool(condition())

        try:
            self.qtbot.waitUntil(look, timeout=limit_ms)
        except self.qtbot.TimeoutError:
            raise AssertionError(f"not seen within {limit_ms / 1000:.0f} s: {what}. {self.banners()}") from None

    def banners(self) -> str:
        """What the window complains of, for the words of a failure."""
        shown = [one for one in self.window.findChildren(ErrorBanner) if one.isVisible()]
        words = " ".join(label.text() for one in shown for label in one.findChildren(QLabel))
        return (
            f"Banners: {words!r}; the focus is on {QApplication.focusWidget()}; front: {self.window.isActiveWindow()}"
        )

    def settle(self) -> None:
        self.see(lambda: operations().pending == 0, "the window at rest", 20_000)
        QApplication.processEvents()

    def front(self) -> None:
        """Have the keyboard: nobody gives it back to a window when a dialog goes, where there is no window manager."""

        def asked() -> bool:
            if QApplication.activeWindow() is None:
                self.window.activateWindow()
            return QApplication.activeWindow() is not None

        self.see(asked, "the window in front", 20_000)

    def open(self, path: Path) -> None:
        self.window.show()
        self.front()
        self.app.open(path)
        self.see(lambda: self.app.session is not None, "the project", 20_000)
        self.settle()

    def press(self, *keys: Any) -> None:
        """Press keys or type text where the focus is."""
        for key in keys:
            self.front()
            where = QApplication.focusWidget() or self.window
            if isinstance(key, str):
                self.qtbot.keyClicks(where, key)
            elif isinstance(key, tuple):
                self.qtbot.keyClick(where, key[0], key[1])
            else:
                self.qtbot.keyClick(where, key)

    def go(self, name: str) -> Any:
        """Go to a pane by its key, Ctrl+1 to Ctrl+7."""
        self.press((getattr(K, f"Key_{1 + KEYS.index(name)}"), CTRL))
        self.see(lambda: self.app.window.current == name, f"the pane {name}", 20_000)
        self.settle()
        return self.app.window.pane(name)

    def click(self, widget: Any) -> None:
        """Click a widget once it is on screen and can be pressed."""
        self.see(lambda: widget.isVisible() and widget.isEnabled(), f"{widget.objectName()} ready to be clicked")
        self.qtbot.mouseClick(widget, Qt.MouseButton.LeftButton)

    def type_into(self, widget: Any, text: str) -> None:
        """Replace what a field holds, by keys."""
        widget.setFocus()
        widget.selectAll()
        self.qtbot.keyClicks(widget, text)
        if isinstance(widget, QSpinBox):
            self.qtbot.keyClick(widget, K.Key_Tab)

    def start_run(self, method: str, **settings: int) -> Any:
        """Start a run by the Train pane with the preset Quick look and some settings typed; returns the Runs pane."""
        train = self.go("train")
        self.click(train.methods.cards[method])
        self.click(train.setup.presets.buttons["Quick look"])
        self.see(lambda: train.planner.current and train.planner.current.choice.preset == "Quick look", "the plan")
        if not train.advanced.isChecked():
            train.advanced.setFocus()
            self.press(K.Key_Space)
        self.see(lambda: set(settings) <= set(train.form.rows), f"the settings of {method}")
        for name, value in settings.items():
            self.type_into(train.form.rows[name].editor.widget, str(value))
        self.see(lambda: train.planner.current and _planned(train.planner.current, settings), "the settings planned")
        self.settle()
        assert not [one for one in train.problems.problems() if one.severity == "error"], train.problems.problems()
        self.click(train.start)
        self.see(lambda: self.app.window.current == "runs", "the Runs pane after Start")
        runs = self.app.window.pane("runs")
        self.see(lambda: runs.view and runs.view.record and runs.view.record.method == method, f"the {method} run")
        return runs

    def see_state(self, runs: Any, wanted: str) -> None:
        """Wait until the head of the run says its state."""

        def reached() -> bool:
            state = runs.view.header.state.text()
            if state in ("failed", "interrupted") and state != wanted:
                raise AssertionError(RunFolder(runs.view.run_dir).log_tail(4000))
            return bool(state == wanted)

        self.see(reached, f"the run {wanted}")

    def close(self) -> None:
        self.settle()
        self.window.close()
        self.settle()


def _planned(planned: Any, settings: dict[str, int]) -> bool:
    return all(getattr(planned.plan.recipe, name) == value for name, value in settings.items())


@pytest.fixture
def open_window(qtbot: Any, qapp: QApplication) -> Iterator[Callable[[Path], Desk]]:
    """Open a project as ``ui.app.run`` does: the application, its settings, its window, its session."""
    made: list[Desk] = []
    strays = Strays(qapp)

    def open_(path: Path) -> Desk:
        desk = Desk(qtbot, App(qapp, Settings(config_dir() / "window.json")))
        made.append(desk)
        desk.open(path)
        return desk

    yield open_
    qapp.removeEventFilter(strays)
    for desk in made:
        if desk.app.session is not None:
            for run in desk.project.store.runs():
                supervisor.kill(desk.project.run_dir(run.id), grace_s=0.5)
        for card in desk.window.findChildren(ErrorCard):
            card.close()
        desk.window.close()
        qtbot.waitUntil(lambda: operations().pending == 0, timeout=20_000)
        desk.window.deleteLater()
        desk.app.deleteLater()
    qapp.setStyleSheet("")
    assert strays.shown == []


QUESTIONS = (
    "How do I keep basil alive indoors?",
    "What is a good first chess opening?",
    "Why is the sky dark at night?",
    "How long do I boil an egg?",
    "What does a capacitor do?",
    "How do I thank a colleague?",
    "What is the capital of Mali?",
    "How do I fold a fitted sheet?",
)


def _prompt(text: str, split: Any = "train") -> Prompt:
    return Prompt(new_id(), (Message("user", text),), split=split, created_at=now())


@pytest.fixture
def project_path(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with eight prompts to train on, two held out, and the tiny model. No label yet."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so tiny a model only waits for more threads on a busy machine
    path = tmp_path / "My taste"
    with Project.create(path) as project:
        store = project.store
        store.save_model(ModelRecord(new_id(), "tiny", "base", str(tiny_model), created_at=now())).result()
        held_out = [_prompt(f"Held-out question {number}?", "held-out") for number in range(2)]
        store.add_prompts([*map(_prompt, QUESTIONS), *held_out]).result()
    return path


def demonstrate(path: Path) -> None:
    """Give every prompt its final demonstration."""
    with Project.open(path) as project:
        for one in project.store.prompts():
            text = f"In short: {one.title.lower()} Look, try, and ask again."
            project.store.save_demonstration(Demonstration(new_id(), one.id, text, "me", "final")).result()


def rank_all(path: Path) -> None:
    """Give every prompt three responses and a ranking of them."""
    with Project.open(path) as project:
        store, rater = project.store, Rater(new_id(), "me", created_at=now())
        store.save_rater(rater).result()
        for one in store.prompts():
            made = [
                Response(new_id(), one.id, text, finish_reason="stop", created_at=now())
                for text in ("Try it, then look.", "It depends on many things.", "I cannot say, sorry, no idea at all.")
            ]
            store.add_responses(made).result()
            tiers = tuple((response.id,) for response in made)
            store.save_ranking(Ranking(new_id(), one.id, rater.id, tiers, created_at=now())).result()


def points(runs: Any, key: str) -> list[int]:
    """The steps at which the window has a point of a metric."""
    line = runs.view.history.lines.get(key)
    return [int(step) for step in line.x] if line else []


def drawn(runs: Any, key: str) -> bool:
    """Whether the plot of a metric is on the page and has been drawn."""
    return any(key in one.metric_keys() and one.has_data() and one.built for one in runs.view.plots.plots)


def test_what_is_typed_is_saved_and_what_the_model_answers_is_ranked_by_keys(
    open_window: Callable[[Path], Desk], project_path: Path
) -> None:
    desk = open_window(project_path)
    store = desk.project.store

    pane = desk.go("demonstrate")
    desk.see(lambda: pane.prompt is not None, "a prompt to answer")
    first, text = pane.prompt, "Give it light and little water. Pinch the tips."
    desk.qtbot.mouseClick(pane.editor.edit.viewport(), Qt.MouseButton.LeftButton)
    desk.press(text)
    desk.see(lambda: pane.saved.text() == "Saved · draft", "the draft saved", 10_000)
    saved = store.demonstration_for(first.id)
    assert saved is not None
    assert (saved.text, saved.status) == (text, "draft")
    desk.press((K.Key_Return, CTRL))
    desk.see(lambda: pane.prompt.id != first.id, "the next prompt", 10_000)
    final = store.demonstration_for(first.id)
    assert final is not None
    assert (final.text, final.status) == (text, "final")

    rank = desk.go("rank")
    desk.see(lambda: rank.view.empty_shown, "the empty page")
    desk.press(K.Key_G)
    desk.see(lambda: rank.findChild(SamplingDialog), "the sampling dialog")
    dialog = rank.findChild(SamplingDialog)
    desk.settle()
    for field, value in ((dialog.count, "3"), (dialog.most, "3"), (dialog.tokens, "12")):
        desk.type_into(field, value)
    desk.click(dialog.go)
    for _ in range(3):
        desk.see(lambda: rank.item is not None, "three whole responses")
        item = rank.item
        assert len(item.ids) == 3
        desk.press("231")
        tiers = rank.sheet.state.tiers()
        desk.press(K.Key_Return)
        desk.see(lambda item=item: rank.item is not item and not rank.acts.busy, "the ranking saved", 20_000)
        ranking = store.rankings(prompt_id=item.prompt.id)[-1]
        assert ranking.tiers == tiers == ((item.ids[2],), (item.ids[0],), (item.ids[1],))
        assert (ranking.blind, ranking.touched, ranking.outcome) == (True, True, "ranked")
        assert all(one.model_id and one.token_count for one in store.responses(item.prompt.id))
    desk.close()
    with Project.open(project_path) as project:
        assert project.check() == []
        counts = project.store.counts()
    assert (counts.demonstrations_final, counts.rankings, counts.responses) == (1, 3, 9)


def test_sft_is_started_plotted_stopped_resumed_finished_and_compared(
    open_window: Callable[[Path], Desk], project_path: Path
) -> None:
    demonstrate(project_path)
    desk = open_window(project_path)
    runs = desk.start_run("sft", max_steps=STEPS, **SPARING)
    desk.see(lambda: len(points(runs, "loss")) >= 5, "points of the loss")
    desk.click(runs.view.header.buttons["stop-save"])
    desk.see_state(runs, "stopped")
    stopped = runs.view.status.status.step
    assert 5 <= stopped < STEPS
    desk.see(lambda: drawn(runs, "loss"), "the loss drawn")
    desk.click(runs.view.header.buttons["resume"])
    desk.see_state(runs, "done")
    desk.see(lambda: points(runs, "loss")[-1:] == [STEPS], "the last point")
    assert points(runs, "loss") == list(range(1, STEPS + 1))
    assert [one.step for one in runs.view.history.marks if one.kind == "resume"] == [stopped]

    desk.see(lambda: desk.project.store.models(role="sft"), "the new model")
    model = desk.project.store.models(role="sft")[0]
    models = desk.go("models")
    desk.see(lambda: len(models.tree._all(models.tree.rootIndex())) == 2, "the new model in the list")
    models.tree.choose(model.id)
    desk.see(lambda: "sft" in models.text.toPlainText().lower(), "its card")

    compare = desk.go("compare")
    base = desk.project.store.models(role="base")[0]
    for picker, wanted in zip(compare.setup.models, (base, model), strict=False):
        desk.see(lambda picker=picker, wanted=wanted: picker.findData(wanted.id) >= 0, "both models to choose from")
        while picker.currentData() != wanted.id:
            before = picker.currentIndex()
            desk.qtbot.keyClick(picker, K.Key_Down if picker.findData(wanted.id) > before else K.Key_Up)
            assert picker.currentIndex() != before
    desk.type_into(compare.setup.tokens, "12")
    desk.click(compare.setup.go)
    desk.see(lambda: compare.runner.total == 4 and compare.runner.done == 4, "all answers")
    desk.see(lambda: not compare.runner.running, "the comparison at its end")
    assert [cell.error for cell in compare.runner.cells.values()] == [""] * 4
    desk.press("1")
    desk.press(K.Key_Return)
    desk.press("=")
    desk.settle()
    (kept,) = comparisons.listed(project_path)
    assert len(kept.votes) == 2
    desk.close()


def test_a_reward_model_of_the_rankings_leads_ppo_whose_score_and_kl_are_plotted(
    open_window: Callable[[Path], Desk], project_path: Path
) -> None:
    rank_all(project_path)
    desk = open_window(project_path)
    runs = desk.start_run("reward", max_steps=12)
    desk.see_state(runs, "done")
    desk.see(lambda: points(runs, "accuracy"), "points of the accuracy")
    desk.see(lambda: desk.project.store.models(role="reward"), "the reward model")

    runs = desk.start_run("ppo", episodes=32, batch=8, response_length=12)
    desk.see_state(runs, "done")
    for key in ("objective/scores", "objective/kl"):
        desk.see(lambda key=key: len(points(runs, key)) == 4, f"four points of {key}")
        desk.see(lambda key=key: drawn(runs, key), f"{key} drawn")
    runs.view.tabs.setCurrentWidget(runs.view.samples)
    desk.see(lambda: runs.view.history.samples, "samples of the rollouts")
    desk.see(lambda: desk.project.store.models(role="policy"), "the new policy")
    policy = desk.project.store.models(role="policy")[0]
    assert [one.role for one in desk.project.lineage(policy.id)][-1] in ("base", "policy")
    desk.close()


def test_closing_the_window_leaves_the_run_going_and_the_next_window_goes_on_plotting_it(
    open_window: Callable[[Path], Desk], project_path: Path
) -> None:
    demonstrate(project_path)
    desk = open_window(project_path)
    runs = desk.start_run("sft", max_steps=4 * STEPS, **SPARING)
    desk.see(lambda: len(points(runs, "loss")) >= 3, "points of the loss")
    folder = RunFolder(runs.view.run_dir)
    desk.close()
    at_close = folder.state()
    assert at_close.alive
    desk.see(lambda: folder.state().step > at_close.step, "steps while there is no window")

    again = open_window(project_path)
    runs = again.go("runs")
    again.see(lambda: runs.view is not None and points(runs, "loss"), "the run and what it logged meanwhile")
    seen = len(points(runs, "loss"))
    again.see(lambda: len(points(runs, "loss")) > seen, "new points")
    again.see(lambda: drawn(runs, "loss"), "the loss drawn")
    assert points(runs, "loss")[:seen] == list(range(1, seen + 1))
    again.click(runs.view.header.buttons["stop-save"])
    again.see_state(runs, "stopped")
    again.close()


class Gaps(QObject):
    """Rings every 10 ms on the window's thread and keeps how long each ring was in coming.

    ``wall`` is by the clock, ``work`` the thread's own processor time, and ``held`` the clock less the time in which
    the thread could have run but other programs had the processors: what the window itself is answerable for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.wall: list[float] = []
        self.work: list[float] = []
        self.held: list[float] = []
        self._schedule = Path("/proc/thread-self/schedstat")
        self._last = self._now()
        self._timer = QTimer(self)
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._on_ring)
        self._timer.start(10)

    def _now(self) -> tuple[float, float, float]:
        try:
            waited = int(self._schedule.read_text().split()[1]) / 1e9
        except (OSError, IndexError):  # another system: all that was lost counts as the window's
            waited = 0.0
        return time.perf_counter(), time.thread_time(), waited

    def _on_ring(self) -> None:
        now = self._now()
        wall, work, waited = (new - old for new, old in zip(now, self._last, strict=True))
        self.wall.append(wall)
        self.work.append(work)
        self.held.append(wall - waited)
        self._last = now

    def stop(self) -> None:
        self._timer.stop()


def test_the_window_stays_free_while_a_model_is_trained_and_plotted(
    open_window: Callable[[Path], Desk], project_path: Path
) -> None:
    demonstrate(project_path)
    desk = open_window(project_path)
    for name in KEYS:  # built once: what is measured is the run, not the making of panes
        desk.go(name)
    runs = desk.start_run("sft", max_steps=STEPS, **SPARING)
    gaps = Gaps()
    desk.see_state(runs, "done")
    desk.see(lambda: points(runs, "loss")[-1:] == [STEPS], "the last point")
    desk.see(lambda: drawn(runs, "loss"), "the loss drawn")
    gaps.stop()
    desk.close()
    usual = sorted(gaps.held)[len(gaps.held) * 95 // 100]
    longest, held, work = (max(one) * 1e3 for one in (gaps.wall, gaps.held, gaps.work))
    print(f"{len(gaps.wall)} rings: 95 % within {usual * 1e3:.0f} ms; at most {longest:.0f} ms by the clock,", end=" ")
    print(f"{held:.0f} ms less what others took, {work:.0f} ms of own work")
    assert usual <= 0.1
    assert held <= 1000
    assert work <= 400
