"""What memory decided in a run is kept in its checkpoints: a resumed run is the uninterrupted one, bit for bit."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import dpo, kto, reward, sft
from engine.adapters import Adapters
from engine.ppo_models import Players
from engine.session import Session
from tests.engine.rows import ranked_rows, rows_of
from workbench.protocol import Metrics, Noted, Warned
from workbench.run_folder import RunFolder, join_segments

SETTINGS = {"batch": 4, "micro_batch": 4, "epochs": 3.0, "learning_rate": 5e-3, "save_every": 2}
PPO = {"rule": "contains:a", "episodes": 24, "ppo_epochs": 2, "response_length": 8, "temperature": 1.0}
OWNERS: dict[str, tuple[Any, str]] = {
    "sft": (sft, "loss_sum"),
    "reward": (reward, "pair_scores"),
    "dpo": (dpo, "completion_logps"),
    "kto": (kto, "completion_logps"),
    "ppo": (Players, "values"),
}


class Killed(BaseException):
    """The process ends at once."""


def run_out_once(patch: pytest.MonkeyPatch, owner: Any, name: str, number: int, *, training: bool) -> None:
    """Let memory run out in the ``number``-th call with (or without) gradients."""
    real, calls = getattr(owner, name), itertools.count(1)

    def short(*given: Any) -> Any:
        if torch.is_grad_enabled() == training and next(calls) == number:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*given)

    patch.setattr(owner, name, short)


def run(folder: RunFolder, *, killed_after: int = 0) -> None:
    session = Session(folder.path)
    at_step_end = session.at_step_end

    def dying(step: int, total: int, save: Callable[[Path], None]) -> None:
        at_step_end(step, total, save)
        if step == killed_after:
            raise Killed

    session.at_step_end = dying  # type: ignore[method-assign]
    method = importlib.import_module(f"engine.{folder.spec().method}")
    if killed_after:
        with pytest.raises(Killed):
            method.run(session)
    else:
        method.run(session)


def history(folder: RunFolder) -> list[tuple[int, dict[str, float]]]:
    return [
        (one.step, {key: value for key, value in one.values.items() if not key.startswith("perf/")})
        for one in join_segments(folder.events())
        if isinstance(one, Metrics)
    ]


@pytest.mark.parametrize(("method", "several"), [*((method, False) for method in OWNERS), ("reward", True)])
def test_a_run_that_halved_its_micro_batch_and_was_killed_goes_on_with_the_half(
    runs: Any, monkeypatch: pytest.MonkeyPatch, method: str, several: bool
) -> None:
    """``several``: rankings of six, three and one pair, which weigh alike whatever is cut."""
    rows = ranked_rows(8) if several else rows_of(method, 8)
    settings = SETTINGS | (PPO if method == "ppo" else {})
    owner, name = OWNERS[method]
    whole, broken = (runs.create(method, rows, run_id=which, **settings) for which in ("whole", "broken"))
    for folder, killed_after in ((whole, 0), (broken, 3)):
        with monkeypatch.context() as patch:
            run_out_once(patch, owner, name, 1, training=True)  # 4 rows at once, and 2 from there on
            run(folder, killed_after=killed_after)
    run(broken)  # from step 2, with memory for 4 rows
    assert history(broken) == history(whole)
    one, other = ((folder.path / "final" / "adapter_model.safetensors").read_bytes() for folder in (whole, broken))
    assert one == other
    assert len([one for one in broken.events() if isinstance(one, Warned)]) == 1  # it did not run out again
    [said] = [one.message for one in broken.events() if isinstance(one, Noted) and one.code == "micro-batch"]
    phase = "rollout" if method == "ppo" else "update"
    assert said == f"Going on with 2 rows at once, as before: more ran out of memory in the {phase} phase"


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_reference_that_ran_out_of_memory_is_computed_wholly_in_the_policys_micro_batches(
    runs: Any, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """So that the first log-ratios are 0: their rounding cancels. It is read as such, too."""
    whole, broken = (runs.create(method, rows_of(method, 8), run_id=which, **SETTINGS) for which in ("whole", "broken"))
    for folder, killed_after in ((whole, 0), (broken, 1)):
        with monkeypatch.context() as patch:
            run_out_once(patch, *OWNERS[method], number=2, training=False)  # the first batch passed 4 at once
            run(folder, killed_after=killed_after)
    run(broken)  # from the beginning; the reference is there
    key = "rewards/chosen" if method == "dpo" else "rewards/desirable"
    assert history(whole)[0][1][key] == 0.0
    assert history(broken) == history(whole)


def held(folder: RunFolder) -> list[str]:
    return [one.message for one in folder.events() if isinstance(one, Noted) and one.code == "halves"]


@pytest.mark.parametrize(("before", "after"), [(2**40, 0), (0, 2**40)], ids=["all", "none"])
def test_a_resumed_run_holds_in_fp16_what_it_held_before_whatever_is_free_now(
    runs: Any, monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    monkeypatch.setattr("engine.base_model.compute_dtype", lambda _: torch.float32)
    folder = runs.create("ppo", rows_of("ppo", 8), **SETTINGS | PPO)
    monkeypatch.setattr("engine.adapters.free_bytes", lambda _: before)
    run(folder, killed_after=2)
    [said] = held(folder)
    assert said.startswith("All layers" if before else "No layer is held twice")
    monkeypatch.setattr("engine.adapters.free_bytes", lambda _: after)
    chosen = []
    real = Adapters.hold_halves
    monkeypatch.setattr(
        Adapters, "hold_halves", lambda self, **given: chosen.append(real(self, **given)) or self.base.halves
    )
    run(folder)
    assert chosen == ["all" if before else "none"]
    assert held(folder) == [said]  # and it is not said twice


def test_reference_values_of_layers_in_fp16_are_not_read_for_a_run_without(
    runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both multiply the same numbers, in another order."""
    folder = runs.create("dpo", rows_of("dpo", 4), **SETTINGS | {"save_every": 0})
    for halves in ("wide", "none"):
        monkeypatch.setattr(
            Adapters, "hold_halves", lambda self, halves=halves, **_: setattr(self.base, "halves", halves) or halves
        )
        run(folder, killed_after=1)
    assert len(list((folder.path / "cache").iterdir())) == 2
