"""Rows of prompt files: a line of text, a table row, or a JSON string or object."""

from __future__ import annotations

from typing import Any

from workbench.formats.conversation import alpaca_prompt, checked_prompt, filled, messages_of, text_of, with_system
from workbench.formats.parsed import RowError
from workbench.formats.values import kind
from workbench.records import Message

COLUMNS = ("prompt", "instruction", "query", "question")
USED = frozenset({*COLUMNS, "messages", "conversations", "input", "system", "history"})


def read_text(value: Any) -> tuple[Message, ...]:
    """Read a line of plain text."""
    return (Message("user", filled(text_of(value, "line"), "prompt")),)


def read_table(value: Any) -> tuple[Message, ...]:
    """Read a table row with a prompt or instruction column, and input and system columns where it has them."""
    column = next((name for name in COLUMNS if name in value), None)
    if column is None:
        raise RowError("there is no column called prompt or instruction")
    return alpaca_prompt({"instruction": value[column], "input": value.get("input"), "system": value.get("system")})


def read_json(value: Any) -> tuple[Message, ...]:
    """Read a string, {prompt: text or messages}, {messages}, {conversations} or {instruction, input}."""
    if isinstance(value, str):
        return read_text(value)
    if not isinstance(value, dict):
        raise RowError(f"is {kind(value)}, not text or an object")
    for name in ("messages", "conversations"):
        if name in value:
            return checked_prompt(with_system(value.get("system"), messages_of(value[name], name)))
    prompt = value.get("prompt")
    if isinstance(prompt, list):
        return checked_prompt(with_system(value.get("system"), messages_of(prompt, "prompt")))
    if prompt is not None:
        text = filled(text_of(prompt, "prompt"), "prompt")
        return checked_prompt(with_system(value.get("system"), [Message("user", text)]))
    column = next((name for name in COLUMNS if value.get(name) is not None), None)
    if column is None:
        raise RowError('has neither "prompt" nor "messages"')
    return alpaca_prompt({**value, "instruction": text_of(value[column], column)})
