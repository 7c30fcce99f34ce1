"""Write a model as a folder that other tools load: the plain peft adapter, or base and adapter merged.

Merged weights are safetensors in bf16, or one GGUF file (:mod:`engine.gguf_export`). Everything is written to a folder
beside the destination, with the model's card, and renamed when it is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine.gguf_export import write_gguf
from engine.merging import lora_scaling, merge_lora
from engine.model_import import KEPT_SUFFIXES, sync_files
from engine.templates import stop_ids
from workbench.errors import UserError
from workbench.manifests import MANIFEST, fsync_folder, read_manifest, seal
from workbench.model_folders import ADAPTER_CONFIG, ADAPTER_WEIGHTS, HEAD_KEY, check_adapter_folder, check_base_folder
from workbench.protocol import ModelRef

OnProgress = Callable[[str, float], None]


def export_model(
    model: ModelRef,
    destination: Path,
    what: str,
    on_progress: OnProgress = lambda _what, _fraction: None,
    *,
    numbers: str = "f16",
    card: str = "",
) -> str:
    """Write ``model`` to the new (or empty) folder ``destination``, as one act.

    Args:
        model: a base, or an adapter on one.
        destination: must not exist, or be empty.
        what: "adapter", "merged" or "gguf".
        on_progress: told what is done and a fraction; what it raises ends the export, and nothing is left of it.
        numbers: how a GGUF file holds its matrices: "f16", "bf16" or "f32".
        card: the text of README.md; "" writes none.

    Returns:
        What was written, in one sentence.

    Raises:
        UserError: the destination is taken or the disk full, files are missing or damaged, or there is nothing to
            export so.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UserError(f"{destination} is there already", "an export never overwrites", "choose a new folder")
    draft = destination.with_name(f".exporting-{destination.name}")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        if what == "merged":
            said = _write_merged(model, draft, on_progress)
        elif what == "gguf":
            said = write_gguf(model, draft, numbers, on_progress)
        elif model.adapter:
            said = _copy_adapter(model, draft)
        else:
            raise UserError(f"{model.name} has no adapter", "it is a base model", "export it merged, as a whole")
        if card:
            (draft / "README.md").write_text(card, encoding="utf-8")
        if what == "adapter":
            _seal_adapter(model, draft)
        sync_files(draft)
        if destination.exists():
            destination.rmdir()
        draft.rename(destination)
        fsync_folder(destination.parent)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise UserError(
            f"{model.name} was not written to {destination}",
            error.strerror or str(error),
            "choose another place, or make room",
        ) from error
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return said


def _copy_adapter(model: ModelRef, draft: Path) -> str:
    source = Path(model.adapter)
    check_adapter_folder(source)
    for one in sorted(source.iterdir()):
        if one.is_file() and not one.name.startswith((".", "state")) and one.name != MANIFEST:
            shutil.copyfile(one, draft / one.name)
    config = json.loads((draft / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = Path(model.base).name  # not where it lies on this machine
    (draft / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return f"The adapter of {model.name} in peft's format"


def _seal_adapter(model: ModelRef, draft: Path) -> None:
    origin = read_manifest(Path(model.adapter))
    if origin is not None:
        seal(
            draft,
            kind="export",
            run_id=origin.run_id,
            method=origin.method,
            step=origin.step,
            base_name=origin.base_name or Path(model.base).name,
            base_sha256=origin.base_sha256,
        )


def _write_merged(model: ModelRef, draft: Path, on_progress: OnProgress) -> str:
    base = Path(model.base)
    check_base_folder(base)
    if not model.adapter:
        for one in sorted(base.iterdir()):
            if one.is_file() and one.suffix in KEPT_SUFFIXES and not one.name.startswith("."):
                shutil.copyfile(one, draft / one.name)
        return f"{model.name} as it is"
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from engine.base_model import load_tokenizer

    adapter = Path(model.adapter)
    header = check_adapter_folder(adapter)
    tensors = load_file(str(adapter / ADAPTER_WEIGHTS))
    scores = HEAD_KEY in header
    on_progress("Loading the base", 0.1)
    tokenizer, _ = load_tokenizer(base)
    kind: Any = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    more: dict[str, Any] = {"num_labels": 1} if scores else {}
    try:
        whole = kind.from_pretrained(
            str(base),
            dtype=torch.bfloat16,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            **more,
        )
    except OSError as error:  # else it would pass for the disk that is written to
        raise UserError(f"The base of {model.name} cannot be read", str(error), "import the base again") from error
    on_progress("Merging", 0.5)
    count = merge_lora(whole, tensors, lora_scaling(adapter))
    if scores:
        with torch.no_grad():
            whole.score.weight.copy_(tensors[HEAD_KEY])
        # transformers scores at the last id that is not padding: with pad == EOS that would be before the EOS.
        tokenizer.pad_token = _free_special_token(tokenizer)
        whole.config.pad_token_id = tokenizer.pad_token_id
    on_progress("Writing", 0.8)
    whole.save_pretrained(str(draft))
    tokenizer.save_pretrained(str(draft))
    stats = adapter / "reward_stats.json"
    if stats.is_file():
        shutil.copyfile(stats, draft / stats.name)
    return f"{model.name}: {count} layers merged in bf16"


def _free_special_token(tokenizer: Any) -> str | None:
    """A special token that ends and begins nothing, to pad with; None where there is none."""
    used = {*stop_ids(tokenizer), tokenizer.bos_token_id}
    free = [one for one in tokenizer.all_special_ids if one not in used]
    return str(tokenizer.convert_ids_to_tokens(free[0])) if free else None
