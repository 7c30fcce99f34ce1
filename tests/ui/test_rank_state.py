from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ui.rank_state import RankSheet, RankState, join_words, twins_of


def sheet(texts: str = "pqrs", places: tuple[int, ...] = ()) -> RankSheet:
    ids = [f"r{i}" for i in range(len(texts))]
    return RankSheet(RankState.fresh(ids, list(texts), places))


def press(card: RankSheet, keys: str) -> RankState:
    for key in keys.split():
        assert card.press(key)
    return card.state


def test_a_digit_places_the_focused_response_and_moves_to_the_next_unplaced() -> None:
    state = press(sheet(), "2")
    assert state.places == (2, 0, 0, 0)
    assert state.focus == 1


def test_four_digits_complete_a_card_of_four() -> None:
    state = press(sheet(), "2 1 4 3")
    assert state.complete
    assert state.missing() == ""
    assert state.tiers() == (("r1",), ("r0",), ("r3",), ("r2",))


def test_equal_places_are_ties_in_the_order_shown() -> None:
    state = press(sheet(), "1 2 1 2")
    assert state.tiers() == (("r0", "r2"), ("r1", "r3"))
    assert [state.shown_place(i) for i in range(4)] == ["1=", "3=", "1=", "3="]


def test_gaps_between_places_do_not_count() -> None:
    state = press(sheet("pq"), "2 1")
    assert state.tiers() == (("r1",), ("r0",))
    three = press(sheet("pqr"), "3 3 1")
    assert [three.shown_place(i) for i in range(3)] == ["2=", "2=", "1"]


def test_equals_ties_with_the_response_placed_before() -> None:
    state = press(sheet(), "3 = 1 =")
    assert state.places == (3, 3, 1, 1)


def test_equals_says_why_it_does_nothing_on_an_untouched_card() -> None:
    card = sheet()
    state = press(card, "=")
    assert "first" in state.said
    assert state.places == (0, 0, 0, 0)
    assert not card.can_undo


def test_equals_never_ties_a_response_with_itself() -> None:
    card = sheet("pq")
    press(card, "1 Left")
    assert "Nothing to tie" in press(card, "=").said


def test_a_digit_beyond_the_number_of_responses_is_refused_aloud() -> None:
    state = press(sheet("pqr"), "4")
    assert state.places == (0, 0, 0)
    assert state.said == "There are 3 responses: places go from 1 to 3."


def test_the_message_goes_with_the_next_key() -> None:
    assert press(sheet("pqr"), "4 1").said == ""


def test_backspace_clears_and_stays() -> None:
    card = sheet()
    state = press(card, "1 2 Left Backspace")
    assert state.places == (1, 0, 0, 0)
    assert state.focus == 1


def test_backspace_on_an_unplaced_response_says_so() -> None:
    assert press(sheet(), "Backspace").said == "A has no place to take away."


def test_replacing_moves_on_to_the_next_unplaced_and_wraps() -> None:
    card = sheet("pqr")
    state = press(card, "1 Right 3")
    assert state.places == (1, 0, 3)
    assert state.focus == 1
    assert press(card, "2").focus == 1  # nothing is left unplaced: the focus stays


def test_focus_wraps_at_both_ends() -> None:
    card = sheet()
    assert press(card, "Left").focus == 3
    assert press(card, "Tab").focus == 0
    assert press(card, "Backtab").focus == 3


def test_up_and_down_move_by_rows_and_mean_nothing_where_there_is_no_row() -> None:
    card = sheet("pqrst")
    assert card.press("Down", columns=3)
    assert card.state.focus == 3
    assert not card.press("Down", columns=3)
    assert card.press("Up", columns=3)
    assert card.state.focus == 0
    assert not card.press("Up", columns=3)


def test_other_keys_and_zero_mean_nothing() -> None:
    card = sheet()
    assert not card.press("0")
    assert not card.press("q")


def test_missing_names_every_unplaced_response() -> None:
    card = sheet()
    assert card.state.missing() == "A, B, C and D have no place yet."
    assert press(card, "1 2 3").missing() == "D has no place yet."


def test_all_tied_only_when_complete() -> None:
    card = sheet("pqr")
    assert not press(card, "1 1").all_tied
    assert press(card, "1").all_tied


def test_twins_share_a_place_and_lose_it_together() -> None:
    card = sheet("pqpq")
    assert press(card, "2").places == (2, 0, 2, 0)
    assert card.state.focus == 1
    state = press(card, "1")
    assert state.complete
    assert not state.only_twins
    assert press(card, "Backspace").places == (2, 0, 2, 0)


