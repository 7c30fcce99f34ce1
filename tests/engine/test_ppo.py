"""PPO on a tiny model: one base, a ratio of exactly 1, exact gradients, exact resumes, learning, and its alarms."""

from __future__ import annotations

import statistics

import pytest
import torch

from engine import ppo
from engine.adapters import Adapters
from engine.advantages import kl_per_token
from engine.base_model import load_base
from engine.control import Stopped
from engine.generate import generate
from engine.heads import ScalarHead
from engine.ppo_models import POLICY, REWARD, VALUE, Episode, Layout, Players, open_players
from engine.ppo_report import evaluation_metrics, repetition, samples_of
from engine.rules import rule_scorer
from engine.score import RewardStats
from engine.session import DivergedError, Session
from tests.engine.conftest import randomise
from tests.engine.golden_adapter import noise_adapter
from tests.engine.rows import LEARNT, QUICK, prompts
from workbench.errors import UserError
from workbench.metrics import GLOSSARY
from workbench.protocol import Checkpoint, Diverged, Metrics, ModelRef, Paused, SampleNow, Stop, Warned
from workbench.recipes import PpoRecipe
from workbench.records import Sampling

GROUPS = {"responses_per_prompt": 4, "batch": 8}
OF_A_VALUE = {"loss/value_avg", "val/clipfrac_avg", "ppo/returns_mean", "ppo/values_mean", "ppo/explained_variance"}
OF_CLIPPING = {"objective/scores_clipped"}
OF_HEADS = {"objective/score_std_heads", "eval_objective/score_std_heads"}
OF_GROUPS = {"gae": set(), "rloo": {"frac_reward_zero_std"}, "grpo": {"frac_reward_zero_std", "loss/kl_avg"}}


def advantage_of(method):
    """Recipe fields of GAE, RLOO or GRPO."""
    return {"advantage": method} | ({} if method == "gae" else GROUPS)


@pytest.fixture
def trained_adapter(tiny_model_dir, tmp_path):
    """A start adapter that is not the base."""
    adapters = Adapters(load_base(tiny_model_dir, quantisation="bf16", device=torch.device("cpu")))
    adapters.add("made", rank=4, alpha=8, trainable=False)
    randomise(adapters, "made", seed=1)
    adapters.save("made", tmp_path / "start")
    return tmp_path / "start"


@pytest.fixture
def reward_ref(tiny_model_dir, tmp_path):
    adapters = Adapters(load_base(tiny_model_dir, quantisation="bf16", device=torch.device("cpu")))
    adapters.add("made", rank=4, alpha=8, trainable=False)
    randomise(adapters, "made", seed=2)
    adapters.save("made", tmp_path / "reward", ScalarHead(64, seed=3).weight)
    RewardStats(0.7, 2.5, 9, "demonstrations").write(tmp_path / "reward")
    return ModelRef(model_id="r", name="reward", base=str(tiny_model_dir), adapter=str(tmp_path / "reward"))


def opened(folder):
    session = Session(folder.path)
    players = open_players(session)
    return session, players, ppo._trainer(players, session.recipe, 4), ppo.encode_prompts(session, players, "train")


