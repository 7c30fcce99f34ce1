from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QApplication, QLineEdit, QToolButton, QWidget

from tests.ui.waiting import open_pane as show_pane
from tests.ui.waiting import to_front, wait
from ui.context import Context
from ui.rank_chrome import RankFooter
from ui.rank_history import RankHistoryDialog
from ui.rank_pane import RankPane
from ui.rank_session import load_item
from ui.sampler import SamplingPlan
from ui.sampling_dialog import SamplingDialog
from workbench.errors import UserError
from workbench.ids import new_id, now
from workbench.project import Project
from workbench.protocol import Failed, Finished, ModelRef, ResponseDone, SampleRequest, Token
from workbench.records import Change, Counts, ModelRecord, Rater, Response, Sampling

K = Qt.Key
CTRL = Qt.KeyboardModifier.ControlModifier
SHIFT = Qt.KeyboardModifier.ShiftModifier
Settle = Callable[[], None]


@pytest.fixture
def open_pane(qtbot: Any, settle: Settle) -> Iterator[Callable[[Context], RankPane]]:
    made: list[RankPane] = []

    def make(context: Context) -> RankPane:
        pane = RankPane(context)
        made.append(pane)
        show_pane(qtbot, pane, settle)
        return pane

    yield make
    for pane in made:
        pane.sampler.stop()
    settle()


@pytest.fixture
def pane(qtbot: Any, context: Context, open_pane: Callable[[Context], RankPane]) -> RankPane:
    made = open_pane(context)
    wait(qtbot, lambda: made.item is not None)
    return made


def press(qtbot: Any, pane: QWidget, *pressed: Any) -> None:
    """Press keys where the focus is, as a person does."""
    for key in pressed:
        where = pane.window().focusWidget() or pane
        if isinstance(key, tuple):
            qtbot.keyClick(where, key[0], key[1])
        elif isinstance(key, str):
            qtbot.keyClicks(where, key)
        else:
            qtbot.keyClick(where, key)


def submit(qtbot: Any, pane: RankPane, *pressed: Any) -> None:
    before = pane.item
    press(qtbot, pane, *pressed, K.Key_Return)
    wait(qtbot, lambda: pane.item is not before and not pane.acts.busy)


def message(pane: RankPane) -> str:
    return pane.view.footer.message.text()


def test_four_digits_and_enter_rank_a_prompt_and_show_the_next(qtbot: Any, pane: RankPane, filled: Any) -> None:
    first = pane.item
    assert first is not None
    submit(qtbot, pane, K.Key_2, K.Key_1, K.Key_4, K.Key_3)
    saved = filled.project.store.rankings(prompt_id=first.prompt.id)[-1]
    a, b, c, d = first.ids
    assert saved.tiers == ((b,), (a,), (d,), (c,))
    assert saved.id == first.ranking_id
    assert saved.shown_order == first.ids
    assert saved.blind
    assert saved.touched
    assert saved.seconds > 0
    assert pane.stats.count == 1
    assert "1 this session" in pane.view.header.subtitle.text()


