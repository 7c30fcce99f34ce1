import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch

from engine.checkpoints import DiskFullError, load_tensors, save_tensors
from engine.control import Cancelled, Control, Stopped
from engine.job import train
from engine.session import DivergedError, Session
from workbench.errors import UserError
from workbench.ids import new_id
from workbench.protocol import (
    Cancel,
    Checkpoint,
    Diverged,
    Ended,
    Metrics,
    ModelRef,
    Pause,
    Paused,
    Ping,
    Progress,
    Resume,
    RunSpec,
    Sample,
    SampleBatch,
    SampleNow,
    SaveNow,
    Started,
    Stop,
    Unpaused,
    Warned,
)
from workbench.recipes import RECIPES
from workbench.records import Message
from workbench.rows import SftRow
from workbench.run_folder import RunFolder, join_segments


@pytest.fixture(autouse=True)
def own_runtime(tmp_path, monkeypatch):
    monkeypatch.setenv("TASTEMAKER_RUNTIME", str(tmp_path / "runtime"))


def make_run(where, method="sft", **settings):
    settings = {"device": "cpu", "save_every": 0} | settings
    spec = RunSpec(
        run_id=new_id(),
        method=method,
        name="a run",
        recipe=dataclasses.asdict(RECIPES[method](**settings)),
        model=ModelRef(model_id="m", name="m", base="/models/base", base_sha256="abc"),
    )
    where.mkdir(exist_ok=True)
    return RunFolder.create(where, spec, [SftRow("a", "g", (Message("user", "Hi"),), "Hello")], [])


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs")


def events_of(run, kind):
    return [one for one in run.events() if isinstance(one, kind)]


def nothing(session, step):
    """Do nothing before a step."""


class Walk:
    """A method whose every number depends on the random numbers and on all steps before it."""

    def __init__(self, session, total=12, before=nothing):
        self.session, self.total, self.before = session, total, before
        self.weight = torch.zeros(3)
        self.step = 0
        folder = session.latest_checkpoint()
        if folder is not None:
            self.weight = load_tensors(folder / "state_walk.safetensors")["weight"]
            self.step = int(folder.name)
            session.restore_rng()

    def save(self, folder):
        save_tensors(folder / "state_walk.safetensors", {"weight": self.weight})

    def go(self):
        import random

        import numpy as np

        for step in range(self.step + 1, self.total + 1):
            self.before(self.session, step)
            self.weight = self.weight * 0.9 + torch.randn(3) + random.random() + float(np.random.rand())
            self.session.metrics(step, {"loss": self.weight.sum()})
            self.session.at_step_end(step, self.total, self.save)
        self.session.finish(lambda folder: save_tensors(folder / "adapter_model.safetensors", {"w": self.weight}))


def losses(run):
    return [(one.step, one.values["loss"]) for one in join_segments(run.events())]


# ---- saving and resuming -----------------------------------------------------------------------------------------


def test_a_resumed_run_draws_the_same_random_numbers_bit_for_bit(tmp_path):
    whole = make_run(tmp_path / "runs")
    Walk(Session(whole.path)).go()
    broken = make_run(tmp_path / "runs", save_every=5)

    def die(session, step):
        if step == 8:
            raise RuntimeError("the power went")

    with pytest.raises(RuntimeError):
        Walk(Session(broken.path), before=die).go()
    torch.rand(1000)  # whatever happened in between
    Walk(Session(broken.path)).go()
    assert losses(broken) == losses(whole)
    assert [one.resumed_from for one in events_of(broken, Started)] == [-1, 5]
    seqs = [one.seq for one in broken.events()]
    assert seqs == list(range(len(seqs)))


def test_checkpoints_are_kept_as_many_as_the_recipe_says(tmp_path):
    run = make_run(tmp_path / "runs", save_every=2, keep_checkpoints=3)
    Walk(Session(run.path)).go()
    assert [one.name for one in run.checkpoints()] == ["12", "10", "8"]
    assert [one.step for one in events_of(run, Checkpoint)] == [2, 4, 6, 8, 10, 12]
    assert run.final_dir() is not None
    manifest = json.loads((run.path / "final" / "tastemaker.json").read_text())
    assert (manifest["step"], manifest["base_sha256"], manifest["kind"]) == (12, "abc", "final")


def test_a_damaged_newest_checkpoint_is_set_aside_aloud(tmp_path):
    run = make_run(tmp_path / "runs", save_every=4)
    Walk(Session(run.path)).go()
    newest = run.path / "checkpoints" / "12" / "state_walk.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    session = Session(run.path)
    assert session.latest_checkpoint().name == "8"
    (warning,) = [one for one in events_of(run, Warned) if one.code == "checkpoint-damaged"]
    assert "step 12" in warning.message
    assert "step 8 is used instead" in warning.message
    assert (run.path / "checkpoints" / "12.damaged").is_dir()


