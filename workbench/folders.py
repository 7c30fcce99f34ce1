"""The folders outside projects: the model cache, the private runtime folder, the configuration."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import platformdirs

from workbench.errors import UserError

APP = "tastemaker"
_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "davfs", "afpfs"})
_SYNCED = ("dropbox", "onedrive", "google drive", "googledrive", "icloud", "nextcloud", "owncloud", "seafile", "mega")


def cache_dir() -> Path:
    """The cache that all projects share (``TASTEMAKER_CACHE`` overrides it)."""
    return _made(os.environ.get("TASTEMAKER_CACHE") or platformdirs.user_cache_path(APP))


def models_cache_dir() -> Path:
    """Where base models live, one plain Hugging Face folder each."""
    return _made(cache_dir() / "models")


def config_dir() -> Path:
    """Recent projects and preferences (``TASTEMAKER_CONFIG`` overrides it)."""
    return _made(os.environ.get("TASTEMAKER_CONFIG") or platformdirs.user_config_path(APP))


def runtime_dir() -> Path:
    """Sockets and leases: a folder that only this user can open (``TASTEMAKER_RUNTIME`` overrides it).

    Raises:
        UserError: the folder belongs to somebody else, is a link, or could be opened by others.
    """
    chosen = os.environ.get("TASTEMAKER_RUNTIME")
    if chosen:
        path = Path(chosen)
    elif base := os.environ.get("XDG_RUNTIME_DIR"):
        path = Path(base) / APP
    else:
        path = Path("/tmp") / f"{APP}-{os.getuid()}"
    _made(path)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise UserError(
            f"the runtime folder {path} cannot be trusted",
            "it belongs to another user or is a link",
            "remove it, or set TASTEMAKER_RUNTIME to a folder of your own",
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        path.chmod(0o700)
    return path


def folder_warning(path: Path, mounts: str | None = None) -> str:
    """Say why a project should not live in ``path`` (a network file system, a synced folder), or ''.

    SQLite's locks and its shared memory do not work over networks, and sync programs copy half-written files.
    """
    resolved = path.resolve()
    kind = _file_system(resolved, _read_mounts() if mounts is None else mounts)
    if kind in _NETWORK or (kind.startswith("fuse.") and kind != "fuse.fuseblk"):
        return f"{path} is on a network file system ({kind}), where labels can be lost: keep projects on a local disk."
    for part in resolved.parts:
        folded = part.casefold()
        if any(folded == name or folded.startswith((f"{name} ", f"{name}-")) for name in _SYNCED):
            return f"{path} is inside {part!r}, which another program copies while it changes: keep projects elsewhere."
    if any((folder / ".stfolder").exists() for folder in (resolved, *resolved.parents)):
        return f"{path} is synced by Syncthing, which copies it while it changes: keep projects elsewhere."
    return ""


def _made(path: Path | str) -> Path:
    path = Path(path)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder {path} cannot be made", error.strerror or str(error), "check the disk and the permissions"
        ) from error
    return path


def _read_mounts() -> str:
    try:
        return Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _file_system(path: Path, mounts: str) -> str:
    """Return the type of the file system that holds ``path``, by the longest mount point above it."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        if path.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), fields[2]
    return kind
