"""What a pane holds that is not on disk: named and kept before the window lets go of it."""

from __future__ import annotations

from dataclasses import dataclass

from PySide6.QtCore import QCoreApplication, QEvent

from ui.operations import operations
from workbench.store import Store


@dataclass(frozen=True, slots=True)
class Unsaved:
    """Work that would be lost."""

    what: str  # "The text of 2 demonstrations"
    text: str = ""  # what of it can be put on the clipboard


def finish_writes(store: Store) -> None:
    """Wait until the store has answered every write so far, and hand the answers out. On the window's thread only."""
    store.wait()
    QCoreApplication.sendPostedEvents(operations(), QEvent.Type.MetaCall.value)