def test_a_half_written_checkpoint_is_swept(run):
    left = run.path / "checkpoints" / ".tmp-5-123"
    left.mkdir()
    session = Session(run.path)
    assert session.latest_checkpoint() is None
    assert not left.exists()


# ---- commands ------------------------------------------------------------------------------------------------------


def at(step, *commands):
    return lambda session, now: [session.control.obey(command) for command in commands] if now == step else None


def test_stop_saves_and_raises(run):
    session = Session(run.path)
    with pytest.raises(Stopped) as stopped:
        Walk(session, before=at(3, Stop(save=True))).go()
    assert stopped.value.saved_step == 3
    assert [one.name for one in run.checkpoints()] == ["3"]


def test_stop_without_saving_saves_nothing(run):
    with pytest.raises(Stopped) as stopped:
        Walk(Session(run.path), before=at(3, Stop(save=False))).go()
    assert stopped.value.saved_step == -1
    assert run.checkpoints() == []


def test_a_stop_while_the_model_loads_takes_effect_before_the_first_step(tmp_path):
    run = make_run(tmp_path / "runs", save_every=4)
    session = Session(run.path)
    session.phase("loading")
    session.control.obey(Stop(save=True))
    with pytest.raises(Stopped) as stopped:
        session.phase("training")
    assert stopped.value.saved_step == -1
    with pytest.raises(Stopped):
        Walk(Session(run.path), before=at(6, Stop(save=True))).go()
    again = Session(run.path)
    again.control.obey(Stop(save=True))
    with pytest.raises(Stopped) as stopped:
        again.phase("loading")
    assert stopped.value.saved_step == 6  # what was saved before is all there is


def test_save_now_and_sample_now_are_heard_once(run):
    asked = []

    def before(session, step):
        at(3, SaveNow(), SampleNow())(session, step)
        asked.append(session.sample_asked())

    Walk(Session(run.path), before=before).go()
    assert [one.name for one in run.checkpoints()] == ["3"]
    assert asked.count(True) == 1


def test_pause_holds_until_resume_and_may_save_meanwhile(run):
    session = Session(run.path)

    def researcher():
        wait_until(lambda: events_of(run, Paused))
        session.control.obey(SaveNow())
        wait_until(run.checkpoints)
        assert not events_of(run, Unpaused)
        session.control.obey(Resume())

    thread = threading.Thread(target=researcher)
    thread.start()
    Walk(session, before=at(4, Pause())).go()
    thread.join()
    assert [one.step for one in events_of(run, Paused)] == [4]
    assert [one.name for one in run.checkpoints()] == ["4"]


def test_a_paused_run_can_be_stopped(run):
    session = Session(run.path)
    threading.Timer(0.2, lambda: session.control.obey(Stop(save=True))).start()
    with pytest.raises(Stopped) as stopped:
        Walk(session, before=at(4, Pause())).go()
    assert stopped.value.saved_step == 4


def test_pause_and_save_waits_with_a_warning(run):
    session = Session(run.path)

    def leash(session, step):
        if step == 5:
            session.pause_and_save("max-kl", "KL passed 10 nats", "lower the learning rate")
            threading.Timer(0.2, lambda: session.control.obey(Resume())).start()

    Walk(session, before=leash).go()
    assert [one.name for one in run.checkpoints()] == ["5"]
    assert [one.code for one in events_of(run, Warned)] == ["max-kl"]


