"""A run that is resumed finds its models where they are now; what it trains on stays what was frozen."""

import dataclasses
import shutil

import msgspec
import pytest

from workbench import cli, supervisor
from workbench.errors import UserError
from workbench.ids import new_id
from workbench.jsonl import encode
from workbench.model_folders import fingerprint
from workbench.moved_runs import resume_run
from workbench.project import Project
from workbench.protocol import Ended, ModelRef, RunSpec, Started
from workbench.records import Message, ModelRecord, RunRecord
from workbench.rows import SftRow
from workbench.run_folder import RunFolder


def make_folder(folder, *names):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name in ("CACHE", "RUNTIME"):
        monkeypatch.setenv(f"TASTEMAKER_{name}", str(tmp_path / name.lower()))
    with Project.create(tmp_path / "project") as made:
        yield made


@pytest.fixture
def launched(monkeypatch):
    """The recipes of the runs that were launched."""
    found = []
    monkeypatch.setattr(supervisor, "launch", lambda run_dir, **_: found.append(RunFolder(run_dir).spec()))
    return found


@pytest.fixture
def base(project, tmp_path):
    folder = make_folder(tmp_path / "base", "config.json", "tokenizer.json", "model.safetensors")
    made = ModelRecord(new_id(), "tiny", "base", str(folder), sha256=fingerprint(folder))
    project.store.save_model(made).result()
    return made


@pytest.fixture
def start(project, base):
    folder = make_folder(project.models_dir / "x", "adapter_config.json", "adapter_model.safetensors")
    more = {"base_id": base.id, "parent_id": base.id, "sha256": fingerprint(folder)}
    made = ModelRecord(new_id(), "sft 1 on tiny", "sft", "models/x", **more)
    project.store.save_model(made).result()
    return made


def interrupted(project, model, reward=None):
    """An interrupted run of a model as the project resolves it."""
    spec = RunSpec(run_id=new_id(), method="sft", name="run 1", recipe={}, model=model, reward=reward)
    row = SftRow("d", "p", (Message("user", "Hi"),), "Hello.")
    folder = RunFolder.create(project.runs_dir, spec, [row], [])
    events = (Started(seq=0, pid=1, device="cpu"), Ended(seq=1, state="stopped", step=3))
    folder.events_path.write_bytes(b"".join(encode(one) + b"\n" for one in events))
    project.store.save_run(RunRecord(spec.run_id, "sft", spec.name, "interrupted", model.model_id)).result()
    return folder


def move(base, to):
    shutil.move(base.path, to)
    return to


def locate(project, base, folder):
    project.store.save_model(dataclasses.replace(base, path=str(folder))).result()


def test_a_located_base_revives_the_runs_on_it(project, base, start, launched, tmp_path):
    ref = project.resolve(start)
    run = interrupted(project, ref, reward=ref)
    frozen = run.spec()
    moved = move(base, tmp_path / "moved")
    with pytest.raises(UserError, match=r"sft 1 on tiny is not where this run had it.*Locate…"):
        resume_run(project, run.path.name)
    locate(project, base, moved)
    resume_run(project, run.path.name)
    found = msgspec.structs.replace(ref, base=str(moved))
    assert launched == [msgspec.structs.replace(frozen, model=found, reward=found)]  # nothing else is another


def test_the_command_line_resumes_on_a_located_base_too(project, base, start, launched, tmp_path, capsys):
    run = interrupted(project, project.resolve(start))
    moved = move(base, tmp_path / "moved")
    locate(project, base, moved)
    project.close()
    assert cli.main(["resume", str(project.path), "run 1", "--detach"], lambda _: 0) == 0
    assert [one.model.base for one in launched] == [str(moved)]
    assert run.spec() == launched[0]


def test_a_base_is_told_by_its_fingerprint_and_without_one_by_its_record(project, base, launched, tmp_path):
    known = interrupted(project, ref := project.resolve(base))
    unknown = interrupted(project, msgspec.structs.replace(ref, base_sha256=""))
    moved = move(base, tmp_path / "moved")
    other = make_folder(tmp_path / "other", "config.json", "model.safetensors")
    project.store.save_model(dataclasses.replace(base, path=str(other), sha256="0" * 64)).result()
    with pytest.raises(UserError, match="Locate…"):
        resume_run(project, known.path.name)  # another model took the record's place
    locate(project, base, moved)
    for run in (known, unknown):
        resume_run(project, run.path.name)
    assert [one.model.base for one in launched] == [str(moved)] * 2


def test_a_project_that_was_moved_keeps_its_adapters(project, start, launched):
    here = project.resolve(start)
    run = interrupted(project, msgspec.structs.replace(here, adapter="/another/machine/models/x"))
    resume_run(project, run.path.name)
    assert [one.model for one in launched] == [here]


def test_what_was_not_moved_is_not_written_anew(project, start, launched):
    run = interrupted(project, ModelRef(**msgspec.structs.asdict(project.resolve(start))))
    before = (run.path / "recipe.json").stat().st_mtime_ns
    resume_run(project, run.path.name)
    assert (run.path / "recipe.json").stat().st_mtime_ns == before
    assert len(launched) == 1


def test_a_full_disk_is_told_and_the_recipe_stays(project, base, start, launched, tmp_path, monkeypatch):
    run = interrupted(project, project.resolve(start))
    locate(project, base, move(base, tmp_path / "moved"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("workbench.run_folder.write_atomic", full)
    before = run.spec()
    with pytest.raises(UserError, match="No space left on device"):
        resume_run(project, run.path.name)
    assert (run.spec(), launched) == (before, [])
