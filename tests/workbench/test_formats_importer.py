"""Files into a project: one undoable batch, nothing twice, nobody's labels replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import UserError
from workbench.formats.importer import import_file
from workbench.ids import new_id
from workbench.project import Project
from workbench.records import Demonstration, Message, Prompt, Rater


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def to_file(*rows: Any, name: str = "file.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return to_file


def preference(prompt: str = "hi", chosen: str = "hello", rejected: str = "go away", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def test_a_preference_becomes_a_prompt_two_responses_and_a_ranking_by_the_rater(project: Project, write: Any) -> None:
    report = import_file(project, write(preference(tags=["a"])), rater_name="Ann")
    assert (report.added, report.duplicates, report.rejected, report.warnings) == (1, 0, [], [])
    assert (report.what, report.format) == ("preferences", "trl")
    store = project.store
    (prompt,) = store.prompts()
    assert prompt.messages == (Message("user", "hi"),)
    assert (prompt.tags, prompt.source, prompt.split) == (("a",), "file.jsonl", "train")
    good, bad = store.responses(prompt.id)
    assert (good.text, bad.text, good.finish_reason) == ("hello", "go away", "imported")
    (ranking,) = store.rankings()
    assert ranking.tiers == ((good.id,), (bad.id,))
    assert [rater.name for rater in store.raters()] == ["Ann"]
    assert ranking.rater_id == store.raters()[0].id
    assert store.counts().pairs == 1


def test_the_same_file_again_adds_nothing_and_counts_what_was_there(project: Project, write: Any) -> None:
    path = write(preference(), preference(rejected="worse"), preference(), preference("ho"))
    first = import_file(project, path)
    assert (first.added, first.duplicates) == (3, 1)
    before = project.store.counts()
    again = import_file(project, path)
    assert (again.added, again.duplicates, again.batch_id) == (0, 4, "")
    assert project.store.counts() == before
    assert len(project.store.raters()) == 1


@pytest.mark.parametrize(
    "rows",
    [
        ["hi", "ho", "hi"],
        [{"prompt": "hi", "completion": "a"}, {"prompt": "ho", "completion": "b"}, {"prompt": "hi", "completion": "a"}],
    ],
)
def test_prompts_and_demonstrations_again_add_nothing_either(project: Project, write: Any, rows: list[Any]) -> None:
    first = import_file(project, write(*rows))
    assert (first.added, first.duplicates) == (2, 1)
    again = import_file(project, write(*rows))
    assert (again.added, again.duplicates) == (0, 3)
    assert project.store.counts().prompts == 2


def test_an_import_is_undone_and_redone_as_a_whole(project: Project, write: Any) -> None:
    report = import_file(project, write(preference(), preference("ho")))
    assert report.batch_id
    assert project.store.undo_label() == "Import 2 preferences from file.jsonl"
    project.store.undo().result()
    counts = project.store.counts()
    assert (counts.prompts, counts.responses, counts.rankings) == (0, 0, 0)
    project.store.redo().result()
    assert project.store.counts().rankings == 2


def test_preferences_of_one_prompt_share_it_and_their_responses_and_all_stay_current(
    project: Project, write: Any
) -> None:
    import_file(
        project,
        write(
            preference(chosen="a", rejected="b"),
            preference(chosen="b", rejected="c"),
            preference(chosen="c", rejected="a"),
        ),
    )
    counts = project.store.counts()
    assert (counts.prompts, counts.responses, counts.rankings, counts.pairs) == (1, 3, 3, 3)


def test_a_rater_is_found_by_name_and_a_row_may_name_its_own(project: Project, write: Any) -> None:
    project.store.save_rater(Rater("ann", "Ann")).result()
    import_file(
        project, write(preference(), preference("ho", rater="Bob"), preference("hu", rater=" ")), rater_name="Ann"
    )
    names = {rater.id: rater.name for rater in project.store.raters()}
    assert [names[ranking.rater_id] for ranking in project.store.rankings()] == ["Ann", "Bob", "Ann"]
    assert sorted(names.values()) == ["Ann", "Bob"]


def test_every_nth_prompt_is_held_out_with_all_of_its_rows(project: Project, write: Any, tmp_path: Path) -> None:
    rows = [preference(f"prompt {n}", f"good {k}") for k in range(3) for n in range(200)]
    report = import_file(project, write(*rows), split_every=4)
    held_out = {prompt.title for prompt in project.store.prompts(split="held-out", limit=-1)}
    assert 30 <= len(held_out) <= 70
    assert report.held_out == len(held_out)
    assert project.store.counts().prompts == 200
    assert project.store.counts().pairs_held_out == 3 * len(held_out)
    with Project.create(tmp_path / "other") as other:
        import_file(other, write(*[row["prompt"] + "\r\n" for row in rows[:200]]), split_every=4)
        same = {prompt.title for prompt in other.store.prompts(split="held-out", limit=-1)}
    assert same == held_out


def test_a_row_that_names_its_split_keeps_it_and_a_torn_prompt_is_held_out(project: Project, write: Any) -> None:
    report = import_file(
        project,
        write(
            preference("one", split="train"),
            preference("two", split="validation"),
            preference("three", split="train"),
            preference("three", "x", split="test"),
        ),
        split_every=1,
    )
    splits = {prompt.title: prompt.split for prompt in project.store.prompts()}
    assert splits == {"one": "train", "two": "held-out", "three": "held-out"}
    assert report.warnings == ["Rows of one prompt name both splits (line 4): those prompts are held out."]


def test_a_prompt_that_trains_already_is_not_moved_and_that_is_said(project: Project, write: Any) -> None:
    import_file(project, write("hi"))
    report = import_file(project, write(preference("hi"), preference("ho")), split_every=1)
    assert [prompt.split for prompt in project.store.prompts()] == ["train", "held-out"]
    assert report.held_out == 1
    assert report.warnings == ["1 of the prompts to hold out is in the project for training already, and left there."]
    with pytest.raises(UserError, match="cannot be held out"):
        import_file(project, write("hi"), split_every=-1)


def test_a_demonstration_of_ones_own_is_never_replaced(project: Project, write: Any) -> None:
    prompt = Prompt(new_id(), (Message("user", "hi"),))
    project.store.add_prompts([prompt]).result()
    project.store.save_demonstration(Demonstration(new_id(), prompt.id, "mine", "Ann", "draft")).result()
    report = import_file(
        project,
        write(
            {"prompt": "hi", "completion": "theirs"},
            {"prompt": "ho", "completion": "one"},
            {"prompt": "ho", "completion": "two"},
        ),
    )
    assert report.added == 1
    assert [(one.line, one.reason) for one in report.rejected] == [
        (1, "its prompt already has another demonstration, in the project, which is kept"),
        (3, "its prompt already has another demonstration, in row 2, which is kept"),
    ]
    found = project.store.demonstration_for(prompt.id)
    assert found is not None
    assert (found.text, found.revision) == ("mine", 1)
    imported = project.store.demonstrations(status="final")
    assert [(one.text, one.author) for one in imported] == [("one", "import")]


def test_rejected_rows_of_reading_and_storing_come_in_order(project: Project, write: Any) -> None:
    report = import_file(
        project,
        write(
            {"prompt": "a", "completion": "x"}, {"prompt": "a", "completion": "y"}, {"prompt": "", "completion": "x"}
        ),
    )
    assert [one.line for one in report.rejected] == [2, 3]


def test_a_file_without_a_good_row_changes_nothing(project: Project, write: Any) -> None:
    report = import_file(project, write({"prompt": "", "completion": "x"}))
    assert (report.added, report.duplicates, report.batch_id) == (0, 0, "")
    assert len(report.rejected) == 1
    assert project.store.undo_label() == ""


def test_a_read_only_project_takes_nothing(project: Project, write: Any) -> None:
    path = project.path
    project.close()
    with Project.open(path, read_only=True) as opened, pytest.raises(UserError, match="reading only"):
        import_file(opened, write("hi"))


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "what", "format", "rows", "distinct"),
    [
        ("dpo_en_demo.json", "preferences", "sharegpt", 300, 295),
        ("alpaca_en_demo.json", "demonstrations", "alpaca", 999, 985),
    ],
)
def test_the_real_files_import_whole(
    project: Project, shared_data: Path, name: str, what: str, format: str, rows: int, distinct: int
) -> None:
    report = import_file(project, shared_data / name, split_every=10)
    assert (report.what, report.format, report.rejected) == (what, format, [])
    assert (report.added, report.duplicates) == (distinct, rows - distinct)
    again = import_file(project, shared_data / name, split_every=10)
    assert (again.added, again.duplicates) == (0, rows)
    counts = project.store.counts()
    assert counts.prompts == distinct
    assert (counts.rankings if what == "preferences" else counts.demonstrations_final) == distinct
    assert project.check() == []
