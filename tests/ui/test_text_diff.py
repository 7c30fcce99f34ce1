from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ui.text_diff import different_spans


def words(base: str, other: str) -> list[str]:
    spans = different_spans(base, other)
    assert spans is not None
    return [other[start:end] for start, end in spans]


def test_only_the_words_that_the_base_lacks_are_marked() -> None:
    assert words("Paris is the capital.", "Lyon is the big capital.") == ["Lyon", "big"]


def test_neighbouring_words_are_one_stretch() -> None:
    assert words("I like tea.", "I like very hot coffee.") == ["very hot coffee"]


def test_white_space_makes_no_difference() -> None:
    assert words("a b\nc", "a   b c") == []


def test_equal_texts_have_no_differences_and_nothing_in_common_is_one() -> None:
    assert words("same", "same") == []
    assert words("", "all new words") == ["all new words"]


def test_texts_above_the_cap_are_not_compared() -> None:
    assert different_spans("a b c", "a b", most_words=2) is None
    assert different_spans("a b", "a b c", most_words=2) is None


@given(st.text(alphabet="ab c.\n", max_size=60), st.text(alphabet="ab c.\n", max_size=60))
def test_spans_are_in_order_inside_the_text_and_never_empty(base: str, other: str) -> None:
    end = 0
    for start, stop in different_spans(base, other) or []:
        assert end <= start < stop <= len(other)
        end = stop
