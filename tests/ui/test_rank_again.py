"""The loop closes: what a model writes after it was trained comes back to be ranked, beside what was ranked before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication

from tests.ui.conftest import Filled, fill, response
from tests.ui.waiting import to_front, wait
from ui.app import App
from ui.rank_pane import RankPane
from ui.sampler import SamplingPlan
from ui.settings import Settings
from workbench.pairs import current_pairs
from workbench.project import Project
from workbench.protocol import Finished, ModelRef, ResponseDone, SampleRequest
from workbench.records import Sampling

Settle = Callable[[], None]


def rank(qtbot: Any, pane: RankPane, keys: str) -> None:
    before = pane.item
    assert before is not None
    pane.view.board.cards[0].setFocus()
    qtbot.keyClicks(QApplication.focusWidget(), keys)
    qtbot.keyClick(QApplication.focusWidget(), Qt.Key.Key_Return)
    wait(qtbot, lambda: pane.item is not before and not pane.acts.busy)


@pytest.fixture
def window(qtbot: Any, qapp: QApplication, tmp_path: Path, settle: Settle) -> Iterator[tuple[App, Filled]]:
    """The real window on a project in which "me" has ranked 3 prompts of the 8 that have responses."""
    project = Project.create(tmp_path / "taste")
    filled = fill(project)
    project.close()
    settings = Settings(tmp_path / "config" / "window.json")
    settings.values.rater_name = "me"
    made = App(qapp, settings)
    made.window.show()
    to_front(qtbot, made.window)
    made.open(tmp_path / "taste")
    wait(qtbot, lambda: made.session is not None)
    settle()
    yield made, filled
    made.window.close()
    settle()
    made.window.deleteLater()
    made.deleteLater()
    qapp.setStyleSheet("")


def test_new_responses_to_a_ranked_prompt_come_back_first_and_both_rankings_feed_the_pairs(
    qtbot: Any, window: tuple[App, Filled], settle: Settle
) -> None:
    app, filled = window
    assert app.session is not None
    store, badge = app.session.project.store, app.window.rail.buttons["rank"]
    wait(qtbot, lambda: badge._badge == 5)
    app.window.show_pane("rank")
    pane = app.window.pane("rank")
    assert isinstance(pane, RankPane)
    for left in (5, 4, 3, 2, 1):
        wait(qtbot, lambda: pane.item is not None)
        wait(qtbot, lambda left=left: badge._badge == left)
        rank(qtbot, pane, "1234")
    wait(qtbot, lambda: pane.view.empty_shown and badge._badge == 0)
    assert pane.view.empty.title.text() == "All caught up"

    prompt, old = filled.prompts[4], store.rankings(prompt_id=filled.prompts[4].id)[0]
    new = [response(prompt, text, "policy") for text in ("What the policy says.", "What else it says.")]
    pairs_before = len(current_pairs(store).rows)
    store.add_responses(new).result(10)  # as Send to Rank, Get responses and the command line all do
    wait(qtbot, lambda: pane.item is not None and badge._badge == 1)
    item = pane.item
    assert item is not None
    best, worst = old.tiers[0][0], old.tiers[-1][0]
    assert item.prompt.id == prompt.id
    assert item.corrects is None
    assert set(item.anchors) == {best, worst}
    assert set(item.ids) == {best, worst, *(one.id for one in new)}
    assert "1 prompt to rank" in pane.view.header.subtitle.text()
    marked = [any(pill.text() == "ranked before" for pill in card._pills) for card in pane.view.board.cards]
    assert marked == [one in (best, worst) for one in item.ids]

    rank(qtbot, pane, "1234")
    wait(qtbot, lambda: pane.view.empty_shown and badge._badge == 0)
    kept, added = store.rankings(prompt_id=prompt.id)
    assert kept == old
    assert added.tiers == tuple((id_,) for id_ in item.ids)
    assert added.blind
    found = [row for row in current_pairs(store).rows if row.ranking_id in (old.id, added.id)]
    assert len(found) == 6 + 6  # of four responses each: K (K - 1) / 2
    assert len(current_pairs(store).rows) == pairs_before + 6

    store.undo().result(10)  # from the menu: the second ranking alone
    wait(qtbot, lambda: pane.item is not None and badge._badge == 1)
    assert store.rankings(prompt_id=prompt.id) == [old]


def test_another_rater_is_told_of_what_waits_for_them(qtbot: Any, window: tuple[App, Filled], settle: Settle) -> None:
    app, _ = window
    assert app.session is not None
    badge = app.window.rail.buttons["rank"]
    wait(qtbot, lambda: badge._badge == 5)
    app.session.rename_rater("somebody else")
    wait(qtbot, lambda: badge._badge == 8)
    app.window.show_pane("rank")
    pane = app.window.pane("rank")
    wait(qtbot, lambda: pane.item is not None and "8 prompts to rank" in pane.view.header.subtitle.text())
    app.window.show_pane("home")
    settle()
    assert app.window.pane("home")._stages["sample"].detail == "8 prompts to rank"


def test_sampling_prompts_that_are_ranked_already_goes_on_as_one_ranks(
    qtbot: Any, filled: Filled, make_context: Any, fake_engine: Any, monkeypatch: pytest.MonkeyPatch, settle: Settle
) -> None:
    """ "All of train" is what the dialog offers once every prompt has responses."""

    def script(request: SampleRequest) -> list[Any]:
        texts = [f"{request.id} says {index}" for index in range(request.count)]
        done = [
            ResponseDone(
                id=request.id, prompt_index=0, response_index=n, text=text, finish_reason="stop", token_count=3, seed=n
            )
            for n, text in enumerate(texts)
        ]
        return [*done, Finished(id=request.id)]

    fake_engine.on(SampleRequest, script)
    monkeypatch.setattr(
        type(filled.project), "resolve", lambda _, model: ModelRef(model_id=model.id, name=model.name, base="/x")
    )
    pane = RankPane(make_context(filled.project, filled.rater))
    qtbot.addWidget(pane)
    pane.resize(1280, 800)
    pane.show()
    to_front(qtbot, pane)
    pane.activate()
    for _ in range(5):
        wait(qtbot, lambda: pane.item is not None)
        rank(qtbot, pane, "1234")
    wait(qtbot, lambda: pane.view.empty_shown)
    ranked = tuple(one.id for one in filled.prompts[:8])
    pane.start_sampling(SamplingPlan(filled.base, ranked, 2, Sampling(), ahead=2))
    for id_ in ranked:
        wait(qtbot, lambda: pane.item is not None)
        assert pane.item is not None
        assert pane.item.prompt.id == id_
        rank(qtbot, pane, "1234")
    wait(qtbot, lambda: not pane.sampler.running and pane.view.empty_shown)
    settle()
    assert len(fake_engine.requests) == 8
    assert len(filled.project.store.rankings()) == 16
    filled.project.store.add_responses([response(filled.prompts[0], "One more.", "policy")]).result(10)
    wait(qtbot, lambda: pane.item is not None)
    rank(qtbot, pane, "123")  # under an id of its own: the one that its sampling had promised is used
    wait(qtbot, lambda: pane.view.empty_shown)
    assert len(filled.project.store.rankings(prompt_id=filled.prompts[0].id)) == 3