def wait_until(condition, timeout=20.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_cancel_that_was_swallowed_takes_effect_at_the_steps_end(run):
    session = Session(run.path)

    def swallow(session, step):
        if step == 3:
            session.control.cancelled = True

    with pytest.raises(Cancelled):
        Walk(session, before=swallow).go()


def test_a_cancel_does_not_tear_a_whole_section():
    control = Control()
    done = []

    def section():
        with control.whole():
            control.cancelled = True
            control._on_signal(signal.SIGUSR1, None)
            done.append("to its end")

    with pytest.raises(Cancelled):
        section()
    assert done == ["to its end"]


def test_commands_after_the_end_are_refused():
    control = Control()
    control.ending = True
    assert control.obey(Pause()).error
    assert not control.obey(Ping()).error


# ---- what is reported ----------------------------------------------------------------------------------------------


def test_what_is_not_finite_is_left_out_aloud_and_once(run):
    session = Session(run.path)
    for step in (1, 2):
        session.metrics(step, {"loss": 1.0, "val/ratio_var": float("nan"), "grad_norm": torch.tensor(float("inf"))})
    found = events_of(run, Metrics)
    assert [set(one.values) & {"loss", "val/ratio_var", "grad_norm"} for one in found] == [{"loss"}, {"loss"}]
    assert len(events_of(run, Warned)) == 2
    assert b"NaN" not in (run.path / "events.jsonl").read_bytes()
    assert found[0].values["perf/peak_memory_bytes"] >= found[0].values["perf/memory_bytes"] > 1e7


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "nan"), (float("inf"), "inf")])
def test_divergence_names_the_batch(run, value, kind):
    session = Session(run.path)
    session.check_finite(4, "loss", torch.ones(3), ["a"])
    with pytest.raises(DivergedError, match=f"loss was {kind} at step 5"):
        session.check_finite(5, "loss", torch.tensor([1.0, value]), ["a", "b"])
    (event,) = events_of(run, Diverged)
    assert (event.step, event.metric, event.kind, event.rows) == (5, "loss", kind, ("a", "b"))


def test_progress_estimates_the_time_left(run):
    session = Session(run.path)
    session.progress(0, 10)
    session._pace = (time.monotonic() - 5.0, 0)
    session._last_progress = 0.0
    session.progress(5, 10)
    first, second = events_of(run, Progress)
    assert first.eta_s == -1.0
    assert second.eta_s == pytest.approx(5.0, abs=0.5)


def test_samples_are_found_by_step_and_only_the_last_attempt_counts(run):
    session = Session(run.path)
    for step, text in ((1, "first"), (2, "lost"), (2, "lost too")):
        session.write_samples(step, [Sample(step=step, prompt_id="p", prompt="Q", response=text)])
    session._emit(Started(pid=1, device="cpu", resumed_from=1))
    session.write_samples(2, [Sample(step=2, prompt_id="p", prompt="Q", response="again")])
    assert [one.response for one in run.samples(step=2)] == ["again"]
    assert [one.response for one in run.samples()] == ["first", "lost", "lost too", "again"]
    offset = events_of(run, SampleBatch)[1].offset
    assert [one.response for one in run.samples(offset, 1)] == ["lost"]


def test_a_recipe_with_faults_is_refused(tmp_path):
    run = make_run(tmp_path / "runs", batch=2, micro_batch=64)
    with pytest.raises(UserError, match="micro_batch 64"):
        Session(run.path)


def test_a_gpu_that_is_not_there_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="asks for a GPU"):
        Session(make_run(tmp_path / "runs", device="cuda").path)


