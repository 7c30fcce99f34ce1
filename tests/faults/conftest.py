import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest

from workbench import reaper, supervisor
from workbench.ids import new_id
from workbench.protocol import ModelRef, RunSpec
from workbench.recipes import SftRecipe
from workbench.records import Message
from workbench.rows import SftRow
from workbench.run_folder import RunFolder

FAKE = Path(__file__).with_name("fake_engine.py")


@pytest.fixture(autouse=True)
def runtime(monkeypatch):
    """A runtime folder of this test's own, short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="tm-"))
    monkeypatch.setenv("TASTEMAKER_RUNTIME", str(folder))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


class FakeRun:
    """A run of the fake engine."""

    def __init__(self, runs_dir, **plan):
        spec = RunSpec(
            run_id=new_id(),
            method="sft",
            name="fake",
            recipe=dataclasses.asdict(SftRecipe(device="cpu")),
            model=ModelRef(model_id="m", name="m", base="/no/such/model"),
        )
        row = SftRow("row", "group", (Message("user", "Hi"),), "Hello.")
        self.folder = RunFolder.create(runs_dir, spec, [row], [])
        self.path = self.folder.path
        self.plan = plan

    @property
    def argv(self):
        return [sys.executable, str(FAKE), str(self.path), json.dumps(self.plan)]

    def launch(self, **changes):
        self.plan |= changes
        supervisor.launch(self.path, argv=self.argv)
        return self

    def resume(self, **changes):
        self.plan |= changes
        supervisor.resume(self.path, argv=self.argv)
        return self

    def until(self, wanted, timeout=20.0):
        """Poll until ``wanted(status)`` or a state is reached."""
        deadline = time.monotonic() + timeout
        while True:
            status = self.folder.state()
            if status.state == wanted if isinstance(wanted, str) else wanted(status):
                return status
            assert time.monotonic() < deadline, f"{status}\n{self.folder.log_tail(2000)}"
            time.sleep(0.01)

    def losses(self):
        from workbench.run_folder import join_segments

        return {one.step: one.values["loss"] for one in join_segments(self.folder.events())}

    @property
    def engine_pid(self):
        return reaper.read_note(self.path / "lock").pid

    def reaper_pid(self):
        """The parent of the engine."""
        return int(Path(f"/proc/{self.engine_pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture
def fake_run(tmp_path):
    """Make runs of the fake engine; what is still alive at the end is killed."""
    made = []

    def make(**plan):
        made.append(FakeRun(tmp_path / "runs", **plan))
        return made[-1]

    (tmp_path / "runs").mkdir()
    yield make
    for one in made:
        supervisor.kill(one.path, grace_s=0.2)


@pytest.fixture
def wait_for():
    """Poll a condition with a deadline."""

    def wait(condition, timeout=15.0):
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "the condition never came true"
            time.sleep(0.01)

    return wait


def process_alive(pid):
    """Whether a process exists and is no zombie (for tests that killed it themselves)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def is_process():
    assert os.getpid()
    return process_alive
