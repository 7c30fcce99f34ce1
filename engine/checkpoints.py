"""Checkpoints that are whole or absent: a temporary folder, fsync, a manifest written last, one rename.

Tensors are safetensors; nothing is ever unpickled without ``weights_only``. The state of every random number
generator travels with the checkpoint, so that a resumed run draws what the uninterrupted one would have drawn.
torch is imported where tensors are touched, so that a process without it can keep checkpoints too.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.manifests import RESERVE_BYTES, faults_of, fsync_folder, remove_folder, seal, total_bytes

if TYPE_CHECKING:
    from torch import Tensor

RNG_TENSORS = "state_rng.safetensors"
RNG_NUMBERS = "state_rng.json"
CHOICES = "state_choices.json"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = ("no space left", "os error 28", "file too large", "os error 27", "quota exceeded", "pytorchstreamwriter")


class DiskFullError(Exception):
    """A folder could not be written for lack of space; what was there before is untouched."""

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(f"needs about {needed:,} bytes, {free:,} are free")
        self.needed = needed
        self.free = free


@dataclass(frozen=True, slots=True)
class Found:
    """The newest sound checkpoint, and what is wrong with newer ones."""

    path: Path | None
    damaged: tuple[tuple[Path, str], ...] = ()


def write_folder(destination: Path, write: Callable[[Path], None], *, expected_bytes: int = 0, **manifest: Any) -> int:
    """Write a sealed folder as one act and return its bytes.

    Args:
        destination: the folder's final name; one that is there is replaced only after the new one is whole.
        write: fills the temporary folder it is given.
        expected_bytes: the size of the one before; 0 when unknown.
        manifest: the fields of :class:`workbench.manifests.Manifest`.

    Raises:
        DiskFullError: nothing was changed.
    """
    parent = destination.parent
    parent.mkdir(parents=True, exist_ok=True)
    room = shutil.disk_usage(parent)
    needed = expected_bytes + min(RESERVE_BYTES, room.total // 50)
    if room.free < needed:
        raise DiskFullError(needed, room.free)
    draft = parent / f".tmp-{destination.name}-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir()
        write(draft)
        seal(draft, **manifest)
        size = total_bytes(draft)
    except BaseException as error:
        free = shutil.disk_usage(parent).free
        shutil.rmtree(draft, ignore_errors=True)
        if isinstance(error, Exception) and is_disk_full(error):
            raise DiskFullError(max(needed, expected_bytes), free) from error
        raise
    remove_folder(destination)
    draft.rename(destination)
    fsync_folder(parent)
    return size


def is_disk_full(error: BaseException) -> bool:
    """Tell whether an error, of any library, means that the disk (or a quota, or the limit on files) is full."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    words = str(error).lower()
    return any(one in words for one in _FULL_WORDS)


def newest_good(checkpoints: Path) -> Found:
    """Find the newest checkpoint whose every file matches its manifest; remember the damaged newer ones."""
    damaged: list[tuple[Path, str]] = []
    for folder in _by_step(checkpoints):
        faults = faults_of(folder)
        if not faults:
            return Found(folder, tuple(damaged))
        damaged.append((folder, "; ".join(faults)))
    return Found(None, tuple(damaged))


def is_sound(folder: Path) -> bool:
    """Tell whether a checkpoint is there and every file matches its manifest."""
    return folder.is_dir() and not faults_of(folder)


def prune(checkpoints: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints."""
    for folder in _by_step(checkpoints)[max(1, keep) :]:
        remove_folder(folder)


def set_aside(checkpoint: Path) -> None:
    """Rename a damaged checkpoint so that nobody takes it for one; only the last such is kept, for inspection."""
    for old in checkpoint.parent.glob("*.damaged"):
        shutil.rmtree(old, ignore_errors=True)
    checkpoint.rename(checkpoint.with_name(f"{checkpoint.name}.damaged"))


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written or half removed."""
    if folder.is_dir():
        for one in folder.iterdir():
            if one.name.startswith((".tmp-", ".trash-")) and one.is_dir():
                shutil.rmtree(one, ignore_errors=True)


def _by_step(checkpoints: Path) -> list[Path]:
    if not checkpoints.is_dir():
        return []
    found = [one for one in checkpoints.iterdir() if one.name.isdigit()]
    return sorted(found, key=lambda one: int(one.name), reverse=True)


# ---- state ----------------------------------------------------------------------------------------------------


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors."""
    from safetensors.torch import save_file

    save_file({name: one.detach().cpu().contiguous() for name, one in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors to the CPU."""
    from safetensors.torch import load_file

    return dict(load_file(path))


def save_state(path: Path, state: Any) -> None:
    """Write nested lists, dicts, numbers and tensors (an optimiser's ``state_dict``)."""
    import torch

    torch.save(state, path)


def load_state(path: Path) -> Any:
    """Read what :func:`save_state` wrote; runs no code from the file."""
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def save_choices(folder: Path, choices: Mapping[str, str]) -> None:
    """Write what a run decided by the memory that was free, by name."""
    (folder / CHOICES).write_text(json.dumps(dict(choices)))


def load_choices(folder: Path) -> dict[str, str]:
    """Read what :func:`save_choices` wrote; nothing where it wrote nothing."""
    file = folder / CHOICES
    return dict(json.loads(file.read_text())) if file.exists() else {}


def save_rng(folder: Path) -> None:
    """Write the state of all random number generators: torch's on the CPU and the GPU, Python's and numpy's."""
    import numpy as np
    import torch

    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        tensors |= {f"cuda{index}": one for index, one in enumerate(torch.cuda.get_rng_state_all())}
    save_tensors(folder / RNG_TENSORS, tensors)
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    numbers = {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)],
    }
    (folder / RNG_NUMBERS).write_text(json.dumps(numbers))


def restore_rng(folder: Path) -> None:
    """Put every random number generator back where :func:`save_rng` found it; nothing where it wrote nothing."""
    import numpy as np
    import torch

    if not (folder / RNG_NUMBERS).exists():
        return
    tensors = load_tensors(folder / RNG_TENSORS)
    torch.set_rng_state(tensors["cpu"])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if f"cuda{index}" in tensors:
                torch.cuda.set_rng_state(tensors[f"cuda{index}"], index)
    numbers = json.loads((folder / RNG_NUMBERS).read_text())
    version, internal, gauss = numbers["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = numbers["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))


def seed_all(seed: int) -> None:
    """Seed every random number generator."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
