"""Every preference loss equals its formula in float64, and so does its gradient: on anything, and at the edges.

The formulas stand here once more, in Python's numbers and one pair at a time. Edges are ties, log-ratios of +-1000
nats, a completion of one token, one that is certain, and none at all; what is finite on paper must be finite here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.dpo import judge, unusable
from engine.losses import (
    bradley_terry,
    centering,
    dpo_loss,
    kto_loss,
    kto_zero,
    log_odds,
    orpo_loss,
    simpo_loss,
)
from engine.masking import Example
from engine.pairs import EncodedPair, ranking_weights
from engine.reward import pair_loss
from workbench.recipes import DpoRecipe, RewardRecipe

EDGES = (0.0, 1e-12, -1e-12, 36.0, -36.0, 745.0, -745.0, 1e3, -1e3)
number = st.one_of(st.sampled_from(EDGES), st.floats(-4, 4), st.floats(-1e3, 1e3))
"""A score or a log-ratio in nats: e^36 swallows a 1 in float64, and e^-745 is its last number above 0."""
pairs = st.lists(st.tuples(number, number), min_size=1, max_size=5)
tied = st.lists(number.map(lambda one: (one, one)), min_size=1, max_size=3)
share = st.one_of(st.just(0.0), st.floats(0, 0.49))
tokens = st.one_of(st.sampled_from((1, 2)), st.integers(1, 600))
few = settings(max_examples=60)


def softplus(x: float) -> float:
    """log(1 + e^x) = -log sigmoid(-x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x: float) -> float:
    return math.exp(min(x, 0.0)) / (1 + math.exp(-abs(x)))


def agrees(
    loss: Callable[[Tensor, Tensor], Tensor],
    rows: Sequence[tuple[float, float]],
    wanted: Callable[[float, float], tuple[float, float, float]],
) -> None:
    """``loss(first, second)`` and its gradients are what ``wanted`` says of each row: (loss, d/d first, d/d second)."""
    first, second = (torch.tensor(side, dtype=torch.float64, requires_grad=True) for side in zip(*rows, strict=True))
    found = loss(first, second)
    assert found.shape == first.shape
    found.sum().backward()
    expected = torch.tensor([wanted(*row) for row in rows], dtype=torch.float64)
    assert torch.isfinite(expected).all()
    for ours, column in zip((found.detach(), first.grad, second.grad), expected.T, strict=True):
        torch.testing.assert_close(ours, column, rtol=1e-9, atol=1e-12)


# ---- the reward model ------------------------------------------------------------------------------------------


@few
@given(st.one_of(pairs, tied), st.floats(0, 3), st.one_of(st.none(), st.sampled_from((0.5, 1.0)), st.floats(0.5, 1)))
def test_bradley_terry_is_the_cross_entropy_of_both_outcomes(
    rows: list[tuple[float, float]], margin: float, target: float | None
) -> None:
    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        soft = None if target is None else torch.full_like(chosen, target)
        return bradley_terry(chosen, rejected, torch.full_like(chosen, margin), soft)

    def wanted(chosen: float, rejected: float) -> tuple[float, float, float]:
        gap, t = chosen - rejected, 1.0 if target is None else target
        slope = -t * sigmoid(margin - gap) + (1 - t) * sigmoid(gap + margin)
        return t * softplus(margin - gap) + (1 - t) * softplus(gap + margin), slope, -slope

    agrees(loss, rows, wanted)


@few
@given(pairs)
def test_centering_is_the_square_of_the_sum(rows: list[tuple[float, float]]) -> None:
    agrees(centering, rows, lambda chosen, rejected: ((chosen + rejected) ** 2, *[2 * (chosen + rejected)] * 2))


def side(count: int, kept: int | None = None) -> Example:
    """A prompt of one token and a completion of ``count``, all of them trained unless ``kept`` says how many."""
    mask = (False, *(place < (count if kept is None else kept) for place in range(count)))
    return Example((5, *range(10, 10 + count)), mask, 1)


def encoded(tiers: Sequence[int], counts: Sequence[tuple[int, int]] | None = None) -> list[EncodedPair]:
    """As many pairs, each a ranking of its own."""
    counts = counts or [(1, 1)] * len(tiers)
    return [
        EncodedPair(str(n), f"ranking {n}", side(chosen), side(rejected), tier)
        for n, (tier, (chosen, rejected)) in enumerate(zip(tiers, counts, strict=True))
    ]


