"""Our own ranking file: every row checked whole before it is believed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from workbench.formats.exporter import export_file
from workbench.formats.importer import import_file
from workbench.formats.parsed import RowError
from workbench.formats.preview import preview
from workbench.formats.rankings import FORMAT, line_hash, ranking_line, read_native
from workbench.formats.reader import parse
from workbench.jsonl import encode
from workbench.project import Project
from workbench.records import Message, ModelRecord, Prompt, Ranking, Rater, Response, ResponseFlag, Sampling

PROMPT = Prompt("p", (Message("user", "hi"),), ("t",), "s", "held-out", "2026-01-01")
RATER = Rater("ann", "Ann", "model", "be kind", "2026-01-01")
RESPONSES = [
    Response("a", "p", "one", "m", Sampling(seed=7), "stop", 3, "", "2026-01-01"),
    Response("b", "p", "two", "gone", None, "length", 4, "x", "2026-01-01"),
    Response("c", "p", "", "", None, "written", created_at="2026-01-01"),
]
RANKING = Ranking(
    "k", "p", "ann", (("a", "b"), ("c",)), "ranked", (ResponseFlag("a", "false"), ResponseFlag("", "all bad")),
    "a note", 2.5, ("c", "a", "b"), False, False, "", "2026-01-02",
)  # fmt: skip
MODELS = {"m": ModelRecord("m", "base", "base", "/x", sha256="abc")}


def line(**changes: Any) -> dict[str, Any]:
    made = ranking_line(RANKING, PROMPT, RESPONSES, RATER, MODELS)
    found: dict[str, Any] = json.loads(encode(made))
    if changes:
        del found["sha256"]
    return {**found, **changes}


def test_a_line_holds_everything_about_a_ranking() -> None:
    found = line()
    assert found["format"] == FORMAT
    assert found["responses"][0]["model"] == {"id": "m", "name": "base", "sha256": "abc"}
    assert found["responses"][1]["model"] == {"id": "gone", "name": "", "sha256": ""}
    assert found["responses"][0]["sampling"]["seed"] == 7
    native = read_native(found)
    assert (native.prompt, native.rater, native.ranking) == (PROMPT, RATER, RANKING)
    assert list(native.responses) == RESPONSES


def test_a_changed_line_is_told_by_its_hash_and_one_without_a_hash_is_believed() -> None:
    with pytest.raises(RowError, match="sha256 does not match"):
        read_native({**line(), "note": "changed"})
    assert read_native(line(note="changed")).ranking.note == "changed"
    assert line_hash(ranking_line(RANKING, PROMPT, RESPONSES, RATER, {})) != line()["sha256"]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ([1], "is a list, not an object"),
        (line(format="tastemaker-ranking/9"), "which this version does not know"),
        (line(format="other"), "which is not ours"),
        (line(tiers="x"), "not a ranking"),
        (line(outcome="perhaps"), "not a ranking"),
        ({"format": FORMAT}, "not a ranking"),
        (line(id=""), 'the unusable id ""'),
        (line(id="a:b"), 'the unusable id "a:b"'),
        (line(prompt={"id": "p", "messages": []}), "the prompt is empty"),
        (line(rater={"id": "ann", "name": " "}), "the rater has no name"),
        (line(responses=[{"id": "a", "text": "x"}] * 2), "two responses have one id"),
        (line(tiers=[["a"], ["a"]]), "name a response twice"),
        (line(tiers=[]), "has no tiers"),
        (line(tiers=[["a"], []]), "an empty one"),
        (line(outcome="skipped"), "is skipped and yet has tiers"),
        (line(tiers=[["z"]]), 'names the response "z"'),
        (line(shown_order=["z"]), 'names the response "z"'),
        (line(flags=[{"response_id": "z", "flag": "false"}]), 'names the response "z"'),
        (line(seconds=-1), "negative time"),
        (line(responses=[{"id": i, "text": "x", "token_count": 1 << 60} for i in "abc"]), "too large"),
        (line(responses=[{"id": i, "text": "x", "sampling": {"seed": 1 << 60}} for i in "abc"]), "too large"),
    ],
)
def test_a_line_that_does_not_hold_together_is_rejected(value: Any, why: str) -> None:
    with pytest.raises(RowError) as refused:
        read_native(value)
    assert why in str(refused.value)


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def test_rankings_keep_their_ids_and_a_second_import_adds_nothing(project: Project, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", line(), line())
    first = import_file(project, path)
    assert (first.added, first.duplicates, first.held_out) == (1, 1, 1)
    assert project.store.rankings() == [RANKING]
    assert project.store.raters() == [RATER]
    assert project.store.responses("p") == RESPONSES
    again = import_file(project, path)
    assert (again.added, again.duplicates) == (0, 2)


def test_an_import_never_renames_a_rater_of_the_project(project: Project, tmp_path: Path) -> None:
    project.store.save_rater(Rater("ann", "Anna", created_at="2026-01-01")).result()
    import_file(project, write(tmp_path / "a.jsonl", line()))
    assert [rater.name for rater in project.store.raters()] == ["Anna"]


def test_ids_that_mean_something_else_are_rejected(project: Project, tmp_path: Path) -> None:
    other_prompt = line(id="k2", prompt={"id": "p", "messages": [{"role": "user", "content": "other"}]})
    other_response = line(id="k3")
    other_response["responses"][0]["text"] = "other"
    other_ranking = line(note="other")
    path = write(tmp_path / "a.jsonl", line(), other_prompt, other_response, other_ranking)
    report = import_file(project, path)
    assert report.added == 1
    assert [(one.line, one.reason) for one in report.rejected] == [
        (2, "an earlier row has another prompt with the same id"),
        (3, 'an earlier row has another response with the id "a"'),
        (4, "an earlier row has another ranking with the same id"),
    ]
    report = import_file(project, write(tmp_path / "b.jsonl", other_prompt))
    assert report.rejected[0].reason == "the project has another prompt with the same id"


def test_a_prompt_that_the_project_knows_by_content_takes_the_rankings_up(project: Project, tmp_path: Path) -> None:
    mine = replace(PROMPT, id="mine")
    project.store.add_prompts([mine]).result()
    project.store.add_responses([Response("x", "mine", "one")]).result()
    assert import_file(project, write(tmp_path / "a.jsonl", line())).added == 1
    (ranking,) = project.store.rankings()
    assert ranking.prompt_id == "mine"
    assert ranking.tiers == (("x", "b"), ("c",))
    assert ranking.flags[0].response_id == "x"
    again = import_file(project, tmp_path / "a.jsonl")
    assert (again.added, again.duplicates) == (0, 1)


def test_corrections_come_with_their_history_in_any_order_of_the_file(project: Project, tmp_path: Path) -> None:
    old = line(id="old", superseded_by="new")
    new = line(id="new", supersedes="old")
    report = import_file(project, write(tmp_path / "a.jsonl", new, old))
    assert (report.added, report.warnings) == (2, [])
    assert [ranking.id for ranking in project.store.rankings()] == ["new"]
    assert [ranking.id for ranking in project.store.rankings(include_superseded=True)] == ["old", "new"]
    assert project.store.superseded_by() == {"old": "new"}


def test_a_predecessor_that_is_nowhere_is_pointed_out(project: Project, tmp_path: Path) -> None:
    report = import_file(project, write(tmp_path / "a.jsonl", line(supersedes="gone")))
    assert report.warnings == ["1 of the rankings that later ones correct is in neither the file nor the project."]


def test_judgements_that_are_no_rankings_travel_too(project: Project, tmp_path: Path) -> None:
    skipped = line(id="s", outcome="skipped", tiers=[])
    report = import_file(project, write(tmp_path / "a.jsonl", skipped, line(id="c", outcome="cannot-rank", tiers=[])))
    assert report.added == 2
    out = tmp_path / "out.jsonl"
    assert export_file(project, out, what="rankings").rows == 2
    assert [json.loads(one)["outcome"] for one in out.read_text().splitlines()] == ["skipped", "cannot-rank"]


def test_the_preview_of_a_ranking_shows_best_and_worst(tmp_path: Path) -> None:
    parsed = parse(write(tmp_path / "a.jsonl", line(), line(id="s", outcome="skipped", tiers=[])))
    assert "have ties" not in "".join(parsed.warnings)
    first, second = preview(parsed)
    assert (first.chosen, first.rejected) == ("one", "")
    assert first.note == "3 responses, 2 tiers with ties, by Ann; held-out"
    assert second.note == "3 responses, skipped, by Ann; held-out"


def test_a_set_that_is_mostly_ties_is_pointed_out(tmp_path: Path) -> None:
    parsed = parse(write(tmp_path / "a.jsonl", *(line(id=f"k{n}") for n in range(10))))
    assert parsed.warnings == ["10 of 10 rankings have ties; tied responses give no pairs."]
