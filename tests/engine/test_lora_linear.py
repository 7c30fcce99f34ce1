from __future__ import annotations

import torch

from engine.lora_linear import GatedMlp, Lora, lora_gated_mlp, lora_linear

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
        torch.testing.assert_close(lora_linear(Lora(base, first, second, 0.5), x), expected)
        with torch.no_grad():
            torch.testing.assert_close(lora_linear(Lora(base, first, second, 0.5), x), expected)
        assert torch.autograd.gradcheck(
            lambda *given, base=base: lora_linear(Lora(base, *given[1:], 0.5), given[0]), (x, first, second)
        )


def test_an_input_without_gradient_costs_none():
    base, x, first, second = parts()
    lora_linear(Lora(base, first, second, 0.5), x.detach()).sum().backward()
    assert first.grad is not None
    assert x.grad is None


def test_a_gpt2_layer_with_its_weight_the_other_way_round_works_too():
    from transformers.pytorch_utils import Conv1D

    base, x, first, second = parts()
    turned = Conv1D(7, 5).double().requires_grad_(False)
    with torch.no_grad():
        turned.weight.copy_(base.weight.T)
        turned.bias.copy_(base.bias)
    loss = lora_linear(Lora(turned, first, second, 0.5), x).square().sum()
    [grad] = torch.autograd.grad(loss, [x])
    [expected] = torch.autograd.grad(lora_linear(Lora(base, first, second, 0.5), x).square().sum(), [x])
    torch.testing.assert_close(grad, expected)


def mlp_parts():
    source = torch.Generator().manual_seed(1)
    sizes = ((5, 7), (5, 7), (7, 5))
    bases = [torch.nn.Linear(*size, bias=False, dtype=F64).requires_grad_(False) for size in sizes]
    masters = [
        torch.randn(*shape, generator=source, dtype=F64).requires_grad_()
        for inner, outer in sizes
        for shape in ((2, inner), (outer, 2))
    ]
    x = torch.randn(2, 3, 5, generator=source, dtype=F64).requires_grad_()
    return bases, masters, x


def layers_of(bases, masters):
    return [Lora(base, masters[2 * place], masters[2 * place + 1], 0.5) for place, base in enumerate(bases)]


def test_a_gated_mlp_is_its_three_layers_with_every_gradient():
    bases, masters, x = mlp_parts()
    gate, up, down = layers_of(bases, masters)
    expected = lora_linear(down, torch.nn.functional.silu(lora_linear(gate, x)) * lora_linear(up, x))
    torch.testing.assert_close(lora_gated_mlp(GatedMlp(gate, up, down), x), expected)
    with torch.no_grad():
        torch.testing.assert_close(lora_gated_mlp(GatedMlp(gate, up, down), x), expected)

    def apply(x, *masters):
        return lora_gated_mlp(GatedMlp(*layers_of(bases, masters)), x)

    assert torch.autograd.gradcheck(apply, (x, *masters))


def test_a_gated_mlp_keeps_half_of_what_its_layers_would():
    bases, masters, x = mlp_parts()
    gate, up, down = layers_of(bases, masters)

    def kept(run):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda one: sizes.append(one.shape) or one, lambda one: one):
            run()
        return sum(shape.numel() == 2 * 3 * 7 for shape in sizes)

    layer_by_layer = kept(
        lambda: lora_linear(down, torch.nn.functional.silu(lora_linear(gate, x)) * lora_linear(up, x))
    )
    assert (kept(lambda: lora_gated_mlp(GatedMlp(gate, up, down), x)), layer_by_layer) == (2, 4)
