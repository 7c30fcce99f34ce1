"""Labels into files: the shapes that other programs read, whole or not at all."""

from __future__ import annotations

import errno
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import NothingToDo, UserError
from workbench.formats.exporter import ExportReport, export_file
from workbench.ids import new_id
from workbench.project import Project
from workbench.records import BAD, GOOD, Demonstration, Message, Prompt, Ranking, Rater, Response, ResponseFlag

DIALOGUE = (
    Message("system", "be kind"),
    Message("user", "hi"),
    Message("assistant", "hello"),
    Message("user", "how are you?"),
)


@pytest.fixture
def filled(project: Project) -> Project:
    """Two prompts; the first, of one turn, has a tie and three tiers, the second is a dialogue."""
    store = project.store
    one = Prompt("one", (Message("user", "What is rain?"),), ("weather",), "own")
    two = Prompt("two", DIALOGUE, (), "own", "held-out")
    store.save_rater(Rater("ann", "Ann")).result()
    store.add_prompts([one, two]).result()
    texts = {"one": ["best", "good", "also good", "bad"], "two": ["fine", "no"]}
    for id_, answers in texts.items():
        store.add_responses([Response(f"{id_}{n}", id_, text) for n, text in enumerate(answers)]).result()
    store.save_ranking(Ranking("k1", "one", "ann", (("one0",), ("one1", "one2"), ("one3",)))).result()
    store.save_ranking(Ranking("k2", "two", "ann", (("two0",), ("two1",)))).result()
    store.save_demonstration(Demonstration(new_id(), "one", "Water.", "ann", "final")).result()
    store.save_demonstration(Demonstration(new_id(), "two", "Well.", "ann", "final")).result()
    return project


def export(project: Project, tmp_path: Path, **options: Any) -> tuple[ExportReport, list[Any]]:
    out = tmp_path / "out.jsonl"
    report = export_file(project, out, **options)
    return report, [json.loads(line) for line in out.read_text("utf-8").split("\n") if line]


def test_preferences_are_every_ordered_pair_across_tiers(filled: Project, tmp_path: Path) -> None:
    report, rows = export(filled, tmp_path, what="preferences")
    assert report.rows == len(rows) == 6
    assert rows[0] == {
        "prompt": [{"role": "user", "content": "What is rain?"}],
        "chosen": [{"role": "assistant", "content": "best"}],
        "rejected": [{"role": "assistant", "content": "good"}],
        "rater": "Ann",
        "ranking_id": "k1",
        "prompt_id": "one",
        "tags": ["weather"],
        "split": "train",
        "source": "own",
        "tier_distance": 1,
    }
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"], row["tier_distance"]) for row in rows] == [
        ("best", "good", 1),
        ("best", "also good", 1),
        ("best", "bad", 2),
        ("good", "bad", 1),
        ("also good", "bad", 1),
        ("fine", "no", 1),
    ]


def test_preferences_can_be_the_best_against_the_rest_and_of_one_split(filled: Project, tmp_path: Path) -> None:
    _, rows = export(filled, tmp_path, what="preferences", which="best-vs-rest", split="train")
    assert [row["rejected"][0]["content"] for row in rows] == ["good", "also good", "bad"]
    _, rows = export(filled, tmp_path, what="preferences", split="held-out")
    assert [row["chosen"][0]["content"] for row in rows] == ["fine"]


def test_the_other_shapes_of_preferences(filled: Project, tmp_path: Path) -> None:
    report, rows = export(filled, tmp_path, what="preferences", format="plain", which="best-vs-rest")
    assert (rows[0]["prompt"], rows[0]["chosen"], rows[0]["rejected"]) == ("What is rain?", "best", "good")
    assert report.skipped == {"a plain prompt has one user turn; this one has more, or a system turn": 1}
    report, rows = export(filled, tmp_path, what="preferences", format="hh")
    assert rows[0]["chosen"] == "\n\nHuman: What is rain?\n\nAssistant: best"
    assert report.skipped == {"this format has no system turn": 1}
    _, rows = export(filled, tmp_path, what="preferences", format="sharegpt", split="held-out")
    assert rows[0]["conversations"][0] == {"from": "system", "value": "be kind"}
    assert rows[0]["chosen"] == {"from": "gpt", "value": "fine"}