# ---- a whole run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gae", "rloo", "grpo"])
def test_every_metric_is_in_the_glossary_and_the_first_ratio_is_exactly_1(runs, metric, method):
    folder = runs.create("ppo", prompts(), prompts(5), eval_every=1, **(QUICK | advantage_of(method)))
    runs.run(folder)
    sent = {key for one in folder.events() if isinstance(one, Metrics) for key in one.values}
    assert sent <= set(GLOSSARY)
    wanted = (
        {key for key, one in GLOSSARY.items() if "ppo" in one.methods}
        - OF_GROUPS["grpo"]
        - OF_HEADS
        - OF_CLIPPING
        - {"loss/ptx"}
    )
    assert sent == (wanted if method == "gae" else wanted - OF_A_VALUE) | OF_GROUPS[method]
    assert [value for _, value in metric(folder, "ppo/ratio_first")] == [1.0, 1.0]
    assert not [one for one in folder.events() if isinstance(one, Warned)]
    assert metric(folder, "objective/kl")[0][1] == 0.0
    rows = [one.values for one in folder.events() if isinstance(one, Metrics) and "objective/scores" in one.values]
    penalties = [one["objective/non_score_reward"] for one in rows]
    k1 = [-0.05 * one["objective/kl"] for one in rows]
    assert penalties == pytest.approx([0.0, 0.0] if method == "grpo" else k1)  # GRPO's is in the loss
    assert k1[1] != 0
    assert all(
        one["objective/rlhf_reward"] == one["objective/scores"] + paid
        for one, paid in zip(rows, penalties, strict=True)
    )
    assert metric(folder, "eval_objective/kl")[0][1] == 0.0
    assert [step for step, _ in metric(folder, "eval_objective/scores")] == [0, 1, 2]
    assert (folder.path / "final" / "adapter_model.safetensors").exists()
    assert not list((folder.path / "final").glob("state*"))


def test_samples_have_numbers_per_token_that_add_up(runs, metric):
    folder = runs.create("ppo", prompts(), score_position="after", **QUICK)
    runs.run(folder)
    samples = folder.samples()
    assert len(samples) == 16
    for one in samples:
        assert len(one.tokens) == len(one.token_logps) == len(one.token_advantages) == len(one.token_values)
        assert one.kl == pytest.approx(sum(one.token_kl), abs=1e-3)
        # what is paid: the score once, and minus the KL coefficient times the KL
        assert sum(one.token_rewards) == pytest.approx(one.score - 0.05 * one.kl, abs=1e-3)
        assert "".join(one.tokens).removesuffix("<|im_end|>") == one.response or not one.ended
    second = [one for one in samples if one.step == 2]
    assert metric(folder, "objective/scores")[1][1] == pytest.approx(sum(one.score for one in second) / 8, abs=1e-4)
    assert metric(folder, "objective/kl")[1][1] == pytest.approx(sum(one.kl for one in second) / 8, abs=1e-3)


