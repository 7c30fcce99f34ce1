import re
import shutil
import time

import msgspec
import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QFontMetrics, QGuiApplication
from PySide6.QtWidgets import QAbstractButton, QApplication, QLabel, QMessageBox, QWidget

from ui.run_follower import Seen
from ui.run_header import ACTIONS, actions_for
from ui.runs_list import RunRow, RunsListView, RunsModel, last_headline, read_rows
from ui.runs_pane import RunsPane
from workbench import supervisor
from workbench.errors import UserError
from workbench.ids import new_id
from workbench.protocol import Cancel, Pause, Pong, Resume, Sample, SampleNow, SaveNow, Stop, Warned
from workbench.records import Message, ModelRecord, Prompt
from workbench.run_folder import RunStatus


@pytest.fixture
def project(filled):
    return filled.project


@pytest.fixture
def listed(script, project):
    """Make a scripted run that the project lists: ``listed("ppo", "ppo 1", state="running")``."""

    def make(method="ppo", name="", *, state="running", live=False, **options):
        run = script(method, name, runs_dir=project.runs_dir, **options)
        if live:
            run.live("queued" if state == "queued" else "running", ahead=1)
        project.store.save_run(run.record(state)).result(10)
        return run

    return make


@pytest.fixture
def open_pane(context, qtbot, settle):
    panes = []

    def make():
        pane = RunsPane(context)
        panes.append(pane)
        qtbot.addWidget(pane)
        pane.resize(1280, 760)
        with qtbot.waitExposed(pane):
            pane.show()
        pane.activate()
        return pane

    yield make
    for pane in panes:
        if pane.view is not None:
            pane.view.stop()
        pane._timer.stop()
    settle()


def shows(pane, run):
    return pane.view is not None and pane.view.record is not None and pane.view.record.id == run.id


def state_of(pane):
    seen = pane.view is not None and pane.view._known  # what the folder says, not the record
    return pane.view.header.state.text() if seen else ""


def tab_names(pane):
    return [pane.view.tabs.tabText(place) for place in range(pane.view.tabs.count())] if pane.view else [""] * 5


def visible_actions(pane):
    return [key for key, made in pane.view.header.buttons.items() if made.isVisible()]


@pytest.fixture
def sent(monkeypatch):
    commands = []

    def send(run_dir, command, timeout=2.0):
        commands.append(command)
        return Pong()

    monkeypatch.setattr(supervisor, "send", send)
    return commands


# ---- the list ----


def test_a_project_without_runs_says_what_a_run_is_and_leads_to_train(open_pane, qtbot, said, settle):
    pane = open_pane()
    settle()
    assert pane._pages.currentIndex() == 0
    qtbot.mouseClick(pane._pages.currentWidget().action, Qt.MouseButton.LeftButton)
    assert said.places == [("train", {})]


def test_what_is_at_work_comes_first_then_the_queue_then_history(listed, open_pane, qtbot):
    done = listed("sft", "sft 1", state="done")
    done.start(10)
    done.steps(1, 10, 10)
    done.end("done", 10)
    queued = listed("dpo", "dpo 1", state="queued", live=True)
    running = listed("ppo", "ppo 1", state="running", live=True)
    running.start()
    running.steps(1, 20)
    pane = open_pane()
    qtbot.waitUntil(lambda: len(pane.model.rows) == 3)
    assert [one.record.id for one in pane.model.rows] == [running.id, queued.id, done.id]
    first = pane.model.index(0).data(Qt.ItemDataRole.AccessibleTextRole)
    assert first.startswith("ppo 1, PPO, running, rollout 20 of 60, score ")
    assert "waiting for the device (1 ahead)" in pane.model.index(1).data(Qt.ItemDataRole.AccessibleTextRole)
    assert pane._count.text() == "2 at work or waiting"
    qtbot.waitUntil(lambda: shows(pane, running))
    assert pane.list.selectionModel().isSelected(pane.model.index(0))


