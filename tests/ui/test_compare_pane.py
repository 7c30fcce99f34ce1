from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QDialog, QListWidget, QPushButton, QWidget

from tests.ui.waiting import open_pane, to_front, wait
from ui.checklist import Checklist
from ui.compare_pane import ComparePane
from ui.compare_prompts import ConversationSheet
from ui.compare_results import CompareResults
from ui.compare_state import Board, Cell
from ui.compare_summary import rate_text
from ui.context import Context
from workbench import comparisons
from workbench.ids import new_id, now
from workbench.protocol import Failed, Finished, ModelRef, ResponseDone, SampleRequest, ScoreRequest, Scores, Token
from workbench.records import Message, ModelRecord

K = Qt.Key
SHIFT = Qt.KeyboardModifier.ShiftModifier
Settle = Callable[[], None]


def answers(request: SampleRequest) -> list[Any]:
    replies: list[Any] = []
    for index, messages in enumerate(request.prompts):
        text = f"{request.model.name} on {messages[-1].content[-40:]}"
        replies.append(Token(id=request.id, prompt_index=index, response_index=0, text=text[:6]))
        replies.append(
            ResponseDone(
                id=request.id,
                prompt_index=index,
                response_index=0,
                text=text,
                finish_reason="stop" if index else "length",
                token_count=10,
                seed=4,
            )
        )
    return [*replies, Finished(id=request.id)]


def scores(request: ScoreRequest) -> list[Any]:
    standard = tuple(1.0 if text.startswith("sft") else -1.0 for _, text in request.rows)
    return [Scores(id=request.id, scores=tuple(3 * one for one in standard), standardised=standard)]


@pytest.fixture
def models(filled: Any) -> dict[str, ModelRecord]:
    found = {"base": filled.base}
    for name, role in (("sft 1", "sft"), ("reward 1", "reward")):
        made = ModelRecord(new_id(), name, role, f"runs/{name}/final", base_id=filled.base.id, created_at=now())  # type: ignore[arg-type]
        filled.project.store.save_model(made).result(10)
        found[role] = made
    return found


@pytest.fixture
def pane(
    qtbot: Any, context: Context, models: Any, fake_engine: Any, settle: Settle, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ComparePane]:
    monkeypatch.setattr(
        type(context.project), "resolve", lambda _, model: ModelRef(model_id=model.id, name=model.name, base="/m")
    )
    fake_engine.on(SampleRequest, answers)
    fake_engine.on(ScoreRequest, scores)
    made = ComparePane(context)
    open_pane(qtbot, made, settle)
    yield made
    made.runner.stop()
    settle()


def press(qtbot: Any, pane: QWidget, *pressed: Any) -> None:
    for key in pressed:
        qtbot.keyClick(pane.window().focusWidget() or pane, key)


def compare(qtbot: Any, pane: ComparePane, which: str = "train", *, reward: bool = True, most: int = 6) -> None:
    pane.setup.which.setCurrentIndex(pane.setup.which.findData(which))
    pane.setup.most.setValue(most)
    pane.setup.reward.setCurrentIndex(1 if reward else 0)
    qtbot.mouseClick(pane.setup.go, Qt.MouseButton.LeftButton)
    wait(qtbot, lambda: pane.board is not None and not pane.runner.running)


def names(pane: ComparePane) -> list[str]:
    return [card.name.text() for card in pane.results.cards if card.isVisible()]


def test_two_different_models_are_chosen_to_begin_with(pane: ComparePane) -> None:
    chosen = [picker.model_id() for picker in pane.setup.models[: pane.setup.shown]]
    assert len(set(chosen)) == 2
    assert pane.setup.go.isEnabled()


def test_the_same_prompts_go_through_both_models_with_the_same_seed(
    qtbot: Any, pane: ComparePane, filled: Any, fake_engine: Any
) -> None:
    compare(qtbot, pane)
    asked = [one for one in fake_engine.requests if isinstance(one, SampleRequest)]
    assert [len(one.prompts) for one in asked] == [4, 4, 2, 2]
    assert asked[0].prompts == asked[1].prompts == tuple(one.messages for one in filled.prompts[:4])
    assert asked[0].sampling == asked[1].sampling
    assert {one.model.name for one in asked} == {"sft 1", "tiny base"}
    assert all(cell.done for cell in pane.board.cells.values())


