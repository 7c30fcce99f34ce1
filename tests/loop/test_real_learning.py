"""The demo model really learns: SFT, a reward model, exact resume. `pytest -s` shows the figures."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench import supervisor
from workbench.formats.reader import parse
from workbench.ids import new_id
from workbench.project import Project
from workbench.protocol import (
    Checkpoint,
    Metrics,
    RunSpec,
    Started,
)
from workbench.recipes import RewardRecipe, SftRecipe
from workbench.records import Message, ModelRecord
from workbench.rows import PairRow
from workbench.run_folder import RunFolder
from workbench.statistics import wilson
from workbench.training import plan_run, start_run

pytestmark = [pytest.mark.demo_model, pytest.mark.timeout(1800)]
Train = Callable[..., tuple[Any, dict[str, list[float]]]]
Follow = Callable[[RunFolder], dict[str, list[float]]]


def test_sft_lowers_the_held_out_loss_on_the_sample_demonstrations(base: ModelRecord, train: Train) -> None:
    recipe = SftRecipe(
        quantisation="bf16", max_steps=12, batch=6, micro_batch=6, max_length=256, eval_every=0, learning_rate=3e-4
    )
    _, history = train("sft", base, recipe)
    losses = history["eval_loss"]
    print(f"SFT: held-out loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    assert losses[-1] < losses[0] - 0.15


def words(text: str, count: int = 12) -> str:
    """The beginning of a text: enough to tell good from bad, and minutes instead of half an hour on two cores."""
    return " ".join(text.split()[:count])


def first_words(prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    return (Message("user", words(prompt[-1].content)),)


@pytest.mark.shared_data
def test_a_reward_model_of_200_real_pairs_is_scored_on_the_100_others(
    project: Project, base: ModelRecord, follow: Follow, shared_file: Callable[[str], Path]
) -> None:
    pairs = [
        PairRow(str(row.line), str(row.line), "", "", first_words(row.prompt), words(row.chosen), words(row.rejected))
        for row in parse(shared_file("dpo_en_demo.json")).rows
    ]
    recipe = RewardRecipe(quantisation="bf16", batch=8, micro_batch=8, max_length=384, eval_every=0, save_every=0)
    spec = RunSpec(
        run_id=new_id(), method="reward", name="r", recipe=dataclasses.asdict(recipe), model=project.resolve(base)
    )
    folder = RunFolder.create(project.runs_dir, spec, pairs[:200], pairs[200:])
    supervisor.launch(folder.path)
    history = follow(folder)
    accuracy = history["eval_accuracy"][-1]
    low, high = wilson(accuracy * 100, 100)
    print(f"Reward model: accuracy {accuracy:.3f} on held-out pairs (95 % {low:.3f} to {high:.3f})")
    assert (history["eval_accuracy_low"][-1], history["eval_accuracy_high"][-1]) == pytest.approx((low, high), abs=0.02)
    assert history["eval_loss"][-1] < history["eval_loss"][0]


def test_after_kill_9_nothing_before_the_last_checkpoint_is_lost_and_resume_finishes(
    project: Project, base: ModelRecord, follow: Follow
) -> None:
    recipe = SftRecipe(
        quantisation="bf16", max_steps=8, batch=4, micro_batch=4, max_length=128, eval_every=0, save_every=2
    )
    plan = plan_run(project, "sft", start_model_id=base.id, recipe=recipe)
    run = start_run(project, plan)
    folder = RunFolder(project.run_dir(run.id))
    until = time.monotonic() + 600
    while not any(isinstance(one, Checkpoint) and one.step >= 4 for one in folder.events()):
        assert time.monotonic() < until, folder.log_tail()
        time.sleep(0.02)
    os.kill(engine_pid(folder), signal.SIGKILL)
    while folder.state().state in ("running", "queued"):
        assert time.monotonic() < until
        time.sleep(0.02)
    status = folder.state()
    assert status.state == "interrupted"
    assert "9" in status.detail + status.cause
    assert status.resumable
    before = {
        one.step: one.values["loss"] for one in folder.events() if isinstance(one, Metrics) and "loss" in one.values
    }
    supervisor.resume(folder.path)
    history = follow(folder)
    assert len(history["loss"]) == 8
    assert [history["loss"][step - 1] for step in sorted(before)] == pytest.approx(
        [before[step] for step in sorted(before)], rel=1e-4
    )


def engine_pid(folder: RunFolder) -> int:
    return [one.pid for one in folder.events() if isinstance(one, Started)][-1]
