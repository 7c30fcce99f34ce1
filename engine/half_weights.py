"""Frozen linear layers held a second time, in 16 bits and the layout that a CPU multiplies fastest.

- **Where it computes in fp32**, FBGEMM multiplies fp32 rows with weights in fp16, which it widens as it reads them. A
  few rows are bound by reading the weights, and half of the bytes take little more than half of the time; on AVX2 its
  kernel is also a fifth faster than MKL's where a layer is much wider than its input, with any number of rows. A bf16
  weight has eight significant bits and fp16 eleven, and a power of two brings a layer's largest number near fp16's
  largest: nothing is rounded. Where a number would be (an fp32 checkpoint held in fp32), a layer stays as it is.
- **Where it computes in bf16**, oneDNN multiplies with weights in blocks, which it otherwise arranges anew in every
  product. With many rows that is nothing, with few it is most of the time.
- **4-bit layers** are held so only while something is sampled (:func:`unpacked`), instead of being unpacked at every
  token. In fp16 what 4 bits hold is rounded to eleven bits, where a GPU computes with eight; training does not see it.

Measured on two cores, SmolLM2-135M. AVX2: a decoding step of 1, 8 and 32 rows takes a half, a third and two thirds of
its time with ``W x^T`` in fp32; a training pass over 512 tokens, with gate and up in fp16, a twentieth less.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.dense_weights import dense_weight, is_packed, weight_shape
from engine.memory import is_out_of_memory
from workbench.memory_plan import HALVES_SPARE, HEAD_BLOCK, WIDE

MOST_ROWS = 64
"""As many as decoding has at most on a CPU; more are bound by arithmetic."""
BLOCK = HEAD_BLOCK
"""Outputs of a layer alone, an LM head, that are one product: their logits stay in the cache."""
_NAME = "held_in_16_bits"  # of the attribute of a group's first layer
Group = Sequence[nn.Module]
"""Layers that read the same input."""
Product = Callable[[Tensor], Tensor]
"""Rows [N, I] to outputs [N, O]."""


class Half(NamedTuple):
    """A group in 16 bits, its layers under one another."""

    products: tuple[Product, ...]  # each to neighbouring outputs; of a layer alone BLOCK each
    scale: float  # of the rows: what the weights were divided by
    widths: list[int]  # of the layers' outputs
    wide: bool


def is_wide(group: Group) -> bool:
    """Whether a dense group is worth holding for any number of rows: in fp16, where much is made of little."""
    return all(_holdable(layer, torch.float32) for layer in group) and _wide(group)


def has_room(groups: Sequence[Group], free: int) -> bool:
    """Whether ``free`` bytes leave room for what of these is not held yet: 2 bytes a weight, three times over."""
    return free >= HALVES_SPARE * sum(2 * math.prod(weight_shape(one)) for group in _not_held(groups) for one in group)


def hold_halves(groups: Sequence[Group], dtype: torch.dtype) -> bool:
    """Hold groups in 16 bits too, of a model that computes in ``dtype``.

    Groups that are held already, are in 4 bits or in neither fp32 nor bf16 are passed over; so are all of them on a
    machine for which the kernels are not built. Returns whether any is held now, or will be by :func:`unpacked`.
    """
    if not has_kernel(dtype):
        return False
    _hold([group for group in _not_held(groups) if all(_holdable(layer, dtype) for layer in group)], dtype)
    return any(getattr(group[0], _NAME, None) is not None or is_packed(group[0]) for group in groups)


@contextlib.contextmanager
def unpacked(groups: Sequence[Group], dtype: torch.dtype) -> Iterator[None]:
    """Hold groups in 4 bits in 16 as well for as long as this lasts, for a model that computes in ``dtype``.

    Where memory has run out for all of them by now, none is.
    """
    packed = [group for group in _not_held(groups) if all(is_packed(layer) for layer in group)]
    try:
        try:
            _hold(packed, dtype)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            _let_go(packed)
        yield
    finally:
        _let_go(packed)


def has_kernel(dtype: torch.dtype) -> bool:
    """Whether this build of torch has the kernel for a model that computes in ``dtype``, on this processor."""
    try:
        _product(torch.zeros(16, 16, dtype=dtype), None, dtype)(torch.zeros(1, 16, dtype=dtype))
    except (RuntimeError, AttributeError):
        return False
    return True


def half_for(group: Group, rows: int) -> Half | None:
    """What :func:`hold_halves` made of a group, if it pays for so many rows."""
    half: Half | None = getattr(group[0], _NAME, None)
    if half is None or len(half.widths) != len(group):  # its first layer alone, say
        return None
    return half if half.wide or rows <= MOST_ROWS else None


def half_linear(half: Half, rows: Tensor) -> Tensor:
    """Multiply rows [N, I] with the layers of a group. Returns their outputs side by side, [N, O]."""
    outs = list(half_blocks(half, rows))
    return outs[0] if len(outs) == 1 else torch.cat(outs, 1)


def half_blocks(half: Half, rows: Tensor) -> Iterator[Tensor]:
    """As :func:`half_linear`, block after block, [N, outputs of the block]."""
    if half.scale != 1.0:
        rows = rows * half.scale
    for product in half.products:
        yield product(rows)


def _hold(groups: Sequence[Group], dtype: torch.dtype) -> None:
    """Make them one after the other: what each needs on the way is gone before the next."""
    for group in groups:
        setattr(group[0], _NAME, _half_of(group, dtype))


def _let_go(groups: Sequence[Group]) -> None:
    for group in groups:
        if hasattr(group[0], _NAME):
            delattr(group[0], _NAME)


def _not_held(groups: Sequence[Group]) -> list[Group]:
    return [group for group in groups if not hasattr(group[0], _NAME)]


def _holdable(layer: nn.Module, dtype: torch.dtype) -> bool:
    weight: Any = layer.weight
    return type(layer) is nn.Linear and weight.dtype == dtype and dtype in (torch.float32, torch.bfloat16)


def _wide(group: Group) -> bool:
    return sum(weight_shape(layer)[0] for layer in group) >= WIDE * weight_shape(group[0])[1]


def _half_of(group: Group, dtype: torch.dtype) -> Half | None:
    """A group in 16 bits; None where that would round a dense layer."""
    weight, bias, widths = _stacked(group, dtype)
    scale: float | None = 1.0
    if dtype == torch.float32:
        scale = _scale(weight, exactly=not is_packed(group[0]))
    if scale is None:
        return None
    if scale != 1.0:
        weight = weight / scale
    size = BLOCK if len(group) == 1 else len(weight)
    parts = [slice(begin, begin + size) for begin in range(0, len(weight), size)]
    products = tuple(_product(weight[part], None if bias is None else bias[part], dtype) for part in parts)
    return Half(products, scale, widths, dtype == torch.float32 and _wide(group))


def _product(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Product:
    """The product with a weight [O, I]: FBGEMM's with it in fp16 for fp32 rows, oneDNN's with its blocks for bf16."""
    if dtype == torch.float32:
        return partial(_fbgemm, torch.ops.quantized.linear_prepack_fp16(weight, bias))
    return partial(_onednn, torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), MOST_ROWS // 2), bias)


def _fbgemm(packed: Any, rows: Tensor) -> Tensor:
    out: Tensor = torch.ops.quantized.linear_dynamic_fp16(rows, packed)
    return out


def _onednn(packed: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return out


def _stacked(group: Group, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, list[int]]:
    """The weights of a group under one another [O, I], their biases [O] if any has one, and each one's outputs."""
    weights = [dense_weight(layer, dtype).detach() for layer in group]
    widths = [len(one) for one in weights]
    biases = [getattr(layer, "bias", None) for layer in group]
    bias = None
    if any(one is not None for one in biases):
        bias = torch.cat([
            torch.zeros(width, dtype=dtype) if one is None else one.detach().to(dtype)
            for width, one in zip(widths, biases, strict=True)
        ])  # fmt: skip
    return weights[0] if len(weights) == 1 else torch.cat(weights), bias, widths


def _scale(weight: Tensor, *, exactly: bool) -> float | None:
    """A power of two by which a weight divided is fp16 without loss, or nearly; None if there is none."""
    largest = weight.abs().amax().item()
    if not math.isfinite(largest):
        return None
    near_the_largest = 2.0 ** (math.frexp(largest)[1] - 15)
    if not exactly:
        return near_the_largest
    for scale in (1.0, near_the_largest):
        scaled = weight / scale
        if torch.equal(scaled.half().float(), scaled):
            return scale
    return None
