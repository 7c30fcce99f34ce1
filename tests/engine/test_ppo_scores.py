"""From the reward model's score to what is paid: normalised, clipped, and then less the penalties."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine import ppo
from engine.ppo_models import Episode, Players, open_players
from engine.session import Session
from tests.engine.rows import QUICK, prompts
from workbench.recipes import PpoRecipe


def test_a_score_is_clipped_before_the_penalties_are_taken_off(runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"score_clip": 2.0, "uncertainty_penalty": 1.0, "missing_eos_penalty": 3.0}
    session = Session(runs.create("ppo", prompts(), **QUICK | settings).path)
    players = open_players(session)
    players.reward = SimpleNamespace(head=SimpleNamespace(count=2))  # of two heads
    monkeypatch.setattr(Players, "scores", lambda _self, _part: ([5.0, -4.0, 0.5], [0.1, 0.2, 0.3]))
    episodes = [Episode(name, "", (1, 5), (9, 2), name != "cut", "an") for name in ("high", "cut", "plain")]
    zeros = torch.zeros(3, 12)
    batch = ppo.Rollout(episodes, [range(3)], torch.tensor([2, 2, 2]), zeros, zeros, zeros, torch.zeros(3))
    trainer = ppo._trainer(players, session.recipe, 1)
    ppo.score(session, trainer, batch)
    # 2 - 0.1;  -2 - 0.2 - 3 for the missing end: what is taken off is never clipped away;  0.5 - 0.3
    assert batch.scores.tolist() == pytest.approx([1.9, -5.2, 0.2])
    assert batch.clipped == pytest.approx(2 / 3)


@pytest.mark.parametrize("settings", [{"score_clip": 0.5}, {"score_norm": "raw"}])
def test_a_rule_is_paid_as_it_is(runs: Any, settings: dict[str, Any]) -> None:
    (problem,) = PpoRecipe(rule="contains:a", **settings).problems()
    assert (problem.field, problem.severity) == (next(iter(settings)), "warning")
    session = Session(runs.create("ppo", prompts(), **QUICK | settings).path)
    players = open_players(session)
    trainer = ppo._trainer(players, session.recipe, 1)
    episode = Episode("x", "", (1, 5), (9, 2), True, "an")
    zeros = torch.zeros(1, 12)
    batch = ppo.Rollout([episode], [range(1)], torch.tensor([2]), zeros, zeros, zeros, torch.zeros(1))
    ppo.score(session, trainer, batch)
    assert batch.scores.tolist() == [1.0]
    assert batch.clipped is None
