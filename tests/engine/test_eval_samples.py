"""The same prompts are answered at every step that is looked at, by every method that trains a policy on data."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest

from engine.session import Session
from tests.engine.rows import rows_of
from workbench.protocol import SampleNow, Warned


@pytest.mark.parametrize("method", ["sft", "dpo", "kto"])
def test_answers_to_fixed_prompts_are_kept_at_the_end_and_when_asked(runs, method):
    held = [replace(row, group=f"prompt of {row.id}") for row in rows_of(method, 2, "held")]
    folder = runs.create(method, rows_of(method, 12), held, max_steps=2, batch=4)
    runs.run(folder, stop_at=1, ask_samples=True)
    runs.run(folder)
    samples = folder.samples()
    assert [one.step for one in samples] == [1] * 4 + [2] * 4
    assert [one.prompt for one in samples[:4]] == [one.prompt for one in samples[4:]]
    assert [one.prompt_id for one in samples[:2]] == ["prompt of held0", "prompt of held1"]  # not of the row


@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "kto"])
def test_samples_that_cannot_be_drawn_when_asked_for_do_not_end_the_run(runs, method, monkeypatch):
    def fails(*_):
        raise RuntimeError("memory ran out")

    name = "write_scored_pairs" if method == "reward" else "write_eval_samples"
    monkeypatch.setattr(importlib.import_module(f"engine.{method}"), name, fails)
    folder = runs.create(method, rows_of(method, 12), rows_of(method, 2, "held"), max_steps=2, batch=4)
    runs.run(folder, ask_samples=True)
    assert folder.final_dir() is not None  # it went on to its end
    told = [one.message for one in folder.events() if isinstance(one, Warned) and one.code == "samples"]
    assert told == [
        "No samples were drawn at step 1: memory ran out",
        "No samples were drawn from the finished model: memory ran out",
    ]


def test_asking_a_run_for_samples_is_said_before_they_come(runs):
    session = Session(runs.create("sft", rows_of("sft", 4)).path)
    session.control.obey(SampleNow())
    said = [one for one in session.run_folder.events() if getattr(one, "name", "") == "training"]
    assert said[-1].detail == "draws samples at the end of this step"
    session.close()
