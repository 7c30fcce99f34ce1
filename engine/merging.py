"""A LoRA adapter's change to the weights of its base: ``scaling B A`` for every layer, in fp32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.errors import UserError

_PREFIX = "base_model.model."
Scaling = Callable[[str], float]


def changed_layers(tensors: Mapping[str, Tensor]) -> list[str]:
    """Name the layers that an adapter changes, as the base names them."""
    return [key.removeprefix(_PREFIX).removesuffix(".lora_A.weight") for key in tensors if ".lora_A." in key]


def lora_change(tensors: Mapping[str, Tensor], layer: str, scaling: Scaling) -> Tensor:
    """What an adapter adds to a layer's weight, [out, in] in fp32: ``scaling B A`` (Hu et al. 2021, section 4.1).

    ``tensors`` hold ``A`` [r, in] and ``B`` [out, r] of each layer.
    """
    first, second = (tensors[f"{_PREFIX}{layer}.lora_{one}.weight"] for one in "AB")
    return scaling(layer) * (second.float() @ first.float())


def merge_lora(model: Any, tensors: Mapping[str, Tensor], scaling: Scaling) -> int:
    """Add ``scaling B A`` to every layer's weight, in fp32, rounded once. Returns how many layers changed.

    Raises UserError when the model lacks a layer of the adapter.
    """
    layers = dict(model.named_modules())
    names = changed_layers(tensors)
    refuse_strange(names, layers)
    for name in names:
        weight = layers[name].weight
        with torch.no_grad():
            weight.copy_(weight.float() + lora_change(tensors, name, scaling).reshape(weight.shape))
    return len(names)


def refuse_strange(names: list[str], layers: Mapping[str, object]) -> None:
    """Raise UserError when a base lacks one of the layers that an adapter changes."""
    strange = next((name for name in names if name not in layers), None)
    if strange is not None:
        raise UserError("The adapter does not fit its base", f"the base has no layer {strange}", "import them again")


def lora_scaling(adapter: Path) -> Scaling:
    """Read how strongly each layer's LoRA counts, per-layer patterns and rslora included."""
    from peft import LoraConfig

    config = LoraConfig.from_pretrained(str(adapter))

    def of(path: str) -> float:
        rank = next((value for name, value in config.rank_pattern.items() if path.endswith(name)), config.r)
        alpha = next((value for name, value in config.alpha_pattern.items() if path.endswith(name)), config.lora_alpha)
        return float(alpha / (rank**0.5 if config.use_rslora else rank))

    return of
