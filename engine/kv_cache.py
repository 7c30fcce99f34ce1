"""A key-value cache whose rows can leave, join and repeat: what transformers' cache needs for a changing batch.

Rows are padded on the left to one length, so that the newest token of every row is in the last column. Keys and
values lie in buffers with room to spare and new columns are written in place, where transformers' own layers copy
the whole cache at every token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

_GROWTH_COLUMNS = 64
_TRIM_COLUMNS = 32


class _BufferedLayer(DynamicLayer):
    """One layer's keys and values, ``[rows, heads, columns, width]``, in buffers longer than what is in use."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        self._key_buffer: Tensor | None = None
        self._value_buffer: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append columns in place; return all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        self._key_buffer = self._with_room(self._key_buffer, key_states, end)
        self._value_buffer = self._with_room(self._value_buffer, value_states, end)
        self._key_buffer[:, :, self.length : end] = key_states
        self._value_buffer[:, :, self.length : end] = value_states
        self.length = end
        self._show()
        return self.keys, self.values

    def select(self, index: Tensor) -> None:
        """Keep (or repeat) the rows of ``index``."""
        self._replace(self.keys[index], self.values[index])

    def merge(self, other: _BufferedLayer) -> None:
        """Append another layer's rows; the shorter of the two is padded on the left."""
        self._replace(_stack_rows(self.keys, other.keys), _stack_rows(self.values, other.values))

    def trim_left(self, columns: int) -> None:
        """Drop the first columns."""
        self._replace(self.keys[:, :, columns:].contiguous(), self.values[:, :, columns:].contiguous())

    def _with_room(self, buffer: Tensor | None, states: Tensor, end: int) -> Tensor:
        if buffer is not None and end <= buffer.shape[2]:
            return buffer
        rows, heads, _, width = states.shape
        larger = states.new_empty(rows, heads, end + max(_GROWTH_COLUMNS, end // 4), width)
        if buffer is not None:
            larger[:, :, : self.length] = buffer[:, :, : self.length]
        return larger

    def _replace(self, keys: Tensor, values: Tensor) -> None:
        self._key_buffer, self._value_buffer, self.length = keys, values, keys.shape[2]
        self._show()

    def _show(self) -> None:
        assert self._key_buffer is not None
        assert self._value_buffer is not None
        self.keys = self._key_buffer[:, :, : self.length]
        self.values = self._value_buffer[:, :, : self.length]


class RowsCache:
    """The cache of a batch, with each row's padding.

    Models whose layers remember otherwise (sliding windows, linear attention) keep transformers' own layers; their
    rows can be selected but no rows join later (``can_merge`` is False).
    """

    def __init__(self, cache: Any, *, can_merge: bool, plain_attention: bool) -> None:
        self.cache = cache
        self.can_merge = can_merge
        self._direct_mask = can_merge and plain_attention
        self._pads: list[int] = []
        self._pad_tensor: Tensor | None = None  # [rows], None while no row is padded
        self._columns = 0

    def inputs(self, ids: Tensor, pads: list[int] | None) -> dict[str, Any]:
        """Return attention mask and positions for new columns ``ids`` [rows, n]; ``pads`` opens a new batch."""
        rows, new = ids.shape
        first = self._columns
        if pads is not None:
            self.open(pads, new, ids.device)
        elif not self._pads:
            raise ValueError("a batch begins with its pads")
        else:
            self._columns += new
        columns = torch.arange(first, self._columns, device=ids.device)[None, :]
        if self._pad_tensor is None:
            return {"attention_mask": None, "position_ids": columns.expand(rows, new)}
        positions = (columns - self._pad_tensor[:, None]).clamp(min=0)
        keep = torch.arange(self._columns, device=ids.device)[None, :] >= self._pad_tensor[:, None]
        # One query sees every column that is no padding: handing over that mask ready made saves building it anew.
        mask = keep[:, None, None, :] if new == 1 and self._direct_mask else keep.long()
        return {"attention_mask": mask, "position_ids": positions}

    def open(self, pads: list[int], columns: int, device: torch.device) -> None:
        """Begin a batch: how many of the first ``columns`` are padding in each row."""
        self._columns = columns
        self._set_pads(pads, device)

    def select(self, index: Tensor) -> None:
        """Keep (or repeat) rows; columns that are padding in every row left are dropped."""
        for layer in self.cache.layers:
            if isinstance(layer, _BufferedLayer):
                layer.select(index)
            else:
                layer.batch_select_indices(index)
        self._set_pads([self._pads[one] for one in index.tolist()], index.device)
        common = min(self._pads)
        if self.can_merge and common >= _TRIM_COLUMNS:
            for layer in self.cache.layers:
                layer.trim_left(common)
            self._columns -= common
            self._set_pads([pad - common for pad in self._pads], index.device)

    def merge(self, other: RowsCache) -> None:
        """Let another cache's rows join."""
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.merge(theirs)
        columns = max(self._columns, other._columns)
        pads = [pad + columns - self._columns for pad in self._pads]
        pads += [pad + columns - other._columns for pad in other._pads]
        self._columns = columns
        self._set_pads(pads, self.cache.layers[0].keys.device)

    def _set_pads(self, pads: list[int], device: torch.device) -> None:
        self._pads = pads
        self._pad_tensor = torch.tensor(pads, device=device) if any(pads) else None


def new_cache(model: Any) -> RowsCache:
    """Make an empty cache for a transformers model."""
    plain = DynamicCache(config=model.config)
    if not all(type(layer) is DynamicLayer for layer in plain.layers):
        return RowsCache(plain, can_merge=False, plain_attention=False)
    layers = [_BufferedLayer() for _ in plain.layers]
    plain_attention = model.config._attn_implementation == "sdpa"
    return RowsCache(Cache(layers=layers), can_merge=True, plain_attention=plain_attention)


def _stack_rows(first: Tensor, second: Tensor) -> Tensor:
    columns = max(first.shape[2], second.shape[2])
    rows, heads, _, width = first.shape
    # Padding must be numbers: a masked weight of 0 times an uninitialised NaN would be NaN.
    out = first.new_zeros(rows + second.shape[0], heads, columns, width)
    out[:rows, :, columns - first.shape[2] :] = first
    out[rows:, :, columns - second.shape[2] :] = second
    return out
