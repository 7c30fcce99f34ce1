"""Write a model, merged with its adapter, as one GGUF file for llama.cpp and the programs built on it.

Llama (and Mistral and SmolLM2, which llama.cpp runs as Llama) and Qwen2, with byte-level BPE tokenizers. One tensor at
a time is read, merged in fp32, rounded once and written, so that memory holds one matrix and not the model. Other
architectures are refused: a file that llama.cpp reads in another way than the model was trained talks nonsense.

Source: the GGUF specification (ggml/docs/gguf.md), and how llama.cpp's ``convert_hf_to_gguf.py`` fills it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.gguf_vocabulary import add_vocabulary
from engine.merging import changed_layers, lora_change, lora_scaling, refuse_strange
from engine.model_import import need_room
from workbench.errors import UserError
from workbench.model_folders import (
    ADAPTER_WEIGHTS,
    HEAD_KEY,
    TensorInfo,
    check_adapter_folder,
    check_base_folder,
    read_header,
)
from workbench.protocol import ModelRef

OnProgress = Callable[[str, float], None]
_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
_NUMBERS = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


def write_gguf(model: ModelRef, folder: Path, numbers: str, on_progress: OnProgress) -> str:
    """Write ``model`` as one ``.gguf`` file in ``folder``.

    Args:
        model: a base, or an SFT model or policy on one.
        folder: where; the file is named after the model.
        numbers: "f16", "bf16" or "f32" for matrices; norms and biases are always fp32, as llama.cpp has them.
        on_progress: told before each tensor; what it raises ends the writing.

    Returns:
        What was written, in one sentence.

    Raises:
        UserError: a reward model, an architecture or tokenizer that llama.cpp would read in another way, or weights
            beyond the range of the numbers.
        OSError: the disk is full.
    """
    from transformers import AutoConfig

    from engine.base_model import load_tokenizer

    base = Path(model.base)
    check_base_folder(base)
    config = AutoConfig.from_pretrained(str(base), local_files_only=True, trust_remote_code=False)
    architecture = _architecture(config)
    change = _changes(model)
    tokenizer, _ = load_tokenizer(base)
    out = folder / f"{_file_name(model.name)}-{numbers.upper()}.gguf"
    weights = _weights_of(base, config)
    if change is not None:
        refuse_strange(change.layers, {name.removesuffix(".weight"): None for name in weights})
    writer = _Writer(out, architecture, numbers)
    writer.describe(model, config)
    add_vocabulary(writer.gguf, tokenizer, weights["model.embed_tokens.weight"][1].shape[0])
    writer.write(weights, config, change, on_progress)
    return f"{model.name}: {len(weights)} tensors in {numbers}, {out.name}"


def _architecture(config: Any) -> str:
    """Choose llama.cpp's architecture for a model. Raises UserError where it would compute something else."""
    found = _ARCHITECTURES.get(config.model_type)
    rope = config.rope_parameters or {} if found else {}
    odd = ""
    if found is None:
        odd = f"its architecture is {config.model_type}"
    elif config.hidden_act != "silu":
        odd = f"its activation is {config.hidden_act}"
    elif getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        odd = "its layers have biases, which Llama's have not"
    elif getattr(config, "use_sliding_window", False):
        odd = "it attends through a sliding window"
    elif rope.get("rope_type", "default") not in ("default", "linear", "llama3"):
        odd = f"its positions are scaled by {rope['rope_type']}"
    elif rope.get("partial_rotary_factor", 1.0) != 1.0:
        odd = "only a part of each head is rotated"
    if found is None or odd:
        raise UserError(
            "This model cannot be written as GGUF", odd, "export it merged; Llama, Mistral, SmolLM2 and Qwen2 can be"
        )
    return found


class _Changes:
    """What an adapter adds to each layer of its base."""

    def __init__(self, adapter: Path) -> None:
        from safetensors.torch import load_file

        self._tensors = load_file(str(adapter / ADAPTER_WEIGHTS))
        self._scaling = lora_scaling(adapter)
        self.layers = changed_layers(self._tensors)

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """A tensor of the base with the adapter's change, in fp32."""
        layer = name.removesuffix(".weight")
        if layer not in self.layers:
            return weight
        return weight + lora_change(self._tensors, layer, self._scaling)


def _changes(model: ModelRef) -> _Changes | None:
    if not model.adapter:
        return None
    adapter = Path(model.adapter)
    if HEAD_KEY in check_adapter_folder(adapter):
        raise UserError(
            f"{model.name} cannot be written as GGUF",
            "it is a reward model: it scores text and writes none",
            "export it as an adapter, or merged",
        )
    return _Changes(adapter)


def _weights_of(base: Path, config: Any) -> dict[str, tuple[Path, TensorInfo]]:
    """The tensors of a base by name, each with its file; without a head that is the embedding once more."""
    found = {
        name: (file, info) for file in sorted(base.glob("*.safetensors")) for name, info in read_header(file).items()
    }
    if config.tie_word_embeddings:
        found.pop("lm_head.weight", None)
    if "model.embed_tokens.weight" not in found:
        raise UserError("This model cannot be written as GGUF", "it has no model.embed_tokens", "export it merged")
    return {name: one for name, one in found.items() if not name.endswith("rotary_emb.inv_freq")}


