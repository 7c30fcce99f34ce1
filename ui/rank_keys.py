"""Keys of a pane: they act at once, and only while the focus is inside."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import Qt
from PySide6.QtGui import QKeyEvent, QKeySequence, QShortcut
from PySide6.QtWidgets import QWidget


def bind_key(where: QWidget, keys: str, act: Callable[[], object]) -> None:
    """Let a key act while the focus is in ``where`` or inside it; fields that take text keep their letters."""
    made = QShortcut(QKeySequence(keys), where)
    made.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
    made.activated.connect(act)


def undo_key(event: QKeyEvent) -> str:
    """Say whether a key press means "undo" or "redo"; "" for neither."""
    control = event.modifiers() & Qt.KeyboardModifier.ControlModifier
    shift = event.modifiers() & Qt.KeyboardModifier.ShiftModifier
    if control and event.key() == Qt.Key.Key_Z:
        return "redo" if shift else "undo"
    return "redo" if control and event.key() == Qt.Key.Key_Y else ""
