"""What a conversation must be to be a prompt."""

import pytest

from workbench.records import Message
from workbench.turns import prompt_fault

SYSTEM, USER, ANSWER = ("system", "s"), ("user", "a"), ("assistant", "b")


@pytest.mark.parametrize(
    ("turns", "fault"),
    [
        ([USER], ""),
        ([SYSTEM, USER], ""),
        ([USER, ANSWER, USER], ""),
        ([SYSTEM, USER, ANSWER, USER], ""),
        ([], "the prompt is empty"),
        ([SYSTEM], "the prompt is empty"),
        ([("user", " ")], "the prompt is empty"),
        ([("system", " "), USER], "turn 1, the system's, is empty"),
        ([USER, ("assistant", " "), USER], "turn 2 is empty"),
        ([SYSTEM, USER, ANSWER, ("user", "")], "turn 4 is empty"),
        ([USER, SYSTEM, USER], "roles in wrong order: turn 2 is a system turn; only the first can be"),
        ([USER, USER], "roles in wrong order: turn 2 is by the user, and so is the turn before it"),
        ([ANSWER, USER], "roles in wrong order: it begins with an assistant turn"),
        ([SYSTEM, ANSWER], "roles in wrong order: it begins with an assistant turn"),
        ([USER, ANSWER], "the last turn is by the assistant; a prompt ends with a user turn"),
    ],
)
def test_a_prompt_is_user_and_assistant_in_turn_with_the_user_last(turns, fault):
    assert prompt_fault([Message(role, text) for role, text in turns]) == fault
