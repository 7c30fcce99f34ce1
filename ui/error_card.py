"""An error as a card over the window: what happened, why, what to do, and the details of a bug to copy."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication, QDialog, QWidget

from ui.plain_text import PlainText
from ui.theme import L, M, S
from ui.widgets import IconLabel, Text, button, column, row, sentence
from workbench.errors import UserError

_log = logging.getLogger("tastemaker.ui")


class ErrorCard(QDialog):
    """What, cause and remedy of an error. A :class:`UserError` speaks for itself; anything else is our bug."""

    def __init__(self, error: BaseException, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("error-card")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowModality(Qt.WindowModality.WindowModal)
        known = isinstance(error, UserError)
        what, cause, remedy, details = describe(error)
        self.setWindowTitle("Tastemaker" if known else "An unexpected error")
        self.setAccessibleName(what)
        self.what = Text(what, "heading", wrap=True, selectable=True)
        self.cause = Text(cause, wrap=True, selectable=True)
        if not cause:
            self.cause.hide()
        self.remedy = Text(remedy, wrap=True, selectable=True)
        words = column(self.what, self.cause, spacing=S)
        if remedy:
            words.addSpacing(S)
            words.addWidget(Text("What to do", "small", "muted"))
            words.addWidget(self.remedy)
        top = row(spacing=M)
        top.addWidget(
            IconLabel("warning" if known else "error", 28, "warn" if known else "bad"), 0, Qt.AlignmentFlag.AlignTop
        )
        top.addLayout(words, 1)
        close = button("Close", self.accept, kind="primary", name="error-close")
        close.setDefault(True)
        self._actions = actions = row(None, close)
        body = column(top, spacing=M, margins=(L, L, L, M))
        if details:
            self.details = PlainText(details, name="Technical details", role="mono-small")
            self.details.setMinimumHeight(160)
            body.addWidget(self.details, 1)
            actions.insertWidget(0, button("Copy details", lambda: QApplication.clipboard().setText(details)))
        body.addLayout(actions)
        self.setLayout(body)
        close.setFocus()
        self.setMinimumWidth(480)
        self.resize(560, 440 if details else 0)

    def add_action(self, text: str, on_click: Callable[[], None]) -> None:
        """Offer a way out beside 'Close'."""

        def act() -> None:
            self.accept()
            on_click()

        self._actions.insertWidget(self._actions.count() - 1, button(text, act))


def describe(error: BaseException) -> tuple[str, str, str, str]:
    """Split an error into what, cause, remedy and technical details (empty for the user's own situation)."""
    if isinstance(error, UserError):
        return sentence(error.what).rstrip("."), sentence(error.cause), sentence(error.remedy), ""
    details = "".join(traceback.format_exception(error)).strip()
    return (
        "Something went wrong inside Tastemaker",
        f"{type(error).__name__}: {error}",
        "Your labels are safe: they are on disk. Copy the details below into a bug report, then go on.",
        details,
    )


def show_error(error: BaseException, parent: QWidget | None = None) -> ErrorCard:
    """Open the card without blocking, over ``parent`` or the active window; bugs also go to the log."""
    if not isinstance(error, UserError):
        _log.error("unexpected error in the window", exc_info=error)
    card = ErrorCard(error, parent or QApplication.activeWindow())
    card.open()
    return card
