from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ui.compare_state import Ballot, Board, Cell, WinRate, blind_order, summarise, votes_needed, wilson
from workbench.comparisons import TIE, Answered, Asked, Comparison, Scored, Voted, new_header
from workbench.records import Message


def test_wilson_interval_of_7_of_10_is_the_textbook_one() -> None:
    low, high = wilson(7, 10)
    assert low == pytest.approx(0.3968, abs=1e-4)
    assert high == pytest.approx(0.8922, abs=1e-4)


def test_nothing_counted_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_share_and_stays_between_0_and_1(counts: tuple[int, int]) -> None:
    wins, total = counts
    low, high = wilson(wins, total)
    assert 0.0 <= low <= wins / total + 1e-12
    assert wins / total - 1e-12 <= high <= 1.0


def test_ties_are_counted_apart_and_stay_out_of_the_win_rate() -> None:
    ballot = Ballot(2)
    for key, winner in (("a", 0), ("b", 1), ("c", 0), ("d", None)):
        ballot.vote(key, winner)
    assert ballot.total == 4
    assert ballot.ties == 1
    rate = ballot.rate(0)
    assert (rate.wins, rate.decided) == (2, 3)
    assert rate.share == pytest.approx(2 / 3)
    assert (rate.low, rate.high) == wilson(2, 3)


def test_a_second_vote_on_a_prompt_replaces_the_first() -> None:
    ballot = Ballot(2)
    ballot.vote("a", 0)
    ballot.vote("a", None)
    assert ballot.total == 1
    assert ballot.voted("a")
    assert ballot.winner_of("a") is None
    ballot.withdraw("a")
    assert not ballot.voted("a")
    assert ballot.rate(0) == WinRate(0, 0, 0.0, 1.0)
    assert ballot.rate(0).share == 0.0


def test_a_vote_outside_of_the_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="column 2"):
        Ballot(2).vote("a", 2)


def test_the_summary_counts_only_whole_answers() -> None:
    cells = [
        Cell("x", True, "stop", 10, score=1.0),
        Cell("y", True, "length", 30, score=0.0),
        Cell("z", False),
        Cell("w", True, "failed", 0),
        Cell("v", True, "stopped", 5),
    ]
    summary = summarise(cells)
    assert summary.answers == 2
    assert summary.mean_score == 0.5
    assert summary.mean_tokens == 20
    assert summary.share_ended == 0.5


def test_the_summary_of_nothing_has_no_score() -> None:
    summary = summarise([])
    assert summary.mean_score is None
    assert summary.mean_tokens == 0
    assert summary.share_ended == 0


def test_the_blind_order_is_a_permutation_that_depends_on_the_key_alone() -> None:
    assert blind_order("p1", 4) == blind_order("p1", 4)
    assert sorted(blind_order("p1", 4)) == [0, 1, 2, 3]
    firsts = [blind_order(f"p{i}", 2)[0] for i in range(400)]
    assert 150 < sum(firsts) < 250


def test_votes_needed_to_decide() -> None:
    def rate(wins: int, decided: int) -> WinRate:
        return WinRate(wins, decided, *wilson(wins, decided))

    assert votes_needed(rate(9, 10)) == 0
    assert votes_needed(rate(0, 0)) == -1
    assert votes_needed(rate(5, 10)) == -1
    assert 5 <= votes_needed(rate(7, 10)) <= 30
    assert votes_needed(rate(50_001, 100_001)) == -1


def board(blind: bool = True, prompts: int = 3) -> Board:
    header = new_header([("a", "base"), ("b", "sft")], blind=blind)
    asked = [Asked(key=f"p{i}", messages=(Message("user", f"question {i}"),)) for i in range(prompts)]
    return Board.begin(header, asked)


def test_a_blind_board_hides_names_until_the_vote_and_shuffles_by_prompt() -> None:
    one = board()
    assert one.hidden(0)
    one.ballot.vote("p0", 1)
    assert not one.hidden(0)
    assert one.hidden(1)
    assert sorted(one.order(0)) == [0, 1]
    assert one.order(0) == one.order(0)
    seeing = board(blind=False)
    assert seeing.order(0) == (0, 1)
    assert not seeing.hidden(0)


def test_the_next_vote_is_on_whole_answers_only_and_wraps() -> None:
    one = board()
    assert one.next_to_vote(0) == -1
    for row in (0, 2):
        for column in (0, 1):
            one.cells[row, column] = Cell("x", True, "stop", 3)
    assert one.next_to_vote(0) == 2
    assert one.next_to_vote(2) == 0
    one.ballot.vote("p0", None)
    one.ballot.vote("p2", 0)
    assert one.next_to_vote(0) == -1
    assert board(prompts=0).next_to_vote(0) == -1


def test_a_board_comes_back_from_its_file() -> None:
    one = board()
    found = Comparison(
        header=one.header,
        prompts=list(one.prompts),
        answers={
            ("p0", 0): Answered(key="p0", column=0, text="yes", finish_reason="stop", token_count=2, seed=5),
            ("p0", 1): Answered(key="p0", column=1, text="", finish_reason="failed", error="no memory"),
        },
        scores={("p0", 0): Scored(key="p0", column=0, score=0.4, standardised=1.5)},
        votes={"p0": Voted(key="p0", winner=0), "p1": Voted(key="p1", winner=TIE)},
    )
    back = Board.restored(found)
    assert back.cells[0, 0] == Cell("yes", True, "stop", 2, 5, 1.5, 0.4)
    assert back.cells[0, 1].error == "no memory"
    assert back.cells[1, 0].finish_reason == "stopped"
    assert back.ballot.winner_of("p0") == 0
    assert back.ballot.ties == 1
    assert back.summary(0).mean_score == 1.5
    assert back.summary(1).answers == 0


def test_a_score_without_a_calibration_is_shown_raw() -> None:
    one = board(prompts=1)
    found = Comparison(
        header=one.header, prompts=list(one.prompts), scores={("p0", 0): Scored(key="p0", column=0, score=0.4)}
    )
    assert Board.restored(found).cells[0, 0].score == 0.4
