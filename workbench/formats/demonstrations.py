"""Rows of demonstration files: Alpaca, ShareGPT, messages, prompt and completion, input and output."""

from __future__ import annotations

from typing import Any

from workbench.formats.conversation import (
    alpaca_prompt,
    checked_prompt,
    filled,
    is_turns,
    messages_of,
    split_answer,
    text_of,
    with_system,
)
from workbench.formats.parsed import RowError
from workbench.records import Message

Shown = tuple[tuple[Message, ...], str]
ANSWERS = ("completion", "output", "response", "answer")
USED: dict[str, frozenset[str]] = {
    "alpaca": frozenset({"instruction", "input", *ANSWERS, "system", "history"}),
    "sharegpt": frozenset({"conversations", "system", "kto_tag"}),
    "messages": frozenset({"messages", "system", "label"}),
    "prompt-completion": frozenset({"prompt", *ANSWERS, "system", "label"}),
    "kiln": frozenset({"input", "output", "label"}),
}


def read_alpaca(row: dict[str, Any]) -> Shown:
    """Read {instruction, input, output, system, history}."""
    name = next((name for name in ("output", *ANSWERS) if name in row), "output")
    return alpaca_prompt(row), filled(text_of(row.get(name), name), "completion")


def read_sharegpt(row: dict[str, Any]) -> Shown:
    """Read {conversations: [{from, value}], system}."""
    return _conversation(row, "conversations")


def read_messages(row: dict[str, Any]) -> Shown:
    """Read {messages: [{role, content}]}."""
    return _conversation(row, "messages")


def read_prompt_completion(row: dict[str, Any]) -> Shown:
    """Read {prompt, completion}, each a text or a list of messages."""
    _refuse_bad_label(row)
    name = next((name for name in ANSWERS if name in row), "completion")
    prompt, answer = row.get("prompt"), row.get(name)
    if isinstance(prompt, list):
        messages = messages_of(prompt, "prompt")
    else:
        messages = (Message("user", filled(text_of(prompt, "prompt"), "prompt")),)
    messages = checked_prompt(with_system(row.get("system"), messages))
    if is_turns(answer):
        turns = messages_of(answer, name)
        if len(turns) != 1 or turns[0].role != "assistant":
            raise RowError(f"the {name} must be one assistant turn; it has {len(turns)} turns")
        return messages, filled(turns[0].content, "completion")
    return messages, filled(text_of(answer, name), "completion")


def read_kiln(row: dict[str, Any]) -> Shown:
    """Read {input, output}."""
    _refuse_bad_label(row)
    prompt = (Message("user", filled(text_of(row.get("input"), "input"), "prompt")),)
    return prompt, filled(text_of(row.get("output"), "output"), "completion")


def _conversation(row: dict[str, Any], name: str) -> Shown:
    _refuse_bad_label(row)
    if name not in row:
        raise RowError(f'"{name}" is missing')
    prompt, answer = split_answer(with_system(row.get("system"), messages_of(row[name], name)))
    return prompt, filled(answer, "completion")


def _refuse_bad_label(row: dict[str, Any]) -> None:
    """Unpaired preference files mark bad answers: those must never be taught as demonstrations."""
    for name in ("label", "kto_tag"):
        if row.get(name) is False or row.get(name) in ("false", "False"):
            raise RowError(f'is marked as a bad answer ("{name}" is false), so it is no demonstration')
