import errno
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine import checkpoints
from engine.checkpoints import DiskFullError, is_disk_full, newest_good, prune, set_aside, sweep, write_folder
from workbench.manifests import faults_of, folder_sha256, read_manifest, remove_folder, total_bytes

ABOUT = {"kind": "checkpoint", "run_id": "r", "method": "sft", "step": 1}


def content(text="weights"):
    def write(folder):
        (folder / "adapter_model.safetensors").write_text(text)
        (folder / "state_training.pt").write_text("optimiser")

    return write


def test_a_folder_is_written_whole_with_its_manifest(tmp_path):
    size = write_folder(tmp_path / "5", content(), **ABOUT)
    assert size == len("weights") + len("optimiser") == total_bytes(tmp_path / "5")
    assert faults_of(tmp_path / "5") == []
    assert read_manifest(tmp_path / "5").files["adapter_model.safetensors"].bytes == 7
    assert [one.name for one in tmp_path.iterdir()] == ["5"]


def test_an_error_while_writing_leaves_what_was_there(tmp_path):
    write_folder(tmp_path / "5", content("old"), **ABOUT)

    def fail(folder):
        (folder / "adapter_model.safetensors").write_text("new")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        write_folder(tmp_path / "5", fail, **ABOUT)
    assert (tmp_path / "5" / "adapter_model.safetensors").read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["5"]


def test_an_existing_folder_is_replaced(tmp_path):
    write_folder(tmp_path / "5", content("old"), **ABOUT)
    write_folder(tmp_path / "5", content("new"), **ABOUT)
    assert (tmp_path / "5" / "adapter_model.safetensors").read_text() == "new"
    assert [one.name for one in tmp_path.iterdir()] == ["5"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_known_in_every_librarys_words(tmp_path, error):
    def fail(_):
        raise error

    with pytest.raises(DiskFullError):
        write_folder(tmp_path / "5", fail, **ABOUT)
    assert list(tmp_path.iterdir()) == []
    assert not is_disk_full(ValueError("a full stop"))


def test_free_space_is_checked_before_writing(tmp_path):
    with pytest.raises(DiskFullError) as full:
        write_folder(tmp_path / "5", content(), expected_bytes=10**18, **ABOUT)
    assert full.value.needed > 10**18
    assert full.value.free < 10**18


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "no manifest", "torn manifest"])
def test_every_damage_is_found_and_the_one_before_used(tmp_path, damage):
    for step in (5, 10):
        write_folder(tmp_path / str(step), content(f"weights {step}"), **ABOUT)
    victim = tmp_path / "10" / "adapter_model.safetensors"
    manifest = tmp_path / "10" / "tastemaker.json"
    if damage == "flip":
        victim.write_text("weights l0")
    elif damage == "cut":
        victim.write_text("weights")
    elif damage == "missing":
        victim.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_bytes(manifest.read_bytes()[:40])
    found = newest_good(tmp_path)
    assert found.path == tmp_path / "5"
    ((path, fault),) = found.damaged
    assert path.name == "10"
    assert ("tastemaker.json" if "manifest" in damage else "adapter_model") in fault


def test_only_the_newest_are_kept_by_number_not_by_name(tmp_path):
    for step in (5, 50, 100, 9):
        write_folder(tmp_path / str(step), content(), **ABOUT)
    prune(tmp_path, 2)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["100", "50"]
    prune(tmp_path, 0)
    assert [one.name for one in tmp_path.iterdir()] == ["100"]


def test_a_damaged_one_is_set_aside_and_only_the_last(tmp_path):
    for step in (5, 6):
        write_folder(tmp_path / str(step), content(), **ABOUT)
        set_aside(tmp_path / str(step))
    assert [one.name for one in tmp_path.iterdir()] == ["6.damaged"]
    assert newest_good(tmp_path).path is None


def test_leftovers_are_swept_and_nothing_else(tmp_path):
    for name in (".tmp-5-1", ".trash-4-1", "5", "notes"):
        (tmp_path / name).mkdir()
    sweep(tmp_path)
    sweep(tmp_path / "missing")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["5", "notes"]


def test_a_models_hash_leaves_out_what_only_resuming_needs(tmp_path):
    write_folder(tmp_path / "1", content(), **ABOUT)
    write_folder(tmp_path / "2", lambda folder: content()(folder) or (folder / "state_more").write_text("x"), **ABOUT)
    write_folder(tmp_path / "3", content("other"), **ABOUT)
    assert folder_sha256(tmp_path / "1") == folder_sha256(tmp_path / "2") != folder_sha256(tmp_path / "3")
    assert folder_sha256(tmp_path) == ""


def test_removing_a_folder_that_is_not_there_is_nothing(tmp_path):
    remove_folder(tmp_path / "none")
    assert total_bytes(tmp_path / "none") == 0


# ---- random numbers and state ------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**31 - 1))
def test_random_numbers_go_on_where_they_were(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("rng")
    checkpoints.seed_all(seed)
    np.random.randn(1)  # leaves a cached gaussian
    random.gauss(0, 1)
    checkpoints.save_rng(folder)

    def draw():
        return (
            torch.rand(3).tolist(),
            random.random(),
            random.gauss(0, 1),
            np.random.rand(2).tolist(),
            np.random.randn(),
        )

    expected = draw()
    checkpoints.seed_all(0)
    checkpoints.restore_rng(folder)
    assert draw() == expected


def test_restoring_from_a_folder_without_random_numbers_changes_nothing(tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    checkpoints.restore_rng(tmp_path)
    assert torch.equal(torch.rand(2), expected)


def test_state_is_read_without_running_code(tmp_path):
    state = {"adam": {0: {"step": torch.tensor(3.0), "exp_avg": torch.rand(2)}}, "groups": [{"lr": 0.1}]}
    checkpoints.save_state(tmp_path / "state.pt", state)
    read = checkpoints.load_state(tmp_path / "state.pt")
    assert torch.equal(read["adam"][0]["exp_avg"], state["adam"][0]["exp_avg"])

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save(Evil(), tmp_path / "evil.pt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        checkpoints.load_state(tmp_path / "evil.pt")
    assert not Path(tmp_path / "ran").exists()
