"""The first card after the empty page begins where every card does: digits are for its first response."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication

from tests.ui.waiting import to_front
from ui.context import Context
from ui.rank_pane import RankPane
from workbench.ids import new_id, now
from workbench.records import Response


def test_the_first_card_after_the_empty_page_begins_at_its_first_response(
    qtbot: Any, context: Context, filled: Any, settle: Callable[[], None]
) -> None:
    pane = RankPane(context)
    qtbot.addWidget(pane)
    pane.resize(1280, 800)
    pane.show()

    to_front(qtbot, pane)
    pane.activate()

    def rank_one(keys: str) -> None:
        item = pane.item
        assert item is not None
        qtbot.keyClicks(QApplication.focusWidget(), keys)
        qtbot.keyClick(QApplication.focusWidget(), Qt.Key.Key_Return)
        qtbot.waitUntil(lambda: pane.item is not item and not pane.acts.busy, timeout=20_000)

    for _ in range(5):
        qtbot.waitUntil(lambda: pane.item is not None, timeout=20_000)
        rank_one("2341")  # the focus stays on the last response
    qtbot.waitUntil(lambda: pane.view.empty_shown, timeout=20_000)
    prompt = filled.prompts[9]
    texts = ("First.", "Second.", "Third.", "Fourth.")
    filled.project.store.add_responses(
        [Response(new_id(), prompt.id, text, finish_reason="stop", created_at=now()) for text in texts]
    ).result(10)
    qtbot.waitUntil(lambda: pane.item is not None, timeout=20_000)
    settle()
    assert pane.item is not None
    assert pane.sheet is not None
    assert pane.sheet.state.focus == 0
    assert pane.view.board.cards[0].hasFocus()