class _Writer:
    """One GGUF file on its way to the disk."""

    def __init__(self, path: Path, architecture: str, numbers: str) -> None:
        import gguf

        self._path = path
        self._numbers = numbers
        self._architecture = architecture
        self.gguf: Any = gguf.GGUFWriter(path, architecture)

    def describe(self, model: ModelRef, config: Any) -> None:
        """Write what the model is and the sizes of its parts."""
        import gguf

        out = self.gguf
        rope = config.rope_parameters or {}
        context = config.max_position_embeddings
        if window := getattr(config, "sliding_window", None) if config.model_type == "mistral" else None:
            context = min(context, window)  # llama.cpp has no window for it: within the first all is as it was trained
        types = {"f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "f32": "ALL_F32"}
        out.add_type(gguf.GGUFType.MODEL)
        out.add_name(model.name)
        out.add_file_type(gguf.LlamaFileType[types[self._numbers]])
        out.add_vocab_size(config.vocab_size)
        out.add_context_length(context)
        out.add_embedding_length(config.hidden_size)
        out.add_block_count(config.num_hidden_layers)
        out.add_feed_forward_length(config.intermediate_size)
        out.add_head_count(config.num_attention_heads)
        out.add_head_count_kv(config.num_key_value_heads)
        out.add_layer_norm_rms_eps(config.rms_norm_eps)
        out.add_rope_freq_base(rope.get("rope_theta", 10000.0))
        width = head_width(config)
        out.add_rope_dimension_count(width)
        if width * config.num_attention_heads != config.hidden_size:
            out.add_key_length(width)
            out.add_value_length(width)
        if rope.get("rope_type") == "linear":
            out.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            out.add_rope_scaling_factor(rope["factor"])

    def write(
        self,
        weights: Mapping[str, tuple[Path, TensorInfo]],
        config: Any,
        change: _Changes | None,
        on_progress: OnProgress,
    ) -> None:
        """Write header and tensors. Raises UserError for a tensor that GGUF has no name for, OSError on a full disk."""
        from safetensors import safe_open

        names = self._names(weights, config)
        factors = rope_factors(config)
        sizes = {name: self._bytes(info.shape) for name, (_, info) in weights.items()}
        whole = sum(sizes.values())
        need_room(self._path.parent, whole, "free some space, or choose a folder on a larger disk")
        if factors is not None:
            self._announce("rope_freqs.weight", tuple(factors.shape))
        for name, (_, info) in weights.items():
            self._announce(names[name], info.shape)
        try:
            self.gguf.write_header_to_file()
            self.gguf.write_kv_data_to_file()
            self.gguf.write_ti_data_to_file()
            if factors is not None:
                self._put("rope_freqs.weight", factors)
            done = 0
            for name, (file, _) in weights.items():
                on_progress(f"Writing {name}", done / whole)
                with safe_open(str(file), framework="pt") as source:
                    weight = source.get_tensor(name).float()
                if change is not None:
                    weight = change.merged(name, weight)
                self._put(name, self._laid_out(name, weight, config))
                done += sizes[name]
        finally:
            self.gguf.close()

    def _names(self, weights: Mapping[str, Any], config: Any) -> dict[str, str]:
        import gguf

        architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self._architecture)
        names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
        found = {name: names.get_name(name, try_suffixes=(".weight", ".bias")) for name in weights}
        if strange := next((name for name, other in found.items() if other is None), None):
            raise UserError(
                "This model cannot be written as GGUF", f"there is no name for {strange}", "export it merged"
            )
        return found

    def _laid_out(self, name: str, weight: Tensor, config: Any) -> Tensor:
        """Llama's queries and keys as llama.cpp rotates them: a pair lies side by side, not half a head apart."""
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        count = heads.get(name.split(".")[-2]) if self._architecture == "llama" else None
        return weight if count is None else interleaved(weight, count)

    def _numbers_of(self, shape: tuple[int, ...]) -> torch.dtype:
        return _NUMBERS[self._numbers] if len(shape) > 1 else torch.float32

    def _bytes(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * self._numbers_of(shape).itemsize

    def _announce(self, name: str, shape: tuple[int, ...]) -> None:
        import gguf
        import numpy as np

        kinds = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
        kind = gguf.GGMLQuantizationType[kinds[self._numbers_of(shape)]]
        self.gguf.add_tensor_info(name, shape, np.dtype(np.float32), self._bytes(shape), raw_dtype=kind)

    def _put(self, name: str, weight: Tensor) -> None:
        dtype = self._numbers_of(tuple(weight.shape))
        rounded = weight.to(dtype).contiguous()
        if not torch.isfinite(rounded).all():
            raise UserError(
                f"This model cannot be written in {self._numbers}",
                f"{name} has numbers beyond its range",
                "choose bf16 or f32" if self._numbers == "f16" else "train it anew: its weights are no numbers",
            )
        self.gguf.write_tensor_data((rounded.view(torch.int16) if dtype == torch.bfloat16 else rounded).numpy())


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head from (all first halves, all second halves) to pairs.

    [heads x D, in] to the same shape: row ``(h, half, i)`` moves to ``(h, i, half)``, since transformers rotates
    dimension i with i + D/2 and llama.cpp's Llama 2i with 2i + 1. Source: llama.cpp, ``LlamaModel.permute``.
    """
    rows, *rest = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, *rest).swapaxes(1, 2).reshape(weight.shape)


def rope_factors(config: Any) -> Tensor | None:
    """By what each rotation's frequency is divided in a Llama 3.1 and later, [D/2] in fp32; None where it is not."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.rope_parameters or {}
    if rope.get("rope_type") != "llama3":
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    width = head_width(config)
    plain = rope["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    return (plain / scaled.double()).float()


def head_width(config: Any) -> int:
    """D, the width of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _file_name(name: str) -> str:
    plain = "".join(one if one.isalnum() or one in "-_." else "-" for one in name).strip("-.")
    return plain.lower() or "model"
