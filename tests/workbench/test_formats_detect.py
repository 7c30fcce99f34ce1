"""What a file holds, told from its rows, with the reason; unsure where it is unsure."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import UserError
from workbench.formats.detect import detect, explain, shapes
from workbench.formats.layout import layout_of

USER = {"role": "user", "content": "hi"}
BOT = {"role": "assistant", "content": "hello"}
HH = "\n\nHuman: hi\n\nAssistant: hello"


def write(tmp_path: Path, rows: list[Any], name: str = "file.jsonl") -> Path:
    path = tmp_path / name
    if name.endswith(".json"):
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["file.jsonl", "file.json", "file"])
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("only a text", ("prompts", "jsonl")),
        ({"prompt": "hi"}, ("prompts", "jsonl")),
        ({"prompt": [USER]}, ("prompts", "jsonl")),
        ({"messages": [USER]}, ("prompts", "jsonl")),
        ({"messages": "hi", "prompt": "hi"}, ("prompts", "jsonl")),
        ({"instruction": "hi"}, ("prompts", "jsonl")),
        ({"messages": [USER, BOT]}, ("demonstrations", "messages")),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            ("demonstrations", "sharegpt"),
        ),
        ({"instruction": "a", "input": "", "output": "b"}, ("demonstrations", "alpaca")),
        ({"prompt": "a", "completion": "b"}, ("demonstrations", "prompt-completion")),
        ({"instruction": "a", "response": "b"}, ("demonstrations", "alpaca")),
        ({"prompt": [USER], "completion": [BOT]}, ("demonstrations", "prompt-completion")),
        ({"prompt": "a", "response": "b"}, ("demonstrations", "prompt-completion")),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, ("preferences", "trl")),
        ({"prompt": "a", "chosen": [USER, BOT], "rejected": [USER, BOT]}, ("preferences", "trl")),
        ({"chosen": "a b", "rejected": "a c"}, ("preferences", "implicit")),
        ({"chosen": [USER, BOT], "rejected": [USER, BOT]}, ("preferences", "implicit")),
        ({"chosen": HH, "rejected": HH}, ("preferences", "hh")),
        ({"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": " a", "rejected": " b"}, ("preferences", "hh")),
        ({"conversations": [], "chosen": {}, "rejected": {}}, ("preferences", "sharegpt")),
        ({"messages": [USER], "chosen": BOT, "rejected": BOT}, ("preferences", "sharegpt")),
        ({"instruction": "a", "chosen": "b", "rejected": "c"}, ("preferences", "alpaca")),
        ({"prompt": "a", "answer": "b", "rejected_response": "c"}, ("preferences", "h2o")),
        ({"instruction": "a", "chosen_response": "b", "rejected_answer": "c"}, ("preferences", "h2o")),
        ({"input": "a", "output": "b", "tags": "c"}, ("demonstrations", "kiln")),
        ({"format": "tastemaker-ranking/1"}, ("rankings", "native")),
        ({"message_tree_id": "t", "prompt": {"text": "a"}}, ("rankings", "oasst")),
        ({"data": {"prompt": "a"}, "annotations": []}, ("rankings", "label-studio")),
        ({"fields": {"prompt": "a"}, "responses": {}}, ("rankings", "argilla")),
    ],
)
def test_the_shape_of_the_rows_tells_the_format(
    tmp_path: Path, row: object, expected: tuple[str, str], name: str
) -> None:
    path = write(tmp_path, [row, row], name)
    assert detect(path) == expected
    assert explain(path).why


def test_the_reason_names_the_layout_and_the_fields(tmp_path: Path) -> None:
    found = explain(write(tmp_path, [{"instruction": "a", "output": "b"}], "a.json"))
    assert found.why == 'a JSON array; the rows have "instruction" and "output"'
    assert found.sure
    assert found.could_be[0].title == "demonstrations: Alpaca"


def test_a_mixed_file_is_named_with_all_that_it_could_be(tmp_path: Path) -> None:
    path = write(tmp_path, [{"messages": [USER]}, {"messages": [USER, BOT]}] * 3)
    found = explain(path)
    assert not found.sure
    assert [(one.what, one.format) for one in found.could_be] == [("prompts", "jsonl"), ("demonstrations", "messages")]
    assert "in 3 of the first 6" in found.why
    with pytest.raises(UserError, match=r"could be prompts.*or demonstrations") as refused:
        detect(path)
    assert "say which" in refused.value.remedy


def test_a_few_strange_rows_do_not_make_it_unsure(tmp_path: Path) -> None:
    path = write(tmp_path, [{"messages": [USER]}, *[{"messages": [USER, BOT]}] * 9, {"strange": 1}, 5])
    assert detect(path) == ("demonstrations", "messages")


def test_rows_with_empty_answers_are_prompts_unless_demonstrations_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, [{"instruction": "a", "output": ""}])
    assert detect(path) == ("prompts", "jsonl")
    assert explain(path, "demonstrations").format == "alpaca"


def test_asking_for_prompts_finds_those_of_any_file(tmp_path: Path) -> None:
    path = write(tmp_path, [{"instruction": "a", "output": "b"}])
    assert explain(path, "prompts").format == "jsonl"


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        ([{"a": 1}], 'rows have "a", which no format has'),
        ([{"prompt": "a", "chosen": "b"}], "not both chosen and rejected"),
        ([[1, 2]], "first row is a list, and rows must be objects or texts"),
        ([5], "first row is a number, and rows must be objects or texts"),
        ([{"output": "a"}], 'rows have "output"'),
    ],
)
def test_an_unknown_shape_is_refused_with_the_fields_that_are_there(
    tmp_path: Path, rows: list[Any], cause: str
) -> None:
    with pytest.raises(UserError, match=cause):
        detect(write(tmp_path, rows, "a.json"))


def test_a_row_names_all_that_it_could_be_the_likeliest_first() -> None:
    assert [shape[:2] for shape in shapes("hi", "lines")] == [("prompts", "jsonl")]
    assert [shape[:2] for shape in shapes({"messages": [USER]}, "lines")] == [
        ("prompts", "jsonl"),
        ("demonstrations", "messages"),
        ("prompts", "jsonl"),
    ]


def test_half_a_preference_is_a_prompt_for_one_who_asks_for_prompts(tmp_path: Path) -> None:
    assert explain(write(tmp_path, [{"prompt": "a", "chosen": "b"}]), "prompts").format == "jsonl"


def test_a_file_that_does_not_hold_what_is_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not what preferences need"):
        explain(write(tmp_path, [{"prompt": "a", "completion": "b"}]), "preferences")
    (tmp_path / "a.txt").write_text("hello\n")
    with pytest.raises(UserError, match="holds no demonstrations"):
        explain(tmp_path / "a.txt", "demonstrations")
    with pytest.raises(UserError, match='nothing called "poems"'):
        explain(tmp_path / "a.txt", "poems")


def test_a_file_without_a_readable_row_says_what_is_wrong_with_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": \n{"x"\n')
    with pytest.raises(UserError, match=r"(?i)line 1: not valid JSON"):
        detect(path)
    path.write_text("\n \n")
    with pytest.raises(UserError, match=r"(?i)it has no rows"):
        detect(path)
    path = tmp_path / "a.json"
    path.write_text('[{"prompt": ]')
    with pytest.raises(UserError, match=r"(?i)row 1"):
        detect(path)


@pytest.mark.parametrize(
    ("name", "content", "layout"),
    [
        ("a.csv", "prompt\nx", "table"),
        ("a.tsv", "prompt\tx\n", "table"),
        ("a.txt", "hello\nyou", "text"),
        ("a.txt", "[INST] hello", "text"),
        ("a.txt", '[{"prompt": "x"}]', "array"),
        ("a.txt", "{a: 1}", "text"),
        ("a.txt", '{"prompt": "x"}\n', "lines"),
        ("a.json", ' \n[{"a": 1}]', "array"),
        ("a.json", '{\n  "prompt": "x"\n}', "objects"),
        ("a.json", '{"prompt": "x"}\n{"prompt": "y"}', "lines"),
        ("a.json", '{"prompt": "x"}', "lines"),
        ("a.jsonl", '{"prompt": \n', "lines"),
        ("a.jsonl", '"text"', "lines"),
        ("a.jsonl", "[]", "array"),
        ("noname", "prompt,completion\na,b", "table"),
        ("noname", "just, text", "text"),
        ("noname", '{"a": 1}', "lines"),
    ],
)
def test_the_layout_is_told_by_the_extension_and_the_first_bytes(
    tmp_path: Path, name: str, content: str, layout: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert layout_of(path) == layout
    packed = tmp_path / (name + ".gz")
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + content.encode()))
    assert layout_of(packed) == layout


def test_plain_text_is_prompts_and_a_lone_column_is_a_table(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("hello\nyou\n")
    assert detect(path) == ("prompts", "text")
    path.write_text("Prompt\nyou\n")
    assert detect(path) == ("prompts", "csv")
