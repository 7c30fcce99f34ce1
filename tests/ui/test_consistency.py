"""The Consistency view, and cards that are asked for again in Rank."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace

import pytest
from PySide6.QtWidgets import QWidget

from tests.ui.conftest import response
from tests.ui.waiting import open_pane, wait
from ui.consistency_dialog import ConsistencyDialog
from ui.rank_chrome import RankHeader
from ui.rank_pane import RankPane
from ui.re_ask import card_of, every_of, set_every
from ui.widgets import column
from workbench.agreement import measure
from workbench.agreement_words import findings
from workbench.errors import UserError
from workbench.ids import new_id
from workbench.re_asks import re_asks
from workbench.records import Change, Rater


@pytest.fixture
def dialog(qtbot, context, settle):
    def make():
        made = ConsistencyDialog(context)
        qtbot.addWidget(made)
        made.show()
        settle()
        return made

    return make


def test_every_finding_has_a_card_and_what_is_not_known_says_what_is_missing(dialog, filled):
    made = dialog()
    assert list(made.cards) == [one.key for one in findings(measure(filled.project.store))]
    assert made.cards["raters"].number.text() == "–"
    assert "by two raters" in made.cards["raters"].evidence.text()
    assert not made.cards["raters"].bar.isVisible()
    assert made.cards["length"].bar.isVisible()
    assert not made.two_raters.isVisible()


def test_raters_are_compared_two_by_two_once_there_are_three(dialog, filled):
    store = filled.project.store
    for name in ("Ben", "Cy"):
        store.save_rater(Rater(name, name)).result(10)
        store.save_ranking(replace(filled.rankings[0], id=new_id(), rater_id=name)).result(10)
    made = dialog()
    assert made.cards["raters"].number.text() == "100%"
    assert made.table.rowCount() == 3
    assert made.table.item(0, 0).text() == "me, Ben · Cohen’s kappa 1.00"
    assert made.two_raters.isVisible()


def test_cards_stand_side_by_side_where_there_is_room(dialog):
    made = dialog()
    made.resize(1200, 800)
    assert made.cards["raters"].y() == made.cards["oneself"].y()
    made.resize(500, 800)
    assert made._columns == 1


def test_how_often_a_card_is_asked_for_again_is_kept(dialog, context):
    made = dialog()
    assert made.every.value() == every_of(context.settings) == 20
    made.every.setValue(0)
    assert every_of(context.settings) == 0
    assert made.every.text() == "never"


def test_a_labels_project_that_is_closed_says_so(dialog, filled):
    filled.project.store.close()
    assert "closed" in dialog().banner.what.text()


def test_the_button_takes_no_room_from_a_narrow_window_and_its_key_stays(qtbot, theme):
    page, header = QWidget(), RankHeader()
    page.setLayout(column(header))
    qtbot.addWidget(page)
    page.resize(1100, 60)
    page.show()
    assert header.consistency.isVisible()
    narrow = header.minimumSizeHint().width()
    page.resize(narrow, 60)
    assert page.width() == header.width() == narrow
    assert not header.consistency.isVisible()
    wait(qtbot, lambda: header.minimumSizeHint().width() == narrow)
    page.resize(1100, 60)
    assert header.consistency.isVisible()


# ---- asked again ----


def test_a_card_asked_again_shows_the_same_responses_in_another_order_and_no_answer(filled):
    first = filled.rankings[0]
    item = card_of(filled.project.store, first)
    assert sorted(item.ids) == sorted(first.shown_order)
    assert item.ids != first.shown_order
    assert (item.places, item.corrects, item.re_asks) == ((), None, first)


def test_responses_that_came_later_are_not_in_the_card_that_is_asked_again(filled):
    first = filled.rankings[0]
    filled.project.store.add_responses([response(filled.prompts[0], "a fifth")]).result(10)
    assert sorted(card_of(filled.project.store, first).ids) == sorted(first.shown_order)


@pytest.fixture
def rank(qtbot, context, settle, filled):
    """A pane that asks again after each judgement; the three that are there are old enough."""
    set_every(context.settings, 1)
    for index, one in enumerate(filled.rankings):  # as if of years ago: a correction of each
        filled.rankings[index] = old = replace(one, id=new_id(), created_at="2020-01-01T00:00:00+00:00")
        filled.project.store.save_ranking(old).result(10)
    made = RankPane(context)
    open_pane(qtbot, made, settle)
    wait(qtbot, lambda: made.item is not None)
    yield made
    made.sampler.stop()
    settle()


def judge(qtbot, pane, settle):
    before = pane.item
    for place in range(len(before.ids)):
        pane.sheet.place(place, place + 1)
    pane._finish("ranked")
    wait(qtbot, lambda: pane.item is not before)
    settle()
    return before


def test_an_answer_is_stored_beside_the_label_and_counts_nothing(rank, qtbot, settle, filled):
    store = filled.project.store
    judge(qtbot, rank, settle)  # a card of the queue; what is due is read meanwhile
    judge(qtbot, rank, settle)
    assert rank.item.re_asks is not None
    assert rank.item.re_asks.id in {one.id for one in filled.rankings}
    before, session = store.counts(), rank.stats.count
    answered = judge(qtbot, rank, settle)
    [asked] = re_asks(store)
    assert (asked.first.id, asked.again.id) == (answered.re_asks.id, answered.ranking_id)
    assert store.counts() == before
    assert rank.stats.count == session == 2


def test_an_answer_that_is_undone_is_asked_for_again(rank, qtbot, settle, filled):
    judge(qtbot, rank, settle)
    judge(qtbot, rank, settle)
    answered = judge(qtbot, rank, settle)
    rank.undo()
    wait(qtbot, lambda: rank.item is not None and rank.item.re_asks == answered.re_asks)
    settle()
    assert re_asks(filled.project.store) == []
    assert rank.item.places == ()


def test_0_never_asks_again(rank, qtbot, settle, context):
    set_every(context.settings, 0)
    for _ in range(3):
        assert judge(qtbot, rank, settle).re_asks is None


@pytest.fixture
def asked(rank, qtbot, settle):
    """The same pane with a card on screen that is asked again."""
    judge(qtbot, rank, settle)
    judge(qtbot, rank, settle)
    assert rank.item.re_asks is not None
    return rank


def another_rater(context, settle):
    context.rater = Rater(new_id(), "somebody else")
    context.project.store.save_rater(context.rater).result(10)
    context.hub.changed.emit(Change(frozenset({"raters"}), (context.rater.id,)))
    settle()


def correct(store, first):
    store.save_ranking(replace(first, id=new_id(), tiers=first.tiers[::-1])).result(10)


def test_another_rater_is_not_asked_for_what_the_last_one_said(asked, qtbot, settle, context, said):
    asked.sheet.place(0, 1)
    another_rater(context, settle)
    assert asked.item is not None
    assert asked.item.re_asks is None
    assert "put away" in said.notices[-1][0]
    judge(qtbot, asked, settle)
    assert asked.unsaved() is None


def test_the_answer_of_the_last_rater_is_taken_back_without_asking_the_next_one(asked, qtbot, settle, context):
    judge(qtbot, asked, settle)
    another_rater(context, settle)
    asked.undo()
    wait(qtbot, lambda: not asked.acts.busy)
    settle()
    assert re_asks(context.project.store) == []
    assert asked.item.re_asks is None


def test_a_card_goes_when_what_it_repeats_is_corrected_meanwhile(asked, settle, filled):
    put_away = asked.item
    correct(filled.project.store, put_away.re_asks)
    settle()
    assert asked.item is not None
    assert asked.item is not put_away
    assert asked.item.re_asks != put_away.re_asks
    assert put_away.prompt.id not in asked.feed._held


def test_a_card_that_was_put_aside_goes_too(asked, settle, filled):
    put_aside = asked.item
    asked.show_item(prompt_id=filled.prompts[7].id)
    settle()
    assert [work.item for work in asked._aside] == [put_aside]
    correct(filled.project.store, put_aside.re_asks)
    settle()
    assert asked._aside == []
    assert asked.item.prompt.id == filled.prompts[7].id


def test_what_is_ready_is_dropped_when_its_prompt_is_archived(rank, qtbot, settle, filled):
    judge(qtbot, rank, settle)
    due = rank.re_asks._ready
    filled.project.store.archive_prompts([due.prompt.id]).result(10)
    settle()
    judge(qtbot, rank, settle)
    assert rank.item.re_asks is not None
    assert rank.item.prompt.id != due.prompt.id


def test_a_ranking_is_not_asked_for_right_after_it_was_corrected(rank, qtbot, settle):
    judge(qtbot, rank, settle)
    due = rank.re_asks._ready.re_asks
    rank.way_back.correct(due)
    wait(qtbot, lambda: rank.item.corrects == due)
    before = rank.item
    rank.sheet.place(0, 4)
    rank._finish("ranked")
    wait(qtbot, lambda: rank.item is not before)
    judge(qtbot, rank, settle)  # the card over which the correction was opened
    assert rank.item.re_asks != due


def test_a_card_that_cannot_be_saved_can_be_skipped(asked, qtbot, settle, filled, monkeypatch, said):
    refused = Future()
    refused.set_exception(UserError("this answer cannot be saved", "it is not there", "skip the card"))
    monkeypatch.setattr(filled.project.store, "save_re_ask", lambda *_: refused)
    before = asked.item
    for position in range(len(before.ids)):
        asked.sheet.place(position, position + 1)
    asked.submit()
    wait(qtbot, asked.view.warning.isVisible)
    asked.skip()
    wait(qtbot, lambda: asked.item is not before)
    assert asked.item.re_asks is None
    assert asked.unsaved() is None
    assert "not noted" in said.notices[-1][0]


def test_new_responses_come_up_after_an_undo_that_found_something_newer(asked, qtbot, settle, filled, context):
    set_every(context.settings, 0)
    prompt_id = judge(qtbot, asked, settle).prompt.id
    [prompt] = [one for one in filled.prompts if one.id == prompt_id]
    filled.project.store.add_responses([response(prompt, "New.")]).result(10)
    settle()
    asked.undo()
    wait(qtbot, lambda: not asked.acts.busy)
    settle()
    assert "Something else was done since" in asked.view.footer.message.text()
    seen = set()
    while asked.item is not None:
        seen.add(judge(qtbot, asked, settle).prompt.id)
    assert prompt_id in seen


def test_who_skips_an_earlier_card_has_skipped_no_prompt(asked, qtbot, settle, context):
    set_every(context.settings, 0)
    before = asked.item
    asked.skip()
    wait(qtbot, lambda: asked.item is not before)
    while asked.item is not None:
        judge(qtbot, asked, settle)
    wait(qtbot, lambda: asked.view.empty_shown)
    assert asked.view.empty.title.text() == "All caught up"