def test_a_name_that_would_turn_the_row_about_is_drawn_with_its_marks(listed, project, qtbot, theme, monkeypatch):
    listed("sft", "sft\u202e1", state="done").exit()
    model = RunsModel()
    model.set_rows(read_rows(project, {}))
    view = RunsListView(model)
    qtbot.addWidget(view)
    drawn = []
    fit = QFontMetrics.elidedText

    def note(self, text, *rest):
        drawn.append(text)
        return fit(self, text, *rest)

    monkeypatch.setattr(QFontMetrics, "elidedText", note)
    view.show()
    view.grab()
    assert "sft\u27e6RLO\u27e71" in drawn


def test_the_list_model_keeps_qt_s_rules(qtmodeltester, listed, project):
    for index in range(3):
        listed("sft", f"sft {index}", state="done").exit()
    model = RunsModel()
    qtmodeltester.check(model)
    rows = read_rows(project, {})
    model.set_rows(rows)
    qtmodeltester.check(model)
    model.set_rows(rows[:1])
    assert model.rowCount() == 1


def test_ended_runs_are_not_read_again(listed, project, monkeypatch):
    run = listed("sft", state="done")
    run.start(5)
    run.steps(1, 5, 5)
    run.end("done", 5)
    known = {one.record.id: one for one in read_rows(project, {})}
    shutil.rmtree(run.path)
    assert read_rows(project, known) == list(known.values())


def test_the_headline_is_the_method_s_main_number(script):
    run = script("reward")
    assert last_headline(run.folder, "reward") == ""
    run.start()
    run.steps(1, 3)
    assert last_headline(run.folder, "reward").startswith("accuracy ")
    run.steps(4, 5)
    assert last_headline(run.folder, "reward").startswith("held-out accuracy ")


def test_the_window_can_ask_for_a_run_and_a_step(listed, open_pane, qtbot, settle):
    first, second = listed("sft", "sft 1", state="done"), listed("ppo", "ppo 1", state="done")
    for run in (first, second):
        run.start(10)
        run.steps(1, 10, 10)
        run.samples(5)
        run.samples(10)
        run.end("done", 10)
    pane = open_pane()
    qtbot.waitUntil(lambda: shows(pane, second))
    pane.show_item(run_id=first.id)
    qtbot.waitUntil(lambda: shows(pane, first))
    assert pane.explain_stage() == "sft"
    qtbot.waitUntil(lambda: pane.view.samples.steps.count() == 2)
    pane.show_item(run_id=first.id, step="5")
    assert pane.view.tabs.currentWidget() is pane.view.samples
    assert pane.view.samples.step() == 5


def test_a_run_that_comes_later_appears_by_itself(listed, open_pane, qtbot, settle):
    pane = open_pane()
    settle()
    run = listed("sft", "sft 1", live=True)
    qtbot.waitUntil(lambda: shows(pane, run), timeout=10_000)


