"""The size of a base model, from its config.json: what its memory and time are reckoned from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import UserError
from workbench.model_folders import count_parameters

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Whose layers the engine has written out for a CPU (``engine.layer_parts``); others run as transformers has them."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a base model, from its config.json."""

    parameters: int
    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    packs: bool = True  # whether a CPU passes its sequences end to end

    @property
    def linear_parameters(self) -> int:
        """Parameters of all linear layers inside the blocks: what NF4 packs."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    def adapter_parameters(self, rank: int) -> int:
        """Parameters of a LoRA adapter on all linear layers."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        one = 2 * (self.hidden + wide) + 2 * (self.hidden + narrow) + 3 * (self.hidden + self.intermediate)
        return self.layers * rank * one


def read_shape(base: Path) -> Shape:
    """Read a base model's shape. Raises UserError when its files are missing or damaged."""
    try:
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        return shape_of(config.get("text_config", config), count_parameters(base))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"The model in {base} cannot be read", f"config.json: {error}", "add the model again"
        ) from error


def shape_of(config: Mapping[str, Any], parameters: int) -> Shape:
    """Take a shape from a model's configuration. Raises KeyError, TypeError or ValueError where it does not say."""
    heads = int(config["num_attention_heads"])
    hidden = int(config["hidden_size"])
    return Shape(
        parameters=parameters,
        hidden=hidden,
        layers=int(config["num_hidden_layers"]),
        intermediate=int(config.get("intermediate_size") or 4 * hidden),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        vocabulary=int(config["vocab_size"]),
        context=int(config.get("max_position_embeddings") or 0),
        packs=has_plain_layers(config),
    )


def has_plain_layers(config: Mapping[str, Any]) -> bool:
    """Whether a model's layers are of the Llama family to the letter: full causal attention and a SwiGLU MLP."""
    rope = config.get("rope_parameters") or {}
    partial = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    return (
        config.get("model_type") in FAMILIES
        and config.get("hidden_act", "silu") == "silu"
        and partial == 1.0
        and not (config.get("sliding_window") and config.get("use_sliding_window", True))
        and all(kind == "full_attention" for kind in config.get("layer_types") or [])
    )


LLAMAS = {
    "Llama 1B": Shape(1_235_814_400, 2048, 16, 8192, 32, 8, 64, 128_256, 131_072),
    "Llama 3B": Shape(3_212_749_824, 3072, 28, 8192, 24, 8, 128, 128_256, 131_072),
    "Llama 8B": Shape(8_030_261_248, 4096, 32, 14_336, 32, 8, 128, 128_256, 131_072),
}
"""Llama 3.1 and 3.2, for plans without a model at hand."""
