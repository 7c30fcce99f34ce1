"""What a rollout passed and kept for its first update is what the update would have passed again, bit for bit."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from engine import ppo
from engine.kept_passes import KeptPasses, Pass, room_for_passes
from engine.ppo_models import Players, open_players
from engine.session import Session
from tests.engine.conftest import build_base
from tests.engine.rows import QUICK, prompts
from workbench import memory_plan
from workbench.model_shape import shape_of

ALL, NONE = 10**9, 0


def trained(runs: Any, tokens: int, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[list[torch.Tensor], int]:
    """All that two steps have trained with room for so many tokens; and the passes that learnt or were learnt from."""
    folder = runs.create("ppo", prompts(), run_id=f"kept-{tokens}", **QUICK | {"learning_rate": 1e-2} | changes)
    passes = 0
    forward = Players.policy_logps

    def counted(self: Players, *given: Any) -> Any:
        nonlocal passes
        passes += torch.is_grad_enabled()
        return forward(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Players, "policy_logps", counted)
        patch.setattr(Players, "tokens_to_keep", lambda _: tokens)
        session = Session(folder.path)
        players = open_players(session)
        trainer = ppo._trainer(players, players.recipe, 2)
        rows = ppo.encode_prompts(session, players, "train")
        for step in (1, 2):
            count = players.recipe.responses_per_prompt
            batch = ppo.rollout(session, trainer, rows[: players.recipe.prompts_per_rollout], 5, count=count, step=step)
            ppo.score(session, trainer, batch)
            meters = ppo.update(session, trainer, batch, ppo.advantage(trainer, batch), step)
            assert meters.flush()["ppo/ratio_first"] == 1.0
            assert not batch.kept._passes
    parameters = [*players.policy_parameters(), *players.value_parameters()]
    return [one.detach().clone() for one in parameters], passes


@pytest.mark.parametrize(
    "changes",
    [{}, {"gradient_checkpointing": True}, {"advantage": "grpo", "responses_per_prompt": 4}],
    ids=["gae", "checkpointing", "grpo"],
)
def test_a_kept_pass_trains_what_a_second_one_would(
    runs: Any, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    kept, fewer = trained(runs, ALL, monkeypatch, **changes)
    again, more = trained(runs, NONE, monkeypatch, **changes)
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
    assert fewer == more  # the rollout's own pass takes the place of the update's
    # 2 steps x 2 epochs x 2 mini-batches of 1 micro-batch: each passes once in either case
    assert more == 8


def test_the_rollout_makes_no_pass_of_its_own_for_what_is_kept(runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    forward = Players.values

    def watched(self: Players, *given: Any) -> Any:
        calls.append(torch.is_grad_enabled())
        return forward(self, *given)

    monkeypatch.setattr(Players, "values", watched)
    trained(runs, ALL, monkeypatch)
    # a step: 2 mini-batches measured, the first with its graph; then 2 epochs x 2 mini-batches less that one
    assert (calls.count(False), calls.count(True)) == (2 * 1, 2 * (1 + 4 - 1))
    calls.clear()
    trained(runs, NONE, monkeypatch)
    assert (calls.count(False), calls.count(True)) == (2 * 2, 2 * 4)


def test_room_for_one_micro_batch_keeps_one(runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    every, _ = trained(runs, ALL, monkeypatch, micro_batch=1, mini_batches=1)
    some, _ = trained(runs, 40, monkeypatch, micro_batch=1, mini_batches=1)
    assert all(torch.equal(one, other) for one, other in zip(every, some, strict=True))


def test_kept_graphs_are_let_go_before_a_single_row_is_given_up(runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = trained(runs, NONE, monkeypatch, micro_batch=1)
    forward, kept = Players.policy_logps, KeptPasses.keep
    held: list[int] = []

    def short(self: Players, *given: Any) -> Any:
        if len(held) == 3 and not torch.is_grad_enabled():  # three graphs are all that there is room for
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, *given)

    monkeypatch.setattr(Players, "policy_logps", short)
    monkeypatch.setattr(KeptPasses, "keep", lambda *given: (held.append(1), kept(*given))[1])
    drop = KeptPasses.drop
    monkeypatch.setattr(KeptPasses, "drop", lambda self: (held.clear(), drop(self))[1])
    found, _ = trained(runs, ALL, monkeypatch, micro_batch=1)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_padding_takes_room_as_tokens_do(runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rows are padded, as on a GPU, the graph of a micro-batch covers B x T."""
    uneven = [dataclasses.replace(prompts(1, size)[0], id=str(size)) for size in range(1, 7)]
    session = Session(runs.create("ppo", uneven, **QUICK).path)
    players = open_players(session)
    players.base.packs = False
    monkeypatch.setattr(Players, "tokens_to_keep", lambda _: ALL)
    batch = ppo.rollout(
        session, ppo._trainer(players, players.recipe, 1), ppo.encode_prompts(session, players, "train"), 5, step=1
    )
    parts = [[batch.episodes[row] for row in rows] for rows in batch.kept._passes]
    padded = sum(len(part) * max(one.tokens for one in part) for part in parts)
    assert padded > sum(one.tokens for part in parts for one in part)
    assert batch.kept.tokens == ALL - padded