def test_twins_never_count_as_the_response_placed_before() -> None:
    card = sheet("ppq")
    press(card, "2 1 Left Left")
    assert card.state.focus == 0
    assert press(card, "=").places == (1, 1, 1)


def test_a_card_of_one_text_is_only_twins() -> None:
    assert sheet("ppp").state.only_twins


def test_twins_ignore_white_space_at_the_ends() -> None:
    assert twins_of(["a\n", "b", " a", ""]) == ((0, 2),)


def test_undo_takes_placements_back_one_by_one_and_redo_returns_them() -> None:
    card = sheet()
    press(card, "1 2 Right")
    assert card.undo()
    assert card.state.places == (1, 0, 0, 0)
    assert card.can_redo
    assert card.redo()
    assert card.state.places == (1, 2, 0, 0)
    assert not card.redo()
    assert card.undo()
    assert card.undo()
    assert not card.undo()
    assert not card.state.touched


def test_a_new_placement_forgets_what_was_taken_back() -> None:
    card = sheet()
    press(card, "1")
    card.undo()
    press(card, "2")
    assert not card.can_redo


def test_a_clicked_place_button_places_and_a_second_click_clears() -> None:
    card = sheet()
    card.place(2, 1)
    assert card.state.places == (0, 0, 1, 0)
    assert card.state.focus == 3
    card.place(2, 1)
    assert card.state.places == (0, 0, 0, 0)


def test_focus_can_be_set() -> None:
    card = sheet()
    card.focus(2)
    assert card.state.focus == 2


def test_a_prefilled_card_is_complete_but_untouched() -> None:
    card = sheet("pqr", (2, 1, 2))
    assert card.state.complete
    assert not card.state.touched
    assert press(card, "2").touched


def test_a_prefilled_card_focuses_what_is_unplaced() -> None:
    card = sheet("pqr", (2, 0, 1))
    assert card.state.focus == 1
    assert press(card, "=").places == (2, 2, 1)  # the trail of a prefilled card ends at its last place


def test_a_card_needs_two_to_nine_responses_with_texts() -> None:
    with pytest.raises(ValueError, match="2 to 9"):
        RankState.fresh(["a"], ["x"])
    with pytest.raises(ValueError, match="2 to 9"):
        RankState.fresh([str(i) for i in range(10)], ["x"] * 10)
    with pytest.raises(ValueError, match="2 to 9"):
        RankState.fresh(["a", "b"], ["x"])


def test_an_unplaced_response_shows_no_place() -> None:
    assert sheet().state.shown_place(0) == ""


def test_join_words() -> None:
    assert join_words(["A"]) == "A"
    assert join_words(["A", "B"]) == "A and B"
    assert join_words(["A", "B", "C"]) == "A, B and C"


KEYS = st.sampled_from(
    ["1", "2", "3", "4", "5", "=", "Backspace", "Left", "Right", "Up", "Down", "Tab", "undo", "redo"]
)


@given(st.lists(st.sampled_from("pqr"), min_size=2, max_size=5), st.lists(KEYS, max_size=30))
def test_whatever_is_pressed_every_response_is_in_exactly_one_tier_or_unplaced(
    texts: list[str], keys: list[str]
) -> None:
    card = sheet("".join(texts))
    for key in keys:
        if key == "undo":
            card.undo()
        elif key == "redo":
            card.redo()
        else:
            card.press(key, columns=2)
        state = card.state
        ranked = [one for tier in state.tiers() for one in tier]
        assert sorted(ranked + [state.ids[i] for i in state.unplaced]) == sorted(state.ids)
        assert 0 <= state.focus < len(state.ids)
        assert all(len({state.places[i] for i in group}) == 1 for group in state.twins)
        assert sorted(state.trail) == [i for i, place in enumerate(state.places) if place]


def test_plus_and_minus_are_thumbs_and_the_same_again_takes_it_away() -> None:
    card = sheet()
    assert press(card, "+ Right -").thumbs == ("good", "bad", "", "")
    assert press(card, "+").thumbs == ("good", "good", "", "")
    assert press(card, "+").thumbs == ("good", "", "", "")
    assert card.state.focus == 1  # a thumb stays: the place is to be given too
    assert card.state.places == (0, 0, 0, 0)


def test_undo_and_redo_go_through_thumbs_and_places_alike() -> None:
    card = sheet()
    press(card, "+ 2")
    assert card.undo()
    assert (card.state.places[0], card.state.thumb(0)) == (0, "good")
    assert card.undo()
    assert card.state.thumb(0) == ""
    assert card.redo()
    assert card.state.thumb(0) == "good"


def test_twins_share_a_thumb() -> None:
    assert press(sheet("pqp"), "-").thumbs == ("bad", "", "bad")
