"""Model folders as files: what a base or an adapter must have, how many parameters it holds, and its fingerprint.

Reads headers, never weights into memory; needs neither torch nor safetensors. A safetensors file begins with eight
bytes (the header's length), then a JSON header with the dtype, shape and byte range of every tensor.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import msgspec

from workbench.errors import UserError
from workbench.folders import cache_dir
from workbench.jsonl import decode, encode, write_atomic
from workbench.manifests import MANIFEST, faults_of, sha256_of
from workbench.protocol import ModelRef

PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
HEAD_KEY = "base_model.model.score.weight"
HEADS_FILE = "reward_heads.safetensors"  # the heads of an ensemble; their mean is the adapter's own head
_INDEX = "model.safetensors.index.json"
_FINGERPRINTED = (".safetensors", ".json", ".jinja", ".txt", ".model")
_NOT_FINGERPRINTED = (MANIFEST,)
_HEADER_LIMIT_BYTES = 100 * 2**20
_TOKENIZERS = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("vocab.json", "merges.txt"),
    ("spiece.model",),
    ("vocab.txt",),
)


class TensorInfo(msgspec.Struct, frozen=True):
    """One tensor of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _Seen(msgspec.Struct, frozen=True):
    size: int
    mtime_ns: int
    sha256: str


class _FingerprintCache(msgspec.Struct, frozen=True):
    files: dict[str, _Seen]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read a safetensors header and check that the file is as long as it says.

    Raises:
        UserError: the file is truncated, no safetensors file, or cannot be read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as source:
            length = int.from_bytes(source.read(8), "little")
            if size < 8 or not 2 <= length <= min(_HEADER_LIMIT_BYTES, size - 8):
                raise _damaged(path, "its header is missing or impossible")
            raw = json.loads(source.read(length))
        raw.pop("__metadata__", None)
        header = msgspec.convert(raw, dict[str, TensorInfo])
    except OSError as error:
        raise UserError(f"{path.name} cannot be read", error.strerror or str(error), "check its permissions") from error
    except (ValueError, TypeError, AttributeError, RecursionError, msgspec.ValidationError) as error:
        raise _damaged(path, f"its header cannot be read: {error}") from error
    end = 8 + length + max((one.data_offsets[1] for one in header.values()), default=0)
    if size != end:
        raise _damaged(path, f"it has {size:,} bytes and should have {end:,}")
    return header


def _damaged(path: Path, cause: str) -> UserError:
    return UserError(f"{path.name} is damaged or cut short", cause, "copy or download the model again")


def check_base_folder(folder: Path, name: str = "") -> None:
    """Check the files of a base model: everything there, safetensors only, no code of its own, not quantised.

    Raises:
        UserError: naming every missing file, or what makes the model unusable.
    """
    name = name or folder.name
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        raise UserError(
            f"the model {name} is only an adapter", f"it holds {ADAPTER_CONFIG}", "import it onto its base model"
        )
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not any(all((folder / part).is_file() for part in kind) for kind in _TOKENIZERS):
        missing.append("tokenizer.json")
    weights = sorted(one.name for one in folder.glob("*.safetensors"))
    if not weights and (pickled := _pickled(folder)):
        raise UserError(
            f"the model {name} is refused",
            f"its weights are pickled ({pickled[0]}), and a pickle can run code",
            "choose a model with safetensors, or convert it first",
        )
    missing += _missing_weights(folder, weights)
    if missing:
        raise UserError(
            f"the model {name} is incomplete", f"missing: {', '.join(missing)}", "copy or download all of its files"
        )
    for file in ("config.json", "tokenizer_config.json"):
        if "auto_map" in _read_json(folder / file, name):
            raise UserError(
                f"the model {name} is refused",
                f"it brings its own code (auto_map in {file}), which Tastemaker never runs",
                "choose a model whose architecture transformers knows",
            )
    method = _object(_read_json(folder / "config.json", name), "quantization_config").get("quant_method")
    if method:
        raise UserError(
            f"the model {name} is quantised already ({method})",
            "Tastemaker quantises the base itself when it loads it",
            "choose the model in its original precision",
        )
    for file in weights:
        read_header(folder / file)


def _pickled(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir() if one.suffix in PICKLED_SUFFIXES)


def _missing_weights(folder: Path, weights: list[str]) -> list[str]:
    if (folder / _INDEX).is_file():
        shards = {str(one) for one in _object(_read_json(folder / _INDEX, folder.name), "weight_map").values()}
        return sorted(shard for shard in shards if not (folder / shard).is_file()) or (
            [] if shards else ["model.safetensors"]
        )
    return [] if weights else ["model.safetensors"]


def _read_json(path: Path, name: str) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"the model {name} is damaged", f"{path.name}: {error}", "copy or download it again") from error
    if not isinstance(found, dict):
        raise UserError(f"the model {name} is damaged", f"{path.name} is no JSON object", "copy or download it again")
    return found


def _object(config: dict[str, Any], key: str) -> dict[str, Any]:
    """A part of a configuration; {} where it is none."""
    found = config.get(key)
    return found if isinstance(found, dict) else {}


