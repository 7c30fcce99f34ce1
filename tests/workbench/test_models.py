"""Models of a project: the shared cache, imported adapters that fit, fingerprints, export and removal."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import struct
from pathlib import Path

import pytest

from workbench import cli
from workbench.errors import UserError
from workbench.ids import new_id
from workbench.manifests import seal
from workbench.model_folders import (
    HEAD_KEY,
    adapter_fits_base,
    check_adapter_folder,
    check_base_folder,
    count_parameters,
    read_header,
)
from workbench.models import add_model, cached_bases, export_model, fingerprint, import_adapter, remove_model
from workbench.moved_bases import is_gone, locate_base
from workbench.project import Project
from workbench.protocol import ExportModelRequest, Failed, Finished, Imported, ImportModelRequest, ServeProgress
from workbench.records import ModelRecord


def safetensors(path: Path, **shapes: tuple[int, ...]) -> None:
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 4
        for one in shape:
            size *= one
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(offset))


def make_base(folder: Path, width: int = 8) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": width}))
    (folder / "tokenizer.json").write_text("{}")
    safetensors(folder / "model.safetensors", **{"model.layers.0.q_proj.weight": (width, width)})
    return folder


def make_adapter(folder: Path, width: int = 8, *, head: bool = False, layer: str = "model.layers.0.q_proj") -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    stem = f"base_model.model.{layer}"
    shapes = {f"{stem}.lora_A.weight": (2, width), f"{stem}.lora_B.weight": (width, 2)}
    if head:
        shapes["base_model.model.score.weight"] = (1, width)
    safetensors(folder / "adapter_model.safetensors", **shapes)
    return folder


class FakeClient:
    """Plays the engine: imports by copying."""

    def __init__(self) -> None:
        self.requests: list[object] = []
        self.fault: Failed | None = None

    def call(self, request, timeout=None, on_reply=None):
        self.requests.append(request)
        on_reply(ServeProgress(id=request.id, what="Working", fraction=0.5))
        if self.fault is not None:
            return self.fault
        if isinstance(request, ImportModelRequest):
            if request.source in ("demo", "hub:a/b"):
                make_base(Path(request.destination), width=8 if request.source == "demo" else 12)
            else:
                shutil.copytree(request.source, request.destination)
            return Imported(id=request.id, path=request.destination, parameters=64, sha256="", template_note="a note")
        assert isinstance(request, ExportModelRequest)
        return Finished(id=request.id)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("TASTEMAKER_CACHE", str(tmp_path / "cache"))
    with Project.create(tmp_path / "project") as made:
        yield made


@pytest.fixture
def client():
    return FakeClient()


@pytest.fixture
def base(project, client, tmp_path):
    return add_model(project, str(make_base(tmp_path / "Tiny Base")), client)


def test_a_base_is_imported_into_the_cache_and_recorded(project, client, tmp_path):
    told = []
    made = add_model(project, str(make_base(tmp_path / "Tiny Base")), client, lambda *what: told.append(what))
    assert made.path == str(tmp_path / "cache" / "models" / "tiny-base")
    assert (made.role, made.name, made.note) == ("base", "tiny-base", "a note")
    assert made.sha256 == fingerprint(Path(made.path))
    assert project.store.models() == [made]
    assert told[0] == ("Working", 0.5)
    assert [one.name for one in cached_bases()] == ["tiny-base"]
    assert cached_bases()[0].parameters == 64


def test_the_same_source_is_taken_in_once_for_all_projects(project, client, base, tmp_path):
    assert add_model(project, str(tmp_path / "Tiny Base"), client) == base
    assert len(client.requests) == 1
    assert add_model(project, base.path, client) == base
    with Project.create(tmp_path / "second") as second:
        other = add_model(second, str(tmp_path / "Tiny Base"), client)
    assert (other.path, other.sha256) == (base.path, base.sha256)
    assert other.id != base.id
    assert len(client.requests) == 1


def test_another_model_of_the_same_name_gets_a_folder_of_its_own(project, client, base, tmp_path):
    other = add_model(project, str(make_base(tmp_path / "elsewhere" / "Tiny Base", width=16)), client)
    assert Path(other.path).name == "tiny-base-2"
    assert other.sha256 != base.sha256


def test_demo_and_hub_are_named_after_what_they_are(project, client):
    assert Path(add_model(project, "demo", client).path).name == "smollm2-135m-instruct"
    assert client.requests[0].source == "demo"
    hub = add_model(project, "hub:a/b", client, token="hf_secret", name="mine")
    assert (Path(hub.path).name, hub.name, hub.source) == ("mine", "mine", "hub:a/b")
    assert client.requests[1].token == "hf_secret"
    assert "hf_secret" not in repr(hub)


def test_a_source_that_is_nowhere_is_refused_before_the_engine_is_asked(project, client, tmp_path):
    with pytest.raises(UserError, match="hub:HuggingFaceTB/SmolLM2"):
        add_model(project, "HuggingFaceTB/SmolLM2", client)
    with pytest.raises(UserError, match="Check the path"):
        add_model(project, str(tmp_path / "nowhere"), client)
    assert client.requests == []


def test_an_import_that_fails_keeps_the_engines_words(project, client, tmp_path):
    client.fault = Failed(id="x", message="It is incomplete", cause="missing: config.json", remedy="copy it all")
    with pytest.raises(UserError) as caught:
        add_model(project, str(make_base(tmp_path / "t")), client)
    assert (caught.value.what, caught.value.cause, caught.value.remedy) == (
        "It is incomplete",
        "missing: config.json",
        "copy it all",
    )
    assert project.store.models() == []


def test_an_adapter_is_copied_into_the_project(project, base, tmp_path):
    source = make_adapter(tmp_path / "polite")
    (source / "state_training.pt").write_bytes(b"x")
    made = import_adapter(project, source, base.id)
    folder = project.path / made.path
    assert (made.role, made.base_id, made.parent_id) == ("policy", base.id, base.id)
    assert sorted(one.name for one in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert project.resolve(made).adapter == str(folder)
    reward = import_adapter(project, make_adapter(tmp_path / "judge", head=True), base.id, name="judge 1")
    assert (reward.role, reward.name) == ("reward", "judge 1")


def test_the_manifest_of_an_adapter_says_its_role_and_its_base(project, base, tmp_path):
    about = {"kind": "final", "run_id": "r", "step": 7, "base_name": "Tiny", "base_sha256": base.sha256}
    good = make_adapter(tmp_path / "good")
    seal(good, method="sft", **about)
    made = import_adapter(project, good, base.id)
    assert (made.role, made.step) == ("sft", 7)
    other = make_adapter(tmp_path / "other")
    seal(other, method="sft", **(about | {"base_sha256": "f" * 64}))
    with pytest.raises(UserError, match="trained on Tiny"):
        import_adapter(project, other, base.id)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "missing: adapter_config.json"),
        (lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"), "pickle"),
        (lambda folder: (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}'), "IA3"),
        (lambda folder: (folder / "adapter_config.json").write_text("no json"), "damaged"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "no JSON object"),
        (lambda folder: (folder / "adapter_config.json").write_text("[" * 100_000), "damaged"),
        (lambda folder: header(folder / "adapter_model.safetensors", b"[" * 100_000), "damaged or cut short"),
        (lambda folder: safetensors(folder / "adapter_model.safetensors", **{HEAD_KEY: ()}), "its head reads 0"),
        (
            lambda folder: os.truncate(folder / "adapter_model.safetensors", 150),
            "damaged or cut short",
        ),
        (lambda folder: safetensors(folder / "adapter_model.safetensors", strange=(2, 2)), "it has strange"),
        (lambda folder: safetensors(folder / "adapter_model.safetensors"), "no weights"),
        (lambda folder: flip(folder), "does not match its checksum"),
        (lambda folder: shutil.rmtree(folder), "no folder"),
    ],
)
def test_a_bad_adapter_is_refused_and_nothing_is_kept(project, base, tmp_path, spoil, says):
    source = make_adapter(tmp_path / "bad")
    spoil(source)
    with pytest.raises(UserError) as caught:
        import_adapter(project, source, base.id)
    assert says.lower() in str(caught.value).lower()
    assert not any(project.models_dir.iterdir())
    assert project.store.models() == [base]


def header(path: Path, raw: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)


def test_odd_values_in_a_configuration_are_no_crash(project, base, tmp_path):
    odd = make_adapter(tmp_path / "odd")
    (odd / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "auto_mapping": "x"}))
    assert import_adapter(project, odd, base.id).role == "policy"
    folder = make_base(tmp_path / "base")
    (folder / "config.json").write_text(json.dumps({"quantization_config": "int8", "hidden_size": "wide"}))
    check_base_folder(folder)
    scores = check_adapter_folder(make_adapter(tmp_path / "scores", head=True))
    assert adapter_fits_base(scores, folder) == ""
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ["model.safetensors"]}')
    with pytest.raises(UserError, match=r"missing: model\.safetensors"):
        check_base_folder(folder)


def test_an_adapter_from_a_checkpoint_can_be_imported_again_from_the_copy(project, base, tmp_path):
    source = make_adapter(tmp_path / "100")
    (source / "state_training.safetensors").write_bytes(b"x")
    seal(source, kind="checkpoint", run_id="r", method="reward", step=100, base_sha256=base.sha256)
    made = import_adapter(project, source, base.id)
    again = import_adapter(project, project.path / made.path, base.id, name="again")
    assert (again.role, again.step, again.sha256) == ("reward", 100, made.sha256)


def flip(folder: Path) -> None:
    seal(folder, kind="final", run_id="r", method="sft", step=1)
    file = folder / "adapter_model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(bytes(raw))


def test_an_adapter_of_another_base_is_refused(project, base, tmp_path):
    for made, says in (
        (make_adapter(tmp_path / "wide", width=16), "16 wide in the adapter and 8 in the base"),
        (make_adapter(tmp_path / "deep", layer="model.layers.9.q_proj"), "no layer model.layers.9.q_proj"),
    ):
        with pytest.raises(UserError, match=says):
            import_adapter(project, made, base.id)
    with pytest.raises(UserError, match="no such base"):
        import_adapter(project, make_adapter(tmp_path / "fine"), "unknown")
    header = check_adapter_folder(make_adapter(tmp_path / "head", head=True))
    (Path(base.path) / "config.json").write_text('{"hidden_size": 4}')
    assert "its head reads 8 numbers" in adapter_fits_base(header, Path(base.path))


def test_a_fingerprint_is_of_the_content_and_cached_by_size_and_date(base, monkeypatch):
    folder = Path(base.path)
    first = fingerprint(folder)
    (folder / "README.md").write_text("words do not count")
    read = []
    from workbench import model_folders

    plain = model_folders.sha256_of
    monkeypatch.setattr(model_folders, "sha256_of", lambda path: (read.append(path.name), plain(path))[1])
    assert fingerprint(folder) == first
    assert read == []
    (folder / "tokenizer.json").write_text('{"a": 1}')
    assert fingerprint(folder) != first
    assert read == ["tokenizer.json"]
    with pytest.raises(UserError, match="cannot be read"):
        fingerprint(folder / "nowhere")
    assert count_parameters(folder) == 64


def test_headers_that_lie_are_refused(tmp_path):
    for content in (b"", struct.pack("<Q", 10) + b"not json!!", struct.pack("<Q", 2) + b"[]"):
        (tmp_path / "x.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="damaged or cut short"):
            read_header(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        read_header(tmp_path / "gone.safetensors")


def test_export_asks_the_engine_and_never_overwrites(project, client, base, tmp_path):
    made = import_adapter(project, make_adapter(tmp_path / "polite"), base.id)
    out = export_model(project, made, tmp_path / "out", client, what="merged")
    request = client.requests[-1]
    assert (request.destination, request.what, request.model.model_id) == (str(out), "merged", made.id)
    assert "# polite\n" in request.card
    assert 'library_name: "transformers"' in request.card
    export_model(project, made, tmp_path / "file", client, what="gguf", numbers="bf16")
    assert (client.requests[-1].what, client.requests[-1].numbers) == ("gguf", "bf16")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    with pytest.raises(UserError, match="never overwrites"):
        export_model(project, made, tmp_path / "full", client)
    for asked in ({"what": "onnx"}, {"what": "gguf", "numbers": "q4_0"}):
        with pytest.raises(UserError, match="Choose adapter, merged, gguf, f16, bf16, f32"):
            export_model(project, made, tmp_path / "new", client, **asked)
    client.fault = Failed(id="x", message="No")
    with pytest.raises(UserError, match="No"):
        export_model(project, made, tmp_path / "new", client)


def test_removing_takes_an_imported_adapters_files_and_nobody_elses(project, base, tmp_path):
    made = import_adapter(project, make_adapter(tmp_path / "polite"), base.id)
    with pytest.raises(UserError):
        remove_model(project, base.id)
    remove_model(project, made.id)
    assert not (project.path / made.path).exists()
    trained = ModelRecord(id=new_id(), name="t", role="policy", path="runs/r/final", base_id=base.id, parent_id=base.id)
    (project.path / "runs" / "r" / "final").mkdir(parents=True)
    project.store.save_model(trained).result()
    remove_model(project, trained.id)
    assert (project.path / "runs" / "r" / "final").is_dir()
    remove_model(project, base.id)
    assert Path(base.path).is_dir()
    assert project.store.models() == []


def test_removing_never_leaves_the_folder_of_imported_adapters(project, base, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (project.models_dir / "link").symlink_to(victim)
    paths = ("models/../../victim", "models/..", "models", "models/link", str(victim), "models/../models/../../victim")
    for number, path in enumerate(paths):
        strange = ModelRecord(id=f"m{number}", name="m", role="policy", path=path, base_id=base.id, parent_id=base.id)
        project.store.save_model(strange).result()
        remove_model(project, strange.id)
        assert all(folder.is_dir() for folder in (victim, project.models_dir, project.path))
    project.models_dir.joinpath("link").unlink()
    project.models_dir.rmdir()
    project.models_dir.symlink_to(tmp_path)
    strange = ModelRecord(id="m", name="m", role="policy", path="models/victim", base_id=base.id, parent_id=base.id)
    project.store.save_model(strange).result()
    remove_model(project, strange.id)
    assert victim.is_dir()


# ---- a base that was moved -------------------------------------------------------------------------------------


@pytest.fixture
def trained(project, base, tmp_path):
    """An adapter on the base."""
    return import_adapter(project, make_adapter(tmp_path / "adapter"), base.id)


def test_a_base_that_is_added_again_after_another_cache_keeps_its_id_and_its_adapters(
    project, client, base, trained, tmp_path, monkeypatch
):
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setenv("TASTEMAKER_CACHE", str(tmp_path / "cache-of-another-machine"))
    with pytest.raises(UserError, match=r"folder .* is not there.*Locate…"):
        project.resolve(trained)
    again = add_model(project, str(tmp_path / "Tiny Base"), client)
    assert again == dataclasses.replace(base, path=str(tmp_path / "cache-of-another-machine" / "models" / "tiny-base"))
    assert project.resolve(trained).base == again.path
    assert [one.id for one in project.store.models(role="base")] == [base.id]


def test_a_record_that_was_made_anew_before_does_not_keep_the_old_one_from_being_repaired(
    project, client, base, trained, tmp_path
):
    shutil.rmtree(base.path)
    anew = dataclasses.replace(base, id="f" * 32, path=str(make_base(tmp_path / "here")))
    project.store.save_model(anew).result()
    assert add_model(project, str(tmp_path / "Tiny Base"), client) == anew
    assert project.resolve(trained).model_id == trained.id  # what hung on the lost one works again


def test_a_base_is_located_by_its_content(project, base, trained, tmp_path):
    moved = tmp_path / "moved"
    shutil.move(base.path, moved)
    assert is_gone(base)
    found = locate_base(project, base.id, moved)
    assert found == dataclasses.replace(base, path=str(moved))
    assert not is_gone(found)
    assert project.resolve(trained).base == str(moved)


def test_a_folder_with_other_weights_is_refused_and_nothing_changes(project, base, trained, tmp_path):
    other = make_base(tmp_path / "other", width=16)
    shutil.rmtree(base.path)
    with pytest.raises(UserError, match=r"holds another model than tiny-base.*add this one as a new model"):
        locate_base(project, base.id, other)
    with pytest.raises(UserError, match="There is no folder"):
        locate_base(project, base.id, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is incomplete"):
        locate_base(project, base.id, tmp_path / "empty")
    with pytest.raises(UserError, match="is no base"):
        locate_base(project, trained.id, other)
    assert project.store.model(base.id) == base


def test_the_command_line_locates_a_base(project, base, trained, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.move(base.path, moved)
    project.close()
    other = make_base(tmp_path / "other", width=16)
    assert cli.main(["model", "locate", str(project.path), "tiny", str(other)], lambda _: 0) == 1
    assert "holds another model" in capsys.readouterr().err
    assert cli.main(["model", "locate", str(project.path), "tiny", str(moved)], lambda _: 0) == 0
    assert f"is at {moved} now" in capsys.readouterr().out
    with Project.open(project.path, read_only=True) as again:
        assert again.resolve(trained).base == str(moved)
