"""Errors for people: sentences that leave names as they are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import workbench
from workbench.errors import UserError

ERRORS = ("UserError", "NothingToDo", "Misuse")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            UserError("it was not saved", "the disk is full", "free some"),
            "It was not saved. The disk is full. Free some.",
        ),
        (UserError("Really?", "", "a.txt is there"), "Really? a.txt is there."),
        (UserError("'rm' is gone"), "'rm' is gone."),
    ],
)
def test_an_error_is_its_parts_as_sentences(error: UserError, text: str) -> None:
    assert str(error) == text


def test_no_message_begins_with_a_bare_name_which_would_be_capitalised() -> None:
    bare = []
    for file in Path(workbench.__file__).parent.rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ERRORS:
                for part in call.args:
                    first = part.values[0] if isinstance(part, ast.JoinedStr) else None
                    if isinstance(first, ast.FormattedValue) and first.conversion == -1:
                        code = ast.unparse(first.value)
                        if code.endswith("name") and code != "path.name":  # a file's name has a dot
                            bare.append(f"{file.name}:{call.lineno} {code}")
    assert bare == []