@few
@given(
    st.lists(st.tuples(number, number, st.integers(0, 3)), min_size=1, max_size=5),
    st.sampled_from((0.0, 0.5)),
    st.sampled_from((0.0, 0.125, 0.25)),  # a run's target is fp32, in which these are exact
    st.booleans(),
    st.sampled_from((0.0, 0.01)),
)
def test_a_recipes_margin_smoothing_ties_and_centering_add_up(
    ranked: list[tuple[float, float, int]], margin: float, smoothing: float, ties: bool, centre: float
) -> None:
    # t = 1 - e for a preference and 1/2 for a tie; each tier between them asks for one margin more
    recipe = RewardRecipe(
        margin_per_tier=margin, label_smoothing=smoothing, ties=ties, center_coefficient=centre, heads=1
    )
    tiers = iter([tier for *_, tier in ranked])

    def wanted(chosen: float, rejected: float) -> tuple[float, float, float]:
        tier, gap, both = next(tiers), chosen - rejected, chosen + rejected
        soft = ties or smoothing > 0
        t, m = (1 - smoothing if tier else 0.5) if soft else 1.0, margin * tier
        slope = -t * sigmoid(m - gap) + (1 - t) * sigmoid(gap + m)
        loss = t * softplus(m - gap) + (1 - t) * softplus(gap + m) + centre * both**2
        return loss, slope + 2 * centre * both, -slope + 2 * centre * both

    pairs = encoded([tier for *_, tier in ranked])
    agrees(
        lambda chosen, rejected: pair_loss(chosen[:, None], rejected[:, None], pairs, recipe, ranking_weights(pairs)),
        [(chosen, rejected) for chosen, rejected, _ in ranked],
        wanted,
    )


# ---- DPO -------------------------------------------------------------------------------------------------------


def dpo_by_hand(kind: str, gap: float, beta: float, e: float) -> tuple[float, float]:
    """A DPO loss of the difference of two log-ratios, and its slope."""
    x = beta * gap
    if kind == "hinge":
        return max(0.0, 1 - x), -beta if x < 1 else 0.0
    if kind == "ipo":
        return (gap - 1 / (2 * beta)) ** 2, 2 * (gap - 1 / (2 * beta))
    if kind == "robust":
        slope = beta * (-(1 - e) * sigmoid(-x) - e * sigmoid(x)) / (1 - 2 * e)
        return ((1 - e) * softplus(-x) - e * softplus(x)) / (1 - 2 * e), slope
    if kind == "sigmoid_norm":
        e = 0.0
    return (1 - e) * softplus(-x) + e * softplus(x), beta * (-(1 - e) * sigmoid(-x) + e * sigmoid(x))


@pytest.mark.parametrize("kind", ["sigmoid", "robust", "hinge", "ipo", "sigmoid_norm"])
@few
@given(st.one_of(pairs, tied), st.sampled_from((0.01, 0.1, 0.5, 2.0)), share, tokens, tokens)
def test_dpo_losses_are_their_formulas(
    kind: str, rows: list[tuple[float, float]], beta: float, smoothing: float, chosen_tokens: int, rejected_tokens: int
) -> None:
    each = (chosen_tokens, rejected_tokens) if kind in ("ipo", "sigmoid_norm") else (1, 1)

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return dpo_loss(
            chosen,
            rejected,
            beta=beta,
            loss_type=kind,
            label_smoothing=smoothing,
            chosen_tokens=torch.full(chosen.shape, chosen_tokens),
            rejected_tokens=torch.full(chosen.shape, rejected_tokens),
        )

    def wanted(chosen: float, rejected: float) -> tuple[float, float, float]:
        value, slope = dpo_by_hand(kind, chosen / each[0] - rejected / each[1], beta, smoothing)
        return value, slope / each[0], -slope / each[1]

    if kind == "hinge":  # at its kink any slope between both sides is one
        rows = [row for row in rows if abs(1 - beta * (row[0] - row[1])) > 1e-9] or [(0.0, 0.0)]
    agrees(loss, rows, wanted)


