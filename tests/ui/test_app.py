from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtWidgets import QApplication, QWidget

from ui import faults
from ui.app import App
from ui.error_card import ErrorCard
from ui.help_dialogs import About, Glossary, Keys
from ui.operations import operations
from ui.project_dialogs import CheckReport, NewProject, RaterName, RestoreBackup, UnsavedWork
from ui.session import rater_named, refresh_runs
from ui.settings import Settings
from ui.single_instance import RaiseListener, ask_to_raise, socket_path
from ui.widgets import Text
from workbench.errors import UserError
from workbench.folders import runtime_dir
from workbench.ids import new_id, now
from workbench.project import Project
from workbench.records import Message, ModelRecord, Prompt, RunRecord

Settle = Callable[[], None]


@pytest.fixture
def project_path(tmp_path: Path) -> Path:
    path = tmp_path / "My taste"
    Project.create(path).close()
    return path


@pytest.fixture
def app(qtbot: Any, qapp: QApplication, tmp_path: Path, settle: Settle) -> Iterator[App]:
    made = App(qapp, Settings(tmp_path / "config" / "window.json"))
    made.window.show()
    yield made
    if made.dialog is not None:
        made.dialog.close()
    for card in made.window.findChildren(ErrorCard):
        card.close()
    made.window.close()
    settle()
    made.window.deleteLater()
    made.deleteLater()
    qapp.setStyleSheet("")


def opened(qtbot: Any, app: App, path: Path, settle: Settle) -> None:
    app.open(path)
    qtbot.waitUntil(lambda: app.session is not None, timeout=20_000)
    settle()


def shown(app: App, kind: type[Any], qtbot: Any) -> Any:
    qtbot.waitUntil(lambda: isinstance(app.dialog, kind), timeout=20_000)
    return app.dialog


def test_without_a_project_the_welcome_page_is_shown(app: App) -> None:
    assert app.welcome.isVisible()
    assert app.is_settled()


def test_a_project_opens_on_home_and_is_remembered(
    qtbot: Any, app: App, project_path: Path, settle: Settle, tmp_path: Path
) -> None:
    opened(qtbot, app, project_path / "project.db", settle)
    assert app.window.current == "home"
    assert app.settings.values.recent == [str(project_path)]
    kept = json.loads((tmp_path / "config" / "window.json").read_text())
    assert kept["recent"] == [str(project_path)]
    assert app.session is not None
    assert app.session.project.store.raters()[0].name == app.session.context.rater.name


