"""Whether there is a GPU, and what it says of itself through nvidia-smi."""

import subprocess
from pathlib import Path

import pytest

from workbench import memory_plan, nvidia
from workbench.memory_plan import plan_memory
from workbench.model_shape import LLAMAS
from workbench.recipes import SftRecipe


@pytest.fixture
def smi(monkeypatch: pytest.MonkeyPatch):
    """nvidia-smi, which answers what it is told to; what it was asked for is kept."""
    asked: list[str] = []

    def answering(*answers: str) -> list[str]:
        left = iter(answers)

        def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            asked.append(command[1])
            return subprocess.CompletedProcess(command, 0, next(left))

        monkeypatch.setattr(nvidia.subprocess, "run", run)
        monkeypatch.setattr(nvidia, "_nvidia_smi", lambda: "nvidia-smi")
        return asked

    nvidia._compute_capability.cache_clear()
    yield answering
    nvidia._compute_capability.cache_clear()


def made(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize("name", ["dev/nvidia0", "dev/nvidiactl"])
def test_a_device_of_the_driver_is_a_gpu(tmp_path, monkeypatch, name):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert not nvidia.has_gpu(tmp_path)
    assert nvidia.has_gpu(made(tmp_path, name))
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert not nvidia.has_gpu(tmp_path)


def test_wsl_has_a_gpu_where_windows_shares_its_device_and_its_driver(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert not nvidia.has_gpu(made(tmp_path, "dev/dxg"))  # a GPU that is not NVIDIA's has this too
    assert nvidia.has_gpu(made(tmp_path, "usr/lib/wsl/lib/libcuda.so.1"))


def test_what_a_process_holds_of_the_gpu_is_told_by_its_id_where_it_is_a_number(smi):
    asked = smi("41, 7000\n4, 100\n4, 23\n", "4, [N/A]\nNo running processes found\n", "")
    assert [nvidia.gpu_held_bytes(4) for _ in range(3)] == [123 * 1024 * 1024, 0, 0]
    assert set(asked) == {"--query-compute-apps=pid,used_memory"}


def test_free_memory_is_in_mebibytes_and_0_where_it_is_not_told(smi, monkeypatch):
    asked = smi("20000\n", "nonsense", "")
    assert [nvidia.gpu_free_bytes() for _ in range(3)] == [20_000 * 1024 * 1024, 0, 0]
    assert set(asked) == {"--query-gpu=memory.free"}
    monkeypatch.setattr(nvidia, "_nvidia_smi", lambda: "")
    assert nvidia.gpu_free_bytes() == 0


def test_a_program_that_cannot_be_run_tells_nothing(monkeypatch):
    monkeypatch.setattr(nvidia, "_nvidia_smi", lambda: "/nowhere/nvidia-smi")
    assert nvidia.asked("memory.free") == ""


@pytest.mark.parametrize(
    ("said", "has"), [("7.5", False), ("6.1\n", False), ("8.0", True), ("9.0", True), ("[N/A]", True), ("", True)]
)
def test_gpus_before_ampere_have_no_bf16(smi, said, has):
    asked = smi(said)
    assert nvidia.gpu_has_bf16() is has
    assert nvidia.gpu_has_bf16() is has  # it does not change: asked once
    assert asked == ["--query-gpu=compute_cap"]


def test_a_gpu_without_bf16_computes_in_fp32_and_its_weights_are_twice_as_wide(monkeypatch):
    shape, recipe = LLAMAS["Llama 1B"], SftRecipe(quantisation="bf16", micro_batch=1)
    sizes = []
    for has in (True, False):
        monkeypatch.setattr(memory_plan, "gpu_has_bf16", lambda has=has: has)
        plan = plan_memory("sft", recipe, shape, [[8]], gpu=True)
        sizes.append(plan.phases[0].bytes)
    assert sizes[1] - sizes[0] == 2 * shape.parameters
    assert any("fp32 (this GPU has no bf16)" in line for line in plan.lines)