def test_runs_that_cannot_be_read_are_said_once_and_not_every_second(listed, open_pane, settle, said, monkeypatch):
    listed("sft", state="done").exit()
    pane = open_pane()
    settle()

    def broken(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr("ui.runs_pane.read_rows", broken)
    for _ in range(3):
        pane.reload()
        settle()
    assert [str(one) for one in said.errors] == ["the disk is gone"]
    monkeypatch.undo()
    pane.reload()
    settle()
    monkeypatch.setattr("ui.runs_pane.read_rows", broken)
    pane.reload()
    settle()
    assert len(said.errors) == 2  # it was well in between


# ---- a living run ----


def test_a_living_run_shows_state_phase_progress_and_time_left(listed, open_pane, qtbot):
    run = listed("ppo", "ppo 1", live=True)
    run.start()
    run.steps(1, 30)
    pane = open_pane()
    qtbot.waitUntil(lambda: state_of(pane) == "running" and pane.view.history.step == 30)
    header = pane.view.header
    assert header._steps.text() == "rollout 30 of 60"
    assert header._eta.text() == "1 min 15 s left"
    assert header.progress.value() == 30
    assert header._phase.text() == "Rollout"
    assert visible_actions(pane) == ["pause", "save", "sample", "stop-save", "stop"]
    assert pane.view.tabs.currentWidget() is pane.view.plots


def test_a_vanished_process_is_interrupted_within_a_second_with_cause_log_and_resume(listed, open_pane, qtbot):
    run = listed("ppo", "ppo 1", live=True)
    run.start()
    run.steps(1, 5)
    run.log("Traceback: the last words\n")
    pane = open_pane()
    qtbot.waitUntil(lambda: state_of(pane) == "running")
    start = time.monotonic()
    run.exit(code=None, signal=9, reason="killed (signal 9): most likely the machine ran out of memory")
    qtbot.waitUntil(lambda: state_of(pane) == "interrupted")
    assert time.monotonic() - start < 1.0
    view = pane.view
    assert "ended at rollout 5" in view.failure.what.text()
    assert "out of memory" in view.failure.more.text()
    qtbot.waitUntil(lambda: "the last words" in view.last_lines.text())
    assert view.last_lines.isVisible()
    assert visible_actions(pane) == ["resume"]


def test_a_failed_run_says_why_and_what_to_do(listed, open_pane, qtbot):
    run = listed("sft", "sft 1", state="failed")
    run.start()
    run.steps(1, 5)
    run.end("failed", 5, "The loss was NaN at step 5", "the learning rate is too high", "lower it tenfold")
    pane = open_pane()
    qtbot.waitUntil(lambda: state_of(pane) == "failed" and pane.view.failure.isVisible())
    assert pane.view.failure.what.text() == "The loss was NaN at step 5."
    assert pane.view.failure.more.text() == "The learning rate is too high. Lower it tenfold."


def test_silence_of_fifteen_seconds_is_said_and_ended_only_by_hand(listed, open_pane, qtbot, monkeypatch):
    run = listed("sft", "sft 1", live=True)
    run.start()
    pane = open_pane()
    qtbot.waitUntil(lambda: state_of(pane) == "running")
    pane.view._on_seen(Seen(RunStatus("running", 3, 10), 16.0))
    assert state_of(pane) == "not responding"
    assert "silent for 16 s" in pane.view.header._phase.text()
    assert "kill" in visible_actions(pane)
    killed = []
    monkeypatch.setattr(supervisor, "kill", killed.append)
    pane.view.act("kill")
    qtbot.waitUntil(lambda: killed == [run.path])


def test_each_button_gives_its_command(listed, open_pane, qtbot, sent, said, monkeypatch):
    run = listed("ppo", "ppo 1", live=True)
    run.start()
    run.steps(1, 2)
    pane = open_pane()
    qtbot.waitUntil(lambda: state_of(pane) == "running")
    commands = {"save": SaveNow(), "sample": SampleNow(), "pause": Pause(), "stop-save": Stop(save=True)}
    for action, command in commands.items():
        if action == "stop-save":
            pane.view.header.ready()  # a pause was asked for, and this run does not obey
        qtbot.waitUntil(lambda action=action: pane.view.header.buttons[action].isEnabled())  # those before go on
        qtbot.mouseClick(pane.view.header.buttons[action], Qt.MouseButton.LeftButton)
        qtbot.waitUntil(lambda command=command: sent[-1:] == [command])
    pane.view.act("unpause")
    qtbot.waitUntil(lambda: sent[-1:] == [Resume()])
    pane.view.act("stop")
    answer("Stop without saving")
    qtbot.waitUntil(lambda: sent[-1:] == [Cancel()])
    qtbot.waitUntil(lambda: any("without saving" in text for text, _ in said.notices))


def answer(button):
    """Press a button of the open question; returns what it said."""
    box = next(one for one in QApplication.topLevelWidgets() if isinstance(one, QMessageBox) and one.isVisible())
    said = box.informativeText()
    next(one for one in box.buttons() if one.text() == button).click()
    return said


def test_stopping_without_saving_asks_and_says_what_is_kept(listed, open_pane, qtbot, sent):
    run = listed("ppo", "ppo 1", live=True)
    run.start()
    run.steps(1, 9)
    run.checkpoint(8)
    pane = open_pane()
    qtbot.waitUntil(lambda: state_of(pane) == "running" and pane.view.history.step == 9)
    qtbot.mouseClick(pane.view.header.buttons["stop"], Qt.MouseButton.LeftButton)
    assert answer("Go on training") == "It is at rollout 9. The checkpoint of rollout 8 is kept."
    assert sent == []


def test_a_command_that_is_refused_stays_on_the_page(listed, open_pane, qtbot, monkeypatch):
    run = listed("ppo", "ppo 1", live=True)
    run.start()
    pane = open_pane()
    qtbot.waitUntil(lambda: state_of(pane) == "running")

    def refuse(run_dir, command, timeout=2.0):
        raise UserError("The engine does not answer", "it said nothing for 2 s", "wait a little")

    monkeypatch.setattr(supervisor, "send", refuse)
    qtbot.mouseClick(pane.view.header.buttons["pause"], Qt.MouseButton.LeftButton)
    qtbot.waitUntil(pane.view.command_failed.isVisible)
    assert "does not answer" in pane.view.command_failed.what.text()
    assert pane.view.header.buttons["pause"].isEnabled()


def test_an_interrupted_run_is_resumed_and_its_history_goes_on_without_a_zigzag(listed, open_pane, qtbot, monkeypatch):
    run = listed("sft", "sft 1", state="interrupted")
    run.start(20)
    run.steps(1, 9, 20)
    run.exit(code=None, signal=9, reason="killed")
    pane = open_pane()
    qtbot.waitUntil(lambda: state_of(pane) == "interrupted")

    def resume(project, run_id):
        assert run_id == pane.view.record.id
        run.live()
        run.start(20, resumed_from=5)
        run.steps(6, 20, 20)

    monkeypatch.setattr("ui.run_view.resume_run", resume)
    qtbot.mouseClick(pane.view.header.buttons["resume"], Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: state_of(pane) == "running" and pane.view.history.step == 20, timeout=10_000)
    assert list(pane.view.history.lines["loss"].x) == list(range(1, 21))
    assert not pane.view.failure.isVisible()


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        ("queued", ("unqueue",)),
        ("running", ("pause", "save", "sample", "stop-save", "stop")),
        ("paused", ("unpause", "stop-save", "stop")),
        ("stopping", ("stop",)),
        ("done", ("compare",)),
    ],
)
def test_what_can_be_done_depends_on_the_state(state, wanted):
    assert actions_for(RunStatus(state), has_model=True) == wanted
    assert set(wanted) <= set(ACTIONS)


