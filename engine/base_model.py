"""Load a frozen base model: safetensors only, no remote code, no network, in the precision that suits the device."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.logps import CHUNK_ROWS
from engine.memory import one_heap
from engine.packing import can_pack
from engine.templates import ensure_template
from workbench.errors import UserError

_PAGE = 4096  # bytes
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")


@dataclass
class LoadedBase:
    """A base model with no parameter that trains, its tokenizer, and what the rest must know of them."""

    model: Any  # transformers CausalLM, frozen, in eval mode, dropout off
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype  # in which the model computes
    context: int  # tokens
    template_note: str  # "" unless our stated default template is in use
    quantisation: str = "bf16"
    path: str = ""
    packs: bool = False  # sequences pass end to end without padding (:mod:`engine.packing`)
    active: str | None = None  # the adapter in use (:mod:`engine.adapters`); None for the bare base
    halves: str = "none"  # which layers are held in 16 bits as well: see ``Adapters.hold_halves``
    head_rows: int = CHUNK_ROWS  # positions whose logits are held at once in training
    cast: dict[tuple[int, str | None], Any] | None = None  # by layer and adapter, see ``adapters.masters_cast_once``

    @property
    def decoder(self) -> nn.Module:
        """The model without its LM head: ids to final hidden states."""
        return self.model.get_decoder()

    @property
    def head_weight(self) -> Tensor:
        """The LM head's weight, [V, D]."""
        return self.model.get_output_embeddings().weight

    @property
    def hidden_size(self) -> int:
        """D, the width of a hidden state."""
        return int(self.head_weight.shape[1])


def compute_dtype(device: torch.device) -> torch.dtype:
    """The dtype of matrix products: bf16 where the hardware has it, else fp32.

    A CPU without bf16 instructions emulates them at a fifth of fp32's rate (measured on AVX2); there, weights are
    rounded to bf16 and widened exactly, so that the model is the same and only the arithmetic is finer. AVX-512 alone
    does not multiply bf16, though oneDNN says that it is supported there.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if platform.machine().lower() in ("x86_64", "amd64"):
        multiplies = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        multiplies = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if multiplies else torch.float32


def load_tokenizer(path: str | Path) -> tuple[Any, str]:
    """Load a tokenizer and make sure that it has a chat template. Returns (tokenizer, note about the template)."""
    from transformers import AutoTokenizer

    folder = _checked_folder(path, weights=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"The tokenizer in {folder.name} cannot be loaded", str(error), "import the model again"
        ) from error
    return tokenizer, ensure_template(tokenizer)


def load_base(path: str | Path, *, quantisation: str, device: torch.device) -> LoadedBase:
    """Load a base model for use under adapters.

    Args:
        path: a Hugging Face folder with config.json, tokenizer and safetensors.
        quantisation: "nf4" (4-bit, double quantisation), "bf16", or "fp32" / "fp64" for tests.
        device: where it computes.

    Raises:
        UserError: no such folder, pickled weights only, remote code, or files that do not fit together.
    """
    folder = _checked_folder(path, weights=True)
    tokenizer, note = load_tokenizer(folder)
    from transformers import AutoModelForCausalLM

    dtype = {"fp32": torch.float32, "fp64": torch.float64}.get(quantisation, compute_dtype(device))
    options: dict[str, Any] = {"dtype": dtype}
    if quantisation == "nf4":
        options |= {"quantization_config": _nf4(dtype), "device_map": {"": device}}
    elif quantisation == "bf16":
        options["dtype"] = torch.bfloat16  # rounds fp32 checkpoints; widened below where the device computes in fp32
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="sdpa",
            **options,
        )
    except UserError:
        raise
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise UserError(
            f"The model in {folder.name} cannot be loaded", str(error), "import it again, or choose another model"
        ) from error
    if quantisation == "nf4":
        _keep_plain_packing(model)
    else:
        model = _placed(model, device, options["dtype"], dtype)
    if device.type == "cpu":
        _read_in(model)
        if dtype == torch.bfloat16:
            one_heap()
    return prepare(model, tokenizer, device, dtype, note=note, quantisation=quantisation, path=str(folder))


def prepare(
    model: Any,
    tokenizer: Any,
    device: torch.device,
    dtype: torch.dtype,
    *,
    note: str = "",
    quantisation: str = "bf16",
    path: str = "",
) -> LoadedBase:
    """Freeze a model that is in memory already and wrap it; every dropout is switched off for good."""
    _check_head(model)
    model.requires_grad_(False)
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout_p"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    model.config.use_cache = False
    config = model.config.get_text_config()
    context = int(getattr(config, "max_position_embeddings", 0) or getattr(config, "n_positions", 0) or 2048)
    return LoadedBase(model, tokenizer, device, dtype, context, note, quantisation, path, can_pack(config, device))


def _check_head(model: Any) -> None:
    """Refuse models whose log-probabilities are more than softmax(hidden x head): ours would be wrong, silently."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    odd = next((key for key in ("final_logit_softcapping", "logit_scale", "logits_scaling") if _set(config, key)), "")
    if getattr(head, "bias", None) is not None:
        odd = "a bias in its LM head"
    if odd:
        raise UserError(
            "This model's architecture is not supported for training",
            f"it computes its logits in a way of its own ({odd})",
            "choose a Llama, Qwen, Mistral, SmolLM, Phi-3 or Gemma 3 model",
        )


def _placed(model: Any, device: torch.device, held: torch.dtype, dtype: torch.dtype) -> Any:
    """Move a model, and widen what was loaded as ``held``.

    A cast touches buffers too, and transformers keeps the rotary frequencies in fp32 in a bf16 model: rounded to bf16
    they turn a head at position 1000 by up to a radian too much.
    """
    return model.to(device) if held == dtype else model.to(device=device, dtype=dtype)


def _read_in(model: nn.Module) -> None:
    """Touch every page of the weights: what is neither packed nor widened is mapped from its file until it is used.

    So a run's memory has the model in it from the beginning, and its first step does not wait for the disk.
    """
    for one in model.parameters():
        one.detach().reshape(-1)[:: _PAGE // one.element_size()].sum()


def _set(config: Any, key: str) -> bool:
    return getattr(config, key, None) not in (None, 1, 1.0)


def _keep_plain_packing(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights in place on CPUs with AVX512-BF16.

    It does so in the first forward pass without gradients, and its ``dequantize_4bit``, which the backward pass needs,
    then reads the new layout as if it were the old one.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _nf4(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _checked_folder(path: str | Path, *, weights: bool) -> Path:
    folder = Path(path)
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise UserError(
            f"There is no model in {folder}", "config.json is missing", "import the model again or choose another"
        )
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"The model in {folder.name} is damaged", f"config.json: {error}", "import it again") from error
    if "auto_map" in config:
        raise UserError(
            f"The model in {folder.name} is refused",
            "it brings its own code (auto_map in config.json), which is never run",
            "choose a model whose architecture transformers knows",
        )
    if weights and not any(folder.glob("*.safetensors")):
        pickled = [file.name for pattern in _PICKLES for file in folder.glob(pattern)]
        raise UserError(
            f"The model in {folder.name} has no safetensors",
            f"it holds {', '.join(sorted(pickled)[:3])}, and pickled weights can run code" if pickled else "",
            "convert it to safetensors, or choose another model",
        )
    return folder
