"""The sample project and the demo: what is missing of them is added, and what is there is never done again."""

import argparse
import io
from pathlib import Path

import pytest

from workbench import cli, demo
from workbench.errors import UserError
from workbench.ids import new_id
from workbench.project import Project
from workbench.records import ModelRecord
from workbench.sample_project import fill_with_sample
from workbench.terminal import Terminal


@pytest.fixture
def terminal() -> Terminal:
    return Terminal(stream=io.StringIO())


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(demo, "user_data_path", lambda _: tmp_path / "data")
    return tmp_path / "data"


def add_nothing_real(project: Project, _terminal: Terminal) -> ModelRecord:
    made = ModelRecord(id=new_id(), name="smollm2", role="base", path="/nowhere")
    project.store.save_model(made).result()
    return made


def refuse(_project: Project, _terminal: Terminal) -> ModelRecord:
    raise UserError("The demo model is not installed")


def test_what_an_interrupted_start_left_of_the_sample_project_is_completed(
    data_folder: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> ModelRecord:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "add_demo_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.ensure_sample_project(terminal)
    monkeypatch.setattr(demo, "add_demo_model", add_nothing_real)
    for _ in range(2):
        path = demo.ensure_sample_project(terminal)
        with Project.open(path) as project:
            assert project.store.counts().prompts >= 80
            assert len(project.store.models()) == 1


def test_a_project_that_was_made_and_not_filled_is_filled(
    data_folder: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "add_demo_model", add_nothing_real)
    Project.create(data_folder / "Sample project").close()
    with Project.open(demo.ensure_sample_project(terminal)) as project:
        assert project.store.counts().prompts >= 80


def test_without_the_demo_model_the_sample_project_opens_all_the_same(
    data_folder: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "add_demo_model", refuse)
    with Project.open(demo.ensure_sample_project(terminal)) as project:
        assert project.store.counts().prompts >= 80
        assert demo.ensure_sample_project(terminal) == project.path  # in use: the window says so


def options(path: Path) -> argparse.Namespace:
    return argparse.Namespace(dir=path, quick=True, json=False)


def test_an_interrupted_demo_goes_on_in_its_own_project(
    tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "add_demo_model", refuse)
    for _ in range(2):  # the first makes and fills the project, the second finds it there
        with pytest.raises(UserError, match="not installed"):
            demo.demo(options(tmp_path / "demo"), terminal)
    with Project.open(tmp_path / "demo") as project:
        assert 80 <= project.store.counts().prompts < 160


def test_a_finished_demo_says_where_its_page_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "demo" / "report" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("")
    (tmp_path / "demo" / "demo.json").write_text('{"quick": true}')
    assert cli.main(["demo", str(tmp_path / "demo")], lambda _: 1) == 0
    assert str(page) in capsys.readouterr().out


def test_no_demo_is_made_in_a_project_of_ones_own(tmp_path: Path, terminal: Terminal) -> None:
    with Project.create(tmp_path / "mine") as project:
        fill_with_sample(project)
    with pytest.raises(UserError, match="project of your own"):
        demo.demo(options(tmp_path / "mine"), terminal)
