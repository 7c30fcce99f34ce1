"""The first rows as understood, and as the chat template renders them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.formats.preview import PreviewRow, RenderedAnswer, preview, render_request, rendered_rows
from workbench.formats.reader import parse
from workbench.protocol import ModelRef, Rendered
from workbench.records import Message

MODEL = ModelRef(model_id="m", name="m", base="/base")
TURN = (Message("user", "hi"),)


def shown(tmp_path: Path, *rows: Any, limit: int = 5) -> list[PreviewRow]:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return preview(parse(path), limit)


def test_a_preview_shows_the_first_good_rows_with_what_is_odd(tmp_path: Path) -> None:
    row = {"prompt": "hi", "chosen": "a", "rejected": "b", "split": "test"}
    found = shown(tmp_path, row, {**row, "chosen": ""}, row, row, limit=2)
    assert found == [
        PreviewRow(1, TURN, chosen="a", rejected="b", note="held-out"),
        PreviewRow(3, TURN, chosen="a", rejected="b", note="repeats line 1; held-out"),
    ]
    (word,) = shown(tmp_path, {"chosen": "It is black", "rejected": "It is blue"})
    assert word.note == "what both sides share ends inside a word"


def test_a_repeat_of_an_array_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(["hi", "hi"]))
    assert [row.note for row in preview(parse(path))] == ["", "repeats row 1"]


def test_every_conversation_of_a_preview_is_rendered_in_one_request_and_finds_its_row() -> None:
    rows = [
        PreviewRow(1, TURN),
        PreviewRow(2, TURN, completion="c"),
        PreviewRow(3, TURN, chosen="a", rejected="b"),
    ]
    request = render_request(rows, MODEL, "r1")
    assert (request.id, request.model) == ("r1", MODEL)
    assert request.rows == ((TURN, ""), (TURN, "c"), (TURN, "a"), (TURN, "b"))
    spans = tuple(((f"text {n}", n > 0),) for n in range(4))
    reply = Rendered(id="r1", rows=spans, token_counts=(1, 2, 3, 4))
    assert rendered_rows(rows, reply) == [
        (RenderedAnswer("prompt", spans[0], 1),),
        (RenderedAnswer("completion", spans[1], 2),),
        (RenderedAnswer("chosen", spans[2], 3), RenderedAnswer("rejected", spans[3], 4)),
    ]
    with pytest.raises(ValueError, match="1 rendered conversations for 4 asked"):
        rendered_rows(rows, Rendered(id="r1", rows=spans[:1], token_counts=(1,)))