def test_the_vote_is_blind_and_then_names_and_scores_show(qtbot: Any, pane: ComparePane) -> None:
    compare(qtbot, pane)
    assert names(pane) == ["Answer A", "Answer B"]
    assert not any(card.score.isVisible() for card in pane.results.cards)
    press(qtbot, pane, K.Key_2)
    board = pane.board
    winner = board.ballot.winner_of(board.prompts[0].key)
    assert winner == board.order(0)[1]
    assert sorted(names(pane)) == ["sft 1", "tiny base"]
    assert names(pane)[1] == board.header.model_names[winner]
    shown = pane.results.cards[names(pane).index("sft 1")].score.text()
    assert shown == "+1.00 σ"
    press(qtbot, pane, K.Key_Return)
    assert pane.results.row == 1
    assert names(pane) == ["Answer A", "Answer B"]


def test_an_answer_that_was_cut_off_is_scored_as_such_and_one_that_does_not_fit_has_no_score_and_is_told(
    qtbot: Any, pane: ComparePane, fake_engine: Any
) -> None:
    def some(request: ScoreRequest) -> list[Any]:
        values = (None, *([0.5] * (len(request.rows) - 1)))
        refused = {0: "its last 9 tokens do not fit"}
        return [Scores(id=request.id, scores=values, standardised=values, refused=refused)]

    fake_engine.on(ScoreRequest, some)
    compare(qtbot, pane, most=4)
    asked = [one for one in fake_engine.requests if isinstance(one, ScoreRequest)]
    assert {one.ended for one in asked} == {(False, True, True, True)}  # the first answer is always cut off
    assert [pane.board.cells[row, 0].score for row in range(4)] == [None, 0.5, 0.5, 0.5]
    assert pane.banner.what.text() == "1 of 4 answers could not be scored"
    assert "its last 9 tokens do not fit" in pane.banner.more.text()


def test_tallies_ties_and_wilson_intervals(qtbot: Any, pane: ComparePane) -> None:
    compare(qtbot, pane, most=5)
    board = pane.board
    for row in range(4):
        press(qtbot, pane, K.Key_1 + board.order(row).index(0), K.Key_Return)
    press(qtbot, pane, K.Key_Equal)
    assert (board.ballot.total, board.ballot.ties) == (5, 1)
    rate = board.ballot.rate(0)
    assert rate_text(rate) == "100%  (51% to 100%), 4 of 4"
    assert f"{board.header.model_names[0]} is preferred" in pane.results.summary.verdict.text()
    assert "1 tie not counted" in pane.results.summary.verdict.text()
    press(qtbot, pane, K.Key_Backspace)
    assert board.ballot.total == 4
    assert board.hidden(4)


def test_summary_shows_score_length_and_endings(qtbot: Any, pane: ComparePane) -> None:
    compare(qtbot, pane, most=4)
    summary = {pane.board.header.model_names[i]: pane.board.summary(i) for i in range(2)}
    assert summary["sft 1"].mean_score == 1.0
    assert summary["tiny base"].mean_score == -1.0
    assert summary["sft 1"].mean_tokens == 10
    assert summary["sft 1"].share_ended == 0.75


