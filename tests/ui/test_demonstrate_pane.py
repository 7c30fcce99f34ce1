from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QAction
from PySide6.QtWidgets import QApplication, QMenu, QMessageBox, QWidget

from tests.ui.waiting import open_pane, to_front, wait
from ui.context import Context
from ui.demonstrate_pane import DemonstratePane
from ui.operations import operations
from ui.prompt_dialog import PromptDialog, tags_of
from ui.prompt_list import ROW, PromptListModel, PromptQuery
from ui.prompt_queue import PromptQueue
from ui.revisions_dialog import RevisionsDialog, gathered
from ui.token_counter import estimate
from ui.turns_editor import TurnsEditor
from workbench.errors import UserError
from workbench.ids import new_id, now
from workbench.protocol import (
    CountTokensRequest,
    Failed,
    Finished,
    ModelRef,
    ResponseDone,
    SampleRequest,
    Token,
    TokenCounts,
)
from workbench.records import Demonstration, Message, Prompt

K = Qt.Key
CTRL = Qt.KeyboardModifier.ControlModifier
SHIFT = Qt.KeyboardModifier.ShiftModifier
Settle = Callable[[], None]


@pytest.fixture(autouse=True)
def resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.project import Project

    monkeypatch.setattr(
        Project, "resolve", lambda _, model: ModelRef(model_id=model.id, name=model.name, base="/models/tiny")
    )


@pytest.fixture
def pane(qtbot: Any, context: Context, settle: Settle) -> Iterator[DemonstratePane]:
    made = DemonstratePane(context)
    open_pane(qtbot, made, settle)
    wait(qtbot, lambda: made.prompt is not None)
    yield made
    made.editor.leave()
    settle()


def open_prompt(qtbot: Any, pane: DemonstratePane, prompt: Prompt) -> None:
    pane.show_item(prompt_id=prompt.id)
    wait(qtbot, lambda: pane.prompt is not None and pane.prompt.id == prompt.id)
    pane.editor.edit.setFocus()


def type_words(qtbot: Any, pane: DemonstratePane, words: str) -> None:
    qtbot.keyClicks(pane.editor.edit, words)


def newest(filled: Any, prompt: Prompt) -> Demonstration | None:
    found: Demonstration | None = filled.project.store.demonstration_for(prompt.id)
    return found


def test_words_are_on_disk_within_a_second_of_the_last_key(qtbot: Any, pane: DemonstratePane, filled: Any) -> None:
    prompt = filled.prompts[6]
    open_prompt(qtbot, pane, prompt)
    type_words(qtbot, pane, "Say it plainly.")
    last_key = time.monotonic()
    wait(qtbot, lambda: newest(filled, prompt) is not None)
    assert time.monotonic() - last_key < 1.5  # a second, and what a busy machine adds
    saved = newest(filled, prompt)
    assert saved is not None
    assert (saved.text, saved.status, saved.author) == ("Say it plainly.", "draft", filled.rater.id)
    wait(qtbot, lambda: pane.saved.text() == "Saved · draft")


def test_somebody_who_never_pauses_is_saved_all_the_same(qtbot: Any, pane: DemonstratePane, filled: Any) -> None:
    prompt = filled.prompts[6]
    open_prompt(qtbot, pane, prompt)
    deadline = time.monotonic() + 20
    while newest(filled, prompt) is None:
        assert time.monotonic() < deadline
        type_words(qtbot, pane, "word ")
        QApplication.processEvents()
    assert pane.editor.state.dirty or newest(filled, prompt).text == pane.editor.text


