from __future__ import annotations

import math

import pytest
import torch

from engine.kto import EncodedThumb, completion_logps, log_ratios, mismatched, thumb_loss, unsorted_schedule
from engine.losses import kto_zero
from engine.masking import Example, sft_example
from engine.meters import Meters
from tests.engine.rows import BAD, GOOD
from workbench.errors import UserError
from workbench.metrics import GLOSSARY
from workbench.protocol import Metrics, Phase, Warned
from workbench.recipes import KtoRecipe
from workbench.records import Message
from workbench.rows import ThumbRow


def thumb(name, prompt, text, desirable):
    return ThumbRow(name, prompt, "k", "rater", (Message("user", prompt),), text, desirable)


def rows(count=12, name="p"):
    """As many prompts, each with one response: the even ones are wanted."""
    return [
        thumb(f"{name}{index}", f"say {index}", (BAD if index % 2 else GOOD)[index // 2 % 4], index % 2 == 0)
        for index in range(count)
    ]


def encoded(tokenizer, texts, prompts=None):
    return [
        EncodedThumb(
            str(index),
            sft_example(tokenizer, [Message("user", (prompts or [f"say {index}"] * 99)[index])], text, 256),
            index % 2 == 0,
        )
        for index, text in enumerate(texts)
    ]


# ---- learning --------------------------------------------------------------------------------------------------


def test_wanted_responses_rise_above_unwanted_ones_and_the_loss_falls(runs, metric):
    folder = runs.create(
        "kto", rows(16), rows(4, "held"), epochs=100, max_steps=30, batch=8, micro_batch=3, learning_rate=5e-3
    )
    runs.run(folder)
    losses = [value for _, value in metric(folder, "loss")]
    assert losses[0] == pytest.approx(0.5, abs=1e-5)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert metric(folder, "rewards/margins")[0][1] == pytest.approx(0, abs=1e-5)
    assert metric(folder, "rewards/desirable")[-1][1] > 0 > metric(folder, "rewards/undesirable")[-1][1]
    assert metric(folder, "eval_rewards/margins")[-1][1] > 0.5
    assert metric(folder, "eval_loss")[0] == (0, pytest.approx(0.5, abs=1e-5))
    assert metric(folder, "eval_loss")[-1][1] < 0.4


@pytest.mark.parametrize("start", ["base", "adapter"])
def test_the_first_loss_is_half_the_weight_since_the_policy_is_its_reference(runs, metric, sft_adapter, start):
    # r = 0 and z = 0 exactly: 1 - sigmoid(0) = 1/2 of each weight; 4 of 8 are wanted: (4 * 2 + 4 * 1) / 8 / 2 = 0.75
    folder = runs.create(
        "kto",
        rows(8),
        adapter=sft_adapter if start == "adapter" else "",
        max_steps=1,
        batch=8,
        micro_batch=3,
        desirable_weight=2.0,
    )
    runs.run(folder)
    assert metric(folder, "loss")[0][1] == pytest.approx(0.75, abs=1e-5)
    assert metric(folder, "kl")[0][1] == pytest.approx(0.0, abs=1e-4)


def test_a_weight_of_zero_takes_its_kind_out_of_the_gradient(policy, tokenizer):
    batch = encoded(tokenizer, ["the hat", "xx"])
    reference = {one.id: (-20.0,) for one in batch}
    loss, _ = thumb_loss(policy, batch, reference, torch.tensor(0.0), KtoRecipe(undesirable_weight=0.0), Meters())
    assert float(loss[1].detach()) == 0.0
    assert float(loss[0].detach()) > 0.0


# ---- the zero --------------------------------------------------------------------------------------------------


def test_each_prompt_gets_the_completion_of_the_row_before_as_trl_rotates_them(tokenizer):
    batch = encoded(tokenizer, ["the hat", "xx", "an ant", "jj"])
    found = mismatched(batch, 256)
    assert [one.id for one in found] == ["0~3", "1~0", "2~1", "3~2"]  # x_i with y_(i-1)
    for one, row, answer in zip(found, batch, [batch[3], *batch[:3]], strict=True):
        start, from_ = row.example.prompt_length, answer.example.prompt_length
        assert one.example.prompt_length == start
        assert one.example.input_ids == row.example.input_ids[:start] + answer.example.input_ids[from_:]
        assert one.example.trained_tokens == answer.example.trained_tokens


def test_no_response_meets_its_own_prompt_where_that_can_be_helped(tokenizer):
    prompts = ["a", "a", "b", "a", "c", "b"]  # a has 3 of 6 rows: moved on by 3, nothing meets itself
    batch = encoded(tokenizer, ["the hat", "xx", "an ant", "jj", "in", "tea"], prompts)
    found = [one.id.split("~") for one in mismatched(batch, 256)]
    assert sorted(answer for _, answer in found) == list("012345")  # every completion once
    assert all(prompts[int(row)] != prompts[int(answer)] for row, answer in found)


def test_responses_that_can_only_meet_their_own_prompt_measure_nothing(tokenizer):
    assert mismatched(encoded(tokenizer, ["the hat", "xx", "jj"], ["a", "a", "a"]), 256) == []
    assert mismatched(encoded(tokenizer, ["the hat"]), 256) == []
    assert mismatched([], 256) == []
    torch.testing.assert_close(kto_zero(torch.empty(0)), torch.tensor(0.0))
    batch = encoded(tokenizer, ["the hat", "xx", "an ant", "jj"], ["a", "a", "a", "b"])
    # 3 of 4 rows have one prompt: moved on by 3, rows 0 and 1 would meet it again, and are left out
    assert [one.id for one in mismatched(batch, 256)] == ["2~3", "3~0"]


def test_a_mismatched_prompt_is_cut_at_its_beginning_to_fit_the_window():
    long, short = (
        Example.plain((*range(3, 3 + prompt), *[9] * answer), prompt) for prompt, answer in ((10, 2), (3, 6))
    )
    first, second = mismatched([EncodedThumb("l", long), EncodedThumb("s", short)], 12)
    assert (len(first.example.input_ids), first.example.prompt_length) == (12, 6)  # 12 - 6 of the answer
    assert first.example.input_ids[:6] == tuple(range(7, 13))  # the end of the prompt stays
    assert len(second.example.input_ids) == 5


def test_the_zero_and_the_gradient_are_the_same_for_every_micro_batch(runs, metric):
    """1x8 accumulation = 8x1: z is of the whole step, so that no micro-batch has a zero of its own."""
    curves = []
    for size in (8, 3, 1):
        folder = runs.create(
            "kto", rows(8), run_id=f"by-{size}", epochs=4, batch=8, micro_batch=size, learning_rate=5e-3, beta=0.5
        )
        runs.run(folder)
        curves.append({key: [value for _, value in metric(folder, key)] for key in ("loss", "kl", "grad_norm")})
    assert curves[0]["kl"][-1] > 0.01  # there is something to get wrong
    for other in curves[1:]:
        for key, values in curves[0].items():
            assert other[key] == pytest.approx(values, rel=2e-3, abs=1e-4)


def test_one_step_of_eight_equals_eight_accumulated_steps_of_one(policy, tokenizer):
    batch = encoded(tokenizer, ["the hat", "xx", "an ant", "jj", "in", "zz qq", "tea", "qx"])
    others = mismatched(batch, 256)
    reference = {one.id: (-20.0 - index,) for index, one in enumerate([*batch, *others])}

    def gradients(size):
        for weight in policy.parameters("policy"):
            weight.grad = None
        ratios = [log_ratios(policy, others[start : start + size], reference) for start in range(0, 8, size)]
        zero = kto_zero(torch.cat(ratios))
        for start in range(0, 8, size):
            loss, _ = thumb_loss(policy, batch[start : start + size], reference, zero, KtoRecipe(), Meters())
            (loss.sum() / 8).backward()
        return [weight.grad.clone() for weight in policy.parameters("policy")]

    at_once = gradients(8)
    assert max(float(one.abs().max()) for one in at_once) > 1e-4
    for size in (1, 3):
        for one, other in zip(at_once, gradients(size), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


# ---- numbers ---------------------------------------------------------------------------------------------------


def test_rewards_and_loss_by_hand(policy, tokenizer):
    batch = encoded(tokenizer, ["the hat", "xx"])
    logps = completion_logps(policy, "policy", batch).logps.detach()
    meters = Meters()
    # ref = pi - (2, -3), z = 1, beta = 1/2: rewards 1 and -3/2
    reference = {"0": (float(logps[0]) - 2,), "1": (float(logps[1]) + 3,)}
    recipe = KtoRecipe(beta=0.5, desirable_weight=1.0, undesirable_weight=2.0)
    thumb_loss(policy, batch, reference, torch.tensor(1.0), recipe, meters)
    values = meters.flush()
    assert values["rewards/desirable"] == pytest.approx(1.0)
    assert values["rewards/undesirable"] == pytest.approx(-1.5)
    assert values["logps/desirable"] == pytest.approx(float(logps[0]))
    # (1 - s(1/2 (2 - 1)) + 2 (1 - s(1/2 (1 + 3)))) / 2
    wanted, unwanted = 1 / (1 + math.exp(0.5)), 2 / (1 + math.exp(2.0))
    assert values["loss"] == pytest.approx((wanted + unwanted) / 2)


def test_a_step_has_both_kinds_though_every_unwanted_response_is_longer_than_any_wanted():
    # 32 wanted of 4 tokens, 32 unwanted of 40: batches of like length would all be of one kind
    short, long = (Example((1,) * count, (True,) * count, 0) for count in (4, 40))
    train = [EncodedThumb(str(n), long if n % 2 else short, n % 2 == 0) for n in range(64)]
    schedule = unsorted_schedule(train, KtoRecipe(batch=8, epochs=2))
    steps = [[train[index] for index in schedule.rows(step)] for step in range(schedule.total_steps)]
    assert len(steps) == 16
    assert all({one.desirable for one in step} == {True, False} for step in steps)
    assert sorted(one.id for step in steps[:8] for one in step) == sorted(one.id for one in train)


def test_a_batch_of_one_kind_has_no_margin(runs, metric):
    folder = runs.create("kto", [thumb(str(n), f"say {n}", GOOD[n], True) for n in range(4)], max_steps=1, batch=4)
    runs.run(folder)
    assert metric(folder, "rewards/desirable")
    assert not metric(folder, "rewards/undesirable")
    assert not metric(folder, "rewards/margins")


def test_every_number_sent_is_in_the_glossary(runs):
    folder = runs.create("kto", rows(), rows(4, "held"), max_steps=2)
    runs.run(folder)
    sent = {key for one in folder.events() if isinstance(one, Metrics) for key in one.values}
    assert {key for key in sent if key not in GLOSSARY or "kto" not in GLOSSARY[key].methods} == set()
    wanted = {"loss", "kl", "eval_kl", "rewards/desirable", "rewards/undesirable", "rewards/margins"}
    assert wanted | {"logps/desirable", "logps/undesirable"} <= sent


# ---- the run ---------------------------------------------------------------------------------------------------


def test_the_reference_is_computed_once_mismatched_responses_too(runs):
    folder = runs.create("kto", rows(), rows(4, "held"), epochs=2, batch=4, micro_batch=2, learning_rate=5e-3)
    runs.run(folder, stop_at=2)
    [kept] = (folder.path / "cache").iterdir()
    runs.run(folder)
    assert [one.name for one in folder.events() if isinstance(one, Phase)].count("reference") == 1
    assert [one.name for one in (folder.path / "cache").iterdir()] == [kept.name]


@pytest.mark.parametrize("stop_at", [1, 4])
def test_the_resumed_curve_is_the_uninterrupted_one_bit_for_bit(runs, metric, stop_at, sft_adapter):
    settings = {"epochs": 2, "batch": 4, "micro_batch": 2, "learning_rate": 5e-3, "adapter": sft_adapter}
    whole = runs.create("kto", rows(), **settings)
    runs.run(whole)
    broken = runs.create("kto", rows(), run_id="run-2", **settings)
    runs.run(broken, stop_at=stop_at)
    runs.run(broken)
    for key in ("loss", "kl", "rewards/margins", "grad_norm", "learning_rate"):
        assert metric(broken, key) == metric(whole, key)
    ours, theirs = ((one.path / "final" / "adapter_model.safetensors").read_bytes() for one in (whole, broken))
    assert ours == theirs


def test_responses_without_a_token_to_train_are_left_out_and_counted(runs):
    nothing = thumb("none", "y" * 300, "", True)
    folder = runs.create("kto", [*rows(4), nothing], max_steps=1, max_length=64)
    runs.run(folder)
    said = [one.message for one in folder.events() if isinstance(one, Warned)]
    assert any("judged responses" in one for one in said)


def test_a_run_without_rows_says_what_is_missing(runs):
    folder = runs.create("kto", [])
    with pytest.raises(UserError, match="There is nothing to train"):
        runs.run(folder)