def test_a_text_that_holds_the_marks_of_hh_is_left_out_and_said(filled: Project, tmp_path: Path) -> None:
    filled.store.add_responses([Response("x", "one", "a\n\nHuman: b"), Response("y", "one", "c")]).result()
    everything = (("x",), ("y", "one0", "one1", "one2", "one3"))
    filled.store.save_ranking(Ranking("k3", "one", "ann", everything)).result()
    with pytest.raises(NothingToDo, match="holds the mark"):
        export_file(filled, tmp_path / "x.jsonl", what="preferences", format="hh", split="train")
    assert not (tmp_path / "x.jsonl").exists()


def test_the_shapes_of_demonstrations(filled: Project, tmp_path: Path) -> None:
    about = {"author": "ann", "tags": [], "split": "held-out", "source": "own", "prompt_id": "two"}
    turns = [{"role": message.role, "content": message.content} for message in DIALOGUE]
    answer = {"role": "assistant", "content": "Well."}
    shapes: dict[str, dict[str, Any]] = {
        "auto": {"messages": [*turns, answer]},
        "messages": {"messages": [*turns, answer]},
        "alpaca": {
            "instruction": "how are you?",
            "input": "",
            "output": "Well.",
            "system": "be kind",
            "history": [["hi", "hello"]],
        },
        "prompt-completion": {"prompt": turns, "completion": [answer]},
        "sharegpt": {
            "conversations": [
                {"from": "system", "value": "be kind"},
                {"from": "human", "value": "hi"},
                {"from": "gpt", "value": "hello"},
                {"from": "human", "value": "how are you?"},
                {"from": "gpt", "value": "Well."},
            ]
        },
    }
    for name, shape in shapes.items():
        _, rows = export(filled, tmp_path, what="demonstrations", format=name)
        assert len(rows) == 2
        assert rows[1] == {**shape, **about}
    report, rows = export(filled, tmp_path, what="demonstrations", format="prompt-completion-plain")
    assert (rows[0]["prompt"], rows[0]["completion"], report.rows) == ("What is rain?", "Water.", 1)


@pytest.mark.parametrize(
    ("options", "cut_off", "rows"),
    [
        ({"what": "preferences"}, 2, 3),  # of a > b > c with b cut off: a > b and b > c
        ({"what": "preferences", "which": "best-vs-rest"}, 1, 2),
        ({"what": "thumbs"}, 1, 2),
        ({"what": "rankings", "format": "oasst"}, 1, 1),
        ({"what": "rankings"}, 0, 1),  # our own lines say of each response how it ended
        ({"what": "prompts"}, 0, 1),
    ],
)
def test_rows_with_a_response_that_was_cut_off_are_counted_since_other_programs_read_it_as_whole(
    project: Project, tmp_path: Path, options: Any, cut_off: int, rows: int
) -> None:
    store = project.store
    store.save_rater(Rater("ann", "Ann")).result()
    store.add_prompts([Prompt("p", (Message("user", "What is rain?"),))]).result()
    ends = {"a": "stop", "b": "length", "c": "imported"}
    store.add_responses([Response(id_, "p", f"answer {id_}", finish_reason=end) for id_, end in ends.items()]).result()
    thumbs = (ResponseFlag("b", GOOD), ResponseFlag("c", BAD))
    store.save_ranking(Ranking("k", "p", "ann", (("a",), ("b",), ("c",)), flags=thumbs)).result()
    report, _ = export(project, tmp_path, **options)
    assert (report.cut_off, report.rows) == (cut_off, rows)
    have = "has" if cut_off == 1 else "have"
    said = f"{cut_off} of {rows} {have} a response that was cut off, which other programs read as whole"
    assert report.caution == (said if cut_off else "")


