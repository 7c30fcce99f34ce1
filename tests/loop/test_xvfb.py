"""The program as a person starts it: a real X server, a window manager, real keys, and a look at every pane.

``TASTEMAKER_SCREENSHOTS`` names a folder for the pictures of the whole screen; without it they go with the test.
"""

from __future__ import annotations

import hashlib
import importlib.util
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

from workbench.project import Project
from workbench.records import Rater

TOOLS = ("Xvfb", "xdotool", "openbox", "import")
MISSING = [name for name in TOOLS if shutil.which(name) is None]
pytestmark = [
    pytest.mark.xvfb,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed"),
]
ROOT = Path(__file__).resolve().parents[2]
PANES = ("home", "demonstrate", "rank", "train", "runs", "compare", "models")
LIMIT_S = 60.0
REST_S = 0.6
TEXT = "Give it light, little water, and pinch the tips."


def wait_for(look: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """Look until something is there; returns it."""
    until = time.monotonic() + limit_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < until, f"not seen within {limit_s:.0f} s: {what}"
        time.sleep(0.03)


class Screen:
    """An X server with a window manager, and hands to press keys on it."""

    def __init__(self, environment: dict[str, str]) -> None:
        read, write = os.pipe()
        self._server = subprocess.Popen(
            ["Xvfb", "-displayfd", str(write), "-screen", "0", "1320x860x24", "-nolisten", "tcp"],
            pass_fds=(write,),
            stderr=subprocess.DEVNULL,
        )
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            number = pipe.readline().strip().decode()  # Xvfb writes it once it can be connected to
        assert number, "Xvfb did not start"
        self.environment = environment | {"DISPLAY": f":{number}", "QT_QPA_PLATFORM": "xcb"}
        self.do("mousemove", 0, 0)  # nothing is under the pointer
        self._manager = subprocess.Popen(["openbox"], env=self.environment, stderr=subprocess.DEVNULL)
        self._seen = ""

    def do(self, *arguments: str | int) -> str:
        """Run xdotool; returns what it says, "" when it finds nothing."""
        words = ["xdotool", *map(str, arguments)]
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout.strip()

    def key(self, *keys: str) -> None:
        self.do("key", "--delay", 30, *keys)

    def type(self, text: str) -> None:
        self.do("type", "--delay", 15, text)

    def picture(self) -> bytes:
        command = ["import", "-silent", "-window", "root", "ppm:-"]
        return subprocess.run(command, env=self.environment, capture_output=True, timeout=60, check=True).stdout

    def rest(self, what: str, *, changed: bool = True, for_s: float = REST_S) -> bytes:
        """Wait until the screen shows something else than the last time, and has not changed for a while."""
        before, since = "", 0.0

        def still() -> bytes:
            nonlocal before, since
            seen = self.picture()
            now = hashlib.sha256(seen).hexdigest()
            if now != before:
                before, since = now, time.monotonic()
            rested = time.monotonic() - since >= for_s
            return seen if rested and (now != self._seen or not changed) else b""

        seen: bytes = wait_for(still, f"{what} at rest on the screen")
        self._seen = before
        return seen

    def save(self, path: Path, picture: bytes) -> None:
        from PySide6.QtGui import QImage

        assert QImage.fromData(picture, "PPM").save(str(path))

    def close(self) -> None:
        for process in (self._manager, self._server):
            process.terminate()
            process.wait(20)


class Program:
    """``python -m workbench open PROJECT`` on a screen."""

    def __init__(self, screen: Screen, project: Path) -> None:
        self.screen = screen
        command = [sys.executable, "-P", "-m", "workbench", "open", str(project)]
        self.process = subprocess.Popen(command, cwd=ROOT, env=screen.environment)
        title = f"{project.name} – Tastemaker"
        self.window = wait_for(lambda: self._found(title), "the window").splitlines()[-1]
        wait_for(self._in_front, "the window in front")

    def _found(self, title: str) -> str:
        assert self.process.poll() is None, "the program ended"
        return self.screen.do("search", "--onlyvisible", "--name", title)

    def _in_front(self) -> bool:
        self.screen.do("windowactivate", self.window)
        return self.screen.do("getactivewindow") == self.window

    def click(self, right: float, down: float) -> None:
        """Click at a place of the window, in shares of its width and height."""
        lines = self.screen.do("getwindowgeometry", "--shell", self.window).splitlines()
        size = dict(line.split("=") for line in lines if "=" in line)
        x, y = int(float(size["WIDTH"]) * right), int(float(size["HEIGHT"]) * down)
        self.screen.do("mousemove", "--window", self.window, x, y, "click", 1)

    def quit(self) -> None:
        self.screen.key("ctrl+q")
        assert self.process.wait(60) == 0

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(20)


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Screen]:
    own = {f"TASTEMAKER_{name}": str(tmp_path / f"own-{name.lower()}") for name in ("CACHE", "RUNTIME", "CONFIG")}
    for folder in own.values():
        Path(folder).mkdir(mode=0o700)
    dropped = ("WAYLAND_DISPLAY", "QT_SCALE_FACTOR", "DISPLAY")
    made = Screen({name: value for name, value in os.environ.items() if name not in dropped} | own)
    yield made
    made.close()


