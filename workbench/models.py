"""Models of a project: base models in the shared cache, imported adapters, export and removal."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from workbench.errors import UserError
from workbench.folders import models_cache_dir
from workbench.ids import new_id, now
from workbench.jsonl import decode, encode, write_atomic
from workbench.manifests import fsync_folder, read_manifest, remove_folder, reseal
from workbench.model_card import read_origins, readme
from workbench.model_folders import (
    HEAD_KEY,
    adapter_fits_base,
    check_adapter_folder,
    check_base_folder,
    count_parameters,
    fingerprint,
)
from workbench.moved_bases import known_base
from workbench.project import Project
from workbench.protocol import (
    EXPORTS,
    GGUF_NUMBERS,
    ExportModelRequest,
    Failed,
    Imported,
    ImportModelRequest,
    ServeProgress,
)
from workbench.records import ModelRecord, ModelRole
from workbench.serve_client import ServeClient

__all__ = ["CachedBase", "add_model", "cached_bases", "export_model", "fingerprint", "import_adapter", "remove_model"]
DEMO_NAME = "smollm2-135m-instruct"
OnProgress = Callable[[str, float], None]
_ORIGIN = ".origin.json"
_ADAPTER_SUFFIXES = (".safetensors", ".json", ".md")
_ROLE_OF_METHOD: dict[str, ModelRole] = {
    "sft": "sft",
    "reward": "reward",
    "dpo": "policy",
    "kto": "policy",
    "ppo": "policy",
}


class _Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What a cached base was made from, so that the same source is not taken in twice."""

    source: str
    size: int = 0
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True)
class CachedBase:
    """A base model in the cache that all projects share."""

    name: str
    path: Path
    parameters: int
    source: str = ""


def cached_bases() -> list[CachedBase]:
    """List the sound base models of the cache, by name."""
    found = []
    for folder in sorted(models_cache_dir().iterdir()):
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        try:
            check_base_folder(folder)
            found.append(CachedBase(folder.name, folder, count_parameters(folder), _origin(folder).source))
        except UserError:
            continue
    return found


def add_model(
    project: Project,
    source: str,
    client: ServeClient,
    on_progress: OnProgress = lambda _what, _fraction: None,
    *,
    name: str = "",
    token: str = "",
) -> ModelRecord:
    """Add a base model to the project, through the cache; what is in the cache already is used as it is.

    A base that the project knows by its content and no longer finds is pointed to the new place and keeps its id.

    Args:
        project: where to add it.
        source: a folder, a ``.gguf`` file, ``hub:owner/name``, or ``demo``.
        client: the engine that converts and checks.
        on_progress: told what is done and a fraction, -1 where unknown.
        name: what to call it; by default after the source.
        token: for a gated model on the hub.

    Raises:
        UserError: the source cannot be used, with what to do.
    """
    source = source.strip()
    origin = _describe(source)
    folder, ready = _destination(origin, name or _name_of(source))
    note = ""
    if not ready:
        request = ImportModelRequest(id=new_id(), source=origin.source, destination=str(folder), token=token)

        def told(reply: object) -> None:
            if isinstance(reply, ServeProgress):
                on_progress(reply.what, reply.fraction)

        reply = client.call(request, on_reply=told)
        if isinstance(reply, Failed):
            raise UserError(reply.message, reply.cause, reply.remedy)
        assert isinstance(reply, Imported)
        note = reply.template_note
        write_atomic(folder / _ORIGIN, encode(origin))
    check_base_folder(folder)
    on_progress("Hashing", -1.0)
    sha256 = fingerprint(folder)
    if (known := known_base(project, folder, sha256)) is not None:
        return known
    made = ModelRecord(
        id=new_id(),
        name=name or folder.name,
        role="base",
        path=str(folder),
        source=source,
        sha256=sha256,
        note=note,
        created_at=now(),
    )
    project.store.save_model(made).result()
    return made


def import_adapter(project: Project, folder: Path | str, base_model_id: str, *, name: str = "") -> ModelRecord:
    """Copy a peft LoRA adapter into the project, onto one of its base models.

    Raises UserError when the adapter is incomplete, damaged, pickled, no LoRA, or does not fit the base.
    """
    folder = Path(folder).expanduser()
    base = project.store.model(base_model_id)
    if base is None or base.role != "base":
        raise UserError("There is no such base model in the project", base_model_id, "add the adapter's base first")
    header = check_adapter_folder(folder)
    manifest = read_manifest(folder)
    misfit = adapter_fits_base(header, Path(base.path))
    if manifest is not None and manifest.base_sha256 and base.sha256 and manifest.base_sha256 != base.sha256:
        misfit = (
            misfit or f"it was trained on {manifest.base_name or 'another base'}, whose files differ from {base.name}'s"
        )
    if misfit:
        raise UserError(
            f"The adapter {folder.name} does not fit {base.name}", misfit, "choose the base that it was trained on"
        )
    role: ModelRole = "reward" if HEAD_KEY in header else "policy"
    if manifest is not None:
        role = _ROLE_OF_METHOD.get(manifest.method, role)
    model_id = new_id()
    place = project.models_dir / model_id
    draft = project.models_dir / f".tmp-{model_id}"
    try:
        draft.mkdir(parents=True)
        for one in sorted(folder.iterdir()):
            if one.is_file() and one.suffix in _ADAPTER_SUFFIXES and not one.name.startswith((".", "state")):
                shutil.copyfile(one, draft / one.name)
        if manifest is not None:
            reseal(draft, manifest)  # it names files that only resuming needs and that were left behind
        draft.rename(place)
        fsync_folder(place.parent)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise UserError("The adapter could not be copied", error.strerror or str(error), "check the disk") from error
    made = ModelRecord(
        id=model_id,
        name=name or folder.resolve().name,
        role=role,
        path=f"models/{model_id}",
        base_id=base.id,
        parent_id=base.id,
        step=manifest.step if manifest else 0,
        source=str(folder),
        sha256=fingerprint(place),
        created_at=now(),
    )
    try:
        project.store.save_model(made).result()
    except BaseException:
        remove_folder(place)
        raise
    return made


