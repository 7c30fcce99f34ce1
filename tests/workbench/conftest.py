"""Projects and records for the tests of the workbench."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from workbench import estimate, memory_plan
from workbench.ids import new_id
from workbench.project import Project
from workbench.records import Demonstration, Message, Prompt, Ranking, Rater, Response, Split
from workbench.store import Store


@pytest.fixture(autouse=True)
def plain_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan for a CPU without bf16, whatever this one has."""
    for module in (memory_plan, estimate):
        monkeypatch.setattr(module, "cpu_has_bf16", lambda: False)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with Project.create(tmp_path / "project") as opened:
        yield opened


@pytest.fixture
def store(project: Project) -> Store:
    return project.store


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 3 MB; skips where it cannot be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@dataclass(frozen=True)
class Maker:
    """Makes records, and saves a small project's worth of them."""

    store: Store | None = None

    @staticmethod
    def prompt(text: str = "What is rain?", *, split: Split = "train", tags: tuple[str, ...] = ()) -> Prompt:
        return Prompt(new_id(), (Message("user", text),), tags, split=split)

    @staticmethod
    def responses(prompt: Prompt, *texts: str) -> list[Response]:
        return [Response(new_id(), prompt.id, text) for text in texts]

    @staticmethod
    def demonstration(prompt: Prompt, text: str = "Water.", *, final: bool = True) -> Demonstration:
        return Demonstration(new_id(), prompt.id, text, "Ann", "final" if final else "draft")

    @staticmethod
    def ranking(prompt: Prompt, *tiers: list[Response], rater: str = "ann") -> Ranking:
        return Ranking(new_id(), prompt.id, rater, tuple(tuple(r.id for r in tier) for tier in tiers))

    def rankable(
        self, *texts: str, prompt: str = "What is rain?", split: Split = "train"
    ) -> tuple[Prompt, list[Response]]:
        """Save a prompt with responses, and the rater Ann."""
        assert self.store
        made = self.prompt(prompt, split=split)
        responses = self.responses(made, *(texts or ("good", "middling", "bad")))
        self.store.save_rater(Rater("ann", "Ann")).result()
        self.store.add_prompts([made]).result()
        self.store.add_responses(responses).result()
        return made, responses


@pytest.fixture
def make(store: Store) -> Maker:
    return Maker(store)


@pytest.fixture
def records() -> Callable[[Store], Maker]:
    """A maker for another store than the fixture's."""
    return Maker
