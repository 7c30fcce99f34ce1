from __future__ import annotations

import pytest
import torch

from engine import logps
from engine.logps import token_logps, token_stats

F64 = torch.float64


def setup(rows=7, width=5, vocabulary=11, dtype=F64, seed=0):
    source = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=source, dtype=F64).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=source, dtype=F64).to(dtype)
    targets = torch.randint(vocabulary, (rows,), generator=source)
    return hidden, weight, targets


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("block", [2, 4, 2048])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunks_and_blocks_give_the_plain_log_softmax_and_its_gradient(monkeypatch, chunk, block, temperature):
    monkeypatch.setattr(logps, "VOCABULARY_BLOCK", block)
    hidden, weight, targets = setup()
    upstream = torch.arange(1.0, 8.0, dtype=F64)
    ours, entropy, correct = token_stats(hidden, targets, weight, temperature, chunk)
    (ours * upstream).sum().backward()
    plain = hidden.detach().clone().requires_grad_()
    table = torch.log_softmax(plain @ weight.T / temperature, 1)
    expected = table.gather(1, targets[:, None]).squeeze(1)
    (expected * upstream).sum().backward()
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(hidden.grad, plain.grad)
    torch.testing.assert_close(entropy, -(table.exp() * table).sum(1).detach())
    assert torch.equal(correct, table.argmax(1) == targets)


def test_the_gradient_passes_gradcheck():
    hidden, weight, targets = setup(rows=3)
    assert torch.autograd.gradcheck(lambda h: token_logps(h, targets, weight, 0.9)[0], (hidden,))


def test_huge_logits_stay_finite():
    # one logit of 1e4 above the rest: log p = 0 for it and about -1e4 for another
    weight = torch.tensor([[1e4], [0.0]])
    found, _ = token_logps(torch.ones(2, 1), torch.tensor([0, 1]), weight)
    torch.testing.assert_close(found, torch.tensor([0.0, -1e4]))


def test_bf16_states_give_fp32_log_probabilities_near_the_exact_ones():
    hidden, weight, targets = setup(dtype=torch.bfloat16)
    ours, _ = token_logps(hidden, targets, weight)
    table = torch.log_softmax(hidden.detach().double() @ weight.double().T, 1)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), table.gather(1, targets[:, None]).squeeze(1), atol=0.05, rtol=0)
    ours.sum().backward()
    assert hidden.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("block", [4, 2048])
def test_the_slope_of_a_nearly_certain_token_keeps_its_digits_in_bf16(monkeypatch, block):
    # d log p / dh = W_y - sum_v p_v W_v: as p_y nears 1 the two are equal to bf16's eight bits, and only the
    # form without the target in its sum still knows their difference.
    monkeypatch.setattr(logps, "VOCABULARY_BLOCK", block)
    hidden, weight, _ = setup(rows=64, width=32, vocabulary=24, dtype=torch.bfloat16)
    hidden = (hidden.detach() * 1.2).requires_grad_()
    exact = hidden.detach().double().requires_grad_()
    table = torch.log_softmax(exact @ weight.double().T, 1)
    targets = table.argmax(1)
    sure = table.max(1).values.exp() > 0.9
    assert sure.sum() > 20
    table.gather(1, targets[:, None]).sum().backward()
    ours, _ = token_logps(hidden, targets, weight)
    ours.sum().backward()
    error = (hidden.grad.double() - exact.grad).norm(dim=1) / exact.grad.norm(dim=1)
    assert error[sure].median() < 0.04


def test_nothing_to_predict_gives_nothing():
    hidden, weight, _ = setup()
    found, entropy = token_logps(hidden[:0], torch.zeros(0, dtype=torch.long), weight)
    assert found.shape == entropy.shape == (0,)
    found.sum().backward()


@pytest.mark.parametrize("chunk", [4, 100])
def test_halves_on_two_threads_give_what_one_thread_gives(two_threads, chunk):
    hidden, weight, targets = setup()
    both = token_stats(hidden, targets, weight, 0.7, chunk)
    both[0].sum().backward()
    slope = hidden.grad.clone()
    torch.set_num_threads(1)
    hidden.grad = None
    one = token_stats(hidden, targets, weight, 0.7, chunk)
    one[0].sum().backward()
    for found, expected in zip((*both, slope), (*one, hidden.grad), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_half_that_fails_is_told(two_threads):
    hidden, weight, targets = setup()
    targets[-1] = 11  # no token: the second half's slope looks for its row
    with pytest.raises(IndexError):
        token_stats(hidden, targets, weight)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_entropy_in_fp32_is_that_of_the_definition_where_a_token_is_nearly_certain(scale):
    hidden, weight, targets = setup(rows=64, width=32, vocabulary=40, dtype=torch.float32)
    hidden = (hidden.detach() * scale).requires_grad_()
    table = torch.log_softmax(hidden.detach().double() @ weight.double().T, 1)
    exact = -(table.exp() * table).nan_to_num().sum(1)
    for states in (hidden, hidden.detach()):
        _, entropy, _ = token_stats(states, targets, weight)
        assert (entropy >= 0).all()
        assert (entropy.double() - exact).abs().max() < 2e-4 * scale
