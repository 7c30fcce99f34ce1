from __future__ import annotations

import math

import pytest
import torch

from engine import base_model
from engine.dpo import completion_logps, pair_loss
from engine.meters import Meters
from tests.engine.rows import pair_rows, ranked
from workbench.protocol import Metrics, Phase, Warned
from workbench.recipes import DpoRecipe
from workbench.records import Message
from workbench.rows import PairRow

LN2 = math.log(2)


def test_the_margin_grows_and_the_loss_falls(runs, metric):
    folder = runs.create(
        "dpo", pair_rows(), pair_rows(4, "held"), epochs=100, max_steps=25, batch=6, micro_batch=3, learning_rate=5e-3
    )
    runs.run(folder)
    losses = [value for _, value in metric(folder, "loss")]
    assert losses[0] == pytest.approx(LN2, abs=1e-5)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert metric(folder, "rewards/margins")[0][1] == pytest.approx(0, abs=1e-5)
    assert metric(folder, "rewards/accuracies")[-1][1] == 1
    assert metric(folder, "eval_rewards/accuracies")[-1] == (25, 1.0)
    assert metric(folder, "eval_loss")[0] == (0, pytest.approx(LN2, abs=1e-5))


@pytest.mark.parametrize("start", ["base", "adapter"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss_type", ["sigmoid", "sigmoid_norm"])
def test_the_first_loss_is_log_2(runs, metric, monkeypatch, sft_adapter, start, dtype, loss_type):
    # policy = reference: D = 0 exactly, -log sigmoid(0) = log 2, and no implicit reward is above another
    monkeypatch.setattr(base_model, "compute_dtype", lambda _device: dtype)
    adapter = sft_adapter if start == "adapter" else ""
    folder = runs.create(
        "dpo",
        pair_rows(),
        pair_rows(4, "held"),
        adapter=adapter,
        max_steps=1,
        batch=8,
        micro_batch=3,
        loss_type=loss_type,
    )
    runs.run(folder)
    assert metric(folder, "loss")[0][1] == pytest.approx(LN2, abs=1e-4)
    assert metric(folder, "eval_loss")[0][1] == pytest.approx(LN2, abs=1e-4)
    assert metric(folder, "rewards/accuracies")[0][1] == 0


def test_the_reference_of_a_run_from_an_adapter_is_that_adapter_and_not_the_bare_base(runs, metric, sft_adapter):
    values = []
    for index, adapter in enumerate(("", sft_adapter)):
        folder = runs.create("dpo", pair_rows(), run_id=f"run-{index}", adapter=adapter, max_steps=1)
        runs.run(folder)
        values.append(metric(folder, "logps/chosen")[0][1])
    assert abs(values[0] - values[1]) > 0.1  # the two starts differ, and both began at log 2 above


def test_the_reference_is_computed_once_and_read_from_disk_after_that(runs, monkeypatch, metric):
    settings = {"epochs": 2, "batch": 4, "micro_batch": 2, "learning_rate": 5e-3}
    folder = runs.create("dpo", pair_rows(), pair_rows(4, "held"), **settings)
    runs.run(folder, stop_at=2)
    [kept] = (folder.path / "cache").iterdir()
    phases = [one.name for one in folder.events() if isinstance(one, Phase)]
    assert phases.count("reference") == 1
    runs.run(folder)
    phases = [one.name for one in folder.events() if isinstance(one, Phase)]
    assert phases.count("reference") == 1
    assert [one.name for one in (folder.path / "cache").iterdir()] == [kept.name]


@pytest.mark.parametrize(("stop_at", "loss_type"), [(1, "sigmoid"), (4, "sigmoid"), (4, "simpo")])
def test_the_resumed_loss_curve_is_the_uninterrupted_one_bit_for_bit(runs, metric, stop_at, loss_type, sft_adapter):
    settings = {"epochs": 2, "batch": 4, "micro_batch": 2, "learning_rate": 5e-3, "adapter": sft_adapter}
    settings |= {"loss_type": loss_type, "beta": 2.0 if loss_type == "simpo" else 0.1}
    whole = runs.create("dpo", pair_rows(), **settings)
    runs.run(whole)
    broken = runs.create("dpo", pair_rows(), run_id="run-2", **settings)
    runs.run(broken, stop_at=stop_at)
    runs.run(broken)
    for key in ("loss", "rewards/margins", "logps/chosen", "grad_norm", "learning_rate"):
        assert metric(broken, key) == metric(whole, key)
    ours, theirs = ((one.path / "final" / "adapter_model.safetensors").read_bytes() for one in (whole, broken))
    assert ours == theirs


def test_every_number_sent_is_in_the_glossary(runs):
    from workbench.metrics import GLOSSARY

    folder = runs.create("dpo", pair_rows(), pair_rows(4, "held"), max_steps=2)
    runs.run(folder)
    sent = {key for one in folder.events() if isinstance(one, Metrics) for key in one.values}
    assert {key for key in sent if key not in GLOSSARY or "dpo" not in GLOSSARY[key].methods} == set()
    assert {"loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"} <= sent


def test_log_probabilities_are_sums_over_the_completion_with_its_eos(policy, tokenizer):
    pairs = ranked(tokenizer)
    chosen, rejected, *_ = completion_logps(policy, "policy", pairs)
    for sums, side in ((chosen, "chosen"), (rejected, "rejected")):
        for value, pair in zip(sums, pairs, strict=True):
            one = getattr(pair, side)
            with policy.use("policy"), torch.no_grad():
                logits = policy.base.model(torch.tensor([one.input_ids])).logits[0]
            table = torch.log_softmax(logits[:-1], -1)
            tokens = [float(table[at - 1, one.input_ids[at]]) for at in range(one.prompt_length, len(one.input_ids))]
            assert float(value.detach()) == pytest.approx(sum(tokens), abs=1e-9)


def test_one_step_of_eight_equals_eight_accumulated_steps_of_one(policy, tokenizer):
    pairs = ranked(tokenizer) + ranked(tokenizer, ("in", "tea", "jj"))[:2]
    reference = {pair.id: (-20.0, -15.0 - index) for index, pair in enumerate(pairs)}

    def gradients(size):
        for weight in policy.parameters("policy"):
            weight.grad = None
        for start in range(0, 8, size):
            loss, _ = pair_loss(policy, pairs[start : start + size], reference, DpoRecipe(), Meters())
            (loss.sum() / 8).backward()
        return [weight.grad.clone() for weight in policy.parameters("policy")]

    at_once = gradients(8)
    for size in (1, 3):
        for one, other in zip(at_once, gradients(size), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_implicit_rewards_by_hand(policy, tokenizer):
    pairs = ranked(tokenizer)[:1]
    chosen, rejected, *_ = completion_logps(policy, "policy", pairs)
    meters = Meters()
    # ref = pi - (2, 1): rewards 0.5 * 2 and 0.5 * 1, D = 1, loss log(1 + e^-0.5)
    reference = {pairs[0].id: (float(chosen.detach()) - 2, float(rejected.detach()) - 1)}
    pair_loss(policy, pairs, reference, DpoRecipe(beta=0.5), meters)
    values = meters.flush()
    assert values["rewards/chosen"] == pytest.approx(1.0)
    assert values["rewards/rejected"] == pytest.approx(0.5)
    assert values["rewards/margins"] == pytest.approx(0.5)
    assert values["rewards/accuracies"] == 1
    assert values["loss"] == pytest.approx(0.47407698)


@pytest.mark.parametrize("loss_type", ["simpo", "orpo"])
def test_a_loss_without_a_reference_sees_the_mean_of_a_token_and_makes_no_reference_pass(
    policy, tokenizer, runs, metric, loss_type
):
    pairs = ranked(tokenizer)[:1]
    recipe = DpoRecipe(loss_type=loss_type, beta=2.0, simpo_gamma=0.5, orpo_lambda=0.3)
    chosen, rejected, *_ = completion_logps(policy, "policy", pairs)
    c = float(chosen.detach()) / pairs[0].chosen.trained_tokens
    r = float(rejected.detach()) / pairs[0].rejected.trained_tokens
    meters = Meters()
    pair_loss(policy, pairs, {}, recipe, meters)
    values = meters.flush()
    if loss_type == "simpo":  # log(1 + exp(-(2 (c - r) - 0.5)))
        expected, scale = math.log1p(math.exp(0.5 - 2 * (c - r))), 2.0
    else:  # -c + 0.3 log(1 + odds(r) / odds(c))
        odds = [math.exp(one) / (1 - math.exp(one)) for one in (r, c)]
        expected, scale = -c + 0.3 * math.log1p(odds[0] / odds[1]), 0.3
    assert values["loss"] == pytest.approx(expected)
    assert values["rewards/margins"] == pytest.approx(scale * (c - r))
    folder = runs.create("dpo", pair_rows(), pair_rows(4, "held"), max_steps=1, loss_type=loss_type)
    runs.run(folder)
    assert "reference" not in {one.name for one in folder.events() if isinstance(one, Phase)}
    assert not (folder.path / "cache").exists()
    assert metric(folder, "eval_loss")[0][0] == 0


@pytest.mark.parametrize("loss_type", ["sigmoid_norm", "ipo", "hinge", "robust", "simpo", "orpo"])
def test_the_other_losses_train_too(runs, metric, loss_type):
    folder = runs.create(
        "dpo",
        pair_rows(),
        epochs=100,
        max_steps=12,
        batch=6,
        learning_rate=5e-3,
        loss_type=loss_type,
        label_smoothing=0.1 if loss_type == "robust" else 0.0,
        beta=2.0 if loss_type == "simpo" else 0.1,
    )
    runs.run(folder)
    assert metric(folder, "rewards/margins")[-1][1] > metric(folder, "rewards/margins")[0][1]
    assert metric(folder, "loss")[-1][1] < metric(folder, "loss")[0][1]


def test_pairs_that_became_identical_are_left_out_and_counted(runs):
    same = PairRow("same", "g", "k", "r", (Message("user", "a"),), "y" * 200 + "a", "y" * 200 + "b")
    folder = runs.create("dpo", [*pair_rows(4), same], max_steps=1, max_length=64)
    runs.run(folder)
    said = [one.message for one in folder.events() if isinstance(one, Warned)]
    assert any("1 of 5 pairs were left out" in one for one in said)
