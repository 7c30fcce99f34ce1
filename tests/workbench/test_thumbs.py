from __future__ import annotations

import contextlib
import sys
from dataclasses import replace

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.ids import new_id
from workbench.pairs import EMPTY, HELD_OUT_TWIN
from workbench.preflight import balance_problems
from workbench.recipes import DpoRecipe, KtoRecipe, thumb_weights
from workbench.records import ALL_BAD, BAD, GOOD, Message, Prompt, Ranking, Rater, Response, ResponseFlag
from workbench.rows import ThumbRow
from workbench.thumbs import REPEATED, current_thumbs, thumbs_of
from workbench.training_data import Selected


def card(**changes):
    ranking = Ranking("k", "p", "ann", (("a",), ("b", "c"), ("d",)), shown_order=("c", "a", "d", "b"))
    return replace(ranking, **changes)


def flags(*pairs):
    return tuple(ResponseFlag(*pair) for pair in pairs)


def test_a_thumb_says_whether_its_response_is_wanted_and_nothing_of_the_others():
    assert thumbs_of(card(flags=flags(("a", GOOD), ("d", BAD)))) == {"a": True, "d": False}


def test_an_order_says_nothing_by_itself():
    assert thumbs_of(card()) == {}


def test_best_and_worst_takes_the_ends_of_an_order_and_leaves_the_middle_out():
    assert thumbs_of(card(), "best-and-worst") == {"a": True, "d": False}
    assert thumbs_of(card(tiers=(("a", "b", "c", "d"),)), "best-and-worst") == {}  # a tie has no ends


def test_thumbs_go_before_what_an_order_is_taken_to_say():
    assert thumbs_of(card(flags=flags(("b", BAD))), "best-and-worst") == {"b": False}


def test_all_bad_is_thumbs_down_for_all_that_have_none_of_their_own():
    judged = thumbs_of(card(flags=flags(("", ALL_BAD), ("a", GOOD))), "best-and-worst")
    assert judged == {"a": True, "b": False, "c": False, "d": False}


@pytest.mark.parametrize("flag", ["harmful", "false", "off-topic"])
def test_other_flags_are_no_thumbs(flag):
    assert thumbs_of(card(flags=flags(("a", flag), ("", flag)))) == {}


def test_thumbs_count_without_an_order_but_not_while_a_card_is_skipped():
    given = flags(("a", GOOD))
    assert thumbs_of(card(outcome="cannot-rank", tiers=(), flags=given)) == {"a": True}
    assert thumbs_of(card(outcome="skipped", tiers=(), flags=given)) == {}


def store_card(project, question="Why?", texts=("yes", "no"), thumbs=(GOOD, BAD), split="train"):
    prompt = Prompt(new_id(), (Message("user", question),), split=split)
    responses = [Response(new_id(), prompt.id, text) for text in texts]
    given = flags(*((one.id, thumb) for one, thumb in zip(responses, thumbs, strict=True) if thumb))
    shown = tuple(one.id for one in responses)
    ranking = Ranking(new_id(), prompt.id, "ann", (), "cannot-rank", given, shown_order=shown)
    project.store.add_batch(
        prompts=[prompt], responses=responses, rankings=[ranking], raters=[Rater("ann", "Ann")], label="judge"
    ).result()
    return ranking


def test_rows_have_the_texts_and_whose_judgement_they_are(project):
    ranking = store_card(project)
    rows = current_thumbs(project.store).rows
    assert [(row.completion, row.desirable) for row in rows] == [("yes", True), ("no", False)]
    assert rows[0].id == f"{ranking.id}:{ranking.shown_order[0]}"
    assert (rows[0].rater_id, rows[0].prompt) == ("ann", (Message("user", "Why?"),))


def test_what_cannot_train_is_left_out_and_counted(project):
    store_card(project, texts=("yes", "yes ", " "), thumbs=(GOOD, GOOD, BAD))
    found = current_thumbs(project.store)
    assert [row.completion for row in found.rows] == ["yes"]
    assert found.dropped == {REPEATED: 1, EMPTY: 1}


