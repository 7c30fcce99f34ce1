from __future__ import annotations

import pytest

from ui.draft_state import DraftState, from_document, loses_in_editor, too_heavy
from workbench.records import Demonstration


def stored(text: str, status: str = "draft") -> Demonstration:
    return Demonstration("d", "p", text, "me", status)  # type: ignore[arg-type]


def test_nothing_is_dirty_until_somebody_edits() -> None:
    state = DraftState.open("p", stored("a\r\nb"))
    assert state.text == "a\r\nb"
    assert not state.dirty
    assert state.saved == "saved"
    assert DraftState.open("p", None).saved == "none"


def test_typing_saving_and_the_commit() -> None:
    state = DraftState.open("p", None).typed("h", "me")
    assert state.saved == "typing"
    assert state.must_save
    state = state.sending()
    assert state.saved == "saving"
    assert not state.must_save
    state = state.typed("hi", "me")
    assert state.must_save  # what is on its way is not all
    state = state.committed(stored("h"))
    assert state.saved == "typing"
    state = state.sending().committed(stored("hi"))
    assert state.saved == "saved"
    assert not state.dirty


def test_an_earlier_commit_is_not_taken_for_the_last_one() -> None:
    state = DraftState.open("p", None).typed("h", "me").sending().typed("hi", "me").sending()
    state = state.committed(stored("h"), last=False)
    assert state.saved == "saving"


def test_a_refused_save_keeps_the_text_and_is_tried_again() -> None:
    state = DraftState.open("p", None).typed("words", "me").sending().refused("the disk is full")
    assert state.saved == "failed"
    assert state.text == "words"
    assert state.must_save
    assert state.sending().committed(stored("words")).saved == "saved"


def test_text_that_was_not_saved_before_opens_again() -> None:
    state = DraftState.open("p", stored("old"), "newer words")
    assert state.text == "newer words"
    assert state.must_save


def test_editing_a_final_one_makes_a_draft_until_it_reads_as_before() -> None:
    state = DraftState.open("p", stored("done", "final"))
    assert state.typed("done!", "me").status == "draft"
    assert state.typed("done!", "me").typed("done", "me").status == "final"
    assert not state.typed("done", "me").dirty
    assert DraftState.open("p", stored("words")).typed("words", "me").status == "draft"
    assert DraftState.open("p", None).typed("x", "me").committed(stored("x", "final")).status == "final"


def test_the_documents_raw_text_keeps_no_break_spaces() -> None:
    assert from_document("a\u00a0b\u2029c\u2028d") == "a\u00a0b\nc\nd"


@pytest.mark.parametrize(
    ("text", "said"),
    [("plain\n\u00a0text", ""), ("a\r\nb", "Windows"), ("a\u2028b", "separators"), ("\ufeffa", "byte order")],
)
def test_what_an_editor_would_change_is_said_beforehand(text: str, said: str) -> None:
    lost = loses_in_editor(text)
    assert bool(lost) == bool(said)
    assert said in lost


def test_texts_that_would_freeze_an_editor_are_not_put_into_one() -> None:
    assert too_heavy("word " * 50_000)
    assert too_heavy("x" * 20_000)
    assert not too_heavy("word " * 1000)
