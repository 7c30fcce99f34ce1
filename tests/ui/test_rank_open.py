"""Open in Rank: the very label, as it stands now, or why it is another card."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.ui.conftest import Filled, response
from tests.ui.waiting import wait
from ui.rank_open import open_prompt
from ui.rank_pane import RankPane
from workbench.errors import UserError
from workbench.ids import new_id
from workbench.records import GOOD, Ranking, Rater, ResponseFlag


@pytest.fixture
def first(filled: Filled) -> Ranking:
    return filled.rankings[0]


def opened(filled: Filled, ranking: Ranking) -> Any:
    return open_prompt(filled.project.store, ranking.prompt_id, filled.rater.id, ranking.id)


def add(filled: Filled, *texts: str) -> list[str]:
    new = [response(filled.prompts[0], text) for text in texts]
    filled.project.store.add_responses(new).result(10)
    return [one.id for one in new]


def test_the_label_opens_also_where_new_responses_wait(filled: Filled, first: Ranking) -> None:
    add(filled, "New.")
    found = opened(filled, first)
    assert found.item.corrects == first
    assert found.item.ids[:4] == first.shown_order
    assert found.item.places == (1, 2, 2, 3, 0)
    assert found.said == ""


def test_the_label_opens_also_where_a_newer_one_stands_beside_it(filled: Filled, first: Ranking) -> None:
    best = first.tiers[0][0]
    beside = Ranking(new_id(), first.prompt_id, filled.rater.id, (tuple(add(filled, "New.")), (best,)))
    filled.project.store.save_ranking(beside).result(10)
    assert opened(filled, first).item.corrects == first
    assert opened(filled, beside).item.corrects.id == beside.id


def test_a_label_that_was_corrected_since_opens_as_its_correction(filled: Filled, first: Ranking) -> None:
    for tiers in (first.tiers[::-1], first.tiers):
        last = replace(first, id=new_id(), tiers=tiers)
        filled.project.store.save_ranking(last).result(10)
    assert opened(filled, first).item.corrects.id == last.id


def test_thumbs_of_a_card_that_could_not_be_ranked_come_back(filled: Filled, first: Ranking) -> None:
    flags = (ResponseFlag(first.shown_order[1], GOOD),)
    thumbs = replace(first, id=new_id(), tiers=(), outcome="cannot-rank", flags=flags)
    filled.project.store.save_ranking(thumbs).result(10)
    item = opened(filled, thumbs).item
    assert (item.corrects, item.thumbs) == (None, ("", GOOD, "", ""))


def test_another_raters_label_is_not_taken_for_ones_own(filled: Filled, first: Ranking) -> None:
    store = filled.project.store
    store.save_rater(Rater("ben", "Ben")).result(10)
    bens = replace(first, id=new_id(), rater_id="ben", tiers=first.tiers[::-1])
    store.save_ranking(bens).result(10)
    found = opened(filled, bens)
    assert found.item.corrects == first
    assert "by Ben" in found.said


def test_a_label_that_was_taken_back_says_so(filled: Filled, first: Ranking) -> None:
    found = opened(filled, replace(first, id="gone"))
    assert found.item.corrects == first
    assert "taken back" in found.said


def test_a_prompt_that_is_archived_is_refused_with_the_reason(filled: Filled, first: Ranking) -> None:
    filled.project.store.archive_prompts([first.prompt_id]).result(10)
    for ranking_id in ("", first.id):
        with pytest.raises(UserError, match="archived"):
            open_prompt(filled.project.store, first.prompt_id, filled.rater.id, ranking_id)


def test_the_pane_opens_a_label_and_shows_what_is_to_be_said(
    qtbot: Any, context: Any, filled: Filled, first: Ranking, settle: Any, said: Any
) -> None:
    add(filled, "New.")
    pane = RankPane(context)
    qtbot.addWidget(pane)
    pane.activate()
    settle()
    pane.show_item(prompt_id=first.prompt_id, ranking_id=first.id)
    wait(qtbot, lambda: pane.item is not None and pane.item.corrects == first)
    pane.show_item(prompt_id=filled.prompts[1].id, ranking_id="gone")
    settle()
    assert pane.item is not None
    assert pane.item.corrects == filled.rankings[1]
    assert "taken back" in said.notices[-1][0]
    filled.project.store.archive_prompts([filled.prompts[2].id]).result(10)
    pane.show_item(prompt_id=filled.prompts[2].id)
    settle()
    assert "archived" in str(said.errors[-1])
    settle()