def test_a_prompt_that_is_held_out_elsewhere_trains_nothing(project):
    store_card(project, "Kept?", split="held-out")
    twin = Prompt(new_id(), (Message("user", " Kept?\n"),))
    project.store.add_prompts([twin]).result()
    response = Response(new_id(), twin.id, "text")
    project.store.add_responses([response]).result()
    ranking = Ranking(new_id(), twin.id, "ann", (), "cannot-rank", flags((response.id, GOOD)))
    project.store.save_ranking(ranking).result()
    found = current_thumbs(project.store, "train")
    assert found.rows == []
    assert found.dropped == {HELD_OUT_TWIN: 1}
    assert len(current_thumbs(project.store, "held-out").rows) == 2


def test_undo_takes_thumbs_back(project):
    store_card(project)
    project.store.undo().result()
    assert current_thumbs(project.store).rows == []
    project.store.redo().result()
    assert len(current_thumbs(project.store).rows) == 2


# ---- the count that triggers keep ------------------------------------------------------------------------------


def counted(project):
    counts = project.store.counts()
    return counts.thumbs_up, counts.thumbs_down


def test_a_judged_response_that_was_cut_off_has_not_ended(project):
    prompt = Prompt(new_id(), (Message("user", "Why?"),))
    given = [Response(new_id(), prompt.id, one, finish_reason=one) for one in ("length", "stop", "imported")]
    judged = flags(*((one.id, GOOD) for one in given))
    ranking = Ranking(new_id(), prompt.id, "ann", (), "cannot-rank", judged)
    card = {"prompts": [prompt], "responses": given, "rankings": [ranking], "raters": [Rater("ann", "Ann")]}
    project.store.add_batch(**card, label="card").result()
    found = {row.completion: row.ended for row in current_thumbs(project.store).rows}
    assert found == {"length": False, "stop": True, "imported": True}


def test_thumbs_are_counted_up_and_down_and_follow_undo_and_archive(project):
    ranking = store_card(project, texts=("yes", "no", "never"), thumbs=(GOOD, BAD, BAD))
    assert counted(project) == (1, 2)
    assert project.store.counts().thumbs == 3
    project.store.archive_prompts([ranking.prompt_id]).result()
    assert counted(project) == (0, 0)
    project.store.undo().result()
    project.store.undo().result()
    assert counted(project) == (0, 0)
    project.store.redo().result()
    assert counted(project) == (1, 2)


def test_only_the_newest_judgement_of_a_rater_is_counted(project):
    first = store_card(project)
    changed = replace(first, id=new_id(), flags=flags((first.shown_order[1], GOOD)))
    project.store.save_ranking(changed).result()
    assert counted(project) == (1, 0)
    project.store.undo().result()
    assert counted(project) == (1, 1)


def test_a_judgement_that_was_superseded_before_it_was_redone_is_not_counted(project):
    """An import that brings a judgement and what superseded it is one changeset: redo inserts the first as it ended."""
    prompt = Prompt(new_id(), (Message("user", "Why?"),))
    response = Response(new_id(), prompt.id, "text")
    old = Ranking(new_id(), prompt.id, "ann", (), "cannot-rank", flags((response.id, GOOD)))
    new = replace(old, id=new_id(), flags=flags((response.id, BAD)), supersedes=old.id)
    project.store.add_batch(
        prompts=[prompt],
        responses=[response],
        rankings=[old, new],
        raters=[Rater("ann", "Ann")],
        superseded_by={old.id: new.id},
        by_id=True,
        label="import",
    ).result()
    assert counted(project) == (0, 1)
    project.store.undo().result()
    project.store.redo().result()
    assert counted(project) == (0, 1)
    assert project.check() == []


def test_a_text_counts_once_whatever_space_is_around_it(project):
    """Space is what Python's ``strip`` takes away, all of it: SQL has a list of its own."""
    spaces = [chr(code) for code in range(sys.maxunicode) if chr(code).isspace()]
    texts = ("yes", *(f"{space}yes{space}" for space in spaces), *spaces)
    store_card(project, texts=texts, thumbs=(GOOD,) * len(texts))
    assert counted(project) == (1, 0)
    assert len(current_thumbs(project.store).rows) == 1


