"""A widget that is shown before it has a parent is a window for a moment: it flashes and takes the keyboard away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PySide6.QtCore import QEvent, QObject
from PySide6.QtWidgets import QApplication, QWidget

from ui.app import App
from ui.panes import KEYS
from ui.settings import Settings
from workbench.errors import UserError


class Windows(QObject):
    """Notes every window that is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[str] = []

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.Show and isinstance(watched, QWidget) and watched.isWindow():
            self.shown.append(f"{type(watched).__name__} {watched.objectName()}".strip())
        return False


def test_building_every_pane_and_an_error_card_shows_no_window_but_theirs(
    qtbot: Any, qapp: QApplication, filled: Any, settle: Callable[[], None]
) -> None:
    path = Path(filled.project.path)
    filled.project.close()
    windows = Windows()
    qapp.installEventFilter(windows)
    app = App(qapp, Settings(None))
    app.window.show()
    app.open(path)
    qtbot.waitUntil(lambda: app.session is not None, timeout=20_000)
    for key in KEYS:
        app.window.show_pane(key)
        settle()
    card = app.show_error(UserError("It went wrong", "for a reason", "try again"))
    card.close()
    app.show_error(UserError("It went wrong")).close()
    qapp.removeEventFilter(windows)
    app.window.close()
    settle()
    app.window.deleteLater()
    app.deleteLater()
    qapp.setStyleSheet("")
    assert windows.shown == ["MainWindow main-window", "ErrorCard error-card", "ErrorCard error-card"]
