"""A decoder layer of the Llama family as plain tensors: what the packed training pass and the decode step run on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.lora_linear import GatedMlp, Lora


@dataclass(frozen=True, slots=True)
class Norm:
    """``x / sqrt(mean(x^2) + epsilon) * weight`` over the last dimension (Zhang and Sennrich 2019)."""

    weight: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normed tensor and ``1 / sqrt(mean(x^2) + epsilon)`` [..., 1]."""
        whole = wide(x)
        length = torch.linalg.vector_norm(whole, dim=-1, keepdim=True)
        scale = (length.square() / x.shape[-1] + self.epsilon).rsqrt()
        return self.again(x, scale), scale

    def again(self, x: Tensor, scale: Tensor) -> Tensor:
        """The normed tensor once more, from the scale of the first time."""
        return (wide(x) * scale).to(x.dtype).mul_(self.weight)

    def grad(self, x: Tensor, scale: Tensor, grad: Tensor) -> Tensor:
        """Gradient of x: ``s g w - x s^3 mean(g w x)``."""
        whole, inner = wide(x), wide(grad) * wide(self.weight)
        along = (inner * whole).sum(-1, keepdim=True).mul_(scale.pow(3)).div_(x.shape[-1])
        return inner.mul_(scale).addcmul_(whole, along, value=-1).to(x.dtype)


@dataclass(frozen=True, slots=True)
class LayerParts:
    """What a layer is made of, under one adapter."""

    attention_norm: Norm
    query: Lora
    key: Lora
    value: Lora
    query_norm: Norm | None  # Qwen 3: over each head
    key_norm: Norm | None
    output: Lora
    mlp_norm: Norm
    mlp: GatedMlp
    width: int  # W, of a head
    scaling: float  # of the scores
    rotary: bool  # SmolLM 3 has layers without
    shared: int  # query heads of a key head

    @property
    def groups(self) -> tuple[tuple[Lora, ...], ...]:
        """The linear layers, those together that read the same input."""
        return (self.query, self.key, self.value), (self.output,), self.mlp[:2], self.mlp[2:]

    @property
    def linears(self) -> tuple[Lora, ...]:
        """The linear layers in the order of their masters' gradients."""
        return (self.query, self.key, self.value, self.output, *self.mlp)


def parts_of(layer: Any, lora: Callable[[nn.Module], Lora]) -> LayerParts:
    """Take a transformers decoder layer apart; ``lora`` gives a linear layer with what an adapter adds to it."""
    attention, mlp = layer.self_attn, layer.mlp
    query_norm, key_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
    return LayerParts(
        attention_norm=_norm(layer.input_layernorm),
        query=lora(attention.q_proj),
        key=lora(attention.k_proj),
        value=lora(attention.v_proj),
        query_norm=None if query_norm is None else _norm(query_norm),
        key_norm=None if key_norm is None else _norm(key_norm),
        output=lora(attention.o_proj),
        mlp_norm=_norm(layer.post_attention_layernorm),
        mlp=GatedMlp(lora(mlp.gate_proj), lora(mlp.up_proj), lora(mlp.down_proj)),
        width=attention.head_dim,
        scaling=attention.scaling,
        rotary=bool(getattr(attention, "use_rope", True)),
        shared=attention.num_key_value_groups,
    )


def _norm(module: Any) -> Norm:
    return Norm(module.weight, module.variance_epsilon)


def rotate(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021) in Llama's order: the halves of a head are turned together.

    states [T, H, W]; cosine and sine [T, 1, W], of which both halves are alike.
    """
    half = states.shape[-1] // 2
    out = states * cosine
    out[..., :half].addcmul_(states[..., half:], sine[..., :half], value=-1)
    out[..., half:].addcmul_(states[..., :half], sine[..., :half])
    return out


def wide(tensor: Tensor) -> Tensor:
    """In fp32, or fp64 where it is that already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
