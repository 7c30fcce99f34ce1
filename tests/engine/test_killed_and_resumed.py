"""The real engine process, with a real (tiny) model: killed with signal 9 in mid-run and resumed, bit for bit."""

import os
import signal
import time

import pytest
import torch

from workbench import reaper, supervisor
from workbench.protocol import Started
from workbench.records import Message
from workbench.rows import PairRow, PromptRow, SftRow
from workbench.run_folder import join_segments

pytestmark = pytest.mark.native_arithmetic  # the uninterrupted run is made here, the killed one in a process of its own


@pytest.fixture(autouse=True)
def own_runtime(tmp_path, monkeypatch):
    monkeypatch.setenv("TASTEMAKER_RUNTIME", str(tmp_path / "runtime"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the same in the processes as here
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def prompt(n):
    return (Message("user", f"Say {n}"),)


ROWS = {
    "sft": [SftRow(str(n), str(n), prompt(n), f"This is {n}." * (1 + n % 3)) for n in range(24)],
    "reward": [PairRow(f"{n}", str(n), f"r{n}", "me", prompt(n), f"Good {n}", "Bad") for n in range(24)],
    "dpo": [PairRow(f"{n}", str(n), f"r{n}", "me", prompt(n), f"Good {n}", "Bad") for n in range(24)],
    "ppo": [PromptRow(str(n), prompt(n)) for n in range(24)],
}
SETTINGS = {
    "sft": {"batch": 2, "micro_batch": 2, "epochs": 2.0, "eval_every": 5},
    "reward": {"batch": 2, "micro_batch": 2, "epochs": 2.0, "eval_every": 5},
    "dpo": {"batch": 2, "micro_batch": 2, "epochs": 2.0, "eval_every": 5},
    "ppo": {
        "rule": "shorter-than:6",
        "episodes": 96,
        "batch": 8,
        "micro_batch": 4,
        "ppo_epochs": 2,
        "response_length": 8,
        "eval_every": 5,
    },
}
CLOCKED = ("perf/",)


def wait(folder, wanted, timeout=240.0):
    deadline = time.monotonic() + timeout
    while not wanted(status := folder.state()):
        assert time.monotonic() < deadline, f"{status}\n{folder.log_tail(3000)}"
        time.sleep(0.005)
    return status


def history(folder):
    return [
        (one.step, {key: value for key, value in one.values.items() if not key.startswith(CLOCKED)})
        for one in join_segments(folder.events())
    ]


@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "ppo"])
def test_a_killed_run_resumes_as_if_nothing_had_happened(runs, method):
    rows = ROWS[method]
    settings = SETTINGS[method] | {"device": "cpu", "save_every": 3}
    whole = runs.create(method, rows[:20], rows[20:], run_id="whole", **settings)
    runs.run(whole)

    broken = runs.create(method, rows[:20], rows[20:], run_id="broken", **settings)
    supervisor.launch(broken.path)
    wait(broken, lambda status: status.step >= 5 or not status.alive)
    os.kill(reaper.read_note(broken.lock_path).pid, signal.SIGKILL)
    assert wait(broken, lambda status: not status.alive).state == "interrupted"
    supervisor.resume(broken.path)
    assert wait(broken, lambda status: not status.alive).state == "done", broken.log_tail()

    started = [one.resumed_from for one in broken.events() if isinstance(one, Started)]
    assert len(started) == 2
    assert started[1] >= 3
    assert history(broken) == history(whole)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (broken.final_dir() / name).read_bytes() == (whole.final_dir() / name).read_bytes()