@pytest.mark.parametrize("start", ["base", "adapter", "reward model", "rloo", "grpo"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(runs, metric, start, request):
    changes = QUICK | {"episodes": 32, "kl_target": 0.01, "kl_horizon": 50, "whiten_rewards": True}
    if start in ("rloo", "grpo"):
        changes |= advantage_of(start) | {"whiten_rewards": False}
    if start == "adapter":
        changes["adapter"] = request.getfixturevalue("trained_adapter")
    if start == "reward model":
        changes |= {"rule": "", "reward": request.getfixturevalue("reward_ref")}
    whole, broken = (
        runs.create("ppo", prompts(), prompts(2), run_id=run_id, **changes) for run_id in ("whole", "broken")
    )
    runs.run(whole)
    runs.run(broken, stop_at=2)
    runs.run(broken)
    for key in ("objective/scores", "objective/kl", "loss/policy_avg", "loss/value_avg", "grad_norm", "learning_rate"):
        assert metric(broken, key) == metric(whole, key), key
    assert metric(broken, "ppo/kl_coefficient") == metric(whole, "ppo/kl_coefficient")
    for name in ("adapter_model.safetensors",):
        assert (broken.path / "final" / name).read_bytes() == (whole.path / "final" / name).read_bytes()
    assert len({value for _, value in metric(whole, "ppo/kl_coefficient")}) > 1


@pytest.mark.parametrize("method", ["gae", "rloo", "grpo"])
def test_a_rule_is_learnt_and_the_leash_holds(runs, metric, method):
    settings = LEARNT | {
        "advantage": method,
        "responses_per_prompt": 1 if method == "gae" else 4,
        "episodes": (18 if method == "rloo" else 16) * 24,
    }
    folder = runs.create("ppo", prompts(12), prompts(8), **settings)
    runs.run(folder)
    scores = [value for _, value in metric(folder, "objective/scores")]
    assert sum(scores[:3]) / 3 < 0.35
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.35
    divergences = [value for _, value in metric(folder, "objective/kl")]
    assert (
        max(divergences) < 1 / settings["kl_coefficient"]
    )  # no score is worth more than 1, a nat costs the coefficient
    held_out = metric(folder, "eval_objective/scores")
    assert held_out[-1][1] > held_out[0][1]


# ---- the players ---------------------------------------------------------------------------------------------


def test_only_policy_value_and_value_head_ever_change(runs, reward_ref, trained_adapter):
    changes = QUICK | {"rule": "", "learning_rate": 1e-2}
    folder = runs.create("ppo", prompts(), adapter=trained_adapter, reward=reward_ref, **changes)
    session, players, trainer, rows = opened(folder)
    assert set(players.adapters.names) == {"policy", "reference", "reward", "value"}
    before = {name: [one.clone() for one in players.adapters.parameters(name)] for name in players.adapters.names}
    frozen = {key: one.clone() for key, one in players.base.model.state_dict().items() if "lora" not in key}
    head, reward_head = players.head.weight.clone(), players.reward.head.weight.clone()
    step(session, trainer, rows)

    def moved(name):
        now = players.adapters.parameters(name)
        return any(not torch.equal(a, b) for a, b in zip(before[name], now, strict=True))

    assert {name for name in players.adapters.names if moved(name)} == {"policy", "value"}
    assert not torch.equal(players.head.weight, head)
    assert torch.equal(players.reward.head.weight, reward_head)
    now = players.base.model.state_dict()
    assert all(torch.equal(one, now[key]) for key, one in frozen.items())
    assert all(one.grad is None for one in players.base.model.parameters())


def step(session, trainer, rows, number=1):
    recipe = session.recipe
    batch = ppo.rollout(session, trainer, rows[: recipe.prompts_per_rollout], 5, count=recipe.responses_per_prompt)
    ppo.score(session, trainer, batch)
    return batch, ppo.update(session, trainer, batch, ppo.advantage(trainer, batch), number)


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_without_a_value_function_there_is_no_value_adapter_and_only_the_policy_changes(runs, reward_ref, method):
    changes = QUICK | {"rule": "", "learning_rate": 1e-2} | advantage_of(method)
    session, players, trainer, rows = opened(runs.create("ppo", prompts(), reward=reward_ref, **changes))
    assert set(players.adapters.names) == {"policy", "reward"}
    assert (players.head, trainer.value_optimiser, players.value_parameters()) == (None, None, [])
    before = {name: [one.clone() for one in players.adapters.parameters(name)] for name in players.adapters.names}
    batch, meters = step(session, trainer, rows)
    assert batch.values is None
    assert meters.flush()["ppo/ratio_first"] == 1.0
    for name, changed in (("policy", True), ("reward", False)):
        now = players.adapters.parameters(name)
        assert any(not torch.equal(a, b) for a, b in zip(before[name], now, strict=True)) == changed
    sample = samples_of(1, batch, ppo.advantage(trainer, batch), players.base.tokenizer)[0]
    assert sample.token_values == ()
    assert len(set(sample.token_advantages)) == 1


def test_the_responses_to_one_prompt_lie_together_and_are_all_drawn_anew(runs):
    changes = QUICK | {"batch": 24, "responses_per_prompt": 4, "mini_batches": 3, "micro_batch": 4}
    session, players, trainer, rows = opened(runs.create("ppo", prompts(3), **changes))
    found = ppo.rollout(session, trainer, [*rows, *rows], 5, count=4)  # a prompt may come twice, as two groups
    assert sorted(found.groups.tolist()) == sorted([*range(6)] * 4)
    for mini in found.minis:
        groups = found.groups[mini.start : mini.stop].tolist()
        assert groups == [groups[0]] * 4 + [groups[4]] * 4
        four = found.episodes[mini.start : mini.start + 4]  # their prompt passes through the model once
        assert players.layout(four).tokens == len(four[0].prompt_ids) + sum(len(one.ids) for one in four)
    for group in range(6):
        episodes = [one for one in found.episodes if one.group == group]
        assert len({one.prompt_ids for one in episodes}) == 1
        assert len({one.ids for one in episodes}) > 1
    assert found.values is not None  # GAE may have several responses to a prompt too


@pytest.mark.parametrize(("norm", "zero", "unit"), [("calibrated", 0.7, 2.5), ("centred", 0.7, 1), ("raw", 0, 1)])
def test_the_value_starts_as_the_reward_model_in_the_unit_that_is_paid(runs, reward_ref, norm, zero, unit):
    folder = runs.create("ppo", prompts(), reward=reward_ref, **(QUICK | {"rule": "", "score_norm": norm}))
    _, players, _, rows = opened(folder)
    episodes = [Episode(one.id, one.text, one.ids, (5, 9, 2), True, "") for one in rows]
    values = players.values(players.layout(episodes), 4)
    # V behind the last token has read what the reward model reads: (r - mean) / std, whose demonstrations are at 0.7
    scores, stds = players.scores(episodes)
    assert values[:, 3].tolist() == pytest.approx(scores, abs=1e-5)
    raw = players.reward.score_ids([[*one.prompt_ids, *one.ids] for one in episodes])
    assert scores == pytest.approx([(one - zero) / unit for one in raw.tolist()], abs=1e-6)
    assert not any(stds)


def test_with_a_rule_the_value_starts_at_0_beside_the_policy(runs, trained_adapter):
    _, players, _, rows = opened(runs.create("ppo", prompts(), adapter=trained_adapter, **QUICK))
    episodes = [Episode(one.id, one.text, one.ids, (5, 9, 2), True, "") for one in rows]
    assert not players.values(players.layout(episodes), 4).any()
    for policy, value in zip(players.policy_parameters(), players.adapters.parameters(VALUE), strict=True):
        assert torch.equal(policy, value)
    assert players.reference == "reference"


def test_log_probabilities_and_values_are_those_of_a_plain_forward_pass(runs):
    _, players, _, rows = opened(runs.create("ppo", prompts(), **(QUICK | {"temperature": 0.7})))
    with torch.no_grad():
        players.head.weight.copy_(ScalarHead(64, seed=8).weight)
    episodes = [
        Episode("a", "", rows[0].ids, (5, 9, 2), True, ""),
        Episode("b", "", (*rows[1].ids, 7, 7, 7), (9,), False, ""),
    ]
    with torch.no_grad():
        logps, entropy = players.policy_logps(POLICY, players.layout(episodes), 5)
        values = players.values(players.layout(episodes), 5)
    for row, one in enumerate(episodes):
        ids = torch.tensor([[*one.prompt_ids, *one.ids]])
        with torch.no_grad(), players.adapters.use(POLICY):
            logits = players.base.model(ids).logits[0].float() / 0.7
        start, count = len(one.prompt_ids), len(one.ids)
        whole = logits.log_softmax(-1)[start - 1 : -1]
        assert logps[row, :count].tolist() == pytest.approx(
            [float(whole[place, token]) for place, token in enumerate(one.ids)], abs=1e-5
        )
        assert entropy[row, :count].tolist() == pytest.approx((-(whole.exp() * whole).sum(-1)).tolist(), abs=1e-5)
        with torch.no_grad(), players.adapters.use(VALUE):
            hidden = players.base.decoder(input_ids=ids).last_hidden_state[0]
        expected = players.head(hidden)[start - 1 : start + count].detach()
        assert values[row, : count + 1].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
        assert not logps[row, count:].any()
        assert not values[row, count + 1 :].any()


@pytest.mark.parametrize("method", ["gae", "rloo", "grpo"])
def test_micro_batches_change_nothing_but_rounding(runs, method):
    after = []
    for micro_batch in (8, 3, 1):
        changes = QUICK | advantage_of(method) | {"mini_batches": 1, "micro_batch": micro_batch}
        folder = runs.create("ppo", prompts(8), run_id=f"m{micro_batch}", **changes)
        session, players, trainer, rows = opened(folder)
        _, meters = step(session, trainer, rows)
        after.append(([one.detach().clone() for one in players.policy_parameters()], meters.flush()))
    for weights, values in after[1:]:
        for one, other in zip(weights, after[0][0], strict=True):
            assert torch.allclose(one, other, atol=1e-5)
        assert values == pytest.approx(after[0][1], abs=1e-4, rel=1e-3)


def test_gradient_checkpointing_changes_nothing(runs):
    after = []
    for checkpointing in (False, True):
        folder = runs.create(
            "ppo", prompts(8), run_id=f"c{checkpointing}", **(QUICK | {"gradient_checkpointing": checkpointing})
        )
        session, players, trainer, rows = opened(folder)
        batch, meters = step(session, trainer, rows)
        assert meters.flush()["ppo/ratio_first"] == 1.0
        after.append((batch.episodes, [one.detach().clone() for one in players.policy_parameters()]))
    assert after[0][0] == after[1][0]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(after[0][1], after[1][1], strict=True))


def test_memory_that_runs_out_halves_the_micro_batch_and_says_so(runs, monkeypatch):
    folder = runs.create("ppo", prompts(), **QUICK)
    forward, failed = Players.values, []

    def short(self, rows: Layout, width):
        if len(rows.last) > 2 and torch.is_grad_enabled():
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, rows, width)

    monkeypatch.setattr(Players, "values", short)
    runs.run(folder)
    assert failed
    assert next(one.code for one in folder.events() if isinstance(one, Warned)) == "oom"
    assert len(folder.samples()) == 16


