"""The checkpoints of a run on its page: what was measured at each, and keeping one as a model."""

import dataclasses
import shutil
import threading

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QLabel, QPushButton

from ui import checkpoints_view
from ui.run_view import RunView
from ui.runs_pane import RunsPane
from workbench.errors import UserError
from workbench.kept_checkpoints import keep_checkpoint
from workbench.manifests import seal
from workbench.models import remove_model
from workbench.protocol import PROTOCOL_VERSION, Ended


@pytest.fixture
def run(script, filled):
    made = script("ppo", "ppo 1", runs_dir=filled.project.runs_dir)
    made.start()
    made.steps(1, 20)
    save(made, 8)
    save(made, 16)
    filled.project.store.save_run(record_of(made, filled)).result(10)
    return made


def record_of(run, filled, state="running"):
    return dataclasses.replace(run.record(state), start_model_id=filled.base.id)


def save(run, step):
    """Write a checkpoint as an engine would, and say so."""
    path = run.path / "checkpoints" / str(step)
    path.mkdir(parents=True)
    (path / "adapter_model.safetensors").write_bytes(bytes(3 * 1024**2))
    (path / "state_training.pt").write_bytes(b"optimiser")
    seal(path, kind="checkpoint", run_id=run.id, method=run.method, step=step)
    run.checkpoint(step)


@pytest.fixture
def show(context, qtbot, settle):
    views = []

    def make(run, filled, state="running"):
        view = RunView(context)
        views.append(view)
        qtbot.addWidget(view)
        view.resize(980, 700)
        view.show()
        view.set_run(record_of(run, filled, state))
        view.tabs.setCurrentWidget(view.checkpoints)
        settle()
        return view

    yield make
    for view in views:
        view.stop()
    settle()


def words(view):
    return [one.text() for one in view.checkpoints.findChildren(QLabel) if one.isVisible()]


def buttons(view):
    return {one.objectName(): one for one in view.checkpoints.findChildren(QPushButton) if one.isVisible()}


def test_sound_checkpoints_stand_with_their_age_score_and_size(run, show, filled, qtbot):
    view = show(run, filled)
    qtbot.waitUntil(lambda: list(buttons(view)) == ["keep-16", "keep-8"])
    said = words(view)
    assert {"Rollout", "Written", "Score, validation prompts", "8", "16", "just now"} <= set(said)
    assert {"at rollout 5", "at rollout 15"} <= set(said)  # where the held-out score was last measured before 8 and 16


def test_one_is_kept_as_a_model_and_leads_to_compare(run, show, filled, qtbot, said):
    view = show(run, filled)
    qtbot.waitUntil(lambda: "keep-8" in buttons(view))
    qtbot.mouseClick(buttons(view)["keep-8"], Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: list(buttons(view)) == ["keep-16", "show-8"])
    (model,) = [one for one in filled.project.store.models() if one.run_id == run.id]
    assert (model.step, model.parent_id, model.role) == (8, filled.base.id, "policy")
    assert said.notices[-1] == (f"{model.name} is a model of this project now", "good")
    qtbot.mouseClick(buttons(view)["show-8"], Qt.MouseButton.LeftButton)
    assert said.places == [("compare", {"model_id": model.id, "with_model_id": filled.base.id})]


def test_a_kept_reward_model_is_shown_among_the_models_since_it_writes_nothing_to_compare(
    script, show, filled, qtbot, said
):
    run = script("reward", "reward 1", runs_dir=filled.project.runs_dir)
    save(run, 5)
    view = show(run, filled)
    qtbot.waitUntil(lambda: "keep-5" in buttons(view))
    qtbot.mouseClick(buttons(view)["keep-5"], Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: "show-5" in buttons(view))
    qtbot.mouseClick(buttons(view)["show-5"], Qt.MouseButton.LeftButton)
    (model,) = [one for one in filled.project.store.models() if one.run_id == run.id]
    assert said.places == [("models", {"model_id": model.id})]


