from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.adapters import Adapters
from engine.logps import token_logps
from engine.masking import Example
from engine.packing import can_pack, lay_out
from tests.engine.conftest import randomise

CPU, F64 = torch.device("cpu"), torch.float64
PROMPT, OTHER = (5, 6, 7, 8), (9, 10)


def answer(prompt, *ids):
    return Example.plain((*prompt, *ids), len(prompt))


ROWS = [answer(PROMPT, 11, 12, 2), answer(OTHER, 13, 2), answer(PROMPT, 14, 2), answer(PROMPT, 15, 16, 17, 2)]


def test_a_shared_prompt_passes_once_and_each_answer_sees_it_and_itself():
    layout = lay_out(ROWS, CPU, packed=True)
    # prompt, its first answer, the other sequence whole, and the two further answers
    assert layout.input_ids.tolist() == [[*PROMPT, 11, 12, 2, *OTHER, 13, 2, 14, 2, 15, 16, 17, 2]]
    assert layout.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 4, 5, 6, 7]]
    assert [(block.length, block.root) for block in layout.blocks] == [(4, -1), (3, 0), (4, -1), (2, 0), (4, 0)]
    assert layout.tokens == 17  # of 25 apart


def test_a_token_is_predicted_by_the_state_before_it():
    layout = lay_out(ROWS, CPU, packed=True)
    assert layout.targets.tolist() == [11, 12, 2, 13, 2, 14, 2, 15, 16, 17, 2]
    assert layout.states.tolist() == [3, 4, 5, 8, 9, 3, 11, 3, 13, 14, 15]  # the first of each: its prompt's last
    assert layout.rows.tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 3]
    assert layout.last.tolist() == [6, 10, 12, 16]
    assert layout.through.tolist() == [3, 4, 5, 6, 8, 9, 10, 3, 11, 12, 3, 13, 14, 15, 16]
    assert layout.sums(torch.ones(11)).tolist() == layout.lengths.tolist() == [3, 2, 2, 4]


def test_padded_rows_have_the_same_indices_in_their_own_places():
    layout = lay_out(ROWS[1:3], CPU, packed=False)
    assert layout.input_ids.tolist() == [[9, 10, 13, 2, 0, 0], [5, 6, 7, 8, 14, 2]]
    assert layout.blocks == ()
    assert layout.states.tolist() == [1, 2, 9, 10]
    assert layout.last.tolist() == [3, 11]
    assert layout.tokens == 10


def test_an_end_of_text_inside_a_prompt_and_a_pad_that_equals_it_change_nothing():
    rows = [Example.plain((0, 2, 5, 2), 2), Example.plain((7, 2), 1)]
    for packed in (True, False):
        layout = lay_out(rows, CPU, packed=packed)
        assert layout.targets.tolist() == [5, 2, 2]
        assert layout.lengths.tolist() == [2, 1]


def test_a_prompt_that_is_trained_itself_is_not_shared():
    whole = [Example((*PROMPT, end), (True,) * 5, 4) for end in (11, 12)]
    layout = lay_out(whole, CPU, packed=True)
    assert [block.root for block in layout.blocks] == [-1, -1]
    assert layout.lengths.tolist() == [4, 4]  # the first token of a sequence is predicted by nothing


def sums_and_gradients(make_base, rows, *, packed, together=True):
    adapters = Adapters(make_base(dtype=F64))
    assert adapters.base.packs
    adapters.add("policy", rank=4, alpha=8, trainable=True)
    randomise(adapters, "policy", 0.2, seed=3)
    parts = [rows] if together else [[one] for one in rows]
    sums = []
    with adapters.use("policy"):
        for part in parts:
            layout = lay_out(part, CPU, packed=packed)
            hidden = adapters.flat(layout)
            logps, _ = token_logps(hidden[layout.states], layout.targets, adapters.base.head_weight)
            found = layout.sums(logps)
            (found * torch.arange(1.0, len(found) + 1, dtype=F64)).sum().backward() if together else None
            sums += found.detach().tolist()
    return sums, [one.grad for one in adapters.parameters("policy")]


def test_packing_and_prefix_sharing_change_no_log_probability_and_no_gradient(make_base):
    packed, packed_grads = sums_and_gradients(make_base, ROWS, packed=True)
    padded, padded_grads = sums_and_gradients(make_base, ROWS, packed=False)
    alone, _ = sums_and_gradients(make_base, ROWS, packed=False, together=False)
    assert packed == pytest.approx(padded, abs=1e-10)
    assert packed == pytest.approx(alone, abs=1e-10)
    for one, other in zip(packed_grads, padded_grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)  # LoRA masters are fp32


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(3, 60), max_size=6)), min_size=1, max_size=6))
def test_any_sequences_score_the_same_packed_and_padded(tiny_base, drawn):
    prompts = ((5,), (5, 6, 7), (8, 9, 10, 11, 12))
    rows = [answer(prompts[which], *ids, 2) for which, ids in drawn]
    found = []
    with torch.no_grad():
        for packed in (True, False):
            layout = lay_out(rows, CPU, packed=packed)
            found.append(Adapters(tiny_base).flat(layout)[layout.through])
    torch.testing.assert_close(found[0], found[1], atol=1e-10, rtol=0)


def test_models_with_windows_and_other_devices_are_padded(make_base):
    config = make_base().model.config
    assert can_pack(config, CPU)
    assert not can_pack(config, torch.device("cuda"))
    config.sliding_window = 64
    assert not can_pack(config, CPU)
