"""What the window imports, how fast it starts, and that Qt for Python keeps Python's references whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from PySide6.QtCore import QObject, Signal

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "pyqtgraph", "pandas", "engine")


def run(code: str, tmp_path: Path, **environment: str) -> str:
    own = {f"TASTEMAKER_{name}": str(tmp_path / name.lower()) for name in ("CACHE", "RUNTIME", "CONFIG")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | own | {"QT_QPA_PLATFORM": "offscreen"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_window_imports_neither_torch_nor_plots(tmp_path: Path) -> None:
    code = f"import sys, json, ui.app; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    assert json.loads(run(code, tmp_path)) == []


def test_a_start_with_a_project_paints_soon_settles_soon_and_loads_nothing_heavy(tmp_path: Path) -> None:
    project = tmp_path / "mine"
    run(f"from workbench.project import Project; Project.create({str(project)!r}).close()", tmp_path)
    code = f"import sys; from pathlib import Path; from ui.app import run; sys.exit(run(Path({str(project)!r})))"
    # The goals are 0.4 s and 1.0 s on two quiet cores. A shared machine stretches both clocks, the CPU's by about two.
    told = [json.loads(run(code, tmp_path, TASTEMAKER_MEASURE_START="1")) for _ in range(3)]
    assert min(one["first_paint_cpu_s"] for one in told) <= 0.8
    assert min(one["idle_cpu_s"] for one in told) <= 1.6
    assert min(one["first_paint_s"] for one in told) <= 8
    assert all(one["heavy"] == [] for one in told)
    assert all(one["rss_bytes"] <= 200e6 for one in told)


class Sender(QObject):
    flag = Signal(bool)
    nothing = Signal()
    thing = Signal(object)


def test_ten_thousand_emits_leave_the_references_of_true_and_none_alone() -> None:
    sender = Sender()
    seen = [0]

    def count(*_values: object) -> None:
        seen[0] += 1

    for signal in (sender.flag, sender.nothing, sender.thing):
        signal.connect(count)
    before = sys.getrefcount(True), sys.getrefcount(None)
    for _ in range(10_000):
        sender.flag.emit(True)
        sender.nothing.emit()
        sender.thing.emit(None)
    after = sys.getrefcount(True), sys.getrefcount(None)
    assert seen[0] == 30_000
    assert abs(after[0] - before[0]) < 100
    assert abs(after[1] - before[1]) < 100