def test_votes_are_on_disk_and_the_comparison_opens_again(
    qtbot: Any, pane: ComparePane, context: Context, settle: Settle
) -> None:
    compare(qtbot, pane)
    press(qtbot, pane, K.Key_1, K.Key_Return, K.Key_Equal)
    settle()
    assert pane.unsaved() is None
    found = comparisons.listed(context.project.path)
    assert len(found) == 1
    assert {key: vote.winner for key, vote in found[0].votes.items()} == {
        pane.board.prompts[0].key: pane.board.order(0)[0],
        pane.board.prompts[1].key: comparisons.TIE,
    }
    before = pane.board
    pane.open_earlier()
    settle()
    dialog = pane.findChild(QDialog, "earlier-dialog")
    assert dialog.findChild(QListWidget).count() == 1
    qtbot.mouseClick(dialog.findChild(QPushButton, "open-comparison"), Qt.MouseButton.LeftButton)
    assert pane.board is not before
    assert pane.board.cells == before.cells
    assert pane.board.ballot.total == 2
    to_front(qtbot, pane)
    press(qtbot, pane, K.Key_Return, K.Key_1)
    settle()
    assert len(comparisons.listed(context.project.path)[0].votes) == 3


def test_a_vote_that_cannot_be_written_says_so_and_waits(
    qtbot: Any, pane: ComparePane, context: Context, settle: Settle
) -> None:
    compare(qtbot, pane)
    settle()
    folder = context.project.path / comparisons.FOLDER
    away = context.project.path / "away"
    folder.rename(away)
    folder.write_text("in the way", encoding="utf-8")
    press(qtbot, pane, K.Key_1)
    wait(qtbot, pane.banner.isVisible)
    assert pane.unsaved() is not None
    folder.unlink()
    away.rename(folder)
    qtbot.mouseClick(pane.banner.action, Qt.MouseButton.LeftButton)
    wait(qtbot, lambda: pane.unsaved() is None)
    assert len(comparisons.listed(context.project.path)[0].votes) == 1


def test_without_the_blind_vote_names_show_and_nothing_is_shuffled(qtbot: Any, pane: ComparePane) -> None:
    pane.blind.setChecked(False)
    compare(qtbot, pane)
    assert names(pane) == list(pane.board.header.model_names)
    press(qtbot, pane, K.Key_2)
    assert pane.board.ballot.winner_of(pane.board.prompts[0].key) == 1


def test_typed_prompts_are_paragraphs(qtbot: Any, pane: ComparePane, fake_engine: Any) -> None:
    pane.setup.which.setCurrentIndex(pane.setup.which.findData("typed"))
    assert not pane.setup.go.isEnabled()
    qtbot.keyClicks(pane.setup.typed.text, "First question?")
    pane.setup.typed.text.setPlainText("First question?\n\nSecond one,\non two lines?\n\n\n")
    qtbot.mouseClick(pane.setup.go, Qt.MouseButton.LeftButton)
    wait(qtbot, lambda: pane.board is not None and not pane.runner.running)
    asked = [one.messages for one in pane.board.prompts]
    assert asked == [(Message("user", "First question?"),), (Message("user", "Second one,\non two lines?"),)]


def test_a_failed_model_is_marked_and_the_others_go_on(qtbot: Any, pane: ComparePane, fake_engine: Any) -> None:
    def partly(request: SampleRequest) -> list[Any]:
        if request.model.name == "sft 1":
            return [Failed(id=request.id, message="the adapter is damaged", remedy="choose another")]
        return answers(request)

    fake_engine.on(SampleRequest, partly)
    compare(qtbot, pane, reward=False, most=4)
    column = pane.board.header.model_names.index("sft 1")
    assert {pane.board.cells[row, column].finish_reason for row in range(4)} == {"failed"}
    assert {pane.board.cells[row, 1 - column].done for row in range(4)} == {True}
    assert "damaged" in pane.banner.what.text()


def test_stopping_keeps_what_is_whole(qtbot: Any, pane: ComparePane, fake_engine: Any) -> None:
    fake_engine.on(SampleRequest, lambda request: answers(request)[:2])
    pane.setup.which.setCurrentIndex(pane.setup.which.findData("train"))
    qtbot.mouseClick(pane.setup.go, Qt.MouseButton.LeftButton)
    wait(qtbot, lambda: pane.runner.done == 1)
    qtbot.mouseClick(pane.stop, Qt.MouseButton.LeftButton)
    assert not pane.runner.running
    assert fake_engine.cancelled
    reasons = sorted({cell.finish_reason for cell in pane.board.cells.values()})
    assert reasons == ["length", "stopped"]


