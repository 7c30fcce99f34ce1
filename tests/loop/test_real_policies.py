"""The demo model's policy really learns a known rule by PPO and by DPO. `pytest -s` shows the figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from workbench import supervisor
from workbench.ids import new_id
from workbench.project import Project
from workbench.protocol import RunSpec
from workbench.recipes import DpoRecipe, PpoRecipe
from workbench.records import ModelRecord
from workbench.rows import PairRow
from workbench.run_folder import RunFolder

pytestmark = [pytest.mark.demo_model, pytest.mark.timeout(1800)]
Train = Callable[..., tuple[Any, dict[str, list[float]]]]
Follow = Callable[[RunFolder], dict[str, list[float]]]
RULE = "shorter-than:40"


def test_ppo_raises_the_score_of_a_known_rule_under_its_kl_target(base: ModelRecord, train: Train) -> None:
    recipe = PpoRecipe(
        quantisation="bf16",
        rule=RULE,
        episodes=64,
        schedule="constant",
        batch=16,
        micro_batch=8,
        mini_batches=2,
        ppo_epochs=2,
        response_length=48,
        max_length=256,
        learning_rate=4e-4,
        value_learning_rate=5e-4,
        kl_coefficient=0.05,
        kl_target=6,
        eval_every=0,
        save_every=0,
    )
    _, history = train("ppo", base, recipe)
    scores, kl = history["objective/scores"], history["objective/kl"]
    first, last = scores[0], sum(scores[-2:]) / 2
    print(f"PPO on {RULE}: score {first:.2f} -> {last:.2f}, KL at the end {kl[-1]:.2f} nats a response")
    assert all(abs(one - 1) < 1e-3 for one in history["ppo/ratio_first"])
    assert last > first + 0.2
    assert max(kl) < recipe.kl_target


def test_dpo_on_pairs_made_by_the_same_rule_prefers_what_the_rule_prefers(
    project: Project, base: ModelRecord, follow: Follow
) -> None:
    """Chosen: the beginning of a demonstration, ended; rejected: the same, going on about other things."""
    shown = project.store.demonstrations(status="final")
    asked = project.store.prompts_by_id([one.prompt_id for one in shown])
    pairs = []
    for number, one in enumerate(shown):
        short = one.text.split(". ")[0][:120].rstrip(".") + "."
        going_on = " ".join(other.text for other in (shown[number - 1], shown[number - 2]))
        longer = f"{short} {going_on[:300]}"
        pairs.append(PairRow(one.id, one.prompt_id, "", "", asked[one.prompt_id].messages, short, longer))
    held = {one.id for one in asked.values() if one.split == "held-out"}
    recipe = DpoRecipe(
        quantisation="bf16", max_steps=6, batch=6, micro_batch=6, max_length=160, learning_rate=4e-4, eval_every=0
    )
    spec = RunSpec(
        run_id=new_id(), method="dpo", name="rule", recipe=dataclasses.asdict(recipe), model=project.resolve(base)
    )
    training = [one for one in pairs if one.group not in held]
    folder = RunFolder.create(project.runs_dir, spec, training[:36], [one for one in pairs if one.group in held][:12])
    supervisor.launch(folder.path)
    history = follow(folder)
    assert history["loss"][0] == pytest.approx(0.6931, abs=1e-3)
    margins = history["eval_rewards/margins"]
    accuracies = history["eval_rewards/accuracies"]
    print(f"DPO on {RULE}: held-out margin {margins[0]:.2f} -> {margins[-1]:.2f}, accuracy {accuracies[-1]:.2f}")
    assert margins[-1] > 0.5
    assert accuracies[-1] > 0.8
