from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
import shiboken6
from PySide6.QtCore import QObject
from PySide6.QtGui import QAccessible

from ui.operations import bind_future, operations
from ui.status_line import StatusLine
from ui.theme import Theme
from ui.widgets import ErrorBanner
from workbench.ids import now
from workbench.records import RunRecord


class Reader:
    """Takes the place of Qt's line to screen readers."""

    AnnouncementPoliteness = QAccessible.AnnouncementPoliteness

    def __init__(self) -> None:
        self.heard: list[tuple[str, bool]] = []

    def updateAccessibility(self, event: Any) -> None:
        self.heard.append((event.message(), event.politeness() == self.AnnouncementPoliteness.Assertive))


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    made = Reader()
    monkeypatch.setattr("ui.labels.QAccessible", made)
    return made


@pytest.fixture
def line(qtbot: Any, theme: Theme) -> StatusLine:
    made = StatusLine()
    qtbot.addWidget(made)
    made.show()
    return made


def heard_of(widget: Any) -> str:
    """Return the name under which a screen reader finds a widget."""
    return QAccessible.queryAccessibleInterface(widget).text(QAccessible.Text.Name)


def test_a_notice_is_read_out_and_found_by_its_words(line: StatusLine, reader: Reader) -> None:
    line.notify("Saved", "good")
    assert heard_of(line.notice) == "Saved"
    line.notify("The disk is full", "bad")
    assert reader.heard == [("Saved", False), ("The disk is full", True)]


def test_the_runs_button_says_which_runs_and_takes_no_letter_of_a_name_for_a_key(line: StatusLine) -> None:
    line.set_runs([RunRecord("r", "sft", "R&D \u202e1", "running", "base", created_at=now())])
    assert line.runs.text() == "R&&D \u27e6RLO\u27e71 running"
    assert line.runs.shortcut().isEmpty()
    assert heard_of(line.runs).startswith("Runs in progress: R&D")


def test_a_banner_is_read_out_once_for_as_long_as_it_says_the_same(qtbot: Any, theme: Theme, reader: Reader) -> None:
    banner = ErrorBanner()
    qtbot.addWidget(banner)
    for _ in range(3):
        banner.show_message("Not saved", "The disk is full.", "bad")
    banner.show_message("KL passed 20", "", "warn")
    banner.hide()
    banner.show_message("KL passed 20", "", "warn")
    assert [text for text, _ in reader.heard] == ["Not saved. The disk is full.", "KL passed 20.", "KL passed 20."]


class Holder(QObject):
    """Keeps what could not be saved, as an editor does."""

    unsaved = 1


def test_the_line_says_not_saved_until_the_one_who_holds_something_has_saved_it(line: StatusLine, qtbot: Any) -> None:
    def write(owner: QObject, error: OSError | None = None) -> None:
        future: Future[None] = Future()
        bind_future(future, None, lambda _: None, owner=owner)
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
        qtbot.waitUntil(lambda: operations().writes == 0)

    holder, other = Holder(), QObject()
    write(holder, OSError("disk full"))
    assert line.saved.text() == "Not saved"
    write(other)
    assert line.saved.text() == "Not saved"
    write(holder)
    assert line.saved.text() == "All saved"
    write(other, OSError("nothing to undo"))
    assert line.saved.text() == "Not saved"
    write(other)
    assert line.saved.text() == "All saved"  # who holds nothing has nothing left to save
    write(holder, OSError("disk full"))
    shiboken6.delete(holder)
    write(other)
    assert line.saved.text() == "All saved"
