"""The window's thread never works long in one go; pictures are sharp on a dense screen; a real X server likes us."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import QObject, QTimer

from ui.context import Context
from ui.home_pane import HomePane
from ui.import_dialog import ImportDialog
from ui.models_pane import ModelsPane
from workbench.ids import new_id, now
from workbench.project import Project
from workbench.records import Message, Prompt, RunRecord

ROOT = Path(__file__).resolve().parents[2]
Settle = Callable[[], None]


class Pulse(QObject):
    """Measures how much the window's thread computes between two turns of the event loop."""

    def __init__(self) -> None:
        super().__init__()
        self.longest = 0.0
        self._last = time.thread_time()
        self._timer = QTimer(self)
        self._timer.setInterval(0)
        self._timer.timeout.connect(self._beat)
        self._timer.start()

    def _beat(self) -> None:
        now_ = time.thread_time()
        self.longest = max(self.longest, now_ - self._last)
        self._last = time.thread_time()

    def reset(self) -> None:
        self.longest, self._last = 0.0, time.thread_time()


@pytest.fixture
def pulse(qapp: Any) -> Iterator[Pulse]:
    made = Pulse()
    yield made
    made._timer.stop()


def test_home_and_models_follow_a_busy_project_without_holding_up_a_frame(
    qtbot: Any, context: Context, filled: Any, settle: Settle, pulse: Pulse
) -> None:
    home, models = HomePane(context), ModelsPane(context)
    for pane in (home, models):
        qtbot.addWidget(pane)
        pane.resize(1200, 800)
        pane.show()
    settle()
    store = filled.project.store
    pulse.reset()
    for number in range(40):
        store.save_run(RunRecord(new_id(), "sft", f"sft {number}", "running", filled.base.id, created_at=now()))
    store.wait()
    qtbot.wait(300)
    settle()
    # 16 ms is the goal on a quiet machine; the clock of a shared one counts about double.
    assert pulse.longest < 0.05


def test_a_large_file_is_read_and_stored_without_holding_up_a_frame(
    qtbot: Any, context: Context, said: Any, settle: Settle, pulse: Pulse, tmp_path: Path
) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"{n}?", "chosen": f"{n}.", "rejected": "No."}) + "\n" for n in range(4000))
        + "broken\n" * 4000
    )
    dialog = ImportDialog(context)  # deletes itself when it is done
    dialog.show()
    settle()
    pulse.reset()
    dialog.read(path)
    qtbot.waitUntil(lambda: dialog.start.isEnabled(), timeout=60_000)
    settle()
    dialog.start.click()
    qtbot.waitUntil(lambda: bool(said.notices), timeout=120_000)
    settle()
    assert said.notices[0][0].startswith("4,000 preferences imported")
    assert pulse.longest < 0.08


def test_pictures_are_sharp_on_a_screen_of_twice_the_density(tmp_path: Path) -> None:
    code = """
import json
from PySide6.QtWidgets import QApplication
from ui.icons import icon, pixmap
from ui.theme import Theme
from ui.welcome import Welcome
app = QApplication([])
theme = Theme(app, "dark")
page = Welcome()
page.resize(800, 600)
page.show()
picture = page.grab()
drawn = icon("home").pixmap(20, 20)
print(json.dumps([picture.devicePixelRatio(), picture.width(), drawn.width(), drawn.devicePixelRatio()]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"QT_QPA_PLATFORM": "offscreen", "QT_SCALE_FACTOR": "2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert json.loads(done.stdout) == [2.0, 1600, 40, 2.0]


@pytest.fixture
def display(tmp_path: Path) -> Iterator[str]:
    """A screen of its own with a window manager."""
    tools = ("Xvfb", "openbox", "xdotool")
    if not all(shutil.which(one) for one in tools):
        pytest.skip(f"needs {', '.join(tools)}")
    read, write = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", "1400x900x24"], pass_fds=[write], stderr=subprocess.DEVNULL
    )
    os.close(write)
    with os.fdopen(read) as told:
        name = f":{told.readline().strip()}"
    manager = subprocess.Popen(["openbox"], env=os.environ | {"DISPLAY": name}, stderr=subprocess.DEVNULL)
    yield name
    for one in (manager, server):
        one.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            one.wait(10)


@pytest.mark.xvfb
def test_on_a_real_x_server_the_window_opens_takes_keys_is_raised_by_a_second_start_and_quits(
    display: str, tmp_path: Path
) -> None:
    path = tmp_path / "My taste"
    with Project.create(path) as project:
        project.store.add_prompts([Prompt(new_id(), (Message("user", "Hello?"),), created_at=now())]).result(10)
    own = {key: value for key, value in os.environ.items() if key != "QT_QPA_PLATFORM"} | {"DISPLAY": display}
    command = [sys.executable, "-m", "workbench", "open", str(path)]
    window = subprocess.Popen(command, cwd=ROOT, env=own, stderr=subprocess.PIPE, text=True)
    try:

        def xdotool(*words: str) -> str:
            done = subprocess.run(["xdotool", *words], env=own, capture_output=True, text=True, timeout=60, check=False)
            return done.stdout.strip()

        until = time.monotonic() + 60
        while not (found := xdotool("search", "--onlyvisible", "--name", "My taste – Tastemaker")):
            assert window.poll() is None, window.stderr.read() if window.stderr else ""
            assert time.monotonic() < until, "the window did not open"
        second = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 0, second.stderr
        xdotool("windowactivate", "--sync", found.splitlines()[0])
        xdotool("key", "ctrl+7")
        xdotool("key", "ctrl+q")
        assert window.wait(60) == 0
    finally:
        window.kill()
        window.wait()
        if window.stderr:
            window.stderr.close()
