"""The zero and the unit of a reward model's scores at checkpoints: drawn once, and never in the way of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from engine import calibration
from engine.checkpoints import load_state
from engine.score import RewardModel, RewardStats
from engine.session import Session
from tests.engine.rows import GOOD, pair_rows
from workbench.protocol import Warned
from workbench.records import Message
from workbench.rows import SftRow
from workbench.run_folder import RunFolder

EVERY_STEP = {"batch": 4, "micro_batch": 4, "max_steps": 3, "save_every": 1, "keep_checkpoints": 3}
SHOWN = [SftRow(f"d{index}", "g", (Message("user", f"say {index}"),), GOOD[index]) for index in range(2)]


def warned(folder: RunFolder, code: str) -> list[str]:
    return [one.message for one in folder.events() if isinstance(one, Warned) and one.code == code]


def test_demonstrations_are_read_once_and_what_is_left_out_is_told_once(
    runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    rows = Session.rows
    monkeypatch.setattr(Session, "rows", lambda self, name: read.append(name) or rows(self, name))
    long = SftRow("long", "g", (Message("user", "say"),), "y" * 100)
    folder = runs.create("reward", pair_rows(12), (), [*SHOWN, long], max_length=64, **EVERY_STEP)
    runs.run(folder)
    assert read.count("demonstrations") == 1
    assert len(warned(folder, "rows-dropped")) == 1
    stats = [RewardStats.read(one) for one in folder.checkpoints()]
    assert [(one.reference, one.count) for one in stats] == [("demonstrations", 2)] * 3


def test_a_checkpoint_that_cannot_be_calibrated_is_kept_without_a_zero_and_the_run_goes_on(
    runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = calibration.calibrate

    def broken(*given: Any) -> RewardStats:
        if given[-1] == calibration.CHECKPOINT_ROWS:
            raise RuntimeError("no scores today")
        return real(*given)

    monkeypatch.setattr(calibration, "calibrate", broken)
    folder = runs.create("reward", pair_rows(12), (), SHOWN, **EVERY_STEP)
    runs.run(folder)
    assert [one.name for one in folder.checkpoints()] == ["3", "2", "1"]
    assert all(RewardStats.read(one) == RewardStats() for one in folder.checkpoints())
    assert (
        warned(folder, "calibration") == ["The scores of the checkpoint have no zero and no unit: no scores today"] * 3
    )
    assert RewardStats.read(folder.path / "final").reference == "demonstrations"


def test_the_micro_batch_that_fitted_in_a_calibration_is_gone_on_with_and_kept_in_its_checkpoint(
    runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RewardModel.ids_by_head

    def short(model: RewardModel, rows: Sequence[Sequence[int]], micro_batch: int = 8) -> torch.Tensor:
        if len(rows) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, rows, micro_batch)

    monkeypatch.setattr(RewardModel, "ids_by_head", short)
    folder = runs.create("reward", pair_rows(12), **EVERY_STEP)
    runs.run(folder)
    assert len(warned(folder, "oom")) == 1  # of 8 responses at once; the next checkpoints begin with 4
    kept = [load_state(one / "state_training.pt")["micro_batch"] for one in folder.checkpoints()]
    assert kept == [{"rows": 2, "ran_out_in": "evaluating"}] * 3
