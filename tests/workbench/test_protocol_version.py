"""Runs and engines of another version of the protocol: read where they can be, told clearly, never written into."""

import json
import os

import pytest

from workbench import cli, protocol, supervisor
from workbench.errors import UserError
from workbench.ids import new_id
from workbench.jsonl import encode
from workbench.project import Project
from workbench.protocol import PROTOCOL_VERSION, Cancel, Ended, ModelRef, RunSpec, SaveNow, Started
from workbench.protocol_version import VARIABLE, is_newer, problem_of, refuse_other_starter
from workbench.reaper import LockNote, take, write_note
from workbench.records import Message, RunRecord
from workbench.rows import SftRow
from workbench.run_folder import RunFolder

OTHERS = {"older": PROTOCOL_VERSION - 1, "newer": PROTOCOL_VERSION + 1}


@pytest.fixture
def run_of(tmp_path, monkeypatch):
    """Make a run of a version."""
    monkeypatch.setenv("TASTEMAKER_RUNTIME", str(tmp_path / "runtime"))

    def make(version):
        spec = RunSpec(
            run_id=new_id(),
            method="sft",
            name="sft 1",
            recipe={},
            model=ModelRef(model_id="m", name="m", base="/nowhere"),
            protocol=version,
        )
        row = SftRow("d", "p", (Message("user", "Hi"),), "Hello.")
        return RunFolder.create(tmp_path / "runs", spec, [row], [])

    return make


def test_the_line_of_a_start_says_its_version_from_the_second_on():
    """Defaults are left out of a line, so that the default must be the version of the lines that say nothing."""
    assert protocol.decode_event(b'{"type": "started", "pid": 1, "device": "cpu"}').protocol == 1
    later = Started(pid=1, device="cpu", protocol=2)
    assert json.loads(encode(later))["protocol"] == 2
    assert protocol.decode_event(encode(later)) == later


@pytest.mark.parametrize("version", OTHERS)
def test_a_run_of_another_version_is_read_and_not_started(run_of, version):
    folder = run_of(OTHERS[version])
    folder.events_path.write_bytes(encode(Ended(state="done", step=3)) + b"\n")
    spec = folder.spec()
    assert is_newer(spec) == (version == "newer")
    assert len(folder.rows("train")) == 1
    assert [one.step for one in folder.events()] == [3]
    for deed in (supervisor.launch, supervisor.resume):
        with pytest.raises(UserError, match=rf"'sft 1' is of an? {version} version of Tastemaker.*protocol"):
            deed(folder.path)
    assert not (folder.path / "engine.log").exists()


def test_a_run_of_our_own_version_has_no_problem(run_of):
    assert problem_of(run_of(PROTOCOL_VERSION).spec()) is None


def test_a_recipe_that_only_a_newer_version_can_read_says_so(run_of):
    folder = run_of(PROTOCOL_VERSION)
    path = folder.path / "recipe.json"
    read = json.loads(path.read_bytes())
    path.write_text(json.dumps(read | {"protocol": PROTOCOL_VERSION + 1, "method": "telepathy"}))
    with pytest.raises(UserError, match=r"'sft 1' is of a newer version.*Update Tastemaker"):
        folder.spec()
    path.write_text(json.dumps(read | {"method": "telepathy"}))
    with pytest.raises(UserError, match="cannot be read"):
        folder.spec()


@pytest.mark.parametrize("version", ["older", "newer"])
def test_a_living_run_of_a_newer_version_is_given_no_command_and_of_an_older_one_is(run_of, version):
    folder = run_of(OTHERS[version])
    lock = take(folder.lock_path)
    write_note(lock, LockNote(state="running", since=0))
    try:
        for command in (SaveNow(), Cancel()):
            said = "is of a newer version" if version == "newer" else "does not answer"  # nobody listens in this test
            with pytest.raises(UserError, match=said):
                supervisor.send(folder.path, command, timeout=0.1)
        (folder.path / "recipe.json").unlink()  # whoever lost it can still stop the run
        with pytest.raises(UserError, match="does not answer"):
            supervisor.send(folder.path, Cancel(), timeout=0.1)
    finally:
        os.close(lock)


def test_an_engine_that_was_updated_under_an_open_window_says_so(monkeypatch):
    refuse_other_starter()  # nobody said anything
    for said in (str(PROTOCOL_VERSION), ""):
        monkeypatch.setenv(VARIABLE, said)
        refuse_other_starter()
    monkeypatch.setenv(VARIABLE, str(PROTOCOL_VERSION - 1))
    with pytest.raises(UserError, match=r"another version than the window.*open it again"):
        refuse_other_starter()


def test_a_serving_engine_is_told_what_its_starter_speaks_and_refuses_another(tmp_path, monkeypatch):
    from workbench import serve_client

    monkeypatch.setenv("TASTEMAKER_RUNTIME", str(tmp_path / "runtime"))
    assert serve_client._environment()[VARIABLE] == str(PROTOCOL_VERSION)
    monkeypatch.setattr(serve_client, "PROTOCOL_VERSION", PROTOCOL_VERSION + 1)
    client = serve_client.ServeClient()
    with pytest.raises(UserError, match=r"The engine is of another version than the window.*open it again"):
        client.start()
    assert not client.running


def test_the_command_line_lists_a_run_of_a_newer_version(tmp_path, run_of, capsys):
    with Project.create(tmp_path / "project") as project:
        folder = run_of(PROTOCOL_VERSION + 1)
        folder.path.rename(project.run_dir(folder.path.name))
        project.store.save_run(RunRecord(folder.path.name, "sft", "sft 1", "interrupted", "m")).result()
    assert cli.main(["runs", str(project.path)], lambda _: 0) == 0
    assert "sft 1" in capsys.readouterr().out
    assert cli.main(["resume", str(project.path), "sft"], lambda _: 0) == 1
    assert "is of a newer version of Tastemaker" in capsys.readouterr().err
