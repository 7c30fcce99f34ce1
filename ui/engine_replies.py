"""Replies of the engine for as long as the one who asked is there."""

from __future__ import annotations

from collections.abc import Callable

import shiboken6
from PySide6.QtCore import QObject

from workbench.protocol import AnyReply


def while_alive(owner: QObject, on_reply: Callable[[AnyReply], None]) -> Callable[[AnyReply], None]:
    """Return ``on_reply`` such that replies are dropped once ``owner`` is deleted (its project was closed)."""

    def deliver(reply: AnyReply) -> None:
        if shiboken6.isValid(owner):
            on_reply(reply)

    return deliver