def test_memory_that_runs_out_while_scoring_lets_go_of_what_was_kept(
    runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = trained(runs, NONE, monkeypatch)
    scores, failed = Players.scores, []

    def short(self: Players, episodes: Any) -> Any:
        if not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return scores(self, episodes)

    monkeypatch.setattr(Players, "scores", short)
    dropped: list[int] = []
    drop = KeptPasses.drop
    monkeypatch.setattr(KeptPasses, "drop", lambda self: (dropped.append(len(self._passes)), drop(self))[1])
    found, _ = trained(runs, ALL, monkeypatch)
    assert failed
    assert dropped == [1]
    # after that micro-batches hold two rows: sums in another order
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, expected, strict=True))


def test_an_evaluation_keeps_nothing(runs: Any) -> None:
    session = Session(runs.create("ppo", prompts(), **QUICK).path)
    players = open_players(session)
    trainer = ppo._trainer(players, players.recipe, 1)
    batch = ppo.rollout(session, trainer, ppo.encode_prompts(session, players, "train"), 5)
    assert batch.kept.take(batch.minis[0]) is None
    assert not batch.logps.requires_grad


def test_a_pass_is_kept_while_there_is_room_and_given_out_once() -> None:
    ones = torch.ones(2, 3, requires_grad=True)
    made = Pass(ones * 2, torch.zeros(2, 3), None)
    kept = KeptPasses(range(4, 8), 100)
    assert kept.wants(range(4, 6), 100)
    assert not kept.wants(range(4, 6), 101)  # no room
    assert not kept.wants(range(0, 2), 10)  # another mini-batch
    kept.keep(range(4, 6), 60, made)
    assert not kept.wants(range(6, 8), 60)
    assert kept.take(range(4, 7)) is None  # cut otherwise
    assert kept.take(range(4, 6)) is made
    assert kept.take(range(4, 6)) is None
    kept.keep(range(4, 6), 10, made)
    kept.drop()
    assert kept.take(range(4, 6)) is None
    assert not kept.wants(range(4, 6), 1)
    assert made.detached().values is None
    assert not made.detached().logps.requires_grad


def test_room_is_what_the_plan_says(monkeypatch: pytest.MonkeyPatch) -> None:
    base = build_base()
    one, stream = (
        memory_plan.graph_per_token(
            shape_of(base.model.config.to_dict(), 0), 16, 4, gpu=False, checkpointing=checkpointing
        )
        for checkpointing in (False, True)
    )
    assert stream == 4 * base.hidden_size * base.model.config.num_hidden_layers  # what enters each layer, in fp32
    for free, room in ((2**40, memory_plan.KEPT_BYTES), (2**20, 2**18)):
        monkeypatch.setattr("engine.kept_passes.free_bytes", lambda _, free=free: free)
        assert room_for_passes(base, 16, 2, checkpointing=False) == room // (2 * one)
        assert room_for_passes(base, 16, 1, checkpointing=True) == room // stream
