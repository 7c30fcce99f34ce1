"""What waits to be ranked by whom: one definition for queue and counts; more responses make a prompt wait again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from workbench.records import Rater
from workbench.store_waiting import count, next_to_rank


@pytest.fixture
def waits(store):
    """How many wait for a rater, by the tallies and by the queue, which must agree."""

    def count(rater: str = "ann") -> int:
        queue = store.next_to_rank(rater_id=rater)
        assert store.counts(rater).prompts_with_responses == len(queue)
        return len(queue)

    return count


def skip_of(make, prompt, *shown):
    return replace(make.ranking(prompt), outcome="skipped", shown_order=tuple(r.id for r in shown))


def test_a_ranked_prompt_waits_again_once_it_has_a_response_that_was_not_ranked(store, make, waits):
    prompt, (a, b) = make.rankable("a", "b")
    assert waits() == 1
    store.save_ranking(make.ranking(prompt, [a], [b])).result()
    assert waits() == 0
    (c,) = make.responses(prompt, "c")
    store.add_responses([c]).result()
    assert waits() == 1
    store.save_ranking(make.ranking(prompt, [c], [a])).result()  # a is an anchor
    assert waits() == 0
    assert [one.tiers for one in store.rankings()] == [((a.id,), (b.id,)), ((c.id,), (a.id,))]  # side by side
    assert store.counts().pairs == 2


def test_undo_and_redo_move_the_count_with_them(store, make, waits):
    prompt, (a, b) = make.rankable("a", "b")
    store.save_ranking(make.ranking(prompt, [a], [b])).result()
    store.add_responses(make.responses(prompt, "c")).result()
    seen = [waits()]
    for act in (store.undo, store.undo, store.undo, store.redo, store.redo, store.redo):
        act().result()
        seen.append(waits())
    assert seen == [1, 0, 1, 0, 1, 0, 1]  # responses gone, ranking gone, the first responses gone, and all back


def test_each_rater_has_a_queue_of_their_own(store, make, waits):
    prompt, (a, b) = make.rankable("a", "b")
    make.rankable("c", "d", prompt="another")
    store.save_rater(Rater("bob", "Bob")).result()
    store.save_ranking(make.ranking(prompt, [a], [b])).result()
    assert (waits("ann"), waits("bob"), waits("nobody yet")) == (1, 2, 2)
    store.archive_prompts([prompt.id]).result()
    assert (waits("ann"), waits("bob")) == (1, 1)
    store.archive_prompts([prompt.id], archived=False).result()
    assert (waits("ann"), waits("bob")) == (1, 2)


def test_a_skip_waits_behind_and_new_responses_bring_its_prompt_to_the_front(store, make, waits):
    (first, shown), (second, _) = make.rankable("a", "b"), make.rankable("c", "d", prompt="another")
    store.save_ranking(skip_of(make, first, *shown)).result()
    assert store.next_to_rank(rater_id="ann") == [second.id, first.id]
    assert store.next_to_rank(rater_id="ann", passed_over=[first.id]) == [second.id]
    store.add_responses(make.responses(first, "new")).result()
    assert store.next_to_rank(rater_id="ann", passed_over=[first.id]) == [first.id, second.id]
    assert waits() == 2


def test_a_skip_of_new_responses_stands_beside_the_ranking_of_the_old_ones(store, make, waits):
    prompt, (a, b) = make.rankable("a", "b")
    ranking = make.ranking(prompt, [a], [b])
    store.save_ranking(ranking).result()
    (c,) = make.responses(prompt, "c")
    store.add_responses([c]).result()
    skip = skip_of(make, prompt, c, a)
    store.save_ranking(skip).result()
    assert [one.id for one in store.rankings()] == [ranking.id, skip.id]
    assert waits() == 1
    assert store.next_to_rank(rater_id="ann", passed_over=[prompt.id]) == []  # behind all others
    last = make.ranking(prompt, [a], [c])
    store.save_ranking(last).result()
    assert [one.id for one in store.rankings()] == [ranking.id, last.id]
    assert waits() == 0


def test_what_cannot_be_ranked_stands_beside_a_ranking_of_newer_responses(store, make, waits):
    prompt, (a, b) = make.rankable("a", "b")
    cannot = replace(skip_of(make, prompt, a, b), outcome="cannot-rank")
    store.save_ranking(cannot).result()
    assert waits() == 0
    c, d = make.responses(prompt, "c", "d")
    store.add_responses([c, d]).result()
    assert waits() == 1
    newer = make.ranking(prompt, [c], [d])
    store.save_ranking(newer).result()
    assert [one.id for one in store.rankings()] == [cannot.id, newer.id]
    assert waits() == 0


def test_a_judgement_that_names_nothing_is_about_all_of_its_prompt(store, make, waits):
    prompt, _ = make.rankable("a", "b")
    store.save_ranking(replace(make.ranking(prompt), outcome="cannot-rank")).result()
    store.add_responses(make.responses(prompt, "c")).result()
    assert waits() == 0
    store.undo().result()
    store.undo().result()
    assert waits() == 1


def test_the_time_goes_with_what_is_left_and_not_with_what_is_done(store, make):
    """Counted in steps of SQLite's machine: the same after 20 ranked prompts as after 400."""
    store.save_rater(Rater("ann", "Ann")).result()

    def rank(count: int) -> None:
        prompts = [make.prompt(f"prompt {n} of {count}") for n in range(count)]
        pairs = [make.responses(prompt, "a", "b") for prompt in prompts]
        rankings = [make.ranking(prompt, [a], [b]) for prompt, (a, b) in zip(prompts, pairs, strict=True)]
        responses = [one for pair in pairs for one in pair]
        store.add_batch(prompts=prompts, responses=responses, rankings=rankings, label="import").result()

    def steps() -> int:
        taken = [0]

        def tick() -> bool:
            taken[0] += 1
            return False

        with store.reading() as db:
            db.set_progress_handler(tick, 20)
            try:
                assert next_to_rank(db, "ann", "", (), frozenset(), 1000) == [last.id, again.id]
                assert count(db, "ann") == 2
            finally:
                db.set_progress_handler(None)
        return taken[0]

    rank(20)
    again = store.prompts()[0]
    last, _ = make.rankable("a", "b", prompt="the last")
    store.save_ranking(skip_of(make, last, *store.responses(last.id))).result()
    store.save_ranking(skip_of(make, again, *store.responses(again.id))).result()  # judged: noted, no more
    store.add_responses(make.responses(again, "new")).result()
    last, again = again, last
    before = steps()
    rank(400)
    assert steps() <= before + 2
