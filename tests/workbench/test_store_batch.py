from __future__ import annotations

from dataclasses import replace

import pytest

from workbench.errors import UserError
from workbench.ids import new_id
from workbench.records import Demonstration, Message, Prompt, Ranking, Rater, Response, ResponseFlag

ANN = Rater("ann", "Ann")


def preference_file(*rows: tuple[str, str, str]) -> dict[str, list]:
    """What an importer makes of rows of prompt, chosen, rejected: new ids for everything."""
    batch: dict[str, list] = {"prompts": [], "responses": [], "rankings": [], "raters": [ANN]}
    for text, chosen, rejected in rows:
        prompt = Prompt(new_id(), (Message("user", text),))
        pair = [Response(new_id(), prompt.id, chosen), Response(new_id(), prompt.id, rejected)]
        order = tuple(r.id for r in pair)
        batch["prompts"].append(prompt)
        batch["responses"] += pair
        batch["rankings"].append(Ranking(new_id(), prompt.id, "ann", tuple((id_,) for id_ in order), shown_order=order))
    return batch


def test_a_batch_is_stored_whole_and_undone_as_a_whole(project, store):
    change = store.add_batch(**preference_file(("p", "good", "bad"), ("q", "yes", "no")), label="Import two").result()
    assert change.kinds == {"prompts", "responses", "rankings", "raters"}
    assert (change.label, change.duplicates) == ("Import two", 0)
    assert change.batch_id
    counts = store.counts()
    assert (counts.prompts, counts.responses, counts.rankings, counts.pairs) == (2, 4, 2, 2)
    assert store.undo().result().batch_id == change.batch_id
    assert store.counts().prompts == store.counts().responses == store.counts().rankings == 0
    assert store.raters()  # raters stay
    store.redo().result()
    assert store.counts() == counts
    assert project.check() == []


def test_importing_the_same_file_again_adds_nothing_and_counts_its_labels(store):
    rows = [("p", "good", "bad"), ("p", "good", "worse"), ("q", "same", "same"), ("q ", "", "")]
    store.add_batch(**preference_file(*rows), label="first").result()
    before, acts = store.counts(), len(store.journal())
    again = store.add_batch(**preference_file(*rows), label="second").result()
    assert again.duplicates == 4
    assert (again.kinds, again.batch_id) == (frozenset(), "")
    assert store.counts() == before
    assert len(store.journal()) == acts
    assert store.undo_label() == "first"


def test_rows_of_one_prompt_share_it_and_their_equal_responses(store):
    store.add_batch(**preference_file(("p", "a", "b"), ("p\n", "a", "c"), ("p", "b", "c")), label="").result()
    (prompt,) = store.prompts()
    assert [r.text for r in store.responses(prompt.id)] == ["a", "b", "c"]
    assert len(store.rankings()) == 3  # each row is a judgement of its own: none supersedes another
    assert store.counts().pairs == 3


def test_a_row_whose_texts_are_the_same_keeps_two_responses(store):
    store.add_batch(**preference_file(("p", "a", "a")), label="").result()
    (ranking,) = store.rankings()
    assert len({id_ for tier in ranking.tiers for id_ in tier}) == 2
    assert store.counts().pairs == 0


def test_the_same_texts_in_another_order_are_another_judgement(store):
    store.add_batch(**preference_file(("p", "a", "b")), label="").result()
    change = store.add_batch(**preference_file(("p", "b", "a")), label="").result()
    assert change.duplicates == 0
    assert len(store.rankings()) == 2


def test_everything_that_refers_to_a_known_record_is_pointed_at_it(store, make):
    prompt, (good, *_) = make.rankable()
    copy = make.prompt()
    a, b = make.responses(copy, "good", "new")
    ranking = replace(
        make.ranking(copy, [b], [a]),
        shown_order=(a.id, b.id),
        flags=(ResponseFlag(a.id, "false"), ResponseFlag("", "x")),
    )
    store.add_batch(prompts=[copy], responses=[a, b], rankings=[ranking], label="").result()
    (stored,) = store.rankings()
    assert stored.prompt_id == prompt.id
    assert stored.tiers == ((b.id,), (good.id,))
    assert stored.shown_order == (good.id, b.id)
    assert stored.flags[0].response_id == good.id