def test_saved_is_said_only_after_the_commit(
    qtbot: Any, pane: DemonstratePane, filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, held = filled.project.store, Future()
    asked: list[Demonstration] = []
    real = store.save_demonstration

    def slow(one: Demonstration) -> Future[Any]:
        asked.append(one)
        return held

    open_prompt(qtbot, pane, filled.prompts[6])
    monkeypatch.setattr(store, "save_demonstration", slow)
    type_words(qtbot, pane, "x")
    assert pane.saved.text() == "Typing…"
    wait(qtbot, lambda: bool(asked))
    assert pane.saved.text() == "Saving…"
    monkeypatch.undo()
    held.set_result(real(asked[0]).result(10))
    wait(qtbot, lambda: pane.saved.text().startswith("Saved"))


def test_ctrl_enter_makes_it_final_and_goes_to_the_next_prompt(qtbot: Any, pane: DemonstratePane, filled: Any) -> None:
    prompt = filled.prompts[6]
    open_prompt(qtbot, pane, prompt)
    type_words(qtbot, pane, "A whole answer.")
    qtbot.keyClick(pane.editor.edit, K.Key_Return, CTRL)
    wait(qtbot, lambda: pane.prompt.id == filled.prompts[7].id)
    saved = newest(filled, prompt)
    assert saved is not None
    assert (saved.text, saved.status) == ("A whole answer.", "final")
    line = pane.queue.model.row_of(prompt.id)
    assert pane.queue.model.row(line).state == "final"
    assert pane.editor.edit.hasFocus()


def test_words_typed_just_before_leaving_are_saved_at_once(qtbot: Any, pane: DemonstratePane, filled: Any) -> None:
    prompt = filled.prompts[6]
    open_prompt(qtbot, pane, prompt)
    type_words(qtbot, pane, "last words")
    pane.hide()
    filled.project.store.wait()
    assert newest(filled, prompt).text == "last words"


def test_an_empty_answer_cannot_be_final(qtbot: Any, pane: DemonstratePane, filled: Any) -> None:
    open_prompt(qtbot, pane, filled.prompts[6])
    qtbot.keyClick(pane.editor.edit, K.Key_Return, CTRL)
    assert "Write something first" in pane.saved.text()
    assert newest(filled, filled.prompts[6]) is None


def test_a_failed_save_keeps_the_text_says_why_and_is_tried_again(
    qtbot: Any, pane: DemonstratePane, filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, store = filled.prompts[6], filled.project.store
    refused: Future[Any] = Future()
    refused.set_exception(UserError("this was not saved", "the disk is full", "free some space"))
    open_prompt(qtbot, pane, prompt)
    monkeypatch.setattr(store, "save_demonstration", lambda _: refused)
    type_words(qtbot, pane, "precious words")
    wait(qtbot, pane.banner.isVisible)
    assert "disk is full" in pane.banner.more.text()
    assert pane.unsaved() is not None
    open_prompt(qtbot, pane, filled.prompts[7])  # looking elsewhere loses nothing
    open_prompt(qtbot, pane, prompt)
    wait(qtbot, lambda: pane.editor.edit.toPlainText() == "precious words")
    monkeypatch.undo()
    wait(qtbot, pane.banner.isVisible)
    qtbot.mouseClick(pane.banner.action, Qt.MouseButton.LeftButton)
    wait(qtbot, lambda: pane.saved.text() == "Saved · draft")
    assert newest(filled, prompt).text == "precious words"
    assert pane.unsaved() is None
    assert not pane.banner.isVisible()


def test_looking_at_a_text_changes_nothing_even_where_the_editor_is_lossy(
    qtbot: Any, pane: DemonstratePane, filled: Any, settle: Settle
) -> None:
    prompt, text = filled.prompts[6], "first\r\nsecond\u00a0line"
    filled.project.store.save_demonstration(Demonstration(new_id(), prompt.id, text, "me", created_at=now())).result(10)
    open_prompt(qtbot, pane, prompt)
    wait(qtbot, pane.lossy.isVisible)
    assert "Windows line ends" in pane.lossy.text()
    qtbot.keyClick(pane.editor.edit, K.Key_Return, CTRL)  # final, unedited: exactly what was stored
    wait(qtbot, lambda: newest(filled, prompt).status == "final")
    assert newest(filled, prompt).text == text
    open_prompt(qtbot, pane, prompt)
    wait(qtbot, lambda: pane.editor.text == text)
    qtbot.keyClick(pane.editor.edit, K.Key_End, CTRL)
    type_words(qtbot, pane, "!")
    wait(qtbot, lambda: newest(filled, prompt).text == "first\nsecond\u00a0line!")


def test_editing_a_final_one_makes_it_a_draft_and_typing_it_back_makes_it_final(
    qtbot: Any, pane: DemonstratePane, filled: Any
) -> None:
    prompt = filled.prompts[0]
    open_prompt(qtbot, pane, prompt)
    wait(qtbot, lambda: "final" in pane.saved.text())
    qtbot.keyClick(pane.editor.edit, K.Key_End, CTRL)
    type_words(qtbot, pane, "x")
    wait(qtbot, lambda: newest(filled, prompt).status == "draft")
    wait(qtbot, lambda: "edited since it was final" in pane.saved.text())
    qtbot.keyClick(pane.editor.edit, K.Key_Backspace)
    wait(qtbot, lambda: newest(filled, prompt).status == "final")


def test_a_revision_can_be_brought_back(qtbot: Any, pane: DemonstratePane, filled: Any, settle: Settle) -> None:
    prompt = filled.prompts[0]
    open_prompt(qtbot, pane, prompt)
    before = newest(filled, prompt).text
    qtbot.keyClick(pane.editor.edit, K.Key_A, CTRL)
    type_words(qtbot, pane, "something else")
    wait(qtbot, lambda: newest(filled, prompt).text == "something else")
    pane.open_revisions()
    settle()
    dialog = pane.findChild(RevisionsDialog)
    assert dialog.list.count() == 2
    assert not dialog.restore.isEnabled()  # the newest stands already
    dialog.list.setCurrentRow(1)
    assert dialog.text.text() == before
    qtbot.mouseClick(dialog.restore, Qt.MouseButton.LeftButton)
    wait(qtbot, lambda: newest(filled, prompt).text == before)
    assert len(filled.project.store.demonstration_history(prompt.id)) == 3


def test_steps_of_one_sitting_are_one_line_of_the_history() -> None:
    def at(second: int, text: str, status: str = "draft", author: str = "me") -> Demonstration:
        when = f"2026-01-01T00:{second // 60:02d}:{second % 60:02d}+00:00"
        return Demonstration(str(second), "p", text, author, status, created_at=when)  # type: ignore[arg-type]

    history = [at(60, "hello world"), at(30, "hello wo"), at(10, "hello"), at(0, "a model's draft", author="m")]
    assert [one.id for one in gathered(history)] == ["60", "0"]
    deleted = [at(60, "hi"), at(30, "a long text that was deleted")]
    assert [one.id for one in gathered(deleted)] == ["60", "30"]
    finals = [at(60, "hello"), at(30, "hello", "final")]
    assert [one.id for one in gathered(finals)] == ["60", "30"]


# ---- the queue ---------------------------------------------------------------------------------------------


def titles(pane: DemonstratePane) -> list[str]:
    model = pane.queue.model
    return [model.index(i).data() for i in range(model.rowCount())]


def test_search_tag_and_need_filter_the_queue(qtbot: Any, pane: DemonstratePane, filled: Any) -> None:
    qtbot.keyClicks(pane.queue.search, "topic 7")
    wait(qtbot, lambda: titles(pane) == [filled.prompts[7].title])
    pane.queue.search.clear()
    wait(qtbot, lambda: len(titles(pane)) == 12)
    pane.queue.need.setCurrentIndex(pane.queue.need.findData("final"))
    wait(qtbot, lambda: len(titles(pane)) == 4)
    pane.queue.tag.setCurrentIndex(pane.queue.tag.findData("science"))
    wait(qtbot, lambda: len(titles(pane)) == 2)
    pane.queue.need.setCurrentIndex(pane.queue.need.findData("demonstration"))
    wait(qtbot, lambda: len(titles(pane)) == 4)


def test_a_hundred_thousand_prompts_are_read_a_page_at_a_time(
    qtbot: Any, empty_project: Any, make_context: Any, settle: Settle
) -> None:
    store = empty_project.store
    many = [Prompt(new_id(), (Message("user", f"question {i}"),), created_at=now()) for i in range(1000)]
    store.add_prompts(many).result(60)
    model = PromptListModel(make_context(empty_project))
    model.show(PromptQuery())
    settle()
    assert model.rowCount() == 200
    assert model.index(199).data(ROW).prompt.id == many[199].id
    assert model.canFetchMore(model.index(-1))
    while model.has_more:
        model.fetchMore(model.index(-1))
        settle()
    assert model.rowCount() == 1000
    assert [model.row(i).prompt.id for i in range(1000)] == [one.id for one in many]


def test_the_queue_is_a_sound_model(context: Context, qtmodeltester: Any, settle: Settle) -> None:
    model = PromptListModel(context)
    qtmodeltester.check(model, force_py=True)
    model.show(PromptQuery())
    settle()
    model.set_state(model.row(0).prompt.id, "draft")
    model.show(PromptQuery(tag="science"))
    settle()
    assert model.rowCount() == 6
    assert model.row_of("unknown") == -1
    assert model.next_open(-1) == 2  # the first two are final


def test_an_empty_project_says_what_a_demonstration_is(
    qtbot: Any, empty_project: Any, make_context: Any, settle: Settle
) -> None:
    pane = DemonstratePane(make_context(empty_project))
    qtbot.addWidget(pane)
    pane.show()
    pane.activate()
    settle()
    wait(qtbot, pane.empty.isVisible)


def test_a_prompt_moved_elsewhere_shows_its_new_split(
    qtbot: Any, pane: DemonstratePane, filled: Any, settle: Settle
) -> None:
    prompt = filled.prompts[6]
    open_prompt(qtbot, pane, prompt)
    filled.project.store.set_split([prompt.id], "held-out").result(10)
    wait(qtbot, lambda: pane._pills[0].text() == "held-out")


# ---- a model's draft ---------------------------------------------------------------------------------------


def script(request: SampleRequest) -> list[Any]:
    words = [Token(id=request.id, prompt_index=0, response_index=0, text=word) for word in ("A ", "draft ", "text")]
    done = ResponseDone(
        id=request.id,
        prompt_index=0,
        response_index=0,
        text="A draft text",
        finish_reason="stop",
        token_count=3,
        seed=1,
    )
    return [*words, done, Finished(id=request.id)]


def test_a_models_draft_streams_in_and_keeps_what_stood_there(
    qtbot: Any, pane: DemonstratePane, filled: Any, fake_engine: Any
) -> None:
    prompt = filled.prompts[6]
    fake_engine.on(SampleRequest, script)
    open_prompt(qtbot, pane, prompt)
    type_words(qtbot, pane, "my own words")
    qtbot.keyClick(pane.editor.edit, K.Key_D, CTRL)  # not saved yet: kept as a revision first
    wait(qtbot, lambda: newest(filled, prompt) is not None and newest(filled, prompt).text == "A draft text")
    history = filled.project.store.demonstration_history(prompt.id)
    assert [one.text for one in history] == ["A draft text", "my own words"]
    assert [one.author for one in history] == [filled.base.id, filled.rater.id]
    asked = next(one for one in fake_engine.requests if isinstance(one, SampleRequest))
    assert asked.prompts == (prompt.messages,)
    assert not pane.editor.edit.isReadOnly()
    type_words(qtbot, pane, "!")
    wait(qtbot, lambda: newest(filled, prompt).author == filled.rater.id)


def test_a_draft_can_be_stopped_and_what_has_come_stays(
    qtbot: Any, pane: DemonstratePane, filled: Any, fake_engine: Any
) -> None:
    prompt = filled.prompts[6]
    fake_engine.on(SampleRequest, lambda request: script(request)[:2])
    open_prompt(qtbot, pane, prompt)
    qtbot.mouseClick(pane.draft, Qt.MouseButton.LeftButton)
    wait(qtbot, lambda: pane.editor.edit.toPlainText() == "A draft ")
    assert pane.editor.edit.isReadOnly()
    qtbot.keyClick(pane.editor.edit, K.Key_Escape)
    assert fake_engine.cancelled
    wait(qtbot, lambda: newest(filled, prompt) is not None and newest(filled, prompt).text == "A draft ")
    assert not pane.editor.edit.isReadOnly()


def test_a_draft_that_fails_leaves_the_text_as_it_was(
    qtbot: Any, pane: DemonstratePane, filled: Any, fake_engine: Any
) -> None:
    prompt = filled.prompts[0]
    text = newest(filled, prompt).text
    fake_engine.on(SampleRequest, lambda request: [Failed(id=request.id, message="out of memory", remedy="wait")])
    open_prompt(qtbot, pane, prompt)
    qtbot.mouseClick(pane.draft, Qt.MouseButton.LeftButton)
    wait(qtbot, pane.banner.isVisible)
    assert "out of memory" in pane.banner.what.text().casefold()
    assert pane.editor.edit.toPlainText() == text
    assert newest(filled, prompt).text == text


def test_tokens_are_an_estimate_until_the_engine_has_counted(
    qtbot: Any, pane: DemonstratePane, filled: Any, fake_engine: Any
) -> None:
    prompt = filled.prompts[6]
    fake_engine.on(CountTokensRequest, lambda request: [TokenCounts(id=request.id, counts=(2100,), context=2048)])
    open_prompt(qtbot, pane, prompt)
    assert pane.tokens.text() == f"~{estimate(prompt.messages, ''):,} tokens"
    assert not fake_engine.requests  # the engine is not started for a look
    type_words(qtbot, pane, "some words")
    assert pane.tokens.text().startswith("~")
    wait(qtbot, lambda: pane.tokens.text() == "2,100 of 2,048 tokens: longer than the context")
    assert fake_engine.requests[0].rows == ((prompt.messages, "some words"),)
    type_words(qtbot, pane, "!")
    assert pane.tokens.text().startswith("~")


# ---- new prompts -------------------------------------------------------------------------------------------


def dialog_of(qtbot: Any, pane: DemonstratePane) -> PromptDialog:
    qtbot.keyClick(pane.editor.edit, K.Key_N, CTRL | SHIFT)
    dialog = pane.findChild(PromptDialog)
    assert dialog is not None
    to_front(qtbot, dialog)
    return dialog


def answer(dialog: PromptDialog, words: str) -> None:
    """Answer the question whether what is written may be lost."""
    box = dialog.findChildren(QMessageBox)[-1]
    next(one for one in box.buttons() if one.text() == words).click()


def test_a_prompt_of_several_turns_is_written_and_opened(
    qtbot: Any, pane: DemonstratePane, filled: Any, settle: Settle
) -> None:
    open_prompt(qtbot, pane, filled.prompts[6])
    dialog = dialog_of(qtbot, pane)
    qtbot.keyClicks(dialog.editor.turns[0].text, "How do I boil an egg?")
    dialog.editor.add_turn()
    assert dialog.editor.turns[1].message().role == "assistant"
    assert not dialog.add.isEnabled()
    qtbot.keyClicks(dialog.editor.turns[1].text, "Seven minutes.")
    dialog.editor.add_turn()
    qtbot.keyClicks(dialog.editor.turns[2].text, "And a soft one?")
    dialog.editor.add_system()
    qtbot.keyClicks(dialog.editor.turns[0].text, "You are brief.")
    dialog.tags.setText("kitchen, short,  kitchen")
    dialog.split.setCurrentIndex(1)
    to_front(qtbot, dialog)
    qtbot.keyClick(dialog.editor.turns[3].text, K.Key_Return, CTRL)
    wait(qtbot, lambda: pane.prompt.title == "And a soft one?")
    assert pane.prompt.messages == (
        Message("system", "You are brief."),
        Message("user", "How do I boil an egg?"),
        Message("assistant", "Seven minutes."),
        Message("user", "And a soft one?"),
    )
    assert pane.prompt.tags == ("kitchen", "short")
    assert pane.prompt.split == "held-out"


def test_the_same_or_nearly_the_same_prompt_is_pointed_out(qtbot: Any, pane: DemonstratePane, filled: Any) -> None:
    existing = filled.prompts[7]
    open_prompt(qtbot, pane, filled.prompts[6])
    dialog = dialog_of(qtbot, pane)
    dialog.editor.turns[0].text.setPlainText(existing.title)
    wait(qtbot, lambda: dialog.banner.what.text() == "This prompt exists already")
    dialog.editor.turns[0].text.setPlainText("how do I explain topic 7 to my friend in two sentences")
    wait(qtbot, lambda: dialog.banner.what.text().startswith("Nearly the same"))
    assert dialog.add.isEnabled()
    qtbot.mouseClick(dialog.banner.action, Qt.MouseButton.LeftButton)
    assert pane.prompt.id != existing.id  # these words are not in the project yet
    answer(dialog, "Throw it away")
    wait(qtbot, lambda: pane.prompt.id == existing.id)


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([("user", "a")], ""),
        ([], "Write what the user says."),
        ([("system", " "), ("user", " ")], "Write what the user says."),
        ([("user", "a"), ("assistant", " "), ("user", "c")], "Turn 2 is empty."),
    ],
)
def test_the_editor_says_the_common_rule_as_a_sentence(qtbot: Any, turns: list[tuple[Any, str]], said: str) -> None:
    editor = TurnsEditor([Message(role, text) for role, text in turns])
    qtbot.addWidget(editor)
    assert editor.problem() == said


