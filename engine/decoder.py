"""Decoding without transformers' modules: the prompts of a batch at once, then a new token for every row.

The arithmetic is that of :mod:`engine.decoder_layer`. Prompts pass end to end without padding. A step with a few rows
is bound by reading the weights and the cache: grouped query heads read their keys once, all heads of a group together.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.adapters import active_layers
from engine.attention import additive
from engine.base_model import LoadedBase
from engine.decoder_layer import layer_forward, pass_layers
from engine.frames import Frame, frames_of, joined
from engine.half_weights import half_for, half_linear
from engine.kv_cache import RowsCache
from engine.lora_linear import Lora, linears, project
from engine.packing import Block


class Decoder:
    """The model under the adapter that was active when this was made."""

    def __init__(self, base: LoadedBase) -> None:
        self._base = base
        self._layers = list(active_layers(base))
        self._loras: dict[nn.Module, tuple[Tensor, Tensor] | None] = {}  # by the first layer of their group

    def prefill(self, prompts: Sequence[Sequence[int]], cache: RowsCache) -> Tensor:
        """Fill an empty cache with prompts, a row each. Returns the logits behind each, [rows, V]."""
        lengths = [len(one) for one in prompts]
        longest = max(lengths)
        pads = [longest - length for length in lengths]
        cache.open(pads, longest, self._base.device)
        ids = torch.tensor([[token for one in prompts for token in one]])
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        embedded, cosine, sine = self._embedded(ids, positions)
        last = torch.tensor(lengths).cumsum(0) - 1
        blocks = [Block(length) for length in lengths]
        frames = frames_of(blocks, cosine, sine, shared=self._layers[0].shared, read=last)
        fill = _Filling(cache, frames, lengths)
        return self._logits(pass_layers(embedded, self._layers, frames, self._project, fill))

    def step(self, ids: Tensor, cache: RowsCache) -> Tensor:
        """Append a token a row, [rows, 1], to the cache. Returns the logits behind it, [rows, V]."""
        inputs = cache.inputs(ids, None)
        seen = inputs["attention_mask"]  # [rows, 1, 1, columns], or None
        mask = None if seen is None else additive(seen, self._base.dtype)
        hidden, cosine, sine = self._embedded(ids.T, inputs["position_ids"].T)
        for parts, layer in zip(self._layers, cache.cache.layers, strict=True):
            attention = partial(attend_to_cache, layer=layer, mask=mask, scaling=parts.scaling)
            hidden = layer_forward(hidden, parts, cosine, sine, attention, self._project)[0]
        return self._logits(hidden)

    def _embedded(self, ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of tokens [1, T] what the first layer takes [T, D], and the cosine and sine of their places [T, 1, W]."""
        decoder: Any = self._base.decoder
        embedded = decoder.get_input_embeddings()(ids)
        cosine, sine = (one[0][:, None] for one in decoder.rotary_emb(embedded, positions))
        return embedded[0], cosine, sine

    def _logits(self, hidden: Tensor) -> Tensor:
        """The logits of what the last layer gives [rows, D], [rows, V]."""
        decoder: Any = self._base.decoder
        [logits] = linears([self._base.model.get_output_embeddings()], decoder.norm(hidden))
        return logits

    def _project(self, layers: Sequence[Lora], rows: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """As :func:`engine.lora_linear.project`, with the LoRA of layers held in 16 bits in one product of its own."""
        half = half_for([layer.base for layer in layers], len(rows))
        if half is None:
            return project(layers, rows)
        out = half_linear(half, rows)
        lora = self._lora(layers, half.widths)
        if lora is not None:
            first, second = lora
            out.addmm_(rows @ first, second)
        return list(out.split(half.widths, 1)), None

    def _lora(self, layers: Sequence[Lora], widths: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """A of all layers side by side [I, R] and their scaled B on a diagonal [R, O], in the base's dtype, once."""
        key = layers[0].base
        if key not in self._loras:
            firsts = [layer.first.detach() for layer in layers if layer.first is not None]
            seconds = [
                torch.empty(width, 0) if layer.second is None else layer.second.detach() * layer.scaling
                for layer, width in zip(layers, widths, strict=True)
            ]
            self._loras[key] = None
            if firsts:
                first, second = torch.cat(firsts), torch.block_diag(*seconds)
                dtype = self._base.dtype
                self._loras[key] = first.T.contiguous().to(dtype), second.T.contiguous().to(dtype)
        return self._loras[key]


class _Filling:
    """Puts the keys and values of prompts into a cache, a layer when all frames have come to it."""

    def __init__(self, cache: RowsCache, frames: Sequence[Frame], lengths: Sequence[int]) -> None:
        self._cache, self._frames, self._lengths = cache, len(frames), lengths
        self._waiting: dict[int, list[tuple[Frame, Tensor, Tensor]]] = {}
        self._one_at_a_time = threading.Lock()

    def __call__(self, number: int, frame: Frame, key: Tensor, value: Tensor) -> None:
        """Take what a frame has."""
        with self._one_at_a_time:
            waiting = self._waiting.setdefault(number, [])
            waiting.append((frame, key, value))
            if len(waiting) < self._frames:
                return
            del self._waiting[number]
            frames, keys, values = zip(*waiting, strict=True)
            places = [one.tokens for one in frames]
            whole = (_on_the_right(joined(one, places), self._lengths) for one in (keys, values))
            self._cache.cache.layers[number].update(*whole)


def attend_to_cache(
    query: Tensor, key: Tensor, value: Tensor, layer: Any, mask: Tensor | None, scaling: float
) -> tuple[Tensor, None]:
    """Append a key and a value a row to a layer's cache, and attend to all of it.

    query [rows, H, W], key and value [rows, G, W], mask [rows, 1, 1, columns] to add. Returns ([rows, H, W], None).
    """
    keys, values = layer.update(key[:, :, None], value[:, :, None])
    grouped = query.unflatten(1, (key.shape[1], -1))  # [rows, G, H/G, W]
    scores = (grouped * scaling) @ keys.transpose(2, 3)
    if mask is not None:
        scores += mask
    attended = torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(values.dtype)
    return (attended @ values).flatten(1, 2), None


def _on_the_right(states: Tensor, lengths: Sequence[int]) -> Tensor:
    """Sequences end to end [T, G, W] as rows of the cache, [rows, G, longest, W], zeros on their left."""
    longest = max(lengths)
    rows = states.new_zeros(len(lengths), states.shape[1], longest, states.shape[2])
    for row, part in zip(rows, states.split(list(lengths)), strict=True):
        row[:, longest - len(part) :] = part.transpose(0, 1)
    return rows