# ---- prompts, seeds, mini-batches ----------------------------------------------------------------------------


def test_every_pass_over_the_prompts_is_a_new_shuffle_of_all_of_them():
    rows = [ppo.PromptIds(str(index), "", (1,)) for index in range(6)]
    drawn = [one.id for number in range(1, 7) for one in ppo.prompts_of_step(rows, 4, 0, number)]
    passes = [drawn[start : start + 6] for start in range(0, 24, 6)]
    assert all(sorted(one) == sorted(row.id for row in rows) for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    assert drawn == [one.id for number in range(1, 7) for one in ppo.prompts_of_step(rows, 4, 0, number)]
    assert len(ppo.prompts_of_step(rows, 40, 0, 2)) == 40


def test_mini_batches_hold_every_row_once():
    assert ppo.mini_batches(20, 2) == [range(10), range(10, 20)]
    assert ppo.mini_batches(7, 3) == [range(3), range(3, 6), range(6, 7)]


def test_long_and_short_episodes_are_dealt_to_every_mini_batch(runs):
    folder = runs.create("ppo", prompts(16), **QUICK | {"batch": 16, "mini_batches": 2})
    session = Session(folder.path)
    players = open_players(session)
    trainer = ppo._trainer(players, players.recipe, 2)
    found = ppo.rollout(session, trainer, ppo.encode_prompts(session, players, "train")[:16], 5)
    sizes = [[found.episodes[row].tokens for row in mini] for mini in found.minis]
    assert [len(one) for one in sizes] == [8, 8]
    assert all(one == sorted(one, reverse=True) for one in sizes)
    assert max(sizes[1]) > min(sizes[0])  # and not the eight longest first


def test_prompts_that_leave_no_room_are_left_out_and_counted(runs):
    folder = runs.create("ppo", [*prompts(3), *prompts(2, size=60)], **(QUICK | {"max_length": 120}))
    session = Session(folder.path)
    players = open_players(session)
    assert len(ppo.encode_prompts(session, players, "train")) == 3
    [said] = [one for one in folder.events() if isinstance(one, Warned)]
    assert said.code == "rows-dropped"
    assert said.message.startswith("2 of 5 prompts were left out")
    nothing = runs.create("ppo", prompts(2, size=60), run_id="none", **(QUICK | {"max_length": 120}))
    with pytest.raises(UserError, match="nothing to train"):
        runs.run(nothing)


def test_a_response_that_was_cut_off_pays_the_penalty(runs):
    session, players, trainer, _ = opened(runs.create("ppo", prompts(), **(QUICK | {"missing_eos_penalty": 3.0})))
    players.rule = rule_scorer("contains:a")
    ids = (1, 5)
    episodes = [Episode("x", "", ids, (9, 2), True, "an"), Episode("y", "", ids, (9, 9), False, "an")]
    zeros = torch.zeros(2, 12)
    batch = ppo.Rollout(episodes, [range(2)], torch.tensor([2, 2]), zeros, zeros, zeros, torch.zeros(2))
    ppo.score(session, trainer, batch)
    assert batch.scores.tolist() == [1.0, -2.0]


def test_repetition_counts_4_grams_that_were_there_before():
    assert repetition([1, 2, 3, 4, 5]) == 0.0
    assert repetition([7] * 7) == pytest.approx(3 / 4)
    assert repetition([1, 2]) == 0.0


# ---- alarms and faults ---------------------------------------------------------------------------------------


def test_a_kl_above_its_bound_saves_and_waits(runs, metric):
    folder = runs.create("ppo", prompts(), **(QUICK | {"episodes": 80, "learning_rate": 0.05, "max_kl": 0.05}))
    session = Session(folder.path)
    waits = session._wait_while_paused

    def stop_instead(number, save):
        if session.control.paused:
            session.control.obey(Stop(save=False))
            session._emit(Paused(step=number))
        waits(number, save)

    session._wait_while_paused = stop_instead
    with pytest.raises(Stopped):
        ppo.run(session)
    said = [one for one in folder.events() if isinstance(one, Warned)]
    assert [one.code for one in said] == ["max-kl"]
    number, kl = metric(folder, "objective/kl")[-1]
    assert kl > 0.05
    assert [one.step for one in folder.events() if isinstance(one, Checkpoint)] == [number]


def test_a_ratio_that_is_not_1_is_said_aloud_once(runs, monkeypatch):
    folder = runs.create("ppo", prompts(), **QUICK)
    plain = Players.policy_logps

    def skewed(self, name, rows, width):
        logps, entropy = plain(self, name, rows, width)
        return (logps + 0.01 if torch.is_grad_enabled() else logps), entropy

    monkeypatch.setattr(Players, "policy_logps", skewed)
    monkeypatch.setattr(Players, "tokens_to_keep", lambda _: 0)  # a kept pass is never another
    runs.run(folder)
    said = [one for one in folder.events() if isinstance(one, Warned)]
    assert [one.code for one in said] == ["ratio"]
    assert "0.0101" in said[0].message


def test_a_loss_that_is_not_finite_ends_the_run_with_the_prompts_of_its_batch(runs, monkeypatch):
    folder = runs.create("ppo", prompts(), **QUICK)
    plain = Players.values

    def broken(self, rows, width):
        values = plain(self, rows, width)
        return values * torch.nan if torch.is_grad_enabled() else values

    monkeypatch.setattr(Players, "values", broken)
    monkeypatch.setattr(Players, "tokens_to_keep", lambda _: 0)
    with pytest.raises(DivergedError):
        runs.run(folder)
    [said] = [one for one in folder.events() if isinstance(one, Diverged)]
    assert (said.metric, said.kind) == ("loss/value_avg", "nan")
    assert len(said.rows) == 4


def test_without_anything_to_score_with_the_run_is_refused(runs, reward_ref, tmp_path):
    changes = QUICK | {"rule": ""}
    with pytest.raises(UserError, match="nothing to score with"):
        runs.run(runs.create("ppo", prompts(), **changes))
    other = ModelRef(model_id="r", name="r", base=str(tmp_path), adapter=reward_ref.adapter)
    with pytest.raises(UserError, match="another base"):
        runs.run(runs.create("ppo", prompts(), reward=other, run_id="other", **changes))


def test_an_uncalibrated_reward_model_is_used_raw_and_said_aloud(runs, reward_ref, tmp_path):
    (tmp_path / "reward" / "reward_stats.json").unlink()
    folder = runs.create("ppo", prompts(), reward=reward_ref, **(QUICK | {"rule": "", "episodes": 8}))
    runs.run(folder)
    assert [one.code for one in folder.events() if isinstance(one, Warned)] == ["reward-uncalibrated"]


def test_samples_asked_for_are_of_held_out_prompts(runs):
    folder = runs.create("ppo", prompts(), prompts(3), **(QUICK | {"episodes": 8}))
    session = Session(folder.path)
    session.control.obey(SampleNow())
    ppo.run(session)
    first = folder.samples()[:3]
    assert [one.step for one in first] == [0, 0, 0]
    assert all(one.token_kl and not one.token_rewards and not one.token_advantages for one in first)


def test_samples_asked_for_without_held_out_prompts_are_of_training_prompts_and_measure_nothing(runs):
    folder = runs.create("ppo", prompts(), **(QUICK | {"episodes": 8}))
    session = Session(folder.path)
    session.control.obey(SampleNow())
    ppo.run(session)
    assert sorted((one.step, one.prompt_id) for one in folder.samples()[:6]) == [(0, f"p{index}") for index in range(6)]
    assert not any(one.step == 0 for one in folder.events() if isinstance(one, Metrics))


def test_samples_that_cannot_be_drawn_when_asked_for_do_not_end_the_rollouts(runs, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("memory ran out")

    monkeypatch.setattr(ppo, "evaluate", fails)
    folder = runs.create("ppo", prompts(), **(QUICK | {"episodes": 8}))
    session = Session(folder.path)
    session.control.obey(SampleNow())
    ppo.run(session)
    assert folder.final_dir() is not None
    said = [one.message for one in folder.events() if isinstance(one, Warned) and one.code == "samples"]
    assert said == ["No samples were drawn at rollout 0: memory ran out"]


# ---- the real model ------------------------------------------------------------------------------------------


@pytest.mark.demo_model
def test_the_demo_models_rollout_has_the_reference_numbers(golden, demo_model_dir):
    g = golden("ppo_model")
    adapters = noise_adapter(load_base(demo_model_dir, quantisation="fp32", device=torch.device("cpu")), POLICY)
    head = ScalarHead(576)
    with torch.no_grad():
        head.weight.copy_(torch.tensor(g["head"])[None])
    recipe = PpoRecipe(temperature=g["temperature"], rule="contains:x")
    adapters.copy(POLICY, VALUE, trainable=True)
    players = Players(adapters, recipe, None, head, 0.0, None, rule_scorer(recipe.rule))
    start, episodes = g["context_length"], []
    for ids, attended, kept in zip(g["input_ids"], g["attention_mask"], g["response_mask"], strict=True):
        prompt = [token for token, keep in zip(ids[:start], attended[:start], strict=True) if keep]
        answer = [token for token, keep in zip(ids[start:], kept, strict=True) if keep]
        episodes.append(Episode("", "", tuple(prompt), tuple(answer), True, ""))
    rows = players.layout(episodes)
    width = len(g["logprobs"][0])
    mask = torch.tensor(g["response_mask"])
    with torch.no_grad():
        logps, entropy = players.policy_logps(POLICY, rows, width)
        reference, _ = players.policy_logps(None, rows, width)
        values = players.values(rows, width)
    tolerance = g["tolerance"]
    for found, key, near in (
        (logps, "logprobs", tolerance["logprob_fp32"]),
        (reference, "ref_logprobs", tolerance["logprob_fp32"]),
        (entropy, "entropy", tolerance["logprob_fp32"]),
        (values, "values", tolerance["value_fp32"]),
    ):
        wanted = torch.tensor(g[key])
        torch.testing.assert_close(
            found[mask].float(), wanted[mask], atol=near, rtol=1e-5, msg=lambda m, k=key: f"{k}: {m}"
        )
    assert REWARD not in adapters.names
    # sums of up to 16 tokens, each within the tolerance; TRL pads prompts on the left, here nothing is padded
    lengths, near = mask.sum(1), 16 * tolerance["logprob_fp32"]
    for estimator in ("k1", "k3"):
        kl = torch.where(mask, kl_per_token(logps, reference, estimator), 0).sum(1)
        assert kl.tolist() == pytest.approx(g[f"kl_{estimator}_sum"], abs=near, rel=1e-4)
    for key in ("padded_sum_logp", "same_rows_unpadded_sum_logp"):
        assert logps.sum(1).tolist() == pytest.approx(g[key], abs=near)
    batch = ppo.Rollout(episodes, [range(len(episodes))], lengths, logps, reference, None, torch.zeros(len(episodes)))
    found = evaluation_metrics(batch)
    assert found["eval_objective/kl"] == pytest.approx(sum(g["kl_k1_sum"]) / len(episodes), abs=near)
    assert found["eval_ppo/mean_length"] == float(lengths.double().mean())


@pytest.mark.parametrize("stop_at", [0, 1])
def test_the_gain_is_that_of_the_same_prompts_over_before_the_first_rollout(runs, metric, stop_at):
    changes = {"rule": "longer-than:6", "episodes": 24, "eval_every": 1, "save_every": 1, "learning_rate": 1e-2}
    folder = runs.create("ppo", prompts(), prompts(6), **(QUICK | changes))
    if stop_at:
        runs.run(folder, stop_at)
    runs.run(folder)
    scores, gains = (dict(metric(folder, f"eval_objective/scores{end}")) for end in ("", "_gain"))
    lows, highs = (dict(metric(folder, f"eval_objective/scores_gain_{end}")) for end in ("low", "high"))
    assert sorted(gains) == sorted(lows) == sorted(highs) == [1, 2, 3]
    for step, gain in gains.items():
        assert gain == pytest.approx(scores[step] - scores[0], abs=1e-6)
        assert lows[step] <= gain <= highs[step]


def test_few_prompts_have_no_gain_and_unknown_ones_do_not_count(runs):
    session, _, trainer, rows = opened(runs.create("ppo", prompts(8), **QUICK))
    batch = ppo.rollout(session, trainer, rows, 9, with_values=False)
    batch.scores = torch.arange(float(len(batch.episodes)))
    names = [one.prompt_id for one in batch.episodes]
    before = {name: 0.0 for name in names[:5]} | {"another": 100.0}
    found = evaluation_metrics(batch, before)
    assert found["eval_objective/scores_gain"] == pytest.approx(2.0)
    reach = 2.776 * statistics.stdev(range(5)) / 5**0.5  # Student's t of 4 degrees of freedom
    assert found["eval_objective/scores_gain_high"] == pytest.approx(2 + reach, rel=0.01)
    del before[names[0]]
    assert not [key for key in evaluation_metrics(batch, before) if "gain" in key]
    assert not [key for key in evaluation_metrics(batch) if "gain" in key]


def test_generation_and_training_agree_on_the_tokens_they_drew(runs):
    session, players, trainer, rows = opened(runs.create("ppo", prompts(), **(QUICK | {"temperature": 0.7})))
    batch = ppo.rollout(session, trainer, rows, 9)
    with players.adapters.use(POLICY):
        again = generate(
            players.base, [one.ids for one in rows], Sampling(0.7, 1.0, 0, 12, 9), seeds=list(range(9, 9 + len(rows)))
        )
    assert sorted(one.ids for one in batch.episodes) == sorted(one.ids for [one] in again)
    assert samples_of(1, batch, None, players.base.tokenizer)[0].tokens


def test_max_steps_ends_a_run_before_its_episodes_do(runs, metric):
    folder = runs.create("ppo", prompts(), **QUICK | {"episodes": 64, "max_steps": 2})
    runs.run(folder)
    assert [step for step, _ in metric(folder, "objective/scores")] == [1, 2]
