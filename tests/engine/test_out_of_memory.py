"""Memory that runs out in any phase of any method: smaller bites, the same batch, and a notice that names the phase."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from engine import dpo, kto, logps, reward, sft
from engine.adapters import Adapters
from engine.ppo_models import Players
from engine.score import RewardStats
from engine.session import Session
from tests.engine.rows import rows_of
from workbench.judgement import Judgement
from workbench.protocol import Metrics, Warned
from workbench.records import METHODS, Message
from workbench.rows import ThumbRow

ROWS = {method: rows_of(method, 4) for method in METHODS}
PPO = {"rule": "contains:a", "episodes": 8, "ppo_epochs": 2, "response_length": 8, "temperature": 1.0}


def break_call(monkeypatch, owner, name, number, *, training):
    """Let memory run out in the ``number``-th call of a function with (or without) gradients, once."""
    real, calls = getattr(owner, name), []

    def short(*arguments, **more):
        if torch.is_grad_enabled() == training:
            calls.append(1)
            if len(calls) == number:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(*arguments, **more)

    monkeypatch.setattr(owner, name, short)
    return calls


@pytest.mark.parametrize(
    ("method", "owner", "name", "number", "training", "phase"),
    [
        ("sft", sft, "loss_sum", 3, True, "update"),
        ("reward", reward, "pair_scores", 3, True, "update"),
        ("dpo", dpo, "completion_logps", 1, False, "score"),  # the reference's log-probabilities
        ("dpo", dpo, "completion_logps", 3, True, "update"),
        ("kto", kto, "completion_logps", 1, False, "score"),
        ("kto", kto, "completion_logps", 5, False, "update"),  # the zero of the first step
        ("kto", kto, "completion_logps", 3, True, "update"),
        ("ppo", Players, "policy_logps", 3, False, "rollout"),
        ("ppo", Players, "scores", 1, True, "score"),
        ("ppo", Players, "values", 2, True, "rollout"),  # a pass that is kept for the first epoch
        ("ppo", Players, "values", 3, True, "update"),  # the second epoch's
    ],
)
def test_the_phase_is_named_the_batch_stays_and_the_losses_are_the_same(
    runs, monkeypatch, method, owner, name, number, training, phase
):
    settings = {"batch": 4, "micro_batch": 2, "epochs": 2.0} | (PPO if method == "ppo" else {})
    plain, tight = (runs.create(method, ROWS[method], run_id=which, **settings) for which in ("plain", "tight"))
    runs.run(plain)
    calls = break_call(monkeypatch, owner, name, number, training=training)
    runs.run(tight)
    assert len(calls) > number
    [said] = [one for one in tight.events() if isinstance(one, Warned)]
    assert said.code == "oom"
    kept = "the batch of 4 stays" if phase == "update" and training else "all 4 are measured"
    assert f"ran out in the {phase} phase with 2 rows at once; going on with 1, {kept}" in said.message
    key = "objective/scores" if method == "ppo" else "loss"
    before, after = ([one.values[key] for one in run.events() if isinstance(one, Metrics)] for run in (plain, tight))
    assert len(before) == 2
    assert after == pytest.approx(before, rel=1e-4)  # one step of 4 rows is one step of 4 rows


MEASURED = {
    "sft": ("eval_loss", "eval_mean_token_accuracy"),
    "reward": ("eval_loss", "eval_margin", "eval_accuracy", "eval_accuracy_low", "eval_ece"),
    "dpo": ("eval_loss", "eval_rewards/chosen", "eval_rewards/margins"),
    "kto": ("eval_loss", "eval_rewards/desirable", "eval_kl"),
}


def break_model(monkeypatch, most, where):
    """Let the model run out of memory as Linux does, for more than ``most`` sequences at once.

    In the phases whose name or words hold ``where``; "update": in everything since the first pass with gradients.
    """
    real, enter, broken = Adapters.flat, Session.phase, []

    def phase(session, *words):
        if where != "update":
            broken[:] = [1] * (where in " ".join(words))
        enter(session, *words)

    def short(adapters, layout, *places):
        if where == "update" and torch.is_grad_enabled():
            broken.append(1)
        if broken and len(layout.last) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes.")
        return real(adapters, layout, *places)

    monkeypatch.setattr(Session, "phase", phase)
    monkeypatch.setattr(Adapters, "flat", short)


@pytest.mark.parametrize(
    ("method", "where", "tried"),
    [
        *((method, where, (4, 2)) for method in ("sft", "reward", "dpo", "kto") for where in ("evaluating", "update")),
        ("reward", "calibrating", (8, 4)),  # responses, not pairs
        ("reward", "judging", (4, 2)),
    ],
)
def test_measurements_take_the_micro_batch_that_fitted_halve_it_themselves_and_say_the_same(
    runs, metric, monkeypatch, method, where, tried
):
    held = [dataclasses.replace(row, id=f"held-{row.id}") for row in ROWS[method]]
    shown = ROWS["sft"] if method == "reward" else ()
    settings = {"batch": 4, "micro_batch": 4, "epochs": 2.0, "learning_rate": 1e-6}
    plain, tight = (
        runs.create(method, ROWS[method], held, shown, run_id=run, **settings) for run in ("plain", "tight")
    )
    runs.run(plain)
    break_model(monkeypatch, 2 if method in {"reward", "dpo"} else 1, where)  # one pair, or one row
    runs.run(tight)
    said = [one for one in tight.events() if isinstance(one, Warned)]
    phase = "update" if where == "update" else "evaluating"
    assert [(one.code, one.message.split(";")[0]) for one in said] == [
        ("oom", f"Memory ran out in the {phase} phase with {rows} rows at once") for rows in tried
    ]
    for key in MEASURED[method]:
        assert [step for step, _ in metric(tight, key)] == [0, 2]
        values = [value for _, value in metric(plain, key)]
        assert [value for _, value in metric(tight, key)] == pytest.approx(values, rel=1e-3, abs=1e-5)
    if method == "reward":
        stats, same = (RewardStats.read(run.path / "final") for run in (plain, tight))
        assert (same.mean, same.std) == pytest.approx((stats.mean, stats.std), rel=1e-3)
        judged, rejudged = (Judgement.read(run.path / "final").pairs for run in (plain, tight))
        assert [one.gap for one in rejudged] == pytest.approx([one.gap for one in judged], abs=1e-3)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_held_out_rows_pass_in_the_micro_batches_that_fitted_the_reference(runs, monkeypatch, method):
    owner = {"dpo": dpo, "kto": kto}[method]
    break_call(monkeypatch, owner, "completion_logps", 1, training=False)
    passed = []
    real = owner.completion_logps

    def watched(adapters, name, rows):
        found = real(adapters, name, rows)
        passed.append(len(rows))
        return found

    monkeypatch.setattr(owner, "completion_logps", watched)
    held_out = [dataclasses.replace(row, id=f"held-{row.id}") for row in ROWS[method]]
    runs.run(runs.create(method, ROWS[method], held_out, batch=4, micro_batch=4, max_steps=1))
    assert max(passed) == 2  # 4 at once ran out of memory; 2 did not


def test_held_out_responses_are_measured_at_most_1024_tokens_at_once_on_a_cpu(runs, monkeypatch):
    tokens = []
    real = Adapters.flat
    monkeypatch.setattr(
        Adapters, "flat", lambda self, layout, *places: tokens.append(layout.tokens) or real(self, layout, *places)
    )
    long = [
        ThumbRow(f"d{n}", f"p{n}", f"r{n}", "me", (Message("user", f"{n} " + "q" * 120),), "x" * 60, n % 2 == 0)
        for n in range(12)
    ]
    runs.run(runs.create("kto", long[:8], long[8:] + long[:4], batch=8, micro_batch=8, max_steps=1))
    assert 512 < max(tokens) <= 1024


@pytest.mark.parametrize(
    ("method", "more"),
    [("sft", {}), ("dpo", {}), ("kto", {}), ("ppo", PPO), ("ppo", PPO | {"ptx_coefficient": 1.0})],
    ids=["sft", "dpo", "kto", "ppo", "ppo-ptx"],
)
def test_no_method_holds_the_logits_of_more_positions_than_the_recipe_allows(runs, monkeypatch, method, more):
    held = []
    real = logps._softmax_stats
    monkeypatch.setattr(logps, "_softmax_stats", lambda hidden, *rest: held.append(len(hidden)) or real(hidden, *rest))
    shown = ROWS["sft"] if "ptx_coefficient" in more else ()
    runs.run(runs.create(method, ROWS[method], (), shown, batch=4, micro_batch=4, max_steps=1, head_rows=3, **more))
    assert max(held) == 3


REAL = """
import json, resource, torch
from engine.memory import run_micro_batched

class Session:
    device, phase_name, said = torch.device("cpu"), "training", []
    def warn(self, code, message, remedy=""):
        self.said.append(message)

MIB, weight = 2**20, torch.ones(1, requires_grad=True)
def work(rows):
    (weight * torch.ones(len(rows) * 16 * MIB)).square().sum().backward()  # two tensors of 64 MiB a row, and more
def reset():
    weight.grad = None
work([0]), reset()
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 640 * MIB,) * 2)
_, fitted = run_micro_batched(Session(), range(8), 8, work, reset=reset)
print(json.dumps([fitted, weight.grad.item(), Session.said]))
"""


def test_memory_that_the_system_refuses_is_survived_too():
    """A process whose address space is limited for real, as ``ulimit -v`` does."""
    done = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, timeout=500, check=True)
    fitted, gradient, said = json.loads(done.stdout)
    assert fitted in (1, 2)
    # d/dw of sum (w x)^2 over 8 rows of 16 Mi ones is 2 w x^2 each; fp32 sums round
    assert gradient == pytest.approx(2 * 8 * 16 * 2**20, rel=1e-3)
    assert said[0].startswith("Memory ran out in the update phase with 8 rows at once; going on with 4")
