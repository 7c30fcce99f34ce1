"""A run's checkpoints as a person chooses among them, and keeping one as a model of the project.

A run keeps only its newest few checkpoints (``keep_checkpoints``). One that is kept as a model has a folder of its own
under ``models/``, which no run sweeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workbench.errors import UserError
from workbench.manifests import RESUME_ONLY_PREFIX, Manifest, faults_of, read_manifest, remove_folder
from workbench.project import Project
from workbench.records import Method, ModelRecord, RunRecord
from workbench.run_folder import RunFolder, join_segments
from workbench.run_registry import copy_checkpoint, run_model_id, save_run_model

MEASURES: dict[Method, tuple[str, ...]] = {
    "sft": ("eval_loss", "eval_mean_token_accuracy"),
    "reward": ("eval_accuracy", "eval_loss"),
    "dpo": ("eval_rewards/accuracies", "eval_rewards/margins"),
    "kto": ("eval_rewards/margins", "eval_loss"),
    "ppo": ("objective/scores", "eval_objective/scores", "objective/kl"),
}
"""What tells checkpoints of a method apart: held-out numbers, and of PPO the score with its KL."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A number of the run, last measured at ``step``."""

    key: str
    value: float
    step: int


@dataclass(frozen=True, slots=True)
class KeptCheckpoint:
    """A sound checkpoint on disk: what is known of it, and the model that it is in the project, if it is one."""

    step: int
    created_at: str
    model_bytes: int  # without what only resuming needs
    measured: tuple[Measured, ...]
    model: ModelRecord | None


def list_checkpoints(project: Project, run: RunRecord) -> list[KeptCheckpoint]:
    """Return a run's sound checkpoints, newest first. Reads every byte of them, and the run's events."""
    folder = RunFolder(project.run_dir(run.id))
    sound = folder.checkpoints()
    lines = _lines(folder, MEASURES[run.method]) if sound else {}
    found = []
    for path in sound:
        manifest = read_manifest(path)
        if manifest is None:
            continue  # it was swept meanwhile
        step = int(path.name)
        measured = (_last(key, line, step) for key, line in lines.items())
        found.append(
            KeptCheckpoint(
                step,
                manifest.created_at,
                sum(one.bytes for name, one in manifest.files.items() if _is_of_model(name)),
                tuple(one for one in measured if one is not None),
                project.store.model(run_model_id(run.id, step)),
            )
        )
    return found


def keep_checkpoint(project: Project, run: RunRecord, step: int) -> ModelRecord:
    """Make a checkpoint a model of the project, descended from the run's start; one that is kept is returned as it is.

    Raises:
        UserError: there is no sound checkpoint of that step, its start is no longer listed, the project is open for
            reading only, or the disk is full. Nothing is left behind then.
    """
    model_id = run_model_id(run.id, step)
    if (kept := project.store.model(model_id)) is not None:
        return kept
    what = f"The checkpoint of step {step} cannot be kept as a model"
    if project.read_only:
        raise UserError(what, "the project is open for reading only", "close the other window on it")
    if project.store.model(run.start_model_id) is None:
        raise UserError(what, "the model that its run started from is no longer in the project", "add that model again")
    folder = RunFolder(project.run_dir(run.id))
    checkpoint = folder.path / "checkpoints" / str(step)
    manifest = _sound(what, folder, checkpoint)
    destination = project.models_dir / model_id
    try:
        copy_checkpoint(checkpoint, destination)
    except OSError as error:
        gone = not checkpoint.exists()
        cause = "the run swept it in this moment" if gone else error.strerror or str(error)
        raise UserError(what, cause, "choose a newer one" if gone else "free space or check the disk") from error
    copied = read_manifest(destination)
    if copied is None or set(copied.files) != {name for name in manifest.files if _is_of_model(name)}:
        remove_folder(destination)
        raise UserError(what, "the run swept it in this moment", "choose a newer one")
    made = save_run_model(
        project, run, f"models/{model_id}", destination, step, f", step {step}", created_at=manifest.created_at
    )
    assert made is not None
    return made


def _sound(what: str, folder: RunFolder, checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint whose every file matches it. Raises UserError."""
    if not checkpoint.is_dir():
        steps = ", ".join(one.name for one in folder.checkpoint_names())
        cause = f"there are checkpoints of {steps}" if steps else "the run has no checkpoint"
        raise UserError(what, f"it is not there; {cause}", "choose one of these" if steps else "save one first")
    faults = faults_of(checkpoint)
    manifest = read_manifest(checkpoint)
    if faults or manifest is None:
        raise UserError(what, "it is damaged: " + "; ".join(faults), "choose another one")
    return manifest


def _is_of_model(name: str) -> bool:
    return not name.startswith(RESUME_ONLY_PREFIX)


def _lines(folder: RunFolder, keys: tuple[str, ...]) -> dict[str, list[tuple[int, float]]]:
    """Each metric as (step, value); what a resumed process did again replaces what was there."""
    lines: dict[str, list[tuple[int, float]]] = {key: [] for key in keys}
    for measured in join_segments(folder.events()):
        for key in lines.keys() & measured.values.keys():
            lines[key].append((measured.step, measured.values[key]))
    return lines


def _last(key: str, line: list[tuple[int, float]], step: int) -> Measured | None:
    before = [one for one in line if one[0] <= step]
    return Measured(key, before[-1][1], before[-1][0]) if before else None
