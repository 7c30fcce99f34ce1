"""The clipped losses: TRL's golden numbers and gradients, cases by hand, micro-batches that add up."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.advantages import response_mask, rollout_advantages
from engine.ppo_losses import kl_loss, policy_loss, value_loss

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "ppo_tensors.json").read_text())
INPUTS: dict[str, Tensor] = {
    key: torch.tensor(value, dtype=torch.float64) for key, value in GOLDEN["inputs"].items() if key != "responses"
}
LENGTHS = torch.tensor([one + 1 for one in GOLDEN["shape"]["last_token_index"]])


def test_losses_and_gradients_equal_the_golden_numbers() -> None:
    targets = rollout_advantages(
        kl=INPUTS["logprobs"] - INPUTS["ref_logprobs"],
        scores=torch.tensor(GOLDEN["shape"]["scores_after_eos_penalty"], dtype=torch.float64),
        values=INPUTS["values"],
        lengths=LENGTHS,
        kl_coefficient=0.05,
        gamma=1.0,
        lam=0.95,
        position="after",
    )
    logps = INPUTS["new_logprobs"].clone().requires_grad_()
    values = INPUTS["new_values"].clone().requires_grad_()
    tokens, value_tokens = int(targets.mask.sum()), int(targets.value_mask.sum())
    policy = policy_loss(logps, INPUTS["logprobs"], targets.advantages, targets.mask, 0.2)
    value = value_loss(values, INPUTS["values"], targets.returns, targets.value_mask, 0.2)
    loss = policy.loss / tokens + 0.1 * value.loss / value_tokens
    loss.backward()
    wanted = GOLDEN["clipped_losses_one_micro_batch"]
    assert policy.loss.item() / tokens == pytest.approx(wanted["loss/policy"], abs=1e-6)
    assert value.loss.item() / value_tokens == pytest.approx(wanted["loss/value"], abs=1e-6)
    assert loss.item() == pytest.approx(wanted["loss"], abs=1e-6)
    assert policy.clipped.item() / tokens == pytest.approx(wanted["policy/clipfrac"], abs=1e-6)
    assert value.clipped.item() / value_tokens == pytest.approx(wanted["val/clipfrac"], abs=1e-6)
    assert policy.approx_kl.item() / tokens == pytest.approx(wanted["policy/approxkl_masked"], abs=1e-6)
    assert policy.ratio.item() / tokens == pytest.approx(wanted["val/ratio_masked"], abs=1e-6)
    assert torch.allclose(logps.grad, torch.tensor(wanted["grad_new_logprobs"], dtype=torch.float64), atol=1e-6)
    assert torch.allclose(values.grad, torch.tensor(wanted["grad_new_values"], dtype=torch.float64), atol=1e-6)


def test_a_ratio_of_1_gives_minus_the_advantage_and_its_gradient() -> None:
    logps = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    found = policy_loss(logps, logps.detach(), torch.tensor([[0.5, -1.0]]), torch.ones(1, 2, dtype=torch.bool), 0.2)
    found.loss.backward()
    assert found.loss.item() == pytest.approx(0.5)
    assert logps.grad.tolist() == [[-0.5, 1.0]]
    assert (found.ratio.item(), found.approx_kl.item(), found.clipped.item()) == (2.0, 0.0, 0)


def test_a_good_token_beyond_the_clip_gets_no_more_gradient_and_a_bad_one_does() -> None:
    logps = torch.log(torch.tensor([[1.5, 1.5, 0.5, 0.5]])).requires_grad_()
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    found = policy_loss(logps, torch.zeros(1, 4), advantages, torch.ones(1, 4, dtype=torch.bool), 0.2)
    found.loss.backward()
    # max(-A r, -A clip(r)): the pessimistic one.  [-1.2, 1.5, -0.5, 0.8]
    assert found.loss.item() == pytest.approx(-1.2 + 1.5 - 0.5 + 0.8)
    assert logps.grad[0].tolist() == pytest.approx([0.0, 1.5, -0.5, 0.0])
    assert found.clipped.item() == 2


def test_a_ratio_beyond_what_fp32_holds_leaves_loss_and_gradient_numbers() -> None:
    # log-ratio 100, and e^100 is inf in fp32. A = 0: 0 x inf would be no number. A = 1: the clip takes it, -1.2, and
    # its gradient of 0 times the ratio would be none either.
    logps = torch.tensor([[100.0, 100.0]], requires_grad=True)
    found = policy_loss(logps, torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool), 0.2)
    found.loss.backward()
    assert found.loss.item() == pytest.approx(-1.2)
    assert logps.grad.tolist() == [[0.0, 0.0]]
    assert all(torch.isfinite(one) for one in found)


def test_the_value_loss_takes_the_worse_of_both() -> None:
    # V = 2, V_old = 0: clipped to 0.2.  To the return 1: (2-1)^2 = 1 against (0.2-1)^2 = 0.64; to 3: 1 against 7.84
    found = value_loss(
        torch.tensor([[2.0, 2.0]]),
        torch.zeros(1, 2),
        torch.tensor([[1.0, 3.0]]),
        torch.ones(1, 2, dtype=torch.bool),
        0.2,
    )
    assert found.loss.item() == pytest.approx(0.5 * (1 + 7.84))
    assert found.clipped.item() == 1


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 6), min_size=2, max_size=5), st.integers(1, 4))
def test_micro_batches_and_padding_give_the_gradient_of_the_whole(seed: int, lengths: list[int], split: int) -> None:
    source = torch.Generator().manual_seed(seed)
    rows = len(lengths)
    mask = response_mask(torch.tensor(lengths), 6)
    old, advantages, returns, new = (torch.randn(rows, 6, generator=source, dtype=torch.float64) for _ in range(4))
    whole = new.clone().requires_grad_()
    count = mask.sum()
    loss = policy_loss(whole, old, advantages, mask, 0.2).loss + value_loss(whole, old, returns, mask, 0.2).loss
    (loss / count).backward()
    dirty = torch.where(mask, new, 1e4).requires_grad_()  # exp(1e4) is inf: it must stay outside
    for start in range(0, rows, split):
        part = slice(start, start + split)
        loss = policy_loss(dirty[part], old[part], advantages[part], mask[part], 0.2).loss
        loss = loss + value_loss(dirty[part], old[part], returns[part], mask[part], 0.2).loss
        (loss / count).backward()
    assert torch.allclose(dirty.grad, whole.grad, atol=1e-12)
    assert not dirty.grad[~mask].any()


def test_the_kl_in_the_loss_by_hand_with_its_gradient() -> None:
    # k3 = e^d - 1 - d with d = ref - new;  d/d new = 1 - e^d: 0 where both agree, and never from outside the mask
    new = torch.tensor([[-1.0, -2.0, torch.nan]], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([[-1.0, -1.5, torch.inf]], dtype=torch.float64)
    found = kl_loss(new, ref, torch.tensor([[True, True, False]]))
    found.backward()
    assert found.item() == pytest.approx(math.exp(0.5) - 1.5)
    assert new.grad.tolist() == [pytest.approx([0.0, 1 - math.exp(0.5), 0.0])]


def test_an_advantage_per_response_gives_the_gradient_of_reinforce_on_whole_responses() -> None:
    # at a ratio of 1:  d/d theta of -A sum_t ratio_t = -A d/d theta log pi(y|x), the sum over the response's tokens
    logps = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -1.5, 0.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    of_response = torch.tensor([0.7, -0.7], dtype=torch.float64)
    advantages = torch.where(mask, of_response[:, None], 0)
    policy_loss(logps, logps.detach(), advantages, mask, 0.2).loss.backward()
    clipped = logps.grad.clone()
    logps.grad = None
    (-of_response * torch.where(mask, logps, 0).sum(1)).sum().backward()
    assert torch.allclose(clipped, logps.grad)