@given(number, number, st.sampled_from((0.05, 0.1, 1.0)))
def test_losses_against_a_reference_know_only_the_difference_of_both_log_ratios(
    ratio: float, shift: float, beta: float
) -> None:
    # ratios -> ratios + shift: what both sides share says nothing of the preference (sums; per token it does)
    there, moved = (torch.tensor([one], dtype=torch.float64) for one in (ratio, ratio + shift))
    for kind in ("sigmoid", "robust", "hinge", "ipo"):
        plain = dpo_loss(there, torch.zeros_like(there), beta=beta, loss_type=kind, label_smoothing=0.1)
        other = dpo_loss(moved, torch.full_like(there, shift), beta=beta, loss_type=kind, label_smoothing=0.1)
        torch.testing.assert_close(plain, other, rtol=1e-9, atol=1e-9)


def test_no_completion_token_at_all_is_left_out_and_harms_no_loss_that_would_divide_by_it() -> None:
    none, one = side(1, kept=0), side(1)
    assert unusable(none, one)
    assert unusable(one, none)
    assert not unusable(one, side(2))  # an empty answer still has its EOS
    ratio = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    nothing = torch.tensor([0])
    for kind in ("ipo", "sigmoid_norm"):
        loss = dpo_loss(ratio, ratio * 0, beta=0.1, loss_type=kind, chosen_tokens=nothing, rejected_tokens=nothing)
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert torch.isfinite(ratio.grad).all()


@pytest.mark.parametrize("kind", ["sigmoid", "robust", "hinge", "ipo", "sigmoid_norm", "simpo", "orpo"])
@few
@given(
    st.lists(
        st.tuples(st.floats(-40, -1e-3), st.floats(-40, -1e-3), number, number, tokens, tokens), min_size=1, max_size=4
    )
)
def test_what_a_run_makes_of_sums_is_the_formula_of_its_recipe(kind: str, drawn: list[tuple[Any, ...]]) -> None:
    """Sums of log-probabilities, reference and token counts in; loss and implicit rewards of every pair out."""
    recipe = DpoRecipe(loss_type=kind, beta=0.3, label_smoothing=0.1 if kind in ("sigmoid", "robust") else 0.0)
    batch = encoded([1] * len(drawn), [(one[4], one[5]) for one in drawn])
    sums = [(c * nc, r * nr) for c, r, _, _, nc, nr in drawn]
    ratios = {str(n): (one[2], one[3]) for n, one in enumerate(drawn)}
    reference = {str(n): (s[0] - ratios[str(n)][0], s[1] - ratios[str(n)][1]) for n, s in enumerate(sums)}
    place = iter(range(len(drawn)))

    def wanted(chosen: float, rejected: float) -> tuple[float, float, float]:
        n = next(place)
        nc, nr = drawn[n][4:]
        if kind in ("simpo", "orpo"):
            c, r = chosen / nc, rejected / nr
            value, up, down = (
                simpo_by_hand(c, r, 0.3, recipe.simpo_gamma)
                if kind == "simpo"
                else orpo_by_hand(c, r, recipe.orpo_lambda)
            )
            return value, up / nc, down / nr
        per_token = kind in ("ipo", "sigmoid_norm")
        ratio_c, ratio_r = chosen - reference[str(n)][0], rejected - reference[str(n)][1]
        gap = ratio_c / nc - ratio_r / nr if per_token else ratio_c - ratio_r
        value, slope = dpo_by_hand(kind, gap, 0.3, recipe.label_smoothing)
        return value, slope / (nc if per_token else 1), -slope / (nr if per_token else 1)

    agrees(lambda chosen, rejected: judge(chosen, rejected, batch, reference, recipe).loss, sums, wanted)
    found = judge(
        *(torch.tensor(one, dtype=torch.float64) for one in zip(*sums, strict=True)), batch, reference, recipe
    )
    scale = recipe.orpo_lambda if kind == "orpo" else 0.3
    for n, (c, r, *_) in enumerate(drawn):
        rewards = (c, r) if kind in ("simpo", "orpo") else ratios[str(n)]
        assert found.chosen_reward[n].item() == pytest.approx(scale * rewards[0], rel=1e-9, abs=1e-8)
        assert found.rejected_reward[n].item() == pytest.approx(scale * rewards[1], rel=1e-9, abs=1e-8)


