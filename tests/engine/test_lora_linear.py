from __future__ import annotations

import torch

from engine.lora_linear import lora_linear

F64 = torch.float64


def parts(bias=True):
    source = torch.Generator().manual_seed(0)
    base = torch.nn.Linear(5, 7, bias=bias, dtype=F64).requires_grad_(False)
    x, first, second = (
        torch.randn(*shape, generator=source, dtype=F64).requires_grad_() for shape in ((2, 3, 5), (2, 5), (7, 2))
    )
    return base, x, first, second


def test_it_is_the_frozen_layer_plus_scaled_b_a_x_with_every_gradient():
    for bias in (True, False):
        base, x, first, second = parts(bias)
        expected = base(x) + 0.5 * x @ first.T @ second.T
        torch.testing.assert_close(lora_linear(base, x, first, second, 0.5), expected)
        with torch.no_grad():
            torch.testing.assert_close(lora_linear(base, x, first, second, 0.5), expected)
        assert torch.autograd.gradcheck(lambda *given, base=base: lora_linear(base, *given, 0.5), (x, first, second))


def test_an_input_without_gradient_costs_none():
    base, x, first, second = parts()
    lora_linear(base, x.detach(), first, second, 0.5).sum().backward()
    assert first.grad is not None
    assert x.grad is None


def test_a_gpt2_layer_with_its_weight_the_other_way_round_works_too():
    from transformers.pytorch_utils import Conv1D

    base, x, first, second = parts()
    turned = Conv1D(7, 5).double().requires_grad_(False)
    with torch.no_grad():
        turned.weight.copy_(base.weight.T)
        turned.bias.copy_(base.bias)
    loss = lora_linear(turned, x, first, second, 0.5).square().sum()
    [grad] = torch.autograd.grad(loss, [x])
    [expected] = torch.autograd.grad(lora_linear(base, x, first, second, 0.5).square().sum(), [x])
    torch.testing.assert_close(grad, expected)