def test_tags_are_split_at_commas_and_kept_once() -> None:
    assert tags_of(" a, b  c,a,, ") == ("a", "b c")


def test_every_control_has_a_name(pane: DemonstratePane) -> None:
    for widget in pane.findChildren(QWidget):
        if widget.focusPolicy() != Qt.FocusPolicy.NoFocus and widget.isVisible():
            text = widget.text() if hasattr(widget, "text") and callable(widget.text) else ""
            assert widget.accessibleName() or str(text), widget


# ---- saves that are refused --------------------------------------------------------------------------------


def full_disk(_one: Demonstration) -> Future[Any]:
    refused: Future[Any] = Future()
    refused.set_exception(UserError("this was not saved", "the disk is full", "free some space"))
    return refused


def test_a_refused_final_of_a_stored_draft_is_sent_again_as_final(
    qtbot: Any, pane: DemonstratePane, filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, store = filled.prompts[6], filled.project.store
    open_prompt(qtbot, pane, prompt)
    type_words(qtbot, pane, "whole")
    wait(qtbot, lambda: pane.saved.text() == "Saved · draft")
    monkeypatch.setattr(store, "save_demonstration", full_disk)
    qtbot.keyClick(pane.editor.edit, K.Key_Return, CTRL)
    wait(qtbot, pane.banner.isVisible)
    assert pane.editor.unsaved == 1
    monkeypatch.undo()
    qtbot.mouseClick(pane.banner.action, Qt.MouseButton.LeftButton)
    wait(qtbot, lambda: newest(filled, prompt).status == "final")
    wait(qtbot, lambda: not pane.editor.unsaved)  # the window hears of it after the disk
    assert pane.editor.unsaved == 0


def test_a_refused_final_stays_final_and_keeps_its_id_over_a_look_elsewhere(
    qtbot: Any, pane: DemonstratePane, filled: Any, monkeypatch: pytest.MonkeyPatch, settle: Settle
) -> None:
    prompt, store = filled.prompts[6], filled.project.store
    sent: list[Demonstration] = []

    def refuse(one: Demonstration) -> Future[Any]:
        sent.append(one)
        return full_disk(one)

    open_prompt(qtbot, pane, prompt)
    monkeypatch.setattr(store, "save_demonstration", refuse)
    pane.editor.edit.setPlainText("whole")
    qtbot.keyClick(pane.editor.edit, K.Key_Return, CTRL)
    wait(qtbot, pane.banner.isVisible)
    open_prompt(qtbot, pane, filled.prompts[7])
    settle()
    open_prompt(qtbot, pane, prompt)
    wait(qtbot, lambda: len(sent) >= 3)
    assert {(one.id, one.status) for one in sent} == {(sent[0].id, "final")}
    monkeypatch.undo()
    pane.editor.save_again()
    wait(qtbot, lambda: newest(filled, prompt) is not None)
    assert (newest(filled, prompt).text, newest(filled, prompt).status) == ("whole", "final")


def test_what_another_prompt_could_not_save_goes_again_as_it_was(
    qtbot: Any, pane: DemonstratePane, filled: Any, monkeypatch: pytest.MonkeyPatch, settle: Settle
) -> None:
    prompt, store = filled.prompts[6], filled.project.store
    open_prompt(qtbot, pane, prompt)
    monkeypatch.setattr(store, "save_demonstration", full_disk)
    pane.editor.set_text("a model's words", author=filled.base.id)
    wait(qtbot, pane.banner.isVisible)
    open_prompt(qtbot, pane, filled.prompts[7])
    settle()
    monkeypatch.undo()
    pane.editor.save_again()
    wait(qtbot, lambda: pane.editor.unsaved == 0)
    assert newest(filled, prompt).author == filled.base.id


def test_typing_back_what_is_stored_leaves_nothing_unsaved(
    qtbot: Any, pane: DemonstratePane, filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_prompt(qtbot, pane, filled.prompts[0])
    before = pane.editor.text
    monkeypatch.setattr(filled.project.store, "save_demonstration", full_disk)
    pane.editor.edit.setPlainText(before + "x")
    wait(qtbot, pane.banner.isVisible)
    pane.editor.edit.setPlainText(before)
    pane.editor.save_again()
    assert pane.editor.unsaved == 0
    assert pane.banner.isHidden()
    assert "final" in pane.saved.text()


def test_not_saved_is_said_over_any_other_banner(
    qtbot: Any, pane: DemonstratePane, filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_prompt(qtbot, pane, filled.prompts[6])
    pane.banner.show_error(UserError("out of memory"))
    monkeypatch.setattr(filled.project.store, "save_demonstration", full_disk)
    type_words(qtbot, pane, "x")
    wait(qtbot, lambda: pane.banner.action.isVisible())
    assert pane.banner.what.text() == "This text is not saved yet"


def test_a_read_from_before_a_commit_does_not_bring_the_old_text_back(
    qtbot: Any, pane: DemonstratePane, filled: Any, settle: Settle
) -> None:
    prompt = filled.prompts[6]
    open_prompt(qtbot, pane, prompt)
    settle()
    commits = pane.editor.commits[prompt.id]
    type_words(qtbot, pane, "new words")
    wait(qtbot, lambda: pane.saved.text() == "Saved · draft")
    pane._on_opened(prompt, None, commits)  # read before the words came to the disk, told after
    settle()
    assert pane.editor.text == "new words"
    assert pane.editor.state.stored is not None


def test_the_number_of_a_revision_follows_the_commits(qtbot: Any, pane: DemonstratePane, filled: Any) -> None:
    open_prompt(qtbot, pane, filled.prompts[0])
    wait(qtbot, lambda: "revision 1" in pane.saved.text())
    before = pane.editor.text
    pane.editor.edit.setPlainText("another answer")
    wait(qtbot, lambda: pane.saved.text().startswith("Saved · draft"))
    pane.editor.edit.setPlainText(before)
    wait(qtbot, lambda: pane.saved.text() == "Saved · final · revision 3")
    assert newest(filled, filled.prompts[0]).revision == 3


# ---- drafts that are stopped early -------------------------------------------------------------------------


def test_escape_before_a_draft_begins_changes_nothing(qtbot: Any, pane: DemonstratePane, filled: Any) -> None:
    open_prompt(qtbot, pane, filled.prompts[6])
    qtbot.keyClick(pane.editor.edit, K.Key_D, CTRL)
    assert pane.drafter.running
    qtbot.keyClick(pane.editor.edit, K.Key_Escape)
    assert not pane.drafter.running
    assert pane.editor.text == ""
    assert not pane.editor.edit.isReadOnly()


def test_a_model_that_could_not_be_found_does_not_end_the_draft_after_it(
    qtbot: Any, pane: DemonstratePane, filled: Any, fake_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.project import Project

    gate, turns = threading.Event(), iter([True, False])

    def resolve(_project: Any, model: Any) -> ModelRef:
        if next(turns):
            gate.wait(20)
            raise UserError("the first model is gone")
        return ModelRef(model_id=model.id, name=model.name, base="/models/tiny")

    monkeypatch.setattr(Project, "resolve", resolve)
    fake_engine.on(SampleRequest, lambda request: script(request)[:2])
    failed: list[BaseException] = []
    pane.drafter.failed.connect(failed.append)
    pane.drafter.start(filled.base, filled.prompts[6].messages)
    pane.drafter.stop()
    pane.drafter.start(filled.base, filled.prompts[6].messages)
    wait(qtbot, lambda: bool(fake_engine.requests))
    gate.set()
    wait(qtbot, lambda: operations().pending == 0)
    assert pane.drafter.running
    assert failed == []
    pane.drafter.stop()


# ---- choosing among prompts --------------------------------------------------------------------------------


def test_a_choice_of_ones_own_goes_before_what_was_asked_for(
    qtbot: Any, pane: DemonstratePane, filled: Any, settle: Settle
) -> None:
    pane.queue.choose("a prompt of a later page")
    qtbot.keyClick(pane.queue.list, K.Key_Down)
    chosen = pane.queue.current()
    assert pane.queue._wanted == ""
    filled.project.store.set_tags([filled.prompts[11].id], ["new"]).result(10)
    settle()
    qtbot.waitUntil(lambda: not pane.queue._again.isActive(), timeout=5000)
    settle()
    assert pane.queue.current().id == chosen.id


def test_a_line_chosen_while_the_list_is_read_anew_stays_chosen(
    qtbot: Any, pane: DemonstratePane, filled: Any, settle: Settle
) -> None:
    settle()
    pane.queue._reload()
    pane.queue.step(3)
    chosen = pane.queue.current()
    settle()
    assert pane.queue.current().id == chosen.id


def test_a_reload_reaches_the_line_that_is_marked(
    qtbot: Any, empty_project: Any, make_context: Any, settle: Settle
) -> None:
    many = [Prompt(new_id(), (Message("user", f"question {i}"),), created_at=now()) for i in range(1250)]
    empty_project.store.add_prompts(many).result(60)
    queue = PromptQueue(make_context(empty_project))
    qtbot.addWidget(queue)
    queue.start()
    settle()
    while queue.model.has_more:
        queue.model.fetchMore(queue.model.index(-1))
        settle()
    queue.choose(many[1230].id)
    queue._reload()
    settle()
    assert queue.current().id == many[1230].id


def test_prompts_are_held_out_several_at_once(
    qtbot: Any, pane: DemonstratePane, filled: Any, settle: Settle, said: Any
) -> None:
    pane.show_item(split="train")
    wait(qtbot, lambda: pane.queue.model.rowCount() == 10)
    settle()
    assert pane.queue.bar.isHidden()
    open_one = pane.queue.current()
    qtbot.keyClick(pane.queue.list, K.Key_Down, SHIFT)
    qtbot.keyClick(pane.queue.list, K.Key_Down, SHIFT)
    settle()
    assert pane.queue.bar.isVisible()
    assert [one.id for one in pane.queue.selected()] == [one.id for one in filled.prompts[:3]]
    assert pane.queue.current().id != open_one.id  # (and it is open beside the list)
    assert not pane.queue.let_train.isEnabled()
    qtbot.mouseClick(pane.queue.hold_out, Qt.MouseButton.LeftButton)
    wait(qtbot, lambda: filled.project.store.counts().prompts_held_out == 5)
    settle()
    assert ("3 prompts held out; Edit > Undo takes it back.", "good") in said.notices
    filled.project.store.undo().result(10)
    assert filled.project.store.counts().prompts_held_out == 2


# ---- editing prompts ---------------------------------------------------------------------------------------


def menu_of(qtbot: Any, pane: DemonstratePane) -> dict[str, QAction]:
    pane.open_menu()
    wait(qtbot, lambda: pane.findChild(QMenu, "prompt-menu") is not None)
    return {one.text(): one for one in pane.findChild(QMenu, "prompt-menu").actions()}


def prompt_dialog(pane: DemonstratePane) -> PromptDialog:
    dialog = pane.findChild(PromptDialog)
    assert dialog is not None
    return dialog


def test_a_prompt_without_labels_is_edited_in_its_place(
    qtbot: Any, pane: DemonstratePane, filled: Any, settle: Settle
) -> None:
    prompt, store = filled.prompts[9], filled.project.store
    open_prompt(qtbot, pane, prompt)
    menu_of(qtbot, pane)["Edit…"].trigger()
    dialog = prompt_dialog(pane)
    assert not dialog.add.isEnabled()  # nothing is changed yet
    dialog.editor.turns[0].text.setPlainText("How do I explain topic nine?")
    dialog.editor.add_system()
    dialog.editor.turns[0].text.setPlainText("Be brief.")
    dialog.save()
    wait(qtbot, lambda: pane.prompt.title == "How do I explain topic nine?")
    settle()
    assert pane.prompt.messages[0] == Message("system", "Be brief.")
    assert (pane.prompt.tags, pane.prompt.split) == (prompt.tags, prompt.split)
    assert store.counts().prompts == 12
    assert prompt.id not in {one.id for one in store.prompts(limit=100)}
    store.undo().result(10)  # one gesture, one step
    assert {one.id for one in store.prompts(limit=100)} == {one.id for one in filled.prompts}


def test_a_prompt_with_labels_is_duplicated_instead(qtbot: Any, pane: DemonstratePane, filled: Any) -> None:
    for labelled in (filled.prompts[0], filled.prompts[6]):  # by a demonstration, by responses
        open_prompt(qtbot, pane, labelled)
        menu = menu_of(qtbot, pane)
        assert not menu["Edit…"].isEnabled()
        pane.findChild(QMenu, "prompt-menu").close()
        wait(qtbot, lambda: pane.findChild(QMenu, "prompt-menu") is None)
    menu_of(qtbot, pane)["Duplicate as a new prompt…"].trigger()
    dialog = prompt_dialog(pane)
    assert dialog.editor.messages() == filled.prompts[6].messages
    dialog.editor.turns[0].text.setPlainText("Another question?")
    dialog.save()
    wait(qtbot, lambda: pane.prompt.title == "Another question?")
    assert filled.project.store.counts().prompts == 13


def test_closing_the_dialog_asks_before_words_are_lost(qtbot: Any, pane: DemonstratePane, filled: Any) -> None:
    open_prompt(qtbot, pane, filled.prompts[6])
    dialog = dialog_of(qtbot, pane)
    dialog.reject()
    assert not dialog.isVisible()
    wait(qtbot, lambda: pane.findChild(PromptDialog) is None)
    to_front(qtbot, pane)
    dialog = dialog_of(qtbot, pane)
    dialog.editor.turns[0].text.setPlainText("a long question")
    dialog.reject()
    assert dialog.isVisible()
    answer(dialog, "Go on writing")
    assert dialog.isVisible()
    assert dialog.editor.turns[0].text.toPlainText() == "a long question"
    dialog.reject()
    answer(dialog, "Throw it away")
    assert not dialog.isVisible()


def test_turns_are_told_apart_by_number(qtbot: Any, context: Context) -> None:
    editor = TurnsEditor([Message("user", "a"), Message("assistant", "b"), Message("user", "c")])
    qtbot.addWidget(editor)
    assert [one.text.accessibleName() for one in editor.turns] == [f"Turn {n}: words" for n in (1, 2, 3)]
    editor.turns[0].removed.emit()
    assert [one.role.accessibleName() for one in editor.turns] == [f"Turn {n}: who speaks" for n in (1, 2)]