def export_model(
    project: Project,
    model: ModelRecord,
    out: Path | str,
    client: ServeClient,
    *,
    what: str = "adapter",
    numbers: str = "f16",
    on_progress: OnProgress = lambda _what, _fraction: None,
) -> Path:
    """Write a model and its card (README.md) as a folder of its own.

    Args:
        project: where it is.
        model: which.
        out: the new folder.
        client: the engine that writes it.
        what: ``adapter`` (plain peft), ``merged`` (safetensors in bf16) or ``gguf`` (merged, one file for llama.cpp).
        numbers: how a GGUF file holds its matrices: ``f16``, ``bf16`` or ``f32``.
        on_progress: told what is done and a fraction.

    Raises:
        UserError: the folder exists with something in it, there is no such export, or the engine fails.
    """
    out = Path(out).expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already", "an export never overwrites", "choose a new folder")
    if what not in EXPORTS or numbers not in GGUF_NUMBERS:
        asked = what if what not in EXPORTS else numbers
        raise UserError(f"There is no export as {asked!r}", "", f"choose {', '.join((*EXPORTS, *GGUF_NUMBERS))}")
    request = ExportModelRequest(
        id=new_id(),
        model=project.resolve(model),
        destination=str(out),
        what=what,
        numbers=numbers,
        card=readme(read_origins(project, model), what),
    )

    def told(reply: object) -> None:
        if isinstance(reply, ServeProgress):
            on_progress(reply.what, reply.fraction)

    reply = client.call(request, on_reply=told)
    if isinstance(reply, Failed):
        raise UserError(reply.message, reply.cause, reply.remedy)
    return out


def remove_model(project: Project, model_id: str) -> None:
    """Take a model off the project; an imported adapter's files go too. A run's and the cache's files stay.

    Raises UserError while something descends from it.
    """
    model = project.store.model(model_id)
    project.store.remove_model(model_id).result()
    if model is not None and model.role != "base" and (folder := _own_folder(project, model)) is not None:
        remove_folder(folder)


def _own_folder(project: Project, model: ModelRecord) -> Path | None:
    """The folder of an imported adapter; None where the path is another's, whatever a stranger's project says."""
    path = Path(model.path)
    if len(path.parts) != 2 or path.parts[0] != "models" or path.parts[1] == "..":
        return None
    folder = project.path / path
    return folder if folder.resolve() == project.path.resolve() / path else None


def _describe(source: str) -> _Origin:
    if source == "demo":
        return _Origin(source="demo")
    if source.startswith("hub:"):
        return _Origin(source=source)
    path = Path(source).expanduser()
    if not path.exists():
        looks_like_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", source)
        remedy = f"to download it from the hub, write hub:{source}" if looks_like_hub else "check the path"
        raise UserError(f"There is no model at {source}", "no such file or folder", remedy)
    path = path.resolve()
    weights = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    status = [one.stat() for one in weights]
    return _Origin(
        source=str(path),
        size=sum(one.st_size for one in status),
        mtime_ns=max((one.st_mtime_ns for one in status), default=0),
    )


def _name_of(source: str) -> str:
    if source == "demo":
        return DEMO_NAME
    if source.startswith("hub:"):
        return source.removeprefix("hub:").replace("/", "--")
    path = Path(source).expanduser().resolve()
    return path.stem if path.suffix.lower() == ".gguf" else path.name


def _destination(origin: _Origin, name: str) -> tuple[Path, bool]:
    """Choose the cache folder of a source, and tell whether it holds that very source already."""
    cache = models_cache_dir()
    if Path(origin.source).parent == cache and origin.size:
        return Path(origin.source), True  # a folder of the cache itself
    plain = re.sub(r"[^\w.-]+", "-", name).strip("-.").lower() or "model"
    number = 1
    while True:
        folder = cache / (plain if number == 1 else f"{plain}-{number}")
        if not folder.exists():
            return folder, False
        if _origin(folder) == origin or (origin.source == "demo" and _origin(folder).source in ("", "demo")):
            return folder, True
        number += 1


def _origin(folder: Path) -> _Origin:
    try:
        return decode((folder / _ORIGIN).read_bytes(), _Origin)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError):
        return _Origin(source="")