def test_demonstrations_are_revisions_unless_the_text_is_known(store, make):
    prompt = make.prompt()
    store.add_prompts([prompt]).result()
    store.save_demonstration(make.demonstration(prompt, "old")).result()
    store.save_demonstration(make.demonstration(prompt, "new")).result()
    copy = make.prompt()
    given = [Demonstration(new_id(), copy.id, text, "file", "final") for text in ("old", "newest", "newest")]
    change = store.add_batch(prompts=[copy], demonstrations=given, label="").result()
    assert change.duplicates == 2
    assert [(d.revision, d.text) for d in store.demonstration_history(prompt.id)] == [
        (3, "newest"),
        (2, "new"),
        (1, "old"),
    ]


def test_prompts_and_responses_alone_are_counted_as_duplicates_of_their_kind(store, make):
    prompt, _ = make.rankable()
    change = store.add_batch(prompts=[make.prompt(), make.prompt("b"), make.prompt("b")], label="").result()
    assert change.duplicates == 2
    again = make.responses(prompt, "good", "unheard of", "unheard of")
    change = store.add_batch(responses=again, label="").result()
    assert change.duplicates == 2
    assert change.label == "Import 1 records"


def test_the_same_ids_again_are_duplicates(store):
    batch = preference_file(("p", "a", "b"))
    demonstration = Demonstration(new_id(), batch["prompts"][0].id, "text", "Ann")
    store.add_batch(**batch, demonstrations=[demonstration], label="").result()
    change = store.add_batch(**batch, demonstrations=[demonstration], label="").result()
    assert (change.kinds, change.duplicates) == (frozenset(), 2)


def test_a_response_already_in_the_project_can_be_ranked_by_a_batch(store, make):
    prompt, (a, b, _) = make.rankable()
    store.add_batch(rankings=[make.ranking(prompt, [a], [b])], label="").result()
    assert store.counts().rankings == 1
    c = Response(new_id(), prompt.id, "good")  # the text of a: in one ranking with a it stays itself
    change = store.add_batch(responses=[c], rankings=[make.ranking(prompt, [a], [c])], label="").result()
    assert change.ids[0] == c.id


def test_a_response_in_two_rankings_of_a_batch_stays_one(store, make):
    prompt = make.prompt()
    a, b, c = make.responses(prompt, "x", "x", "y")
    rankings = [make.ranking(prompt, [b], [c]), make.ranking(prompt, [a], [b])]
    store.add_batch(prompts=[prompt], responses=[a, b, c], rankings=rankings, raters=[ANN], label="").result()
    first, second = store.rankings()
    assert first.tiers[0] == second.tiers[1]
    assert second.tiers[0] != second.tiers[1]


def test_a_history_of_corrections_is_kept_when_it_says_so(store, make):
    prompt, (a, b, _) = make.rankable()
    first = make.ranking(prompt, [a], [b])
    second = replace(make.ranking(prompt, [b], [a]), supersedes=first.id)
    third = replace(make.ranking(prompt, [b, a]), supersedes="nobody")
    store.add_batch(rankings=[first, second, third], label="").result()
    assert [(r.id, r.supersedes) for r in store.rankings()] == [(second.id, first.id), (third.id, "")]
    store.save_ranking(make.ranking(prompt, [a], [b])).result()  # the rater's word on the prompt from now on
    assert len(store.rankings()) == 1


def test_pairs_that_a_ranking_of_the_same_rater_says_already_are_there_already(store, make):
    prompt, (a, b, c) = make.rankable("a", "b", "c")
    whole = make.ranking(prompt, [a], [b], [c])
    store.save_ranking(whole).result()
    copies = make.responses(prompt, "a", "b", "c")
    said = [make.ranking(prompt, [copies[x]], [copies[y]]) for x, y in ((0, 1), (0, 2), (1, 2))]
    change = store.add_batch(responses=copies, rankings=said, label="").result()
    assert (change.duplicates, change.kinds) == (3, frozenset())
    new = make.ranking(prompt, [copies[2]], [copies[0]])
    used = [copies[0], copies[2]]
    change = store.add_batch(responses=used, rankings=[new, replace(new, id=new_id())], label="").result()
    assert (change.duplicates, change.ids) == (1, (new.id,))  # the second says what the first said


