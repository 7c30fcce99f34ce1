"""Waiting for the window: until something is so, and until it has the keyboard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PySide6.QtWidgets import QWidget


def wait(qtbot: Any, check: Callable[[], object]) -> None:
    """Wait for something; a busy machine is given time."""
    qtbot.waitUntil(lambda: bool(check()), timeout=30_000)


def to_front(qtbot: Any, window: QWidget) -> None:
    """Make a window the active one; without a window manager one asking is not always enough."""

    def front() -> bool:
        window.activateWindow()
        return window.isActiveWindow()

    wait(qtbot, front)


def open_pane(qtbot: Any, pane: Any, settle: Callable[[], None]) -> None:
    """Show a pane in the size that it has in a small window, and let it read what it shows."""
    qtbot.addWidget(pane)
    pane.resize(1280, 800)
    pane.show()
    to_front(qtbot, pane)
    pane.activate()
    settle()
