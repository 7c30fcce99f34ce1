"""Bases whose folder was moved: the project came to another machine, or the shared cache lies elsewhere.

Their records keep their ids and are told the new place, so that what was trained on them is of use again. A folder is
the same base when its fingerprint is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from workbench.errors import UserError
from workbench.model_folders import check_base_folder, fingerprint
from workbench.project import Project
from workbench.records import ModelRecord


def is_missing(folder: str) -> bool:
    """Tell whether there is no base in a folder (any more)."""
    return not (Path(folder) / "config.json").is_file()


def is_gone(base: ModelRecord) -> bool:
    """Tell whether a base's files are no longer where its record says."""
    return base.role == "base" and is_missing(base.path)


def known_base(project: Project, folder: Path, sha256: str) -> ModelRecord | None:
    """Return the project's base of this fingerprint; None where there is none.

    Every record of it whose files are gone is pointed to ``folder``, so that it and its adapters work again.
    """
    found: ModelRecord | None = None
    for one in project.store.models(role="base"):
        if one.sha256 != sha256:
            continue
        if not is_gone(one):
            found = one
        else:
            moved = _move(project, one, folder, sha256)
            found = found or moved
    return found


def locate_base(
    project: Project, model_id: str, folder: Path | str, on_progress: Callable[[str, float], None] = lambda *_: None
) -> ModelRecord:
    """Point a base's record to the folder where its files are now; every byte of it is read once.

    Raises:
        UserError: it is no base, or the folder is incomplete or holds another model; nothing is changed then.
    """
    base = project.store.model(model_id)
    if base is None or base.role != "base":
        what = "There is no such model in the project" if base is None else f"The model {base.name} is no base"
        raise UserError(what, "only bases lie outside of the project", "choose one of the project's base models")
    folder = Path(folder).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}", "no such folder", "choose the folder with its config.json")
    check_base_folder(folder)
    on_progress("Hashing", -1.0)
    sha256 = fingerprint(folder)
    if base.sha256 and sha256 != base.sha256:
        raise UserError(
            f"The folder {folder} holds another model than {base.name}",
            f"its weights, configuration or tokenizer are not those that were listed (sha256 {sha256[:12]}… instead of "
            f"{base.sha256[:12]}…), and what was trained on the one would be wrong on the other",
            "choose the folder of the same model, or add this one as a new model",
        )
    return _move(project, base, folder, sha256)


def _move(project: Project, base: ModelRecord, folder: Path, sha256: str) -> ModelRecord:
    moved = dataclasses.replace(base, path=str(folder), sha256=sha256)
    project.store.save_model(moved).result()
    return moved
