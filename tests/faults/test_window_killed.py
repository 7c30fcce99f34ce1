"""kill -9 of the window while labels are made: whatever the window had shown as saved is in the database."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from workbench.ids import new_id, now
from workbench.project import Project
from workbench.records import Message, Prompt, Response

pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).resolve().parents[2]
PROMPTS = 400
LIMIT_S = 60.0
SEEDS = (1, 2, 3)

# A person in the window's own process: types, ranks, and says what the window shows as saved the moment it does.
PERSON = """
import json, sys
from pathlib import Path
from PySide6.QtCore import Qt, QTimer
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication
from ui.app import App, make_qapp
from ui.operations import operations
from ui.settings import Settings

def until(condition):
    while not condition():
        QTest.qWait(1)

def say(**what):
    print(json.dumps(what), flush=True)

K, CTRL = Qt.Key, Qt.KeyboardModifier.ControlModifier
app = App(make_qapp(), Settings(None))
window = app.window
window.show()
window.activateWindow()
app.open(Path(sys.argv[1]))
until(lambda: app.session is not None and operations().pending == 0)
for turn in range(1000):
    window.show_pane("demonstrate")
    pane = window.pane("demonstrate")
    until(lambda: pane.prompt is not None and operations().pending == 0)
    for number in range(3):
        prompt, text = pane.prompt, f"answer {turn}.{number} in a few words"
        pane.editor.edit.setFocus()
        pane.editor.edit.selectAll()
        QTest.keyClicks(pane.editor.edit, text)
        if number == 0:
            until(lambda: pane.saved.text().startswith("Saved"))
            say(kind="draft", prompt=prompt.id, text=text)
        QTest.keyClick(pane.editor.edit, K.Key_Return, CTRL)
        until(lambda: pane.prompt.id != prompt.id)
        say(kind="final", prompt=prompt.id, text=text)
    window.show_pane("rank")
    rank = window.pane("rank")
    until(lambda: rank.item is not None)
    for number in range(4):
        until(lambda: rank.item is not None)
        item = rank.item
        window.activateWindow()
        until(lambda: rank.view.board.cards[0].hasFocus())
        QTest.keyClicks(rank.view.board.cards[0], "231")
        tiers = rank.sheet.state.tiers()
        QTest.keyClick(rank.view.board.cards[2], K.Key_Return)
        until(lambda: rank.item is not item)
        say(kind="ranking", id=item.ranking_id, tiers=tiers)
"""


@pytest.fixture
def project_path(tmp_path: Path) -> Path:
    path = tmp_path / "labelling"
    with Project.create(path) as project:
        prompts = [
            Prompt(new_id(), (Message("user", f"Question {number}?"),), created_at=now()) for number in range(PROMPTS)
        ]
        responses = [
            Response(new_id(), one.id, f"{word} of {one.title}", finish_reason="stop", created_at=now())
            for one in prompts
            for word in ("The beginning", "The middle", "The end")
        ]
        project.store.add_prompts(prompts).result()
        project.store.add_responses(responses).result()
    return path


class Person:
    """The window's process with its person, and what it has said so far."""

    def __init__(self, path: Path) -> None:
        environment = os.environ | {"QT_QPA_PLATFORM": "offscreen"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PERSON, str(path)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        self.said: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):
                self.said.append(json.loads(line))

    def wait_for(self, count: int) -> None:
        until = time.monotonic() + LIMIT_S
        while len(self.said) < count:
            assert self.process.poll() is None, "the window ended by itself"
            assert time.monotonic() < until, f"only {self.said}"
            time.sleep(0.002)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)
        self._reader.join(20)
        assert self.process.stdout is not None
        self.process.stdout.close()


def check(project: Project, said: list[dict[str, Any]]) -> None:
    """Everything that was shown as saved is in the project."""
    store = project.store
    rankings = {one.id: one for one in store.rankings(include_superseded=True)}
    for one in said:
        if one["kind"] == "ranking":
            assert [list(tier) for tier in rankings[one["id"]].tiers] == one["tiers"]
        else:
            kept = [(found.text, found.status) for found in store.demonstration_history(one["prompt"])]
            assert (one["text"], one["kind"]) in kept, f"{one} is not among {kept}"


@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_shown_as_saved_survives_kill_9_of_the_window(
    project_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    for name in ("CACHE", "CONFIG"):
        monkeypatch.setenv(f"TASTEMAKER_{name}", str(tmp_path / name.lower()))
    chance = random.Random(seed)
    said: list[dict[str, Any]] = []
    for _ in range(2):  # the second window opens what the first one left
        person = Person(project_path)
        try:
            person.wait_for(chance.randrange(8, 20))
            time.sleep(chance.random() * 0.2)  # somewhere in the middle of typing, saving or drawing
        finally:
            person.kill()
        said += person.said
        with Project.open(project_path) as project:
            assert project.check() == []
            check(project, said)
    assert {one["kind"] for one in said} == {"draft", "final", "ranking"}
