from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ui.plain_text import UNBROKEN_LIMIT, VIEW_LIMIT, PlainText, text_for_view


def test_ordinary_text_is_shown_as_it_is() -> None:
    assert text_for_view("One.\n\nTwo: naïve, 日本語, שלום.") == ("One.\n\nTwo: naïve, 日本語, שלום.", 0, 0)


def test_unseen_characters_become_visible_marks() -> None:
    shown = text_for_view("a\u202eb\u200bc\x1b[31m\x00")
    assert shown.text == "a⟦RLO⟧b⟦ZWSP⟧c⟦ESC⟧[31m⟦NUL⟧".replace("⟦", "\u27e6").replace("⟧", "\u27e7")
    assert shown.marked == 4


def test_tabs_and_line_ends_stay_and_carriage_returns_become_line_ends() -> None:
    assert text_for_view("a\tb\r\nc\rd\n").text == "a\tb\nc\nd\n"


def test_a_zero_width_joiner_stays_since_scripts_and_emoji_need_it() -> None:
    assert text_for_view("👩\u200d🔬 می\u200cخواهم") == ("👩\u200d🔬 می\u200cخواهم", 0, 0)


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_what_is_shown_can_always_be_encoded_and_never_grows_past_reason(text: str) -> None:
    shown = text_for_view(text)
    shown.text.encode("utf-8")
    assert len(shown.text) <= 8 * len(text) + 1


@given(st.integers(1, 5 * UNBROKEN_LIMIT), st.sampled_from("xé日"))
@settings(max_examples=30, deadline=None)
def test_no_line_of_the_view_is_longer_than_the_limit(length: int, char: str) -> None:
    assert max(map(len, text_for_view(char * length).text.split("\n"))) <= UNBROKEN_LIMIT


def test_a_lone_surrogate_is_replaced() -> None:
    assert text_for_view("a\ud800b").text == "a?b"


def test_a_megabyte_without_a_space_does_not_freeze_the_view(qtbot: Any, theme: Any) -> None:
    view = PlainText(name="Response")
    qtbot.addWidget(view)
    view.resize(600, 400)
    view.show()
    start = time.process_time()
    view.set_text("x" * 1_000_000)
    view.grab()
    assert time.process_time() - start < 2.0  # one such line took half a minute
    assert view.text() == "x" * 1_000_000


def test_a_long_text_is_cut_and_shown_whole_when_asked(qtbot: Any, theme: Any) -> None:
    view = PlainText("word " * 5_000)
    qtbot.addWidget(view)
    view.show()
    assert len(view.view.toPlainText()) == VIEW_LIMIT
    assert view._all.isVisible()
    assert "5,000" in view._all.text()
    view._all.click()
    assert len(view.view.toPlainText()) == 25_000
    assert not view._all.isVisible()


def test_streamed_text_over_the_limit_is_offered_and_goes_on_once_all_is_shown(qtbot: Any, theme: Any) -> None:
    view = PlainText("x" * 30 + "\n")
    qtbot.addWidget(view)
    view.show()
    for _ in range(700):
        view.append_text("x" * 30 + "\n")
    assert len(view.view.toPlainText()) == VIEW_LIMIT
    assert view._all.text() == f"Show all ({701 * 31 - VIEW_LIMIT:,} more characters)"
    assert view._all.isVisible()
    view._all.click()
    view.append_text("the end")
    assert view.view.toPlainText() == view.text()
    assert not view._all.isVisible()


def test_markup_is_text(qtbot: Any, theme: Any) -> None:
    view = PlainText("<b>bold</b> <img src='file:///etc/passwd'>")
    qtbot.addWidget(view)
    assert view.view.toPlainText() == "<b>bold</b> <img src='file:///etc/passwd'>"


def test_streamed_text_is_added_at_the_end_and_kept_whole(qtbot: Any, theme: Any) -> None:
    view = PlainText("One")
    qtbot.addWidget(view)
    view.append_text(" two\u202e")
    assert view.text() == "One two\u202e"
    assert view.view.toPlainText() == "One two\u27e6RLO\u27e7"


@pytest.mark.parametrize("lines", [1, 3, 12])
def test_a_fitting_view_is_as_tall_as_its_lines(qtbot: Any, theme: Any, lines: int) -> None:
    view = PlainText("\n".join("line" for _ in range(lines)), fit=True, max_lines=8)
    qtbot.addWidget(view)
    view.resize(400, 400)
    view.show()
    height = view.view.fontMetrics().lineSpacing() * min(lines, 8)
    assert height <= view.view.height() <= height + 30


def test_right_to_left_paragraphs_stand_at_the_right(qtbot: Any, theme: Any) -> None:
    view = PlainText("שלום עולם\nhello")
    qtbot.addWidget(view)
    view.resize(400, 200)
    view.show()
    document = view.view.document()
    assert document.findBlockByNumber(0).textDirection().name == "RightToLeft"
    assert document.findBlockByNumber(1).textDirection().name == "LeftToRight"