def test_the_next_prompt_comes_only_after_the_commit(
    qtbot: Any, pane: RankPane, filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled.project.store
    held: Future[Any] = Future()
    real = store.save_ranking
    asked = []

    def slow(ranking: Any) -> Future[Any]:
        asked.append(ranking)
        return held

    monkeypatch.setattr(store, "save_ranking", slow)
    first = pane.item
    press(qtbot, pane, "1234", K.Key_Return)
    QApplication.processEvents()
    assert asked
    assert pane.item is first
    press(qtbot, pane, "1", K.Key_Return)  # nothing can be pressed twice
    assert len(asked) == 1
    held.set_result(real(asked[0]).result(10))
    wait(qtbot, lambda: pane.item is not first)


def test_the_next_card_stands_within_50_ms_of_enter(qtbot: Any, pane: RankPane, settle: Settle) -> None:
    times = []
    for _ in range(4):
        settle()  # a person reads; by then the next cards are at hand
        before = pane.item
        press(qtbot, pane, "1234")
        begun = time.process_time()  # of this process: what else the machine does is not ours
        press(qtbot, pane, K.Key_Return)
        while pane.item is before:
            QApplication.processEvents()
        QApplication.processEvents()
        times.append(time.process_time() - begun)
    assert min(times) < 0.05, times


def test_enter_says_what_is_missing_and_goes_there(qtbot: Any, pane: RankPane, filled: Any) -> None:
    before = len(filled.project.store.rankings())
    press(qtbot, pane, "2", K.Key_Right, "1", K.Key_Return)
    assert message(pane) == "B and D have no place yet."
    assert pane.sheet is not None
    assert pane.sheet.state.focus == 1
    assert pane.view.board.cards[1].hasFocus()
    assert len(filled.project.store.rankings()) == before


def test_ties_by_equal_digits_and_by_the_equals_key(qtbot: Any, pane: RankPane, filled: Any) -> None:
    first = pane.item
    assert first is not None
    submit(qtbot, pane, "1", "=", "2", "2")
    saved = filled.project.store.rankings(prompt_id=first.prompt.id)[-1]
    assert [set(tier) for tier in saved.tiers] == [set(first.ids[:2]), set(first.ids[2:])]
    assert pane.stats.ties == 1


def test_arrows_and_tab_move_and_backspace_clears(qtbot: Any, pane: RankPane) -> None:
    cards = pane.view.board.cards
    press(qtbot, pane, "1", K.Key_Left, K.Key_Backspace)
    assert pane.sheet is not None
    assert pane.sheet.state.places == (0, 0, 0, 0)
    press(qtbot, pane, K.Key_Tab)
    assert cards[1].hasFocus()
    assert pane.sheet.state.focus == 1
    press(qtbot, pane, K.Key_Down)
    assert cards[3].hasFocus()  # two columns at this width
    press(qtbot, pane, K.Key_Up, (K.Key_Backtab, SHIFT))
    assert cards[0].hasFocus()


def test_down_scrolls_the_text_where_there_is_no_row_below(qtbot: Any, pane: RankPane) -> None:
    pane.view.header.columns.setCurrentIndex(4)
    card = pane.view.board.cards[0]
    card.set_response("line\n" * 400, 4)
    QApplication.processEvents()
    press(qtbot, pane, K.Key_Down)
    assert card.text.view.verticalScrollBar().value() > 0
    press(qtbot, pane, K.Key_End)
    assert card.text.view.verticalScrollBar().value() == card.text.view.verticalScrollBar().maximum()
    press(qtbot, pane, K.Key_Home, K.Key_Space)
    assert card.text.view.verticalScrollBar().value() > 0


def test_undo_first_takes_placements_back_then_the_last_ranking(qtbot: Any, pane: RankPane, filled: Any) -> None:
    store, first = filled.project.store, pane.item
    assert first is not None
    submit(qtbot, pane, "2143")
    press(qtbot, pane, "1", (K.Key_Z, CTRL))
    assert pane.sheet is not None
    assert pane.sheet.state.places == (0, 0, 0, 0)
    assert len(store.rankings(prompt_id=first.prompt.id)) == 1
    press(qtbot, pane, (K.Key_Z, CTRL))
    wait(qtbot, lambda: pane.item is not None and pane.item.prompt.id == first.prompt.id)
    assert store.rankings(prompt_id=first.prompt.id) == []
    assert pane.item.ids == first.ids  # the card stands as it stood
    assert pane.sheet.state.places == (2, 1, 4, 3)
    assert pane.stats.count == 0


def test_redo_brings_an_undone_ranking_back(qtbot: Any, pane: RankPane, filled: Any) -> None:
    store, first = filled.project.store, pane.item
    submit(qtbot, pane, "2143")
    second = pane.item
    press(qtbot, pane, (K.Key_Z, CTRL))
    wait(qtbot, lambda: pane.item.prompt.id == first.prompt.id)
    press(qtbot, pane, (K.Key_Z, CTRL | SHIFT))
    wait(qtbot, lambda: pane.item.prompt.id == second.prompt.id)
    assert len(store.rankings(prompt_id=first.prompt.id)) == 1
    assert pane.stats.count == 1


def test_redo_returns_a_placement_of_this_card(qtbot: Any, pane: RankPane) -> None:
    press(qtbot, pane, "1", (K.Key_Z, CTRL), (K.Key_Z, CTRL | SHIFT))
    assert pane.sheet is not None
    assert pane.sheet.state.places == (1, 0, 0, 0)


def test_an_undone_ranking_is_confirmed_with_a_second_enter(qtbot: Any, pane: RankPane, filled: Any) -> None:
    first = pane.item
    submit(qtbot, pane, "2143")
    press(qtbot, pane, (K.Key_Z, CTRL))
    wait(qtbot, lambda: pane.item.prompt.id == first.prompt.id)
    press(qtbot, pane, K.Key_Return)
    assert pane.view.warning.isVisible()
    assert "not changed" in pane.view.warning.what.text()
    assert filled.project.store.rankings(prompt_id=first.prompt.id) == []
    submit(qtbot, pane)
    assert filled.project.store.rankings(prompt_id=first.prompt.id)[-1].touched is False


def test_undo_corrects_when_something_newer_was_done(qtbot: Any, pane: RankPane, filled: Any, settle: Settle) -> None:
    store, first = filled.project.store, pane.item
    submit(qtbot, pane, "2143")
    other = filled.prompts[9]
    store.add_responses([Response(new_id(), other.id, "sampled meanwhile", created_at=now())]).result(10)
    settle()
    press(qtbot, pane, (K.Key_Z, CTRL))
    wait(qtbot, lambda: pane.item.prompt.id == first.prompt.id)
    assert pane.item.corrects is not None
    assert len(store.responses(other.id)) == 1  # what came in meanwhile was not taken back
    submit(qtbot, pane, "1")
    newest = store.rankings(prompt_id=first.prompt.id)
    assert len(newest) == 1
    assert newest[0].supersedes == first.ranking_id


def test_undo_from_the_menu_counts_too(qtbot: Any, pane: RankPane, filled: Any, settle: Settle) -> None:
    submit(qtbot, pane, "2143")
    filled.project.store.undo().result(10)
    wait(qtbot, lambda: pane.stats.count == 0)
    filled.project.store.redo().result(10)
    wait(qtbot, lambda: pane.stats.count == 1)


def test_nothing_to_undo_says_so(qtbot: Any, pane: RankPane) -> None:
    press(qtbot, pane, (K.Key_Z, CTRL))
    assert "Nothing of this session" in message(pane)


def test_all_tied_asks_once(qtbot: Any, pane: RankPane, filled: Any) -> None:
    first = pane.item
    press(qtbot, pane, "1111", K.Key_Return)
    assert "tied" in pane.view.warning.what.text()
    assert filled.project.store.rankings(prompt_id=first.prompt.id) == []
    submit(qtbot, pane)
    assert len(filled.project.store.rankings(prompt_id=first.prompt.id)[0].tiers) == 1


def test_the_warning_goes_when_the_tie_is_broken(qtbot: Any, pane: RankPane) -> None:
    press(qtbot, pane, "1111", K.Key_Return, "2")
    assert not pane.view.warning.isVisible()


def test_skip_and_cannot_rank_are_saved_and_go_on(qtbot: Any, pane: RankPane, filled: Any) -> None:
    store, first = filled.project.store, pane.item
    press(qtbot, pane, "s")
    wait(qtbot, lambda: pane.item.prompt.id != first.prompt.id)
    second = pane.item
    press(qtbot, pane, "x")
    wait(qtbot, lambda: pane.item.prompt.id != second.prompt.id)
    assert store.rankings(prompt_id=first.prompt.id)[0].outcome == "skipped"
    assert store.rankings(prompt_id=second.prompt.id)[0].outcome == "cannot-rank"
    assert pane.stats.count == 0


def test_flags_by_menu_for_one_and_for_all(qtbot: Any, pane: RankPane, filled: Any) -> None:
    first = pane.item
    press(qtbot, pane, K.Key_Right, "f")
    menu = pane.flag_menu
    assert menu is not None
    assert QApplication.activePopupWidget() is menu
    qtbot.keyClick(menu, K.Key_1)
    assert pane.sheet is not None
    assert pane.sheet.state.places == (0, 0, 0, 0)
    assert [pill.text() for pill in pane.view.board.cards[1]._pills if pill.isVisible()] == ["harmful"]
    wait(qtbot, lambda: QApplication.activePopupWidget() is None)
    press(qtbot, pane, "f")
    assert pane.flag_menu is not None
    qtbot.keyClick(pane.flag_menu, K.Key_B)
    assert "all bad" in message(pane)
    submit(qtbot, pane, K.Key_Left, "1234")
    saved = filled.project.store.rankings(prompt_id=first.prompt.id)[-1]
    assert {(one.response_id, one.flag) for one in saved.flags} == {(first.ids[1], "harmful"), ("", "all bad")}


def test_thumbs_are_saved_with_the_ranking_and_come_back_with_its_undo(qtbot: Any, pane: RankPane, filled: Any) -> None:
    first = pane.item
    press(qtbot, pane, "+", K.Key_Right, "-")
    shown = [[pill.text() for pill in card._pills if pill.isVisible()] for card in pane.view.board.cards[:2]]
    assert shown == [["thumbs up"], ["thumbs down"]]
    submit(qtbot, pane, K.Key_Left, "1234")
    saved = filled.project.store.rankings(prompt_id=first.prompt.id)[-1]
    assert {(one.response_id, one.flag) for one in saved.flags} == {(first.ids[0], "good"), (first.ids[1], "bad")}
    pane.undo()
    wait(qtbot, lambda: pane.item is not None and pane.item.prompt.id == first.prompt.id)
    assert pane.sheet is not None
    assert pane.sheet.state.thumbs == ("good", "bad", "", "")


def test_a_card_that_cannot_be_ranked_keeps_its_thumbs(qtbot: Any, pane: RankPane, filled: Any) -> None:
    first = pane.item
    press(qtbot, pane, "-", "x")
    wait(qtbot, lambda: pane.item.prompt.id != first.prompt.id)
    [saved] = filled.project.store.rankings(prompt_id=first.prompt.id)
    assert saved.outcome == "cannot-rank"
    assert [(one.response_id, one.flag) for one in saved.flags] == [(first.ids[0], "bad")]


def test_a_thumb_can_be_given_from_the_menu(qtbot: Any, pane: RankPane) -> None:
    press(qtbot, pane, "f")
    menu = pane.flag_menu
    assert menu is not None
    up, down = menu.actions()[:2]
    assert (up.text(), down.text()) == ("&+   A is good: thumbs up", "&-   A is bad: thumbs down")
    down.trigger()
    menu.close()
    assert pane.sheet is not None
    assert pane.sheet.state.thumb(0) == "bad"


def test_a_note_takes_digits_as_words_and_enter_gives_the_keys_back(qtbot: Any, pane: RankPane, filled: Any) -> None:
    first = pane.item
    press(qtbot, pane, "n", "1 is best = s x", K.Key_Return)
    assert pane.sheet is not None
    assert pane.sheet.state.places == (0, 0, 0, 0)
    submit(qtbot, pane, "1234")
    assert filled.project.store.rankings(prompt_id=first.prompt.id)[-1].note == "1 is best = s x"
    assert pane.view.footer.note.text() == ""


def test_the_mouse_places_without_dragging(qtbot: Any, pane: RankPane) -> None:
    button = pane.findChild(QToolButton, "place-C-2")
    assert button is not None
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)
    assert pane.sheet is not None
    assert pane.sheet.state.places == (0, 0, 2, 0)
    assert button.isChecked()
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)
    assert pane.sheet.state.places == (0, 0, 0, 0)
    qtbot.mouseClick(pane.view.board.cards[1].text.view.viewport(), Qt.MouseButton.LeftButton)
    assert pane.sheet.state.focus == 1
    press(qtbot, pane, "3")
    assert pane.sheet.state.places == (0, 3, 0, 0)