def test_up_to_four_models_can_be_compared(qtbot: Any, pane: ComparePane, filled: Any, settle: Settle) -> None:
    for name in ("dpo 1", "ppo 1"):
        filled.project.store.save_model(
            ModelRecord(new_id(), name, "policy", f"runs/{name}/final", base_id=filled.base.id, created_at=now())
        ).result(10)
    settle()
    for _ in range(3):
        pane.setup.more.click()
    assert pane.setup.shown == 4
    assert not pane.setup.more.isEnabled()
    compare(qtbot, pane, most=2)
    assert len(names(pane)) == 4
    press(qtbot, pane, K.Key_4)
    assert pane.board.ballot.total == 1
    assert "Wilson" in pane.results.summary.verdict.text()
    pane.show_setup()
    pane.setup.fewer.click()
    assert pane.setup.shown == 3


def test_answers_can_be_sent_to_be_ranked(qtbot: Any, pane: ComparePane, filled: Any, said: Any) -> None:
    compare(qtbot, pane, "held-out", most=1)
    prompt = filled.prompts[10]
    qtbot.mouseClick(pane.results.label, Qt.MouseButton.LeftButton)
    wait(qtbot, lambda: bool(said.places))
    assert said.places == [("rank", {"prompt_id": prompt.id})]
    saved = filled.project.store.responses(prompt.id)
    assert {one.model_id for one in saved} == set(pane.board.header.model_ids)
    assert {one.sampling.seed for one in saved} == {4}


# ---- chat --------------------------------------------------------------------------------------------------


def talk(request: SampleRequest) -> list[Any]:
    text = f"answer {len(request.prompts[0])}"
    return [
        Token(id=request.id, prompt_index=0, response_index=0, text=text[:4]),
        Token(id=request.id, prompt_index=0, response_index=0, text=text[4:]),
        ResponseDone(
            id=request.id, prompt_index=0, response_index=0, text=text, finish_reason="stop", token_count=2, seed=1
        ),
        Finished(id=request.id),
    ]


def say(qtbot: Any, pane: ComparePane, words: str) -> None:
    qtbot.keyClicks(pane.chat.entry, words)
    qtbot.keyClick(pane.chat.entry, K.Key_Return)


@pytest.fixture
def chat(qtbot: Any, pane: ComparePane, fake_engine: Any, models: Any) -> ComparePane:
    fake_engine.on(SampleRequest, talk)
    pane.show_item(model_id=models["sft"].id, chat="1")
    wait(qtbot, lambda: pane.chat.model.model_id() == models["sft"].id)
    return pane


def test_a_chat_goes_turn_by_turn(qtbot: Any, chat: ComparePane, fake_engine: Any) -> None:
    chat.chat.system.setPlainText("You are brief.")
    say(qtbot, chat, "hello")
    wait(qtbot, lambda: not chat.chat.talker.running and len(chat.chat.cards) == 2)
    say(qtbot, chat, "and then")
    wait(qtbot, lambda: not chat.chat.talker.running and len(chat.chat.cards) == 4)
    assert chat.chat.messages == (
        Message("system", "You are brief."),
        Message("user", "hello"),
        Message("assistant", "answer 2"),
        Message("user", "and then"),
        Message("assistant", "answer 4"),
    )
    assert fake_engine.requests[-1].prompts[0] == chat.chat.messages[:4]
    assert chat.chat.entry.toPlainText() == ""


def test_shift_enter_begins_a_new_line(qtbot: Any, chat: ComparePane) -> None:
    qtbot.keyClicks(chat.chat.entry, "a")
    qtbot.keyClick(chat.chat.entry, K.Key_Return, SHIFT)
    qtbot.keyClicks(chat.chat.entry, "b")
    assert chat.chat.entry.toPlainText() == "a\nb"
    assert chat.chat.cards == []


