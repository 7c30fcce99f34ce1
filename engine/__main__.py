"""``python -m engine RUN_DIR`` trains; ``python -m engine serve SOCKET`` samples and scores for the window."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def prepare_environment() -> None:
    """Set what libraries read when they load; what the user set stays. Must run before torch is imported."""
    wanted = {
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads would starve the window
        "GOMP_SPINCOUNT": "30000",  # microseconds of it bridge two neighbouring operations: a quarter faster here
        "OMP_NUM_THREADS": str(physical_cores()),
        # In bf16 oneDNN makes and keeps a kernel for every shape, and packed rows are of another length in every pass:
        # of the 1,024 that it keeps of itself a pass has some 120. The others are a tenth of a run's memory.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "192",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    }
    if Path("/dev/nvidia0").exists():
        wanted["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def physical_cores() -> int:
    """Return the physical cores that this process may use: its affinity and its container's quota count."""
    import psutil

    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        allowed = min(allowed, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        pass
    return max(1, min(physical, allowed))


def main(arguments: list[str]) -> int:
    """Train or serve; return the exit code."""
    prepare_environment()
    os.umask(0o077)
    if len(arguments) == 2 and arguments[0] == "serve":
        import faulthandler

        from workbench.errors import UserError
        from workbench.protocol_version import refuse_other_starter

        try:
            refuse_other_starter()
        except UserError as error:
            print(error, file=sys.stderr)
            return 1
        faulthandler.enable()
        from engine.serve import serve

        serve(Path(arguments[1]))
        return 0
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m engine RUN_DIR | python -m engine serve SOCKET", file=sys.stderr)
        return 2
    from engine.job import train

    return train(Path(arguments[0]))


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # everything is on disk; tearing torch down takes seconds