def test_a_run_that_was_planned_for_a_gpu_does_not_go_to_the_cpu_unasked(tmp_path, monkeypatch):
    """The driver's device is there, and CUDA is not usable: an upgrade without a restart, say."""
    monkeypatch.setattr("engine.session.has_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = make_run(tmp_path / "runs", device="auto")
    with pytest.raises(UserError, match="PyTorch cannot use it") as refused:
        Session(run.path)
    assert "planned for the GPU" in refused.value.cause
    assert "device cpu" in refused.value.remedy
    assert Session(make_run(tmp_path / "more", device="cpu").path).device.type == "cpu"
    monkeypatch.setattr("engine.session.has_gpu", lambda: False)
    assert Session(run.path).device.type == "cpu"


def test_a_run_says_at_its_start_what_it_may_hold(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.memory.available_bytes", lambda: 2**40)
    run = make_run(tmp_path / "runs", device="cpu")
    Session(run.path)
    [started] = events_of(run, Started)
    assert 10_000_000 < started.available_bytes - 2**40 < 2**40  # and the libraries


# ---- the disk ------------------------------------------------------------------------------------------------------


def test_no_room_for_a_checkpoint_pauses_and_keeps_the_old_one(tmp_path, monkeypatch):
    run = make_run(tmp_path / "runs", save_every=3)
    session = Session(run.path)
    full = threading.Event()
    real = __import__("engine.checkpoints").checkpoints.write_folder

    def write_folder(destination, *args, **kwargs):
        if full.is_set():
            raise DiskFullError(5_000_000, 1_234)
        return real(destination, *args, **kwargs)

    monkeypatch.setattr("engine.checkpoints.write_folder", write_folder)

    def before(session, step):
        if step == 6:
            full.set()
            threading.Timer(0.3, researcher).start()

    def researcher():
        assert run.checkpoints()[0].name == "3"
        full.clear()
        session.control.obey(Resume())

    Walk(session, before=before).go()
    (warning,) = [one for one in events_of(run, Warned) if one.code == "disk-full"]
    assert "5,000,000 bytes" in warning.message
    assert "1,234 are free" in warning.message
    assert [one.step for one in events_of(run, Paused)] == [6]
    assert [one.name for one in run.checkpoints()] == ["12", "9"]
    assert [one.step for one in events_of(run, Checkpoint)] == [3, 6, 9, 12]


# ---- the whole process ---------------------------------------------------------------------------------------------


@pytest.fixture
def streams():
    """Put this process's own streams and signals back after a run has claimed them."""
    kept = [os.dup(handle) for handle in (0, 1, 2)]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    yield
    for number, handle in enumerate(kept):
        os.dup2(handle, number)
        os.close(handle)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def raises(error):
    def method(_):
        raise error

    return method


@pytest.mark.parametrize(
    ("method", "state", "words"),
    [
        (lambda session: Walk(session).go(), "done", "Finished after 12 steps"),
        (lambda session: Walk(session, before=at(3, Stop())).go(), "stopped", "everything is saved"),
        (lambda session: Walk(session, before=at(3, Cancel())).go(), "stopped", "Cancelled after step"),
        (lambda _: os.kill(os.getpid(), signal.SIGTERM), "stopped", "Ended from outside (SIGTERM) after step 0"),
        (lambda session: session.check_finite(2, "loss", float("nan"), ["a"]), "failed", "diverged: loss was nan"),
        (raises(UserError("Wrong model", "why", "what to do")), "failed", "Wrong model"),
        (lambda _: torch.zeros(2) @ torch.zeros(3), "failed", "The engine failed: RuntimeError"),
        (raises(MemoryError("no more")), "failed", "Memory ran out"),
    ],
)
def test_how_a_method_ends_is_its_last_word(run, streams, method, state, words):
    code = train(run.path, method)
    (ended,) = events_of(run, Ended)
    assert (ended.state, code) == (state, 1 if state == "failed" else 0)
    assert words in ended.message
    status = run.state()
    assert (status.state, status.detail) == (state, ended.message)


@pytest.mark.parametrize(
    ("method", "total", "stop", "words"),
    [
        ("sft", 1, 0, "Finished after 1 step"),
        ("ppo", 1, 0, "Finished after 1 rollout"),
        ("ppo", 12, 0, "Finished after 12 rollouts"),
        ("ppo", 12, 3, "Cancelled after rollout 2; there is no checkpoint yet"),
    ],
)
def test_the_last_word_of_ppo_counts_rollouts(tmp_path, streams, method, total, stop, words):
    run = make_run(tmp_path / "runs", method)
    before = at(stop, Cancel()) if stop else nothing
    train(run.path, lambda session: Walk(session, total, before).go())
    (ended,) = events_of(run, Ended)
    assert ended.message == words


def test_a_run_that_is_being_worked_on_is_not_taken_up_twice(run, streams):
    inside = []
    assert train(run.path, lambda _: inside.append(train(run.path, nothing))) == 0
    assert inside == [1]


def test_what_libraries_print_goes_to_the_log(run, streams):
    def chatter(_):
        os.write(1, b"from Python\n")
        os.system("echo from a child")
        os.write(2, b"from C\n")

    train(run.path, chatter)
    log = run.log_tail()
    assert all(words in log for words in ("from Python", "from a child", "from C"))


def test_the_environment_is_set_before_torch_loads():
    code = """
        import sys
        from engine.__main__ import prepare_environment
        prepare_environment()
        assert "torch" not in sys.modules
        import os
        assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE" and os.environ["HF_HUB_OFFLINE"] == "1"
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false" and int(os.environ["OMP_NUM_THREADS"]) >= 1
        import engine.job, engine.control, engine.events, engine.checkpoints
        assert "torch" not in sys.modules, "the socket must answer before torch has loaded"
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "HF_", "TOKENIZERS"))}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=clean, check=True)


def test_misuse_of_the_entry_point_is_code_2():
    for arguments in ([], ["--help"], ["a", "b", "c"]):
        done = subprocess.run([sys.executable, "-m", "engine", *arguments], capture_output=True, check=False)
        assert done.returncode == 2
        assert b"usage" in done.stderr


def test_the_process_ends_quickly_and_the_lock_is_free(run):
    done = subprocess.run(
        [sys.executable, "-m", "engine", str(run.path)], capture_output=True, check=False, timeout=120
    )
    assert done.returncode == 1  # there is no such base model
    status = run.state()
    assert status.state == "failed"
    assert not run.alive()
