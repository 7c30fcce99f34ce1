from __future__ import annotations

from dataclasses import replace

import pytest

from workbench import undo
from workbench.errors import UserError
from workbench.ids import new_id
from workbench.project import Project
from workbench.records import Rater


def test_undo_takes_back_act_by_act_and_redo_brings_them_again(store, make):
    prompt, (a, b, _) = make.rankable()
    ranking = make.ranking(prompt, [a], [b])
    store.save_ranking(ranking).result()
    store.save_ranking(make.ranking(prompt, [b], [a])).result()
    assert store.undo_label() == "Rank again “What is rain?”"
    store.undo().result()
    assert [r.id for r in store.rankings()] == [ranking.id]
    assert (store.counts().rankings, store.counts().pairs) == (1, 1)
    store.undo().result()
    assert store.rankings(include_superseded=True) == []
    assert store.redo_label() == "Rank “What is rain?”"
    store.redo().result()
    store.redo().result()
    assert store.rankings()[0].supersedes == ranking.id
    assert store.redo_label() == ""


def test_a_new_act_forgets_what_could_be_redone(store, make):
    store.add_prompts([make.prompt("a")]).result()
    store.undo().result()
    store.add_prompts([make.prompt("b")]).result()
    assert store.redo_label() == ""
    assert [p.title for p in store.prompts()] == ["b"]


def test_what_was_undone_keeps_its_content_also_when_it_can_be_redone_no_more(store, make):
    prompt, (a, b, _) = make.rankable()
    ranking = replace(make.ranking(prompt, [a], [b]), note="a is kinder")
    store.save_ranking(ranking).result()
    store.undo().result()
    store.set_tags([prompt.id], ["x"]).result()
    store.save_demonstration(make.demonstration(prompt, "Water.")).result()
    store.undo().result()
    assert store.redo_label() == "Write the demonstration of “What is rain?”"
    wrote, judged = store.taken_back()
    assert [(table, row["text"]) for table, row in wrote.rows] == [("demonstrations", "Water.")]
    ((table, row),) = judged.rows
    assert (table, row["id"], row["note"], judged.label) == (
        "rankings",
        ranking.id,
        "a is kinder",
        "Rank “What is rain?”",
    )
    assert len(store.taken_back(limit=1)) == 1


def test_undo_survives_a_restart(project, make):
    path, prompt = project.path, make.prompt()
    project.store.add_prompts([prompt]).result()
    project.store.set_tags([prompt.id], ["x"]).result()
    project.store.undo().result()
    project.close()
    with Project.open(path) as again:
        assert (again.store.undo_label(), again.store.redo_label()) == ("Add “What is rain?”", "Tag 1 prompt")
        again.store.redo().result()
        assert again.store.tags() == [("x", 1)]
        again.store.undo().result()
        again.store.undo().result()
        assert again.store.prompts() == []
        assert again.check() == []


def test_a_prompt_written_anew_is_one_act_and_one_undo(project, store, make):
    old, new = make.prompt("rain"), make.prompt("sun")
    store.add_prompts([old]).result()
    change = store.replace_prompt(old.id, new).result()
    assert (change.ids, change.kinds, change.label) == ((new.id, old.id), {"prompts"}, "Edit “sun”")
    assert [one.id for one in store.prompts()] == [new.id]
    again = store.replace_prompt(old.id, new).result()  # the same once more: nothing to do, nothing to undo
    assert (again.kinds, again.label) == (frozenset(), "")
    store.undo().result()
    assert [one.id for one in store.prompts()] == [old.id]
    store.redo().result()
    assert [one.id for one in store.prompts()] == [new.id]
    assert project.check() == []