def check_adapter_folder(folder: Path) -> dict[str, TensorInfo]:
    """Check the files of a peft adapter: safetensors, whole, LoRA, true to its manifest. Returns its tensors.

    Raises:
        UserError: with the first thing that is wrong.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}", "", "choose the folder of a peft adapter")
    missing = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (folder / name).is_file()]
    if missing == [ADAPTER_WEIGHTS] and (pickled := _pickled(folder)):
        raise UserError(
            f"the adapter {folder.name} is refused",
            f"its weights are pickled ({pickled[0]}), and a pickle can run code",
            "save the adapter as safetensors",
        )
    if missing:
        raise UserError(
            f"the adapter {folder.name} is incomplete", f"missing: {', '.join(missing)}", "copy all its files"
        )
    config = _read_json(folder / ADAPTER_CONFIG, folder.name)
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"the adapter {folder.name} cannot be used",
            f"it is of type {config.get('peft_type')}",
            "use a LoRA adapter",
        )
    if _object(config, "auto_mapping").get("parent_library"):
        raise UserError(
            f"the adapter {folder.name} is refused", "it names code of its own (auto_mapping)", "use a plain adapter"
        )
    if (folder / MANIFEST).is_file() and (faults := faults_of(folder)):
        raise UserError(f"the adapter {folder.name} is damaged", "; ".join(faults), "copy it again")
    header = read_header(folder / ADAPTER_WEIGHTS)
    odd = [key for key in header if ".lora_A." not in key and ".lora_B." not in key and key != HEAD_KEY]
    if odd or not header:
        raise UserError(
            f"the adapter {folder.name} cannot be used",
            f"it has {odd[0]}" if odd else "it holds no weights",
            "use a plain LoRA adapter",
        )
    return header


def adapter_fits_base(header: dict[str, TensorInfo], base: Path) -> str:
    """Compare an adapter's tensors with its base's layers; return why they do not fit, or ""."""
    layers = {
        key.removesuffix(".weight"): one.shape
        for file in base.glob("*.safetensors")
        for key, one in read_header(file).items()
    }
    for key, one in header.items():
        if key == HEAD_KEY:
            width = one.shape[-1] if one.shape else 0
            if width != (hidden := _hidden_size(base)) and hidden:
                return f"its head reads {width} numbers and the base gives {hidden}"
            continue
        path, _, part = key.removeprefix("base_model.model.").partition(".lora_")
        shape = layers.get(path)
        if shape is None:
            return f"the base has no layer {path}"
        if len(shape) == 2 and len(one.shape) == 2:
            ours, theirs = (one.shape[1], shape[1]) if part.startswith("A") else (one.shape[0], shape[0])
            if ours != theirs:
                return f"{path} is {ours} wide in the adapter and {theirs} in the base"
    return ""


def _hidden_size(base: Path) -> int:
    size = _read_json(base / "config.json", base.name).get("hidden_size")
    return size if isinstance(size, int) else 0


def count_parameters(folder: Path) -> int:
    """Count the parameters of all safetensors files of a folder, from their headers (tied weights once)."""
    return sum(math.prod(one.shape) for file in folder.glob("*.safetensors") for one in read_header(file).values())


def fingerprint(folder: Path, *, cached: bool = True) -> str:
    """Return the sha256 of the files that define a model: weights, configuration, tokenizer.

    Hashes are cached by size and modification time, so that asking again costs no reading; with ``cached=False``
    every byte is read. Raises UserError where the folder cannot be read.
    """
    try:
        files = sorted(
            one
            for one in folder.iterdir()
            if one.is_file()
            and one.suffix in _FINGERPRINTED
            and one.name not in _NOT_FINGERPRINTED
            and not one.name.startswith((".", "state"))
        )
        if not files:
            raise FileNotFoundError(2, "there are no model files in it")
        known = _known(folder) if cached else {}
        seen = {one.name: _hash(one, known.get(one.name)) for one in files}
    except OSError as error:
        raise UserError(
            f"The model in {folder} cannot be read", error.strerror or str(error), "import it again"
        ) from error
    if seen != known:
        with contextlib.suppress(OSError, UserError):  # a cache that cannot be kept costs time only
            write_atomic(_cache_file(folder), encode(_FingerprintCache(seen)))
    digest = hashlib.sha256()
    for name, one in sorted(seen.items()):
        digest.update(f"{name}\0{one.sha256}\n".encode())
    return digest.hexdigest()


def refuse_changed(folder: Path, sha256: str, what: str, *, cached: bool = True) -> None:
    """Raise UserError when a model's files are not those that it was listed with; an unknown ``sha256`` is "".

    safetensors has no checksum: without this a flipped bit or a zeroed block would load silently.
    """
    if sha256 and fingerprint(folder, cached=cached) != sha256:
        raise UserError(
            f"{what} has changed since it was added",
            f"the files in {folder} are damaged, or are not those that the project knows",
            "put the old files back, or add the changed model as a new one",
        )


def refuse_changed_base(model: ModelRef) -> None:
    """Raise UserError when a model's base is not what it was when the project listed it."""
    refuse_changed(Path(model.base), model.base_sha256, f"The base of {model.name}")


def refuse_changed_adapter(model: ModelRef) -> None:
    """The same of its adapter, where it has one: small enough to read every byte each time."""
    if model.adapter:
        refuse_changed(Path(model.adapter), model.adapter_sha256, f"The adapter of {model.name}", cached=False)


def refuse_changed_model(model: ModelRef) -> None:
    """Raise UserError when a model's base or adapter is not what it was when the project listed it."""
    refuse_changed_base(model)
    refuse_changed_adapter(model)


def _hash(path: Path, known: _Seen | None) -> _Seen:
    status = path.stat()
    if known is not None and (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns):
        return known
    return _Seen(status.st_size, status.st_mtime_ns, sha256_of(path))


def _cache_file(folder: Path) -> Path:
    place = cache_dir() / "fingerprints"
    place.mkdir(mode=0o700, exist_ok=True)
    return place / (hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32] + ".json")


def _known(folder: Path) -> dict[str, _Seen]:
    try:
        return decode(_cache_file(folder).read_bytes(), _FingerprintCache).files
    except (OSError, UserError, msgspec.DecodeError, msgspec.ValidationError):
        return {}
