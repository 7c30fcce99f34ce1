"""Models on the command line: as what an export is asked for, and the card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workbench import cli, cli_models
from workbench.project import Project
from workbench.records import ModelRecord


def run(*arguments: object) -> int:
    return cli.main([str(one) for one in arguments], lambda _: 1)


@pytest.fixture
def folder(project: Project) -> Path:
    project.store.save_model(ModelRecord("b", "tiny", "base", "/x", source="hub:owner/tiny")).result()
    return project.path


class NoEngine:
    """Stands where the client of the engine is; nothing here asks it."""

    def leave(self) -> None:
        pass


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ((), ("adapter", "f16")),
        (("--merged",), ("merged", "f16")),
        (("--gguf", "bf16"), ("gguf", "bf16")),
    ],
)
def test_an_export_is_an_adapter_unless_it_is_asked_for_merged_or_as_gguf(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], asked: tuple[str, str]
) -> None:
    seen: list[tuple[str, str]] = []

    def export_model(*_: Any, what: str, numbers: str, on_progress: Any) -> None:
        seen.append((what, numbers))

    monkeypatch.setattr(cli_models, "export_model", export_model)
    monkeypatch.setattr(cli_models, "ServeClient", NoEngine)
    assert run("model", "export", folder, "tiny", folder / "out", *options) == 0
    assert seen == [asked]


@pytest.mark.parametrize("options", [("--gguf", "q4_0"), ("--merged", "--gguf", "f16")])
def test_numbers_that_no_file_is_written_in_are_misuse(folder: Path, options: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("model", "export", folder, "tiny", "out", *options)
    assert caught.value.code == 2


def test_the_card_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("model", "card", folder, "tiny") == 0
    assert "# tiny\n\nA base model.\n" in capsys.readouterr().out
