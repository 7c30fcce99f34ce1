from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QLabel

from ui.context import Context
from ui.home_pane import HomePane
from ui.times import ago, moment
from workbench.ids import new_id, now
from workbench.records import BAD, GOOD, Ranking, ResponseFlag, RunRecord

Settle = Callable[[], None]
Filled = Said = FakeEngineService = Any  # of conftest, which cannot be imported by name


@pytest.fixture
def home(qtbot: Any, context: Context, settle: Settle) -> Iterator[HomePane]:
    pane = HomePane(context)
    qtbot.addWidget(pane)
    pane.resize(1200, 800)
    pane.show()
    settle()
    yield pane
    settle()


def texts(pane: HomePane) -> list[str]:
    return [label.text() for label in pane.findChildren(QLabel)]


def test_home_shows_counts_stages_and_the_next_step(home: HomePane) -> None:
    assert "12 prompts (2 held out)" in home.header.subtitle.text()
    assert home.next.title.text() == "Train SFT on 4 demonstrations"
    assert home.map.cards["rank"].stage.number == "15"
    assert home.map.cards["sft"].is_next
    assert home.map.cards["sft"].accessibleName().startswith("Next: SFT")


def test_thumbs_are_counted_as_soon_as_they_are_given(
    qtbot: Any, home: HomePane, filled: Filled, settle: Settle
) -> None:
    assert "thumb" not in home.header.subtitle.text()
    ids = [one.id for one in filled.responses if one.prompt_id == filled.prompts[5].id]
    flags = (ResponseFlag(ids[0], GOOD), ResponseFlag(ids[1], BAD), ResponseFlag(ids[2], BAD))
    judged = Ranking(new_id(), filled.prompts[5].id, filled.rater.id, (), "cannot-rank", flags, shown_order=tuple(ids))
    filled.project.store.save_ranking(judged).result(10)
    qtbot.waitUntil(lambda: "3 thumbs: 1 up, 2 down" in home.header.subtitle.text(), timeout=10_000)
    assert home.map.cards["rank"].stage.detail == "3 prompts, 1 up, 2 down"


def test_the_button_of_the_next_step_leads_there(home: HomePane, said: Said) -> None:
    home.next.go.click()
    assert said.places == [("train", {"method": "sft"})]


def test_a_stage_leads_to_its_pane(home: HomePane, said: Said) -> None:
    home.map.cards["rank"].click()
    home.map.cards["ppo"].click()
    assert said.places == [("rank", {}), ("train", {"method": "ppo"})]


def test_stages_can_be_walked_with_the_arrow_keys(qtbot: Any, home: HomePane) -> None:
    with qtbot.waitActive(home):
        home.activateWindow()
    home.map.cards["demonstrate"].setFocus()
    qtbot.keyClick(home.map.cards["demonstrate"], Qt.Key.Key_Right)
    assert home.map.cards["sft"].hasFocus()
    qtbot.keyClick(home.map.cards["sft"], Qt.Key.Key_Left)
    assert home.map.cards["demonstrate"].hasFocus()


def test_home_follows_the_project(qtbot: Any, home: HomePane, filled: Filled, settle: Settle) -> None:
    run = RunRecord(new_id(), "sft", "sft 1", "running", filled.base.id, created_at=now())
    filled.project.store.save_run(run).result(10)
    qtbot.waitUntil(lambda: home.map.cards["sft"].stage.state == "active", timeout=10_000)
    assert "running" in texts(home)


def test_a_run_of_the_list_leads_to_it(qtbot: Any, home: HomePane, filled: Filled, said: Said, settle: Settle) -> None:
    run = RunRecord(new_id(), "sft", "sft 1", "done", filled.base.id, created_at=now())
    filled.project.store.save_run(run).result(10)
    qtbot.waitUntil(lambda: home._runs._lines.count() == 1, timeout=10_000)
    home._runs._lines.itemAt(0).widget().click()
    assert ("runs", {"run_id": run.id}) in said.places


@pytest.mark.parametrize("width", [560, 800, 1000, 1600])
def test_no_stage_covers_another_at_any_width(home: HomePane, width: int) -> None:
    home.map.resize(width, 100)  # the height asked for depends on the width
    home.map.resize(width, home.map.sizeHint().height())
    places = [card.geometry() for card in home.map.cards.values()]
    for at, one in enumerate(places):
        assert home.map.rect().contains(one)
        assert not any(one.intersects(other) for other in places[at + 1 :])


def test_an_empty_project_asks_for_a_model_first(
    qtbot: Any, make_context: Callable[..., Context], empty_project: Any, settle: Settle
) -> None:
    pane = HomePane(make_context(empty_project))
    qtbot.addWidget(pane)
    settle()
    assert pane.next.title.text() == "Add a base model"
    assert "0 prompts" in pane.header.subtitle.text()


def test_moments_are_said_in_words() -> None:
    base = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
    at = base.isoformat()
    said = [
        ago(at, base + delta)
        for delta in (
            timedelta(seconds=5),
            timedelta(minutes=5),
            timedelta(hours=5),
            timedelta(days=5),
            timedelta(seconds=-5),
        )
    ]
    assert said == ["just now", "5 min ago", "5 h ago", "5 d ago", "just now"]
    assert "2026" in ago(at, base + timedelta(days=30))
    assert ago("nonsense") == ""
    assert moment("") == ""
    assert "2026" in moment(at)