def test_a_stopped_answer_keeps_what_has_come(qtbot: Any, chat: ComparePane, fake_engine: Any, filled: Any) -> None:
    fake_engine.on(SampleRequest, lambda request: talk(request)[:1])
    say(qtbot, chat, "hello")
    wait(qtbot, lambda: chat.chat.cards and chat.chat.cards[-1].text.text() == "answ")
    qtbot.keyClick(chat.chat.entry, K.Key_Escape)
    assert fake_engine.cancelled
    assert chat.chat.messages[-1] == Message("assistant", "answ")
    assert "stopped" in chat.chat.cards[-1].about.text()
    qtbot.mouseClick(chat.chat.cards[-1].label, Qt.MouseButton.LeftButton)
    wait(qtbot, lambda: chat.chat.cards[-1].label.text() == "In labelling")
    [prompt] = filled.project.store.prompts(search="hello")
    [response] = filled.project.store.responses(prompt.id)
    assert (response.text, response.finish_reason) == ("answ", "length")  # not whole: it trains without an end


def test_a_failed_answer_puts_the_words_back(qtbot: Any, chat: ComparePane, fake_engine: Any) -> None:
    fake_engine.on(SampleRequest, lambda request: [Failed(id=request.id, message="out of memory")])
    say(qtbot, chat, "hello")
    wait(qtbot, chat.chat.banner.isVisible)
    assert chat.chat.messages == ()
    assert chat.chat.entry.toPlainText() == "hello"


def test_send_to_labelling_adds_the_prompt_and_the_answer_once(
    qtbot: Any, chat: ComparePane, filled: Any, settle: Settle
) -> None:
    store = filled.project.store
    before = store.counts()
    say(qtbot, chat, "a new question")
    wait(qtbot, lambda: not chat.chat.talker.running and len(chat.chat.cards) == 2)
    card = chat.chat.cards[1]
    qtbot.mouseClick(card.label, Qt.MouseButton.LeftButton)
    wait(qtbot, lambda: card.label.text() == "In labelling")
    found = store.prompts(search="new question")
    assert [one.messages for one in found] == [(Message("user", "a new question"),)]
    saved = store.responses(found[0].id)
    assert [(one.text, one.finish_reason, one.source) for one in saved] == [("answer 1", "stop", "chat")]
    assert store.counts().prompts == before.prompts + 1
    chat.chat.clear()
    say(qtbot, chat, "a new question")
    wait(qtbot, lambda: not chat.chat.talker.running and len(chat.chat.cards) == 2)
    qtbot.mouseClick(chat.chat.cards[1].label, Qt.MouseButton.LeftButton)
    wait(qtbot, lambda: len(store.responses(found[0].id)) == 2)
    assert store.counts().prompts == before.prompts + 1
    store.undo().result(10)
    store.undo().result(10)
    assert store.prompts(search="new question") == []


def test_every_control_has_a_name(qtbot: Any, pane: ComparePane) -> None:
    compare(qtbot, pane)
    for widget in pane.findChildren(QWidget):
        if widget.focusPolicy() != Qt.FocusPolicy.NoFocus and widget.isVisible():
            text = widget.text() if hasattr(widget, "text") and callable(widget.text) else ""
            assert widget.accessibleName() or str(text), widget


# ---- what is compared --------------------------------------------------------------------------------------


def test_a_model_is_set_up_beside_its_parent(pane: ComparePane, models: Any, filled: Any) -> None:
    newest = pane.setup.models[0].models()[0]
    pane.show_item(model_id=newest.id, with_model_id=filled.base.id)
    assert [one.model_id() for one in pane.setup.models[:2]] == [filled.base.id, newest.id]


def test_the_newest_model_is_never_set_up_beside_itself(pane: ComparePane) -> None:
    newest = pane.setup.models[0].models()[0]
    pane.setup.models[0].set_model_id(newest.id)
    pane.show_item(model_id=newest.id)
    first, second = (one.model_id() for one in pane.setup.models[:2])
    assert second == newest.id
    assert first != second
    assert pane.setup.go.isEnabled()


