"""Runs whose models were moved: ``recipe.json`` froze where they lay, and they are looked for anew before a resume.

What a run trains on is told by fingerprints, which stay as they were frozen; only the places are written anew.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from workbench import supervisor
from workbench.errors import UserError
from workbench.moved_bases import is_gone, is_missing
from workbench.project import Project
from workbench.protocol import ModelRef
from workbench.protocol_version import refuse_other
from workbench.records import ModelRecord
from workbench.run_folder import RunFolder


def resume_run(project: Project, run_id: str) -> None:
    """Take an ended run up again, on its models where they are now.

    Raises:
        UserError: it is done or at work, its recipe cannot be read, or its base is neither where it was nor anywhere
            the project knows of.
    """
    folder = RunFolder(project.run_dir(run_id))
    if folder.state().resumable and not folder.alive():
        follow_models(project, folder)
    supervisor.resume(folder.path)


def follow_models(project: Project, folder: RunFolder) -> None:
    """Write into a run's recipe where its models are now, if they are elsewhere. Raises UserError."""
    spec = folder.spec()
    refuse_other(spec)
    model = _where_now(project, spec.model)
    reward = _where_now(project, spec.reward) if spec.reward else None
    if (model, reward) == (spec.model, spec.reward):
        return
    try:
        folder.write_spec(msgspec.structs.replace(spec, model=model, reward=reward))
    except OSError as error:
        raise UserError(
            f"The run {spec.name!r} cannot be told where its models are now",
            error.strerror or str(error),
            "free space or check the folder's rights",
        ) from error


def _where_now(project: Project, ref: ModelRef) -> ModelRef:
    record = project.store.model(ref.model_id)
    if is_missing(ref.base):
        base = next((one for one in _same_bases(project, ref, record) if not is_gone(one)), None)
        if base is None:
            raise UserError(
                f"The base of {ref.name} is not where this run had it",
                f"the folder {ref.base} is not there",
                "put the folder back, or show where it is now: Locate… in Models, or `tastemaker model locate`",
            )
        ref = msgspec.structs.replace(ref, base=base.path)
    if ref.adapter and not Path(ref.adapter).is_dir() and record is not None and record.sha256 == ref.adapter_sha256:
        ref = msgspec.structs.replace(ref, adapter=str(project.adapter_folder(record)))
    return ref


def _same_bases(project: Project, ref: ModelRef, record: ModelRecord | None) -> list[ModelRecord]:
    """The project's bases with the fingerprint that was frozen; where none was, the one that the model stands on."""
    if ref.base_sha256:
        return [one for one in project.store.models(role="base") if one.sha256 == ref.base_sha256]
    base = project.store.model(record.base_id or record.id) if record is not None else None
    return [base] if base is not None else []