def test_a_stopped_run_can_be_resumed_and_compared():
    assert actions_for(RunStatus("stopped", resumable=True), has_model=True) == ("resume", "compare")
    assert actions_for(RunStatus("failed", resumable=True), has_model=False) == ("resume",)
    assert actions_for(RunStatus("running"), has_model=False, not_responding=True)[-1] == "kill"


def test_the_model_of_a_finished_run_opens_in_compare(listed, open_pane, qtbot, said, project, filled):
    run = listed("sft", "sft 1", state="done")
    run.start(5)
    run.steps(1, 5, 5)
    run.end("done", 5)
    model = ModelRecord(new_id(), "sft 1", "sft", f"runs/{run.id}/final", base_id=filled.base.id, run_id=run.id)
    project.store.save_model(model).result(10)
    pane = open_pane()
    qtbot.waitUntil(lambda: state_of(pane) == "done" and "compare" in visible_actions(pane))
    qtbot.mouseClick(pane.view.header.buttons["compare"], Qt.MouseButton.LeftButton)
    assert said.places == [("compare", {"model_id": model.id, "with_model_id": filled.base.id})]


def test_warnings_are_counted_on_the_log_s_tab(listed, open_pane, qtbot):
    run = listed("sft", "sft 1", live=True)
    run.start()
    run.write(Warned(code="oom", message="Out of memory: micro-batch halved to 2", remedy="nothing to do"))
    pane = open_pane()
    qtbot.waitUntil(lambda: pane.view is not None and tab_names(pane)[4] == "Log (1 warning)")


# ---- the alarm ----


