"""``tastemaker judge`` and what it joins: the judgement, the frozen rows, the project's tags and raters."""

import json
from dataclasses import replace

import pytest

from workbench import cli
from workbench.ids import new_id
from workbench.judged_model import judged_model
from workbench.judgement import JudgedPair, Judgement
from workbench.manifests import seal
from workbench.project import Project
from workbench.protocol import ModelRef, RunSpec
from workbench.records import Message, ModelRecord, Prompt, Rater
from workbench.rows import PairRow
from workbench.run_folder import RunFolder


def run(*arguments):
    return cli.main(arguments, lambda _: pytest.fail("the window must not open"))


def make_reward_model(project, judgement, name="reward 1"):
    """A reward model of a finished run with 12 held-out pairs, of which what ``judgement`` says is known."""
    prompts = [Prompt(new_id(), (Message("user", f"Why {n}?"),), tags=("science",)) for n in range(12)]
    project.store.add_prompts(prompts).result()
    project.store.save_rater(Rater("ada", "Ada")).result()
    rows = [
        PairRow(f"pair{n}", one.id, f"ranking{n // 2}", "ada", one.messages, "Because.\nIt is.", "\x1b[31mNo idea")
        for n, one in enumerate(prompts)
    ]
    base = ModelRecord(new_id(), f"base of {name}", "base", "/nowhere")
    run_id = new_id()
    spec = RunSpec(
        run_id=run_id, method="reward", name=name, recipe={}, model=ModelRef(model_id=base.id, name="", base="")
    )
    project.runs_dir.mkdir(exist_ok=True)
    folder = RunFolder.create(project.runs_dir, spec, rows, rows)
    final = folder.path / "final"
    final.mkdir()
    if judgement is not None:
        judgement.write(final)
    seal(final, kind="final", run_id=run_id, method="reward", step=5)
    made = ModelRecord(new_id(), name, "reward", f"runs/{run_id}/final", base_id=base.id, run_id=run_id)
    project.store.save_model(base).result()
    project.store.save_model(made).result()
    return folder, made


def twelve(gap=1.0, wrong=-2.0):
    """Eleven pairs that are right and one that is not, two of each ranking."""
    return Judgement(
        step=5,
        pairs=tuple(
            JudgedPair(f"pair{n}", f"ranking{n // 2}", wrong if n == 3 else gap, 1 + n % 2, 4 - n, "ada")
            for n in range(12)
        ),
    )


@pytest.fixture
def judged(tmp_path):
    with Project.create(tmp_path / "project") as project:
        folder, model = make_reward_model(project, twelve())
        yield project, folder, model


def test_a_judgement_gets_its_texts_tags_and_names(judged):
    project, folder, _ = judged
    found = judged_model(project.store, folder.path / "final", folder)
    assert [one.name for one in found.report.by_tag] == ["science"]
    assert [one.name for one in found.report.by_rater] == ["Ada"]
    [wrong] = found.report.confident_and_wrong
    assert found.rows[wrong.id].prompt[-1].content == "Why 3?"


def test_without_its_run_the_numbers_stand_without_texts(judged):
    project, folder, _ = judged
    final = folder.path / "final"
    (folder.path / "data" / "heldout.jsonl").write_text("changed")
    for lost in (None, folder):
        found = judged_model(project.store, final, lost)
        assert found.report.accuracy.accuracy == pytest.approx(11 / 12)
        assert (found.rows, found.report.by_tag) == ({}, ())


def test_the_command_tells_accuracy_calibration_length_and_mistakes(judged, tmp_path, capsys):
    assert run("judge", str(tmp_path / "project"), "reward 1") == 0
    shown = capsys.readouterr().out
    assert "'reward 1' at step 5, judged on 12 held-out pairs of 6 rankings to 6 prompts." in shown
    assert "91.7%" in shown
    for title in ("By tag", "By tier distance", "By score gap", "By rater", "Calibration error", "Length:"):
        assert title in shown
    assert "Confident and wrong: 1 pair" in shown
    assert "gap -2.00, 88% sure  pair3" in shown
    assert "Because. It is." in shown
    assert "\x1b" not in shown


def test_the_labels_own_consistency_bounds_the_accuracy(judged, tmp_path, capsys, records):
    """Ann and Ben agree in 1 of 1: no label is flipped, and the bound is 100 %."""
    project, _, _ = judged
    make = records(project.store)
    prompt, responses = make.rankable("good", "bad")
    project.store.save_rater(Rater("ben", "Ben")).result()
    assert run("judge", str(tmp_path / "project"), "reward 1") == 0
    assert "bound it" not in capsys.readouterr().out
    for rater in ("ann", "ben"):
        project.store.save_ranking(make.ranking(prompt, *([one] for one in responses), rater=rater)).result()
    assert run("judge", str(tmp_path / "project"), "reward 1") == 0
    assert "bound it at 100.0%" in capsys.readouterr().out


def test_programs_get_the_whole_report(judged, tmp_path, capsys):
    assert run("judge", str(tmp_path / "project"), "reward 1", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["step"]) == ("reward 1", 5)
    assert told["accuracy"]["accuracy"] == pytest.approx(11 / 12)
    assert len(told["reliability"]) == 10
    assert [one["id"] for one in told["confident_and_wrong"]] == ["pair3"]


def test_a_model_that_was_not_judged_says_what_to_do(tmp_path, capsys):
    with Project.create(tmp_path / "project") as project:
        make_reward_model(project, None, "unjudged")
        make_reward_model(project, Judgement(), "nothing held out")
    for name in ("unjudged", "nothing held out"):
        assert run("judge", str(tmp_path / "project"), name) == 1
        assert "was not judged" in capsys.readouterr().err


def test_many_mistakes_are_listed_in_part_and_none_are_said_to_be_none(tmp_path, capsys):
    with Project.create(tmp_path / "project") as project:
        make_reward_model(project, twelve(gap=-1.5), "bad")
        make_reward_model(project, twelve(wrong=-0.1), "good")
    assert run("judge", str(tmp_path / "project"), "bad") == 0
    assert "and 2 more" in capsys.readouterr().out
    assert run("judge", str(tmp_path / "project"), "good") == 0
    assert "No pair is judged confidently and wrongly." in capsys.readouterr().out


def test_the_spread_of_an_ensemble_is_told_and_none_of_a_single_head(judged, tmp_path, capsys):
    assert run("judge", str(tmp_path / "project"), "reward 1") == 0
    assert "Spread of the heads" not in capsys.readouterr().out
    _, folder, _ = judged
    spread = [replace(one, gap_std=0.4 if one.gap < 0 else 0.1) for one in twelve().pairs]
    Judgement(step=5, pairs=tuple(spread)).write(folder.path / "final")
    assert run("judge", str(tmp_path / "project"), "reward 1") == 0
    shown = capsys.readouterr().out
    assert "Spread of the heads' gaps 0.125: 0.400 where it is wrong, 0.100 where it is right" in shown
    assert "in 100.0% of the comparisons" in shown


def test_mistakes_of_a_run_whose_data_changed_are_told_by_their_ids(judged, tmp_path, capsys):
    _, folder, _ = judged
    (folder.path / "data" / "heldout.jsonl").write_text("changed")
    assert run("judge", str(tmp_path / "project"), "reward 1") == 0
    shown = capsys.readouterr().out
    assert "gap -2.00, 88% sure  pair3" in shown
    assert "By tag" not in shown
    assert "rejected" not in shown
