from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QLineEdit, QVBoxLayout, QWidget

from ui.operations import bind_future
from ui.pane_fault import PaneFault
from ui.panes import KEYS, PANES, import_pane, pane_info
from ui.status_line import StatusLine
from ui.theme import Theme
from ui.unsaved import Unsaved
from ui.welcome import Welcome
from ui.window import MainWindow
from workbench.errors import UserError
from workbench.records import RunRecord

Settle = Callable[[], None]


class FakePane(QWidget):
    done = Signal()

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key
        self.activated = 0
        self.shown: list[dict[str, str]] = []
        box = QVBoxLayout(self)
        self.field = QLineEdit()
        box.addWidget(self.field)

    def activate(self) -> None:
        self.activated += 1

    def show_item(self, **what: str) -> None:
        self.shown.append(what)


@pytest.fixture
def made() -> list[str]:
    return []


@pytest.fixture
def window(qtbot: Any, theme: Theme, made: list[str]) -> MainWindow:
    def make(key: str) -> QWidget:
        made.append(key)
        if key == "train":
            raise ImportError("No module named 'train'")
        return FakePane(key)

    window = MainWindow(theme, Welcome())
    qtbot.addWidget(window)
    with qtbot.waitActive(window):
        window.show()
    window.set_project("My taste", "/home/me", make)
    window.show_pane("home")
    return window


def test_only_the_first_pane_is_made_at_the_start(window: MainWindow, made: list[str]) -> None:
    assert made == ["home"]
    assert window.current == "home"
    assert window.windowTitle() == "My taste – Tastemaker"
    assert window.rail.buttons["home"].isChecked()


@pytest.mark.parametrize(("number", "key"), list(enumerate(KEYS, 1)))
def test_a_digit_with_control_goes_to_each_pane(
    qtbot: Any, window: MainWindow, made: list[str], number: int, key: str
) -> None:
    qtbot.keyClick(window, Qt.Key(Qt.Key.Key_0 + number), Qt.KeyboardModifier.ControlModifier)
    assert window.current == key
    assert window.rail.buttons[key].isChecked()
    assert made == list(dict.fromkeys(["home", key]))


def test_a_pane_is_made_once_and_told_each_time_it_is_shown(window: MainWindow, made: list[str]) -> None:
    window.show_pane("rank")
    window.show_pane("home")
    window.show_pane("rank", prompt_id="p1")
    pane = window.pane("rank")
    assert isinstance(pane, FakePane)
    assert made == ["home", "rank"]
    assert pane.activated == 2
    assert pane.shown == [{"prompt_id": "p1"}]


def test_a_pane_that_cannot_be_made_is_a_card_in_its_place_and_the_rest_works(
    qtbot: Any, window: MainWindow, made: list[str], caplog: Any
) -> None:
    window.show_pane("train")
    fault = window.pane("train")
    assert isinstance(fault, PaneFault)
    assert "Train could not be opened" in fault.accessibleName()
    assert "could not be made" in caplog.text
    fault.retry_asked.emit()
    assert made.count("train") == 2
    window.show_pane("models")
    assert isinstance(window.pane("models"), FakePane)
    qtbot.waitUntil(lambda: window.current == "models")


def test_an_unknown_pane_is_a_mistake_of_ours(window: MainWindow) -> None:
    with pytest.raises(KeyError, match="there are home"):
        window.show_pane("nowhere")
    with pytest.raises(KeyError):
        pane_info("nowhere")


def test_every_entry_of_the_rail_names_a_pane_that_exists(qapp: Any) -> None:
    for info in PANES:
        assert callable(import_pane(info)), info.key
        assert (info.title, info.tip) != ("", "")


def test_the_rail_is_icons_alone_on_a_narrow_window(window: MainWindow) -> None:
    window.resize(820, 600)
    assert window.rail.width() < 80
    assert window.rail.buttons["rank"].toolTip()
    window.resize(1300, 800)
    assert window.rail.width() > 150


def test_what_waits_is_told_to_everybody(window: MainWindow) -> None:
    button = window.rail.buttons["rank"]
    button.set_badge(12)
    assert button.accessibleName() == "Rank, 12 waiting"
    button.set_badge(0)
    assert button.accessibleName() == "Rank"
    window.rail.buttons["runs"].set_badge(1, live=True)
    assert window.rail.buttons["runs"].accessibleName() == "Runs, 1 running"
    window.rail.grab()
    window.rail.set_wide(False)
    window.rail.grab()


def test_f1_explains_the_page_and_closes_again(qtbot: Any, window: MainWindow) -> None:
    window.show_pane("rank")
    qtbot.keyClick(window, Qt.Key.Key_F1)
    assert window.drawer.isVisible()
    assert window.drawer.stage == "ranking"
    window.show_pane("compare")
    assert window.drawer.stage == "compare"  # it follows the page while it is open
    qtbot.keyClick(window, Qt.Key.Key_F1)
    assert not window.drawer.isVisible()
    window.explain("ppo", {"objective/kl": 1.0})
    window.explain("ppo", {"objective/kl": 2.0})
    assert window.drawer.isVisible()


def test_a_pane_may_say_what_is_to_be_explained(window: MainWindow) -> None:
    window.pane("runs").explain_stage = lambda: "ppo"  # type: ignore[attr-defined]
    window.show_pane("runs")
    assert window.stage() == "ppo"