def test_names_stay_hidden_until_submitted_and_only_then_on_wish(qtbot: Any, pane: RankPane, filled: Any) -> None:
    def everything() -> str:
        labels = [w.text() for w in pane.findChildren(QWidget) if hasattr(w, "text") and callable(w.text)]
        names = [w.accessibleName() + w.accessibleDescription() + w.toolTip() for w in pane.findChildren(QWidget)]
        return " ".join(str(one) for one in labels + names)

    assert filled.base.name not in everything()
    submit(qtbot, pane, "1234")
    assert filled.base.name not in everything()
    press(qtbot, pane, "r")
    submit(qtbot, pane, "1234")
    line = pane.view.reveal_text
    assert line.isVisible()
    assert f"A {filled.base.name}" in line.text()
    last = filled.project.store.rankings(rater_id=pane._context.rater.id)[-1]
    assert last.blind
    pane.show_item(last.prompt_id)
    wait(qtbot, lambda: pane.item is not None and pane.item.prompt.id == last.prompt_id)
    submit(qtbot, pane, "1")
    assert not filled.project.store.rankings(prompt_id=last.prompt_id)[-1].blind  # its models had been shown


def test_the_order_is_shuffled_by_the_ranking_id_and_the_same_again(filled: Any) -> None:
    store, prompt = filled.project.store, filled.prompts[5]
    orders = {load_item(store, prompt.id, rater_id="me").ids for _ in range(40)}
    assert len(orders) > 5
    item = load_item(store, prompt.id, rater_id="me")
    again = load_item(store, prompt.id, rater_id="me", ranking_id=item.ranking_id)
    assert again == item


