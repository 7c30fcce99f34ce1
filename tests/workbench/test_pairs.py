from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.ids import new_id
from workbench.pairs import EMPTY, HELD_OUT_TWIN, IDENTICAL, current_pairs, pairs_of, why_unusable
from workbench.project import Project
from workbench.records import Ranking, Rater, Response


@st.composite
def tiers(draw: st.DrawFn) -> tuple[tuple[str, ...], ...]:
    """Up to 9 responses in order, cut into tiers."""
    ids = [f"r{i}" for i in range(draw(st.integers(0, 9)))]
    found: list[tuple[str, ...]] = []
    while ids:
        size = draw(st.integers(1, len(ids)))
        found.append(tuple(ids[:size]))
        ids = ids[size:]
    return tuple(found)


def ranking_of(tiers_: tuple[tuple[str, ...], ...]) -> Ranking:
    return Ranking("k", "p", "ann", tiers_)


@given(tiers())
def test_every_ordered_pair_across_tiers_is_there_once_and_none_within_a_tier(tiers_):
    place = {id_: i for i, tier in enumerate(tiers_) for id_ in tier}
    pairs = pairs_of(ranking_of(tiers_))
    expected = {(a, b) for a in place for b in place if place[a] < place[b]}
    assert sorted((p.chosen_id, p.rejected_id) for p in pairs) == sorted(expected)
    assert all(p.tier_distance == place[p.rejected_id] - place[p.chosen_id] for p in pairs)
    assert {p.group for p in pairs} <= {"p"}


@given(tiers())
def test_best_versus_rest_is_the_part_of_all_whose_chosen_is_in_the_best_tier(tiers_):
    ranking = ranking_of(tiers_)
    best = set(tiers_[0]) if tiers_ else set()
    assert pairs_of(ranking, "best-vs-rest") == [p for p in pairs_of(ranking) if p.chosen_id in best]


