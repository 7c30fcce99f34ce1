"""The doctor reports what it cannot look at instead of ending there."""

from pathlib import Path

import pytest

from workbench import doctor


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
