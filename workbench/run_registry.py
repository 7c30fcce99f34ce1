"""Bring the project's records of runs and models up to what the run folders say. Safe to repeat, from anywhere."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import statistics
from functools import lru_cache
from pathlib import Path

from workbench.errors import UserError
from workbench.estimate import Pace, foretold_pace, row_tokens, shared_tokens
from workbench.ids import now
from workbench.manifests import MANIFEST, RESUME_ONLY_PREFIX, fsync_folder, read_manifest, remove_folder, reseal
from workbench.memory_choice import without_plan
from workbench.memory_plan import CUDA_CONTEXT_BYTES, PHASE_OF, Peak, plan_memory
from workbench.model_folders import fingerprint
from workbench.model_shape import read_shape
from workbench.preflight import rank_of
from workbench.project import Project
from workbench.protocol import Memory, Metrics, Started
from workbench.records import Method, ModelRecord, ModelRole, RunRecord
from workbench.run_folder import EventTail, RunFolder

ROLES: dict[Method, ModelRole] = {"sft": "sft", "reward": "reward", "dpo": "policy", "kto": "policy", "ppo": "policy"}
_PACES_FROM = 8  # newest finished runs


def refresh_runs(project: Project) -> list[RunRecord]:
    """Return the runs as their folders say they are, saving what changed and listing the models that they made.

    A finished run's ``final/`` becomes a model, as does the newest checkpoint of a run that was stopped and saved:
    once for each end, so that a model which was taken off the list does not come back. Folders that no record names
    (a crash came between the two) are listed too.
    """
    records = {one.id: one for one in project.store.runs()}
    if not project.read_only:
        for found in _unlisted(project, set(records)):
            project.store.save_run(found).result()
            records[found.id] = found
    current = []
    for record in records.values():
        fresh = _fresh(record, RunFolder(project.run_dir(record.id)))
        if fresh != record and not project.read_only:
            if (fresh.state, fresh.ended_at) != (record.state, record.ended_at):
                _list_model(project, fresh)  # before the run is saved: a crash between the two lists it next time
            project.store.save_run(fresh).result()
        current.append(fresh)
    return current


def delete_run(project: Project, run_id: str) -> None:
    """Take a run off the list and remove its folder. Raises UserError while it is alive or a model came from it."""
    folder = RunFolder(project.run_dir(run_id))
    if folder.alive():
        raise UserError("The run cannot be deleted", "it is at work", "stop it first")
    refresh_runs(project)  # the record may still call it queued
    project.store.remove_run(run_id).result()
    remove_folder(folder.path)


def measured_paces(project: Project) -> list[Pace]:
    """Return what the project's newest finished runs reached, in real tokens a second, beside what was foretold."""
    paces = []
    finished = [one for one in project.store.runs() if one.state in ("done", "stopped")]
    for record in sorted(finished, key=lambda one: one.created_at, reverse=True)[:_PACES_FROM]:
        folder = RunFolder(project.run_dir(record.id))
        try:
            spec = folder.spec()
            foretold = foretold_pace(spec.method, folder.recipe(spec), read_shape(Path(spec.model.base)))
            rate = _median_rate(folder.events_path, folder.events_path.stat().st_size)
        except (UserError, OSError):
            continue
        if rate:
            paces.append(Pace(spec.method, rate, foretold))
    return paces


def measured_peaks(project: Project) -> list[Peak]:
    """Return what the project's newest finished runs held at most, beside what would be foretold for them now.

    That is with as much free as they had. The engine's events say what was held in each phase (on a GPU its tensors
    alone, so that the context is added), and on a CPU ``exit.json`` says it of the process that ended.
    """
    peaks = []
    finished = [one for one in project.store.runs() if one.state == "done"]  # a stopped one may not have come to it
    for record in sorted(finished, key=lambda one: one.created_at, reverse=True)[:_PACES_FROM]:
        folder = RunFolder(project.run_dir(record.id))
        try:
            found = _peak(folder.path, folder.events_path.stat().st_size)
        except (UserError, OSError):
            continue
        if found is not None:
            peaks.append(found)
    return peaks


@lru_cache(maxsize=256)
def _peak(run_dir: Path, _size: int) -> Peak | None:
    """What a run held and would be foretold; None where nothing was measured. Cached by the size of its events."""
    folder = RunFolder(run_dir)
    measured, gpu, available = 0.0, False, 0
    by_phase: dict[str, float] = {}
    for event in folder.events():
        if isinstance(event, Started):
            gpu, available = event.device.startswith("cuda"), event.available_bytes
        elif isinstance(event, Metrics):
            measured = max(measured, event.values.get("perf/peak_memory_bytes", 0.0))
        elif isinstance(event, Memory):
            for name, size in event.peaks.items():
                if name in PHASE_OF:
                    by_phase[PHASE_OF[name]] = max(by_phase.get(PHASE_OF[name], 0.0), size)
    if not measured:
        return None
    ended = folder.exit()
    if gpu:
        measured += CUDA_CONTEXT_BYTES
        by_phase = {name: size + CUDA_CONTEXT_BYTES for name, size in by_phase.items()}
    elif ended is not None:
        measured = max(measured, ended.peak_rss_bytes)
    spec = folder.spec()
    recipe, rank = without_plan(folder.recipe(spec)), rank_of(spec.model)
    frozen = folder.rows("train", spec)
    mixed_in = folder.rows("demonstrations", spec) if spec.method == "ppo" else []
    plan = plan_memory(
        spec.method,
        recipe,
        read_shape(Path(spec.model.base)),
        [row_tokens(row, recipe) for row in frozen],
        prompts=[shared_tokens(row, recipe) for row in frozen],
        mixed_in=[row_tokens(row, recipe) for row in mixed_in],
        start_rank=rank,
        available=available,
        gpu=gpu,
    )
    return Peak(
        spec.method,
        measured,
        plan.resident_bytes,
        gpu,
        base=spec.model.base,
        quantisation=recipe.quantisation,
        measured_by_phase=by_phase,
        foretold_by_phase=plan.resident(),
    )


