"""What may still be taken is what the machine has, or what the tightest control group leaves."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from workbench.estimate import memory_available
from workbench.machine_memory import available_bytes

GIB = 1024**3
V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine with 16 GiB available, whose files lie in a folder; called with the files of a group."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=16 * GIB))

    def group(folder: str, **files: object) -> Path:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (tmp_path / folder / name.replace("__", ".")).write_text(f"{content}\n")
        return tmp_path

    return group


def process_is_in(root: Path, *lines: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("\n".join(lines) + "\n")


def test_without_a_group_it_is_what_the_machine_has_available(system, tmp_path):
    assert available_bytes(tmp_path) == 16 * GIB


def test_a_containers_limit_less_what_it_uses_is_left(system):
    root = system(V2, memory__max=4 * GIB, memory__current=GIB)
    process_is_in(root, "0::/")
    assert available_bytes(root) == 3 * GIB


def test_the_old_hierarchys_limit_counts_as_well(system):
    root = system(V1, memory__limit_in_bytes=4 * GIB, memory__usage_in_bytes=GIB)
    process_is_in(root, "8:pids:/", "4:cpu,memory:/")
    assert available_bytes(root) == 3 * GIB


def test_pages_of_files_that_the_kernel_takes_back_are_free(system):
    """Reading a model fills the cache: 4 GiB - (3.5 - 3) GiB."""
    used = GIB * 7 // 2
    root = system(V2, memory__max=4 * GIB, memory__current=used, memory__stat=f"anon 9\ninactive_file {3 * GIB}")
    assert available_bytes(root) == 4 * GIB - GIB // 2
    stat = f"inactive_file 1\ntotal_inactive_file {3 * GIB}"
    root = system(V1, memory__limit_in_bytes=3 * GIB, memory__usage_in_bytes=used, memory__stat=stat)
    assert available_bytes(root) == 3 * GIB - GIB // 2


def test_the_tightest_group_above_the_process_counts_and_others_do_not(system):
    root = system(f"{V2}/user/job", memory__max=8 * GIB, memory__current=0)
    system(f"{V2}/user", memory__max=2 * GIB, memory__current=GIB)
    system(f"{V2}/other", memory__max=1, memory__current=1)
    process_is_in(root, "0::/user/job")
    assert available_bytes(root) == GIB
    (root / f"{V2}/user/job/memory.max").write_text(f"{GIB // 2}\n")
    assert available_bytes(root) == GIB // 2


@pytest.mark.parametrize("limit", ["max", 9223372036854771712, "nonsense"])
def test_no_limit_leaves_what_the_machine_has(system, limit):
    root = system(V2, memory__max=limit, memory__current=GIB)
    system(V1, memory__limit_in_bytes=limit, memory__usage_in_bytes=GIB)
    process_is_in(root, "0::/../elsewhere", "4:memory:/not/mounted/here")
    assert available_bytes(root) == 16 * GIB


def test_a_group_that_is_full_leaves_nothing(system):
    assert available_bytes(system(V2, memory__max=GIB, memory__current=2 * GIB)) == 0


def test_the_plan_asks_for_it(monkeypatch):
    monkeypatch.setattr("workbench.estimate.available_bytes", lambda: 7)
    assert memory_available("cpu") == 7
