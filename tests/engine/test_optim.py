from __future__ import annotations

import pytest
import torch

from engine.optim import Group, Optimiser, schedule_factor
from workbench.recipes import SftRecipe


def test_schedules_by_hand():
    # 10 steps, 2 of warm-up: 1/2, 1, then linear over 8: 1, 7/8, ... and cosine: 0.5 (1 + cos(pi k/8))
    linear = [schedule_factor(step, 10, 2, "linear") for step in range(10)]
    assert linear == pytest.approx([0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert schedule_factor(6, 10, 2, "cosine") == pytest.approx(0.5)
    assert schedule_factor(2, 10, 2, "cosine") == 1.0
    assert {schedule_factor(step, 10, 0, "constant") for step in range(10)} == {1.0}


def test_each_group_has_its_own_rate_and_only_given_parameters_move():
    first, second, other = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    recipe = SftRecipe(schedule="constant", max_grad_norm=1000.0)
    optimiser = Optimiser([Group([first], 0.1), Group([second], 0.01)], recipe, 10)
    (first.sum() + second.sum() + other.sum()).backward()
    optimiser.step()
    # the first AdamW step moves every weight by its learning rate
    torch.testing.assert_close(first.detach(), torch.full((2,), 0.9))
    torch.testing.assert_close(second.detach(), torch.full((2,), 0.99))
    assert torch.equal(other.detach(), torch.ones(2))
    assert first.grad is None


def test_clipping_shortens_the_gradient_and_tells_its_length():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimiser = Optimiser([Group([weight], 0.1)], SftRecipe(max_grad_norm=1.0), 10)
    weight.grad = torch.tensor([3.0, 4.0])
    assert float(optimiser.clip()) == 5.0
    torch.testing.assert_close(weight.grad, torch.tensor([0.6, 0.8]))


def test_a_restored_optimiser_goes_on_exactly():
    def make():
        weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        return weight, Optimiser([Group([weight], 0.1)], SftRecipe(weight_decay=0.1), 6)

    def go(weight, optimiser, steps):
        for _ in range(steps):
            (weight**2).sum().backward()
            optimiser.clip()
            optimiser.step()

    weight, optimiser = make()
    go(weight, optimiser, 6)
    half, first = make()
    go(half, first, 3)
    resumed, second = make()
    with torch.no_grad():
        resumed.copy_(half)
    second.restore(first.state())
    assert second.learning_rate == first.learning_rate
    go(resumed, second, 3)
    assert torch.equal(resumed, weight)