# ---- without a reference ---------------------------------------------------------------------------------------


def simpo_by_hand(chosen: float, rejected: float, beta: float, gamma: float) -> tuple[float, float, float]:
    x = beta * (chosen - rejected) - gamma
    return softplus(-x), -beta * sigmoid(-x), beta * sigmoid(-x)


def odds_by_hand(logp: float) -> tuple[float, float]:
    """log(P / (1 - P)) of a log-probability, and its slope 1 / (1 - P)."""
    return logp - math.log(-math.expm1(logp)), -1 / math.expm1(logp)


def orpo_by_hand(chosen: float, rejected: float, weight: float) -> tuple[float, float, float]:
    (good, up), (bad, down) = odds_by_hand(chosen), odds_by_hand(rejected)
    slope = weight * sigmoid(bad - good)
    return -chosen + weight * softplus(bad - good), -1 - slope * up, slope * down


@few
@given(st.one_of(pairs, tied), st.sampled_from((0.1, 2.0, 10.0)), st.floats(0, 5))
def test_simpo_is_its_formula(rows: list[tuple[float, float]], beta: float, gamma: float) -> None:
    agrees(
        lambda chosen, rejected: simpo_loss(chosen, rejected, beta=beta, gamma=gamma),
        rows,
        lambda chosen, rejected: simpo_by_hand(chosen, rejected, beta, gamma),
    )


logp = st.one_of(st.sampled_from((-1e-15, -1e-9, -1e-3, -36.0, -745.0, -1e3)), st.floats(-30, -1e-6))
"""A mean log-probability of a token, from all but certain to all but impossible."""


@few
@given(st.lists(st.tuples(logp, logp), min_size=1, max_size=5), st.sampled_from((0.0, 0.1, 1.0)))
@example([(-1e-15, -1e3)], 1.0)
@example([(-1e3, -1e-15)], 1.0)
def test_orpo_is_its_formula(rows: list[tuple[float, float]], weight: float) -> None:
    agrees(
        lambda chosen, rejected: orpo_loss(chosen, rejected, weight=weight),
        rows,
        lambda chosen, rejected: orpo_by_hand(chosen, rejected, weight),
    )


def test_a_certain_completion_has_odds_a_loss_and_a_gradient() -> None:
    certain = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    for chosen, rejected in ((certain, certain), (certain, certain - 5), (certain - 5, certain)):
        certain.grad = None
        loss = orpo_loss(chosen, rejected, weight=0.5).sum() + log_odds(certain).sum()
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(certain.grad).all()


# ---- KTO -------------------------------------------------------------------------------------------------------


@few
@given(
    st.lists(st.tuples(number, st.booleans()), min_size=1, max_size=6),
    st.lists(number, max_size=5),
    st.sampled_from((0.05, 0.1, 1.0)),
    st.sampled_from((0.0, 1.0, 1.33)),
)
def test_kto_is_its_formula_against_the_clamped_mean_of_the_mismatched(
    judged: list[tuple[float, bool]], mismatched: list[float], beta: float, weight: float
) -> None:
    zero = kto_zero(torch.tensor(mismatched, dtype=torch.float64))
    z = max(0.0, math.fsum(mismatched) / len(mismatched)) if mismatched else 0.0
    assert zero.item() == pytest.approx(z, rel=1e-9, abs=1e-9)
    ratio = torch.tensor([one for one, _ in judged], dtype=torch.float64, requires_grad=True)
    loss = kto_loss(
        ratio,
        torch.tensor([wanted for _, wanted in judged]),
        zero,
        beta=beta,
        desirable_weight=weight,
        undesirable_weight=2.0,
    )
    loss.sum().backward()
    for place, (r, desirable) in enumerate(judged):
        sign, w = (1, weight) if desirable else (-1, 2.0)
        away = sigmoid(-sign * beta * (r - z))  # 1 - sigmoid(+-beta (r - z))
        assert loss[place].item() == pytest.approx(w * away, rel=1e-9, abs=1e-9)
        assert ratio.grad[place].item() == pytest.approx(-sign * w * beta * away * (1 - away), rel=1e-7, abs=1e-9)