def test_deeds_that_need_a_project_are_off_without_one(window: MainWindow) -> None:
    actions = {one.text().replace("&", ""): one for one in window.menus.actions()}
    assert actions["Import labels…"].isEnabled()
    window.clear_project()
    assert not actions["Import labels…"].isEnabled()
    assert not actions["Home"].isEnabled()
    assert actions["New project…"].isEnabled()
    assert window.welcome.isVisible()
    window.show_pane("home")
    assert window.current == ""


def test_menus_say_what_undo_would_do(qtbot: Any, window: MainWindow) -> None:
    window.menus.set_undo("Rank “a & b”", "")
    assert window.menus.undo.text() == "&Undo Rank “a && b”"
    assert not window.menus.redo.isEnabled()
    with qtbot.waitSignal(window.menus.undo_asked):
        qtbot.keyClick(window, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)


def test_no_two_menu_keys_are_the_same(window: MainWindow) -> None:
    keys = [one.shortcut().toString() for one in window.menus.actions()]
    assert len(keys) == len(set(keys))


def test_undo_in_a_text_field_belongs_to_the_field(qtbot: Any, window: MainWindow) -> None:
    window.menus.set_undo("Rank", "")
    asked: list[int] = []
    window.menus.undo_asked.connect(lambda: asked.append(1))
    pane = window.pane("home")
    assert isinstance(pane, FakePane)
    pane.field.setFocus()
    qtbot.keyClicks(pane.field, "abc")
    qtbot.keyClick(pane.field, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    assert pane.field.text() == ""
    assert asked == []


def test_saved_is_said_only_after_the_write(qtbot: Any, theme: Theme, settle: Settle) -> None:
    line = StatusLine()
    qtbot.addWidget(line)
    line.set_rater("me", read_only=False)
    write: Future[None] = Future()
    bind_future(write, lambda _: None)
    qtbot.waitUntil(lambda: line.saved.text() == "Saving…")
    write.set_result(None)
    qtbot.waitUntil(lambda: line.saved.text() == "All saved")


def test_a_write_that_failed_is_said_until_one_succeeds(qtbot: Any, theme: Theme, settle: Settle) -> None:
    line = StatusLine()
    qtbot.addWidget(line)
    line.set_rater("me", read_only=False)
    bad: Future[None] = Future()
    bind_future(bad, None, lambda _: None)
    bad.set_exception(UserError("this was not saved", "the disk is full"))
    qtbot.waitUntil(lambda: line.saved.text() == "Not saved")
    settle()
    assert line.saved.text() == "Not saved"
    assert "disk is full" in line.notice.text()
    good: Future[None] = Future()
    bind_future(good, lambda _: None)
    good.set_result(None)
    qtbot.waitUntil(lambda: line.saved.text() == "All saved")


def test_the_status_line_names_engine_runs_and_reading_only(qtbot: Any, theme: Theme) -> None:
    line = StatusLine()
    qtbot.addWidget(line)
    line.show()
    line.set_engine("busy")
    assert line.engine.text() == "Engine working…"
    line.set_rater("me", read_only=True)
    assert (line.rater.text(), line.saved.text()) == ("Read-only", "")
    line.set_runs([RunRecord("r", "ppo", "ppo 1", "running", "m"), RunRecord("s", "sft", "sft 1", "queued", "m")])
    assert line.runs.text() == "ppo 1 running, 1 queued"
    with qtbot.waitSignal(line.runs_clicked):
        line.runs.click()
    line.set_runs([RunRecord("r", "ppo", "ppo 1", "done", "m")])
    assert not line.runs.isVisible()
    line.notify("A warning", "warn")
    assert not line._timer.isActive()
    line.notify("A notice")
    assert line._timer.isActive()
    line._timer.timeout.emit()
    assert line.notice.text() == ""


def test_the_geometry_survives_as_text_and_nonsense_is_ignored(window: MainWindow) -> None:
    window.resize(800, 700)  # the screen of the tests is 800 wide
    kept = window.geometry_text()
    window.resize(1200, 720)
    window.restore_geometry_text(kept)
    assert (window.width(), window.height()) == (800, 700)
    window.restore_geometry_text("no geometry é")
    window.restore_geometry_text("")


def test_the_window_stays_while_a_pane_holds_what_it_could_not_save(qtbot: Any, window: MainWindow) -> None:
    window.show_pane("rank")
    rank: Any = window.pane("rank")
    told: list[Any] = []
    window.kept_open.connect(told.append)
    rank.unsaved = lambda: Unsaved("A ranking")
    window.close()
    assert window.isVisible()
    assert told == [[Unsaved("A ranking")]]
    with qtbot.waitSignal(window.closing, timeout=1000):
        window.close_anyway()
    assert not window.isVisible()


def test_a_pane_that_fails_when_asked_what_it_holds_is_named(window: MainWindow, caplog: Any) -> None:
    window.show_pane("rank")
    rank: Any = window.pane("rank")

    def broken() -> None:
        raise ValueError("a bug")

    rank.unsaved = broken
    assert [one.what for one in window.unsaved()] == ["What Rank holds could not be asked"]
    assert "a bug" in caplog.text
    rank.unsaved = lambda: None