def test_a_known_id_makes_a_duplicate_only_of_what_it_says_itself(store, make):
    prompt, (a, b, c) = make.rankable("a", "b", "c")
    old = make.ranking(prompt, [a], [b], [c])
    store.save_ranking(old).result()
    store.save_ranking(make.ranking(prompt, [c], [b], [a])).result()
    again = replace(old, tiers=((a.id,), (b.id,)))
    assert store.add_batch(rankings=[again], label="").result().duplicates == 1  # superseded since, and known
    store.save_rater(Rater("bob", "Bob")).result()
    other = replace(old, rater_id="bob", tiers=((b.id,), (a.id,)))
    change = store.add_batch(rankings=[other], label="").result()
    assert change.duplicates == 0
    assert old.id not in change.ids
    skip = replace(old, id=new_id(), tiers=(), outcome="skipped")
    assert store.add_batch(rankings=[skip, replace(skip, id=new_id())], label="").result().duplicates == 1


def test_archived_prompts_do_not_swallow_an_import(store, make):
    prompt = make.prompt()
    store.add_prompts([prompt]).result()
    store.archive_prompts([prompt.id]).result()
    assert store.add_batch(prompts=[make.prompt()], label="").result().duplicates == 0


def test_one_bad_record_and_nothing_of_the_batch_is_stored(store, make):
    batch = preference_file(("p", "a", "b"))
    for extra in (
        {"rankings": [*batch["rankings"], replace(batch["rankings"][0], id=new_id(), tiers=((new_id(),),))]},
        {"demonstrations": [make.demonstration(make.prompt())]},
        {"prompts": [*batch["prompts"], Prompt(new_id(), ())]},
    ):
        with pytest.raises(UserError):
            store.add_batch(**{**batch, **extra}, label="").result()
    assert store.prompts() == []
    assert store.raters() == []


def test_a_full_export_comes_back_record_by_record_with_its_history(store, make):
    prompt, twin = make.prompt(), make.prompt()  # two prompts, two responses and two revisions that say the same
    a, b = make.responses(prompt, "x", "x")
    first, second = make.ranking(prompt, [a], [b]), make.ranking(prompt, [a], [b])
    texts = ("one", "two", "one")
    revisions = [Demonstration(new_id(), prompt.id, text, "Ann") for text in texts]
    batch = {
        "prompts": [prompt, twin],
        "responses": [a, b],
        "rankings": [first, second],
        "demonstrations": revisions,
        "raters": [ANN],
        "label": "native",
        "by_id": True,
        "superseded_by": {first.id: second.id},
    }
    store.add_batch(**batch).result()
    assert [p.id for p in store.prompts()] == [prompt.id, twin.id]
    assert [r.id for r in store.responses(prompt.id)] == [a.id, b.id]
    assert [d.text for d in store.demonstration_history(prompt.id)] == ["one", "two", "one"]
    assert [r.id for r in store.rankings()] == [second.id]
    assert store.superseded_by() == {first.id: second.id}
    assert store.add_batch(**batch).result().kinds == frozenset()


def test_a_ranking_is_never_superseded_by_one_of_another_prompt(project, store, make):
    one, ours = make.rankable("a", "b", prompt="one")
    two, theirs = make.rankable("c", "d", prompt="two")
    first, second = make.ranking(one, ours[:1], ours[1:]), make.ranking(two, theirs[:1], theirs[1:])
    store.add_batch(
        rankings=[first, second], label="", superseded_by={first.id: second.id, "nobody": first.id}
    ).result()
    assert len(store.rankings()) == 2
    assert project.check() == []


def test_responses_that_other_rankings_of_the_batch_took_for_one_stay_two_where_they_meet(project, store, make):
    prompt, (x, y) = make.rankable("x", "y")
    a, b, c = make.responses(prompt, "x", "x", "z")
    rankings = [make.ranking(prompt, [a], [c]), make.ranking(prompt, [b], [c]), make.ranking(prompt, [a], [b])]
    store.add_batch(responses=[a, b, c], rankings=rankings, label="").result()
    assert {r.id for r in store.responses(prompt.id)} == {x.id, y.id, b.id, c.id}
    assert [r.tiers for r in store.rankings()] == [((x.id,), (c.id,)), ((b.id,), (c.id,)), ((x.id,), (b.id,))]
    assert project.check() == []
