"""Checkpoints of a run as models of the project: what is known of them, their lineage, and that no run sweeps them."""

import json
import os
import struct

import pytest

from engine.checkpoints import prune
from workbench import cli
from workbench.errors import UserError
from workbench.ids import new_id
from workbench.jsonl import encode
from workbench.kept_checkpoints import MEASURES, Measured, keep_checkpoint, list_checkpoints
from workbench.manifests import faults_of, read_manifest, seal
from workbench.metrics import GLOSSARY
from workbench.model_choice import by_training, furthest_of_run
from workbench.model_folders import fingerprint
from workbench.models import remove_model
from workbench.project import Project
from workbench.protocol import Checkpoint, Ended, Metrics, ModelRef, RunSpec, Started
from workbench.records import METHODS, Message, ModelRecord, RunRecord
from workbench.rows import SftRow
from workbench.run_folder import RunFolder
from workbench.run_registry import refresh_runs


@pytest.fixture
def project(tmp_path, monkeypatch):
    for name in ("CACHE", "RUNTIME"):
        monkeypatch.setenv(f"TASTEMAKER_{name}", str(tmp_path / name.lower()))
    with Project.create(tmp_path / "project") as made:
        yield made


def tensors(path, fill):
    raw = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes([fill]) * 16)


@pytest.fixture
def start(project, tmp_path):
    """An SFT model on a base."""
    folder = tmp_path / "base"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    tensors(folder / "model.safetensors", 0)
    base = ModelRecord(id=new_id(), name="tiny", role="base", path=str(folder), sha256=fingerprint(folder))
    sft = ModelRecord(
        id=new_id(), name="sft 1 on tiny", role="sft", path="models/x", base_id=base.id, parent_id=base.id
    )
    for one in (base, sft):
        project.store.save_model(one).result()
    return sft