def test_reward_hacking_raises_an_honest_alarm_that_leads_to_the_samples(listed, open_pane, qtbot):
    run = listed("ppo", "ppo 1", state="done", max_kl=0.0)
    run.start()
    run.steps(1, 60, hacking=True)
    for step in range(5, 61, 5):
        run.samples(step, 2)
    run.end("done", 60)
    pane = open_pane()
    qtbot.waitUntil(lambda: pane.view is not None and pane.view.alarm.isVisible(), timeout=10_000)
    assert "KL passed" in pane.view.alarm.what.text()
    assert "can mean" in pane.view.alarm.more.text()
    qtbot.mouseClick(pane.view.alarm.action, Qt.MouseButton.LeftButton)
    assert pane.view.tabs.currentWidget() is pane.view.samples
    assert abs(pane.view.samples.step() - pane.view._alarm.step) <= 5
    pane.view.alarm._close.click()
    pane.view._look_for_alarm()
    assert not pane.view.alarm.isVisible()


@pytest.mark.parametrize(("method", "word"), [("ppo", "rollout"), ("sft", "step")])
def test_the_page_of_a_run_counts_in_one_word(listed, open_pane, qtbot, settle, method, word):
    run = listed(method, "one", state="running")
    run.start()
    run.steps(1, 60, hacking=True)
    run.samples(60, 2)
    pane = open_pane()
    qtbot.waitUntil(lambda: pane.view is not None and pane.view.samples.steps.count() == 1, timeout=10_000)
    qtbot.waitUntil(lambda: pane.view.alarm.isVisible() == (method == "ppo"), timeout=10_000)
    settle()
    view = pane.view
    said = [view.plots._hint.text(), view.plots._empty.text(), view.plots.share.accessibleName()]
    said += [view.samples.steps.itemText(0)]
    for part in (view.header, view.samples, view.alarm):
        for one in part.findChildren(QWidget):
            text = one.text() if isinstance(one, QLabel | QAbstractButton) else ""
            said += [text, one.toolTip(), one.accessibleName(), one.accessibleDescription()]
    other = {"rollout": "step", "step": "rollout"}[word]
    empty = view.samples._empty.text.text()  # of all methods: what each writes when
    assert [one for one in said if re.search(rf"\b{other}", one, re.IGNORECASE) and one != empty] == []
    assert {f"{word.capitalize()} 60", f"Samples of the next {word}"} <= set(said)
    assert any(f"at the end of this {word}" in one for one in said)


def test_samples_are_sent_to_rank_once_to_prompts_of_the_project(listed, open_pane, qtbot, context, said):
    store = context.store
    prompt = Prompt(new_id(), (Message("user", "What is hail?"),))
    store.add_prompts([prompt]).result(10)
    run = listed("sft", "sft 1", state="done")
    run.start()
    pane = open_pane()
    qtbot.waitUntil(lambda: pane.view is not None, timeout=10_000)
    written = Sample(step=1, prompt_id=prompt.id, prompt="What is hail?", response="Ice.")
    replaced = msgspec.structs.replace
    pane.view._on_to_rank([written, replaced(written, response=" Ice."), replaced(written, prompt_id="unknown")])
    qtbot.waitUntil(lambda: len(store.responses(prompt.id)) == 1, timeout=10_000)
    qtbot.waitUntil(lambda: bool(said.notices), timeout=10_000)
    assert said.notices[-1][0].startswith("1 response sent to Rank; 1 left out")
    assert "once there is a second response" in said.notices[-1][0]
    pane.view._on_to_rank([written])
    qtbot.waitUntil(lambda: bool(said.errors), timeout=10_000)
    assert "has all of them already" in str(said.errors[-1])


def test_a_healthy_run_raises_no_alarm(listed, open_pane, qtbot):
    run = listed("ppo", "ppo 1", state="done")
    run.start()
    run.steps(1, 60)
    run.end("done", 60)
    pane = open_pane()
    qtbot.waitUntil(lambda: pane.view is not None and pane.view.history.step == 60)
    pane.view._look_for_alarm()
    assert not pane.view.alarm.isVisible()


def test_explain_is_given_the_newest_numbers_of_the_run_that_is_shown(listed, open_pane, qtbot):
    run = listed("sft", "sft 1", live=True)
    run.start()
    run.steps(1, 9)
    pane = open_pane()
    assert pane.explain_values() == {}
    qtbot.waitUntil(lambda: state_of(pane) == "running" and pane.view.history.step == 9)
    history = pane.view.history
    assert pane.explain_values()["loss"] == history.lines["loss"].y[-1]
    assert "eval_loss" in pane.explain_values()


