"""Unix sockets in the user's private runtime folder, for paths of any length."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from workbench.folders import runtime_dir

_SAFE_PATH_BYTES = 100  # the system's limit is 108 on Linux and 104 on macOS


def control_socket(run_dir: Path) -> Path:
    """Return where the engine of a run listens: by its folder, since copies of a project repeat run ids."""
    name = hashlib.sha256(os.fsencode(run_dir.resolve())).hexdigest()[:24]
    return runtime_dir() / f"run-{name}.sock"


def bind(path: Path) -> socket.socket:
    """Listen on a socket that only this user can open; a stale file of a dead process is replaced."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        with _short(path) as address:
            server.bind(address)
        server.listen(8)
        server.setblocking(False)
    except OSError:
        server.close()
        raise
    finally:
        os.umask(before)
    return server


def connect(path: Path, timeout_s: float) -> socket.socket:
    """Connect to a socket. Raises OSError when nobody listens."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(timeout_s)
    try:
        with _short(path) as address:
            client.connect(address)
    except OSError:
        client.close()
        raise
    return client


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Yield an address for the path that fits in the system's limit, by way of the folder's descriptor if need be."""
    if len(os.fsencode(path)) <= _SAFE_PATH_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
