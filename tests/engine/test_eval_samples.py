"""The same prompts are answered at every step that is looked at, by every method that trains a policy on data."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.engine.rows import rows_of


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
