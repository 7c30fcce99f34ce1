"""Log-probabilities of tokens from hidden states, in chunks: the [B, T, V] logits never exist.

``d log p(y|h) / dh = ((1 - p_y) W_y - sum_{v != y} p_v W_v) / temperature``, so the forward pass can keep that one
vector per token ([N, D]) and the backward pass only scales it: two products with the head instead of the three that
recomputing the logits costs, and the same memory. The target is left out of the sum, and ``1 - p_y`` is the sum of
the others: for a token that is nearly certain ``W_y - sum_v p_v W_v`` would be the difference of two equal vectors.
Softmax and logsumexp are fp32 (fp64 for an fp64 model).

On a CPU the two halves of a chunk are done on a thread each, with the head in 16 bits where it is held so
(:mod:`engine.half_weights`): together a sixth to a quarter less time (measured on two cores).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine.half_weights import BLOCK, Half, half_blocks
from engine.side_by_side import WAYS, side_by_side

CHUNK_ROWS = 512
"""Rows whose logits are held at once."""
VOCABULARY_BLOCK = BLOCK
"""On a CPU the vocabulary is walked in blocks that stay in its cache: 512 x 4096 in fp32 are 8 MB. A GPU takes it
whole: 512 x 49152 are 100 MB."""


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        weight: Tensor,
        half: Half | None,
        temperature: float,
        chunk: int,
        wants_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = hidden.shape[0]
        logps = torch.empty(rows, dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        entropy = torch.empty_like(logps)
        correct = torch.empty(rows, dtype=torch.bool, device=hidden.device)
        slope = torch.empty_like(hidden) if wants_grad else None

        def measure(part: slice) -> None:
            logps[part], entropy[part], correct[part], others = _softmax_stats(
                hidden[part], targets[part], weight, half, temperature, wants_grad
            )
            if slope is not None and others is not None:
                share, mean = others
                slope[part] = (weight[targets[part]] * share[:, None] - mean) / temperature

        ways = WAYS if hidden.device.type == "cpu" and torch.get_num_threads() >= WAYS else 1
        for together in _even(range(rows), -(-rows // chunk)):
            parts = _even(together, min(ways, len(together)))
            side_by_side([partial(measure, slice(part.start, part.stop)) for part in parts])
        if slope is not None:
            ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(entropy, correct)
        return logps, entropy, correct

    @staticmethod
    def backward(ctx: Any, grad_logps: Tensor, *_: Any) -> tuple[Any, ...]:
        (slope,) = ctx.saved_tensors
        return slope * grad_logps[:, None].to(slope.dtype), None, None, None, None, None, None


def _even(rows: range, count: int) -> list[range]:
    """Part rows evenly: a short last part multiplies badly."""
    return [rows[len(rows) * number // count : len(rows) * (number + 1) // count] for number in range(count)]


def _softmax_stats(
    hidden: Tensor, targets: Tensor, weight: Tensor, half: Half | None, temperature: float, wants_mean: bool
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """One pass over the vocabulary in blocks, with a running maximum (Milakov & Gimelshein 2018).

    Returns (log p(target) [N], entropy [N], whether no other token is likelier [N], and, if wanted, of all tokens but
    the target the probability ``sum_{v != y} p_v`` [N] and ``sum_{v != y} p_v W_v`` [N, D]).
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    top = torch.full(targets.shape, -torch.inf, dtype=wide, device=hidden.device)
    norm, energy, chosen, rest = (torch.zeros_like(top) for _ in range(4))
    mean = torch.zeros(hidden.shape, dtype=top.dtype, device=hidden.device) if wants_mean else None
    exact = mean is not None and weight.dtype == wide
    start = 0
    for logits in _logits(hidden, weight, half):
        part = weight[start : start + logits.shape[1]]
        if temperature != 1.0:
            logits /= temperature
        higher = torch.maximum(top, logits.amax(1))
        shrink = torch.exp(top - higher)
        here = targets - start
        inside = (here >= 0) & (here < len(part))
        column = here.clamp(0, len(part) - 1)[:, None]
        picked = logits.gather(1, column)[:, 0]
        chosen = torch.where(inside, picked, chosen)
        own = torch.where(inside, torch.exp(picked - higher), 0)
        logits -= higher[:, None]
        if exact:
            powers = logits.exp_()
        else:
            powers = logits.exp()
            energy = energy * shrink + torch.einsum("nv,nv->n", powers, logits)
        powers.scatter_(1, column, torch.where(inside, 0, powers.gather(1, column)[:, 0])[:, None])
        others = powers.sum(1)
        if not exact:
            energy = energy + higher * (others + own)
        norm = norm * shrink + others + own
        rest = rest * shrink + others
        if mean is not None:
            mean = _accumulate(mean * shrink[:, None], powers, part)
        top = higher
        start += len(part)
    if mean is not None and exact:  # sum_v p_v l_v = h sum_v p_v W_v: a pass over the logits less
        energy = (mean * hidden).sum(1) / temperature + torch.exp(chosen - top) * chosen
    log_norm = top + norm.log()
    spread = None if mean is None else (rest / norm, mean / norm[:, None])
    entropy = (log_norm - energy / norm).clamp_(min=0)  # below it by rounding alone
    return chosen - log_norm, entropy, chosen >= top, spread


def _logits(hidden: Tensor, weight: Tensor, half: Half | None) -> Iterator[Tensor]:
    """Logits [N, its tokens] of one block of the vocabulary after the other."""
    if half is not None:
        for logits in half_blocks(half, hidden):
            yield logits.float()
        return
    size = len(weight) if hidden.is_cuda else VOCABULARY_BLOCK
    for part in weight.split(size):
        yield head_logits(hidden, part)


def _accumulate(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    if right.dtype == total.dtype:
        return total.addmm_(left, right)
    return total + (left.to(right.dtype) @ right)


def head_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """Logits [N, V] in fp32 (fp64 for an fp64 model); low-precision products accumulate in fp32 where they can."""
    if hidden.dtype in (torch.float32, torch.float64):
        return hidden @ weight.T
    if hidden.device.type == "cuda":
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)
    return (hidden @ weight.T).float()


def token_logps(
    hidden: Tensor, targets: Tensor, weight: Tensor, temperature: float = 1.0, chunk: int = CHUNK_ROWS
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and the entropy of the distribution it was drawn from.

    Args:
        hidden: [N, D] final hidden states at the positions that predict the targets.
        targets: [N] token ids.
        weight: [V, D] LM head, frozen.
        temperature: divides the logits; 1 in SFT and DPO, the sampling temperature in PPO.
        chunk: rows of logits held at once.

    Returns:
        (logps [N], entropy [N]), nats, fp32. Only logps carry a gradient.
    """
    logps, entropy, _ = token_stats(hidden, targets, weight, temperature, chunk)
    return logps, entropy


def token_stats(
    hidden: Tensor,
    targets: Tensor,
    weight: Tensor,
    temperature: float = 1.0,
    chunk: int = CHUNK_ROWS,
    half: Half | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`token_logps`, and whether each target is the argmax ([N] bool). ``half``: the head held so."""
    wants_grad = hidden.requires_grad and torch.is_grad_enabled()
    logps, entropy, correct = _TokenLogps.apply(hidden, targets, weight.detach(), half, temperature, chunk, wants_grad)
    return logps, entropy, correct
