from __future__ import annotations

import json

import pytest

from workbench.formats.detect import explain
from workbench.formats.exporter import export_file
from workbench.formats.importer import import_file
from workbench.formats.preview import preview
from workbench.formats.reader import parse
from workbench.project import Project
from workbench.records import Message
from workbench.thumbs import current_thumbs

HI, HELLO = [{"role": "user", "content": "Hi"}], [{"role": "assistant", "content": "Hello"}]
TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


def write(folder, *rows, name="thumbs.jsonl"):
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def said(project):
    return [(row.prompt[-1].content, row.completion, row.desirable) for row in current_thumbs(project.store).rows]


@pytest.mark.parametrize(
    ("row", "format_"),
    [
        ({"prompt": "Hi", "completion": "Hello", "label": False}, "trl"),
        ({"prompt": HI, "completion": HELLO, "label": False}, "trl"),
        ({"messages": [*HI, *HELLO], "label": False}, "trl"),
        ({"messages": [*HI, *HELLO], "kto_tag": False}, "trl"),
        ({"conversations": TURNS, "kto_tag": False}, "sharegpt"),
        ({"instruction": "Hi", "output": "Hello", "kto_tag": "false"}, "alpaca"),
    ],
)
def test_an_unpaired_file_is_told_by_its_label_and_read(tmp_path, row, format_):
    path = write(tmp_path, row)
    found = explain(path)
    assert (found.what, found.format, found.sure) == ("thumbs", format_, True)
    [one] = parse(path).rows
    assert (one.prompt, one.completion, one.desirable) == ((Message("user", "Hi"),), "Hello", False)
    assert preview(parse(path))[0].answers == (("unwanted", "Hello"),)


def test_who_asks_for_demonstrations_gets_the_wanted_ones(tmp_path):
    rows = [{"prompt": "Hi", "completion": text, "label": text == "Hello"} for text in ("Hello", "Go away")]
    parsed = parse(write(tmp_path, *rows), what="demonstrations")
    assert [one.completion for one in parsed.rows] == ["Hello"]
    assert "marked as a bad answer" in parsed.rejected[0].reason


def test_a_label_that_is_no_thumb_leaves_a_row_a_demonstration(tmp_path):
    assert (
        explain(write(tmp_path, {"prompt": "Hi", "completion": "Hello", "label": "greeting"})).what == "demonstrations"
    )


@pytest.mark.parametrize(("label", "reason"), [(None, '"label" is missing'), ("maybe", "not true or false")])
def test_a_row_without_a_thumb_is_rejected_with_the_reason(tmp_path, label, reason):
    path = write(tmp_path, {"prompt": "Hi", "completion": "Hello", "label": label})
    [one] = parse(path, what="thumbs", format="trl").rejected
    assert reason in one.reason


def test_rows_of_one_prompt_become_one_card_that_undo_takes_back(project, tmp_path):
    path = write(
        tmp_path,
        {"prompt": "Hi", "completion": "Hello", "label": True},
        {"prompt": "Hi", "completion": "Go away", "label": False},
        {"prompt": "Bye", "completion": "See you", "label": True},
    )
    report = import_file(project, path)
    assert (report.added, report.duplicates, report.what) == (3, 0, "thumbs")
    assert said(project) == [("Hi", "Hello", True), ("Hi", "Go away", False), ("Bye", "See you", True)]
    assert [one.outcome for one in project.store.rankings()] == ["cannot-rank"] * 2  # no order is claimed
    assert project.store.counts().pairs == 0
    project.store.undo().result()
    assert said(project) == []


def test_the_same_file_adds_nothing_twice_and_another_one_adds_to_the_same_prompt(project, tmp_path):
    first = {"prompt": "Hi", "completion": "Hello", "label": True}
    import_file(project, write(tmp_path, first))
    again = import_file(project, write(tmp_path, first))
    assert (again.added, again.duplicates) == (0, 1)
    more = import_file(project, write(tmp_path, {"prompt": "Hi", "completion": "Go away", "label": False}))
    assert more.added == 1
    assert said(project) == [("Hi", "Hello", True), ("Hi", "Go away", False)]


def test_a_response_with_both_thumbs_keeps_both_since_contradictions_are_data(project, tmp_path):
    both = [{"prompt": "Hi", "completion": "Hello", "label": label} for label in (True, False)]
    assert import_file(project, write(tmp_path, *both)).added == 2
    assert sorted(said(project)) == [("Hi", "Hello", False), ("Hi", "Hello", True)]


@pytest.mark.parametrize("format_", ["trl", "sharegpt", "alpaca"])
def test_an_export_comes_back_as_the_same_thumbs_and_adds_nothing_at_home(project, tmp_path, format_):
    rows = [{"prompt": f"Hi {n}", "completion": f"Hello {n}", "label": n % 3 == 0} for n in range(6)]
    import_file(project, write(tmp_path, *rows), rater_name="Ann")
    out = tmp_path / "out.jsonl"
    assert export_file(project, out, what="thumbs", format=format_).rows == 6
    assert explain(out).what == "thumbs"
    assert import_file(project, out).added == 0
    with Project.create(tmp_path / "other") as other:
        assert import_file(other, out).added == 6
        assert said(other) == said(project)
        assert [one.name for one in other.store.raters()] == ["Ann"]


def test_trls_names_are_written_as_trl_reads_them(project, tmp_path):
    import_file(project, write(tmp_path, {"prompt": "Hi", "completion": "Hello", "label": True}))
    out = tmp_path / "out.jsonl"
    export_file(project, out, what="thumbs")
    row = json.loads(out.read_text())
    assert {key: row[key] for key in ("prompt", "completion", "label")} == {
        "prompt": HI,
        "completion": HELLO,
        "label": True,
    }