def test_identical_responses_are_tied_and_marked_and_empty_ones_say_so(
    qtbot: Any, context: Context, filled: Any, open_pane: Callable[[Context], RankPane]
) -> None:
    store, prompt = filled.project.store, filled.prompts[9]
    texts = ["same", "same", "   "]
    store.add_responses([Response(new_id(), prompt.id, text, created_at=now()) for text in texts]).result(10)
    pane = open_pane(context)
    pane.show_item(prompt.id)
    wait(qtbot, lambda: pane.item is not None and pane.item.prompt.id == prompt.id)
    cards = pane.view.board.cards
    shown = [card.shown_text() for card in cards]
    assert sorted(shown) == ["(empty)", "same", "same"]
    first, second = (i for i, text in enumerate(shown) if text == "same")
    assert [p.text() for p in cards[first]._pills if p.isVisible()] == [f"same as {'ABC'[second]}"]
    qtbot.mouseClick(cards[first], Qt.MouseButton.LeftButton)
    press(qtbot, pane, "1")
    assert pane.sheet.state.places[second] == 1
    press(qtbot, pane, "2")
    assert pane.sheet.state.complete
    pane.view.more.click()  # another to this prompt, since two are the same
    dialog = pane.findChild(SamplingDialog)
    wait(qtbot, lambda: dialog.plan() is not None)
    assert dialog.plan().prompt_ids == (prompt.id,)
    dialog.reject()
    pane.show_item(filled.prompts[6].id)
    wait(qtbot, lambda: pane.item.prompt.id == filled.prompts[6].id)
    assert not pane.view.more.isVisible()


