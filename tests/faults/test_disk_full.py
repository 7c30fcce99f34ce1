"""A disk that is really full: a small file system, or a limit on the size of files. Real tensors, real torch."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import textwrap

import pytest

from engine.session import Session
from workbench.ids import new_id
from workbench.protocol import ModelRef, Paused, RunSpec, Sample, Warned
from workbench.recipes import SftRecipe
from workbench.run_folder import RunFolder, join_segments


def make_run(where, **settings):
    spec = RunSpec(
        run_id=new_id(),
        method="sft",
        name="a run",
        recipe=dataclasses.asdict(SftRecipe(device="cpu", **{"save_every": 0} | settings)),
        model=ModelRef(model_id="m", name="m", base="/models/base"),
    )
    where.mkdir()
    return RunFolder.create(where, spec, [], [])


def events_of(run, kind):
    return [one for one in run.events() if isinstance(one, kind)]


def losses(run):
    return [(one.step, one.values["loss"]) for one in join_segments(run.events())]


CHILD = """
    import resource, signal, sys, threading, time
    from pathlib import Path
    import torch
    from engine.checkpoints import save_state, save_tensors
    from engine.job import train
    from workbench.protocol import Resume, Stop

    limit = int(sys.argv[2])
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def method(session):
        size = 100
        def save(folder):
            save_tensors(folder / "adapter_model.safetensors", {"w": torch.zeros(size)})
            save_state(folder / "state_training.pt", {"adam": torch.zeros(size)})
        for step in range(1, 7):
            size = int(sys.argv[3]) if step == 4 else 100
            if step == 4:
                threading.Timer(1.0, lambda: session.control.obey(Stop(save=False))).start()
            session.metrics(step, {"loss": 1.0})
            session.at_step_end(step, 6, save)
        session.finish(save)

    sys.exit(train(Path(sys.argv[1]), method))
"""


def run_child(run, limit, size):
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(run.path), str(limit), str(size)]
    return subprocess.run(command, env=environment, timeout=120, check=False).returncode


def check_paused_at_4(run, code):
    status = run.state()
    assert (code, status.state, status.step) == (0, "stopped", 4), run.log_tail()
    (warning,) = [one for one in events_of(run, Warned) if one.code == "disk-full"]
    assert "bytes" in warning.message
    assert [one.name for one in run.checkpoints()] == ["2"]
    assert [one.step for one in events_of(run, Paused)] == [4]
    assert not list((run.path / "checkpoints").glob(".tmp-*"))


def test_the_limit_on_file_size_at_a_checkpoint_is_a_full_disk(tmp_path):
    run = make_run(tmp_path / "runs", save_every=2)
    code = run_child(run, 2_000_000, 1_000_000)
    check_paused_at_4(run, code)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of three megabytes."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs rights that this user lacks")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_really_full_disk_at_a_checkpoint_keeps_the_old_one(small_disk):
    run = make_run(small_disk / "runs", save_every=2)
    code = run_child(run, 0, 1_000_000)
    check_paused_at_4(run, code)


def test_events_wait_in_memory_while_the_disk_is_full_and_none_is_lost(small_disk):
    run = make_run(small_disk / "runs")
    session = Session(run.path)
    session.metrics(1, {"loss": 1.0})
    with (small_disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(4096))
    for step in range(2, 400):
        session.metrics(step, {"loss": 1.0})
    assert len(losses(run)) < 399
    assert all(line.endswith(b"}") for line in (run.path / "events.jsonl").read_bytes().splitlines())
    session.write_samples(5, [Sample(step=5, prompt_id="p", prompt="Q", response="long " * 10_000)])
    (small_disk / "ballast").unlink()
    session.metrics(400, {"loss": 1.0})
    assert [step for step, _ in losses(run)] == list(range(1, 401))
    seqs = [one.seq for one in run.events()]
    assert seqs == list(range(len(seqs)))
    assert [one.code for one in events_of(run, Warned)] == ["disk-full"]  # the samples
    session.close()
