"""Rows of preference files: a prompt, and of two completions the one that was preferred."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workbench.formats.conversation import (
    alpaca_prompt,
    checked_prompt,
    filled,
    is_turns,
    message_of,
    messages_of,
    parse_transcript,
    text_of,
    with_system,
)
from workbench.formats.parsed import RowError
from workbench.pairs import EMPTY, why_unusable
from workbench.records import Message

Preference = tuple[tuple[Message, ...], str, str, str]  # prompt, chosen, rejected, a remark for the preview
H2O_CHOSEN = ("chosen_response", "answer", "response", "output", "completion")
H2O_REJECTED = ("rejected_response", "rejected_answer")
USED: dict[str, frozenset[str]] = {
    "trl": frozenset({"prompt", "chosen", "rejected", "system"}),
    "implicit": frozenset({"prompt", "chosen", "rejected"}),
    "hh": frozenset({"prompt", "chosen", "rejected"}),
    "sharegpt": frozenset({"conversations", "messages", "chosen", "rejected", "system"}),
    "alpaca": frozenset({"instruction", "input", "chosen", "rejected", "system", "history"}),
    "h2o": frozenset({"prompt", "instruction", "system", "rejected_prompt", "parent_id", *H2O_CHOSEN, *H2O_REJECTED}),
}
NOT_SHARED = "the prompt is not shared: chosen and rejected begin differently"
MID_WORD = "what both sides share ends inside a word"


def read_trl(row: dict[str, Any]) -> Preference:
    """Read {prompt, chosen, rejected}, as texts or as message lists."""
    prompt = row.get("prompt")
    if is_turns(prompt):
        messages = messages_of(prompt, "prompt")
    elif is_turns(row.get("chosen")) and len(row["chosen"]) > 1:
        return read_implicit(row)  # as TRL does: the whole dialogue is in chosen and rejected, and prompt repeats it
    else:
        messages = (Message("user", filled(text_of(prompt, "prompt"), "prompt")),)
    messages = checked_prompt(with_system(row.get("system"), messages))
    return _checked(messages, _answer(row, "chosen", messages), _answer(row, "rejected", messages))


def read_implicit(row: dict[str, Any]) -> Preference:
    """Read {chosen, rejected}: what both begin with is the prompt, cut as TRL's ``extract_prompt`` cuts it."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if chosen.strip() == rejected.strip():
            raise RowError("chosen and rejected are identical")
        cut = shared_length(chosen, rejected)
        if not chosen[:cut].strip():
            raise RowError(NOT_SHARED)
        inside = cut < len(chosen) and chosen[cut - 1].isalnum() and chosen[cut].isalnum()
        messages = (Message("user", chosen[:cut]),)
        return _checked(messages, chosen[cut:], rejected[cut:], MID_WORD if inside else "")
    if not (is_turns(chosen) and is_turns(rejected)):
        for name in ("chosen", "rejected"):
            if name not in row:
                raise RowError(f'"{name}" is missing')
        raise RowError("chosen and rejected must both be texts or both be lists of messages")
    return _of_dialogues(messages_of(chosen, "chosen"), messages_of(rejected, "rejected"))


def shared_length(chosen: str, rejected: str) -> int:
    """How long TRL's implicit prompt is.

    It ends where the two first differ, or one space before; where one text begins the other, its last character
    still counts as completion. Source: trl.data_utils.extract_prompt, TRL 1.16.
    """
    for place, (one, other) in enumerate(zip(chosen, rejected, strict=False)):
        if one != other:
            return place - 1 if place and chosen[place - 1] == " " else place
    return max(0, min(len(chosen), len(rejected)) - 1)


def read_hh(row: dict[str, Any]) -> Preference:
    """Read two transcripts that differ in their last answer alone; ``prompt`` may hold the part before it."""
    chosen, rejected = text_of(row.get("chosen"), "chosen"), text_of(row.get("rejected"), "rejected")
    before = text_of(row.get("prompt"), "prompt", missing="")
    if before:
        chosen, rejected = before + chosen, before + rejected
    return _of_dialogues(parse_transcript(chosen, "chosen"), parse_transcript(rejected, "rejected"))


def read_sharegpt(row: dict[str, Any]) -> Preference:
    """Read {conversations, chosen: {from, value}, rejected: {from, value}}, also as messages with role and content."""
    name = "messages" if "conversations" not in row and "messages" in row else "conversations"
    messages = checked_prompt(with_system(row.get("system"), messages_of(row.get(name), name)))
    return _checked(messages, _answer(row, "chosen", messages), _answer(row, "rejected", messages))


def read_alpaca(row: dict[str, Any]) -> Preference:
    """Read {instruction, input, chosen, rejected, system, history}."""
    messages = alpaca_prompt(row)
    return _checked(messages, _answer(row, "chosen", messages), _answer(row, "rejected", messages))


def read_h2o(row: dict[str, Any]) -> Preference:
    """Read {prompt, answer or chosen_response, rejected_response, system, rejected_prompt}."""
    if row.get("parent_id") not in (None, ""):
        raise RowError('continues another row ("parent_id"); such threads are not read')
    name = next((name for name in ("prompt", "instruction") if name in row), "prompt")
    prompt = filled(text_of(row.get(name), name), "prompt")
    if text_of(row.get("rejected_prompt"), "rejected_prompt", missing="").strip() not in ("", prompt.strip()):
        raise RowError("the prompt is not shared: rejected_prompt is another")
    messages = checked_prompt(with_system(row.get("system"), [Message("user", prompt)]))
    chosen = next((name for name in H2O_CHOSEN if name in row), "answer")
    rejected = next((name for name in H2O_REJECTED if name in row), "rejected_response")
    return _checked(messages, text_of(row.get(chosen), chosen), text_of(row.get(rejected), rejected))


def _answer(row: dict[str, Any], name: str, prompt: Sequence[Message]) -> str:
    value = row.get(name)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not is_turns(value):
        return text_of(value, name)
    turns = tuple(message_of(turn, f"turn {number} of {name}") for number, turn in enumerate(value, 1))
    if len(turns) == len(prompt) + 1 and turns[:-1] == tuple(prompt):
        turns = turns[-1:]  # the prompt is repeated within
    if len(turns) != 1:
        raise RowError(f"{name} must be one assistant turn; it has {len(turns)}")
    if turns[0].role != "assistant":
        raise RowError(f"{name} is by the {turns[0].role}, not the assistant")
    return turns[0].content


def _of_dialogues(chosen: Sequence[Message], rejected: Sequence[Message]) -> Preference:
    if tuple(chosen) == tuple(rejected):
        raise RowError("chosen and rejected are identical")
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns or turns[-1].role != "assistant":
            raise RowError(f"the last turn of {name} is not by the assistant")
    if len(chosen) < 2 or len(rejected) < 2 or chosen[0] != rejected[0]:
        raise RowError(NOT_SHARED)
    if tuple(chosen[:-1]) != tuple(rejected[:-1]):
        raise RowError("the prompt is not shared: the two dialogues part before the last answer")
    return _checked(checked_prompt(tuple(chosen[:-1])), chosen[-1].content, rejected[-1].content)


def _checked(prompt: tuple[Message, ...], chosen: str, rejected: str, note: str = "") -> Preference:
    reason = why_unusable(chosen, rejected)
    if reason == EMPTY:
        raise RowError("the chosen completion is empty" if not chosen.strip() else "the rejected completion is empty")
    if reason:
        raise RowError("chosen and rejected are identical")
    return prompt, chosen, rejected, note
