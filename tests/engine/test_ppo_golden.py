"""PPO's reports on five fixed responses, and what torchtune makes of them: golden numbers.

Rows: an EOS inside, at the end, missing, first, and twice. What TRL computes on the way is in test_advantages.py, the
losses of the whole in test_ppo_losses.py, a rollout of the demo model in test_ppo.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.advantages import Advantages, kl_per_token, masked_mean, masked_variance, rollout_advantages
from engine.kept_passes import KeptPasses
from engine.ppo import Rollout
from engine.ppo_losses import policy_loss, value_loss
from engine.ppo_models import Episode
from engine.ppo_report import rollout_metrics
from workbench.recipes import PpoRecipe

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "ppo_tensors.json").read_text())
LENGTHS = torch.tensor([one + 1 for one in GOLDEN["shape"]["last_token_index"]])
NEAR = GOLDEN["tolerance"]


def numbers(*path: str) -> Tensor:
    found = GOLDEN
    for one in path:
        found = found[one]
    return torch.tensor(found, dtype=torch.float64)


def targets(position: str) -> Advantages:
    return rollout_advantages(
        kl=kl_per_token(numbers("inputs", "logprobs"), numbers("inputs", "ref_logprobs")),
        scores=numbers("shape", "scores_after_eos_penalty"),
        values=numbers("inputs", "values"),
        lengths=LENGTHS,
        kl_coefficient=GOLDEN["hparams"]["kl_coef"],
        gamma=GOLDEN["hparams"]["gamma"],
        lam=GOLDEN["hparams"]["lam"],
        position=position,
    )


def test_what_a_rollout_reports_is_what_trl_reports() -> None:
    found = targets("after")
    episodes = [
        Episode(str(n), "", (1,), tuple(ids[: int(length)]), ended, "")
        for n, (ids, length, ended) in enumerate(
            zip(GOLDEN["inputs"]["responses"], LENGTHS, GOLDEN["shape"]["contains_eos"], strict=True)
        )
    ]
    batch = Rollout(
        episodes,
        [range(len(episodes))],
        LENGTHS,
        numbers("inputs", "logprobs"),
        numbers("inputs", "ref_logprobs"),
        numbers("inputs", "values"),
        numbers("shape", "scores_after_eos_penalty"),
        KeptPasses(),
    )
    report = rollout_metrics(batch, found, GOLDEN["hparams"]["kl_coef"], PpoRecipe(kl_estimator="k1"))
    for key, wanted in GOLDEN["metrics"].items():
        assert report[key] == pytest.approx(wanted, abs=NEAR), key
    assert report["val/num_eos_tokens"] == sum(GOLDEN["shape"]["contains_eos"]) == 4


def test_the_second_estimator_of_kl_is_the_golden_one() -> None:
    # k2 = (log pi - log ref)^2 / 2: what approx_kl sums between two policies
    keep = ~torch.tensor(GOLDEN["shape"]["padding_mask"])
    policy, reference = numbers("inputs", "logprobs"), numbers("inputs", "ref_logprobs")
    for row in range(len(policy)):
        at = slice(row, row + 1)
        found = policy_loss(policy[at], reference[at], torch.zeros_like(policy[at]), keep[at], 0.2).approx_kl
        assert found.item() == pytest.approx(sum(GOLDEN["kl"]["k2"][row]), abs=NEAR)
    k3 = torch.where(keep, kl_per_token(policy, reference, "k3"), 0)
    assert k3.sum(1).mean().item() == pytest.approx(GOLDEN["kl"]["k3_sum_mean"], abs=NEAR)


@pytest.mark.parametrize(("number", "rows"), [(0, slice(0, 3)), (1, slice(3, 5))])
def test_each_micro_batch_has_trls_losses_where_it_is_divided_by_its_own_tokens(number: int, rows: slice) -> None:
    found, wanted = targets("after"), GOLDEN["clipped_losses_micro_batches"][number]
    mask, value_mask = found.mask[rows], found.value_mask[rows]
    settings, tokens, positions = GOLDEN["hparams"], int(mask.sum()), int(value_mask.sum())
    policy = policy_loss(
        numbers("inputs", "new_logprobs")[rows],
        numbers("inputs", "logprobs")[rows],
        found.advantages[rows],
        mask,
        settings["cliprange"],
    )
    value = value_loss(
        numbers("inputs", "new_values")[rows],
        numbers("inputs", "values")[rows],
        found.returns[rows],
        value_mask,
        settings["cliprange_value"],
    )
    ours = {
        "loss/policy": policy.loss / tokens,
        "loss/value": value.loss / positions,
        "loss": policy.loss / tokens + settings["vf_coef"] * value.loss / positions,
        "policy/clipfrac": policy.clipped / tokens,
        "val/clipfrac": value.clipped / positions,
        "policy/approxkl_masked": policy.approx_kl / tokens,
        "val/ratio_masked": policy.ratio / tokens,
    }
    for key, one in ours.items():
        assert one.item() == pytest.approx(wanted[key], abs=NEAR), key


def torchtune_advantages(
    rewards: Tensor, values: Tensor, gamma: float, lam: float, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Torchtune's ``estimate_advantages``, whose ``whiten`` adds the mean back. Returns (advantages, returns)."""
    width = values.shape[1]
    backwards: list[Tensor] = []
    last = torch.zeros_like(values[:, 0])
    for t in reversed(range(width)):
        following = values[:, t + 1] if t < width - 1 else 0.0
        last = rewards[:, t] + gamma * following - values[:, t] + gamma * lam * last
        backwards.append(last)
    raw = torch.stack(backwards[::-1], 1)
    mean = masked_mean(raw, mask)
    white = (raw - mean) * torch.rsqrt(masked_variance(raw, mask) + 1e-8) + mean
    return torch.where(mask, white, 0), raw + values


def test_torchtune_has_our_returns_but_advantages_that_are_not_centred() -> None:
    found, check = targets("last"), GOLDEN["torchtune_check"]
    values = torch.where(found.value_mask, numbers("inputs", "values"), 0)
    advantages, returns = torchtune_advantages(found.rewards, values, 1.0, 0.95, found.mask)
    same_returns = torch.allclose(torch.where(found.mask, returns, 0), found.returns, atol=NEAR)
    same_advantages = torch.allclose(advantages, found.advantages, atol=NEAR)
    assert (same_returns, same_advantages) == (check["returns_agree"], check["advantages_agree"]) == (True, False)
    # ours have mean 0; theirs are ours and the mean that whitening should have taken away
    assert masked_mean(found.advantages, found.mask).item() == pytest.approx(0, abs=1e-9)
    raw_mean = masked_mean(returns - values, found.mask)
    assert abs(raw_mean.item()) > 1e-3
    torch.testing.assert_close(advantages, torch.where(found.mask, found.advantages + raw_mean, 0), atol=1e-9, rtol=0)
