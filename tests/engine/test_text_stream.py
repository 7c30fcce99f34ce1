"""Text from tokens as they come: no half characters, nothing lost, nothing said twice."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text_stream import TextStream, decode, token_texts


@pytest.fixture(scope="module")
def tiny(tiny_model_dir):
    from engine.base_model import load_tokenizer

    return load_tokenizer(tiny_model_dir)[0]


def test_a_character_of_several_tokens_comes_whole(tiny):
    ids = tiny("a é 🙂 ok", add_special_tokens=False)["input_ids"]
    stream = TextStream(tiny)
    pieces = [stream.add(one) for one in ids]
    assert "".join(pieces) == "a é 🙂 ok"
    assert not any("\ufffd" in one for one in pieces)
    assert "" in pieces


def test_a_response_that_ends_within_a_character_shows_its_rest(tiny):
    ids = tiny("🙂", add_special_tokens=False)["input_ids"][:-1]
    stream = TextStream(tiny)
    assert [stream.add(one) for one in ids] == [""] * len(ids)
    assert "\ufffd" in stream.rest()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(0, 40))
def test_pieces_add_up_to_the_decoded_whole(tiny, seed, length):
    source = random.Random(seed)
    ids = [source.randrange(4, 272 - 3) for _ in range(length)]
    stream = TextStream(tiny)
    text = "".join(stream.add(one) for one in ids) + stream.rest()
    whole = decode(tiny, ids)
    assert text.replace("\ufffd", "") == whole.replace("\ufffd", "")


def test_token_texts_show_special_tokens_by_name(tiny):
    ids = [*tiny("hé", add_special_tokens=False)["input_ids"], 2]
    assert token_texts(tiny, ids) == ["h", "", "é", "<|im_end|>"]
    assert token_texts(tiny, []) == []