@given(tiers())
def test_with_ties_every_two_responses_of_a_tier_are_there_once_at_a_distance_of_0(tiers_):
    ranking = ranking_of(tiers_)
    pairs = pairs_of(ranking, ties=True)
    assert [p for p in pairs if p.tier_distance] == pairs_of(ranking)
    found = [{p.chosen_id, p.rejected_id} for p in pairs if not p.tier_distance]
    assert found == [{a, b} for tier in tiers_ for i, a in enumerate(tier) for b in tier[i + 1 :]]
    best = [p for p in pairs_of(ranking, "best-vs-rest", ties=True) if not p.tier_distance]
    assert len(best) == (len(tiers_[0]) * (len(tiers_[0]) - 1) // 2 if tiers_ else 0)


def test_four_responses_strictly_ranked_give_six_pairs_and_three_of_best_versus_rest():
    ranking = ranking_of((("a",), ("b",), ("c",), ("d",)))
    assert len(pairs_of(ranking)) == 6  # 4 choose 2
    assert len(pairs_of(ranking, "best-vs-rest")) == 3


def test_what_was_skipped_or_cannot_be_ranked_gives_no_pairs():
    assert pairs_of(replace(ranking_of((("a",), ("b",))), outcome="skipped")) == []


def test_texts_that_differ_only_in_outer_space_or_are_empty_train_nothing():
    assert why_unusable("a", "a\n") == IDENTICAL
    assert why_unusable(" ", "a") == why_unusable("a", "\t") == EMPTY
    assert why_unusable("a", "A") == ""


def test_current_pairs_carry_texts_and_count_what_was_dropped_and_why(store, make):
    prompt, (a, b, c, d) = make.rankable("good", "good ", "bad", "")
    ranking = make.ranking(prompt, [a], [b], [c], [d])
    store.save_ranking(ranking).result()
    found = current_pairs(store)
    assert found.dropped == {IDENTICAL: 1, EMPTY: 3}
    assert [(row.chosen, row.rejected, row.tier_distance) for row in found.rows] == [
        ("good", "bad", 2),
        ("good ", "bad", 1),
    ]
    row = found.rows[0]
    assert row.id == f"{ranking.id}:{a.id}:{c.id}"
    assert (row.group, row.prompt, row.ranking_id, row.rater_id) == (prompt.id, prompt.messages, ranking.id, "ann")
    assert current_pairs(store, which="best-vs-rest").dropped == {IDENTICAL: 1, EMPTY: 1}


def test_only_a_response_that_a_model_was_stopped_in_has_not_ended(store, make):
    """Cut off at max_new_tokens: not ended. Ended by itself, written by hand, or of a file that says nothing: whole."""
    prompt = make.prompt()
    reasons = ("length", "stop", "written", "imported")
    given = [Response(new_id(), prompt.id, f"text {one}", finish_reason=one) for one in reasons]
    store.add_batch(prompts=[prompt], responses=given, raters=[Rater("ann", "Ann")], label="card").result()
    store.save_ranking(make.ranking(prompt, *([one] for one in given))).result()
    rows = current_pairs(store).rows
    ended = {row.chosen: row.chosen_ended for row in rows} | {row.rejected: row.rejected_ended for row in rows}
    assert ended == {f"text {one}": one != "length" for one in reasons}


def test_a_contradiction_or_a_cycle_is_kept_as_data(store, make):
    prompt, (a, b, c) = make.rankable("a", "b", "c")
    raters = [Rater(name, name) for name in ("x", "y", "z")]
    rankings = [
        make.ranking(prompt, [one], [two], rater=rater.id)
        for rater, (one, two) in zip(raters, ((a, b), (b, c), (c, a)), strict=True)
    ]
    store.add_batch(raters=raters, rankings=rankings, label="cycle").result()
    assert [(r.chosen, r.rejected) for r in current_pairs(store).rows] == [("a", "b"), ("b", "c"), ("c", "a")]


def test_superseded_and_archived_rankings_give_no_pairs(store, make):
    prompt, (a, b, _) = make.rankable()
    store.save_ranking(make.ranking(prompt, [a], [b])).result()
    store.save_ranking(make.ranking(prompt, [b], [a])).result()
    assert [(r.chosen, r.rejected) for r in current_pairs(store).rows] == [("middling", "good")]
    store.archive_prompts([prompt.id]).result()
    assert current_pairs(store).rows == []


def test_training_pairs_never_come_from_a_held_out_prompt_nor_from_its_twin(store, make):
    held, ours = make.rankable("a", "b", prompt="Held?", split="held-out")
    twin, theirs = make.rankable("c", "d", prompt=" Held?\n")
    train, others = make.rankable("e", "f", prompt="Other?")
    for prompt, responses in ((held, ours), (twin, theirs), (train, others)):
        store.save_ranking(make.ranking(prompt, *([r] for r in responses))).result()
    found = current_pairs(store, "train")
    assert [row.group for row in found.rows] == [train.id]
    assert found.dropped == {HELD_OUT_TWIN: 1}
    assert [row.group for row in current_pairs(store, "held-out").rows] == [held.id]
    assert len(current_pairs(store).rows) == 3
    store.set_split([held.id], "train").result()
    assert len(current_pairs(store, "train").rows) == 3


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(tiers(), st.sampled_from(["train", "held-out"]), st.lists(st.sampled_from("ab "), min_size=9)),
        max_size=4,
    )
)
def test_counts_tell_exactly_the_pairs_that_can_train(tmp_path_factory, records, given_):
    with Project.create(tmp_path_factory.mktemp("pairs") / "p") as project:
        store, make = project.store, records(project.store)
        store.save_rater(Rater("ann", "Ann"))
        for number, (tiers_, split, texts) in enumerate(given_):
            prompt = make.prompt(str(number), split=split)
            ids = {id_: new_id() for tier in tiers_ for id_ in tier}
            responses = make.responses(prompt, *texts[: len(ids)])
            responses = [replace(r, id=id_) for r, id_ in zip(responses, ids.values(), strict=True)]
            named = tuple(tuple(ids[id_] for id_ in tier) for tier in tiers_)
            outcome = "ranked" if named else "cannot-rank"
            store.add_prompts([prompt])
            store.add_responses(responses)
            store.save_ranking(Ranking(new_id(), prompt.id, "ann", named, outcome)).result()
        counts = store.counts()
        everything = current_pairs(store)
        assert counts.pairs == len(everything.rows)
        assert counts.pairs_held_out == len(current_pairs(store, "held-out").rows)
        possible = sum(len(pairs_of(r)) for r in store.rankings())
        assert possible == len(everything.rows) + sum(everything.dropped.values())
        assert all(
            row.chosen.strip() and row.rejected.strip() and row.chosen.strip() != row.rejected.strip()
            for row in everything.rows
        )
        assert max(Counter(row.id for row in everything.rows).values(), default=1) == 1


def test_very_many_rankings_are_read_in_chunks_and_all_of_them_come(store, make, monkeypatch):
    monkeypatch.setattr("workbench.pairs._CHUNK", 2)
    for number in range(5):
        prompt, responses = make.rankable("a", "b", prompt=str(number))
        store.save_ranking(make.ranking(prompt, *([r] for r in responses))).result()
    assert [row.prompt[0].content for row in current_pairs(store).rows] == list("01234")
