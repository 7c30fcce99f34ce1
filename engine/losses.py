"""The losses of reward modelling, DPO and KTO: pure functions on tensors, one value per pair or judged response.

Every function takes and returns [P] (P pairs; [B] for KTO's responses) and leaves the mean to the caller, who divides
by the pairs of the whole optimiser step. Checked against TRL's numbers and against float64 formulas.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

PER_TOKEN = ("ipo", "sigmoid_norm")
"""DPO losses whose log-ratios are divided by their completion's tokens."""


def bradley_terry(
    chosen: Tensor, rejected: Tensor, margin: Tensor | None = None, target: Tensor | None = None
) -> Tensor:
    """Negative log-likelihood of the preference: ``-log sigmoid(r_c - r_r - margin)``. All [P].

    With ``target``, the probability t that the chosen is the better one (1 - e for a share e of wrong labels, 1/2 for
    a tie), the cross-entropy of both outcomes: ``-t log sigmoid(r_c - r_r - margin) - (1 - t) log sigmoid(r_r - r_c -
    margin)``, least at a gap of ``log(t / (1 - t))`` without a margin.
    Source: Bradley & Terry 1952; InstructGPT eq. 1; the margin: Llama 2, eq. 2; soft labels: Szegedy et al. 2016.
    """
    gap = chosen - rejected
    margin = torch.zeros_like(gap) if margin is None else margin
    as_labelled = -functional.logsigmoid(gap - margin)
    if target is None:
        return as_labelled
    return target * as_labelled - (1 - target) * functional.logsigmoid(-gap - margin)


def centering(chosen: Tensor, rejected: Tensor) -> Tensor:
    """``(r_c + r_r)^2``, whose weighted sum keeps scores near 0. Source: arXiv 2312.09244, eq. 2; TRL."""
    return (chosen + rejected) ** 2


def dpo_loss(
    chosen_logratio: Tensor,
    rejected_logratio: Tensor,
    *,
    beta: float,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    chosen_tokens: Tensor | None = None,
    rejected_tokens: Tensor | None = None,
) -> Tensor:
    """DPO's loss per pair from log-ratios ``log pi(y|x) - log ref(y|x)``, summed over the completion's tokens.

    With ``D = chosen_logratio - rejected_logratio`` and ``e = label_smoothing`` (share of wrong labels):

    * sigmoid: ``-(1-e) ls(beta D) - e ls(-beta D)`` (Rafailov et al. 2023, eq. 7; e > 0: conservative DPO);
    * robust: ``(-(1-e) ls(beta D) + e ls(-beta D)) / (1 - 2e)`` (Chowdhury et al. 2024, eq. 12);
    * hinge: ``max(0, 1 - beta D)`` (SLiC, Zhao et al. 2023);
    * ipo: ``(D' - 1/(2 beta))^2`` where each log-ratio in D' is divided by its completion's tokens, as TRL does
      (Azar et al. 2023, eq. 17, has sums: ipo_sum);
    * ipo_sum: ``(D - 1/(2 beta))^2``, the paper's own form;
    * sigmoid_norm: ``-ls(beta D')``, with D' as in ipo, so that long completions weigh no more (TRL 1.16).

    All [P]. Raises ValueError for another loss type.
    """
    gap = chosen_logratio - rejected_logratio
    if loss_type in PER_TOKEN and chosen_tokens is not None and rejected_tokens is not None:
        gap = chosen_logratio / chosen_tokens.clamp(min=1) - rejected_logratio / rejected_tokens.clamp(min=1)
    if loss_type == "sigmoid":
        return -(1 - label_smoothing) * functional.logsigmoid(beta * gap) - label_smoothing * functional.logsigmoid(
            -beta * gap
        )
    if loss_type == "robust":
        agree, differ = functional.logsigmoid(beta * gap), functional.logsigmoid(-beta * gap)
        return (-(1 - label_smoothing) * agree + label_smoothing * differ) / (1 - 2 * label_smoothing)
    if loss_type == "hinge":
        return torch.relu(1 - beta * gap)
    if loss_type in ("ipo", "ipo_sum"):
        return (gap - 1 / (2 * beta)) ** 2
    if loss_type == "sigmoid_norm":
        return -functional.logsigmoid(beta * gap)
    raise ValueError(f"there is no DPO loss {loss_type!r}")


def simpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float, gamma: float) -> Tensor:
    """SimPO's loss per pair, without a reference: ``-log sigmoid(beta c - beta r - gamma)``.

    ``c`` and ``r``, both [P], are the mean log-probability of a token of the chosen and the rejected completion,
    ``log pi(y|x) / |y|``, in nats. Returns [P]. Source: Meng et al. 2024, eq. 6.
    """
    return -functional.logsigmoid(beta * (chosen - rejected) - gamma)


def orpo_loss(chosen: Tensor, rejected: Tensor, *, weight: float) -> Tensor:
    """ORPO's loss per pair, without a reference: the chosen completion's NLL a token, and the odds ratio's term.

    With the mean log-probability of a token, ``log P = log pi(y|x) / |y|`` (``chosen`` and ``rejected``, both [P]):
    ``-log P(y_c) - weight log sigmoid(log odds(y_c) - log odds(y_r))`` and ``odds(y) = P(y) / (1 - P(y))``.
    Returns [P]. Source: Hong et al. 2024, eq. 6 and 7; weight is their lambda, and TRL's ``beta``.
    """
    return -chosen - weight * functional.logsigmoid(log_odds(chosen) - log_odds(rejected))


def kto_loss(
    logratio: Tensor,
    desirable: Tensor,
    kl: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """KTO's loss per judged response, against a zero z that the whole batch shares.

    ``w_d (1 - sigmoid(beta (r - z)))`` for a desirable response and ``w_u (1 - sigmoid(beta (z - r)))`` for another,
    where ``r = log pi(y|x) - log ref(y|x)``, summed over the completion's tokens. It saturates on both sides, as a
    person's sense of gains and losses does.

    Args:
        logratio: r [B], nats.
        desirable: [B] bool.
        kl: z [], nats: the estimate of KL(pi || ref) of :func:`kto_zero`.
        beta: how soon a gain or a loss saturates.
        desirable_weight: w_d, the paper's lambda_D.
        undesirable_weight: w_u, the paper's lambda_U.

    Returns [B], between 0 and the weights. Source: Ethayarajh et al. 2024, eq. 7 and 8; TRL's ``kto_loss``.
    """
    gain = beta * (logratio - kl.detach())
    weight = torch.where(desirable, gain.new_tensor(desirable_weight), gain.new_tensor(undesirable_weight))
    return weight * torch.sigmoid(torch.where(desirable, -gain, gain))


def kto_zero(mismatched_logratio: Tensor) -> Tensor:
    """KTO's zero z []: the mean log-ratio of prompts with responses to other prompts, never below 0, in nats.

    mismatched_logratio: [M] of the whole optimiser step; 0 where there are none. A biased estimate of KL(pi || ref),
    without a gradient. Source: Ethayarajh et al. 2024, section 4.1.
    """
    if not mismatched_logratio.numel():
        return torch.zeros((), dtype=mismatched_logratio.dtype, device=mismatched_logratio.device)
    return mismatched_logratio.detach().mean().clamp(min=0)


def log_odds(logp: Tensor) -> Tensor:
    """``log(P / (1 - P))`` of a log-probability, any shape; finite for a certain event, whose P is taken below 1."""
    below_zero = logp.clamp(max=-torch.finfo(logp.dtype).eps)
    return logp - torch.log(-torch.expm1(below_zero))
