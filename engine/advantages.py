"""From scores and log-probabilities to PPO's rewards, advantages and returns: pure functions on ``[B, R]`` tensors.

B rows (responses), R response positions. Every ``*_mask`` is True where we keep; a response occupies positions
``0 .. length-1``, its EOS included. Sources: Ziegler et al. 2019; Schulman et al. 2016 (GAE); Schulman 2020 (KL
estimators); Huang et al. 2024 (N+); TRL 1.12's PPOTrainer, whose numbers are the golden cases of the tests; and for
advantages within the K responses to one prompt, without a value function, Ahmadian et al. 2024 (RLOO) and Shao et al.
2024 (GRPO).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

WHITEN_EPS = 1e-8
GROUP_EPS = 1e-4
"""Added to a group's standard deviation in GRPO, as in TRL: a group whose scores are equal has advantages of 0."""


class Advantages(NamedTuple):
    """What one rollout pays and what the update aims at. All ``[B, R]``; 0 outside their masks."""

    rewards: Tensor
    advantages: Tensor  # GAE: whitened over the whole rollout; RLOO and GRPO: one number for a whole response
    returns: Tensor  # GAE: advantages before whitening + values; 0 without a value function
    mask: Tensor  # bool: the response's tokens
    value_mask: Tensor  # bool: positions whose value is fitted


def response_mask(lengths: Tensor, width: int) -> Tensor:
    """Return ``[B, width]``, True on the first ``lengths[b]`` positions of each row."""
    return torch.arange(width, device=lengths.device)[None, :] < lengths[:, None]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over kept positions; 0 when none is kept."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """Variance over kept positions with Bessel's correction; 0 for fewer than two."""
    count = mask.sum()
    centred = torch.where(mask, values - masked_mean(values, mask), 0)
    return centred.square().sum() / (count - 1).clamp(min=1)


def masked_whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scale to unit variance over kept positions and, with ``shift_mean``, to mean 0. Positions outside get 0."""
    mean = masked_mean(values, mask)
    white = (values - mean) * torch.rsqrt(masked_variance(values, mask) + WHITEN_EPS)
    return torch.where(mask, white if shift_mean else white + mean, 0)


def kl_per_token(logps: Tensor, ref_logps: Tensor, estimator: str = "k1") -> Tensor:
    """Estimate KL(policy || reference) at each sampled token, in nats, from log-probabilities ``[B, R]``.

    ``k1`` = log pi - log ref: unbiased, its sign is kept. ``k3`` = exp(-k1) - 1 + k1: unbiased and never negative,
    but as a reward its gradient is not that of the KL. Near 0 k3 is k1^2 / 2, which expm1 keeps: in fp32 a k1 of
    1e-4 would else drown in the rounding of 1. Raises ValueError for another name or unequal shapes.
    """
    if logps.shape != ref_logps.shape:
        raise ValueError(f"log-probabilities of shapes {tuple(logps.shape)} and {tuple(ref_logps.shape)}")
    k1 = logps - ref_logps
    if estimator == "k1":
        return k1
    if estimator == "k3":
        return torch.expm1(-k1) + k1
    raise ValueError(f"there is no KL estimator {estimator!r}")


def score_index(lengths: Tensor, width: int, position: str) -> Tensor:
    """Return ``[B]``: where the score is paid. ``last``: the last token; ``after``: one later where there is room."""
    if position not in ("last", "after"):
        raise ValueError(f"there is no score position {position!r}")
    return lengths - 1 if position == "last" else lengths.clamp(max=width - 1)


def token_rewards(kl: Tensor, scores: Tensor, lengths: Tensor, kl_coefficient: float, position: str) -> Tensor:
    """Return ``[B, R]``: ``-kl_coefficient * kl`` on every token of a response, plus its score where it is paid."""
    rewards = torch.where(response_mask(lengths, kl.shape[1]), -kl_coefficient * kl, 0)
    index = score_index(lengths, kl.shape[1], position)[:, None]
    return rewards.scatter_add(1, index, scores.to(rewards.dtype)[:, None])


def gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Return advantages and returns, both ``[B, R]``; beyond the last position the value is 0.

    delta[t] = r[t] + gamma V[t+1] - V[t];  A[t] = delta[t] + gamma lambda A[t+1];  return = A + V.
    """
    advantages = torch.zeros_like(rewards)
    carried = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        carried = delta + gamma * lam * carried
        advantages[:, t] = carried
        next_value = values[:, t]
    return advantages, advantages + values


