"""Each format row by row: what is taken as what, and why a row is rejected."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import UserError
from workbench.formats import reader
from workbench.formats.lines import Limits
from workbench.formats.parsed import FORMATS, WHATS, Parsed, format_info
from workbench.formats.preferences import shared_length
from workbench.formats.reader import parse
from workbench.records import Message

USER = {"role": "user", "content": "hi"}
BOT = {"role": "assistant", "content": "hello"}
WORSE = {"role": "assistant", "content": "go away"}
SYSTEM = {"role": "system", "content": "be kind"}
TURN = (Message("user", "hi"),)


def read(tmp_path: Path, rows: list[Any], what: str = "auto", format: str = "auto") -> Parsed:
    path = tmp_path / "file.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return parse(path, what=what, format=format)


def reason(tmp_path: Path, what: str, format: str, row: Any) -> str:
    found = read(tmp_path, [row], what, format)
    assert not found.rows
    assert [one.line for one in found.rejected] == [1]
    return found.rejected[0].reason


# ---- prompts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ('"hi"', TURN),
        ({"prompt": "hi"}, TURN),
        ({"prompt": [USER]}, TURN),
        ({"messages": [USER]}, TURN),
        ({"conversations": [{"from": "human", "value": "hi"}]}, TURN),
        ({"prompt": "hi", "system": "be kind"}, (Message("system", "be kind"), *TURN)),
        (
            {"messages": [SYSTEM, USER, BOT, USER]},
            (Message("system", "be kind"), *TURN, Message("assistant", "hello"), *TURN),
        ),
        ({"messages": [{"role": "system", "content": " "}, USER]}, TURN),
        ({"messages": [SYSTEM, USER], "system": "be kind"}, (Message("system", "be kind"), *TURN)),
        ({"instruction": "add", "input": "1 2"}, (Message("user", "add\n1 2"),)),
        ({"question": "hi"}, TURN),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]},
            TURN,
        ),
    ],
)
def test_a_prompt_in_each_spelling(tmp_path: Path, row: Any, expected: tuple[Message, ...]) -> None:
    assert [one.prompt for one in read(tmp_path, [row], "prompts").rows] == [expected]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ('""', "the prompt is empty"),
        ('" \\n"', "the prompt is empty"),
        ("5", "is a number, not text or an object"),
        ("null", "is null"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": 5}, '"prompt" is a number, not text'),
        ({"x": 1}, 'neither "prompt" nor "messages"'),
        ({"messages": []}, "has no messages"),
        ({"messages": [USER, BOT]}, "the last turn is by the assistant; a prompt ends with a user turn"),
        ({"messages": [BOT, USER]}, "begins with an assistant turn"),
        ({"messages": [USER, USER]}, "turn 2 is by the user, and so is the turn before it"),
        ({"messages": [USER, BOT, BOT, USER]}, "turn 3 is by the assistant"),
        ({"messages": [USER, SYSTEM]}, "only the first can be"),
        ({"messages": [SYSTEM]}, "the prompt is empty"),
        ({"messages": [USER, {"role": "assistant", "content": " "}, USER]}, "turn 2 is empty"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "a tool's turn"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, 'has the role "narrator"'),
        ({"messages": [{"content": "x"}]}, 'has no "role"'),
        ({"messages": [{"role": "user"}]}, "turn 1 of messages has no text"),
        ({"messages": [{"role": "user", "content": 5}]}, "has a number for its text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "parts that are not text"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}, "calls a tool"),
        ({"messages": ["hi"]}, "turn 1 of messages is text, not a message"),
        ({"messages": "hi"}, '"messages" is text, not a list of messages'),
        ({"messages": [SYSTEM, USER], "system": "other"}, "two different system texts"),
    ],
)
def test_a_bad_prompt_is_rejected_with_its_reason(tmp_path: Path, row: Any, why: str) -> None:
    assert why in reason(tmp_path, "prompts", "jsonl", row)


def test_plain_text_is_one_prompt_a_line_without_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbffirst\r\n\r\n  second \xe2\x80\xa8same\n\xff\nnul\x00\n")
    found = parse(path)
    assert [(row.line, row.prompt[0].content) for row in found.rows] == [(1, "first"), (3, "  second \u2028same")]
    assert [(one.line, one.reason.split(":")[0][:16]) for one in found.rejected] == [
        (4, "not valid UTF-8"),
        (5, "has a NUL byte a"),
    ]


def test_a_table_of_prompts_has_a_prompt_or_instruction_column(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,tags,split,source,extra\nhi,"a, b",test,me,x\n,,,,\n')
    found = parse(path)
    row = found.rows[0]
    assert (row.prompt, row.tags, row.split, row.source) == (TURN, ("a", "b"), "held-out", "me")
    assert [(one.line, one.reason) for one in found.rejected] == [(3, "the prompt is empty")]
    assert found.warnings == ['The field "extra" is not kept (1 row has it).']
    path.write_text("title,text\na,b\n")
    assert "no column called prompt" in parse(path, what="prompts", format="csv").rejected[0].reason
    path.write_text("instruction,input\nadd,1 2\n")
    assert parse(path).rows[0].prompt[0].content == "add\n1 2"


def test_a_table_can_hold_demonstrations_and_preferences(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion\nhi,hello\n")
    assert [(row.prompt, row.completion) for row in parse(path).rows] == [(TURN, "hello")]
    path.write_text("prompt,chosen,rejected\nhi,hello,go away\n")
    assert [(row.chosen, row.rejected) for row in parse(path).rows] == [("hello", "go away")]


# ---- demonstrations ----------------------------------------------------------------------------------------

HISTORY = [["q1", "a1"], ["q2", "a2"]]
HISTORY_TURNS = tuple(Message(role, text) for q, a in HISTORY for role, text in (("user", q), ("assistant", a)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("format", "row", "prompt"),
    [
        ("alpaca", {"instruction": "hi", "input": "", "output": "hello"}, TURN),
        ("alpaca", {"instruction": "hi", "output": "hello", "input": None, "history": None}, TURN),
        ("alpaca", {"instruction": "a", "input": "b", "output": "hello"}, (Message("user", "a\nb"),)),
        ("alpaca", {"instruction": "", "input": "b", "response": "hello"}, (Message("user", "b"),)),
        (
            "alpaca",
            {"instruction": "hi", "output": "hello", "system": "be kind", "history": HISTORY},
            (Message("system", "be kind"), *HISTORY_TURNS, *TURN),
        ),
        ("sharegpt", {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}, TURN),
        ("sharegpt", {"conversations": [USER, BOT]}, TURN),
        (
            "sharegpt",
            {
                "conversations": [{"from": "user", "value": "hi"}, {"from": "chatgpt", "value": "hello"}],
                "system": "be kind",
            },
            (Message("system", "be kind"), *TURN),
        ),
        ("messages", {"messages": [USER, BOT]}, TURN),
        (
            "messages",
            {"messages": [{"role": "developer", "content": "be kind"}, USER, BOT]},
            (Message("system", "be kind"), *TURN),
        ),
        ("prompt-completion", {"prompt": "hi", "completion": "hello"}, TURN),
        ("prompt-completion", {"prompt": "hi", "response": "hello"}, TURN),
        ("prompt-completion", {"prompt": [USER], "completion": [BOT]}, TURN),
        ("prompt-completion", {"prompt": "hi", "completion": [BOT]}, TURN),
    ],
)
def test_a_demonstration_in_each_spelling(tmp_path: Path, format: str, row: Any, prompt: tuple[Message, ...]) -> None:
    found = read(tmp_path, [row])
    assert (found.what, found.format, found.rejected, found.warnings) == ("demonstrations", format, [], [])
    assert [(one.prompt, one.completion) for one in found.rows] == [(prompt, "hello")]


@pytest.mark.parametrize(
    ("format", "row", "why"),
    [
        ("alpaca", {"instruction": "hi", "output": ""}, "the completion is empty"),
        ("alpaca", {"instruction": "hi"}, '"output" is missing'),
        ("alpaca", {"instruction": " ", "output": "x"}, "the prompt is empty"),
        ("alpaca", {"instruction": ["hi"], "output": "x"}, '"instruction" is a list, not text'),
        (
            "alpaca",
            {"instruction": "hi", "output": "x", "history": [["a"]]},
            "entry 1 of history is not a pair of texts",
        ),
        ("alpaca", {"instruction": "hi", "output": "x", "history": "a"}, "entry 1 of history"),
        ("alpaca", {"instruction": "hi", "output": "x", "history": [["a", ""]]}, "turn 2 is empty"),
        ("alpaca", "true", "is true or false, not an object"),
        ("sharegpt", {"conversations": [USER, BOT, USER]}, "the last turn is by the user: there is no completion"),
        ("sharegpt", {"x": 1}, '"conversations" is missing'),
        ("sharegpt", {"conversations": [{"from": "function_call", "value": "x"}]}, "a tool's turn"),
        ("messages", {"messages": [BOT]}, "the only turn is the assistant's"),
        ("messages", {"messages": [{"role": "system", "content": ""}]}, "has no messages"),
        ("messages", {"messages": [USER, {"role": "assistant", "content": " "}]}, "the completion is empty"),
        ("messages", {"messages": [USER, BOT], "label": False}, "marked as a bad answer"),
        ("prompt-completion", {"prompt": "hi", "completion": "x", "label": False}, 'bad answer ("label" is false)'),
        ("prompt-completion", {"prompt": "hi"}, '"completion" is missing'),
        ("prompt-completion", {"prompt": "hi", "completion": [USER]}, "one assistant turn"),
        ("prompt-completion", {"prompt": [USER, BOT], "completion": "x"}, "ends with a user turn"),
    ],
)
def test_a_bad_demonstration_is_rejected_with_its_reason(tmp_path: Path, format: str, row: Any, why: str) -> None:
    assert why in reason(tmp_path, "demonstrations", format, row)


# ---- preferences -------------------------------------------------------------------------------------------

HH = "\n\nHuman: hi\n\nAssistant: "


@pytest.mark.parametrize(
    ("format", "row"),
    [
        ("trl", {"prompt": "hi", "chosen": "hello", "rejected": "go away"}),
        ("trl", {"prompt": [USER], "chosen": [BOT], "rejected": [WORSE]}),
        ("trl", {"prompt": "hi", "chosen": [BOT], "rejected": [WORSE]}),
        ("trl", {"prompt": [USER], "chosen": "hello", "rejected": "go away"}),
        ("trl", {"prompt": [USER], "chosen": [USER, BOT], "rejected": [USER, WORSE]}),
        ("trl", {"prompt": "hi", "chosen": [USER, BOT], "rejected": [USER, WORSE]}),
        ("implicit", {"chosen": [USER, BOT], "rejected": [USER, WORSE]}),
        ("hh", {"chosen": HH + "hello", "rejected": HH + "go away"}),
        ("hh", {"prompt": HH.rstrip(), "chosen": " hello", "rejected": " go away"}),
        ("hh", {"chosen": HH.lstrip() + "hello", "rejected": HH.lstrip() + "go away"}),
        (
            "sharegpt",
            {
                "conversations": [{"from": "human", "value": "hi"}],
                "chosen": {"from": "gpt", "value": "hello"},
                "rejected": {"from": "gpt", "value": "go away"},
            },
        ),
        ("sharegpt", {"messages": [USER], "chosen": BOT, "rejected": WORSE}),
        ("alpaca", {"instruction": "hi", "input": "", "chosen": "hello", "rejected": "go away"}),
        ("h2o", {"prompt": "hi", "answer": "hello", "rejected_response": "go away", "parent_id": ""}),
        (
            "h2o",
            {"instruction": "hi", "chosen_response": "hello", "rejected_answer": "go away", "rejected_prompt": "hi"},
        ),
    ],
)
def test_a_preference_in_each_spelling(tmp_path: Path, format: str, row: Any) -> None:
    found = read(tmp_path, [row])
    assert (found.what, found.format, found.rejected, found.warnings) == ("preferences", format, [], [])
    assert [(one.prompt, one.chosen, one.rejected) for one in found.rows] == [(TURN, "hello", "go away")]


@pytest.mark.parametrize(
    ("format", "row", "why"),
    [
        ("trl", {"prompt": "hi", "chosen": "a", "rejected": "a"}, "chosen and rejected are identical"),
        ("trl", {"prompt": "hi", "chosen": "a", "rejected": " a\n"}, "chosen and rejected are identical"),
        ("trl", {"prompt": "hi", "chosen": " ", "rejected": "a"}, "the chosen completion is empty"),
        ("trl", {"prompt": "hi", "chosen": "a", "rejected": ""}, "the rejected completion is empty"),
        ("trl", {"prompt": "", "chosen": "a", "rejected": "b"}, "the prompt is empty"),
        ("trl", {"prompt": "hi", "chosen": "a"}, '"rejected" is missing'),
        ("trl", {"prompt": [USER], "chosen": [USER], "rejected": [BOT]}, "chosen is by the user, not the assistant"),
        (
            "trl",
            {"prompt": [USER], "chosen": [BOT, USER], "rejected": [BOT]},
            "chosen must be one assistant turn; it has 2",
        ),
        ("trl", {"prompt": [USER, BOT], "chosen": "a", "rejected": "b"}, "ends with a user turn"),
        ("implicit", {"chosen": "a", "rejected": "b"}, "the prompt is not shared"),
        ("implicit", {"chosen": "same", "rejected": "same"}, "identical"),
        ("implicit", {"chosen": "ab c", "rejected": [BOT]}, "both be texts or both be lists"),
        ("implicit", {"chosen": "ab c"}, '"rejected" is missing'),
        ("implicit", {"chosen": [USER, BOT], "rejected": [USER, BOT]}, "identical"),
        ("implicit", {"chosen": [USER, BOT], "rejected": [USER]}, "the last turn of rejected is not by the assistant"),
        (
            "implicit",
            {"chosen": [USER, BOT], "rejected": [{"role": "user", "content": "x"}, BOT]},
            "the prompt is not shared",
        ),
        ("implicit", {"chosen": [BOT], "rejected": [WORSE]}, "the prompt is not shared"),
        (
            "implicit",
            {"chosen": [USER, BOT, USER, BOT], "rejected": [USER, WORSE, USER, BOT]},
            "the two dialogues part before the last answer",
        ),
        ("hh", {"chosen": "hello", "rejected": HH}, '"chosen" does not begin with "Human:"'),
        ("hh", {"chosen": HH, "rejected": HH + "a"}, "the chosen completion is empty"),
        (
            "hh",
            {"chosen": HH + "a\n\nHuman: b", "rejected": HH + "b"},
            "the last turn of chosen is not by the assistant",
        ),
        (
            "hh",
            {"chosen": "\n\nAssistant: a\n\nAssistant: b", "rejected": "\n\nAssistant: a\n\nAssistant: c"},
            "wrong order",
        ),
        ("h2o", {"prompt": "hi", "answer": "a", "rejected_response": "a"}, "chosen and rejected are identical"),
        ("h2o", {"prompt": "hi", "answer": "a", "rejected_response": ""}, "the rejected completion is empty"),
        ("h2o", {"prompt": "hi", "answer": "a", "rejected_response": "b", "parent_id": "7"}, "continues another row"),
        (
            "h2o",
            {"prompt": "hi", "answer": "a", "rejected_response": "b", "rejected_prompt": "ho"},
            "rejected_prompt is another",
        ),
        ("sharegpt", {"chosen": BOT, "rejected": WORSE}, "is null, not a list of messages"),
        ("sharegpt", {"conversations": [USER], "chosen": {"value": "x"}, "rejected": BOT}, 'has no "role"'),
    ],
)
def test_a_bad_preference_is_rejected_with_its_reason(tmp_path: Path, format: str, row: Any, why: str) -> None:
    assert why in reason(tmp_path, "preferences", format, row)


@pytest.mark.parametrize(
    ("chosen", "rejected", "length"),
    [
        ("The sky is blue.", "The sky is green.", 10),  # the space before the difference is the completion's
        ("ab", "abc", 1),  # one begins the other: the last shared character is the completion's
        ("x", "y", 0),
        ("same", "same", 3),
        ("", "x", 0),
        (" a", " b", 0),
    ],
)
def test_the_implicit_prompt_is_cut_as_trl_cuts_it(chosen: str, rejected: str, length: int) -> None:
    assert shared_length(chosen, rejected) == length


def test_an_implicit_prompt_that_ends_inside_a_word_is_pointed_out(tmp_path: Path) -> None:
    found = read(
        tmp_path, [{"chosen": "It is black", "rejected": "It is blue"}, {"chosen": "It is a", "rejected": "It is b"}]
    )
    assert [(row.prompt[0].content, row.chosen, row.rejected) for row in found.rows] == [
        ("It is bl", "ack", "ue"),
        ("It is", " a", " b"),
    ]
    assert "In 1 row what both sides share ends inside a word (line 1)" in found.warnings[0]


def test_hh_transcripts_of_several_turns_are_read_and_packed_ones_too(tmp_path: Path) -> None:
    start = "\n\nHuman: a\nb\n\nAssistant:  two\n\nHuman: Human: c"
    row = {"chosen": start + "\n\nAssistant: x", "rejected": start + "\n\nAssistant: y "}
    path = tmp_path / "harmless.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    found = parse(path)
    assert found.format == "hh"
    assert [message.content for message in found.rows[0].prompt] == ["a\nb", " two", "Human: c"]
    assert (found.rows[0].chosen, found.rows[0].rejected) == ("x", "y ")


def test_preferences_that_go_in_a_circle_are_kept_with_a_warning(tmp_path: Path) -> None:
    def row(chosen: str, rejected: str, prompt: str = "hi") -> dict[str, str]:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    found = read(tmp_path, [row("a", "b"), row("b", "c"), row("a", "c"), row("a", "b", "x"), row("b", "a", "y")])
    assert found.warnings == []
    found = read(tmp_path, [row("a", "b"), row("b", "c"), row("c", "a"), row("a", "b", "x"), row("b", "a", "x")])
    assert len(found.rows) == 5
    assert found.warnings == [
        "For 2 prompts the preferences go in a circle, such as A over B and B over A (lines 1, 4). "
        "They are kept as they are."
    ]


# ---- whole files -------------------------------------------------------------------------------------------


def test_every_bad_line_is_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = b'{"prompt": "hi", "chosen": "a", "rejected": "b"}'
    bad = [
        b'{"prompt": "hi", "chosen": "a", "rejected": NaN}',
        b'{"prompt": "hi", "chosen": "\\ud800", "rejected": "b"}',
        b'{"prompt": "\xff", "chosen": "a", "rejected": "b"}',
        b"[" * 100_000,
        b'{"prompt": "hi", "chosen": "a", "rejected": "b", "n": ' + b"1" * 5000 + b"}",
        b'{"prompt": "hi", "chosen": "a", "chosen": "c", "rejected": "b"}',
        b'{"prompt": "h\\u0000i\x00", "chosen": "a", "rejected": "b"}',
        b'{"prompt": "hi", "chosen": "a", "rejec',
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join([good, *bad, good]))
    found = parse(path)
    assert [row.line for row in found.rows] == [1, len(bad) + 2]
    assert [one.line for one in found.rejected] == list(range(2, len(bad) + 2))
    assert all(one.reason and len(one.excerpt) <= 121 for one in found.rejected)
    assert found.warnings == [f"1 row repeats an earlier row (line {len(bad) + 2})."]


def test_a_nul_written_as_an_escape_is_refused_too(tmp_path: Path) -> None:
    assert "NUL" in reason(tmp_path, "prompts", "jsonl", '{"prompt": "h\\u0000i"}')


def test_rows_of_a_json_array_are_numbered_by_row(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"prompt": "hi", "completion": "a"}, {"prompt": "", "completion": "b"}], indent=4))
    found = parse(path)
    assert found.numbered_by == "row"
    assert [(one.line, one.reason) for one in found.rejected] == [(2, "the prompt is empty")]


def test_one_json_object_over_several_lines_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"prompt": "hi", "completion": "a"}, indent=4))
    assert parse(path).rows[0].completion == "a"


def test_a_limit_stops_early(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('"hi"\n' * 1000)
    assert len(parse(path, limit=7).rows) == 7


def test_fields_that_are_not_kept_are_named(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        [
            {"prompt": "hi", "completion": "a", "tools": "x", "score": None, "tags": {"a": 1}, "split": "middle"},
            {"prompt": "ho", "completion": "a", "tools": "y", "tags": ["t"], "split": "train", "source": "s"},
        ],
    )
    assert found.warnings == [
        'The field "split" is not kept (1 row has it).',
        'The field "tags" is not kept (1 row has it).',
        'The field "tools" is not kept (2 rows have it).',
    ]
    assert (found.rows[1].tags, found.rows[1].split, found.rows[1].source) == (("t",), "train", "s")


def test_what_and_format_can_be_given(tmp_path: Path) -> None:
    rows = [{"instruction": "hi", "output": "a"}]
    assert read(tmp_path, rows, "prompts").warnings == ['The field "output" is not kept (1 row has it).']
    assert read(tmp_path, rows, format="alpaca").what == "demonstrations"
    assert (
        read(tmp_path, [{"instruction": "hi", "chosen": "a", "rejected": "b"}], format="alpaca").what == "preferences"
    )
    assert read(tmp_path, ["some text"], format="text").rows[0].prompt[0].content == "some text"
    assert read(tmp_path, [{"prompt": "hi", "chosen": "a", "rejected": "b"}], "preferences", "plain").format == "trl"
    with pytest.raises(UserError, match="not a format to import demonstrations from"):
        read(tmp_path, rows, "demonstrations", "hh")
    with pytest.raises(UserError, match='"excel" is not a format'):
        read(tmp_path, rows, format="excel")
    with pytest.raises(UserError, match='nothing called "poems"'):
        read(tmp_path, rows, "poems")


def test_limits_reach_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('"hi"\n"' + "x" * 100 + '"\n')
    found = parse(path, limits=Limits(row_bytes=50))
    assert len(found.rows) == 1
    assert "the limit for one row" in found.rejected[0].reason


def test_a_row_with_a_rejected_response_alone_is_no_demonstration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which no format has"):
        read(tmp_path, [{"prompt": "hi", "rejected_response": "go away"}])


def test_a_table_of_h2o_llm_studio_and_one_of_kiln_are_read(tmp_path: Path) -> None:
    (tmp_path / "h2o.csv").write_text("id,system,prompt,answer,rejected_response\n1,,hi,hello,go away\n")
    found = parse(tmp_path / "h2o.csv")
    assert (found.what, found.format, found.warnings) == ("preferences", "h2o", [])
    assert [(one.prompt, one.chosen, one.rejected) for one in found.rows] == [(TURN, "hello", "go away")]
    (tmp_path / "kiln.csv").write_text('input,output,reasoning,tags\nhi,hello,I greet,"a,b"\n,empty,,\n')
    found = parse(tmp_path / "kiln.csv")
    assert (found.what, found.format) == ("demonstrations", "kiln")
    assert [(one.prompt, one.completion, one.tags) for one in found.rows] == [(TURN, "hello", ("a", "b"))]
    assert [(one.line, one.reason) for one in found.rejected] == [(3, "the prompt is empty")]
    assert found.warnings == ['The field "reasoning" is not kept (1 row has it).']


def test_the_list_of_formats_is_whole() -> None:
    assert set(FORMATS) == set(WHATS)
    for what in WHATS:
        assert any(info.can_export for info in FORMATS[what])
        for info in FORMATS[what]:
            assert info.title
            assert info.description
            assert info.can_import or info.can_export
            assert format_info(what, info.name) is info
    assert format_info("prompts", "nothing") is None


# ---- whole files -------------------------------------------------------------------------------------------


def test_prompts_and_tables_with_carriage_returns_alone_have_their_rows(tmp_path: Path) -> None:
    (tmp_path / "cr.txt").write_bytes(b"What is rain?\rWhat is snow?\r")
    assert [row.prompt[0].content for row in parse(tmp_path / "cr.txt").rows] == ["What is rain?", "What is snow?"]
    (tmp_path / "cr.csv").write_bytes(b"prompt,completion\rhi,hello\rho,well\r")
    assert [row.completion for row in parse(tmp_path / "cr.csv").rows] == ["hello", "well"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "it is a picture"),
        (b"%PDF-1.7\nhello\n", "it is a PDF file"),
        (b"MZ" + bytes(8) + b"hello\n\xff\xfe\nplain words\n", "it is no text"),
    ],
)
def test_a_file_that_is_no_text_gives_no_prompt_by_chance(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "file.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"(?i){why}"):
        parse(tmp_path / "file.txt")


def test_a_text_with_one_stray_nul_is_still_a_text(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("What is r\0in?\nWhat is snow? \u00e9\n")
    found = parse(tmp_path / "file.txt")
    assert (len(found.rows), len(found.rejected)) == (1, 1)


def test_rejected_rows_are_listed_up_to_a_limit_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "REJECTED_KEPT", 3)
    found = read(tmp_path, ['{"prompt": "hi"}', *["no json"] * 5, {"prompt": ""}], "prompts")
    assert (len(found.rows), [one.line for one in found.rejected], found.rejected_more) == (1, [2, 3, 4], 3)
    assert found.warnings == ["6 rows were rejected; the first 3 are listed."]


def test_a_file_of_nothing_but_bad_rows_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "REJECTED_KEPT", 3)
    monkeypatch.setattr(reader, "_GIVEN_UP_AFTER", 200)
    with pytest.raises(UserError, match=r"first 201 rows only 1 can be read.*line 2: not valid JSON"):
        read(tmp_path, ['{"prompt": "hi"}', *["no json"] * 500], "prompts")
    assert read(tmp_path, [*['{"prompt": "hi"}'] * 5, *["no json"] * 300], "prompts").rejected_more == 297
