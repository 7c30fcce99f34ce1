"""Rankings of other programs: OpenAssistant's trees there and back, Argilla's records and Label Studio's tasks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from workbench.formats.exporter import export_file
from workbench.formats.importer import import_file
from workbench.formats.parsed import Parsed
from workbench.formats.preview import preview
from workbench.formats.reader import parse
from workbench.project import Project
from workbench.records import Message, ModelRecord, Prompt, Ranking, Rater, Response

ASKED = (Message("user", "What is rain?"),)
TALK = (*ASKED, Message("assistant", "Water."), Message("user", "And snow?"))


def node(text: str, role: str = "assistant", *replies: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"message_id": text, "parent_id": None, "text": text, "role": role, "replies": list(replies)} | more


def tree(prompt: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"message_tree_id": "tree-1", "tree_state": "ready_for_export", "prompt": prompt, "origin": "x"} | more


def read(tmp_path: Path, *rows: dict[str, Any]) -> Parsed:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(rows))
    return parse(path)


def reason(tmp_path: Path, row: dict[str, Any]) -> str:
    found = read(tmp_path, row)
    assert found.rows == []
    return found.rejected[0].reason


# ---- OpenAssistant -----------------------------------------------------------------------------------------------


def test_every_place_of_a_tree_where_replies_are_ranked_is_a_ranking(tmp_path: Path) -> None:
    deeper = node("And snow?", "prompter", node("Ice.", rank=1), node("Cold rain.", rank=0))
    water = node("Water.", "assistant", deeper, rank=0)
    root = node("What is rain?", "prompter", node("Sun.", rank=1), water, node("Wet.", rank=1), node("?", deleted=True))
    found = read(tmp_path, tree(root))
    assert (found.what, found.format, found.rejected, found.warnings) == ("rankings", "oasst", [], [])
    assert [(one.prompt, one.tiers) for one in found.rows] == [
        (ASKED, (("Water.",), ("Sun.", "Wet."))),
        (TALK, (("Cold rain.",), ("Ice.",))),
    ]
    (row, _) = preview(found)
    assert (row.chosen, row.rejected, row.note) == ("Water.", "Sun.", "3 responses, 2 tiers with ties")


def test_where_replies_have_no_rank_each_persons_list_is_a_ranking(tmp_path: Path) -> None:
    events = [
        {"type": "ranking", "user_id": "ann", "ranking": [1, 0], "ranked_message_ids": ["Water.", "Sun."]},
        {"type": "ranking", "user_id": "bob", "ranking": [0, 1], "ranked_message_ids": ["Sun.", "Water."]},
        {"type": "ranking", "user_id": "cat", "ranked_message_ids": ["Sun.", "Water."], "not_rankable": True},
    ]
    root = node("What is rain?", "prompter", node("Sun."), node("Water."), events={"ranking": events})
    assert [(one.tiers, one.rater) for one in read(tmp_path, tree(root)).rows] == [
        ((("Water.",), ("Sun.",)), "ann"),
        ((("Sun.",), ("Water.",)), "bob"),
    ]


@pytest.mark.parametrize("damaged", [["Sun."], {"id": "Sun."}, 7, None])
def test_an_id_that_is_no_text_names_no_reply_and_the_other_rows_are_read(tmp_path: Path, damaged: Any) -> None:
    def asked(*order: Any) -> dict[str, Any]:
        events = [{"type": "ranking", "user_id": "ann", "ranked_message_ids": list(order)}]
        replies = (node("Sun."), node("Water."), node("Ice."))
        return node("What is rain?", "prompter", *replies, events={"ranking": events})

    odd = asked("Sun.", "Water.")
    odd["replies"][0]["message_id"] = damaged
    parsed = read(tmp_path, tree(odd), tree(asked("Ice.", damaged, "Sun.")))
    assert [one.reason for one in parsed.rejected] == ["no two replies of its assistant are ranked"]
    assert [one.tiers for one in parsed.rows] == [(("Ice.",), ("Sun.",))]


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        (node("a", "prompter", node("b", rank=0)), "no two replies of its assistant are ranked"),
        (node("a", "prompter", node("b", rank=0), node("b", rank=1)), "one text stands at two places"),
        (node("a", "prompter", node("b", rank=0), node("b", rank=0)), "fewer than two different texts"),
        (node("a", "prompter", node("b", "judge")), 'has the role "judge"'),
        (node("a", "prompter") | {"replies": "none"}, '"replies" is text, not a list'),
        (node("a", "prompter") | {"replies": ["none"]}, '"replies" is text, not a message'),
        (node("a", "prompter") | {"text": None}, '"text" is missing'),
        (node(" ", "prompter", node("b", rank=0), node("c", rank=1)), "empty"),
    ],
)
def test_a_bad_tree_is_rejected_with_its_reason(tmp_path: Path, prompt: dict[str, Any], why: str) -> None:
    assert why in reason(tmp_path, tree(prompt))


@pytest.fixture
def ranked(project: Project) -> Project:
    """Two rankings with an order, one of them tied, and what a tree cannot say."""
    store = project.store
    for rater in (Rater("ann", "Ann"), Rater("bob", "Bob")):
        store.save_rater(rater).result()
    store.save_model(ModelRecord("m", "sft 1", "sft", "models/m")).result()
    system = (Message("system", "Be brief."), *ASKED)
    prompts = [Prompt("p", TALK, ("weather",), "book", "held-out"), Prompt("q", ASKED), Prompt("s", system)]
    store.add_prompts(prompts).result()
    for prompt in "pqs":
        store.add_responses(
            [Response(f"{prompt}{n}", prompt, f"answer {n}", "m" if n else "") for n in range(4)]
        ).result()
    for one in (
        Ranking("k1", "p", "ann", (("p2",), ("p0",), ("p1",))),
        Ranking("k2", "q", "bob", (("q3",), ("q0", "q1"))),
        Ranking("k3", "s", "ann", (("s0",), ("s1",))),
        Ranking("k4", "q", "ann", (), "cannot-rank"),
    ):
        store.save_ranking(one).result()
    return project


def test_a_tree_has_the_fields_of_open_assistants_own_and_the_list_of_who_ranked(
    ranked: Project, tmp_path: Path
) -> None:
    report = export_file(ranked, tmp_path / "trees.jsonl", what="rankings", format="oasst")
    assert (report.rows, report.skipped) == (
        2,
        {"this format has no system turn": 1, "it is no order of two responses": 1},
    )
    first, second = (json.loads(line) for line in (tmp_path / "trees.jsonl").read_text().splitlines())
    assert (first["message_tree_id"], first["tree_state"]) == ("k1", "ready_for_export")
    turn, path = first["prompt"], []
    while turn["role"] == "prompter" or len(turn["replies"]) == 1:
        path.append((turn["role"], turn["text"], turn["parent_id"]))
        if len(turn["replies"]) > 1:
            break
        turn = turn["replies"][0]
    assert path == [
        ("prompter", "What is rain?", None),
        ("assistant", "Water.", "p-0"),
        ("prompter", "And snow?", "p-1"),
    ]
    assert [(one["text"], one["rank"], one["synthetic"], one["model_name"]) for one in turn["replies"]] == [
        ("answer 2", 0, True, "sft 1"),
        ("answer 0", 1, False, None),
        ("answer 1", 2, True, "sft 1"),
    ]
    assert all(one["parent_id"] == turn["message_id"] for one in turn["replies"])
    (event,) = turn["events"]["ranking"]
    assert (event["type"], event["user_id"], event["ranking"]) == ("ranking", "Ann", [0, 1, 2])
    assert event["ranked_message_ids"] == ["p2", "p0", "p1"]
    assert [one["rank"] for one in second["prompt"]["replies"]] == [0, 1, 1]
    assert "events" not in second["prompt"]  # a list of places cannot say a tie


def test_trees_come_back_as_the_same_rankings_and_add_nothing_twice(ranked: Project, tmp_path: Path) -> None:
    out = tmp_path / "trees.jsonl.gz"
    export_file(ranked, out, what="rankings", format="oasst")
    with Project.create(tmp_path / "two") as two:
        report = import_file(two, out, rater_name="me")
        assert (report.what, report.format, report.added, report.rejected, report.warnings) == (
            "rankings",
            "oasst",
            2,
            [],
            [],
        )
        raters = {one.id: one.name for one in two.store.raters()}
        found = {}
        for ranking in two.store.rankings():
            texts = {one.id: one.text for one in two.store.responses(ranking.prompt_id)}
            found[ranking.id] = ([[texts[id_] for id_ in tier] for tier in ranking.tiers], raters[ranking.rater_id])
        assert found == {
            "k1": ([["answer 2"], ["answer 0"], ["answer 1"]], "Ann"),
            "k2": ([["answer 3"], ["answer 0", "answer 1"]], "me"),
        }
        (held_out,) = [one for one in two.store.prompts() if one.split == "held-out"]
        assert (held_out.messages, held_out.tags, held_out.source) == (TALK, ("weather",), "book")
        assert two.check() == []
        again = import_file(two, out, rater_name="me")
        assert (again.added, again.duplicates) == (0, 2)


# ---- Argilla -----------------------------------------------------------------------------------------------------

FIELDS = {"prompt": "What is rain?", "response-1": "Sun.", "response-2": "Water.", "response-3": "Wet."}


def record(*responses: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "1", "fields": FIELDS, "responses": {"order": list(responses)}, "suggestions": {}} | more


def test_each_persons_order_of_an_argilla_record_is_a_ranking_ties_kept(tmp_path: Path) -> None:
    server = [{"value": f"response-{n}", "rank": rank} for n, rank in ((1, 2), (2, 1), (3, 2))]
    found = read(
        tmp_path,
        record(
            {"value": ["response-2", "response-3", "response-1"], "user_id": "ann"},
            {"value": server, "user_id": "bob", "status": "submitted"},
            {"value": ["response-1", "response-2"], "user_id": "cat", "status": "discarded"},
        ),
    )
    assert (found.what, found.format, found.warnings) == ("rankings", "argilla", [])
    assert [(one.prompt, one.tiers, one.rater) for one in found.rows] == [
        (ASKED, (("Water.",), ("Wet.",), ("Sun.",)), "ann"),
        (ASKED, (("Water.",), ("Sun.", "Wet.")), "bob"),
    ]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (record(), "nobody has put two of its answers in order"),
        (record({"value": "yes", "user_id": "a"}), "nobody has put two"),
        (record({"value": ["a", "b"], "user_id": "a"}), "nobody has put two"),
        (record(fields={"response-1": "a"}), '"fields" has no prompt'),
        (record({"value": ["response-1", "response-1"]}), "one text stands at two places"),
    ],
)
def test_a_bad_record_is_rejected_with_its_reason(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    assert why in reason(tmp_path, row)


# ---- Label Studio ------------------------------------------------------------------------------------------------

PAIR = {"prompt": "What is rain?", "answer1": "Sun.", "answer2": "Water."}
ITEMS = [
    {"id": "a", "title": "A", "body": "Sun."},
    {"id": "b", "title": "B", "body": "Water."},
    {"id": 3, "title": "Wet."},
]


def task(data: dict[str, Any], *results: dict[str, Any], **more: Any) -> dict[str, Any]:
    made = [{"id": 1, "completed_by": {"id": 4, "email": "ann@x"}, "result": [one]} for one in results]
    return {"id": 7, "data": data, "annotations": made, "meta": {"a": 1}} | more


def pairwise(side: str) -> dict[str, Any]:
    return {"type": "pairwise", "from_name": "pw", "to_name": "a,b", "value": {"selected": side}}


def ranker(**buckets: list[Any]) -> dict[str, Any]:
    return {"type": "ranker", "from_name": "rank", "to_name": "list", "value": {"ranker": buckets}}


def test_tasks_of_label_studio_are_read_pairs_and_lists(tmp_path: Path) -> None:
    cancelled = task(PAIR, pairwise("left"), pairwise("right"))
    cancelled["annotations"][0]["was_cancelled"] = True
    found = read(
        tmp_path,
        task(PAIR, pairwise("right")),
        task(PAIR, pairwise("left")),
        cancelled,
        task({"prompt": "What is rain?", "items": ITEMS}, ranker(rank=["b", 3, "a"])),
    )
    assert (found.what, found.format, found.rejected, found.warnings[1:]) == ("rankings", "label-studio", [], [])
    assert "repeats an earlier row" in found.warnings[0]
    assert [(one.line, one.tiers) for one in found.rows] == [
        (1, (("Water.",), ("Sun.",))),
        (2, (("Sun.",), ("Water.",))),
        (3, (("Water.",), ("Sun.",))),
        (4, (("Water.",), ("Wet.",), ("Sun.",))),
    ]
    assert {(one.prompt, one.rater) for one in found.rows} == {(ASKED, "ann@x")}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (task(PAIR), "nobody has put two of its answers in order"),
        (task(PAIR, pairwise("both")), "nobody has put two"),
        (task(PAIR, {"type": "choices", "value": {"choices": ["x"]}}), "nobody has put two"),
        (task({"prompt": "a", "answer1": "b"}, pairwise("left")), '"answer2" is missing'),
        (task({"answer1": "b", "answer2": "c"}, pairwise("left")), '"data" has no prompt'),
        (task(PAIR | {"answer2": "Sun."}, pairwise("left")), "one text stands at two places"),
        (task({"prompt": "a", "items": ITEMS}, ranker(best=["a"], worst=["b"])), "several buckets"),
        (task({"prompt": "a", "items": ITEMS}, ranker(rank=["a", "z"])), "names items that are not in its data"),
        (task({"prompt": "a", "items": [{"body": "x"}]}, ranker(rank=["a"])), 'item 1 of data has no "id"'),
    ],
)
def test_a_bad_task_is_rejected_with_its_reason(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    assert why in reason(tmp_path, row)


def test_rankings_of_other_programs_are_stored_each_with_its_rater(project: Project, tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps([task(PAIR, pairwise("right"), pairwise("left"))]))
    report = import_file(project, path)
    assert (report.added, report.duplicates, report.format) == (2, 0, "label-studio")
    assert project.store.counts().pairs == 2
    assert {one.name for one in project.store.raters()} >= {"ann@x"}
    assert len(project.store.prompts()) == 1
    assert replace(project.store.prompts()[0], id="").messages == ASKED
