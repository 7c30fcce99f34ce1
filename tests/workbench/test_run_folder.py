import dataclasses
import os

import pytest

from engine.events import EventLog
from workbench.errors import UserError
from workbench.ids import new_id
from workbench.jsonl import encode
from workbench.manifests import sha256_of
from workbench.protocol import (
    Checkpoint,
    Ended,
    Metrics,
    ModelRef,
    Paused,
    Phase,
    Progress,
    RunSpec,
    Started,
    Unpaused,
    Warned,
)
from workbench.reaper import LockNote, describe_end, take, write_exit, write_note
from workbench.recipes import SftRecipe
from workbench.records import METHODS, Message, step_word
from workbench.rows import PairRow, PromptRow, SftRow, ThumbRow
from workbench.run_folder import STOPPING_PHASE, RunFolder

HI = (Message("user", "Hi"),)
ROWS = {
    "sft": SftRow("a", "g", HI, "Hello"),
    "reward": PairRow("r:1:2", "g", "r", "me", HI, "good", "bad", 2),
    "dpo": PairRow("r:1:2", "g", "r", "me", HI, "good", "bad", 2),
    "kto": ThumbRow("r:1", "g", "r", "me", HI, "good", True),
    "ppo": PromptRow("p", HI),
}


def make(where, method="sft", demonstrations=(), **changes):
    spec = RunSpec(
        run_id=new_id(),
        method=method,
        name="a run",
        recipe=dataclasses.asdict(SftRecipe()) | changes,
        model=ModelRef(model_id="m", name="m", base="/base"),
    )
    where.mkdir(exist_ok=True)
    return RunFolder.create(where, spec, [ROWS[method]], [], demonstrations)


class Scene:
    """Plays the processes of a run: holds the lock, speaks, falls silent."""

    def __init__(self, run):
        self.run = run
        self.handle = None

    def hold(self, state="running", **note):
        self.handle = take(self.run.lock_path)
        since = self.run.events_path.stat().st_size if self.run.events_path.exists() else 0
        write_note(self.handle, LockNote(state=state, since=since, **note))
        return self

    def say(self, *events):
        log = EventLog(self.run.path)
        for event in events:
            log.emit(event)
        log.close()
        return self

    def vanish(self):
        os.close(self.handle)
        return self

    def end(self, code):
        write_exit(self.run.path, describe_end(code, 1000))
        return self.vanish()


@pytest.fixture
def run(tmp_path):
    return make(tmp_path / "runs")


@pytest.fixture
def scene(run):
    return Scene(run)


# ---- the folder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", list(ROWS))
def test_what_is_frozen_is_read_back(tmp_path, method):
    run = make(tmp_path / "runs", method, [ROWS["sft"]])
    assert run.rows("train") == [ROWS[method]]
    assert run.rows("heldout") == []
    assert run.rows("demonstrations") == [ROWS["sft"]]
    assert set(run.spec().data_sha256) == {"train.jsonl", "heldout.jsonl", "demonstrations.jsonl"}
    assert [one.name for one in (tmp_path / "runs").iterdir()] == [run.path.name]


def test_rows_of_a_run_from_before_ends_were_known_count_as_whole(tmp_path):
    for method, row in (("reward", ROWS["reward"]), ("kto", ROWS["kto"])):
        run = make(tmp_path / method, method)
        old = {key: value for key, value in dataclasses.asdict(row).items() if not key.endswith("ended")}
        file = run.path / "data" / "train.jsonl"
        file.write_bytes(encode(old) + b"\n")
        spec = run.spec()
        spec.data_sha256[file.name] = sha256_of(file)
        assert run.rows("train", spec) == [row]
        assert all(getattr(row, one) for one in dir(row) if one.endswith("ended"))


