"""What a conversation must be to be a prompt: the one rule that files, the store and the window share."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.records import Message


def prompt_fault(messages: Sequence[Message]) -> str:
    """Say why messages are no prompt, or ''.

    A prompt is a system turn or none, then user and assistant in turn, none of them empty, with a user turn last.
    """
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not turns:
        return "the prompt is empty"
    if len(turns) < len(messages) and not messages[0].content.strip():
        return "turn 1, the system's, is empty"
    for place, message in enumerate(turns):
        number = place + 1 + len(messages) - len(turns)
        if message.role != ("assistant" if place % 2 else "user"):
            return _out_of_order(turns, place, number)
        if not message.content.strip():
            return "the prompt is empty" if len(turns) == 1 else f"turn {number} is empty"
    return "" if turns[-1].role == "user" else "the last turn is by the assistant; a prompt ends with a user turn"


def _out_of_order(turns: Sequence[Message], place: int, number: int) -> str:
    role = turns[place].role
    if role == "system":
        return f"roles in wrong order: turn {number} is a system turn; only the first can be"
    if place == 0:
        return "roles in wrong order: it begins with an assistant turn"
    return f"roles in wrong order: turn {number} is by the {role}, and so is the turn before it"