def rollout_advantages(
    *,
    kl: Tensor,
    scores: Tensor,
    values: Tensor,
    lengths: Tensor,
    kl_coefficient: float,
    gamma: float,
    lam: float,
    position: str = "last",
    whiten_rewards: bool = False,
) -> Advantages:
    """Go from one rollout's KL ``[B, R]``, scores ``[B]``, values ``[B, R]`` and lengths ``[B]`` to its targets.

    With ``position="after"`` the value one past the last token counts too, as in TRL. What lies beyond the masks
    in ``kl`` and ``values`` is ignored.
    """
    width = kl.shape[1]
    mask = response_mask(lengths, width)
    value_mask = mask if position == "last" else response_mask(lengths + 1, width)
    values = torch.where(value_mask, values, 0)
    rewards = token_rewards(kl, scores, lengths, kl_coefficient, position)
    if whiten_rewards:
        rewards = masked_whiten(rewards, value_mask, shift_mean=False)
    raw, returns = gae(rewards, values, gamma, lam)
    return Advantages(
        rewards, masked_whiten(raw, mask), torch.where(value_mask, returns, 0), mask=mask, value_mask=value_mask
    )


def rloo(rewards: Tensor, groups: Tensor) -> Tensor:
    """Each response's reward less the mean of its group's others: ``R_i - sum_{j != i} R_j / (K - 1)``.

    Args:
        rewards: [B] reward of the whole response.
        groups: [B] which prompt it answers, any numbering; each with at least two responses.

    Returns [B]. The baseline does not depend on the response that it is taken from, so the policy gradient stays
    unbiased. Raises ValueError for a group of one. Source: Ahmadian et al. 2024, "Back to Basics", section 3.2.
    """
    place, sums, counts = _by_group(rewards, groups)
    return (rewards - (sums[place] - rewards) / (counts[place] - 1)).to(rewards.dtype)


def grpo(scores: Tensor, groups: Tensor) -> Tensor:
    """Each response's score in standard deviations of its group: ``(s_i - mean) / (std + eps)``.

    Both [B], as in :func:`rloo`; the deviation has Bessel's correction, as in TRL. Returns [B].
    Raises ValueError for a group of one. Source: Shao et al. 2024 (DeepSeekMath), section 4.1.2.
    """
    place, sums, counts = _by_group(scores, groups)
    return ((scores - (sums / counts)[place]) / (group_spread(scores, groups)[place] + GROUP_EPS)).to(scores.dtype)


def group_spread(values: Tensor, groups: Tensor) -> Tensor:
    """Standard deviation of each group's values (both [B]) with Bessel's correction, in the order of their numbers."""
    place, sums, counts = _by_group(values, groups)
    squares = (values - (sums / counts)[place]).square()
    return (torch.zeros_like(sums).index_add(0, place, squares) / (counts - 1)).sqrt().to(values.dtype)


def _by_group(values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the place of each value's group [B], and sum (fp64) and count of each group [G].

    In fp64 the mean of equal fp32 values is that value, so that they have no spread and no advantage at all.
    """
    _, place, counts = groups.unique(return_inverse=True, return_counts=True)
    if int(counts.min()) < 2:
        raise ValueError("a response has no others to be compared with: its group has one")
    sums = torch.zeros(len(counts), dtype=torch.float64, device=values.device).index_add(0, place, values.double())
    return place, sums, counts


def group_advantages(
    method: str, *, kl: Tensor, scores: Tensor, lengths: Tensor, groups: Tensor, kl_coefficient: float
) -> Advantages:
    """Go from one rollout's KL ``[B, R]``, scores, lengths and groups (all ``[B]``) to targets without a value.

    ``rloo`` is paid score and KL penalty, summed over the response; ``grpo`` the score alone, since its KL is a term
    of the loss. Every token of a response has the response's advantage: at a ratio of 1 the gradient of the clipped
    objective is then that of ``A log pi(y|x)``, the response taken as one act. Raises ValueError for another method.
    """
    if method not in ("rloo", "grpo"):
        raise ValueError(f"there is no advantage {method!r} within a group")
    mask = response_mask(lengths, kl.shape[1])
    rewards = token_rewards(kl, scores, lengths, kl_coefficient if method == "rloo" else 0.0, "last")
    of_response = rloo(rewards.sum(1), groups) if method == "rloo" else grpo(scores, groups)
    advantages = torch.where(mask, of_response[:, None], 0).to(kl.dtype)
    return Advantages(rewards, advantages, torch.zeros_like(kl), mask=mask, value_mask=torch.zeros_like(mask))


def adapted_kl_coefficient(coefficient: float, kl: float, target: float, horizon: int, episodes: int) -> float:
    """Move the KL coefficient towards the target KL per response (Ziegler et al. 2019, section 2.2).

    ``e = clip(kl / target - 1, -0.2, 0.2);  coefficient *= 1 + e * episodes / horizon``.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * episodes / horizon)


def explained_variance(returns: Tensor, values: Tensor, mask: Tensor) -> float:
    """Return ``1 - var(returns - values) / var(returns)`` over kept positions; 0 when the returns do not vary."""
    spread = masked_variance(returns, mask)
    if spread <= 0:
        return 0.0
    return float(1 - masked_variance(returns - values, mask) / spread)
