from __future__ import annotations

import pytest

from engine.templates import (
    DEFAULT_TEMPLATE_NOTE,
    common_prefix_length,
    encode_pair,
    encode_prompt,
    end_of_turn,
    ensure_template,
    generation_gap,
    render,
    stop_ids,
)
from workbench.errors import UserError
from workbench.records import Message

HELLO = [Message("user", "Hi")]
IM_START, IM_END = 1, 2


def test_a_completion_ends_at_its_eos_and_the_newline_behind_it_is_left_out(tokenizer):
    prompt, answer = encode_pair(tokenizer, HELLO, "Yes")
    assert prompt == encode_prompt(tokenizer, HELLO)
    assert answer[-1] == IM_END
    assert tokenizer.decode(answer) == "Yes<|im_end|>"
    _, whole = encode_pair(tokenizer, HELLO, "Yes", ending="template")
    assert tokenizer.decode(whole) == "Yes<|im_end|>\n"
    assert end_of_turn(tokenizer).suffix == (whole[-1],)
    assert stop_ids(tokenizer) == (IM_END,)


def test_prompt_and_completion_are_one_render_of_the_whole_conversation(tokenizer):
    prompt, answer = encode_pair(tokenizer, HELLO, "Yes", ending="template")
    text = render(tokenizer, [*HELLO, Message("assistant", "Yes")], generation_prompt=False)
    assert tokenizer.decode(prompt + answer) == text
    assert text.count("<|im_start|>system") == 1


def test_a_token_merged_over_the_boundary_moves_the_split_to_the_left(tokenizer):
    # the generation prompt ends in a newline; an answer that begins with one merges with it into the token "\n\n"
    prompt, answer = encode_pair(tokenizer, HELLO, "\nYes")
    assert len(prompt) == len(encode_prompt(tokenizer, HELLO)) - 1
    assert tokenizer.decode(prompt + answer).endswith("assistant\n\nYes<|im_end|>")


def test_earlier_turns_belong_to_the_prompt(tokenizer):
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    prompt, answer = encode_pair(tokenizer, turns, "d")
    assert prompt.count(IM_END) == 4  # the default system turn, and three turns
    assert tokenizer.decode(answer) == "d<|im_end|>"


def test_an_eos_written_inside_an_answer_does_not_cut_it(tokenizer):
    _, answer = encode_pair(tokenizer, HELLO, "a<|im_end|>b")
    assert tokenizer.decode(answer) == "a<|im_end|>b<|im_end|>"


def test_a_completion_that_was_cut_off_is_the_finished_one_without_its_end(tokenizer):
    prompt, answer = encode_pair(tokenizer, HELLO, "Yes, and", ended=False)
    whole = encode_pair(tokenizer, HELLO, "Yes, and")
    assert (prompt, [*answer, IM_END]) == whole
    turns = [*HELLO, Message("assistant", "Yes, and"), Message("user", "What?")]  # the same words earlier
    assert tokenizer.decode(encode_pair(tokenizer, turns, "Yes, and", ended=False)[1]) == "Yes, and"


def test_no_part_of_what_a_template_prints_behind_an_answer_is_left_behind_a_cut_off_one(make_tokenizer):
    plain = make_tokenizer(
        template="{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    prompt, answer = encode_pair(plain, HELLO, "Yes", ended=False)
    assert plain.decode(prompt + answer) == "user: Hi\nassistant: Yes"


def test_a_cut_off_response_keeps_the_space_at_its_end_though_the_template_trims_answers(make_tokenizer):
    trims = make_tokenizer()
    trims.chat_template = trims.chat_template.replace("message['content'] +", "message['content'] | trim +")
    assert trims.decode(encode_pair(trims, HELLO, "Yes \n")[1]) == "Yes<|im_end|>"
    assert trims.decode(encode_pair(trims, HELLO, "Yes \n", ended=False)[1]) == "Yes \n"


def test_half_a_character_at_a_cut_is_left_out(tokenizer):
    assert tokenizer.decode(encode_pair(tokenizer, HELLO, "Yes \ufffd", ended=False)[1]) == "Yes "
    assert tokenizer.decode(encode_pair(tokenizer, HELLO, "\ufffd")[1]) == "\ufffd<|im_end|>"  # written so


def test_a_model_without_a_template_gets_the_stated_default(make_tokenizer):
    bare = make_tokenizer(template=None)
    assert ensure_template(bare) == DEFAULT_TEMPLATE_NOTE
    prompt, answer = encode_pair(bare, HELLO, "Yes")
    assert bare.decode(prompt) == "<|user|>\nHi<|endoftext|>\n<|assistant|>\n"
    assert bare.decode(answer) == "Yes<|endoftext|>"
    assert ensure_template(bare) == ""  # it has one now


def test_there_is_exactly_one_bos(make_tokenizer):
    bare = make_tokenizer(template=None, bos=True)
    ensure_template(bare)
    prompt = encode_prompt(bare, HELLO)
    assert prompt[0] == 3
    assert prompt.count(3) == 1
    assert end_of_turn(bare).bos == 3
    doubled = make_tokenizer(template="{{ '<s><s>' }}{% for m in messages %}{{ m['content'] }}{% endfor %}", bos=True)
    assert encode_prompt(doubled, HELLO).count(3) == 1


def test_a_template_that_closes_no_turn_gets_eos_appended(make_tokenizer):
    plain = make_tokenizer(
        template="{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    prompt, answer = encode_pair(plain, HELLO, "Yes")
    assert plain.decode(prompt + answer) == "user: Hi\nassistant: Yes\n<|im_end|>"
    assert not end_of_turn(plain).printed


def test_a_template_that_refuses_a_conversation_is_a_users_matter(make_tokenizer):
    strict = make_tokenizer(template="{{ raise_exception('no system turns') }}")
    with pytest.raises(UserError, match="No system turns"):
        encode_prompt(strict, HELLO)


def test_a_tokenizer_without_template_and_eos_is_refused(make_tokenizer):
    bare = make_tokenizer(template=None)
    bare.eos_token = None
    with pytest.raises(UserError, match="neither a chat template"):
        ensure_template(bare)


def test_common_prefix_by_hand():
    assert common_prefix_length([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix_length([1, 2], [1, 2, 4]) == 2
    assert common_prefix_length([], [1]) == 0


def test_what_a_template_adds_to_its_generation_prompt_alone_is_found(make_tokenizer):
    plain = make_tokenizer()
    assert generation_gap(plain) == ""
    thinking = make_tokenizer(
        template=plain.chat_template.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
    )
    assert generation_gap(thinking) == "<think>\n"
