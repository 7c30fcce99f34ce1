"""PPO's two clipped losses as sums over real tokens, so that a mini-batch in any micro-batches has one gradient.

Divide a sum by the token count of the whole mini-batch: ``loss = sum / count``. B rows, R response positions;
masks are True where we keep. Source: Schulman et al. 2017; value clipping as in N+ and TRL 1.12.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from engine.advantages import kl_per_token

MOST_LOG_RATIO = 80.0
"""Ratios are reckoned up to e to this power, which fp32 holds: the infinity behind it times an advantage of 0, or times
the gradient of 0 of what the clip took, would be no number."""


class PolicyLoss(NamedTuple):
    """Sums over real tokens. ``loss`` carries the gradient; the others are detached."""

    loss: Tensor
    clipped: Tensor  # tokens whose ratio was clipped
    approx_kl: Tensor  # 0.5 (new - old)^2
    ratio: Tensor
    ratio_off: Tensor  # |ratio - 1|


class ValueLoss(NamedTuple):
    """Sums over real tokens. ``loss`` carries the gradient and its factor one half."""

    loss: Tensor
    clipped: Tensor


def policy_loss(
    new_logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> PolicyLoss:
    """Sum ``max(-A ratio, -A clip(ratio, 1-c, 1+c))`` over kept tokens; all tensors ``[B, R]``."""
    # What lies outside the mask may hold anything: make it a ratio of 1 before exp, or inf * 0 poisons gradients.
    difference = torch.where(mask, new_logps - old_logps, 0).clamp(max=MOST_LOG_RATIO)
    ratio = torch.exp(difference)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    detached = difference.detach()
    return PolicyLoss(
        loss=torch.where(mask, torch.maximum(plain, clipped), 0).sum(),
        clipped=((clipped > plain) & mask).sum().detach(),
        approx_kl=0.5 * detached.square().sum(),
        ratio=torch.where(mask, ratio.detach(), 0).sum(),
        ratio_off=torch.expm1(detached).abs().sum(),
    )


def kl_loss(new_logps: Tensor, ref_logps: Tensor, mask: Tensor) -> Tensor:
    """Sum over kept tokens of the k3 estimate of KL(policy || reference), with its gradient; all tensors ``[B, R]``.

    ``exp(ref - new) - 1 - (ref - new)``, never negative. Source: Shao et al. 2024 (GRPO), eq. 4.
    """
    return kl_per_token(torch.where(mask, new_logps, 0), torch.where(mask, ref_logps, 0), "k3").sum()


def value_loss(new_values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float) -> ValueLoss:
    """Sum ``0.5 max((V - ret)^2, (clip(V, V_old +- c) - ret)^2)`` over kept positions; all tensors ``[B, R]``."""
    new_values = torch.where(mask, new_values, 0)
    near = torch.minimum(torch.maximum(new_values, old_values - clip_range), old_values + clip_range)
    plain, clipped = (new_values - returns).square(), (near - returns).square()
    return ValueLoss(
        loss=0.5 * torch.where(mask, torch.maximum(plain, clipped), 0).sum(),
        clipped=((clipped > plain) & mask).sum().detach(),
    )
