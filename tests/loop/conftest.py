"""A project with the demo model, and runs followed to their end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workbench.ids import new_id, now
from workbench.project import Project
from workbench.recipes import Recipe
from workbench.records import Method, ModelRecord, RunRecord
from workbench.run_folder import RunFolder, join_segments
from workbench.sample_project import fill_with_sample
from workbench.training import plan_run, start_run

LIVE = ("queued", "running", "paused", "stopping")
History = dict[str, list[float]]
Train = Callable[..., tuple[RunRecord, History]]


@pytest.fixture(autouse=True)
def private_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runtime and configuration folders of this test alone, so that runs of two tests never queue behind each other."""
    for name in ("RUNTIME", "CONFIG"):
        folder = tmp_path / name.lower()
        folder.mkdir(mode=0o700)
        monkeypatch.setenv(f"TASTEMAKER_{name}", str(folder))


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """The sample project."""
    opened = Project.create(tmp_path / "project")
    fill_with_sample(opened)
    yield opened
    opened.close()


@pytest.fixture
def base(project: Project, demo_model_dir: Path) -> ModelRecord:
    """The demo model, known to the project."""
    record = ModelRecord(
        id=new_id(), name="SmolLM2-135M-Instruct", role="base", path=str(demo_model_dir), created_at=now()
    )
    project.store.save_model(record).result()
    return record


@pytest.fixture
def train(project: Project) -> Train:
    """Plan, start and follow a run to its end; returns its record and its metrics as lists by name."""

    def run(method: Method, start: ModelRecord, recipe: Recipe, reward: str = "") -> tuple[RunRecord, History]:
        plan = plan_run(project, method, start_model_id=start.id, reward_model_id=reward, recipe=recipe)
        assert [one for one in plan.problems if one.severity == "error"] == []
        record = start_run(project, plan)
        return record, follow(RunFolder(project.run_dir(record.id)))

    return run


def follow(folder: RunFolder, limit_s: float = 1500) -> History:
    """Wait for a run to end well; return its metrics by name."""
    until = time.monotonic() + limit_s
    while folder.state().state in LIVE:
        assert time.monotonic() < until, folder.log_tail()
        time.sleep(0.1)
    status = folder.state()
    assert status.state == "done", f"{status}\n{folder.log_tail()}"
    history: History = {}
    for one in join_segments(folder.events()):
        for key, value in one.values.items():
            history.setdefault(key, []).append(value)
    return history


@pytest.fixture(name="follow")
def follow_fixture() -> Callable[[RunFolder], History]:
    """Wait for a run to end well; returns its metrics by name."""
    return follow


@pytest.fixture
def shared_file() -> Callable[[str], Path]:
    """Find a real data file by name."""
    return _shared_file


def _shared_file(name: str) -> Path:
    """A real data file that lies beside the project; the test skips where it is absent."""
    folders = [Path(os.environ.get("TASTEMAKER_SHARED", "")), *(up / "shared" for up in Path(__file__).parents)]
    for folder in folders:
        if (folder / "data" / name).is_file():
            return folder / "data" / name
    pytest.skip(f"{name} is not here")