def test_a_failed_save_keeps_the_card_and_can_be_tried_again(
    qtbot: Any, pane: RankPane, filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, first = filled.project.store, pane.item
    refused: Future[Any] = Future()
    refused.set_exception(UserError("this was not saved", "the disk is full", "free some space"))
    monkeypatch.setattr(store, "save_ranking", lambda _: refused)
    press(qtbot, pane, "2143", K.Key_Return)
    wait(qtbot, pane.view.warning.isVisible)
    assert "disk is full" in pane.view.warning.more.text()
    assert pane.item is first
    assert pane.sheet.state.places == (2, 1, 4, 3)
    monkeypatch.undo()
    qtbot.mouseClick(pane.view.warning.action, Qt.MouseButton.LeftButton)
    wait(qtbot, lambda: pane.item is not first)
    assert store.rankings(prompt_id=first.prompt.id)[0].id == first.ranking_id


def test_an_earlier_card_opens_from_the_list_and_its_correction_supersedes(
    qtbot: Any, pane: RankPane, filled: Any, settle: Settle
) -> None:
    store, first, old = filled.project.store, pane.item, filled.rankings[2]
    press(qtbot, pane, "3", "h")
    dialog = pane.findChild(RankHistoryDialog)
    settle()
    assert dialog.list.count() == 3
    qtbot.keyClicks(dialog.search, "topic 2")
    assert [dialog.list.item(i).isHidden() for i in range(3)] == [False, True, True]
    qtbot.keyClick(dialog.list, K.Key_Return)
    wait(qtbot, lambda: pane.item.prompt.id == old.prompt_id)
    assert pane.item.ids == old.shown_order
    assert pane.sheet.state.places == (1, 2, 2, 3)
    to_front(qtbot, pane)
    submit(qtbot, pane, "4")
    newest = store.rankings(prompt_id=old.prompt_id)[0]
    assert newest.supersedes == old.id
    assert newest.tiers[-1] == (old.shown_order[0],)
    assert pane.item is first  # the unfinished card is back, with its place
    assert pane.sheet.state.places == (3, 0, 0, 0)


def test_skipping_a_correction_leaves_the_earlier_ranking_alone(qtbot: Any, pane: RankPane, filled: Any) -> None:
    old, first = filled.rankings[0], pane.item
    pane.show_item(old.prompt_id)
    wait(qtbot, lambda: pane.item.prompt.id == old.prompt_id)
    press(qtbot, pane, "s")
    wait(qtbot, lambda: pane.item is first)
    assert filled.project.store.rankings(prompt_id=old.prompt_id) == [old]


def test_when_all_is_ranked_the_page_says_so_and_skipped_ones_can_return(
    qtbot: Any, pane: RankPane, filled: Any, settle: Settle
) -> None:
    skipped = pane.item
    press(qtbot, pane, "s")
    wait(qtbot, lambda: pane.item is not skipped)
    for _ in range(4):
        before = pane.item
        press(qtbot, pane, "1234", K.Key_Return)
        wait(qtbot, lambda before=before: pane.item is not before)
        settle()
    assert pane.item is None
    wait(qtbot, lambda: pane.view.empty_shown)
    assert "skipped" in pane.view.empty.title.text()
    qtbot.mouseClick(pane.view.empty.action, Qt.MouseButton.LeftButton)
    wait(qtbot, lambda: pane.item is not None)
    assert pane.item.prompt.id == skipped.prompt.id
    submit(qtbot, pane, "1234")
    wait(qtbot, lambda: pane.view.empty_shown)
    assert pane.view.empty.title.text() == "All caught up"


def test_a_skipped_prompt_that_came_back_and_was_ranked_is_skipped_no_more(
    qtbot: Any, pane: RankPane, filled: Any, settle: Settle
) -> None:
    skipped = pane.item
    assert skipped is not None
    press(qtbot, pane, "s")
    wait(qtbot, lambda: pane.item is not skipped)
    new = Response(new_id(), skipped.prompt.id, "New.", created_at=now())
    filled.project.store.add_responses([new]).result(10)
    settle()
    while pane.item is not None:
        submit(qtbot, pane, *"12345"[: len(pane.item.ids)])
        settle()
    wait(qtbot, lambda: pane.view.empty_shown)
    assert pane.view.empty.title.text() == "All caught up"


def test_who_gave_thumbs_alone_is_told_that_kto_can_learn_from_them(pane: RankPane) -> None:
    pane.view.show_empty(Counts(prompts=3, thumbs_up=2, thumbs_down=1), 0)
    assert pane.view.empty.title.text() == "All caught up"
    assert "3 thumbs: 2 up, 1 down. More responses" in pane.view.empty.text.text()


def test_an_empty_project_points_to_demonstrate(
    qtbot: Any, empty_project: Any, make_context: Any, open_pane: Any, said: Any
) -> None:
    pane = open_pane(make_context(empty_project))
    wait(qtbot, lambda: pane.view.empty_shown)
    assert pane.view.empty.title.text() == "No prompts yet"
    qtbot.mouseClick(pane.view.empty.action, Qt.MouseButton.LeftButton)
    assert said.places == [("demonstrate", {})]


def test_differences_are_marked_against_the_focused_response(qtbot: Any, pane: RankPane, settle: Settle) -> None:
    press(qtbot, pane, "d")
    settle()
    marks = [len(card.text.view.extraSelections()) for card in pane.view.board.cards]
    assert marks[0] == 0
    assert all(marks[1:])
    press(qtbot, pane, K.Key_Right)
    settle()
    assert len(pane.view.board.cards[1].text.view.extraSelections()) == 0
    press(qtbot, pane, "d")
    settle()
    assert not any(card.text.view.extraSelections() for card in pane.view.board.cards)


def test_time_stands_still_while_the_window_is_not_active(qtbot: Any, pane: RankPane) -> None:
    assert pane.stopwatch.running
    other = QLineEdit()
    qtbot.addWidget(other)
    other.show()
    to_front(qtbot, other)
    wait(qtbot, lambda: not pane.stopwatch.running)
    to_front(qtbot, pane)
    wait(qtbot, lambda: pane.stopwatch.running)
    pane.hide()
    assert not pane.stopwatch.running


def test_a_read_only_project_can_be_read_but_not_judged(
    qtbot: Any, context: Context, filled: Any, open_pane: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(context), "read_only", property(lambda _: True))
    pane = open_pane(context)
    wait(qtbot, lambda: pane.item is not None)
    before = pane.item
    press(qtbot, pane, "1234", K.Key_Return, "s")
    QApplication.processEvents()
    assert pane.item is before
    assert not pane.view.footer.submit.isEnabled()


def test_a_megabyte_without_a_space_does_not_hold_the_screen(
    qtbot: Any, context: Context, filled: Any, open_pane: Any
) -> None:
    prompt = filled.prompts[9]
    texts = ["x" * 1_000_000, "short"]
    filled.project.store.add_responses(
        [Response(new_id(), prompt.id, text, created_at=now()) for text in texts]
    ).result(10)
    pane = open_pane(context)
    pane.show_item(prompt.id)
    begun = time.perf_counter()
    wait(qtbot, lambda: pane.item is not None and pane.item.prompt.id == prompt.id)
    QApplication.processEvents()
    assert time.perf_counter() - begun < 2.0
    card = next(card for card in pane.view.board.cards if len(card.response()) > 100)
    card.copy()
    assert QGuiApplication.clipboard().text() == texts[0]


def test_every_control_has_a_name(pane: RankPane) -> None:
    for widget in pane.findChildren(QWidget):
        if widget.focusPolicy() != Qt.FocusPolicy.NoFocus and widget.isVisible():
            text = widget.text() if hasattr(widget, "text") and callable(widget.text) else ""
            assert widget.accessibleName() or str(text), widget


# ---- sampling ----------------------------------------------------------------------------------------------


def script(request: SampleRequest) -> list[Any]:
    replies: list[Any] = []
    for index in range(request.count):
        replies += [
            Token(id=request.id, prompt_index=0, response_index=index, text=word)
            for word in ("one ", "two ", f"{index}")
        ]
        replies.append(
            ResponseDone(
                id=request.id,
                prompt_index=0,
                response_index=index,
                text=f"one two {index}",
                finish_reason="stop" if index else "length",
                token_count=3,
                seed=7 + index,
            )
        )
    return [*replies, Finished(id=request.id)]


@pytest.fixture
def fresh(qtbot: Any, filled: Any, make_context: Any, fake_engine: Any, monkeypatch: Any, open_pane: Any) -> RankPane:
    """A pane of a rater who has ranked all that there is, over prompts 8 to 11 without responses."""
    from workbench.protocol import ModelRef
    from workbench.records import Ranking

    store = filled.project.store
    for one in filled.prompts[3:8]:
        ids = tuple(r.id for r in store.responses(one.id))
        store.save_ranking(Ranking(new_id(), one.id, filled.rater.id, tuple((i,) for i in ids))).result(10)
    fake_engine.on(SampleRequest, script)
    monkeypatch.setattr(
        type(filled.project), "resolve", lambda _, model: ModelRef(model_id=model.id, name=model.name, base="/x")
    )
    pane = open_pane(make_context(filled.project, filled.rater))
    wait(qtbot, lambda: pane.view.empty_shown)
    return pane


def plan(filled: Any, *prompts: int, count: int = 3, ahead: int = 3) -> SamplingPlan:
    return SamplingPlan(
        filled.base, tuple(filled.prompts[i].id for i in prompts), count, Sampling(0.7, 1.0, 0, 64), ahead
    )


def test_responses_stream_into_cards_and_become_the_card_to_rank(
    qtbot: Any, fresh: RankPane, filled: Any, fake_engine: Any
) -> None:
    fake_engine.hold()
    fresh.start_sampling(plan(filled, 8))
    wait(qtbot, lambda: bool(fake_engine.requests))
    assert fake_engine.requests[0].count == 3
    assert fake_engine.requests[0].sampling.temperature == 0.7
    fake_engine.release()
    wait(qtbot, lambda: "two" in "".join(card.shown_text() for card in fresh.view.board.cards))
    live = list(fresh.view.board.cards)
    wait(qtbot, lambda: fresh.item is not None)
    assert fresh.item.prompt.id == filled.prompts[8].id
    saved = filled.project.store.responses(filled.prompts[8].id)
    assert sorted(one.text for one in saved) == ["one two 0", "one two 1", "one two 2"]
    assert {one.sampling.seed for one in saved} == {7, 8, 9}
    assert {one.model_id for one in saved} == {filled.base.id}
    assert [card.shown_text() for card in live] == [one.text for one in fresh.item.responses]
    cut = next(i for i, one in enumerate(fresh.item.responses) if one.finish_reason == "length")
    assert [p.text() for p in live[cut]._pills if p.isVisible()] == ["cut off"]


def test_the_order_while_writing_is_the_order_of_the_card(
    qtbot: Any, fresh: RankPane, filled: Any, fake_engine: Any
) -> None:
    seen: list[list[str]] = []
    fresh.sampler.response_done.connect(lambda *_: seen.append([card.shown_text() for card in fresh.view.board.cards]))
    fresh.start_sampling(plan(filled, 8))
    wait(qtbot, lambda: fresh.item is not None)
    assert seen[-1] == [one.text for one in fresh.item.responses]


def test_prompts_are_prepared_ahead_and_no_further(
    qtbot: Any, fresh: RankPane, filled: Any, fake_engine: Any, settle: Settle
) -> None:
    fresh.start_sampling(plan(filled, 8, 9, 10, 11, ahead=1))
    wait(qtbot, lambda: fresh.item is not None)
    wait(qtbot, lambda: len(fake_engine.requests) == 2 and fresh.sampler.waiting)
    settle()
    assert len(fake_engine.requests) == 2  # the one on screen and one ahead
    assert "1 prompt ready ahead" in fresh.view.strip.text.text()
    submit(qtbot, fresh, "123")
    wait(qtbot, lambda: len(fake_engine.requests) == 3 and fresh.item is not None)
    submit(qtbot, fresh, "123")
    wait(qtbot, lambda: fresh.item is not None)
    submit(qtbot, fresh, "123")
    wait(qtbot, lambda: not fresh.sampler.running)
    assert len(fake_engine.requests) == 4
    assert not fresh.view.strip.isVisible()


def test_digits_wait_until_all_responses_are_whole(qtbot: Any, fresh: RankPane, filled: Any, fake_engine: Any) -> None:
    fake_engine.hold()
    fresh.start_sampling(plan(filled, 8))
    wait(qtbot, lambda: fresh.sampler.job is not None)
    press(qtbot, fresh, "1")
    assert "Still being written" in message(fresh)
    fake_engine.release()
    wait(qtbot, lambda: fresh.item is not None)


def test_stopping_keeps_what_is_whole(qtbot: Any, fresh: RankPane, filled: Any, fake_engine: Any) -> None:
    fake_engine.on(SampleRequest, lambda request: script(request)[:8])  # two are whole, the third never comes
    fresh.start_sampling(plan(filled, 8, 9))
    wait(qtbot, lambda: fresh.sampler.job is not None and fresh.sampler.job.whole == 2)
    qtbot.mouseClick(fresh.view.strip.stop, Qt.MouseButton.LeftButton)
    assert fake_engine.cancelled == [fake_engine.requests[0].id]
    wait(qtbot, lambda: fresh.item is not None)
    assert len(filled.project.store.responses(filled.prompts[8].id)) == 2
    assert not fresh.sampler.running


def test_an_engine_that_fails_says_why_and_gives_up_after_three(
    qtbot: Any, fresh: RankPane, filled: Any, fake_engine: Any
) -> None:
    fake_engine.on(
        SampleRequest, lambda request: [Failed(id=request.id, message="out of memory", cause="the model is large")]
    )
    fresh.start_sampling(plan(filled, 8, 9, 10, 11))
    wait(qtbot, lambda: not fresh.sampler.running)
    assert len(fake_engine.requests) == 3
    assert "out of memory" in fresh.view.banner.what.text().casefold()
    wait(qtbot, lambda: fresh.view.empty_shown)


def test_responses_that_cannot_be_saved_are_kept_for_another_try(
    qtbot: Any, fresh: RankPane, filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: Future[Any] = Future()
    refused.set_exception(UserError("this was not saved", "the disk is full", "free some space"))
    monkeypatch.setattr(filled.project.store, "add_responses", lambda _: refused)
    fresh.start_sampling(plan(filled, 8))
    wait(qtbot, lambda: fresh.sampler.unsaved == 1)
    assert fresh.unsaved() is not None
    assert "disk is full" in fresh.view.banner.more.text()
    monkeypatch.undo()
    qtbot.mouseClick(fresh.view.strip.retry, Qt.MouseButton.LeftButton)
    wait(qtbot, lambda: fresh.item is not None)
    assert fresh.unsaved() is None


def full_disk(_given: Any) -> Future[Any]:
    refused: Future[Any] = Future()
    refused.set_exception(UserError("this was not saved", "the disk is full", "free some space"))
    return refused


def test_trying_again_saves_the_card_as_it_stands_now(
    qtbot: Any, pane: RankPane, filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, first = filled.project.store, pane.item
    monkeypatch.setattr(store, "save_ranking", full_disk)
    press(qtbot, pane, "1234", K.Key_Return)
    wait(qtbot, pane.view.warning.isVisible)
    assert pane.unsaved() is not None
    for position in range(4):
        pane._on_place_clicked(position, 4 - position)
    monkeypatch.undo()
    qtbot.mouseClick(pane.view.warning.action, Qt.MouseButton.LeftButton)
    wait(qtbot, lambda: pane.item is not first)
    a, b, c, d = first.ids
    assert store.rankings(prompt_id=first.prompt.id)[-1].tiers == ((d,), (c,), (b,), (a,))
    assert pane.unsaved() is None


def test_a_refused_ranking_is_saved_when_the_window_goes(
    qtbot: Any, pane: RankPane, filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, first = filled.project.store, pane.item
    monkeypatch.setattr(store, "save_ranking", full_disk)
    press(qtbot, pane, "1234", K.Key_Return)
    wait(qtbot, pane.view.warning.isVisible)
    monkeypatch.undo()
    assert pane.unsaved() is None
    assert len(store.rankings(prompt_id=first.prompt.id)) == 1


def test_an_undo_that_failed_offers_no_saving(
    qtbot: Any, pane: RankPane, filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(qtbot, pane, "1234")
    monkeypatch.setattr(filled.project.store, "undo", lambda: full_disk(None))
    press(qtbot, pane, (K.Key_Z, CTRL))
    wait(qtbot, pane.view.warning.isVisible)
    assert not pane.view.warning.action.isVisible()
    assert "Not saved" not in message(pane)
    assert pane.stats.count == 1


def test_a_card_opened_while_another_is_being_saved_comes_next(
    qtbot: Any, pane: RankPane, filled: Any, monkeypatch: pytest.MonkeyPatch, settle: Settle
) -> None:
    store, held = filled.project.store, Future()
    asked: list[Any] = []
    real = store.save_ranking
    submit(qtbot, pane, "1234")
    first = pane.item
    undone = filled.rankings[0].prompt_id
    monkeypatch.setattr(store, "save_ranking", lambda one: asked.append(one) or held)
    press(qtbot, pane, "1234", K.Key_Return)
    pane.show_item(prompt_id=undone)
    wait(qtbot, lambda: bool(pane._aside))
    assert pane.item is first
    held.set_result(real(asked[0]).result(10))
    wait(qtbot, lambda: pane.item is not None and pane.item.prompt.id == undone)


def test_another_rater_is_shown_what_the_last_one_has_judged(
    qtbot: Any, pane: RankPane, context: Context, filled: Any, settle: Settle
) -> None:
    seen = []
    for _ in range(3):
        seen.append(pane.item.prompt.id)
        submit(qtbot, pane, "1234")
        settle()
    other = Rater(new_id(), "somebody else", created_at=now())
    filled.project.store.save_rater(other).result(10)
    context.rater = other
    context.hub.changed.emit(Change(frozenset({"raters"}), (other.id,)))
    settle()
    shown = pane.item.prompt.id
    assert shown not in {one.prompt.id for one in pane.feed._ready}  # it stands on screen already
    submit(qtbot, pane, "1234")
    settle()
    assert pane.item.prompt.id in {*seen, *(one.prompt_id for one in filled.rankings)}


def test_a_plan_that_was_replaced_before_its_model_was_found_draws_nothing(
    qtbot: Any, fresh: RankPane, filled: Any, fake_engine: Any, monkeypatch: pytest.MonkeyPatch, settle: Settle
) -> None:
    gate = threading.Event()
    other = ModelRecord(new_id(), "sft 1", "sft", "runs/x/final", base_id=filled.base.id, created_at=now())
    filled.project.store.save_model(other).result(10)

    def resolve(_project: Any, model: Any) -> ModelRef:
        if model.id == filled.base.id:
            gate.wait(20)
        return ModelRef(model_id=model.id, name=model.name, base="/m")

    monkeypatch.setattr(type(filled.project), "resolve", resolve)
    fake_engine.hold()
    fresh.start_sampling(plan(filled, 8))
    fresh.start_sampling(SamplingPlan(other, (filled.prompts[9].id,), 3, Sampling(0.7, 1.0, 0, 64), 3))
    gate.set()
    settle()
    wait(qtbot, lambda: bool(fake_engine.requests))
    fake_engine.release()
    wait(qtbot, lambda: not fresh.sampler.running)
    settle()
    assert [one.model.model_id for one in fake_engine.requests] == [other.id]
    assert filled.project.store.responses(filled.prompts[8].id) == []
    assert {one.model_id for one in filled.project.store.responses(filled.prompts[9].id)} == {other.id}


def test_a_model_that_is_gone_does_not_end_the_plan_after_it(
    qtbot: Any, fresh: RankPane, filled: Any, monkeypatch: pytest.MonkeyPatch, settle: Settle
) -> None:
    gate, turns = threading.Event(), iter([True, False])

    def resolve(_project: Any, model: Any) -> ModelRef:
        if next(turns):
            gate.wait(20)
            raise UserError("the model is gone")
        return ModelRef(model_id=model.id, name=model.name, base="/m")

    monkeypatch.setattr(type(filled.project), "resolve", resolve)
    fresh.start_sampling(plan(filled, 8))
    fresh.start_sampling(plan(filled, 9))
    wait(qtbot, lambda: bool(filled.project.store.responses(filled.prompts[9].id)))
    gate.set()
    settle()
    assert not fresh.view.banner.isVisible()


def test_home_can_ask_for_responses(qtbot: Any, pane: RankPane) -> None:
    pane.show_item(sample="1")
    assert pane.findChild(SamplingDialog) is not None


def test_nothing_is_drawn_in_a_window_that_only_reads(
    qtbot: Any, filled: Any, make_context: Any, open_pane: Any, said: Any
) -> None:
    path = filled.project.path
    filled.project.close()
    with Project.open(path, read_only=True) as project:
        pane = open_pane(make_context(project))
        assert not pane.view.header.sample.isEnabled()
        assert "reading only" in pane.view.header.sample.toolTip()
        press(qtbot, pane, "g")
        assert pane.findChild(SamplingDialog) is None
        assert any("reading only" in text for text, _ in said.notices)


@pytest.mark.parametrize("width", [640, 712, 1100])
def test_the_footer_lays_nothing_over_another_and_gives_up_the_keys_first(qtbot: Any, theme: Any, width: int) -> None:
    page = QWidget()
    qtbot.addWidget(page)
    footer = RankFooter()
    footer.setParent(page)
    page.show()
    footer.setGeometry(0, 0, width, 64)
    footer.show()
    QApplication.processEvents()
    parts = [footer.note, footer.undo, footer.flag, footer.skip, footer.cannot, footer.submit, *footer._act_keys]
    shown = [part.geometry() for part in parts if part.isVisible()]
    assert not [(a, b) for a, b in itertools.combinations(shown, 2) if a.intersects(b)]
    assert all(one.left() >= 0 and one.right() < width for one in shown)
    assert footer._act_keys[0].isVisible() is (width == 1100)
