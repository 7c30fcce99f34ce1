"""``tastemaker doctor``: what this machine can do, and what to do about what it cannot."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import psutil

from workbench.doctor_plan import plan
from workbench.errors import UserError
from workbench.folders import cache_dir, models_cache_dir, runtime_dir
from workbench.machine_memory import available_bytes
from workbench.qt_check import faulty_qt, missing_packages
from workbench.terminal import Terminal, in_bytes

PACKAGES = ("PySide6-Essentials", "pyqtgraph", "apsw", "torch", "transformers", "peft", "bitsandbytes")
ENGINE_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "safetensors", "gguf")
BYTES_TO_TRAIN = 3 * 1024**3
_PROBE = """
import json, torch
cuda = torch.cuda.is_available()
found = {"cuda": cuda, "threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability()}
if cuda:
    free, total = torch.cuda.mem_get_info()
    found |= {"gpu": torch.cuda.get_device_name(0), "gpu_free": free, "gpu_total": total,
              "bf16": torch.cuda.is_bf16_supported(including_emulation=False)}
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``state`` is "good", "note" (works, with limits) or "bad"."""

    what: str
    state: str
    detail: str
    remedy: str = ""


class EngineProbe(msgspec.Struct, frozen=True):
    """What the engine's torch sees; read from a process of its own."""

    cuda: bool = False
    threads: int = 0
    cpu: str = ""
    gpu: str = ""
    gpu_free: int = 0
    gpu_total: int = 0
    bf16: bool = False


def doctor(options: argparse.Namespace, terminal: Terminal) -> int:
    """Print every finding, or with ``--plan`` what training needs. Exits 1 when something is missing for training."""
    if options.plan:
        return plan(options, terminal)
    found = examine()
    marks = {"good": "ok  ", "note": "note", "bad": "BAD "}
    for one in found:
        remedy = f"\n      {one.remedy}" if one.remedy else ""
        terminal.result(asdict(one), f"{marks[one.state]}  {one.what}: {one.detail}{remedy}")
    return 1 if any(one.state == "bad" for one in found) else 0


def examine() -> list[Finding]:
    """Look at everything that the window and the engine need; what cannot be looked at is a finding too."""
    looks: tuple[tuple[str, Callable[[], list[Finding]]], ...] = (
        ("Python", _python),
        ("Packages", _packages),
        ("Window", _window),
        ("GPU", _device),
        ("Memory", _memory),
        ("Model cache", lambda: _disk("Model cache", cache_dir())),
        ("Working folder", lambda: _disk("Working folder", Path.cwd())),
        ("Base models", _models),
        ("Private folder", lambda: [Finding("Private folder", "good", str(runtime_dir()))]),
    )
    return [finding for what, look in looks for finding in _looked(what, look)]


def _looked(what: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return look()
    except UserError as error:
        return [Finding(what, "bad", f"{error.what}: {error.cause}" if error.cause else error.what, error.remedy)]
    except OSError as error:
        return [Finding(what, "bad", str(error), "check the folder and its rights")]


def _python() -> list[Finding]:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return [Finding("Python", "good" if good else "bad", text, "" if good else "use Python 3.11, 3.12 or 3.13")]


def _packages() -> list[Finding]:
    found = []
    lacking = [name for name in ENGINE_PACKAGES if importlib.util.find_spec(name) is None]
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"{name} missing")
    if lacking:
        remedy = "install them with: pip install 'tastemaker[engine]' (labelling works without them)"
        found.append(Finding("Engine packages", "bad", "missing: " + ", ".join(lacking), remedy))
    found.append(Finding("Packages", "good", ", ".join(versions)))
    if (fault := faulty_qt()) is not None:
        found.append(Finding("PySide6", "bad", fault.what, fault.remedy))
    return found


def _window() -> list[Finding]:
    lacking = missing_packages()
    if lacking:
        remedy = "sudo apt-get install " + " ".join(lacking)
        return [Finding("Window", "note", "Qt's system libraries are missing", remedy)]
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return [Finding("Window", "note", "no display here", "the command line does everything; `tastemaker demo`")]
    return [Finding("Window", "good", "a display and Qt's libraries are here")]


def probe_engine(timeout: float = 120) -> EngineProbe | None:
    """Ask a separate Python about torch and the GPU, so that neither is loaded here. None when torch fails."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=timeout, check=True
        )
        return msgspec.json.decode(done.stdout.strip().splitlines()[-1], type=EngineProbe)
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError, IndexError):
        return None


def _device() -> list[Finding]:
    if importlib.util.find_spec("torch") is None:
        return []
    seen = probe_engine()
    if seen is None:
        return [Finding("torch", "bad", "it is installed and does not start", "run `make clean setup`")]
    if not seen.cuda:
        text = f"none; training runs on the CPU ({seen.threads} threads, {seen.cpu})"
        remedy = "fine for models of some 100 M parameters; larger ones want an NVIDIA GPU and its driver"
        return [Finding("GPU", "note", text, remedy)]
    text = f"{seen.gpu}, {in_bytes(seen.gpu_free)} of {in_bytes(seen.gpu_total)} free"
    found = [Finding("GPU", "good", text)]
    if not seen.bf16:
        found.append(
            Finding(
                "bf16", "note", "this GPU has no bf16", "training computes in fp32, which takes more memory and time"
            )
        )
    if seen.gpu_free < seen.gpu_total / 2:
        found.append(Finding("GPU memory", "note", "another program holds much of it", "see `nvidia-smi`"))
    return found


def _memory() -> list[Finding]:
    available = available_bytes()
    text = f"{in_bytes(available)} of {in_bytes(psutil.virtual_memory().total)} available, {os.cpu_count()} cores"
    if available < BYTES_TO_TRAIN:
        return [Finding("Memory", "note", text, "close other programs, or train with a smaller micro_batch")]
    return [Finding("Memory", "good", text)]


def _disk(what: str, folder: Path) -> list[Finding]:
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return [Finding(what, "bad", f"{folder} cannot be read and written", "check its rights")]
    free = shutil.disk_usage(folder).free
    low = free < 5 * 1024**3
    text = f"{folder}, {in_bytes(free)} free"
    return [Finding(what, "note" if low else "good", text, "free some space" if low else "")]


def _models() -> list[Finding]:
    names = sorted(one.name for one in models_cache_dir().iterdir() if (one / "config.json").exists())
    if not names:
        return [Finding("Base models", "note", "none yet", "tastemaker model add DIR demo")]
    return [Finding("Base models", "good", ", ".join(names))]