@lru_cache(maxsize=256)
def _median_rate(events: Path, size: int) -> float:
    """The median tokens a second in the last megabyte of events; 0 where there are none. Cached by the file's size."""
    tail = EventTail(events, max(0, size - 1024 * 1024))
    rates = [one.values.get("perf/tokens_per_s", 0.0) for one in tail.read_new() if isinstance(one, Metrics)]
    return statistics.median([rate for rate in rates if rate > 0] or [0.0])


def _unlisted(project: Project, known: set[str]) -> list[RunRecord]:
    if not project.runs_dir.is_dir():
        return []
    found = []
    for path in sorted(project.runs_dir.iterdir()):
        if path.name in known or path.name.startswith(".") or not (path / "recipe.json").exists():
            continue
        try:
            spec = RunFolder(path).spec()
        except UserError:
            continue
        if spec.run_id == path.name:
            found.append(
                RunRecord(
                    id=spec.run_id,
                    method=spec.method,
                    name=spec.name,
                    state="interrupted",
                    start_model_id=spec.model.model_id,
                    reward_model_id=spec.reward.model_id if spec.reward else "",
                    created_at=spec.created_at,
                )
            )
    return found


def _fresh(record: RunRecord, folder: RunFolder) -> RunRecord:
    """Return the record as the folder has it."""
    if not (folder.path / "recipe.json").exists():
        gone = "Its folder is gone" if not folder.path.exists() else "Its recipe is missing"
        return dataclasses.replace(record, state="interrupted", detail=gone)
    if record.state == "done" and record.ended_at and not folder.alive():
        return record
    status = folder.state()
    detail = ""
    if not status.alive and status.state != "done":
        detail = ": ".join(part for part in (status.detail, status.cause) if part)
    return dataclasses.replace(record, state=status.state, detail=detail, ended_at=status.ended_at)


def _list_model(project: Project, run: RunRecord) -> None:
    """List the model that a run ended with, if it ended with one."""
    folder = RunFolder(project.run_dir(run.id))
    final = folder.final_dir()
    if run.state == "done" and final is not None:
        manifest = read_manifest(final)
        save_run_model(project, run, f"runs/{run.id}/final", final, manifest.step if manifest else 0, "")
    elif run.state == "stopped":
        newest = next(iter(folder.checkpoints()), None)
        if newest is not None:
            step = int(newest.name)
            kept = project.models_dir / run_model_id(run.id, step)
            copy_checkpoint(newest, kept)
            save_run_model(project, run, f"models/{kept.name}", kept, step, f", step {step}")


def save_run_model(
    project: Project, run: RunRecord, path: str, folder: Path, step: int, suffix: str, *, created_at: str = ""
) -> ModelRecord | None:
    """List what a run made at a step, once, as a descendant of its start.

    None where that start was taken off the list; the folder keeps the model then.
    """
    start = project.store.model(run.start_model_id)
    if start is None:
        return None
    if (listed := project.store.model(run_model_id(run.id, step))) is not None:
        return listed
    record = ModelRecord(
        id=run_model_id(run.id, step),
        name=f"{run.name} on {start.name.split(' on ')[0]}{suffix}",
        role=ROLES[run.method],
        path=path,
        base_id=start.base_id or start.id,
        parent_id=start.id,
        run_id=run.id,
        step=step,
        sha256=fingerprint(folder),
        created_at=created_at or run.ended_at or now(),
    )
    project.store.save_model(record).result()
    return record


def run_model_id(run_id: str, step: int) -> str:
    """An id that is the same whoever lists the model, so that two of them at once make one record."""
    return hashlib.sha256(f"{run_id}:{step}".encode()).hexdigest()[:32]


def copy_checkpoint(checkpoint: Path, destination: Path) -> None:
    """Give a checkpoint's model a folder of its own, since resuming the run will prune the checkpoint.

    Hard links cost no space; what only resuming needs is left out. Raises OSError; nothing is left behind then.
    """
    if destination.exists():
        return
    draft = destination.with_name(f".tmp-{destination.name}-{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        for source in checkpoint.iterdir():
            if source.is_file() and source.name != MANIFEST and not source.name.startswith(RESUME_ONLY_PREFIX):
                try:
                    os.link(source, draft / source.name)
                except OSError:
                    shutil.copy2(source, draft / source.name)
        before = read_manifest(checkpoint)
        if before is not None:
            reseal(draft, before, kind="final")
        fsync_folder(draft)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    try:
        draft.rename(destination)
    except OSError:  # another process was first
        shutil.rmtree(draft, ignore_errors=True)
