"""Measuring a piece of work in a process of its own: time a step, tokens, memory. Knows neither us nor the peer."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

MIB = 2**20


def prepare(threads: int) -> None:
    """Set what libraries read when they load. Before torch is imported, and the same for both sides."""
    os.environ.update(
        {
            "OMP_WAIT_POLICY": "PASSIVE",
            "GOMP_SPINCOUNT": "30000",
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "TRL_EXPERIMENTAL_SILENCE": "1",
        }
    )


def has_bf16() -> bool:
    """Whether the device multiplies bf16 matrices itself; one that emulates them takes many times as long."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine().lower() in ("x86_64", "amd64"):  # AVX-512 alone counts as support there, and emulates
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def matrix_rate(seconds: float = 1.0, tries: int = 5) -> float:
    """Measure the device's rate in FLOP/s on large square matrices, in the dtype that both sides compute in.

    The best of some tries: what else the machine does only ever takes from it.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = 8192 if device.type == "cuda" else 1024
    one = torch.randn(size, size, device=device, dtype=torch.bfloat16 if has_bf16() else torch.float32)
    two = one.clone()
    one @ two
    _wait(device)
    rates = []
    for _ in range(tries):
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            one @ two
            _wait(device)
            done += 1
        rates.append(2 * size**3 * done / (time.perf_counter() - began))
    return max(rates)


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def memory(name: str) -> float:
    """A line of this process's status in MiB: VmRSS now, VmHWM at its highest."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    return 0.0


def means(logs: list[dict[str, Any]], *, by_tokens: bool = False) -> dict[str, float]:
    """The mean over all steps of what both sides log: they learn from the same rows, in other batches.

    Args:
        logs: of every step, in order.
        by_tokens: a step counts by its tokens (SFT, whose steps have many or few), as ``num_tokens`` tells them.
    """
    keys = ("loss", "accuracy", "rewards/accuracies", "objective/scores", "objective/kl", "val/ratio")
    seen = [0.0, *(float(log.get("num_tokens", 0)) for log in logs)]
    weights = [now - before for before, now in pairwise(seen)] if by_tokens else None
    return {key: statistics.fmean([float(log[key]) for log in logs], weights) for key in keys if key in logs[0]}


@dataclass
class Meter:
    """Wall and CPU seconds of every step, and memory before and at the highest point of the training."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    before_mib: float = 0.0
    peak_mib: float = 0.0
    _wall: float = 0.0
    _cpu: float = 0.0
    began: bool = False

    def start(self) -> None:
        """Training begins: the model is loaded, the rows are tokenised."""
        import gc

        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before_mib = torch.cuda.memory_allocated() / MIB
        else:
            self.before_mib = memory("VmRSS")
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
        self.began = True
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def step(self) -> None:
        """An optimiser step (PPO: a rollout with its update) is done."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.wall_s.append(wall - self._wall)
        self.cpu_s.append(cpu - self._cpu)
        self._wall, self._cpu = wall, cpu

    def stop(self) -> None:
        """Training has ended."""
        import torch

        self.peak_mib = torch.cuda.max_memory_allocated() / MIB if torch.cuda.is_available() else memory("VmHWM")

    def report(self, *, samples: int, tokens: int, **more: Any) -> None:
        """Print the measurement as one JSON line.

        Every step counts, the first too: the sides make other batches of the same rows (ours of similar lengths), so
        that the work of a step that is left out would be no share of the whole.
        """
        wall, cpu = sum(self.wall_s), sum(self.cpu_s)
        print(
            json.dumps(
                {
                    "samples_per_s": samples / wall,
                    "tokens_per_s": tokens / wall,
                    "tokens_per_cpu_s": tokens / max(cpu, 1e-9),
                    "step_s": [round(one, 3) for one in self.wall_s],
                    "samples": samples,
                    "tokens": tokens,
                    "before_mib": round(self.before_mib, 1),
                    "peak_mib": round(self.peak_mib, 1),
                    "above_model_mib": round(self.peak_mib - self.before_mib, 1),
                }
                | more
            ),
            flush=True,
        )
