"""Frozen linear layers held in fp16 as well, on a CPU that computes in fp32.

FBGEMM multiplies fp32 rows with weights in fp16, which it widens as it reads them. A few rows are bound by reading the
weights, and half of the bytes take little more than half of the time; on AVX2 its kernel is also a fifth faster than
MKL's where a layer is much wider than its input, with any number of rows. Nothing is rounded: a bf16 weight has eight
significant bits and fp16 eleven, and a power of two brings a layer's largest number near fp16's largest. Where a number
would be rounded all the same (an fp32 checkpoint held in fp32), a layer stays as it is.

Measured on two cores with AVX2, SmolLM2-135M: a decoding step of 1, 8 and 32 rows takes a half, a third and two thirds
of its time with ``W x^T`` in fp32; a training pass over 512 tokens, with gate and up in fp16, a twentieth less.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from workbench.memory_plan import HALVES_SPARE, HEAD_BLOCK, WIDE

MOST_ROWS = 64
"""As many as decoding has at most on a CPU; more are bound by arithmetic."""
BLOCK = HEAD_BLOCK
"""Outputs of a layer alone, an LM head, that are one product: their logits stay in the cache."""
_NAME = "held_in_fp16"  # of the attribute of a group's first layer
Group = Sequence[nn.Module]
"""Layers that read the same input."""


class Half(NamedTuple):
    """A group in fp16, its layers under one another."""

    packed: tuple[Any, ...]  # FBGEMM's, of neighbouring outputs; of a layer alone BLOCK each
    scale: float  # of the rows: what the weights were divided by
    widths: list[int]  # of the layers' outputs
    wide: bool


def is_wide(group: Group) -> bool:
    """Whether a group is worth holding in fp16 for any number of rows."""
    return sum(_weight(layer).shape[0] for layer in group) >= WIDE * _weight(group[0]).shape[1]


def hold_halves(groups: Sequence[Group], free: int) -> bool:
    """Hold groups in fp16 too: 2 bytes a weight, where ``free`` bytes leave room for it.

    Groups that are held already, are not dense or not in fp32 are passed over; so are all of them on a machine for
    which FBGEMM is not built. Returns whether there was room, and any is held now.
    """
    fitting = [
        group
        for group in groups
        if not hasattr(group[0], _NAME)
        and all(type(layer) is nn.Linear and layer.weight.dtype == torch.float32 for layer in group)
    ]
    needed = sum(2 * _weight(layer).numel() for group in fitting for layer in group)
    if free < HALVES_SPARE * needed:
        return False
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for group, half in zip(fitting, pool.map(_packed, fitting), strict=True):
            setattr(group[0], _NAME, half)
    return any(getattr(group[0], _NAME, None) is not None for group in groups)


def half_for(group: Group, rows: int) -> Half | None:
    """What :func:`hold_halves` made of a group, if it pays for so many rows."""
    half: Half | None = getattr(group[0], _NAME, None)
    if half is None or len(half.widths) != len(group):  # its first layer alone, say
        return None
    return half if half.wide or rows <= MOST_ROWS else None


def half_linear(half: Half, rows: Tensor) -> Tensor:
    """Multiply rows [N, I] in fp32 with the layers of a group. Returns their outputs side by side, [N, O]."""
    outs = list(half_blocks(half, rows))
    return outs[0] if len(outs) == 1 else torch.cat(outs, 1)


def half_blocks(half: Half, rows: Tensor) -> Iterator[Tensor]:
    """As :func:`half_linear`, block after block, [N, outputs of the block]."""
    if half.scale != 1.0:
        rows = rows * half.scale
    for packed in half.packed:
        yield torch.ops.quantized.linear_dynamic_fp16(rows, packed)


def _packed(group: Group) -> Half | None:
    weight = torch.cat([_weight(layer) for layer in group])
    scale = _exact_scale(weight)
    if scale is None:
        return None
    widths = [len(_weight(layer)) for layer in group]
    biases = [getattr(layer, "bias", None) for layer in group]
    bias = None
    if any(one is not None for one in biases):
        bias = torch.cat([
            torch.zeros(width) if one is None else one.detach() for width, one in zip(widths, biases, strict=True)
        ])  # fmt: skip
    size = BLOCK if len(group) == 1 else len(weight)
    packed = []
    for begin in range(0, len(weight), size):
        part = slice(begin, begin + size)
        try:
            made = torch.ops.quantized.linear_prepack_fp16(weight[part] / scale, None if bias is None else bias[part])
        except (RuntimeError, AttributeError):  # no FBGEMM in this build of torch, or none for this processor
            return None
        packed.append(made)
    return Half(tuple(packed), scale, widths, is_wide(group))


def _weight(layer: nn.Module) -> Tensor:
    weight: Any = layer.weight
    found: Tensor = weight.detach()
    return found


def _exact_scale(weight: Tensor) -> float | None:
    """A power of two by which a weight divided is fp16 without loss; None if there is none."""
    largest = weight.abs().amax().item()
    if not math.isfinite(largest):
        return None
    for scale in (1.0, 2.0 ** (math.frexp(largest)[1] - 15)):
        scaled = weight / scale
        if torch.equal(scaled.half().float(), scaled):
            return scale
    return None