# ---- deeds ----


def test_a_second_run_is_laid_behind(listed, open_pane, qtbot):
    one, two = listed("ppo", "ppo 1", state="done"), listed("ppo", "ppo 2", state="done")
    other = listed("sft", "sft 1", state="done")
    for run in (one, two, other):
        run.start()
        run.steps(1, 20)
        run.end("done", 20)
    pane = open_pane()
    qtbot.waitUntil(lambda: len(pane.model.rows) == 3)
    pane.show_item(run_id=two.id)
    qtbot.waitUntil(lambda: shows(pane, two))
    combo = pane.view.plots.overlay
    assert [combo.itemData(index) for index in range(combo.count())] == ["", one.id]
    pane.view.plots.overlay_wanted.emit(one.id)
    score = next(plot for plot in pane.view.plots.plots if plot.title == "Score")
    qtbot.waitUntil(lambda: score.overlay is not None and len(score.overlay.lines.get("objective/scores") or ()) == 20)
    pane.view.plots.overlay_wanted.emit("")
    assert score.overlay is None


def test_a_run_is_deleted_after_a_question(listed, open_pane, qtbot, project):
    run = listed("sft", "sft 1", state="done")
    run.start()
    run.end("done")
    pane = open_pane()
    qtbot.waitUntil(lambda: shows(pane, run))
    pane.ask_delete(pane.model.rows[0])
    assert "Labels are not touched" in answer("Keep")
    assert pane.model.rows
    pane.ask_delete(pane.model.rows[0])
    answer("Delete")
    qtbot.waitUntil(lambda: not pane.model.rows, timeout=10_000)
    assert not run.path.exists()


def test_the_list_has_a_menu(listed, open_pane, qtbot, said):
    run = listed("sft", "sft 1", live=True)
    pane = open_pane()
    qtbot.waitUntil(lambda: shows(pane, run))
    pane._on_menu(pane.list.visualRect(pane.model.index(0)).center())
    from PySide6.QtWidgets import QMenu

    menu = next(one for one in pane.findChildren(QMenu) if one.isVisible())
    again, copy, _, delete = menu.actions()
    assert not delete.isEnabled()  # it is alive
    again.trigger()
    assert said.places == [("train", {"run_id": run.id})]
    copy.trigger()
    assert QGuiApplication.clipboard().text() == str(run.path)
    menu.close()


def test_every_control_has_an_accessible_name(listed, open_pane, qtbot):
    run = listed("ppo", "ppo 1", live=True)
    run.start()
    run.steps(1, 9)
    run.samples(8)
    pane = open_pane()
    qtbot.waitUntil(lambda: state_of(pane) == "running" and pane.view.samples.steps.count() == 1)
    for tab in range(pane.view.tabs.count()):
        pane.view.tabs.setCurrentIndex(tab)
        QApplication.processEvents()
        for widget in pane.findChildren(QWidget):
            if widget.focusPolicy() != Qt.FocusPolicy.NoFocus and widget.isVisible() and widget.isEnabled():
                text = widget.accessibleName() or getattr(widget, "text", lambda: "")()
                if not text and widget.parentWidget() is not None:  # viewports and tab bars speak through their owner
                    text = widget.parentWidget().accessibleName()
                assert text, f"{widget!r} {widget.objectName()}"


def test_a_read_only_project_offers_no_commands(listed, open_pane, qtbot, context, monkeypatch):
    run = listed("ppo", "ppo 1", live=True)
    run.start()
    monkeypatch.setattr(context.project, "read_only", True)
    pane = open_pane()
    qtbot.waitUntil(lambda: state_of(pane) == "running")
    assert visible_actions(pane) == []


def test_a_row_says_itself():
    row = RunRow(ScriptedRecord, RunStatus("queued", detail="waiting for the device (1 ahead)"))
    assert row.progress_words == "waiting for the device (1 ahead)"


class ScriptedRecord:
    name, method = "sft 1", "sft"
