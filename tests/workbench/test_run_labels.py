"""From a run to its labels: which rows it was given, and which of their labels changed since."""

from __future__ import annotations

from dataclasses import replace

import pytest

from workbench.errors import UserError
from workbench.ids import new_id
from workbench.pairs import current_pairs
from workbench.protocol import ModelRef, RunSpec
from workbench.rows import PromptRow, ThumbRow
from workbench.run_folder import RunFolder
from workbench.run_labels import run_labels
from workbench.training_data import demonstrations


@pytest.fixture
def frozen(project):
    def make(method, train, heldout=(), demonstrations=()):
        spec = RunSpec(
            run_id=new_id(), method=method, name="run", recipe={}, model=ModelRef(model_id="b", name="", base="")
        )
        project.runs_dir.mkdir(exist_ok=True)
        return RunFolder.create(project.runs_dir, spec, train, heldout, demonstrations)

    return make


def test_a_superseded_and_an_archived_ranking_are_counted_once_each_however_many_pairs_they_gave(
    project, store, make, frozen
):
    rankings = []
    for n in range(3):
        prompt, responses = make.rankable(prompt=f"Question {n}?")
        rankings.append(make.ranking(prompt, *([one] for one in responses)))
        store.save_ranking(rankings[-1]).result()
    run = frozen("reward", current_pairs(store).rows)
    before = run_labels(store, run)
    assert (len(before.rows), before.trained, before.superseded, before.gone) == (9, 3, 0, 0)
    assert (before.rows[0].prompt, before.rows[0].chosen, before.rows[0].rejected) == (
        "Question 0?",
        "good",
        "middling",
    )
    store.save_ranking(replace(rankings[0], id=new_id(), tiers=rankings[0].tiers[::-1])).result()
    store.archive_prompts([rankings[1].prompt_id]).result()
    after = run_labels(store, run)
    assert (after.trained, after.superseded, after.gone) == (3, 1, 1)
    assert [one.since for one in after.rows] == ["superseded"] * 3 + ["gone"] * 3 + ["current"] * 3
    assert {one.prompt_id for one in after.rows} == {one.prompt_id for one in rankings}


def test_an_undone_ranking_is_gone(store, make, frozen):
    prompt, responses = make.rankable("good", "bad")
    store.save_ranking(make.ranking(prompt, *([one] for one in responses))).result()
    run = frozen("dpo", current_pairs(store).rows)
    store.undo().result()
    assert (run_labels(store, run).superseded, run_labels(store, run).gone) == (0, 1)


def test_what_only_measures_is_shown_and_not_counted_as_training(store, make, frozen):
    prompt, responses = make.rankable("good", "bad")
    store.save_ranking(make.ranking(prompt, *([one] for one in responses))).result()
    run = frozen("reward", [], current_pairs(store).rows)
    store.undo().result()
    found = run_labels(store, run)
    assert (found.trained, found.gone) == (0, 0)
    assert [(one.part, one.since) for one in found.rows] == [("heldout", "gone")]


def test_an_edited_demonstration_is_superseded(project, store, make, frozen):
    prompt, _ = make.rankable()
    store.save_demonstration(make.demonstration(prompt)).result()
    run = frozen("sft", demonstrations(project, "train"))
    assert run_labels(store, run).superseded == 0
    store.save_demonstration(make.demonstration(prompt, "Water from clouds.")).result()
    found = run_labels(store, run)
    assert (found.trained, found.superseded) == (1, 1)
    assert (found.rows[0].chosen, found.rows[0].is_ranking) == ("Water.", False)


def test_a_thumb_is_a_label_of_rank_and_a_bare_prompt_is_none(store, make, frozen):
    prompt, _ = make.rankable()
    thumb = ThumbRow("k:r", prompt.id, "k", "ann", prompt.messages, "good", True)
    [one] = run_labels(store, frozen("kto", [thumb])).rows
    assert (one.is_ranking, one.wanted, one.since) == (True, True, "gone")
    [one] = run_labels(store, frozen("ppo", [PromptRow(prompt.id, prompt.messages)])).rows
    assert (one.is_ranking, one.chosen, one.since) == (False, "", "current")
    [one] = run_labels(store, frozen("ppo", [PromptRow("elsewhere", prompt.messages)])).rows
    assert one.since == "gone"


def test_a_bare_prompt_that_was_archived_is_gone(store, make, frozen):
    prompt, _ = make.rankable()
    run = frozen("ppo", [PromptRow(prompt.id, prompt.messages)])
    store.archive_prompts([prompt.id]).result()
    assert run_labels(store, run).gone == 1


def test_a_row_of_rank_names_the_ranking_that_made_it(store, make, frozen):
    prompt, responses = make.rankable("good", "bad")
    ranking = make.ranking(prompt, *([one] for one in responses))
    store.save_ranking(ranking).result()
    thumb = ThumbRow("k:r", prompt.id, "k", "ann", prompt.messages, "good", True)
    [pair] = run_labels(store, frozen("dpo", current_pairs(store).rows)).rows
    [one] = run_labels(store, frozen("kto", [thumb])).rows
    assert (pair.ranking_id, one.ranking_id) == (ranking.id, "k")


def test_changed_data_is_refused(store, make, frozen):
    prompt, _ = make.rankable()
    run = frozen("ppo", [PromptRow(prompt.id, prompt.messages)])
    (run.path / "data" / "train.jsonl").write_text("")
    with pytest.raises(UserError, match="was changed"):
        run_labels(store, run)
