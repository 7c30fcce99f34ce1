"""The doctor reports what it cannot look at instead of ending there."""

import json
import struct
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from workbench import cli, doctor, doctor_plan, qt_check
from workbench.__main__ import open_window
from workbench.model_shape import LLAMAS
from workbench.models import CachedBase


@pytest.fixture(autouse=True)
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "probe_engine", lambda: doctor.EngineProbe(threads=2))


def test_a_cache_that_cannot_be_made_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TASTEMAKER_CACHE", str(tmp_path / "file" / "cache"))
    found = {one.what: one for one in doctor.examine()}
    assert found["Model cache"].state == found["Base models"].state == "bad"
    assert found["Model cache"].remedy
    assert found["Private folder"].state == "good"


def test_a_runtime_folder_that_is_a_link_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("TASTEMAKER_RUNTIME", str(tmp_path / "link"))
    found = {one.what: one for one in doctor.examine()}
    assert found["Private folder"].state == "bad"


# ---- the memory plan ----


@pytest.fixture
def rows_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("TASTEMAKER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(doctor_plan, "memory_available", lambda _: 20 * 1024**3)

    def rows(*options: str) -> list[dict]:
        assert cli.main(["doctor", "--plan", "--json", *options], lambda _: pytest.fail("no window")) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return rows


def test_the_plan_has_a_row_for_each_llama_and_method(rows_of) -> None:
    found = rows_of("--device", "cuda")
    assert [(one["model"], one["method"]) for one in found[:5]] == [
        ("Llama 1B", method) for method in ("sft", "reward", "dpo", "kto", "ppo")
    ]
    assert len(found) == 15
    assert set(found[4]["bytes"]) == {"load", "rollout", "score", "update"}
    assert all(one["peak_bytes"] == max(one["bytes"].values()) for one in found)
    assert all(one["fits"] for one in found)


def test_the_plan_of_a_model_is_by_its_folder_and_of_the_methods_that_were_asked_for(rows_of, tmp_path: Path) -> None:
    base = tmp_path / "mine"
    base.mkdir()
    config = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}
    (base / "config.json").write_text(json.dumps(config))
    header = json.dumps({"w": {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128]}}).encode()
    (base / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(128))
    found = rows_of("--model", str(base), "--method", "dpo", "--method", "sft")
    assert [(one["model"], one["method"]) for one in found] == [("mine", "dpo"), ("mine", "sft")]
    assert [one["model"] for one in rows_of("--model", "llama 8b", "--method", "sft")] == ["Llama 8B"]


def test_what_does_not_fit_says_so(rows_of, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_plan, "memory_available", lambda _: 1024**3)
    [one] = rows_of("--model", "Llama 8B", "--method", "ppo", "--device", "cuda")
    assert (one["fits"], one["micro_batch"], one["gradient_checkpointing"]) == (False, 1, True)


def test_people_get_a_table_and_a_sentence_where_there_is_no_such_model(
    rows_of, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", "--plan", "--model", "Llama 1B"], lambda _: 1) == 0
    shown = capsys.readouterr().out
    assert "a CPU with 20.0 GiB free" in shown
    assert shown.count("Llama 1B") == 5
    assert cli.main(["doctor", "--plan", "--model", "Llama 1B", "--device", "cuda"], lambda _: 1) == 0
    assert "there is none here" in capsys.readouterr().out
    assert cli.main(["doctor", "--plan", "--model", "nowhere"], lambda _: 1) == 1
    assert "There is no model 'nowhere'" in capsys.readouterr().err


def test_the_models_at_hand_follow_the_llamas(rows_of, monkeypatch: pytest.MonkeyPatch) -> None:
    here = CachedBase("mine", Path("/cache/mine"), 1000)
    monkeypatch.setattr(doctor_plan, "cached_bases", lambda: [here])
    monkeypatch.setattr(doctor_plan, "read_shape", lambda _: LLAMAS["Llama 1B"])
    assert [one["model"] for one in rows_of("--method", "sft")] == ["Llama 1B", "Llama 3B", "Llama 8B", "mine"]
    assert [one["model"] for one in rows_of("--method", "sft", "--model", "llama 3b")] == ["Llama 3B"]


@pytest.mark.parametrize(
    ("installed", "python", "sound"),
    [("6.12.0", (3, 11), False), ("6.12.0", (3, 12), True), ("6.11.3", (3, 11), True), (None, (3, 11), True)],
)
def test_only_the_one_pyside_that_loses_references_is_refused(
    installed: str | None, python: tuple[int, int], sound: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_pyside(monkeypatch, installed, python)
    assert (qt_check.faulty_qt() is None) == sound


def test_the_window_does_not_start_on_a_pyside_that_would_abort_it_and_doctor_says_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    has_pyside(monkeypatch, "6.12.0", (3, 11))
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    monkeypatch.setitem(sys.modules, "ui.app", None)  # whoever imports it fails
    assert cli.main(["open"], open_window) == 1
    said = capsys.readouterr().err
    assert "PySide6 6.12.0 aborts the window on Python 3.11" in said
    assert "pip install PySide6-Essentials==6.11.3" in said
    bad = [one for one in doctor._packages() if one.what == "PySide6"]
    assert [(one.state, one.detail) for one in bad] == [("bad", "PySide6 6.12.0 aborts the window on Python 3.11")]


def test_what_may_be_installed_is_what_the_documents_say() -> None:
    root = Path(__file__).parents[2]
    wanted = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    assert "PySide6-Essentials>=6.11.3,<6.12" in wanted
    assert "| PySide6 6.12 | pinned below it |" in (root / "ARCHITECTURE.md").read_text()
    assert "PySide6 stays below 6.12" in (root / "CONTRIBUTING.md").read_text()


def has_pyside(monkeypatch: pytest.MonkeyPatch, installed: str | None, python: tuple[int, int]) -> None:
    def version(_name: str) -> str:
        if installed is None:
            raise PackageNotFoundError
        return installed

    monkeypatch.setattr(qt_check, "version", version)
    monkeypatch.setattr(qt_check, "PYTHON", python)