def test_prompts_are_chosen_by_hand_held_out_ones_first(
    qtbot: Any, pane: ComparePane, filled: Any, settle: Settle
) -> None:
    setup = pane.setup
    setup.which.setCurrentIndex(setup.which.findData("chosen"))
    assert not setup.go.isEnabled()
    qtbot.mouseClick(setup.choose, Qt.MouseButton.LeftButton)
    settle()
    sheet = pane.findChild(Checklist)
    assert sheet.list.count() == 12
    assert "held-out" in sheet.list.item(0).text()
    sheet.list.item(1).setCheckState(Qt.CheckState.Checked)
    sheet.search.setText("topic 3")
    wait(qtbot, lambda: sheet.list.count() == 1)
    sheet.list.item(0).setCheckState(Qt.CheckState.Checked)
    qtbot.mouseClick(sheet.use, Qt.MouseButton.LeftButton)
    assert setup.choose.text() == "2 prompts…"
    qtbot.mouseClick(setup.go, Qt.MouseButton.LeftButton)
    wait(qtbot, lambda: pane.board is not None and not pane.runner.running)
    assert [one.prompt_id for one in pane.board.prompts] == [filled.prompts[11].id, filled.prompts[3].id]


def test_a_typed_prompt_may_have_several_turns(qtbot: Any, pane: ComparePane, settle: Settle) -> None:
    setup = pane.setup
    setup.which.setCurrentIndex(setup.which.findData("typed"))
    setup.typed.ask_conversation()
    sheet = pane.findChild(ConversationSheet)
    assert not sheet.add.isEnabled()
    sheet.editor.turns[0].text.setPlainText("Hello")
    sheet.editor.add_turn()
    sheet.editor.turns[1].text.setPlainText("Hi, what is it?")
    sheet.editor.add_turn()
    sheet.editor.turns[2].text.setPlainText("A joke, please")
    qtbot.mouseClick(sheet.add, Qt.MouseButton.LeftButton)
    assert setup.typed.about.text() == "And 1 conversation"
    qtbot.mouseClick(setup.go, Qt.MouseButton.LeftButton)
    wait(qtbot, lambda: pane.board is not None and not pane.runner.running)
    assert [one.role for one in pane.board.prompts[0].messages] == ["user", "assistant", "user"]
    pane.show_setup()
    setup.typed.drop.click()
    assert setup.typed.is_empty()


def test_a_vote_is_on_disk_as_soon_as_the_window_asks(qtbot: Any, pane: ComparePane, context: Context) -> None:
    compare(qtbot, pane)
    press(qtbot, pane, K.Key_1)
    assert pane.unsaved() is None  # no turn of the event loop, no worker thread
    assert len(comparisons.listed(context.project.path)[0].votes) == 1


def test_a_comparison_that_is_stopped_is_counted_once(
    qtbot: Any, pane: ComparePane, fake_engine: Any, monkeypatch: pytest.MonkeyPatch, settle: Settle
) -> None:
    fake_engine.hold()
    pane.setup.which.setCurrentIndex(pane.setup.which.findData("train"))
    qtbot.mouseClick(pane.setup.go, Qt.MouseButton.LeftButton)
    wait(qtbot, lambda: bool(fake_engine.requests))
    settle()
    counted: list[Any] = []
    real = pane.results.summary.show_board
    monkeypatch.setattr(pane.results.summary, "show_board", lambda board: (counted.append(board), real(board)))
    pane.runner.stop()
    wait(qtbot, lambda: bool(counted))
    settle()
    assert len(pane.board.cells) == 20
    assert len(counted) == 1


def test_nothing_is_sent_to_the_labels_from_a_window_that_only_reads(qtbot: Any, theme: Any) -> None:
    results = CompareResults(read_only=True)
    qtbot.addWidget(results)
    header = comparisons.new_header([("a", "A"), ("b", "B")])
    asked = comparisons.Asked(key="k", messages=(Message("user", "hi"),))
    board = Board.begin(header, [asked])
    board.cells = {key: Cell("text", True, "stop") for key in board.cells}
    results.show_board(board)
    assert not results.label.isEnabled()
    assert "reading only" in results.label.toolTip()
