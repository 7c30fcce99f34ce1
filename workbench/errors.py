"""The two families of errors: the user's situation, and our own bugs.

A :class:`UserError` is one sentence saying what happened, its cause, and what to do. Everything else that
escapes is a bug and keeps its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """Something about the user's situation that they can mend.

    No part begins with a name as the user wrote it, which would be capitalised: "the model tiny is ...".

    Args:
        what: one sentence: what could not be done.
        cause: why.
        remedy: what to do about it.
    """

    def __init__(self, what: str, cause: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return " ".join(_sentence(part) for part in (self.what, self.cause, self.remedy) if part)


class NothingToDo(UserError):
    """The request is valid and there is nothing left to do for it."""


def _sentence(text: str) -> str:
    text = text.strip()
    if text and text[0].islower() and text.split()[0].isalpha():  # never a file's name
        text = text[0].upper() + text[1:]
    return text if not text or text[-1] in ".!?" else text + "."
