from __future__ import annotations

import pytest
import torch

from engine.adapters import Adapters
from engine.masking import Example
from engine.neftune import noise_like, noisy_embeddings
from engine.packing import lay_out

SHORT, LONG = Example.plain((5, 6, 2), 1), Example.plain((7, 8, 9, 10, 11, 12, 13, 2), 1)


def test_noise_is_uniform_within_alpha_over_the_root_of_length_times_width():
    # L = 4, D = 400, alpha = 5: +- 5 / sqrt(1600) = 0.125; the variance of a uniform number in +- a is a^2 / 3
    torch.manual_seed(0)
    noise = noise_like(torch.zeros(50, 4, 400), torch.full((50, 4), 4), 5.0)
    assert noise.abs().max() <= 0.125
    assert noise.std().item() == pytest.approx(0.125 / 3**0.5, rel=0.01)
    assert noise.mean().item() == pytest.approx(0, abs=1e-3)
    # so a whole sequence's noise is alpha / sqrt(3) long, whatever its length
    assert noise.flatten(1).norm(dim=1).mean().item() == pytest.approx(5 / 3**0.5, rel=0.01)


@pytest.mark.parametrize("packed", [True, False])
def test_the_length_is_that_of_each_positions_own_sequence(packed):
    layout = lay_out([SHORT, LONG], torch.device("cpu"), packed=packed)
    assert layout.sequence_lengths().tolist() == ([[3] * 3 + [8] * 8] if packed else [[3] * 8, [8] * 8])


def test_an_answer_behind_a_shared_prompt_is_as_long_as_both():
    both = [Example.plain((5, 6, 9, 2), 2), Example.plain((5, 6, 9, 9, 9, 2), 2)]
    layout = lay_out(both, torch.device("cpu"), packed=True)
    assert layout.sequence_lengths().tolist() == [[2, 2, 4, 4, 6, 6, 6, 6]]


def test_noise_is_there_only_while_it_is_open_and_0_draws_nothing(make_base):
    adapters = Adapters(make_base())
    layout = adapters.lay_out([SHORT, LONG])

    def states():
        with torch.no_grad():
            return adapters.flat(layout)

    plain, before = states(), torch.get_rng_state()
    with noisy_embeddings(adapters.base.decoder, layout, 0.0):
        assert torch.equal(states(), plain)
    assert torch.equal(torch.get_rng_state(), before)
    with noisy_embeddings(adapters.base.decoder, layout, 5.0):
        assert not torch.allclose(states(), plain)
    assert torch.equal(states(), plain)
