from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.masking import IGNORED, fit, keep_end, pair_examples, prompt_ids, sft_example
from engine.templates import encode_pair, encode_prompt
from workbench.records import Message

HELLO = [Message("user", "Hi")]


def test_only_the_completion_and_its_eos_are_trained(tokenizer):
    one = sft_example(tokenizer, HELLO, "Yes", 256)
    trained = [token for token, keep in zip(one.input_ids, one.mask, strict=True) if keep]
    assert tokenizer.decode(trained) == "Yes<|im_end|>"
    assert one.trained_tokens == len(trained) == 4
    assert one.labels.count(IGNORED) == one.prompt_length == len(one.input_ids) - 4


def test_im_end_inside_the_prompt_is_kept_though_it_is_also_pad_and_eos(tokenizer):
    one = sft_example(tokenizer, HELLO, "Yes", 256)
    assert one.input_ids.count(2) == 3
    assert [keep for token, keep in zip(one.input_ids, one.mask, strict=True) if token == 2] == [False, False, True]


def test_the_whole_conversation_is_trained_when_asked(tokenizer):
    one = sft_example(tokenizer, HELLO, "Yes", 256, "conversation")
    assert all(one.mask)
    assert one.trained_tokens == len(one.input_ids) - 1  # nothing predicts the first token


def test_truncation_keeps_the_end_of_the_prompt_and_the_whole_completion(tokenizer):
    prompt, answer = encode_pair(tokenizer, [Message("user", "x" * 100)], "Yes")
    one = sft_example(tokenizer, [Message("user", "x" * 100)], "Yes", 40)
    assert list(one.input_ids) == prompt[-36:] + answer
    assert (one.cut_prompt, one.cut_completion) == (len(prompt) - 36, 0)


def test_a_completion_longer_than_half_the_window_leaves_the_prompt_half_and_loses_its_end(tokenizer):
    prompt, answer = encode_pair(tokenizer, HELLO, "y" * 100)
    one = sft_example(tokenizer, HELLO, "y" * 100, 40)
    assert list(one.input_ids) == prompt[-20:] + answer[:20]
    assert one.cut_completion == 81
    assert one.truncated


def test_trls_truncation_keeps_the_start(tokenizer):
    prompt, answer = encode_pair(tokenizer, HELLO, "y" * 100)
    one = sft_example(tokenizer, HELLO, "y" * 100, 80, truncation="keep_start")
    assert list(one.input_ids) == (prompt + answer)[:80]
    assert one.trained_tokens == 80 - len(prompt)
    none = sft_example(tokenizer, HELLO, "y", len(prompt), truncation="keep_start")
    assert none.trained_tokens == 0


def test_both_sides_of_a_pair_share_their_prompt_ids(tokenizer):
    chosen, rejected = pair_examples(tokenizer, HELLO, "\nYes", "No", 256)
    assert chosen.prompt_length == rejected.prompt_length == len(encode_prompt(tokenizer, HELLO)) - 1
    assert chosen.input_ids[: chosen.prompt_length] == rejected.input_ids[: chosen.prompt_length]
    assert chosen.trained_tokens == len(chosen.input_ids) - chosen.prompt_length


def test_a_pair_is_cut_with_one_prompt_for_both_sides(tokenizer):
    chosen, rejected = pair_examples(tokenizer, [Message("user", "x" * 100)], "Yes", "No, never", 60)
    assert chosen.input_ids[: chosen.prompt_length] == rejected.input_ids[: rejected.prompt_length]
    assert chosen.cut_prompt == rejected.cut_prompt > 0
    assert chosen.cut_completion == rejected.cut_completion == 0
    one, two = pair_examples(tokenizer, [Message("user", "x" * 100)], "Yes", "No", 60, truncation="keep_start")
    assert one.input_ids == two.input_ids


def test_a_bos_survives_the_cut():
    assert keep_end([3, 10, 11, 12, 13], 3, bos=3) == [3, 12, 13]
    assert keep_end([10, 11, 12, 13], 3) == [11, 12, 13]
    assert keep_end([1, 2], 3) == [1, 2]


def test_a_prompt_for_sampling_is_cut_to_its_room_and_says_by_how_much(tokenizer):
    whole = encode_prompt(tokenizer, HELLO)
    assert prompt_ids(tokenizer, HELLO, 10) == (whole[-10:], len(whole) - 10)
    assert prompt_ids(tokenizer, HELLO, 500) == (whole, 0)