def test_a_run_is_made_once(run, tmp_path):
    with pytest.raises(UserError, match="exists already"):
        RunFolder.create(tmp_path / "runs", run.spec(), [], [])


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("workbench.run_folder.write_jsonl", full)
    with pytest.raises(UserError, match="could not be written"):
        make(tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []


def test_missing_and_damaged_files_are_named(run):
    (run.path / "data" / "train.jsonl").unlink()
    with pytest.raises(UserError, match=r"train\.jsonl .* is missing"):
        run.rows("train")
    assert run.rows("demonstrations") == []
    (run.path / "recipe.json").write_text("{")
    with pytest.raises(UserError, match="recipe"):
        run.spec()


def test_a_recipe_is_typed_and_unknown_fields_are_ignored(tmp_path):
    run = make(tmp_path / "runs", epochs=2, from_a_newer_version=1)
    assert run.recipe().epochs == 2.0
    with pytest.raises(UserError, match="recipe cannot be used"):
        make(tmp_path / "runs", epochs="many").recipe()
    with pytest.raises(UserError, match="outside"):
        make(tmp_path / "runs", epochs=-1).recipe()


def test_an_empty_run_reads_as_empty(run):
    assert list(run.events()) == []
    assert run.samples() == []
    assert run.log_tail() == ""
    assert run.exit() is None
    assert run.final_dir() is None
    assert run.checkpoints() == []
    (run.path / "checkpoints").rmdir()
    assert run.checkpoints() == []


def test_events_can_be_read_from_a_number_on_and_the_log_from_its_end(run, scene):
    scene.say(*(Metrics(step=n, values={}) for n in range(5)))
    assert [one.seq for one in run.events(after_seq=2)] == [3, 4]
    (run.path / "engine.log").write_bytes(b"x" * 100 + "Grüße".encode())
    assert run.log_tail(8).endswith("Grüße")


def test_damaged_samples_are_left_out(run):
    good = b'{"step":1,"prompt_id":"p","prompt":"Q","response":"R"}\n'
    (run.path / "samples.jsonl").write_bytes(good + b'{"step":2,"pro\n' + good)
    assert [one.step for one in run.samples()] == [1, 1]
    assert len(run.samples(limit=1)) == 1


# ---- the state -------------------------------------------------------------------------------------------------


def test_a_run_that_was_never_started_says_so(run):
    status = run.state()
    assert (status.state, status.resumable, status.alive) == ("interrupted", True, False)
    assert "never started" in status.detail


def test_queued_names_who_is_ahead(run, scene):
    scene.hold("queued", ahead=2)
    status = run.state()
    assert (status.state, status.alive) == ("queued", True)
    assert "2 ahead" in status.detail


def test_running_follows_the_events(run, scene):
    scene.hold()
    assert (run.state().state, run.state().phase) == ("running", "starting")
    scene.say(
        Started(pid=1, device="cpu", total_steps=10),
        Phase(name="training", detail="epoch 1"),
        Progress(step=4, total_steps=10, eta_s=7.5),
        Warned(code="x", message="y"),
    )
    status = run.state()
    assert (status.state, status.step, status.total_steps, status.eta_s) == ("running", 4, 10, 7.5)
    assert (status.phase, status.detail) == ("training", "epoch 1")
    scene.say(Metrics(step=5, values={}))
    assert run.state().step == 5
    scene.say(Paused(step=5))
    assert run.state().state == "paused"
    scene.say(Unpaused(step=5), Phase(name=STOPPING_PHASE))
    assert run.state().state == "stopping"
    scene.say(Ended(state="stopped", step=5))
    assert (run.state().state, run.state().phase) == ("stopping", "ending")


def test_a_resumed_run_shows_its_own_state_not_that_of_the_process_before(run, scene):
    scene.hold().say(Started(pid=1, device="cpu"), Progress(step=7, total_steps=10), Paused(step=7)).end(-9)
    assert run.state().state == "interrupted"
    Scene(run).hold("queued", ahead=1)
    assert (run.state().state, run.state().step) == ("queued", 7)


def test_a_resumed_run_that_has_not_spoken_yet_is_running_not_paused(run, scene):
    scene.hold().say(Started(pid=1, device="cpu"), Progress(step=7, total_steps=10), Paused(step=7)).end(-9)
    Scene(run).hold()
    status = run.state()
    assert (status.state, status.phase, status.step) == ("running", "starting", 7)


def test_done_needs_the_finished_model(run, scene):
    scene.hold().say(Started(pid=1, device="cpu"), Ended(state="done", step=10, message="Finished")).end(0)
    assert run.state().state == "failed"  # code 0 and no model: something is wrong
    (run.path / "final").mkdir()
    (run.path / "final" / "tastemaker.json").write_text("{}")
    status = run.state()
    assert (status.state, status.resumable, status.detail) == ("done", False, "Finished")
    assert status.ended_at


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_the_engines_last_word_counts(run, scene, state):
    scene.hold().say(Started(pid=1, device="cpu"), Ended(state=state, message="m", cause="c", remedy="r")).vanish()
    status = run.state()
    assert (status.state, status.detail, status.cause, status.remedy) == (state, "m", "c", "r")
    assert status.resumable


@pytest.mark.parametrize(
    ("code", "state", "words"),
    [
        (-9, "interrupted", "signal 9"),
        (-11, "interrupted", "segmentation fault"),
        (-15, "interrupted", "asked to end"),
        (-25, "interrupted", "limit on file size"),
        (-45, "interrupted", "signal 45"),
        (-10, "interrupted", "SIGUSR1"),
        (1, "failed", "code 1"),
    ],
)
def test_a_process_that_said_nothing_is_judged_by_how_it_ended(run, scene, code, state, words):
    scene.hold().say(Started(pid=1, device="cpu"), Checkpoint(step=3, path="checkpoints/3")).end(code)
    status = run.state()
    assert (status.state, status.step) == (state, 3)
    assert words in status.cause
    assert status.remedy


def test_all_processes_vanished_without_a_word(run, scene):
    scene.hold().say(Started(pid=1, device="cpu"), Progress(step=6, total_steps=9)).vanish()
    status = run.state()
    assert status.state == "interrupted"
    assert "at step 6" in status.detail
    assert "switched off" in status.cause
    (run.path / "recipe.json").write_text("{")  # then nobody knows what its steps are called
    assert "at step 6" in run.state().detail


def test_the_steps_of_ppo_are_called_rollouts(run, scene):
    recipe = run.path / "recipe.json"
    recipe.write_text(recipe.read_text().replace('"method": "sft"', '"method": "ppo"'))
    scene.hold().say(Started(pid=1, device="cpu"), Progress(step=6, total_steps=9)).end(-9)
    assert run.state().detail == "The engine ended at rollout 6"
    assert [step_word(method) for method in METHODS] == ["step"] * 4 + ["rollout"]
    assert (step_word("ppo", 0), step_word("sft", 2), step_word("ppo", 1)) == ("rollouts", "steps", "rollout")


def test_the_state_of_a_long_run_is_read_from_its_end(run, scene):
    scene.hold().say(Started(pid=1, device="cpu"), Phase(name="training"))
    line = b'{"type":"metrics","seq":9,"step":1,"values":{"loss":0.5}}\n'
    with run.events_path.open("ab") as out:
        out.write(line * 20_000)
    scene.say(Progress(step=77, total_steps=100))
    status = run.state()
    assert (status.state, status.step, status.total_steps) == ("running", 77, 100)