def test_drafts_stay_out_and_are_counted(filled: Project, tmp_path: Path) -> None:
    filled.store.save_demonstration(Demonstration(new_id(), "two", "Well, I am", "ann", "draft")).result()
    report, rows = export(filled, tmp_path, what="demonstrations")
    assert (len(rows), report.skipped) == (1, {"it is a draft": 1})


def test_prompts_are_written_with_tags_split_and_id(filled: Project, tmp_path: Path) -> None:
    _, rows = export(filled, tmp_path, what="prompts")
    assert rows[0] == {
        "messages": [{"role": "user", "content": "What is rain?"}],
        "tags": ["weather"],
        "split": "train",
        "source": "own",
        "id": "one",
    }
    assert len(rows) == 2
    assert len(export(filled, tmp_path, what="prompts", split="held-out")[1]) == 1


def test_json_makes_one_array_and_gz_packs_it_the_same_every_time(filled: Project, tmp_path: Path) -> None:
    export_file(filled, tmp_path / "a.json", what="preferences")
    assert len(json.loads((tmp_path / "a.json").read_bytes())) == 6
    export_file(filled, tmp_path / "a.jsonl.gz", what="preferences")
    export_file(filled, tmp_path / "b.jsonl.gz", what="preferences")
    packed = (tmp_path / "a.jsonl.gz").read_bytes()
    assert packed == (tmp_path / "b.jsonl.gz").read_bytes()
    assert len(gzip.decompress(packed).splitlines()) == 6


def test_a_file_is_whole_or_as_it_was(filled: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("workbench.formats.exporter.os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        export_file(filled, out, what="preferences")
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["out.jsonl"]


def test_nothing_to_export_leaves_the_file_alone(project: Project, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    for what in ("prompts", "demonstrations", "preferences", "rankings"):
        with pytest.raises(NothingToDo, match=f"(?i)there are no {what} to export"):
            export_file(project, out, what=what)
    assert out.read_text() == "old"


def test_what_cannot_be_written_is_refused_with_what_can(filled: Project, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match=r'cannot be exported as "alpaca".*trl, plain, hh, sharegpt'):
        export_file(filled, out, what="preferences", format="alpaca")
    with pytest.raises(UserError, match='nothing called "poems"'):
        export_file(filled, out, what="poems")
    with pytest.raises(UserError, match='no split "test"'):
        export_file(filled, out, what="prompts", split="test")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"(?i)it is a folder"):
        export_file(filled, tmp_path, what="prompts")
    with pytest.raises(UserError, match="was not written"):
        export_file(filled, tmp_path / "missing" / "out.jsonl", what="prompts")


def test_nothing_is_exported_into_the_projects_own_folder_by_whatever_name(filled: Project, tmp_path: Path) -> None:
    (tmp_path / "way in").symlink_to(filled.path)
    before = (filled.path / "project.db").read_bytes()
    for out in (
        filled.path / "project.db",
        filled.path / ".." / filled.path.name / "project.db",
        tmp_path / "way in" / "project.db",
        filled.path / "backups" / "new.jsonl",
        filled.path / "models" / "new.jsonl",
    ):
        with pytest.raises(UserError, match="project's own folder"):
            export_file(filled, out, what="prompts")
    assert (filled.path / "project.db").read_bytes() == before


def test_a_link_or_a_device_is_never_replaced(filled: Project, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine.txt")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    os.mkfifo(tmp_path / "pipe")
    for name, why in (("link", "it is a link"), ("circle", "it is a link"), ("pipe", "it is no regular file")):
        with pytest.raises(UserError, match=f"(?i){why}"):
            export_file(filled, tmp_path / name, what="prompts")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "mine.txt").read_text() == "mine"
    with pytest.raises(UserError, match="Choose another place"):
        export_file(filled, tmp_path / ("x" * 300), what="prompts")


def test_a_file_that_is_there_is_kept_unless_it_may_be_overwritten(filled: Project, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    with pytest.raises(UserError, match="is there already"):
        export_file(filled, out, what="prompts", overwrite=False)
    assert out.read_text() == "old"
    assert export_file(filled, out, what="prompts").rows == 2
    assert export_file(filled, tmp_path / "new.jsonl", what="prompts", overwrite=False).rows == 2