def test_panes_are_made_one_by_one_once_the_window_is_idle(
    qtbot: Any, app: App, project_path: Path, settle: Settle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(qtbot, app, project_path, settle)
    assert app.session is not None
    monkeypatch.setattr(app.session, "make_pane", lambda _key: QWidget())
    app.window._make_pane = app.session.make_pane
    app._quiet.setInterval(1)
    qtbot.waitUntil(lambda: len(app.window.built()) == 7, timeout=20_000)
    qtbot.waitUntil(lambda: not app._quiet.isActive(), timeout=5_000)


def test_a_new_project_is_made_and_opened(qtbot: Any, app: App, tmp_path: Path, settle: Settle) -> None:
    app.settings.set_pane("projects-folder", str(tmp_path))
    app.welcome.new.click()
    dialog = shown(app, NewProject, qtbot)
    dialog.name.setText("bad/name")
    assert not dialog.make.isEnabled()
    dialog.name.setText("")
    assert not dialog.make.isEnabled()
    dialog.name.setText("Fresh")
    dialog.make.click()
    qtbot.waitUntil(lambda: app.session is not None, timeout=20_000)
    settle()
    assert (tmp_path / "Fresh" / "project.db").is_file()
    assert app.session is not None
    assert app.session.project.store.counts().prompts == 0


def test_the_sample_project_is_full_of_labels(qtbot: Any, app: App, tmp_path: Path, settle: Settle) -> None:
    app.create(tmp_path / "Sample", sample=True)
    qtbot.waitUntil(lambda: app.session is not None, timeout=30_000)
    settle()
    assert app.session is not None
    assert app.session.project.store.counts().rankings > 10


def test_a_name_that_is_taken_is_told_before_anything_is_made(qtbot: Any, app: App, project_path: Path) -> None:
    dialog = NewProject(project_path.parent)
    qtbot.addWidget(dialog)
    dialog.name.setText("My taste")
    assert "of that name" in dialog.fault.text()
    dialog.name.setText("Other")
    dialog.place.setText("relative")
    assert "whole path" in dialog.fault.text()


def test_a_folder_that_is_no_project_says_so_and_leaves_the_welcome_page(
    qtbot: Any, app: App, tmp_path: Path, settle: Settle
) -> None:
    app.settings.values.recent = [str(tmp_path / "gone")]
    app.open(tmp_path / "gone")
    qtbot.waitUntil(lambda: bool(app.window.findChildren(ErrorCard)), timeout=20_000)
    settle()
    assert "no project" in app.window.findChildren(ErrorCard)[0].what.text()
    assert app.welcome.isVisible()
    assert app.settings.values.recent == []


def test_undo_takes_back_and_the_menu_says_what(qtbot: Any, app: App, project_path: Path, settle: Settle) -> None:
    opened(qtbot, app, project_path, settle)
    assert app.session is not None
    store = app.session.project.store
    store.add_prompts([Prompt(new_id(), (Message("user", "Hello?"),), created_at=now())]).result(10)
    qtbot.waitUntil(lambda: app.window.menus.undo.isEnabled(), timeout=20_000)
    assert len(app.window.menus.undo.text()) > len("&Undo")
    app.window.menus.undo.trigger()
    qtbot.waitUntil(lambda: store.counts().prompts == 0, timeout=20_000)
    qtbot.waitUntil(lambda: app.window.menus.redo.isEnabled(), timeout=20_000)
    app.window.menus.redo.trigger()
    qtbot.waitUntil(lambda: store.counts().prompts == 1, timeout=20_000)
    settle()


def test_another_project_takes_the_place_of_the_first(
    qtbot: Any, app: App, project_path: Path, tmp_path: Path, settle: Settle
) -> None:
    other = tmp_path / "Other"
    Project.create(other).close()
    opened(qtbot, app, project_path, settle)
    app.open(other)
    qtbot.waitUntil(lambda: app.session is not None and app.session.project.path == other, timeout=20_000)
    settle()
    Project.open(project_path).close()  # it was let go
    assert app.settings.values.recent == [str(other), str(project_path)]


def test_closing_a_project_leads_back_to_the_welcome_page(
    qtbot: Any, app: App, project_path: Path, settle: Settle
) -> None:
    opened(qtbot, app, project_path, settle)
    app.close_project()
    assert app.welcome.isVisible()
    settle()
    Project.open(project_path).close()
    assert any(str(project_path.parent) in one._words for one in app.welcome.findChildren(type(app.welcome.new)))


def test_closing_the_window_finishes_writes_and_keeps_the_settings(
    qtbot: Any, app: App, project_path: Path, settle: Settle, tmp_path: Path
) -> None:
    opened(qtbot, app, project_path, settle)
    assert app.session is not None
    store = app.session.project.store
    writes = [store.add_prompts([Prompt(new_id(), (Message("user", f"{n}?"),), created_at=now())]) for n in range(50)]
    app.window.resize(1000, 700)
    app.window.close()
    assert all(write.done() for write in writes)
    with Project.open(project_path) as again:
        assert again.store.counts().prompts == 50
    assert json.loads((tmp_path / "config" / "window.json").read_text())["geometry"]
    settle()


def test_a_project_that_another_process_holds_is_opened_for_reading_only(
    qtbot: Any, app: App, project_path: Path, settle: Settle
) -> None:
    with Project.open(project_path):  # nobody listens on its socket
        opened(qtbot, app, project_path, settle)
        assert app.session is not None
        assert app.session.project.read_only
        assert app.window.status.rater.text() == "Read-only"
        app.window.close()
        settle()


def test_a_project_that_another_window_has_brings_that_one_forward(
    qtbot: Any, app: App, project_path: Path, settle: Settle
) -> None:
    asked: list[int] = []
    with Project.open(project_path):
        listener = RaiseListener(socket_path(runtime_dir(), project_path))
        listener.asked.connect(lambda: asked.append(1))
        app.open(project_path)
        qtbot.waitUntil(lambda: asked == [1], timeout=20_000)
        settle()
        assert app.session is None
        assert not app.window.isVisible()
        listener.close()
        listener.deleteLater()


def test_this_window_comes_forward_when_a_second_one_asks(
    qtbot: Any, app: App, project_path: Path, settle: Settle
) -> None:
    opened(qtbot, app, project_path, settle)
    app.window.showMinimized()
    answers: list[bool] = []
    path = socket_path(runtime_dir(), project_path)
    asking = threading.Thread(target=lambda: answers.append(ask_to_raise(path, 10)))
    asking.start()
    qtbot.waitUntil(lambda: answers == [True], timeout=20_000)
    asking.join()
    assert not app.window.isMinimized()
    assert path.stat().st_mode & 0o077 == 0


def test_nobody_is_brought_forward_when_nobody_listens(tmp_path: Path) -> None:
    assert not ask_to_raise(tmp_path / "none.sock", 0.1)
    silent = tmp_path / "silent.sock"
    with socket.socket(socket.AF_UNIX) as line:
        line.bind(str(silent))
        line.listen()
        assert not ask_to_raise(silent, 0.1)


def test_a_check_reports_that_all_is_sound(qtbot: Any, app: App, project_path: Path, settle: Settle) -> None:
    opened(qtbot, app, project_path, settle)
    app.check_project()
    assert shown(app, CheckReport, qtbot).windowTitle() == "Check project"


def test_a_backup_can_be_restored(qtbot: Any, app: App, project_path: Path, settle: Settle) -> None:
    with Project.open(project_path) as project:
        project.store.add_prompts([Prompt(new_id(), (Message("user", "Kept?"),), created_at=now())]).result(10)
        project.back_up()
        project.store.add_prompts([Prompt(new_id(), (Message("user", "Later?"),), created_at=now())]).result(10)
    opened(qtbot, app, project_path, settle)
    before = app.session
    app.ask_restore()
    dialog = shown(app, RestoreBackup, qtbot)
    dialog.list.setCurrentRow(dialog.list.count() - 1)
    dialog.restore.click()
    qtbot.waitUntil(lambda: app.session is not None and app.session is not before, timeout=30_000)
    settle()
    assert app.session is not None
    assert app.session.project.store.counts().prompts == 1


def test_a_damaged_project_offers_its_backups(qtbot: Any, app: App, project_path: Path, settle: Settle) -> None:
    with Project.open(project_path) as project:
        project.back_up()
    database = project_path / "project.db"
    database.write_bytes(database.read_bytes()[:5000])
    app.open(project_path)
    qtbot.waitUntil(lambda: bool(app.window.findChildren(ErrorCard)), timeout=20_000)
    card = app.window.findChildren(ErrorCard)[0]
    way_out = next(one for one in card.findChildren(QWidget) if getattr(one, "text", str)() == "Restore a backup…")
    way_out.click()  # type: ignore[attr-defined]
    dialog = shown(app, RestoreBackup, qtbot)
    dialog.restore.click()
    qtbot.waitUntil(lambda: app.session is not None, timeout=30_000)
    settle()


def test_explain_shows_the_numbers_of_the_run_in_the_runs_pane_at_its_own_stage(
    qtbot: Any, app: App, project_path: Path, settle: Settle
) -> None:
    opened(qtbot, app, project_path, settle)
    assert app.session is not None
    app.window.explain("sft")
    assert app.session._live_values("sft") == {}
    pane: Any = app.window.pane("runs")
    pane.explain_values = lambda: {"loss": 0.125}
    pane.explain_stage = lambda: "sft"
    app.window.show_pane("runs")
    assert "loss 0.125 nats" in app.window.drawer.text.toPlainText()
    assert app.session._live_values("ppo") == {}


def test_a_run_that_begins_gets_the_memory_of_an_idle_engine(
    qtbot: Any, app: App, project_path: Path, settle: Settle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(qtbot, app, project_path, settle)
    assert app.session is not None
    released: list[int] = []
    monkeypatch.setattr(app.session.engine, "release", lambda: released.append(1))
    app.session._poll.stop()
    store = app.session.project.store
    base = ModelRecord(new_id(), "base", "base", "/x", created_at=now())
    store.save_model(base).result(10)
    store.save_run(RunRecord("r", "sft", "sft 1", "running", base.id, created_at=now())).result(10)
    qtbot.waitUntil(lambda: released == [1], timeout=20_000)
    qtbot.waitUntil(lambda: app.window.rail.buttons["runs"].accessibleName() == "Runs, 1 running", timeout=20_000)
    assert app.window.status.runs.text() == "sft 1 running"
    app.session._release.setInterval(0)
    app.session.engine.state_changed.emit("busy")
    app.session.engine.state_changed.emit("ready")
    qtbot.waitUntil(lambda: released == [1, 1])
    settle()


def test_a_project_that_cannot_be_watched_is_a_line_in_the_log_once(
    qtbot: Any, app: App, project_path: Path, settle: Settle, caplog: Any
) -> None:
    opened(qtbot, app, project_path, settle)
    assert app.session is not None
    for _ in range(3):
        app.session._on_poll_failed(OSError("the disk is gone"))
    assert caplog.text.count("the disk is gone") == 1
    (project_path / "runs").rmdir()
    refresh_runs(app.session.project)


def test_another_rater_name_is_used_from_now_on(qtbot: Any, app: App, project_path: Path, settle: Settle) -> None:
    opened(qtbot, app, project_path, settle)
    app.ask_rater()
    dialog = shown(app, RaterName, qtbot)
    dialog.name.setText(" ")
    assert not dialog.use.isEnabled()
    dialog.name.setText("Ada")
    dialog.use.click()
    assert app.session is not None
    session = app.session
    qtbot.waitUntil(lambda: session.context.rater.name == "Ada", timeout=20_000)
    assert app.window.status.rater.text() == "Rater: Ada"
    assert rater_named(session.project, "Ada").id == session.context.rater.id
    settle()


def test_theme_and_text_size_are_kept(qtbot: Any, app: App, settle: Settle, tmp_path: Path) -> None:
    app.window.menus.theme_chosen.emit("dark")
    app.window.menus.text_size_chosen.emit("large")
    settle()
    again = Settings(tmp_path / "config" / "window.json")
    assert (again.values.theme, again.values.text_size) == ("dark", "large")
    assert app.theme.colours.dark
    app.window.menus.set_choices(app.theme)
    app.theme.set_text_size("normal")


def test_help_has_every_metric_and_every_key(qtbot: Any, app: App) -> None:
    app.show_glossary()
    glossary = shown(app, Glossary, qtbot)
    rows = glossary.table.rowCount()
    glossary.search.setText("ppo kl")
    assert 0 < glossary.table.rowCount() < rows
    glossary.close()
    app.show_keys()
    shown(app, Keys, qtbot).close()
    app.show_about()
    shown(app, About, qtbot).close()


def test_damaged_settings_are_defaults_and_never_a_failed_start(tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "window.json"
    for text in ("{", "[]", '{"recent": 5, "theme": null, "panes": {"a": 1}}'):
        path.write_text(text)
        values = Settings(path).values
        assert (values.recent, values.theme, values.panes) == ([], "system", {})
    path.write_text('{"recent": ["/a"], "unknown": 1}')
    assert Settings(path).values.recent == ["/a"]


def test_settings_that_cannot_be_written_are_a_line_in_the_log(tmp_path: Path, caplog: Any) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    Settings(blocked / "window.json").save()
    assert "could not be saved" in caplog.text
    Settings(None).save()


def raised(line: str) -> BaseException:
    try:
        exec(line)
    except Exception as error:
        return error
    raise AssertionError


def test_an_uncaught_error_becomes_a_card_and_a_line_in_the_log(
    qtbot: Any, theme: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    cards: list[BaseException] = []
    monkeypatch.setattr(faults, "show_failure", cards.append)
    operations()
    uncaught = faults.Uncaught()
    first, second = raised("1 / 0"), raised("int('x')")
    uncaught.on_error(type(first), first, first.__traceback__)
    assert cards == [first]
    with caplog.at_level(logging.ERROR):
        uncaught.on_thread_error(threading.ExceptHookArgs((ValueError, second, None, threading.current_thread())))
        qtbot.waitUntil(lambda: cards == [first, second])
    assert "uncaught error in MainThread" in caplog.text


def test_a_fault_in_drawing_opens_one_card_and_not_one_with_every_frame(qtbot: Any, theme: Any, caplog: Any) -> None:
    class Broken(QWidget):
        def paintEvent(self, _event: object) -> None:
            try:
                1 // 0  # noqa: B018
            except ZeroDivisionError as error:  # as the hook gets it; a test may have no uncaught error
                uncaught.on_error(type(error), error, error.__traceback__)

    def cards() -> list[ErrorCard]:
        return [one for one in QApplication.topLevelWidgets() if isinstance(one, ErrorCard) and one.isVisible()]

    uncaught = faults.Uncaught()
    broken = Broken()
    qtbot.addWidget(broken)
    broken.show()
    qtbot.waitUntil(lambda: len(cards()) == 1)
    with caplog.at_level(logging.ERROR):
        broken.repaint()
        other = raised("int('x')")
        uncaught.on_error(type(other), other, other.__traceback__)
        assert len(cards()) == 1  # the other is in the log
        cards()[0].close()
        broken.repaint()
    assert cards() == []
    assert "invalid literal" in caplog.text


def test_the_log_is_set_aside_once_it_is_large(tmp_path: Path) -> None:
    log = tmp_path / "window.log"
    faults._rotate(log)
    log.write_bytes(b"x" * (faults.LOG_LIMIT_BYTES + 1))
    faults._rotate(log)
    assert not log.exists()
    assert (tmp_path / "window.old.log").exists()


def demonstrating(qtbot: Any, app: App, path: Path, settle: Settle) -> Any:
    """A project with one prompt, whose demonstration is being written while the disk is full."""
    opened(qtbot, app, path, settle)
    assert app.session is not None
    app.session.project.store.add_prompts([Prompt(new_id(), (Message("user", "Hello?"),), created_at=now())]).result(10)
    app.window.show_pane("demonstrate")
    pane: Any = app.window.pane("demonstrate")
    qtbot.waitUntil(lambda: pane.prompt is not None, timeout=20_000)
    settle()
    return pane


def cards() -> list[ErrorCard]:
    return [one for one in QApplication.topLevelWidgets() if isinstance(one, ErrorCard)]


def refuse(_given: Any) -> Future[Any]:
    refused: Future[Any] = Future()
    refused.set_exception(UserError("this was not saved", "the disk is full", "free some space"))
    return refused


def test_closing_asks_while_a_text_cannot_be_saved_and_goes_once_it_can(
    qtbot: Any, app: App, project_path: Path, settle: Settle, monkeypatch: pytest.MonkeyPatch
) -> None:
    pane = demonstrating(qtbot, app, project_path, settle)
    assert app.session is not None
    monkeypatch.setattr(app.session.project.store, "save_demonstration", refuse)
    pane.editor.edit.setPlainText("precious words")
    app.window.close()
    assert app.window.isVisible()
    dialog = shown(app, UnsavedWork, qtbot)
    assert any("1 demonstration" in one.text() for one in dialog.findChildren(Text))
    dialog.copy.click()
    assert QApplication.clipboard().text() == "precious words"
    monkeypatch.undo()
    dialog.try_again.click()
    assert not app.window.isVisible()
    with Project.open(project_path) as again:
        found = again.store.demonstrations(status="draft")
    assert [one.text for one in found] == ["precious words"]


def test_words_typed_a_moment_before_closing_need_no_question(
    qtbot: Any, app: App, project_path: Path, settle: Settle
) -> None:
    pane = demonstrating(qtbot, app, project_path, settle)
    pane.editor.edit.setPlainText("last words")
    app.window.close()
    assert not app.window.isVisible()
    with Project.open(project_path) as again:
        assert [one.text for one in again.store.demonstrations(status="draft")] == ["last words"]
    settle()
    assert not cards()


def test_another_project_waits_for_what_cannot_be_saved(
    qtbot: Any, app: App, project_path: Path, settle: Settle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "Other"
    Project.create(other).close()
    pane = demonstrating(qtbot, app, project_path, settle)
    assert app.session is not None
    session = app.session
    monkeypatch.setattr(session.project.store, "save_demonstration", refuse)
    pane.editor.edit.setPlainText("precious words")
    app.open(other)
    dialog = shown(app, UnsavedWork, qtbot)
    dialog.reject()
    settle()
    assert app.session is session
    app.close_project()
    assert app.session is session
    dialog = shown(app, UnsavedWork, qtbot)
    dialog.close_anyway.click()
    settle()
    assert app.session is None
    assert app.welcome.isVisible()
    assert not cards()


def test_making_a_project_says_so_at_once_and_a_failure_leads_back(
    qtbot: Any, app: App, tmp_path: Path, settle: Settle
) -> None:
    app.create(tmp_path / "Fresh", sample=True)
    assert not app.welcome.isVisible()
    assert not app.is_settled()
    assert app.window.rail.isVisible()
    qtbot.waitUntil(lambda: app.session is not None, timeout=30_000)
    settle()
    app.close_project()
    settle()
    (tmp_path / "file").write_text("in the way")
    app.create(tmp_path / "file" / "Fresh", sample=False)
    qtbot.waitUntil(lambda: bool(app.window.findChildren(ErrorCard)), timeout=20_000)
    assert app.welcome.isVisible()
    settle()
    assert app.is_settled()
