"""Rankings asked for again: what is due, how an answer is kept, and that it counts and trains nothing."""

import json
from dataclasses import replace

import pytest

from workbench.agreement import measure
from workbench.errors import UserError
from workbench.formats.exporter import export_file
from workbench.formats.importer import import_file
from workbench.pairs import current_pairs
from workbench.project import Project
from workbench.re_asks import LEAST_BETWEEN, due, re_asks, stands


def rank(store, make, count):
    made = []
    for n in range(count):
        prompt, responses = make.rankable(prompt=f"Question {n}?")
        made.append(make.ranking(prompt, *([one] for one in responses)))
        store.save_ranking(made[-1]).result()
    return made


def again(make, first):
    return replace(first, id=make.prompt().id, tiers=first.tiers[::-1])


def test_an_answer_stands_under_the_ranking_that_it_repeats_and_trains_nothing(project, store, make):
    [first] = rank(store, make, 1)
    before = store.counts(), current_pairs(store).rows
    answer = again(make, first)
    change = store.save_re_ask(answer, first.id).result()
    assert change.label == "Answer once more for “Question 0?”"
    assert (store.counts(), current_pairs(store).rows) == before
    assert [one.id for one in store.rankings()] == [first.id]
    [asked] = re_asks(store)
    assert (asked.first.id, asked.again.tiers) == (first.id, first.tiers[::-1])
    assert measure(store).oneself.opposite == 3
    assert project.check() == []


def test_a_correction_is_no_answer_and_leaves_the_answer_with_what_it_repeated(store, make):
    [first] = rank(store, make, 1)
    store.save_re_ask(again(make, first), first.id).result()
    store.save_ranking(again(make, first)).result()
    [asked] = re_asks(store)
    assert asked.first.id == first.id
    assert len(store.rankings()) == 1


def test_an_answer_saved_twice_is_kept_once_and_undone_and_redone(store, make):
    [first] = rank(store, make, 1)
    answer = again(make, first)
    store.save_re_ask(answer, first.id).result()
    store.save_re_ask(answer, first.id).result()
    assert len(re_asks(store)) == 1
    store.undo().result()
    assert re_asks(store) == []
    assert len(store.rankings()) == 1
    store.redo().result()
    assert len(re_asks(store)) == 1


def test_an_answer_to_another_prompt_or_to_nothing_is_refused(store, make):
    first, other = rank(store, make, 2)
    for wrong in (other.id, "nothing"):
        with pytest.raises(UserError, match="cannot be saved"):
            store.save_re_ask(again(make, first), wrong).result()


def test_nothing_is_due_before_enough_was_judged_nor_ever_at_0(store, make):
    made = rank(store, make, LEAST_BETWEEN)
    assert due(store, "ann", 20) is None  # 20 judged, and none of them 20 judgements ago
    made += rank(store, make, 1)
    assert due(store, "ann", 20).id == made[0].id
    assert due(store, "ann", 22) is None
    assert due(store, "ann", 0) is None
    assert due(store, "ben", 20) is None


def test_once_asked_the_count_begins_anew_also_after_a_skip_and_no_ranking_is_asked_twice(store, make):
    made = rank(store, make, LEAST_BETWEEN + 1)
    skipped = replace(again(make, made[0]), tiers=(), outcome="skipped")
    store.save_re_ask(skipped, made[0].id).result()
    assert re_asks(store) == []
    assert due(store, "ann", 2) is None
    rank(store, make, 2)
    assert due(store, "ann", 2).id in {made[1].id, made[2].id}


def test_a_day_is_enough(store, make):
    prompt, responses = make.rankable()
    old = replace(make.ranking(prompt, *([one] for one in responses)), created_at="2020-01-01T00:00:00+00:00")
    store.save_ranking(old).result()
    assert due(store, "ann", 1).id == old.id


def test_what_was_superseded_archived_or_only_tied_is_not_asked_again(store, make):
    made = rank(store, make, LEAST_BETWEEN + 3)
    store.save_ranking(again(make, made[0])).result()
    store.archive_prompts([made[1].prompt_id]).result()
    tied = replace(made[2], id=make.prompt().id, tiers=(tuple(id_ for (id_,) in made[2].tiers),))
    store.save_ranking(tied).result()
    assert due(store, "ann", 1).id in {made[3].id, made[4].id}


def test_a_ranking_stands_until_it_is_corrected_archived_or_undone(store, make):
    corrected, archived, undone = made = rank(store, make, 3)
    assert [stands(store, one.id) for one in made] == [True, True, True]
    store.undo().result()
    store.save_ranking(again(make, corrected)).result()
    store.archive_prompts([archived.prompt_id]).result()
    assert [stands(store, one.id) for one in (corrected, archived, undone)] == [False, False, False]


def test_answers_survive_an_export_into_another_project(project, store, make, tmp_path):
    [first] = rank(store, make, 1)
    store.save_re_ask(again(make, first), first.id).result()
    file = tmp_path / "rankings.jsonl"
    export_file(project, file, what="rankings")
    with Project.create(tmp_path / "other") as other:
        import_file(other, file)
        assert len(other.store.rankings()) == 1
        [asked] = re_asks(other.store)
        assert asked.again.tiers == asked.first.tiers[::-1]
        assert other.check() == []


def import_again(project, file, other):
    export_file(project, file, what="rankings")
    return import_file(other, file)


def test_an_answer_that_agrees_reaches_a_project_that_had_the_first_ranking_before(project, store, make, tmp_path):
    alike, turned = rank(store, make, 2)
    file = tmp_path / "rankings.jsonl"
    with Project.create(tmp_path / "other") as other:
        import_again(project, file, other)
        for first, tiers in ((alike, alike.tiers), (turned, turned.tiers[::-1])):
            store.save_re_ask(replace(again(make, first), tiers=tiers), first.id).result()
        report = import_again(project, file, other)
        assert (report.added, report.duplicates) == (2, 2)
        assert {(one.first.id, one.again.tiers == one.first.tiers) for one in re_asks(other.store)} == {
            (alike.id, True),
            (turned.id, False),
        }
        assert measure(other.store).oneself == measure(store).oneself  # one card the same way, one the other way
        assert len(other.store.rankings()) == 2
        assert import_again(project, file, other).added == 0
        assert other.check() == []


def test_an_answer_stands_under_the_ranking_that_the_project_had_under_another_id(project, store, make, tmp_path):
    [first] = rank(store, make, 1)
    file = tmp_path / "rankings.jsonl"
    with Project.create(tmp_path / "other") as other:
        export_file(project, file, what="rankings")
        line = json.loads(file.read_text())
        del line["sha256"]
        file.write_text(json.dumps(line | {"id": "theirs"}) + "\n")
        import_file(other, file)
        store.save_re_ask(replace(again(make, first), tiers=first.tiers), first.id).result()
        import_again(project, file, other)
        [asked] = re_asks(other.store)
        assert (asked.first.id, asked.again.tiers) == ("theirs", first.tiers)
        assert [one.id for one in other.store.rankings()] == ["theirs"]
