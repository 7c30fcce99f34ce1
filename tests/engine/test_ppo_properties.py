"""Every step from scores to PPO's losses equals its formula in float64, on anything and at the edges.

The formulas stand here once more, one position at a time. Edges are responses of one token, positions that are all
padding, ties, equal scores, an EOS that comes first, twice or never, and log-ratios so far out that e to their power
is 0. What lies outside a mask is not a number here, and must stay outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.advantages import (
    gae,
    group_advantages,
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
from engine.ppo_losses import MOST_LOG_RATIO, kl_loss, policy_loss, value_loss

EOS, WORD = 2, 7
few = settings(max_examples=60)
near = st.one_of(st.sampled_from((0.0, 1e-9, -1e-9, 0.2, -0.2)), st.floats(-2, 2), st.floats(-80, MOST_LOG_RATIO))
"""A log-ratio in nats: beyond the cap a loss counts no more, so that e^x stays a number."""
wide = st.one_of(st.sampled_from((0.0, 1e3, -1e3)), st.floats(-3, 3), st.floats(-1e3, 1e3))
"""A score, value or advantage."""


def table(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def row(values: Sequence[float]) -> Tensor:
    return table([values])


def columns(drawn: Sequence[Sequence[float]], keep: Sequence[bool]) -> list[Tensor]:
    """The first three columns of some rows, [1, R] each; not a number where nothing is kept."""
    return [row([one[at] if kept else math.nan for one, kept in zip(drawn, keep, strict=True)]) for at in range(3)]


# ---- KL --------------------------------------------------------------------------------------------------------


@few
@given(st.lists(st.tuples(st.floats(-50, 0), near), min_size=1, max_size=6))
def test_the_estimators_of_kl_are_their_formulas_with_their_gradients(drawn: list[tuple[float, float]]) -> None:
    # r = ref / pi:  k1 = -log r,  k2 = (log r)^2 / 2,  k3 = (r - 1) - log r;  in log pi their slopes are 1 and 1 - r
    logps = row([one for one, _ in drawn]).requires_grad_()
    ref = row([one - ratio for one, ratio in drawn])
    exact = [one - there for one, there in zip(logps.tolist()[0], ref.tolist()[0], strict=True)]
    k1 = kl_per_token(logps, ref)
    assert k1.tolist()[0] == exact
    k2 = policy_loss(logps, ref, torch.zeros_like(ref), torch.ones_like(ref, dtype=torch.bool), 0.2).approx_kl
    assert k2.item() == pytest.approx(sum(one**2 / 2 for one in exact))
    k3 = kl_per_token(logps, ref, "k3")
    for found, ratio in zip(k3.tolist()[0], exact, strict=True):
        assert found == pytest.approx(math.expm1(-ratio) + ratio, rel=1e-12, abs=1e-15 * abs(ratio))
    kl_loss(logps, ref, torch.ones_like(ref, dtype=torch.bool)).backward()
    for found, ratio in zip(logps.grad.tolist()[0], exact, strict=True):
        assert found == pytest.approx(-math.expm1(-ratio), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_k3_is_never_negative_and_keeps_its_digits_where_policy_and_reference_are_close(dtype: torch.dtype) -> None:
    # d^2 / 2 - d^3 / 6 + ...: e^-d - 1 + d would be lost in the rounding of 1
    ratio = torch.tensor([[1e-4, -1e-4, 3e-3, -3e-3, 0.0]], dtype=dtype)
    found = kl_per_token(ratio, torch.zeros_like(ratio), "k3")
    assert (found >= 0).all()
    exact = [one**2 / 2 - one**3 / 6 + one**4 / 24 for one in ratio.tolist()[0]]
    assert found.tolist()[0] == pytest.approx(exact, rel=5e-3 if dtype == torch.float32 else 1e-9)


def test_a_policy_that_all_but_certainly_draws_what_its_reference_never_would_has_a_finite_kl() -> None:
    # log r = -1000:  k3 = e^-1000 - 1 + 1000, or less where the log-ratio is bounded
    logps, ref = row([0.0]).requires_grad_(), row([-1e3])
    found = kl_loss(logps, ref, torch.tensor([[True]]))
    found.backward()
    assert 0 <= found.item() <= 999
    assert torch.isfinite(logps.grad).all()


# ---- the clipped losses ----------------------------------------------------------------------------------------

token = st.tuples(st.floats(-50, 0), near, wide, st.booleans())


@few
@given(st.lists(token, min_size=1, max_size=8), st.sampled_from((0.1, 0.2, 0.5)))
def test_the_policys_loss_is_the_worse_of_both_and_its_gradient_that_of_the_one_taken(
    drawn: list[tuple[float, float, float, bool]], clip: float
) -> None:
    """All kept, some or none of them: what is outside is NaN, and neither loss nor gradient hears of it."""
    keep = [kept for *_, kept in drawn]
    old, ratio, advantage = columns(drawn, keep)
    new = (old + ratio).requires_grad_()
    found = policy_loss(new, old, advantage, torch.tensor([keep]), clip)
    found.loss.backward()
    total, clipped, ratios, off, squares = 0.0, 0, 0.0, 0.0, 0.0
    for place, kept in enumerate(keep):
        if not kept:
            assert new.grad[0, place] == 0
            continue
        d, a = new[0, place].item() - old[0, place].item(), advantage[0, place].item()
        r = math.exp(d)
        plain, bounded = -a * r, -a * min(max(r, 1 - clip), 1 + clip)
        total += max(plain, bounded)
        clipped += bounded > plain
        ratios, off, squares = ratios + r, off + abs(math.expm1(d)), squares + d**2 / 2
        slope = new.grad[0, place].item()
        assert slope == pytest.approx(0.0 if bounded > plain else plain, rel=1e-9) or a == 0 == slope
    assert found.loss.item() == pytest.approx(total, rel=1e-9, abs=1e-12)
    assert found.clipped.item() == clipped
    assert found.ratio.item() == pytest.approx(ratios)
    assert found.ratio_off.item() == pytest.approx(off)
    assert found.approx_kl.item() == pytest.approx(squares)


@pytest.mark.parametrize("ratio", [-1e3, -89.0, 89.0, 600.0])
def test_a_ratio_of_all_but_nothing_or_beyond_all_bounds_teaches_what_a_clipped_one_does(ratio: float) -> None:
    # a good token that became likely is clipped: -1.2 A and no gradient.  One that became impossible has -A r = 0;
    # a bad one that became impossible is clipped at 0.8 A
    new = row([ratio, ratio]).requires_grad_()
    advantages = row([2.0, 2.0]) if ratio > 0 else row([2.0, -2.0])
    found = policy_loss(new, row([0.0, 0.0]), advantages, torch.tensor([[True, True]]), 0.2)
    found.loss.backward()
    assert found.loss.item() == pytest.approx(-1.2 * 4 if ratio > 0 else 0.8 * 2, rel=1e-12)
    assert new.grad.tolist()[0] == pytest.approx([0.0, 0.0], abs=1e-30)
    assert math.isfinite(found.approx_kl.item())
    assert math.isfinite(found.ratio.item())


@few
@given(st.lists(st.tuples(wide, wide, wide, st.booleans()), min_size=1, max_size=8), st.sampled_from((0.0, 0.2, 0.5)))
def test_the_values_loss_is_half_the_worse_of_both_squares(
    drawn: list[tuple[float, float, float, bool]], clip: float
) -> None:
    keep = [kept for *_, kept in drawn]
    new, old, returns = columns(drawn, keep)
    new.requires_grad_()
    found = value_loss(new, old, returns, torch.tensor([keep]), clip)
    found.loss.backward()
    total, clipped = 0.0, 0
    for place, kept in enumerate(keep):
        slope = new.grad[0, place].item()
        if not kept:
            assert slope == 0
            continue
        v, before, wanted, _ = drawn[place]
        inside = before - clip < v < before + clip
        bound = min(max(v, before - clip), before + clip)
        plain, bounded = (v - wanted) ** 2, (bound - wanted) ** 2
        total += max(plain, bounded) / 2
        clipped += bounded > plain
        if plain != bounded or inside:  # at a kink any slope between both sides is one
            expected = 0.0 if bounded > plain else v - wanted
            assert slope == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert math.isfinite(slope)
    assert found.loss.item() == pytest.approx(total, rel=1e-9, abs=1e-12)
    assert found.clipped.item() == clipped


# ---- GAE and whitening -----------------------------------------------------------------------------------------


@st.composite
def grids(draw: st.DrawFn, count: int = 1) -> list[list[list[float]]]:
    """As many tables [B, R] of the same shape."""
    rows, width = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    line = st.lists(wide, min_size=width, max_size=width)
    return [draw(st.lists(line, min_size=rows, max_size=rows)) for _ in range(count)]


@few
@given(grids(2), st.sampled_from((0.0, 0.9, 1.0)), st.sampled_from((0.0, 0.95, 1.0)))
def test_gae_is_the_sum_of_its_definition(drawn: list[list[list[float]]], gamma: float, lam: float) -> None:
    # A[t] = sum_l (gamma lambda)^l delta[t+l],  delta[t] = r[t] + gamma V[t+1] - V[t],  V = 0 behind the last;
    # the return A + V is what is still paid, discounted, where lambda is 1
    rewards, values = drawn
    advantages, returns = gae(table(rewards), table(values), gamma, lam)
    for b, (r, v) in enumerate(zip(rewards, values, strict=True)):
        delta = [r[t] + gamma * ([*v, 0.0][t + 1]) - v[t] for t in range(len(r))]
        for t in range(len(r)):
            wanted = sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, len(r)))
            assert advantages[b, t].item() == pytest.approx(wanted, rel=1e-9, abs=1e-8)
            assert returns[b, t].item() == pytest.approx(wanted + v[t], rel=1e-9, abs=1e-8)
            if lam == 1.0:
                paid = sum(gamma ** (k - t) * r[k] for k in range(t, len(r)))
                assert returns[b, t].item() == pytest.approx(paid, rel=1e-9, abs=1e-8)


@few
@given(st.one_of(st.lists(st.tuples(wide, st.booleans()), min_size=1, max_size=9), wide.map(lambda x: [(x, True)] * 3)))
def test_whitening_takes_mean_and_spread_of_what_is_kept(drawn: list[tuple[float, bool]]) -> None:
    keep = [kept for _, kept in drawn]
    values = row([one if kept else math.nan for one, kept in drawn])
    kept_values = [one for one, kept in drawn if kept]
    n = len(kept_values)
    mean = math.fsum(kept_values) / n if n else 0.0
    variance = math.fsum((one - mean) ** 2 for one in kept_values) / (n - 1) if n > 1 else 0.0
    mask = torch.tensor([keep])
    assert masked_mean(values, mask).item() == pytest.approx(mean, rel=1e-9, abs=1e-9)
    assert masked_variance(values, mask).item() == pytest.approx(variance, rel=1e-9, abs=1e-9)
    for shift in (True, False):
        found = masked_whiten(values, mask, shift_mean=shift).tolist()[0]
        for one, (value, kept) in zip(found, drawn, strict=True):
            wanted = (value - mean) / math.sqrt(variance + 1e-8) + (0.0 if shift else mean) if kept else 0.0
            assert one == pytest.approx(wanted, rel=1e-6, abs=1e-7)


# ---- where a score is paid -------------------------------------------------------------------------------------

DRAWN = {
    "one token": [EOS],
    "EOS first": [EOS, WORD, WORD, WORD],
    "one EOS": [WORD, WORD, EOS, WORD],
    "EOS last": [WORD, WORD, WORD, EOS],
    "no EOS": [WORD, WORD, WORD, WORD],
    "two": [WORD, EOS, WORD, EOS],
}
"""What a sampler that never stops would have drawn."""


@pytest.mark.parametrize("position", ["last", "after"])
@pytest.mark.parametrize("name", DRAWN)
def test_a_score_is_paid_once_at_the_first_eos_or_one_later_where_there_is_room(name: str, position: str) -> None:
    drawn = DRAWN[name]
    width = len(drawn)
    length = drawn.index(EOS) + 1 if EOS in drawn else width
    lengths = torch.tensor([length])
    assert response_mask(lengths, width)[0].tolist() == [EOS not in drawn[:t] for t in range(width)]
    at = length - 1 if position == "last" or length == width else length
    assert score_index(lengths, width, position).tolist() == [at]
    kl = row([0.5 if t < length else math.nan for t in range(width)])
    found = token_rewards(kl, row([3.0])[0], lengths, 0.1, position)[0].tolist()
    wanted = [(-0.05 if t < length else 0.0) + (3.0 if t == at else 0.0) for t in range(width)]
    assert found == pytest.approx(wanted)


@st.composite
def rollouts(draw: st.DrawFn) -> tuple[list[int], list[list[float]], list[list[float]], list[float]]:
    """Lengths [B], KL [B, R], values [B, R] and scores [B]."""
    kl, values = draw(grids(2))
    rows, width = len(kl), len(kl[0])
    lengths = draw(st.lists(st.integers(1, width), min_size=rows, max_size=rows))
    same = draw(st.booleans())
    scores = draw(st.lists(wide, min_size=rows, max_size=rows))
    return lengths, kl, values, [scores[0]] * rows if same else scores


@few
@given(rollouts(), st.sampled_from(("last", "after")), st.sampled_from(((1.0, 0.95), (0.99, 0.9))))
def test_a_rollouts_targets_are_rewards_gae_and_whitening_row_by_row(
    drawn: tuple[list[int], list[list[float]], list[list[float]], list[float]],
    position: str,
    rates: tuple[float, float],
) -> None:
    lengths, kl, values, scores = drawn
    (gamma, lam), width = rates, len(kl[0])
    found = rollout_advantages(
        kl=table(kl),
        scores=torch.tensor(scores, dtype=torch.float64),
        values=table(values),
        lengths=torch.tensor(lengths),
        kl_coefficient=0.05,
        gamma=gamma,
        lam=lam,
        position=position,
    )
    raw: dict[tuple[int, int], float] = {}
    for b, n in enumerate(lengths):
        at = n if position == "after" and n < width else n - 1
        paid = [(-0.05 * kl[b][t] if t < n else 0.0) + (scores[b] if t == at else 0.0) for t in range(width)]
        v = [values[b][t] if t <= at else 0.0 for t in range(width)] + [0.0]
        assert found.mask[b].tolist() == [t < n for t in range(width)]
        assert found.value_mask[b].tolist() == [t <= at for t in range(width)]
        assert found.rewards[b].tolist() == pytest.approx(paid, rel=1e-9, abs=1e-9)
        ahead = 0.0
        for t in reversed(range(width)):
            ahead = paid[t] + gamma * v[t + 1] - v[t] + gamma * lam * ahead
            raw[b, t] = ahead
            wanted = ahead + v[t] if t <= at else 0.0
            assert found.returns[b, t].item() == pytest.approx(wanted, rel=1e-9, abs=1e-8)
    kept = [raw[b, t] for b, n in enumerate(lengths) for t in range(n)]
    mean = math.fsum(kept) / len(kept)
    variance = math.fsum((one - mean) ** 2 for one in kept) / max(1, len(kept) - 1)
    for b, n in enumerate(lengths):
        for t in range(width):
            wanted = (raw[b, t] - mean) / math.sqrt(variance + 1e-8) if t < n else 0.0
            assert found.advantages[b, t].item() == pytest.approx(wanted, rel=1e-6, abs=1e-6)


# ---- without a value function ----------------------------------------------------------------------------------


@st.composite
def grouped(draw: st.DrawFn) -> tuple[list[float], list[int]]:
    """Scores [B] of groups of two to four responses, in any order; some groups are of one score."""
    found: list[tuple[float, int]] = []
    for group in range(draw(st.integers(1, 3))):
        scores = draw(st.lists(wide, min_size=2, max_size=4))
        if draw(st.booleans()):
            scores = scores[:1] * len(scores)
        found += [(one, group) for one in scores]
    order = draw(st.permutations(found))
    return [one for one, _ in order], [group for _, group in order]


@few
@given(grouped())
def test_rloo_and_grpo_compare_a_response_with_its_own_group(drawn: tuple[list[float], list[int]]) -> None:
    # RLOO: R - mean of the others;  GRPO: (s - mean) / (std + 1e-4), with n - 1 in the variance
    scores, groups = drawn
    values, numbers = torch.tensor(scores, dtype=torch.float64), torch.tensor(groups)
    ours = rloo(values, numbers).tolist(), grpo(values, numbers).tolist()
    for place, (score, group) in enumerate(zip(scores, groups, strict=True)):
        mates = [one for one, other in zip(scores, groups, strict=True) if other == group]
        k, mean = len(mates), math.fsum(mates) / len(mates)
        others = (math.fsum(mates) - score) / (k - 1)
        std = math.sqrt(math.fsum((one - mean) ** 2 for one in mates) / (k - 1))
        assert ours[0][place] == pytest.approx(score - others, rel=1e-9, abs=1e-9)
        assert ours[1][place] == pytest.approx((score - mean) / (std + 1e-4), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("count", [2, 3, 5, 6, 7])
@pytest.mark.parametrize("score", [0.1, -3.3, 10.1, 1e3 + 0.1])
def test_responses_of_one_score_teach_exactly_nothing_in_fp32_too(count: int, score: float) -> None:
    # the mean of equal numbers is that number: what rounding would leave of s - mean, GRPO would divide by 1e-4
    scores, groups = torch.full((count,), score), torch.zeros(count, dtype=torch.long)
    for method in (rloo, grpo):
        found = method(scores, groups)
        assert found.dtype == torch.float32
        assert found.tolist() == [0.0] * count


@few
@given(grouped(), st.sampled_from((1, 4)))
def test_a_group_advantage_lies_on_every_token_of_its_response_and_nowhere_else(
    drawn: tuple[list[float], list[int]], width: int
) -> None:
    scores, groups = drawn
    lengths = [1 + place % width for place in range(len(scores))]
    kl = table([[0.25 if t < n else math.nan for t in range(width)] for n in lengths])
    values = torch.tensor(scores, dtype=torch.float64)
    for name, method in (("rloo", rloo), ("grpo", grpo)):
        found = group_advantages(
            name,
            kl=kl,
            scores=values,
            lengths=torch.tensor(lengths),
            groups=torch.tensor(groups),
            kl_coefficient=0.2,
        )
        paid = values - 0.2 * 0.25 * torch.tensor(lengths) if name == "rloo" else values
        of_response = method(paid, torch.tensor(groups))
        for b, n in enumerate(lengths):
            wanted = [of_response[b].item() if t < n else 0.0 for t in range(width)]
            assert found.advantages[b].tolist() == pytest.approx(wanted, rel=1e-6, abs=1e-7)