def test_one_that_the_run_swept_meanwhile_is_refused_and_goes_off_the_page(run, show, filled, qtbot):
    view = show(run, filled)
    qtbot.waitUntil(lambda: "keep-8" in buttons(view))
    shutil.rmtree(run.path / "checkpoints" / "8")
    qtbot.mouseClick(buttons(view)["keep-8"], Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: list(buttons(view)) == ["keep-16"])
    assert "cannot be kept as a model" in view.checkpoints.banner.what.text()
    assert "there are checkpoints of 16" in view.checkpoints.banner.more.text()


def test_a_new_checkpoint_appears_by_itself_and_before_the_first_the_page_says_how_one_is_made(
    script, show, filled, qtbot
):
    run = script("ppo", "ppo 2", runs_dir=filled.project.runs_dir)
    run.start()
    run.live()
    view = show(run, filled)
    assert view.checkpoints.empty.isVisible()
    assert "Save now" in view.checkpoints.empty.text.text()
    save(run, 4)
    qtbot.waitUntil(lambda: list(buttons(view)) == ["keep-4"], timeout=10_000)
    assert not view.checkpoints.empty.isVisible()


def test_a_project_that_is_open_for_reading_keeps_none(run, show, filled, qtbot, context, monkeypatch):
    monkeypatch.setattr(context.project, "read_only", True)
    view = show(run, filled)
    qtbot.waitUntil(lambda: "keep-8" in buttons(view))
    assert not buttons(view)["keep-8"].isEnabled()


@pytest.mark.parametrize("version", ["older", "newer"])
def test_a_run_of_another_version_is_shown_and_says_so_and_a_newer_one_is_given_no_command(
    script, show, filled, qtbot, version
):
    run = script("ppo", "ppo 3", runs_dir=filled.project.runs_dir)
    run.start()
    run.steps(1, 3)
    other = PROTOCOL_VERSION + (1 if version == "newer" else -1)
    recipe = run.path / "recipe.json"
    recipe.write_text(recipe.read_text().replace(f'"protocol": {PROTOCOL_VERSION}', f'"protocol": {other}'))
    run.write(Ended(state="stopped", step=3))
    run.exit()
    view = show(run, filled, "stopped")
    qtbot.waitUntil(lambda: view.version.isVisible())
    kind = {"older": "an older", "newer": "a newer"}[version]
    assert view.version.what.text() == f"The run 'ppo 3' is of {kind} version of Tastemaker"
    qtbot.waitUntil(lambda: view.history.step == 3)  # its numbers are there
    qtbot.waitUntil(lambda: view.status.status.state == "stopped")
    assert view.header.buttons["resume"].isHidden() == (version == "newer")


@pytest.fixture
def pane(run, context, qtbot, settle):
    made = RunsPane(context)
    qtbot.addWidget(made)
    made.resize(1280, 760)
    made.show()
    made.activate()
    qtbot.waitUntil(lambda: made.view is not None and made.view.record is not None, timeout=20_000)
    yield made
    made.view.stop()
    made._timer.stop()
    settle()


def test_a_kept_model_that_is_removed_under_models_is_not_called_kept_any_more(run, pane, filled, qtbot):
    model = keep_checkpoint(filled.project, record_of(run, filled), 8)
    pane.view.tabs.setCurrentWidget(pane.view.checkpoints)
    qtbot.waitUntil(lambda: "show-8" in buttons(pane.view), timeout=20_000)
    remove_model(filled.project, model.id)
    qtbot.waitUntil(lambda: "keep-8" in buttons(pane.view), timeout=20_000)


def test_a_refusal_that_comes_late_does_not_show_on_another_runs_page(
    run, script, show, filled, qtbot, said, settle, monkeypatch
):
    refused, goes_on = UserError("It cannot be kept", "no"), threading.Event()

    def refuse(*_):
        goes_on.wait(20)
        raise refused

    monkeypatch.setattr(checkpoints_view, "keep_checkpoint", refuse)
    view = show(run, filled)
    qtbot.waitUntil(lambda: "keep-8" in buttons(view), timeout=20_000)
    qtbot.mouseClick(buttons(view)["keep-8"], Qt.MouseButton.LeftButton)
    other = script("ppo", "ppo 2", runs_dir=filled.project.runs_dir)
    view.set_run(record_of(other, filled))
    goes_on.set()
    qtbot.waitUntil(lambda: said.errors == [refused], timeout=20_000)
    settle()
    assert view.checkpoints.banner.isHidden()
