from __future__ import annotations

from typing import Any

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QPalette
from PySide6.QtWidgets import QLabel, QWidget

from ui.error_card import ErrorCard, describe, show_error
from ui.theme import DARK, LIGHT, Theme
from ui.widgets import (
    ElidedLabel,
    EmptyState,
    ErrorBanner,
    IconButton,
    PageHeader,
    Pill,
    SectionTitle,
    Text,
    button,
    clear,
    column,
    plural,
    safe_tip,
    starts_rtl,
)
from workbench.errors import UserError

FAULT = UserError("The file was not read", "line 3 is cut off", "export it again")


def test_labels_take_markup_for_text(qtbot: Any, theme: Theme) -> None:
    for made in (Text("<b>x</b>"), ElidedLabel("<b>x</b>"), Pill("<b>x</b>")):
        qtbot.addWidget(made)
        assert made.textFormat() == Qt.TextFormat.PlainText


@pytest.mark.parametrize("kind", [Text, ElidedLabel, Pill, SectionTitle])
def test_a_label_shows_the_characters_that_would_turn_its_words_about(kind: Any, qtbot: Any, theme: Theme) -> None:
    made = kind("abc\u202edef\x00")
    qtbot.addWidget(made)
    assert made.text() == "abc\u27e6RLO\u27e7def\u27e6NUL\u27e7"


def test_a_layout_is_cleared_without_a_widget_that_shows_for_a_frame(qtbot: Any, theme: Theme) -> None:
    box = QWidget()
    qtbot.addWidget(box)
    inner = Text("x")
    layout = column(inner, None)
    box.setLayout(layout)
    box.show()
    clear(layout)
    assert inner.isHidden()
    assert layout.count() == 0


def test_a_tool_tip_shows_any_text_without_turning_it_into_markup() -> None:
    tip = safe_tip("<img src=x> & \u202e\nsecond")
    assert "<img" not in tip
    assert "&lt;img src=x&gt; &amp;" in tip
    assert "RLO" in tip
    assert "<br>" in tip
    assert safe_tip("") == ""


def test_text_follows_the_theme_by_meaning(qtbot: Any, theme: Theme) -> None:
    label = Text("x", tone="bad")
    qtbot.addWidget(label)
    label.show()
    role = QPalette.ColorRole.WindowText
    assert label.palette().color(role).name() == LIGHT.bad
    theme.set_mode("dark")
    qtbot.waitUntil(lambda: label.palette().color(role).name() == DARK.bad)
    label.set_tone("muted")
    assert label.palette().color(role).name() == DARK.muted
    theme.set_mode("light")


def test_an_elided_label_keeps_the_whole_text_in_its_tool_tip_only_when_cut(qtbot: Any, theme: Theme) -> None:
    label = ElidedLabel("a rather long text that will not fit")
    qtbot.addWidget(label)
    label.resize(60, 20)
    label.grab()
    assert "will not fit" in label.toolTip()
    label.resize(600, 20)
    label.grab()
    assert label.toolTip() == ""


def test_right_to_left_is_told_by_the_first_letter() -> None:
    assert starts_rtl("123 שלום hello")
    assert starts_rtl("مرحبا")
    assert not starts_rtl("hello שלום")
    assert not starts_rtl("")


def test_counts_are_said_in_words() -> None:
    assert plural(1, "prompt") == "1 prompt"
    assert plural(1200, "prompt") == "1,200 prompts"
    assert plural(0, "entry", "entries") == "0 entries"


def test_an_icon_button_has_a_name_and_does_its_deed(qtbot: Any, theme: Theme) -> None:
    clicks: list[int] = []
    made = IconButton("close", "Close <it>", lambda: clicks.append(1))
    qtbot.addWidget(made)
    assert made.accessibleName() == "Close <it>"
    assert "&lt;it&gt;" in made.toolTip()
    made.click()
    assert clicks == [1]
    made.set_icon("check", "Done")
    assert made.accessibleName() == "Done"


def test_an_empty_state_offers_one_action(qtbot: Any, theme: Theme) -> None:
    clicks: list[int] = []
    state = EmptyState("rank", "Nothing here", "Because.", "Do it", lambda: clicks.append(1))
    qtbot.addWidget(state)
    state.action.click()
    assert clicks == [1]
    state.set("Other", "text")
    assert state.title.text() == "Other"


def test_a_header_shows_its_subtitle_only_when_there_is_one(qtbot: Any, theme: Theme) -> None:
    header = PageHeader("Title")
    qtbot.addWidget(header)
    header.show()
    assert not header.subtitle.isVisible()
    header.set_subtitle("3 prompts")
    assert header.subtitle.isVisible()
    header.add_action(button("Go", kind="primary"))


def test_a_banner_says_what_why_and_what_to_do_and_can_be_dismissed(qtbot: Any, theme: Theme) -> None:
    banner = ErrorBanner()
    qtbot.addWidget(banner)
    assert banner.isHidden()
    banner.show_error(FAULT, action="Again")
    assert not banner.isHidden()
    assert banner.what.text() == "The file was not read"
    assert banner.more.text() == "Line 3 is cut off. Export it again."
    with qtbot.waitSignal(banner.action_clicked):
        banner.action.click()
    banner._close.click()
    assert banner.isHidden()
    banner.show_error(ValueError("bug"))
    assert "inside Tastemaker" in banner.what.text()


def test_an_error_card_shows_the_users_situation_without_a_traceback(qtbot: Any, theme: Theme) -> None:
    card = ErrorCard(FAULT)
    qtbot.addWidget(card)
    texts = [label.text() for label in card.findChildren(QLabel)]
    assert "The file was not read" in texts
    assert "Line 3 is cut off." in texts
    assert "Export it again." in texts
    assert not hasattr(card, "details")


def test_an_error_card_of_a_bug_has_details_to_copy_and_goes_to_the_log(qtbot: Any, theme: Theme, caplog: Any) -> None:
    try:
        raise ValueError("what a bug")
    except ValueError as error:
        card = show_error(error)  # deletes itself when it is closed
    assert "what a bug" in card.details.text()
    assert "Traceback" in card.details.text()
    assert "unexpected error" in caplog.text
    clicks: list[int] = []
    card.add_action("Way out", lambda: clicks.append(1))
    way_out = next(one for one in card.findChildren(type(button("x"))) if one.text() == "Way out")
    way_out.click()
    assert clicks == [1]


def test_describe_splits_an_error() -> None:
    assert describe(FAULT) == ("The file was not read", "Line 3 is cut off.", "Export it again.", "")
