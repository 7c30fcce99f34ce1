"""The box to choose a model: which one it offers first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ui.context import Context
from ui.model_picker import ModelPicker
from workbench.records import ModelRecord


def test_the_end_of_the_last_run_is_offered_first_not_a_checkpoint_that_was_kept_afterwards(
    qtbot: Any, context: Context, filled: Any, settle: Callable[[], None]
) -> None:
    for step in (500, 10):
        made = ModelRecord(f"step {step}", f"step {step}", "policy", "models/x", filled.base.id, run_id="r", step=step)
        filled.project.store.save_model(made).result(10)
    picker = ModelPicker(context)
    qtbot.addWidget(picker)
    settle()
    assert [one.name for one in picker.models()] == ["step 500", "step 10", filled.base.name]
    assert picker.model_id() == "step 500"