@given(st.integers(0, 60), st.lists(st.integers(1, 60), min_size=1, max_size=2), st.integers(16, 64))
def test_what_is_cut_always_fits_and_loses_no_more_than_it_must(prompt, completions, window):
    ids = list(range(1000, 1000 + prompt))
    answers = [list(range(length)) for length in completions]
    kept, cut, lost_prompt, lost = fit(ids, answers, window)
    assert all(len(kept) + len(one) <= window for one in cut)
    assert kept == ids[len(ids) - len(kept) :]
    assert all(one == answer[: len(one)] for one, answer in zip(cut, answers, strict=True))
    assert lost_prompt == prompt - len(kept)
    if prompt + max(completions) <= window:
        assert lost_prompt == 0
        assert lost == [0] * len(answers)
    if max(completions) <= window - window // 2:
        assert lost == [0] * len(answers)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.text(max_size=30), st.text(min_size=1, max_size=30))
def test_any_text_gives_a_prompt_a_completion_and_one_eos_at_its_end(tokenizer, question, answer):
    one = sft_example(tokenizer, [Message("user", question)], answer, 4096)
    assert one.input_ids[-1] == 2
    assert one.mask[-1]
    assert sorted(one.mask) == list(one.mask)  # one change, from prompt to completion


@pytest.mark.demo_model
def test_the_masks_are_trls_on_the_demo_model(golden, demo_model_dir):
    from engine.base_model import load_tokenizer

    tokenizer, note = load_tokenizer(demo_model_dir)
    assert note == ""
    g = golden("sft_masks")
    for messages, whole, cut in zip(g["messages"], g["completion_only"], g["keep_start_96"], strict=True):
        *prompt, last = [Message(one["role"], one["content"]) for one in messages]
        trl = sft_example(tokenizer, prompt, last.content, 4096, ending="template")
        assert list(trl.input_ids) == whole["input_ids"]
        assert trl.prompt_length == whole["trained_from"]
        short = sft_example(tokenizer, prompt, last.content, 96, ending="template", truncation="keep_start")
        assert list(short.input_ids) == cut["input_ids"]
        assert short.mask.index(True) == cut["trained_from"]
        ours = sft_example(tokenizer, prompt, last.content, 4096)
        assert list(ours.input_ids) == whole["input_ids"][:-1]  # all but the newline behind <|im_end|>


TEXTS_ALONE = "{% for m in messages %}{{ m['content'] + (eos_token if m['role'] == 'assistant' else '') }}{% endfor %}"
"""What TRL makes of plain text: prompt, completion, and the EOS as a string."""


@pytest.mark.demo_model
def test_the_masks_of_plain_text_are_trls_where_tokens_merge_over_the_boundary_too(golden, demo_model_dir):
    from engine.base_model import load_tokenizer

    tokenizer, _ = load_tokenizer(demo_model_dir)
    tokenizer.chat_template = TEXTS_ALONE
    g = golden("sft_masks_plain")
    moved = 0
    for texts, wanted in zip(g["inputs"], g["rows"], strict=True):
        found = sft_example(tokenizer, [Message("user", texts["prompt"])], texts["completion"], 4096)
        assert list(found.input_ids) == wanted["input_ids"]
        assert found.prompt_length == wanted["trained_from"]
        assert all(found.mask[found.prompt_length :])
        moved += len(tokenizer(texts["prompt"])["input_ids"]) != found.prompt_length
    assert moved  # a prompt's last token was another one alone


@pytest.mark.demo_model
def test_every_answer_of_a_conversation_is_masked_as_trl_masks_the_assistants_turns(golden, demo_model_dir):
    """A demonstration is one answer: the masks of all answers of a conversation, laid over one another, are TRL's."""
    from engine.base_model import load_tokenizer

    tokenizer, _ = load_tokenizer(demo_model_dir)
    g = golden("sft_masks_turns")
    for turns, wanted in zip(g["messages"], g["rows"], strict=True):
        messages = [Message(one["role"], one["content"]) for one in turns]
        spans = []
        for place, one in enumerate(messages):
            if one.role == "assistant":
                found = sft_example(tokenizer, messages[:place], one.content, 4096)
                assert list(found.input_ids) == wanted["input_ids"][: len(found.input_ids)]
                assert found.mask.index(True) == found.prompt_length
                spans.append([found.prompt_length, len(found.input_ids)])
        assert spans == wanted["trained"]
        assert len(found.input_ids) == len(wanted["input_ids"]) - 1  # all but the newline behind <|im_end|>
