from __future__ import annotations

from typing import Any

import shiboken6
from PySide6.QtWidgets import QApplication

from ui.model_dialogs import Working
from ui.theme import Theme


def test_progress_that_comes_after_the_sheet_was_closed_is_shown_to_nobody(qtbot: Any, theme: Theme) -> None:
    sheet = Working("Add a model", "", "Add", None)
    sheet.add_footer()
    sheet.set_working(True)
    sheet.tell("Downloading", 0.5)
    QApplication.processEvents()
    assert sheet.doing.text() == "Downloading"
    sheet.tell("Converting", 0.9)
    shiboken6.delete(sheet)
    QApplication.processEvents()  # (an error here would fail the test)
