"""Model folders that prove themselves: a manifest, written last, with the size and sha256 of every file.

safetensors has no checksum: a flipped bit or a zeroed block loads silently. So a checkpoint or a finished model is
good only when its ``tastemaker.json`` is there and every file matches it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec

from workbench.ids import now
from workbench.jsonl import decode, encode, write_atomic

MANIFEST = "tastemaker.json"
RESERVE_BYTES = 64 * 1024**2
"""What stays free on a disk beyond a checkpoint: for events, samples and the label store."""
RESUME_ONLY_PREFIX = "state"
"""Files of a checkpoint that only resuming needs (optimiser, random numbers, position) start so."""
_CHUNK_BYTES = 4 * 1024 * 1024


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What a file must be."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """``tastemaker.json``: what the folder holds and where it came from."""

    kind: str  # "checkpoint" or "final"
    run_id: str
    method: str
    step: int
    files: dict[str, FileEntry]
    base_name: str = ""
    base_sha256: str = ""
    created_at: str = ""
    about: dict[str, Any] = {}
    version: int = 1


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as source:
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def seal(folder: Path, *, kind: str, run_id: str, method: str, step: int, **more: Any) -> Manifest:
    """Make every file of a folder durable and write its manifest last. Raises OSError."""
    files = {}
    for path in sorted(one for one in folder.rglob("*") if one.is_file() and one.name != MANIFEST):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        files[path.relative_to(folder).as_posix()] = FileEntry(bytes=path.stat().st_size, sha256=sha256_of(path))
    manifest = Manifest(kind=kind, run_id=run_id, method=method, step=step, files=files, created_at=now(), **more)
    write_atomic(folder / MANIFEST, encode(manifest))
    return manifest


def reseal(folder: Path, manifest: Manifest, kind: str = "") -> Manifest:
    """Write the manifest of a copy that leaves some of the files out. Raises OSError."""
    return seal(
        folder,
        kind=kind or manifest.kind,
        run_id=manifest.run_id,
        method=manifest.method,
        step=manifest.step,
        base_name=manifest.base_name,
        base_sha256=manifest.base_sha256,
        about=manifest.about,
    )


def read_manifest(folder: Path) -> Manifest | None:
    """Read a folder's manifest; None when it is missing or damaged."""
    try:
        return decode((folder / MANIFEST).read_bytes(), Manifest)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError):
        return None


def faults_of(folder: Path) -> list[str]:
    """Compare every file with the manifest; each fault names its file. An empty list means that it is sound."""
    manifest = read_manifest(folder)
    if manifest is None:
        return [f"{MANIFEST} is missing or damaged"]
    faults = []
    for name, entry in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != entry.bytes:
                faults.append(f"{name} has {size:,} bytes instead of {entry.bytes:,}")
            elif sha256_of(path) != entry.sha256:
                faults.append(f"{name} does not match its checksum")
        except OSError:
            faults.append(f"{name} is missing or cannot be read")
    return faults


def folder_sha256(folder: Path) -> str:
    """Return one hash of a sealed folder's model files (what only resuming needs left out); "" without a manifest."""
    manifest = read_manifest(folder)
    if manifest is None:
        return ""
    digest = hashlib.sha256()
    for name in sorted(manifest.files):
        if not name.startswith(RESUME_ONLY_PREFIX):
            digest.update(f"{name}\0{manifest.files[name].sha256}\n".encode())
    return digest.hexdigest()


def total_bytes(folder: Path) -> int:
    """Return the size of a sealed folder by its manifest; 0 without one."""
    manifest = read_manifest(folder)
    return sum(entry.bytes for entry in manifest.files.values()) if manifest else 0


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a crash half way leaves nothing that looks whole."""
    if not folder.exists():
        return
    trash = folder.with_name(f".trash-{folder.name}-{os.getpid()}")
    try:
        folder.rename(trash)
    except OSError:
        trash = folder
    shutil.rmtree(trash, ignore_errors=True)