WORDS = st.sampled_from(["yes", "yes ", "\u2003yes\u3000", "no", "", "\x85\x1c\n", "\u200b"])


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_count_is_that_of_the_rows_that_kto_gets(project, data):
    """Whatever is flagged, and however: the rule in SQL is the rule in Python."""
    prompt = Prompt(new_id(), (Message("user", new_id()),))
    responses = [Response(new_id(), prompt.id, text) for text in data.draw(st.lists(WORDS, min_size=1, max_size=4))]
    ids = [one.id for one in responses]
    order = tuple(data.draw(st.permutations(ids)))
    marks = st.tuples(st.sampled_from(["", *ids]), st.sampled_from([GOOD, BAD, ALL_BAD, "harmful"]))
    given_flags = flags(*data.draw(st.lists(marks, max_size=6)))
    outcome = data.draw(st.sampled_from(["ranked", "skipped", "cannot-rank"]))
    tiers = tuple((id_,) for id_ in order[: data.draw(st.integers(1, len(ids)))]) if outcome == "ranked" else ()
    shown = tuple(ids[: data.draw(st.integers(0, len(ids)))])
    ranking = Ranking(new_id(), prompt.id, "ann", tiers, outcome, given_flags, shown_order=shown)
    project.store.add_batch(
        prompts=[prompt], responses=responses, rankings=[ranking], raters=[Rater("ann", "Ann")], label="judge"
    ).result()
    wanted = [row.desirable for row in current_thumbs(project.store).rows]
    assert counted(project) == (wanted.count(True), wanted.count(False))


def test_a_wrong_count_of_thumbs_is_a_fault(project):
    store_card(project)
    with contextlib.closing(apsw.Connection(str(project.path / "project.db"))) as db:
        db.execute("UPDATE tallies SET thumbs_up = 7")
    assert project.check() == ["the count of thumbs is wrong"]


# ---- balance: 1 <= w_d n_d / (w_u n_u) <= 4/3 ------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "unwanted"), [(10, 10), (40, 30), (13, 10)])
def test_from_1_to_1_to_4_to_3_the_weights_are_in_balance(wanted, unwanted):
    assert thumb_weights(KtoRecipe(), wanted, unwanted) == []


@pytest.mark.parametrize(
    ("wanted", "unwanted", "field", "remedy"),
    [
        # 10 w = 30 to 40: w from 3 to 4
        (10, 30, "desirable_weight", "set desirable_weight between 3 and 4"),
        # 60 / (10 w) = 1 to 4/3: w from 4.5 to 6
        (60, 10, "undesirable_weight", "set undesirable_weight between 4.5 and 6"),
    ],
)
def test_outside_the_weight_of_the_fewer_is_to_be_raised(wanted, unwanted, field, remedy):
    [problem] = thumb_weights(KtoRecipe(), wanted, unwanted)
    assert (problem.field, problem.remedy, problem.severity) == (field, remedy, "warning")
    assert f"{wanted} wanted and {unwanted} unwanted" in problem.message


def test_the_weight_that_is_advised_is_in_balance():
    assert thumb_weights(KtoRecipe(desirable_weight=3.5), 10, 30) == []
    assert thumb_weights(KtoRecipe(undesirable_weight=5.0), 60, 10) == []


def test_a_plan_counts_the_rows_that_train():
    rows = [ThumbRow(str(n), "p", "k", "ann", (), "text", n < 10) for n in range(40)]
    [problem] = balance_problems(KtoRecipe(), Selected(train=rows))
    assert problem.field == "desirable_weight"  # 10 : 30
    assert balance_problems(DpoRecipe(), Selected(train=rows)) == []


def test_one_kind_alone_is_a_warning_and_none_at_all_is_not_this_ones_business():
    [only] = thumb_weights(KtoRecipe(), 5, 0)
    assert "All 5 judged responses are wanted" in only.message
    assert only.remedy == "give some responses thumbs down"
    [only] = thumb_weights(KtoRecipe(), 0, 5)
    assert only.remedy == "give some responses thumbs up"
    assert thumb_weights(KtoRecipe(), 0, 0) == []
