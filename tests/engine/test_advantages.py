"""Rewards, GAE and whitening: TRL's and torchtune's golden numbers, cases by hand, and that padding changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.advantages import (
    Advantages,
    adapted_kl_coefficient,
    explained_variance,
    gae,
    group_advantages,
    group_spread,
    grpo,
    kl_per_token,
    masked_mean,
    masked_variance,
    masked_whiten,
    response_mask,
    rloo,
    rollout_advantages,
    score_index,
    token_rewards,
)

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "ppo_tensors.json").read_text())
LENGTHS = torch.tensor([one + 1 for one in GOLDEN["shape"]["last_token_index"]])


def golden(*path: str) -> Tensor:
    found = GOLDEN
    for one in path:
        found = found[one]
    return torch.tensor(found, dtype=torch.float64)


def ours(*, gamma: float = 1.0, lam: float = 0.95, estimator: str = "k1", **more: Any) -> Advantages:
    kl = kl_per_token(golden("inputs", "logprobs"), golden("inputs", "ref_logprobs"), estimator)
    return rollout_advantages(
        kl=kl,
        scores=golden("shape", "scores_after_eos_penalty"),
        values=golden("inputs", "values"),
        lengths=LENGTHS,
        kl_coefficient=0.05,
        gamma=gamma,
        lam=lam,
        **more,
    )


CASES: list[tuple[str, dict[str, Any]]] = [
    ("trl", {"position": "after"}),
    ("trl_gamma_0.99_lam_0.9", {"position": "after", "gamma": 0.99, "lam": 0.9}),
    ("trl_k3", {"position": "after", "estimator": "k3"}),
    ("trl_whiten_rewards", {"position": "after", "whiten_rewards": True}),
    ("score_on_eos", {"position": "last"}),
]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_one_rollout_equals_the_golden_numbers(name: str, settings: dict[str, Any]) -> None:
    found = ours(**settings)
    keep = found.value_mask
    assert torch.allclose(found.rewards[keep], golden(name, "rewards")[keep], atol=1e-6)
    assert torch.allclose(found.returns[keep], golden(name, "returns")[keep], atol=1e-6)
    assert torch.allclose(found.advantages, golden(name, "advantages_whitened"), atol=1e-6)


def test_masks_are_the_golden_ones_turned_round() -> None:
    found = ours(position="after")
    assert torch.equal(found.mask, ~torch.tensor(GOLDEN["shape"]["padding_mask"]))
    assert torch.equal(found.value_mask, ~torch.tensor(GOLDEN["shape"]["padding_mask_p1"]))
    assert torch.equal(ours(position="last").value_mask, found.mask)


def test_kl_estimators_equal_the_golden_numbers() -> None:
    keep = response_mask(LENGTHS, 9)
    for estimator in ("k1", "k3"):
        kl = kl_per_token(golden("inputs", "logprobs"), golden("inputs", "ref_logprobs"), estimator)
        assert torch.allclose(torch.where(keep, kl, 0), golden("kl", estimator), atol=1e-6)
    with pytest.raises(ValueError, match="k7"):
        kl_per_token(torch.zeros(1, 1), torch.zeros(1, 1), "k7")
    with pytest.raises(ValueError, match="shapes"):
        kl_per_token(torch.zeros(1, 2), torch.zeros(2, 1))


def test_whitening_equals_the_golden_numbers() -> None:
    values = golden("masked_whitening", "values")
    keep = torch.tensor(GOLDEN["masked_whitening"]["mask_keep"])
    assert masked_mean(values, keep).item() == pytest.approx(GOLDEN["masked_whitening"]["masked_mean"], abs=1e-6)
    assert masked_variance(values, keep).item() == pytest.approx(
        GOLDEN["masked_whitening"]["masked_var_unbiased"], abs=1e-6
    )
    assert torch.allclose(masked_whiten(values, keep)[keep], golden("masked_whitening", "whitened")[keep], atol=1e-6)
    kept_mean = masked_whiten(values, keep, shift_mean=False)
    assert torch.allclose(kept_mean[keep], golden("masked_whitening", "whitened_shift_mean_false")[keep], atol=1e-6)


def test_whitening_one_value_or_none_is_finite() -> None:
    values = torch.tensor([[3.0, 4.0]])
    assert masked_whiten(values, torch.tensor([[True, False]])).tolist() == [[0.0, 0.0]]
    assert masked_whiten(values, torch.zeros(1, 2, dtype=torch.bool)).tolist() == [[0.0, 0.0]]


def test_gae_by_hand() -> None:
    # delta = [1 + 0.5*3 - 2, 2 + 0 - 3] = [0.5, -1];  A1 = -1;  A0 = 0.5 + 0.5*0.8*(-1) = 0.1;  return = A + V
    advantages, returns = gae(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 3.0]]), gamma=0.5, lam=0.8)
    assert advantages[0].tolist() == pytest.approx([0.1, -1.0])
    assert returns[0].tolist() == pytest.approx([2.1, 2.0])


THREE_AND_TWO = torch.tensor([7, 3, 7, 3, 7])  # which prompt each of five responses answers


def test_rloo_by_hand() -> None:
    # prompt 7 has rewards 1, 2, 3: 1 - (2 + 3)/2, 2 - (1 + 3)/2, 3 - (1 + 2)/2;  prompt 3 has 5, 9: 5 - 9, 9 - 5
    found = rloo(torch.tensor([1.0, 5.0, 2.0, 9.0, 3.0]), THREE_AND_TWO)
    assert found.tolist() == [-1.5, -4.0, 0.0, 4.0, 1.5]


def test_grpo_by_hand() -> None:
    # 1, 2, 3: mean 2, std 1;  5, 9: mean 7, std sqrt((4 + 4)/1) = 2.8284, +-2 / 2.8285
    scores = torch.tensor([1.0, 5.0, 2.0, 9.0, 3.0], dtype=torch.float64)
    assert group_spread(scores, THREE_AND_TWO).tolist() == pytest.approx([8**0.5, 1.0])
    two = 2 / (8**0.5 + 1e-4)
    assert grpo(scores, THREE_AND_TWO).tolist() == pytest.approx([-1 / 1.0001, -two, 0.0, two, 1 / 1.0001])


def test_a_group_of_equal_scores_teaches_nothing_and_a_group_of_one_is_refused() -> None:
    same = torch.full((4,), 0.3)
    groups = torch.tensor([0, 0, 1, 1])
    assert rloo(same, groups).tolist() == [0.0] * 4
    assert grpo(same, groups).tolist() == [0.0] * 4
    for advantage in (rloo, grpo):
        with pytest.raises(ValueError, match="group has one"):
            advantage(same, torch.tensor([0, 0, 0, 1]))


@given(st.lists(st.floats(-10, 10), min_size=4, max_size=4), st.floats(-5, 5))
def test_what_all_responses_of_a_group_share_is_no_advantage(rewards: list[float], shift: float) -> None:
    values, groups = torch.tensor(rewards, dtype=torch.float64), torch.zeros(4, dtype=torch.long)
    found = rloo(values, groups)
    assert found.sum().item() == pytest.approx(0, abs=1e-9)
    assert torch.allclose(found, (values - values.mean()) * 4 / 3)  # K / (K - 1) times the deviation
    assert torch.allclose(rloo(values + shift, groups), found)


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_every_token_of_a_response_has_the_responses_advantage(method: str) -> None:
    # 2 and 1 tokens; beyond them anything may stand.  KL sums 0.5 and -1.0, at 0.1: rewards 1 - 0.05 and 3 + 0.1
    kl = torch.tensor([[0.2, 0.3, torch.inf], [-1.0, torch.nan, 9.0]], dtype=torch.float64)
    scores = torch.tensor([1.0, 3.0], dtype=torch.float64)
    found = group_advantages(
        method,
        kl=kl,
        scores=scores,
        lengths=torch.tensor([2, 1]),
        groups=torch.tensor([0, 0]),
        kl_coefficient=0.1,
    )
    high = 3.1 - 0.95 if method == "rloo" else 1 / (2**0.5 + 1e-4)  # grpo's KL is in the loss
    assert found.advantages.flatten().tolist() == pytest.approx([-high, -high, 0, high, 0, 0])
    paid = [-0.02, 0.97, 0, 3.1, 0, 0] if method == "rloo" else [0, 1, 0, 3, 0, 0]
    assert found.rewards.flatten().tolist() == pytest.approx(paid)
    assert not found.value_mask.any()
    with pytest.raises(ValueError, match="gae"):
        group_advantages("gae", kl=kl, scores=scores, lengths=scores, groups=scores, kl_coefficient=0.1)


def test_with_lambda_and_gamma_1_a_return_is_the_sum_of_what_is_still_paid() -> None:
    rewards = torch.tensor([[0.1, -0.2, 1.0]])
    _, returns = gae(rewards, torch.tensor([[5.0, -3.0, 2.0]]), gamma=1.0, lam=1.0)
    assert returns[0].tolist() == pytest.approx([0.9, 0.8, 1.0])


def test_the_score_is_paid_on_the_last_token_or_one_later_where_there_is_room() -> None:
    kl, lengths = torch.zeros(2, 3), torch.tensor([2, 3])
    scores = torch.tensor([7.0, 9.0])
    assert token_rewards(kl, scores, lengths, 0.1, "last").tolist() == [[0, 7, 0], [0, 0, 9]]
    assert token_rewards(kl, scores, lengths, 0.1, "after").tolist() == [[0, 0, 7], [0, 0, 9]]
    with pytest.raises(ValueError, match="position"):
        score_index(lengths, 3, "first")


def test_kl_is_paid_for_with_its_sign() -> None:
    rewards = token_rewards(torch.tensor([[2.0, -1.0, 9.0]]), torch.tensor([0.0]), torch.tensor([2]), 0.5, "last")
    assert rewards.tolist() == [[-1.0, 0.5, 0.0]]


def test_adaptive_kl_moves_at_most_a_fifth_of_n_over_horizon() -> None:
    # e = clip(12/6 - 1, +-0.2) = 0.2;  0.1 * (1 + 0.2 * 100/10000) = 0.1002
    assert adapted_kl_coefficient(0.1, 12.0, 6.0, 10_000, 100) == pytest.approx(0.1002)
    assert adapted_kl_coefficient(0.1, 6.3, 6.0, 10_000, 100) == pytest.approx(0.1 * (1 + 0.05 * 0.01))
    assert adapted_kl_coefficient(0.1, -5.0, 6.0, 10_000, 100) == pytest.approx(0.0998)


def test_explained_variance_is_1_for_a_perfect_value_and_0_for_a_constant_one() -> None:
    returns = torch.tensor([[1.0, 2.0, 4.0, 99.0]])
    mask = torch.tensor([[True, True, True, False]])
    assert explained_variance(returns, returns, mask) == pytest.approx(1.0)
    assert explained_variance(returns, torch.full_like(returns, 7.0), mask) == pytest.approx(0.0, abs=1e-6)
    assert explained_variance(torch.ones(1, 4), returns, mask) == 0.0


@st.composite
def rollouts(draw: st.DrawFn) -> dict[str, Tensor]:
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    numbers = st.floats(-3, 3, width=32)

    def table() -> Tensor:
        return torch.tensor(
            draw(st.lists(st.lists(numbers, min_size=width, max_size=width), min_size=rows, max_size=rows)),
            dtype=torch.float64,
        )

    lengths = draw(st.lists(st.integers(1, width), min_size=rows, max_size=rows))
    return {
        "kl": table(),
        "values": table(),
        "scores": torch.tensor(draw(st.lists(numbers, min_size=rows, max_size=rows)), dtype=torch.float64),
        "lengths": torch.tensor(lengths),
    }


@settings(max_examples=60, deadline=None)
@given(rollouts(), st.sampled_from(["last", "after"]), st.booleans(), st.floats(-50, 50))
def test_what_lies_in_the_padding_never_changes_anything(
    batch: dict[str, Tensor], position: str, whiten: bool, junk: float
) -> None:
    more: dict[str, Any] = {
        "kl_coefficient": 0.1,
        "gamma": 0.98,
        "lam": 0.9,
        "position": position,
        "whiten_rewards": whiten,
    }
    plain = rollout_advantages(**batch, **more)
    dirty = dict(batch)
    dirty["kl"] = torch.where(plain.mask, batch["kl"], junk)
    dirty["values"] = torch.where(plain.value_mask, batch["values"], junk)
    for one, other in zip(plain, rollout_advantages(**dirty, **more), strict=True):
        assert torch.equal(one, other)


@settings(max_examples=60, deadline=None)
@given(rollouts(), st.integers(1, 5), st.booleans())
def test_more_padding_never_changes_anything(batch: dict[str, Tensor], columns: int, whiten: bool) -> None:
    more: dict[str, Any] = {"kl_coefficient": 0.1, "gamma": 0.98, "lam": 0.9, "whiten_rewards": whiten}
    plain = rollout_advantages(**batch, **more)
    wide = dict(batch)
    for name in ("kl", "values"):
        wide[name] = torch.nn.functional.pad(batch[name], (0, columns), value=4.0)
    padded = rollout_advantages(**wide, **more)
    width = batch["kl"].shape[1]
    for one, other in zip(plain, padded, strict=True):
        assert torch.allclose(one.double(), other[:, :width].double(), atol=1e-12)
        assert not other[:, width:].any()
