"""What stands in the place of a pane that could not be made."""

from __future__ import annotations

from PySide6.QtCore import Signal, SignalInstance
from PySide6.QtWidgets import QApplication, QWidget

from ui.error_card import describe
from ui.plain_text import PlainText
from ui.theme import XL, L, M
from ui.widgets import Card, IconLabel, Text, button, column, row


class PaneFault(QWidget):
    """Says which pane failed and why, with the details to copy; the rest of the window works on."""

    retry_asked: SignalInstance = Signal()  # type: ignore[assignment]

    def __init__(self, title: str, error: BaseException, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("pane-fault")
        what, cause, remedy, details = describe(error)
        card = Card()
        card.setMaximumWidth(760)
        head = row(IconLabel("error", 28, "bad"), spacing=M)
        head.addWidget(Text(f"{title} could not be opened", "title", wrap=True), 1)
        card.body.addLayout(head)
        card.body.addWidget(Text(cause or what, wrap=True, selectable=True))
        card.body.addWidget(Text(remedy, "body", "muted", wrap=True))
        if details:
            card.body.addWidget(PlainText(details, name="Technical details", role="mono-small", fit=True, max_lines=14))
        actions = row(button("Try again", self.retry_asked.emit, kind="primary", name="pane-retry"))
        if details:
            actions.addWidget(button("Copy details", lambda: QApplication.clipboard().setText(details)))
        actions.addStretch(1)
        card.body.addLayout(actions)
        outer = column(card, None, margins=(XL, XL, L, L))
        self.setLayout(outer)
        self.setAccessibleName(f"{title} could not be opened. {cause}")
