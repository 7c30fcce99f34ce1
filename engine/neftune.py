"""NEFTune: noise on the embeddings while a model is fine-tuned, so that it learns less of the demonstrations by heart.

Source: Jain et al. 2023, "NEFTune: Noisy Embeddings Improve Instruction Finetuning", algorithm 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from engine.packing import Layout


def noise_like(embeddings: Tensor, lengths: Tensor, alpha: float) -> Tensor:
    """Draw uniform noise in ``+- alpha / sqrt(L D)``: a sequence of L tokens has noise of length ``alpha / sqrt(3)``.

    embeddings [B, T, D], lengths [B, T] of each position's sequence. Returns [B, T, D]. Drawn from the generator that
    checkpoints keep, so that a resumed run is the uninterrupted one.
    """
    size = alpha / torch.sqrt(lengths * embeddings.shape[-1])
    return torch.empty_like(embeddings).uniform_(-1, 1) * size[..., None].to(embeddings.dtype)


@contextlib.contextmanager
def noisy_embeddings(decoder: Any, layout: Layout, alpha: float) -> Iterator[None]:
    """Add noise to what the decoder's embedding gives for a layout, while this is open; with 0 nothing is drawn."""
    if not alpha:
        yield
        return

    def add(_module: Any, _given: Any, embeddings: Tensor) -> Tensor:
        return embeddings + noise_like(embeddings.detach(), layout.sequence_lengths(), alpha)

    handle = decoder.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
