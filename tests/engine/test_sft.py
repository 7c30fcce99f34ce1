from __future__ import annotations

import pytest
import torch

from engine import sft
from engine.adapters import Adapters
from engine.masking import sft_example
from engine.meters import Meters
from engine.session import DivergedError
from workbench.errors import UserError
from workbench.protocol import Diverged, Warned
from workbench.records import Message
from workbench.rows import SftRow

WORDS = ("the", "thin", "ant", "in", "an", "inn", "hat", "tea", "then", "heat", "that", "than")


def rows(count=12, name="r", length=3):
    return [
        SftRow(
            f"{name}{index}",
            f"g{index}",
            (Message("user", f"say {WORDS[index % len(WORDS)]}"),),
            " ".join(WORDS[(index + j) % len(WORDS)] for j in range(1 + index % length)),
        )
        for index in range(count)
    ]


def test_the_loss_falls_clearly(runs, metric):
    folder = runs.create(
        "sft", rows(), rows(4, "held"), epochs=100, max_steps=40, batch=6, micro_batch=3, learning_rate=5e-3
    )
    runs.run(folder)
    losses = [value for _, value in metric(folder, "loss")]
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert [step for step, _ in metric(folder, "eval_loss")] == [0, 40]
    assert metric(folder, "eval_loss")[1][1] < metric(folder, "eval_loss")[0][1]
    assert (folder.path / "final" / "adapter_model.safetensors").is_file()


def test_every_number_sent_is_in_the_glossary(runs):
    from workbench.metrics import GLOSSARY
    from workbench.protocol import Metrics

    folder = runs.create("sft", rows(), rows(4, "held"), max_steps=2)
    runs.run(folder)
    sent = {key for one in folder.events() if isinstance(one, Metrics) for key in one.values}
    assert sent <= set(GLOSSARY)
    assert {key for key in sent if "sft" not in GLOSSARY[key].methods} == set()
    assert {"loss", "grad_norm", "learning_rate", "epoch", "num_tokens", "entropy", "mean_token_accuracy"} <= sent


@pytest.mark.parametrize("stop_at", [1, 4])
def test_the_resumed_loss_curve_is_the_uninterrupted_one_bit_for_bit(runs, metric, stop_at):
    settings = {"epochs": 2, "batch": 4, "micro_batch": 2, "learning_rate": 5e-3}
    whole = runs.create("sft", rows(), **settings)
    runs.run(whole)
    broken = runs.create("sft", rows(), run_id="run-2", **settings)
    runs.run(broken, stop_at=stop_at)
    runs.run(broken)
    for key in ("loss", "grad_norm", "learning_rate", "epoch", "num_tokens", "entropy"):
        assert metric(broken, key) == metric(whole, key)
    assert [step for step, _ in metric(whole, "loss")] == [1, 2, 3, 4, 5, 6]
    ours, theirs = ((one.path / "final" / "adapter_model.safetensors").read_bytes() for one in (whole, broken))
    assert ours == theirs


def gradients(adapters, examples, parts):
    for parameter in adapters.parameters("policy"):
        parameter.grad = None
    tokens = sum(one.trained_tokens for one in examples)
    for start in range(0, len(examples), parts):
        (sft.loss_sum(adapters, examples[start : start + parts], Meters()) / tokens).backward()
    return [parameter.grad.clone() for parameter in adapters.parameters("policy")]