@pytest.fixture
def start(screen: Screen) -> Iterator[Callable[[Path], Program]]:
    made: list[Program] = []

    def start_(project: Path) -> Program:
        made.append(Program(screen, project))
        return made[-1]

    yield start_
    for one in made:
        one.end()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The sample project with models and ended runs, as the pictures of the window's tests have it."""
    spec = importlib.util.spec_from_file_location("screenshots", ROOT / "tests" / "ui" / "screenshots.py")
    assert spec is not None
    assert spec.loader is not None
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    pictures.make_project(tmp_path / "My taste")
    return tmp_path / "My taste"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("TASTEMAKER_SCREENSHOTS") or tmp_path / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def read(path: Path, what: Callable[[Project], Any]) -> Any:
    """Look into the project while the window has it."""
    with Project.open(path, read_only=True) as project:
        return what(project)


def look_at_panes(screen: Screen, pictures: Path, mode: str) -> None:
    for number, name in enumerate(PANES, 1):
        screen.key(f"ctrl+{number}")
        for_s = 3 * REST_S if name == "runs" else REST_S  # plots are drawn once their library has been loaded
        screen.save(pictures / f"{name}-{mode}.png", screen.rest(name, changed=number > 1, for_s=for_s))


def set_theme(screen: Screen, mode: str) -> None:
    kept = Path(screen.environment["TASTEMAKER_CONFIG"]) / "window.json"
    values = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    kept.write_text(json.dumps(values | {"theme": mode, "rater_name": "Ada"}), encoding="utf-8")


def test_real_keys_write_a_demonstration_and_rank_and_every_pane_is_drawn(
    screen: Screen, start: Callable[[Path], Program], project: Path, pictures: Path
) -> None:
    set_theme(screen, "light")
    program = start(project)
    screen.rest("the first pane")
    look_at_panes(screen, pictures, "light")

    screen.key("ctrl+2")
    screen.rest("Demonstrate")
    program.click(0.7, 0.6)
    screen.key("ctrl+a")
    screen.type(TEXT)

    def written(status: str) -> Callable[[Project], list[Any]]:
        return lambda one: [found for found in one.store.demonstrations(status=status) if found.text == TEXT]

    wait_for(lambda: read(project, written("draft")), "the draft in the database")
    screen.key("ctrl+Return")
    wait_for(lambda: read(project, written("final")), "the final demonstration in the database")

    rater: Rater = read(project, lambda one: next(rater for rater in one.store.raters() if rater.name == "Ada"))

    def rankings(one: Project) -> list[Any]:
        return list(one.store.rankings(rater_id=rater.id))

    def count_of_the_first(one: Project) -> int:
        return len(one.store.responses(one.store.next_to_rank(rater_id=rater.id)[0]))

    count = read(project, count_of_the_first)
    screen.key("ctrl+3")
    screen.rest("Rank")
    screen.key(*map(str, range(count, 0, -1)))
    screen.save(pictures / "rank-placed-light.png", screen.rest("the placed card"))
    screen.key("Return")
    wait_for(lambda: len(read(project, rankings)) == 1, "the ranking in the database")
    screen.rest("the next card")
    program.quit()
    with Project.open(project) as closed:
        assert closed.check() == []
        assert len(written("final")(closed)) == 1
        (ranking,) = rankings(closed)
    assert tuple(one for tier in ranking.tiers for one in tier) == ranking.shown_order[::-1]
    assert (len(ranking.shown_order), ranking.blind, ranking.outcome) == (count, True, "ranked")

    set_theme(screen, "dark")
    program = start(project)
    screen.rest("the first pane, dark")
    look_at_panes(screen, pictures, "dark")
    program.quit()
    log = Path(screen.environment["TASTEMAKER_CACHE"]) / "window.log"
    assert (log.read_text(encoding="utf-8") if log.exists() else "") == ""
