from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.near_duplicates import near, search_words, similarity, words_of
from workbench.records import Message, Prompt

WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=8)


def prompt(text: str, id: str = "p") -> Prompt:
    return Prompt(id, (Message("user", text),))


def test_the_same_words_are_alike_whatever_their_case_and_punctuation() -> None:
    first, second = words_of(prompt("How do I bake bread?").messages), words_of(prompt("how do i bake BREAD").messages)
    assert similarity(first, second) == 1.0


def test_one_changed_word_of_five_is_still_near() -> None:
    # 5 words and 4 pairs each; 4 words and 2 pairs shared: 2 * 6 / 18
    first, second = (words_of(prompt(text).messages) for text in ("how do i bake bread", "how do you bake bread"))
    assert similarity(first, second) == pytest.approx(2 * 6 / 18)


def test_nothing_in_common_or_nothing_at_all_is_not_alike() -> None:
    assert similarity(["a"], ["b"]) == 0.0
    assert similarity([], []) == 0.0


@given(WORDS, WORDS)
def test_similarity_is_symmetric_and_between_0_and_1(first: list[str], second: list[str]) -> None:
    assert similarity(first, second) == similarity(second, first)
    assert 0.0 <= similarity(first, second) <= 1.0


def test_near_ranks_the_nearest_first_and_drops_the_rest() -> None:
    same, close, far = (
        prompt("how do I bake good bread", "1"),
        prompt("how do I bake bread", "2"),
        prompt("what is rust", "3"),
    )
    found = near(prompt("How do I bake good bread?").messages, [far, close, same])
    assert [one.id for _, one in found] == ["1", "2"]


def test_search_words_are_the_longest_of_the_last_user_turn() -> None:
    messages = (
        Message("system", "extraordinarily long words"),
        Message("user", "tell me about photosynthesis please"),
        Message("assistant", "unbelievable"),
    )
    assert search_words(messages, 2) == ["photosynthesis", "please"]
    assert search_words([Message("system", "only")]) == []