def test_undo_keeps_search_tags_and_counts_right(project, store, make):
    prompt, (a, b, _) = make.rankable()
    store.set_tags([prompt.id], ["wet"]).result()
    store.save_ranking(make.ranking(prompt, [a], [b])).result()
    store.save_demonstration(make.demonstration(prompt)).result()
    store.set_split([prompt.id], "held-out").result()
    store.archive_prompts([prompt.id]).result()
    before = store.counts()
    assert before.prompts == before.pairs == before.demonstrations_final == 0
    store.undo().result()
    counts = store.counts()
    assert (counts.prompts_held_out, counts.pairs_held_out, counts.demonstrations_final) == (1, 1, 1)
    for _ in range(6):
        store.undo().result()
    assert store.counts() == before
    assert store.prompts(search="rain") == []
    assert store.tags() == []
    for _ in range(6):
        store.redo().result()
    assert store.counts() == counts
    assert [p.id for p in store.prompts(search="rain")] == [prompt.id]
    assert store.tags() == [("wet", 1)]
    assert project.check() == []


def test_typing_is_undone_as_a_whole_but_finishing_is_a_step_of_its_own(store, make, monkeypatch):
    prompt = make.prompt()
    store.add_prompts([prompt]).result()
    for text in ("W", "Wa", "at"):
        store.save_demonstration(make.demonstration(prompt, text, final=False)).result()
    store.save_demonstration(make.demonstration(prompt, "Water.")).result()
    assert [d.text for d in store.demonstration_history(prompt.id)] == ["Water.", "at", "Wa"]
    store.undo().result()
    assert store.demonstration_for(prompt.id).text == "at"
    change = store.undo().result()
    assert len(change.ids) == 2
    assert store.demonstration_history(prompt.id) == []
    assert store.undo_label() == "Add “What is rain?”"
    store.redo().result()
    assert store.demonstration_for(prompt.id).text == "at"
    store.undo().result()
    store.save_demonstration(make.demonstration(prompt, "S", final=False)).result()  # joins nothing that is undone
    assert store.redo_label() == ""
    monkeypatch.setattr(undo, "BURST", undo.timedelta(0))
    store.save_demonstration(make.demonstration(prompt, "Sn", final=False)).result()  # too late to be the same burst
    store.undo().result()
    assert store.demonstration_for(prompt.id).text == "S"


def test_a_draft_is_a_step_also_when_it_is_the_first(store, make):
    prompt = make.prompt()
    store.add_prompts([prompt]).result()
    store._writer._db.execute("DELETE FROM undo")
    store.save_demonstration(make.demonstration(prompt, "W", final=False)).result()
    store.undo().result()
    assert store.demonstration_for(prompt.id) is None


def test_drafts_of_two_authors_are_two_bursts(store, make):
    prompt = make.prompt()
    store.add_prompts([prompt]).result()
    draft = make.demonstration(prompt, "a", final=False)
    store.save_demonstration(draft).result()
    store.save_demonstration(replace(draft, id=new_id(), text="b", author="Bob")).result()
    store.undo().result()
    assert store.demonstration_for(prompt.id).text == "a"


def test_old_steps_are_dropped_but_never_the_newest(store, make, monkeypatch):
    monkeypatch.setattr(undo, "STEPS", 2)
    for text in "abc":
        store.add_prompts([make.prompt(text)]).result()
    store.undo().result()
    store.undo().result()
    assert store.undo_label() == ""
    assert [p.title for p in store.prompts()] == ["a"]
    monkeypatch.setattr(undo, "BYTES", 1)
    store.add_prompts([make.prompt("d")]).result()
    store.add_prompts([make.prompt("e")]).result()
    store.undo().result()
    assert store.undo_label() == ""


def test_raters_models_and_runs_are_not_undone(store, make):
    store.add_prompts([make.prompt()]).result()
    store.save_rater(Rater("bob", "Bob")).result()
    store.undo().result()
    assert [r.id for r in store.raters()] == ["bob"]


def test_an_undo_that_no_longer_fits_changes_nothing_and_says_so(store, make):
    prompt = make.prompt()
    store.add_prompts([prompt]).result()
    foreign_change(store)
    with pytest.raises(UserError, match="Undo is not possible: Add “What is rain"):
        store.undo().result()
    assert [p.id for p in store.prompts()] == [prompt.id]
    assert store.undo_label() != ""


def foreign_change(store) -> None:
    """Change a label behind the store's back."""
    from workbench import database

    with database.connect(store.path) as db:
        db.execute("UPDATE prompts SET source = 'elsewhere'")
    db.close()
