from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.losses import bradley_terry, centering, dpo_loss, kto_loss, kto_zero, log_odds, orpo_loss, simpo_loss

F64 = torch.float64
LN2 = math.log(2)
finite = st.floats(-50, 50)


def tensor(values):
    return torch.tensor(values, dtype=F64)


def test_bradley_terry_gives_trls_numbers(golden):
    g = golden("rm_loss")
    chosen, rejected = tensor(g["chosen"]).requires_grad_(), tensor(g["rejected"]).requires_grad_()
    plain = bradley_terry(chosen, rejected)
    torch.testing.assert_close(plain, tensor(g["plain"]["per_pair"]), atol=1e-6, rtol=0)
    with_margin = bradley_terry(chosen, rejected, tensor(g["margins"]))
    torch.testing.assert_close(with_margin, tensor(g["margin"]["per_pair"]), atol=1e-6, rtol=0)
    centred = plain.mean() + g["center_coef"] * centering(chosen, rejected).mean()
    assert float(centred.detach()) == pytest.approx(g["plain_plus_centering"], abs=1e-6)
    plain.mean().backward()
    torch.testing.assert_close(chosen.grad, tensor(g["grad_chosen"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(rejected.grad, tensor(g["grad_rejected"]), atol=1e-6, rtol=0)


def test_bradley_terry_by_hand():
    # -log sigmoid(1.2 - 0.7 - 0.5) = -log sigmoid(0) = log 2
    assert float(bradley_terry(tensor([1.2]), tensor([0.7]), tensor([0.5]))) == pytest.approx(math.log(2))
    # -log sigmoid(2) = log(1 + e^-2) = 0.126928
    assert float(bradley_terry(tensor([3.0]), tensor([1.0]))) == pytest.approx(0.12692801104297)
    # (3 + 1)^2
    assert float(centering(tensor([3.0]), tensor([1.0]))) == 16


def test_soft_labels_by_hand():
    # gap 2: -0.9 log sigmoid(2) - 0.1 log sigmoid(-2) = 0.126928 + 0.1 * 2
    plain = math.log1p(math.exp(-2))
    loss = bradley_terry(tensor([3.0]), tensor([1.0]), target=tensor([0.9]))
    assert float(loss) == pytest.approx(plain + 0.1 * 2)
    # a margin of 1 is asked for either way: -0.9 log sigmoid(2 - 1) - 0.1 log sigmoid(-2 - 1)
    loss = bradley_terry(tensor([3.0]), tensor([1.0]), tensor([1.0]), tensor([0.9]))
    assert float(loss) == pytest.approx(0.9 * math.log1p(math.exp(-1)) + 0.1 * math.log1p(math.exp(3)))
    # certain labels are no soft labels
    torch.testing.assert_close(
        bradley_terry(tensor([3.0]), tensor([1.0]), target=tensor([1.0])), bradley_terry(tensor([3.0]), tensor([1.0]))
    )


@pytest.mark.parametrize(("target", "gap"), [(0.5, 0.0), (0.9, math.log(9)), (0.6, math.log(1.5))])
def test_a_soft_label_is_content_with_the_gap_of_its_probability(target, gap):
    # d/d gap = sigmoid(gap) - t: 0 at log(t / (1 - t)); a tie wants equal scores
    chosen = tensor([gap]).requires_grad_()
    bradley_terry(chosen, tensor([0.0]), target=tensor([target])).sum().backward()
    assert float(chosen.grad) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("loss_type", "smoothing", "key"),
    [
        ("sigmoid", 0.0, "sigmoid"),
        ("sigmoid", 0.1, "sigmoid_smoothed"),
        ("robust", 0.1, "robust"),
        ("hinge", 0.0, "hinge"),
        ("ipo", 0.0, "ipo"),
        ("ipo_sum", 0.0, "ipo_sums"),
        ("sigmoid_norm", 0.0, "sigmoid_norm"),
    ],
)
def test_dpo_losses_give_the_reference_numbers(golden, loss_type, smoothing, key):
    g = golden("dpo_loss_formulas")
    chosen = tensor(g["policy_chosen"]) - tensor(g["ref_chosen"])
    rejected = tensor(g["policy_rejected"]) - tensor(g["ref_rejected"])
    lengths = {"chosen_tokens": tensor(g["len_chosen"]), "rejected_tokens": tensor(g["len_rejected"])}
    loss = dpo_loss(
        chosen,
        rejected,
        beta=g["beta"],
        loss_type=loss_type,
        label_smoothing=smoothing,
        **lengths,
    )
    torch.testing.assert_close(loss, tensor(g["per_pair"][key]), atol=1e-6, rtol=1e-9)
    assert float((chosen > rejected).double().mean()) == g["rewards/accuracies"]
    torch.testing.assert_close(g["beta"] * chosen, tensor(g["rewards/chosen"]), atol=1e-6, rtol=0)


def test_dpo_by_hand():
    # D = (-10 + 12) - (-20 + 21) = 1; beta = 0.5: log(1 + e^-0.5) = 0.474077
    chosen, rejected = tensor([2.0]), tensor([1.0])
    assert float(dpo_loss(chosen, rejected, beta=0.5)) == pytest.approx(0.47407698418010663)
    # hinge: max(0, 1 - 0.5); ipo with sums: (1 - 1/(2*0.5))^2 = 0
    assert float(dpo_loss(chosen, rejected, beta=0.5, loss_type="hinge")) == 0.5
    assert float(dpo_loss(chosen, rejected, beta=0.5, loss_type="ipo")) == 0.0
    # ipo, 4 and 2 tokens: D' = 2/4 - 1/2 = 0, (0 - 1)^2 = 1; in the paper's form D = 1 whatever the tokens
    lengths = {"chosen_tokens": torch.tensor([4]), "rejected_tokens": torch.tensor([2])}
    assert float(dpo_loss(chosen, rejected, beta=0.5, loss_type="ipo", **lengths)) == 1.0
    assert float(dpo_loss(chosen, rejected, beta=0.5, loss_type="ipo_sum", **lengths)) == 0.0
    # sigmoid_norm: D' = 0, -log sigmoid(0) = log 2; with 1 and 2 tokens D' = 2 - 1/2, log(1 + e^-0.75) = 0.386710
    assert float(dpo_loss(chosen, rejected, beta=0.5, loss_type="sigmoid_norm", **lengths)) == pytest.approx(LN2)
    lengths["chosen_tokens"] = torch.tensor([1])
    loss = dpo_loss(chosen, rejected, beta=0.5, loss_type="sigmoid_norm", **lengths)
    assert float(loss) == pytest.approx(math.log1p(math.exp(-0.75)))


@pytest.mark.parametrize("loss_type", ["sigmoid", "robust", "sigmoid_norm"])
def test_loss_is_log_2_while_the_policy_equals_its_reference(loss_type):
    zero = tensor([0.0, 0.0])
    loss = dpo_loss(zero, zero, beta=0.1, loss_type=loss_type, label_smoothing=0.2)
    torch.testing.assert_close(loss, tensor([math.log(2)] * 2))


def test_simpo_and_orpo_give_trls_numbers(golden):
    g = golden("dpo_loss_formulas")
    chosen = tensor(g["policy_chosen"]) / tensor(g["len_chosen"])
    rejected = tensor(g["policy_rejected"]) / tensor(g["len_rejected"])
    loss = simpo_loss(chosen, rejected, beta=g["simpo"]["beta"], gamma=g["simpo"]["gamma"])
    torch.testing.assert_close(loss, tensor(g["simpo"]["per_pair"]), atol=1e-12, rtol=0)
    weight = g["orpo"]["weight"]
    loss = orpo_loss(chosen, rejected, weight=weight)
    torch.testing.assert_close(loss, -chosen - tensor(g["orpo"]["odds_term"]), atol=1e-6, rtol=0)  # theirs is fp32


def test_simpo_by_hand():
    # beta (c - r) - gamma = 2 (-1 + 1.5) - 1 = 0: log 2
    assert float(simpo_loss(tensor([-1.0]), tensor([-1.5]), beta=2.0, gamma=1.0)) == pytest.approx(LN2)
    # without a margin 2 x 0.5 = 1: log(1 + e^-1)
    loss = simpo_loss(tensor([-1.0]), tensor([-1.5]), beta=2.0, gamma=0.0)
    assert float(loss) == pytest.approx(math.log1p(math.exp(-1)))


def test_orpo_by_hand():
    # P(c) = 1/2: odds 1; P(r) = 1/5: odds 1/4; sigmoid(log 4) = 4/5; -log 1/2 - 0.1 log 4/5
    chosen, rejected = tensor([math.log(1 / 2)]), tensor([math.log(1 / 5)])
    assert float(log_odds(rejected)) == pytest.approx(math.log(1 / 4))
    assert float(orpo_loss(chosen, rejected, weight=0.1)) == pytest.approx(LN2 - 0.1 * math.log(4 / 5))
    # equal odds: the second term is weight x log 2
    assert float(orpo_loss(chosen, chosen, weight=0.1)) == pytest.approx(1.1 * LN2)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_odds_of_a_certain_and_of_a_hopeless_response_are_finite_and_so_are_their_gradients(dtype):
    logp = torch.tensor([0.0, -1e-9, -200.0], dtype=dtype, requires_grad=True)
    odds = log_odds(logp)
    odds.sum().backward()
    assert torch.isfinite(odds).all()
    assert torch.isfinite(logp.grad).all()
    assert float(odds[2].detach()) == pytest.approx(-200)  # log(P / (1 - P)) -> log P


def test_an_unknown_dpo_loss_is_named():
    with pytest.raises(ValueError, match="bogus"):
        dpo_loss(tensor([0.0]), tensor([0.0]), beta=0.1, loss_type="bogus")


@given(finite, finite, st.floats(0.01, 2))
def test_dpo_equals_its_float64_formula(chosen, rejected, beta):
    x = beta * (chosen - rejected)
    expected = math.log1p(math.exp(-x)) if x > 0 else -x + math.log1p(math.exp(x))
    assert float(dpo_loss(tensor([chosen]), tensor([rejected]), beta=beta)) == pytest.approx(expected, abs=1e-12)


@given(finite, finite)
def test_smoothing_by_a_half_forgets_the_label(chosen, rejected):
    there = dpo_loss(tensor([chosen]), tensor([rejected]), beta=0.3, label_smoothing=0.5)
    back = dpo_loss(tensor([rejected]), tensor([chosen]), beta=0.3, label_smoothing=0.5)
    torch.testing.assert_close(there, back)


KTO_CASES = [
    "mixed",
    "mixed weighted",
    "kl below zero is clamped",
    "only desirable",
    "only undesirable",
    "saturated",
    "policy is reference",
]


@pytest.mark.parametrize("name", KTO_CASES)
def test_kto_gives_trls_numbers(golden, name):
    g = golden("kto_loss")
    case = next(one for one in g["cases"] if one["name"] == name)
    policy, ref, kl_policy, kl_ref = (
        torch.tensor(case[key], dtype=torch.float64) for key in ("policy", "ref", "kl_policy", "kl_ref")
    )
    zero = kto_zero(kl_policy - kl_ref)
    assert float(zero) == pytest.approx(case["metrics"]["kl"], abs=1e-12)
    loss = kto_loss(
        policy - ref,
        torch.tensor(case["label"]),
        zero,
        beta=case["beta"],
        desirable_weight=case["desirable_weight"],
        undesirable_weight=case["undesirable_weight"],
    )
    assert float(loss.mean()) == pytest.approx(case["loss"], abs=g["tolerance"])


def test_kto_by_hand_at_its_zero_and_no_gradient_through_it():
    # r = z: 1 - sigmoid(0) = 1/2 of each weight, whatever beta
    ratio = torch.tensor([2.0, 2.0], requires_grad=True)
    zero = torch.tensor(2.0, requires_grad=True)
    loss = kto_loss(ratio, torch.tensor([True, False]), zero, beta=0.3, desirable_weight=1.5, undesirable_weight=4.0)
    torch.testing.assert_close(loss, torch.tensor([0.75, 2.0]))
    loss.sum().backward()
    # d/dr w sigmoid(-+beta (r - z)) = -+w beta / 4
    torch.testing.assert_close(ratio.grad, torch.tensor([-1.5 * 0.3 / 4, 4.0 * 0.3 / 4]))
    assert zero.grad is None


def test_ktos_zero_is_the_clamped_mean_and_has_no_gradient():
    ratio = torch.tensor([3.0, -1.0], requires_grad=True)
    assert float(kto_zero(ratio)) == 1.0
    assert float(kto_zero(-ratio)) == 0.0
    assert not kto_zero(ratio).requires_grad
