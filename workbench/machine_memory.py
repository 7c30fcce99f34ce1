"""What memory of the machine may still be taken: within the limits of the containers that this process runs in.

A container's limit is far below what the machine has free, and going beyond it ends the process without a word. Read
here for the plan and for the engine alike. Source: Linux, admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

_MOUNT = PurePosixPath("sys/fs/cgroup")
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes that may still be taken: what the machine has available, or what the tightest control group leaves.

    ``root`` is where the system's files lie. Within a group, cached file pages that the kernel takes back when memory
    is short count as free, as they do on the machine.
    """
    return min([int(psutil.virtual_memory().available), *_left_in_groups(root)])


def held_bytes(pid: int) -> int:
    """Bytes that a process would give back by ending: what is resident of it alone; 0 where it has ended."""
    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0
    return max(0, int(memory.rss - getattr(memory, "shared", 0)))


def _left_in_groups(root: Path) -> Iterator[int]:
    """What every group above this process leaves; a group without a limit, or that cannot be read, says nothing."""
    for folder, names in _groups(root):
        try:
            limit, used = (int((folder / name).read_text()) for name in names[:2])
        except (OSError, ValueError):  # no such group, or a limit of "max"
            continue
        yield max(0, limit - max(0, used - _cached(folder, names[2])))


def _groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The folders of the groups that hold this process, from its own up to the uppermost that is visible."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in ["0::/", "0:memory:/", *lines]:  # in a container its own group is mounted as the uppermost
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, names = (_MOUNT / "memory", _V1) if controllers else (_MOUNT, _V2)
        group = PurePosixPath(path.lstrip("/"))
        for one in (group, *group.parents):
            if ".." not in one.parts:  # outside of what this process may see
                yield root / mount / one, names


def _cached(folder: Path, name: str) -> int:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name + " ")), 0)