class Run:
    """A DPO run whose engine left events and checkpoints."""

    def __init__(self, project, start):
        spec = RunSpec(
            run_id=new_id(),
            method="dpo",
            name="dpo 1",
            recipe={},
            model=ModelRef(model_id=start.id, name=start.name, base="/nowhere"),
        )
        row = SftRow("d", "p", (Message("user", "Hi"),), "Hello.")
        self.folder = RunFolder.create(project.runs_dir, spec, [row], [])
        self.record = RunRecord(spec.run_id, "dpo", spec.name, "interrupted", start.id)
        self.seq = 0
        project.store.save_run(self.record).result()

    def say(self, *events):
        with self.folder.events_path.open("ab") as out:
            for event in events:
                fields = {name: getattr(event, name) for name in event.__struct_fields__}
                out.write(encode(type(event)(**(fields | {"seq": self.seq}))) + b"\n")
                self.seq += 1

    def checkpoint(self, step, **measured):
        path = self.folder.path / "checkpoints" / str(step)
        path.mkdir(parents=True)
        (path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        tensors(path / "adapter_model.safetensors", step)
        (path / "state_training.pt").write_bytes(b"optimiser")
        seal(path, kind="checkpoint", run_id=self.record.id, method="dpo", step=step, base_sha256="b")
        self.say(Metrics(step=step, values={f"eval_rewards/{key}": value for key, value in measured.items()}))
        self.say(Checkpoint(step=step, path=f"checkpoints/{step}"))
        return path


@pytest.fixture
def run(project, start):
    made = Run(project, start)
    made.say(Started(pid=1, device="cpu"))
    made.checkpoint(10, accuracies=0.6, margins=0.2)
    made.checkpoint(20)
    made.checkpoint(30, accuracies=0.7)
    return made


def test_sound_checkpoints_are_listed_newest_first_with_what_was_last_measured_before_each(project, run):
    (run.folder.path / "checkpoints" / "30" / "adapter_model.safetensors").write_bytes(b"torn")
    newest, oldest = list_checkpoints(project, run.record)  # 30 is damaged
    assert (newest.step, oldest.step) == (20, 10)
    assert (
        newest.measured
        == oldest.measured
        == (
            Measured("eval_rewards/accuracies", 0.6, 10),  # step 20 measured nothing
            Measured("eval_rewards/margins", 0.2, 10),
        )
    )
    assert newest.model_bytes == sum(
        (run.folder.path / "checkpoints" / "20" / name).stat().st_size
        for name in ("adapter_config.json", "adapter_model.safetensors")
    )
    assert newest.created_at
    assert newest.model is None


def test_what_a_resumed_run_did_again_replaces_what_was_measured_before(project, run):
    run.say(Started(pid=2, device="cpu", resumed_from=20))
    assert list_checkpoints(project, run.record)[0].measured[0] == Measured("eval_rewards/accuracies", 0.6, 10)
    run.say(Metrics(step=30, values={"eval_rewards/accuracies": 0.9}))
    assert list_checkpoints(project, run.record)[0].measured[0] == Measured("eval_rewards/accuracies", 0.9, 30)


def test_every_method_is_measured_by_numbers_that_the_glossary_knows():
    assert set(MEASURES) == set(METHODS)
    for method, keys in MEASURES.items():
        assert all(method in GLOSSARY[key].methods for key in keys)


def test_a_kept_checkpoint_is_a_model_with_its_lineage_and_outlives_the_runs_pruning(project, run, start):
    made = keep_checkpoint(project, run.record, 10)
    assert (made.name, made.role, made.run_id, made.step) == ("dpo 1 on sft 1, step 10", "policy", run.record.id, 10)
    assert (made.parent_id, made.base_id) == (start.id, start.base_id)
    assert [one.name for one in project.lineage(made.id)] == [made.name, start.name, "tiny"]
    folder = project.path / made.path
    assert folder.parent == project.models_dir
    assert not (folder / "state_training.pt").exists()
    prune(run.folder.path / "checkpoints", keep=1)
    assert [one.name for one in run.folder.checkpoints()] == ["30"]
    assert faults_of(folder) == []
    assert project.resolve(made).adapter == str(folder)  # of use to sampling and training as any other
    assert read_manifest(folder).step == 10


def test_keeping_twice_makes_one_model_and_the_list_names_it(project, run):
    made = keep_checkpoint(project, run.record, 20)
    assert keep_checkpoint(project, run.record, 20) == made
    assert [one.model and one.model.name for one in list_checkpoints(project, run.record)] == [None, made.name, None]
    remove_model(project, made.id)
    assert list_checkpoints(project, run.record)[1].model is None
    assert keep_checkpoint(project, run.record, 20).id == made.id


def test_a_checkpoint_that_is_kept_after_the_end_does_not_take_the_place_of_what_the_run_ended_with(project, run):
    final = run.folder.path / "final"
    final.mkdir()
    tensors(final / "adapter_model.safetensors", 40)
    seal(final, kind="final", run_id=run.record.id, method="dpo", step=40)
    run.say(Ended(state="done", step=40, at="2099-01-01T00:00:00+00:00"))
    refresh_runs(project)
    kept = keep_checkpoint(project, run.record, 10)
    made = {one.step: one for one in project.store.models() if one.run_id == run.record.id}
    assert list(made) == [40, 10]  # as they were listed
    assert kept.created_at < made[40].created_at  # as they were trained
    assert furthest_of_run(list(made.values()), run.record.id) == made[40]
    assert [one.step for one in by_training(project.store.models())] == [0, 0, 10, 40]


def test_models_stand_as_they_were_trained_a_later_run_after_an_earlier_one_whenever_a_checkpoint_was_kept():
    def model(run, step):
        return ModelRecord(f"{run} {step}", f"{run} {step}", "policy", "x", run_id=run, step=step)

    base = ModelRecord("base", "base", "base", "x")
    listed = [base, model("a", 40), model("b", 5), model("b", 30), model("a", 10)]
    assert [one.name for one in by_training(listed)] == ["base", "a 10", "a 40", "b 5", "b 30"]


def test_what_cannot_be_kept_is_refused_and_leaves_nothing(project, run, start, monkeypatch):
    def refused(step):
        with pytest.raises(UserError) as found:
            keep_checkpoint(project, run.record, step)
        assert not any(project.models_dir.iterdir())
        return str(found.value)

    assert "there are checkpoints of 30, 20, 10" in refused(15)
    (run.folder.path / "checkpoints" / "20" / "adapter_model.safetensors").write_bytes(b"torn")
    assert "It is damaged: adapter_model.safetensors" in refused(20)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "link", full)
        disk.setattr("workbench.run_registry.shutil.copy2", full)
        assert "No space left on device" in refused(10)

    def swept(source, _):
        prune(run.folder.path / "checkpoints", keep=1)
        raise FileNotFoundError(2, "No such file or directory", str(source))

    with monkeypatch.context() as disk:
        disk.setattr(os, "link", swept)
        assert "The run swept it in this moment" in refused(10)
    project.store.remove_model(start.id).result()
    assert "no longer in the project" in refused(30)


def test_a_project_that_is_open_for_reading_keeps_none(project, run):
    with (
        Project.open(project.path, read_only=True) as reading,
        pytest.raises(UserError, match="open for reading only"),
    ):
        keep_checkpoint(reading, run.record, 10)


def test_the_command_line_lists_checkpoints_and_keeps_one(project, run, capsys):
    project.close()
    place = str(project.path)
    assert cli.main(["checkpoints", place, "dpo", "--keep", "20", "--json"], lambda _: 0) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 20
    assert cli.main(["checkpoints", place, "dpo"], lambda _: 0) == 0
    newest, kept, oldest = capsys.readouterr().out.splitlines()
    assert newest.startswith("step     30  ")
    assert "eval_rewards/accuracies 0.7" in newest
    assert kept.endswith("kept as 'dpo 1 on sft 1, step 20'")
    assert "kept" not in oldest
    assert cli.main(["checkpoints", place, "dpo", "--keep", "15"], lambda _: 0) == 1
    assert "there are checkpoints of 30, 20, 10" in capsys.readouterr().err


def test_a_run_without_checkpoints_says_how_one_is_made(project, start, capsys):
    Run(project, start)
    project.close()
    assert cli.main(["checkpoints", str(project.path), "dpo"], lambda _: 0) == 0
    assert "tastemaker save" in capsys.readouterr().out
