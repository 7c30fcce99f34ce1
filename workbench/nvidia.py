"""What the NVIDIA GPU of this machine is, asked without loading its driver."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

_BF16_FROM = 8.0  # compute capability: Ampere
_WSL = "usr/lib/wsl/lib"


def has_gpu(root: Path = Path("/")) -> bool:
    """Tell whether the machine has a GPU for training, without loading any driver. ``root``: where its files lie.

    Under WSL 2 there is no ``/dev/nvidia*``: Windows' driver is reached through ``/dev/dxg`` and a library of its own.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    if (root / "dev/nvidia0").exists() or (root / "dev/nvidiactl").exists():
        return True
    return (root / "dev/dxg").exists() and (root / _WSL / "libcuda.so.1").exists()


def gpu_free_bytes() -> int:
    """Return the free memory of the first GPU; 0 when it cannot be told."""
    try:
        return int(asked("memory.free")) * 1024 * 1024
    except ValueError:
        return 0


def gpu_held_bytes(pid: int) -> int:
    """The memory that a process holds on the first GPU; 0 where that cannot be told (in a container, say)."""
    lines = _said("--query-compute-apps=pid,used_memory").splitlines()
    fields = [line.split(",") for line in lines]
    return sum(int(one[1]) for one in fields if len(one) == 2 and _are_numbers(one) and int(one[0]) == pid) * 1024**2


def _are_numbers(fields: list[str]) -> bool:
    return all(one.strip().isdecimal() for one in fields)


def gpu_has_bf16() -> bool:
    """Whether the first GPU multiplies bf16 matrices itself; older ones compute in fp32 (``engine.base_model``).

    Where it cannot be told, yes: so does every GPU since 2020.
    """
    try:
        return float(_compute_capability()) >= _BF16_FROM
    except ValueError:
        return True


def asked(field: str) -> str:
    """What ``nvidia-smi`` says of a field of the first GPU; "" when it says nothing."""
    return next(iter(_said(f"--query-gpu={field}").split()), "")


def _said(query: str) -> str:
    """What ``nvidia-smi`` answers of the first GPU, a line for each row; "" when it says nothing."""
    if not _nvidia_smi():
        return ""
    try:
        said = subprocess.run(
            [_nvidia_smi(), query, "--format=csv,noheader,nounits", "-i", "0"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout


@lru_cache(maxsize=1)
def _compute_capability() -> str:
    return asked("compute_cap")


@lru_cache(maxsize=1)
def _nvidia_smi() -> str:
    return shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path=f"/{_WSL}") or ""
