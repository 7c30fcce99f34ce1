"""Settings of PPO and of the reward model that other learning tests leave alone: a tiny model learns with each."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.advantages import adapted_kl_coefficient
from tests.engine.rows import LEARNS, LEARNT, pair_rows, prompts
from workbench.judgement import Judgement


@pytest.mark.parametrize(
    "changes",
    [
        {"kl_estimator": "k3"},
        {"score_position": "after"},
        {"whiten_rewards": True},
        {"kl_target": 2.0, "kl_horizon": 100},
        {"mini_batches": 3, "ppo_epochs": 2},
    ],
    ids=["k3", "after", "whitened", "adaptive", "mini-batches"],
)
def test_a_rule_is_learnt(runs: Any, metric: Any, changes: dict[str, Any]) -> None:
    folder = runs.create("ppo", prompts(12), **LEARNT | changes)
    runs.run(folder)
    scores = [value for _, value in metric(folder, "objective/scores")]
    assert sum(scores[:3]) / 3 < 0.35
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.35
    kl, penalties, coefficients = (
        [value for _, value in metric(folder, key)]
        for key in ("objective/kl", "objective/non_score_reward", "ppo/kl_coefficient")
    )
    samples = [one for one in folder.samples() if one.step > 1]
    if changes.get("kl_estimator") == "k3":  # exp(-k1) - 1 + k1 is never a gain, whatever the token
        assert all(one <= 0 for one in penalties)
        assert penalties != pytest.approx([-0.02 * one for one in kl], rel=1e-3)
    elif (
        changes.get("score_position") == "after"
    ):  # paid behind the last token, shown on it: the whole score and the KL
        assert all(sum(one.token_rewards) == pytest.approx(one.score - 0.02 * one.kl, abs=1e-3) for one in samples)
    elif changes.get("whiten_rewards"):  # a variance of 1 over all tokens of a rollout, in every rollout
        last = torch.tensor([paid for one in samples if one.step == 16 for paid in one.token_rewards])
        assert float(last.var()) == pytest.approx(1, abs=1e-3)
    elif "kl_target" in changes:  # raised while the KL is above its target, lowered below it, by Ziegler's formula
        pairs = zip(coefficients, kl, coefficients[1:], strict=False)
        assert all(after == pytest.approx(adapted_kl_coefficient(one, now, 2.0, 100, 24)) for one, now, after in pairs)
        assert any(one > 2 for one in kl)
        assert min(coefficients) < 0.02 < max(coefficients)


@pytest.mark.parametrize("margin", [0.0, 1.0])
def test_a_margin_by_tier_distance_parts_scores_as_far_as_it_asks(runs: Any, margin: float) -> None:
    # With a share of 0.1 taken to be wrong the loss is least where 0.9 sigmoid(m - g) = 0.1 sigmoid(m + g):
    # at a gap of log 9 = 2.20 without a margin, and of some log 9 + m with one: 3.10 one tier apart, 4.08 two.
    settings = LEARNS | {"batch": 12, "max_steps": 60, "label_smoothing": 0.1, "center_coefficient": 0.0}
    folder = runs.create("reward", pair_rows(), pair_rows(8), margin_per_tier=margin, **settings)
    runs.run(folder)
    judged = Judgement.read(folder.path / "final")
    assert judged is not None
    gaps = [[one.gap for one in judged.pairs if one.tier_distance == tiers] for tiers in (1, 2)]
    one_tier, two_tiers = (sum(one) / len(one) for one in gaps)
    assert (one_tier, two_tiers) == pytest.approx((3.10, 4.08) if margin else (2.20, 2.20), abs=0.4)
