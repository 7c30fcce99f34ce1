"""PPO-ptx: demonstrations in the policy's update, by the formula, exactly accumulated, exactly resumed, and learnt."""

from __future__ import annotations

import pytest
import torch

from engine import ppo
from engine.batching import in_passes
from engine.masking import sft_example
from engine.ppo_models import POLICY, Players, open_players
from engine.session import DivergedError, Session
from tests.engine.rows import LEARNT, QUICK, prompts
from workbench.errors import UserError
from workbench.metrics import GLOSSARY
from workbench.protocol import Warned
from workbench.records import Message
from workbench.rows import SftRow

WORDS = ("the hat", "then tea", "an ant in the heat", "that inn", "ten")


def shown(count=5):
    return [SftRow(f"d{n}", "g", (Message("user", f"say {n}" + " so" * n),), WORDS[n % 5]) for n in range(count)]


def opened(folder):
    session = Session(folder.path)
    players = open_players(session)
    trainer = ppo._trainer(players, session.recipe, 4)
    trainer.demonstrations = ppo.demonstrations_to_mix_in(session, players)
    return session, players, trainer


def first_gradients(runs, run_id, **changes):
    """The policy's gradients at the first optimiser step, as they are before clipping."""
    session, players, trainer = opened(runs.create("ppo", prompts(8), (), shown(), run_id=run_id, **(QUICK | changes)))
    found = []
    clip = trainer.policy_optimiser.clip

    def keep():
        if not found:
            found.append([one.grad.clone() for one in players.policy_parameters()])
        return clip()

    trainer.policy_optimiser.clip = keep
    recipe = session.recipe
    rows = ppo.encode_prompts(session, players, "train")[: recipe.prompts_per_rollout]
    batch = ppo.rollout(session, trainer, rows, 5)
    ppo.score(session, trainer, batch)
    meters = ppo.update(session, trainer, batch, ppo.advantage(trainer, batch), 1)
    return players, trainer, found[0], meters.flush()


def test_the_gradient_is_that_of_ppo_plus_the_coefficient_times_that_of_the_mean_loss_a_token(runs):
    changes = {"mini_batches": 1, "ppo_epochs": 1, "learning_rate": 1e-8}
    _, _, plain, _ = first_gradients(runs, "plain", **changes)
    players, trainer, mixed, values = first_gradients(runs, "mixed", ptx_coefficient=3.0, **changes)
    rows = ppo.demonstrations_of(trainer, 8, 1)
    assert len(rows) == 8
    parameters = players.policy_parameters()
    total, tokens = 0.0, 0
    for one in rows:  # row by row, through a plain forward pass and a softmax in float64
        ids = torch.tensor([one.input_ids])
        with players.adapters.use(POLICY):
            logps = players.base.model(ids).logits[0, :-1].double().log_softmax(-1)
        kept = torch.tensor(one.mask[1:])
        total = total - logps.gather(1, ids[0, 1:, None])[:, 0][kept].sum()
        tokens += int(kept.sum())
    loss = total / tokens
    assert values["loss/ptx"] == pytest.approx(loss.item(), rel=1e-5)
    for before, after, more in zip(plain, mixed, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(after - before, 3.0 * more, atol=2e-6, rtol=1e-3)


def test_one_step_of_eight_equals_eight_accumulated_steps_of_one(runs):
    found = [
        first_gradients(runs, f"m{size}", ptx_coefficient=2.0, mini_batches=1, ppo_epochs=1, micro_batch=size)
        for size in (8, 3, 1)
    ]
    for _, _, gradients, values in found[1:]:
        for one, other in zip(found[0][2], gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
        assert values["loss/ptx"] == pytest.approx(found[0][3]["loss/ptx"], rel=1e-5)


def test_every_pass_shows_every_demonstration_once_and_a_step_names_its_own():
    rows = list("abcde")
    taken = [one for step in range(1, 6) for one in in_passes(rows, 4, step, "seed")]
    passes = [taken[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(one) == rows for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    assert in_passes(rows, 4, 4, "seed") == taken[12:16]


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(runs, metric):
    changes = QUICK | {"episodes": 32, "ptx_coefficient": 0.5}
    whole, broken = (runs.create("ppo", prompts(), (), shown(), run_id=name, **changes) for name in ("whole", "broken"))
    runs.run(whole)
    runs.run(broken, stop_at=2)
    runs.run(broken)
    for key in ("objective/scores", "loss/policy_avg", "loss/ptx", "grad_norm"):
        assert metric(broken, key) == metric(whole, key), key
    ours, theirs = ((one.path / "final" / "adapter_model.safetensors").read_bytes() for one in (whole, broken))
    assert ours == theirs
    assert [value for _, value in metric(whole, "ppo/ratio_first")] == [1.0] * 4
    assert "ppo" in GLOSSARY["loss/ptx"].methods
    assert not [one for one in whole.events() if isinstance(one, Warned)]


def test_the_rule_is_learnt_and_the_demonstrations_with_it(runs, metric):
    folder = runs.create("ppo", prompts(12), (), shown(), **(LEARNT | {"ptx_coefficient": 0.3}))
    runs.run(folder)
    scores = [value for _, value in metric(folder, "objective/scores")]
    losses = [value for _, value in metric(folder, "loss/ptx")]
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.35
    assert losses[-1] < 0.5 * losses[0]


def test_without_a_coefficient_there_is_no_loss_of_demonstrations(runs, metric):
    folder = runs.create("ppo", prompts(), (), shown(), **QUICK)
    runs.run(folder)
    assert metric(folder, "loss/ptx") == []


def test_without_demonstrations_the_run_is_refused_with_the_way_out(runs):
    with pytest.raises(UserError, match="set ptx_coefficient to 0"):
        runs.run(runs.create("ppo", prompts(), **(QUICK | {"ptx_coefficient": 1.0})))


def test_memory_that_runs_out_on_the_demonstrations_starts_the_whole_mini_batch_again(runs, monkeypatch):
    settings = {"ptx_coefficient": 2.0, "mini_batches": 1, "ppo_epochs": 1}
    _, _, calm, values = first_gradients(runs, "calm", **settings)
    forward, failed = Players.demonstration_loss, []

    def short(self, examples):
        if len(examples) > 2:
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, examples)

    monkeypatch.setattr(Players, "demonstration_loss", short)
    _, _, pressed, after = first_gradients(runs, "pressed", **settings)
    assert failed
    for one, other in zip(calm, pressed, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert after["loss/policy_avg"] == pytest.approx(values["loss/policy_avg"], abs=1e-5)
    assert after["loss/ptx"] == pytest.approx(values["loss/ptx"], rel=1e-5)


def test_a_loss_of_demonstrations_that_is_not_finite_ends_the_run(runs, monkeypatch):
    forward = Players.demonstration_loss
    monkeypatch.setattr(Players, "demonstration_loss", lambda self, rows: forward(self, rows) * torch.nan)
    with pytest.raises(DivergedError, match="loss/ptx was nan"):
        runs.run(runs.create("ppo", prompts(), (), shown(), **(QUICK | {"ptx_coefficient": 1.0})))


def test_only_the_completion_of_a_demonstration_is_trained(runs):
    _, players, trainer = opened(runs.create("ppo", prompts(), (), shown(), **(QUICK | {"ptx_coefficient": 1.0})))
    row = shown()[0]
    expected = sft_example(players.base.tokenizer, row.prompt, row.completion, 256)
    assert trainer.demonstrations[0] == expected
    assert not any(expected.mask[: expected.prompt_length])
