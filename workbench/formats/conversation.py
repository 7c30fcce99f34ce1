r"""Conversations as files hold them: lists of messages, ShareGPT turns, Alpaca fields, and HH transcripts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from workbench.formats.parsed import RowError
from workbench.formats.values import kind
from workbench.records import Message, Role
from workbench.turns import prompt_fault

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
_TOOLS = frozenset({"tool", "function", "function_call", "observation", "ipython"})
_TURN = re.compile(r"\n\n(Human|Assistant):")


def text_of(value: Any, name: str, *, missing: str | None = None) -> str:
    """Return a field that must be text; ``missing`` is what an absent field means, None that it must be there."""
    if value is None and missing is not None:
        return missing
    if value is None:
        raise RowError(f'"{name}" is missing')
    if not isinstance(value, str):
        raise RowError(f'"{name}" is {kind(value)}, not text')
    return value


def filled(text: str, name: str) -> str:
    """Return the text, which must hold more than space."""
    if not text.strip():
        raise RowError(f"the {name} is empty")
    return text


def is_turns(value: Any) -> bool:
    """Tell whether a value looks like a list of messages."""
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def messages_of(value: Any, name: str) -> tuple[Message, ...]:
    """Read a list of {role, content} or {from, value}. An empty system turn says nothing and is left out.

    Raises:
        RowError: not such a list, an unknown role, a tool's turn, or content that is not text.
    """
    if not isinstance(value, list):
        raise RowError(f'"{name}" is {kind(value)}, not a list of messages')
    if not value:
        raise RowError(f'"{name}" has no messages')
    found = tuple(message_of(turn, f"turn {number} of {name}") for number, turn in enumerate(value, 1))
    return found[1:] if found[0].role == "system" and not found[0].content.strip() else found


def message_of(turn: Any, where: str) -> Message:
    """Read one message in either spelling."""
    if not isinstance(turn, dict):
        raise RowError(f"{where} is {kind(turn)}, not a message")
    role = turn.get("role", turn.get("from"))
    if not isinstance(role, str):
        raise RowError(f'{where} has no "role" (or "from")')
    known = _ROLES.get(role.lower())
    if known is None:
        reason = "is a tool's turn, which is not supported" if role.lower() in _TOOLS else f'has the role "{role[:40]}"'
        raise RowError(f"{where} {reason}")
    if turn.get("tool_calls"):
        raise RowError(f"{where} calls a tool, which is not supported")
    return Message(known, _content(turn.get("content", turn.get("value")), where))


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        if all(part.get("type") == "text" and isinstance(part.get("text"), str) for part in value):
            return "".join(part["text"] for part in value)
        raise RowError(f"{where} has parts that are not text")
    raise RowError(f"{where} has no text" if value is None else f"{where} has {kind(value)} for its text")


def with_system(system: Any, messages: Sequence[Message]) -> tuple[Message, ...]:
    """Put a row's own ``system`` field, where it has one, before its turns."""
    text = text_of(system, "system", missing="")
    if not text.strip():
        return tuple(messages)
    if messages and messages[0].role == "system":
        if messages[0].content == text:
            return tuple(messages)
        raise RowError("has two different system texts")
    return (Message("system", text), *messages)


def checked_prompt(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the messages if they are a prompt: system or not, then user and assistant in turn, a user turn last."""
    if fault := prompt_fault(messages):
        raise RowError(fault)
    return tuple(messages)


def split_answer(messages: Sequence[Message]) -> tuple[tuple[Message, ...], str]:
    """Split a conversation into its prompt and the last assistant turn."""
    if not messages:
        raise RowError("has no messages")
    if messages[-1].role != "assistant":
        raise RowError(f"the last turn is by the {messages[-1].role}: there is no completion")
    if len(messages) == 1:
        raise RowError("the prompt is empty: the only turn is the assistant's")
    return checked_prompt(messages[:-1]), messages[-1].content


def alpaca_prompt(row: dict[str, Any]) -> tuple[Message, ...]:
    """Make the prompt of Alpaca fields: system, history, and instruction with its input on the next line."""
    instruction = text_of(row.get("instruction"), "instruction", missing="")
    extra = text_of(row.get("input"), "input", missing="")
    query = "\n".join(part for part in (instruction, extra) if part.strip())
    turns = [*_history(row.get("history")), Message("user", filled(query, "prompt"))]
    return checked_prompt(with_system(row.get("system"), turns))


def _history(value: Any) -> list[Message]:
    if value is None or value == "":
        return []
    turns: list[Message] = []
    for number, pair in enumerate(value if isinstance(value, list) else [value], 1):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise RowError(f"entry {number} of history is not a pair of texts")
        turns += [Message("user", pair[0]), Message("assistant", pair[1])]
    return turns


def is_transcript(text: Any) -> bool:
    """Tell whether a text is a dialogue in the manner of HH."""
    return isinstance(text, str) and bool(_TURN.match(text if text.startswith("\n\n") else "\n\n" + text.lstrip("\n")))


def parse_transcript(text: str, name: str) -> tuple[Message, ...]:
    r"""Read ``\n\nHuman: ... \n\nAssistant: ...``; one space after each colon belongs to the mark, the rest is kept."""
    if not text.startswith("\n\n"):
        text = "\n\n" + text.lstrip("\n")
    before, *pieces = _TURN.split(text)
    if before.strip() or not pieces:
        raise RowError(f'"{name}" does not begin with "Human:"')
    roles: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
    return tuple(
        Message(roles[mark], content.removeprefix(" ")) for mark, content in zip(pieces[::2], pieces[1::2], strict=True)
    )


def write_transcript(messages: Sequence[Message], answer: str) -> str:
    """Write a dialogue in the manner of HH. Raises RowError where reading it back would give something else."""
    marks = {"user": "Human", "assistant": "Assistant"}
    turns = (*messages, Message("assistant", answer))
    if any(turn.role == "system" for turn in turns):
        raise RowError("this format has no system turn")
    text = "".join(f"\n\n{marks[turn.role]}: {turn.content}" for turn in turns)
    if parse_transcript(text, "text") != turns:
        raise RowError('a turn holds the mark "Human:" or "Assistant:" itself')
    return text