def test_one_step_of_eight_equals_eight_accumulated_steps_of_one(policy, tokenizer):
    examples = [sft_example(tokenizer, row.prompt, row.completion, 256) for row in rows(8, length=7)]
    at_once = gradients(policy, examples, 8)
    for parts in (1, 3):
        for one, other in zip(at_once, gradients(policy, examples, parts), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_the_loss_is_transformers_own_over_trained_tokens(make_base, tokenizer):
    base = make_base(dtype=torch.float64)
    adapters = Adapters(base)
    adapters.add("policy", rank=4, alpha=8, trainable=True)
    examples = [sft_example(tokenizer, row.prompt, row.completion, 256) for row in rows(3)]
    meters = Meters()
    ours = sft.loss_sum(adapters, examples, meters)
    theirs = 0.0
    for one in examples:
        output = base.model(torch.tensor([one.input_ids]), labels=torch.tensor([one.labels]))
        theirs += float(output.loss) * one.trained_tokens  # transformers' loss is a mean, in fp32
    assert float(ours.detach()) == pytest.approx(theirs, rel=1e-5)
    values = meters.flush()
    assert values["loss"] == pytest.approx(theirs / sum(one.trained_tokens for one in examples), rel=1e-5)
    assert 0 <= values["mean_token_accuracy"] <= 1


def test_gradient_checkpointing_changes_nothing(runs, metric):
    curves = []
    for index, on in enumerate((False, True)):
        folder = runs.create("sft", rows(), run_id=f"run-{index}", max_steps=3, gradient_checkpointing=on)
        runs.run(folder)
        curves.append(metric(folder, "loss"))
    assert curves[0] == curves[1]


def test_neftune_learns_resumes_bit_for_bit_and_measures_without_noise(runs, metric):
    settings = {"epochs": 20, "max_steps": 20, "batch": 6, "micro_batch": 3, "learning_rate": 5e-3}
    plain = runs.create("sft", rows(), rows(4, "held"), run_id="plain", **settings)
    whole = runs.create("sft", rows(), rows(4, "held"), run_id="whole", neftune_alpha=5.0, **settings)
    broken = runs.create("sft", rows(), rows(4, "held"), run_id="broken", neftune_alpha=5.0, **settings)
    runs.run(plain)
    runs.run(whole)
    runs.run(broken, stop_at=3)
    runs.run(broken)
    assert metric(broken, "loss") == metric(whole, "loss")
    losses = [value for _, value in metric(whole, "loss")]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert losses[0] != metric(plain, "loss")[0][1]
    assert metric(whole, "eval_loss")[0] == metric(plain, "eval_loss")[0]


def test_training_goes_on_from_an_adapter(runs, metric):
    first = runs.create("sft", rows(), epochs=100, max_steps=20, learning_rate=5e-3)
    runs.run(first)
    second = runs.create("sft", rows(), run_id="run-2", max_steps=1, adapter=first.path / "final")
    runs.run(second)
    assert metric(second, "loss")[0][1] < metric(first, "loss")[0][1]


def test_rows_that_are_cut_are_counted_and_said(runs):
    long = SftRow("long", "g", (Message("user", "x" * 100),), "yes")
    runs_on = SftRow("on", "g", (Message("user", "x"),), "y" * 100)
    folder = runs.create("sft", [*rows(4), long, runs_on], max_steps=1, max_length=64)
    runs.run(folder)
    said = [one.message for one in folder.events() if isinstance(one, Warned)]
    assert any("2 prompts of the demonstrations are longer than 64 tokens" in one for one in said)
    assert any("1 responses of the demonstrations were cut at 64 tokens" in one for one in said)


def test_a_run_without_demonstrations_is_refused_with_a_remedy(runs):
    folder = runs.create("sft", [])
    with pytest.raises(UserError, match="nothing to train"):
        runs.run(folder)


def test_a_loss_that_is_not_a_number_names_its_rows(runs, monkeypatch):
    folder = runs.create("sft", rows(4), batch=4, max_steps=2)

    def broken(adapters, examples, meters, neftune_alpha=0.0):
        loss = sum((one.sum() for one in adapters.parameters("policy")), torch.zeros(())) * torch.nan
        meters.add("loss", loss)
        return loss

    monkeypatch.setattr(sft, "loss_sum", broken)
    with pytest.raises(DivergedError):
        runs.run(folder)
    [said] = [one for one in folder.events() if isinstance(one, Diverged)]
    assert (said.metric, said.kind) == ("loss", "nan")
    assert sorted(said.rows) == ["r0", "r1", "r2", "r3"]


def test_running_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(runs, metric, monkeypatch):
    plain = runs.create("sft", rows(), run_id="plain", batch=4, micro_batch=4, max_steps=2)
    runs.run(plain)
    tight = runs.create("sft", rows(), run_id="tight", batch=4, micro_batch=4, max_steps=2)
    real = sft.loss_sum

    def limited(adapters, examples, meters, neftune_alpha=0.0):
        loss = real(adapters, examples, meters, neftune_alpha)
        if len(examples) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return loss

    monkeypatch.setattr(sft, "loss_sum", limited)
    runs.run(tight)
    assert [one.code for one in tight.events() if isinstance(one, Warned)] == ["oom"]
    for (_, one), (_, other) in zip(metric(plain, "loss"), metric(tight, "loss"), strict=True):
        assert one == pytest.approx(other, rel=1e-5)
