"""The methods run for real, each in a process of its own, and hold what the memory plan foretells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.memory_plan import cpu_has_bf16
from workbench.recipes import RECIPES

WHOLE = 0.12
"""Of the process's highest resident set, libraries and model among it."""
ABOVE = {"sft": 0.3, "reward": 0.3, "dpo": 0.3, "kto": 0.3, "ppo": 0.35}
"""Of what lies above the loaded model: heaps keep gaps that depend on the order in which blocks came and went."""


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def measured(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, dict[str, int]]]:
    """What was measured and foretold, by method."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux: a process's high-water mark by phase")
    if request.param == "bf16" and not cpu_has_bf16():
        pytest.skip("this processor has no bf16")
    script, folder = Path(__file__).with_name("measure_memory.py"), tmp_path_factory.mktemp("measured")
    command = [sys.executable, str(script), str(folder), *(["--fp32"] if request.param == "fp32" else [])]
    threads = os.environ | {"OMP_NUM_THREADS": "2"}  # with one alone less is held: a pass has no halves
    done = subprocess.run(command, env=threads, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return {one["method"]: one for one in map(json.loads, done.stdout.splitlines())}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", RECIPES)
def test_the_peak_of_an_update_is_what_was_foretold(measured, method):
    found = measured[method]
    held, foretold = found["measured"]["update"], found["foretold"]["update"]
    assert held - found["model"] > 150 * 2**20  # activations dominate: 10 M parameters are 20 or 40 MiB
    assert foretold == pytest.approx(held, rel=WHOLE)
    before = found["foretold_model"]
    assert foretold - before == pytest.approx(held - found["model"], rel=ABOVE[method])
    assert found["foretold"]["load"] == pytest.approx(found["measured"]["load"], rel=WHOLE)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("method", "phase"), [("ppo", "rollout"), ("ppo", "score"), ("dpo", "score"), ("kto", "score")]
)
def test_the_peak_of_sampling_and_of_measuring_is_what_was_foretold(measured, method, phase):
    found = measured[method]
    assert found["foretold"][phase] == pytest.approx(found["measured"][phase], rel=WHOLE)
