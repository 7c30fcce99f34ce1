"""Which responses a card shows: what waits first, then anchors; never so many that an older ranking is superseded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ui.rank_choice import Choice, choose, unjudged
from workbench.records import BAD, Outcome, Ranking, ResponseFlag

IDS = tuple("abcdefghijkl")


def ranked(*tiers: str) -> Ranking:
    return Ranking(f"r-{tiers}", "p", "me", tuple(tuple(tier) for tier in tiers), shown_order=tuple("".join(tiers)))


def shown(ids: str, outcome: Outcome) -> Ranking:
    return Ranking(f"r-{ids}", "p", "me", (), outcome, shown_order=tuple(ids))


def test_a_prompt_that_was_never_judged_shows_its_newest_nine() -> None:
    assert choose(tuple("abc"), ()) == Choice(("a", "b", "c"))
    assert choose(IDS, ()) == Choice(tuple("defghijkl"), left_out=3)


def test_new_responses_come_with_the_best_and_the_worst_of_the_newest_ranking() -> None:
    first, second = ranked("b", "ac", "d"), ranked("e", "b", "fd")
    assert choose(tuple("abcdef"), (first,)) == Choice(("e", "f"), ("b", "d"))
    assert choose(tuple("abcdefg"), (first, second)) == Choice(("g",), ("e", "d"))


def test_the_nine_of_a_first_card_leave_the_rest_for_the_next() -> None:
    nine = ranked(*"defghijkl")
    assert choose(IDS, (nine,)) == Choice(("a", "b", "c"), ("d", "l"))
    many = tuple(f"{n:02d}" for n in range(20))
    choice = choose((*"ab", *many), (ranked("a", "b"),))
    assert choice == Choice(many[-8:], ("a",), left_out=12)


def test_anchors_never_judge_all_of_an_older_ranking_again() -> None:
    assert choose(tuple("abc"), (ranked("a", "b"),)).anchors == ("a",)  # a and b would supersede it
    assert choose(tuple("abcd"), (ranked("a", "c"), ranked("a", "b", "c"))).anchors == ("a",)
    assert choose(tuple("abc"), (ranked("a"), ranked("a", "b"))) == Choice(("c",), ("b",))  # something to compare with


def test_skipped_responses_come_after_what_was_never_seen() -> None:
    skip = shown("abcdefgh", "skipped")
    assert choose(tuple("abcdefgh"), (skip,)) == Choice(tuple("abcdefgh"))
    assert choose(IDS, (skip,)) == Choice(tuple("defghijkl"), left_out=3)  # i to l are new, d to h the newest skipped


def test_what_could_not_be_ranked_is_not_asked_again() -> None:
    cannot = shown("abcd", "cannot-rank")
    assert choose(tuple("abcdef"), (cannot,)) == Choice(("e", "f"))
    assert choose(tuple("abcde"), (cannot,)) == Choice(("e",), ("d",))  # nothing else to compare it with
    assert choose(tuple("abcd"), (cannot,)) == Choice(tuple("abcd"))  # asked for by hand
    about_all = Ranking("r", "p", "me", (), "cannot-rank")
    assert unjudged(tuple("abcd"), (about_all,)) == []
    thumb = Ranking("r", "p", "me", (), "cannot-rank", (ResponseFlag("a", BAD),))
    assert unjudged(tuple("ab"), (thumb,)) == ["b"]


@given(st.integers(2, 14), st.lists(st.sets(st.integers(0, 13), min_size=1, max_size=9), max_size=4))
def test_card_after_card_every_response_is_judged_and_no_ranking_is_judged_anew(
    count: int, earlier: list[set[int]]
) -> None:
    ids = tuple(f"{n:02d}" for n in range(count))
    judgements = [ranked_ids([ids[n] for n in sorted(one) if n < count]) for one in earlier]
    judgements = [one for one in judgements if one.tiers]
    for _ in range(count):
        waiting = unjudged(ids, judgements)
        if not waiting:
            break
        choice = choose(ids, judgements)
        card = (*choice.waiting, *choice.anchors)
        assert 2 <= len(card) <= 9
        assert len(set(card)) == len(card)
        assert set(choice.waiting) <= set(waiting)
        assert choice.left_out == len(waiting) - len(choice.waiting)
        large = [one.named for one in judgements if len(one.named) > 1]
        assert not any(one <= set(card) for one in large)
        judgements.append(ranked_ids(list(card)))
    assert unjudged(ids, judgements) == []


def ranked_ids(ids: list[str]) -> Ranking:
    return Ranking(f"r{ids}", "p", "me", tuple((one,) for one in ids), shown_order=tuple(ids))
