"""Sampling: one batched decode loop for rollouts and for the window, with a key-value cache that follows its rows.

- Prompts are padded on the left and prefilled in groups of like length; the responses to one prompt share its prefill.
- Rows that end leave the batch: the cache is compacted, and waiting prompts take their place.
- Every row draws from its own seed, one uniform number per token and the inverse of the distribution function, so a
  response does not depend on what else is in the batch (up to the arithmetic of another batch shape).
- Nothing of the model folder's GenerationConfig but its end-of-text ids has a say.

The active adapter is whatever the caller chose with ``Adapters.use``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from engine.adapters import masters_cast_once, unpacked_for_sampling
from engine.base_model import LoadedBase
from engine.decoder import Decoder
from engine.kv_cache import RowsCache, new_cache
from engine.logps import head_logits
from engine.memory import free_bytes, free_memory, is_out_of_memory
from engine.templates import stop_ids
from workbench.errors import UserError
from workbench.records import Sampling

SEED_LIMIT = 2**31
_PREFILL_TOKENS = 4096
_STRETCH = 256  # tokens of the vocabulary
OnToken = Callable[[int, int, int], None]
"""(prompt index, response index, token id): called for every token as it is drawn, its EOS included."""
OnDone = Callable[[int, int, "Completion"], None]
"""(prompt index, response index, the response): called when it has ended."""


class Cancelled(Exception):
    """The caller asked for an end in the middle of sampling."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One response: its token ids, EOS included when it ended by itself."""

    ids: tuple[int, ...]
    ended: bool
    seed: int


@dataclass(slots=True)
class _Row:
    """A response being drawn."""

    prompt: int
    response: int
    seed: int
    limit: int  # most new tokens
    uniforms: list[float]
    ids: list[int] = field(default_factory=list)
    ended: bool = False

    @property
    def done(self) -> bool:
        return self.ended or len(self.ids) >= self.limit

    @property
    def completion(self) -> Completion:
        return Completion(tuple(self.ids), self.ended, self.seed)


@dataclass(slots=True)
class _Waiting:
    """Rows that share what is to be prefilled."""

    ids: Sequence[int]
    rows: list[_Row]


def row_seeds(seed: int, rows: int) -> list[int]:
    """Seeds of consecutive rows: the first is ``seed``, so any response can be drawn again alone."""
    return [(seed + index) % SEED_LIMIT for index in range(rows)]


def end_ids(base: LoadedBase) -> tuple[int, ...]:
    """Every id that ends a response: the template's end of turn, the tokenizer's EOS, and the model folder's."""
    found = dict.fromkeys(stop_ids(base.tokenizer))
    for config in (getattr(base.model, "generation_config", None), base.model.config):
        given = getattr(config, "eos_token_id", None)
        for one in given if isinstance(given, (list, tuple)) else [given]:
            if one is not None:
                found[int(one)] = None
    return tuple(found)


@torch.inference_mode()
def generate(
    base: LoadedBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    count: int = 1,
    seeds: Sequence[int] | None = None,
    ends: Sequence[int] | None = None,
    on_token: OnToken | None = None,
    on_done: OnDone | None = None,
    cancelled: Callable[[], bool] | None = None,
    max_rows: int = 0,
    on_less_room: Callable[[int, int], None] | None = None,
) -> list[list[Completion]]:
    """Draw ``count`` responses to each prompt under the active adapter.

    Args:
        base: the model; its gradient checkpointing is off while this runs.
        prompts: token ids, each with room for at least one more token in the context.
        sampling: temperature 0 takes the likeliest token; top_k 0 and top_p 1 leave the distribution whole.
        count: responses per prompt.
        seeds: one per row, prompt by prompt; by default from ``sampling.seed`` on.
        ends: ids that end a response; by default :func:`end_ids`.
        on_token: told every token.
        on_done: told every response as it ends.
        cancelled: asked at each step.
        max_rows: rows decoded at once; 0 for what memory holds.
        on_less_room: told, when memory ran out, how many rows were decoded at once and how many will be.

    Returns:
        Per prompt its responses, in order.

    Raises:
        Cancelled: the caller asked for it.
        UserError: an empty or over-long prompt, or logits that are not numbers.
    """
    rows = _rows_of(base, prompts, sampling, count, seeds)
    batch = _Batch(base, sampling, frozenset(ends if ends is not None else end_ids(base)), on_token, on_done)
    waiting = [_Waiting(ids, rows[index * count : (index + 1) * count]) for index, ids in enumerate(prompts) if count]
    waiting.sort(key=lambda one: len(one.ids))  # popped from the end: the longest first
    longest = max((len(one.ids) for one in waiting), default=0)
    with _eval_mode(base.model), masters_cast_once(base), unpacked_for_sampling(base):
        room = max_rows or rows_that_fit(base, longest + sampling.max_new_tokens)
        while waiting or batch.rows:
            if cancelled is not None and cancelled():
                raise Cancelled
            tried = 0
            try:
                batch.admit(waiting, room)
                batch.step()
            except (RuntimeError, MemoryError) as error:
                tried = len(batch.rows) + batch.prefilling
                if not is_out_of_memory(error) or tried <= 1:
                    raise
            if tried:  # outside the except block: its traceback holds the tensors
                room = tried // 2
                if on_less_room is not None:
                    on_less_room(tried, room)
                waiting += batch.give_up(prompts)
    return [[row.completion for row in rows[index * count : (index + 1) * count]] for index in range(len(prompts))]


def rows_that_fit(base: LoadedBase, tokens: int) -> int:
    """How many rows of ``tokens`` each may be decoded at once, from the memory that is free."""
    config = base.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * heads * width * base.head_weight.element_size()
    # Compacting holds the cache twice for a moment; the logits are held in fp32, as probabilities and summed in fp64.
    per_row = 2 * tokens * per_token + 24 * base.head_weight.shape[0]
    free = free_bytes(base.device)
    budget, most = (free // 2, 256) if base.device.type == "cuda" else (min(3 * 2**30, free // 4), 64)
    return int(max(1, min(most, budget // per_row)))


def _rows_of(
    base: LoadedBase, prompts: Sequence[Sequence[int]], sampling: Sampling, count: int, seeds: Sequence[int] | None
) -> list[_Row]:
    seeds = row_seeds(sampling.seed, len(prompts) * count) if seeds is None else seeds
    if len(seeds) != len(prompts) * count:
        raise ValueError(f"{len(seeds)} seeds for {len(prompts) * count} rows")
    rows = []
    for index, ids in enumerate(prompts):
        limit = min(sampling.max_new_tokens, base.context - len(ids))
        if not ids or limit < 1:
            raise UserError(
                f"Prompt {index + 1} leaves no room for a response" if ids else f"Prompt {index + 1} is empty",
                f"it has {len(ids)} tokens and the model's context holds {base.context}",
                "shorten it" if ids else "write something",
            )
        for response in range(count):
            seed = int(seeds[index * count + response])
            source = torch.Generator().manual_seed(seed)
            uniforms = torch.rand(limit, dtype=torch.float64, generator=source).tolist()
            rows.append(_Row(index, response, seed, limit, uniforms))
    return rows


class _Batch:
    """The batch that is being decoded: its rows, their cache and the logits of their next tokens."""

    def __init__(
        self,
        base: LoadedBase,
        sampling: Sampling,
        ends: frozenset[int],
        on_token: OnToken | None,
        on_done: OnDone | None,
    ) -> None:
        self.base = base
        self.sampling = sampling
        self.ends = ends
        self.on_token = on_token
        self.on_done = on_done
        self.rows: list[_Row] = []
        self.prefilling = 0  # rows that are about to join
        self._cache: RowsCache | None = None
        self._logits: Tensor | None = None  # [rows, V]
        self._decoder = Decoder(base) if base.packs else None

    def admit(self, waiting: list[_Waiting], room: int) -> None:
        """Prefill waiting prompts while there is room for their rows; they join the batch."""
        if self._cache is not None and not self._cache.can_merge:
            return
        # Interrupting the batch for one free place would prefill prompt by prompt: wait until a quarter is free.
        if self.rows and room - len(self.rows) < max(1, room // 4):
            return
        while waiting and (not self.rows or len(self.rows) + len(waiting[-1].rows) <= room):
            group = self._next_group(waiting, room)
            self.prefilling = sum(len(one.rows) for one in group)
            try:
                cache, logits = self._prefill(group)
                if self._cache is None or self._logits is None:
                    self._cache, self._logits = cache, logits
                else:
                    self._cache.merge(cache)
                    self._logits = torch.cat([self._logits, logits])
            except (RuntimeError, MemoryError):
                waiting += reversed(group)
                raise
            self.rows += [row for one in group for row in one.rows]
            self.prefilling = 0
            if not self._cache.can_merge:
                return

    def _next_group(self, waiting: list[_Waiting], room: int) -> list[_Waiting]:
        free = room - len(self.rows)
        if len(waiting[-1].rows) > free:  # more responses to one prompt than fit at once: the rest waits
            one = waiting[-1]
            first, one.rows = one.rows[: max(1, free)], one.rows[max(1, free) :]
            return [_Waiting(one.ids, first)]
        group: list[_Waiting] = []
        taken = 0
        longest = len(waiting[-1].ids)
        mergeable = new_cache(self.base.model).can_merge
        tokens = 0
        while waiting and taken + len(waiting[-1].rows) <= free:
            one = waiting[-1]
            tokens += len(one.ids) if self._decoder is not None else longest
            if group and mergeable and (tokens > _PREFILL_TOKENS or self._would_pad(len(one.ids), longest)):
                break
            group.append(waiting.pop())
            taken += len(one.rows)
        return group

    def _would_pad(self, length: int, longest: int) -> bool:
        """Whether a prompt would cost much padding beside a longer one; :class:`Decoder` pads none."""
        return self._decoder is None and length < 0.8 * longest

    def _prefill(self, group: list[_Waiting]) -> tuple[RowsCache, Tensor]:
        cache = new_cache(self.base.model)
        if self._decoder is not None:
            logits = self._decoder.prefill([one.ids for one in group], cache)
        else:
            longest = max(len(one.ids) for one in group)
            pads = [longest - len(one.ids) for one in group]
            ids = torch.tensor([[0] * pad + list(one.ids) for pad, one in zip(pads, group, strict=True)])
            logits = self._forward(ids.to(self.base.device), cache, pads)
        repeats = [len(one.rows) for one in group]
        if any(repeat != 1 for repeat in repeats):
            index = torch.repeat_interleave(torch.tensor(repeats)).to(self.base.device)
            cache.select(index)
            logits = logits[index]
        return cache, logits

    def step(self) -> None:
        """Draw a token for every row; rows that end leave; run the model on the others."""
        if not self.rows or self._cache is None or self._logits is None:
            return
        uniforms = [row.uniforms[len(row.ids)] if not row.done else 0.0 for row in self.rows]
        ids = pick_tokens(self._logits, self.sampling, torch.tensor(uniforms, dtype=torch.float64)).tolist()
        for row, token in zip(self.rows, ids, strict=True):
            if row.done:  # a dead row that the cache still carries
                continue
            if token < 0:
                raise UserError(
                    "The model gives no probabilities",
                    "its outputs are not finite numbers",
                    "go back to an earlier checkpoint, or train with a lower learning rate",
                )
            row.ids.append(token)
            row.ended = token in self.ends
            if self.on_token is not None:
                self.on_token(row.prompt, row.response, token)
            if self.on_done is not None and (row.ended or len(row.ids) >= row.limit):
                self.on_done(row.prompt, row.response, row.completion)
        alive = [index for index, row in enumerate(self.rows) if not row.done]
        if not alive:
            self.rows, self._cache, self._logits = [], None, None
            return
        if self._worth_compacting(len(self.rows) - len(alive)):
            self._cache.select(torch.tensor(alive, device=self.base.device))
            self.rows = [self.rows[index] for index in alive]
            ids = [ids[index] for index in alive]
        column = torch.tensor(ids, device=self.base.device).clamp(min=0)[:, None]
        step = self._forward if self._decoder is None else self._decoder.step
        self._logits = step(column, self._cache)

    def give_up(self, prompts: Sequence[Sequence[int]]) -> list[_Waiting]:
        """Let go of the batch after memory ran out; each row goes on later from what it has drawn so far."""
        left = [_Waiting([*prompts[row.prompt], *row.ids], [row]) for row in self.rows if not row.done]
        self.rows, self._cache, self._logits, self.prefilling = [], None, None, 0
        free_memory()
        return sorted(left, key=lambda one: len(one.ids))

    def _worth_compacting(self, dead: int) -> bool:
        # A GPU decodes a few dead rows for nothing; copying its cache at every ending would cost more.
        return dead >= (max(1, len(self.rows) // 8) if self.base.device.type == "cuda" else 1)

    def _forward(self, ids: Tensor, cache: RowsCache, pads: list[int] | None = None) -> Tensor:
        """Run the model on new columns and return the logits behind the last one, [rows, V] in fp32."""
        inputs: dict[str, Any] = cache.inputs(ids, pads)
        output = self.base.decoder(input_ids=ids, past_key_values=cache.cache, use_cache=True, **inputs)
        # The model's own logits are rounded to bf16: between 16 and 32 their steps are 0.125, an eighth of a
        # probability. Training measures unrounded ones, and what is measured is what is to be drawn from.
        return head_logits(output.last_hidden_state[:, -1], self.base.head_weight)


def pick_tokens(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> Tensor:
    """Turn logits [B, V] and uniform numbers [B] in [0, 1) into token ids [B]; -1 where logits are not numbers.

    Temperature first, then the top_k likeliest, then the smallest set whose probability reaches top_p.
    """
    if sampling.temperature <= 0:
        best = logits.argmax(1)
        return torch.where(torch.isfinite(logits.amax(1)), best, -1)
    uniforms = uniforms.to(logits.device)
    if sampling.top_p >= 1 and not 0 < sampling.top_k < logits.shape[1]:
        return _pick_from_all(logits, sampling.temperature, uniforms)
    logits = logits.float().contiguous() / sampling.temperature
    if 0 < sampling.top_k < logits.shape[1]:
        logits, order = logits.topk(sampling.top_k, dim=1)
    else:
        logits, order = logits.sort(dim=1, descending=True)
    probabilities = torch.softmax(logits, 1)
    if sampling.top_p < 1:  # sorted by now
        before = probabilities.cumsum(1) - probabilities
        probabilities = torch.where(before < sampling.top_p, probabilities, 0)
    cumulative = probabilities.cumsum(1, dtype=torch.float64)
    total = cumulative[:, -1]
    index = _search(cumulative, uniforms * total)
    return torch.where(torch.isfinite(total), order.gather(1, index[:, None])[:, 0], -1)


def _pick_from_all(logits: Tensor, temperature: float, uniforms: Tensor) -> Tensor:
    """Draw from the whole distribution: first a stretch of the vocabulary by its sum, then a token in it.

    Summing up all of 50,000 probabilities in fp64 for every row costs a sixth of a step; the sums of stretches and one
    stretch do not. The stretches' sums are those of the very numbers that are summed up within one.
    """
    rows, size = logits.shape
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    powers = wide.sub(wide.amax(1, keepdim=True)).div_(temperature).exp_()
    stretches = torch.nn.functional.pad(powers, (0, -size % _STRETCH)).view(rows, -1, _STRETCH)
    cumulative = stretches.sum(2, dtype=torch.float64).cumsum(1)  # [rows, stretches]
    total = cumulative[:, -1]
    threshold = uniforms * total
    stretch = _search(cumulative, threshold)
    row = torch.arange(rows, device=logits.device)
    before = torch.where(stretch > 0, cumulative[row, (stretch - 1).clamp(min=0)], 0)
    within = stretches[row, stretch].cumsum(1, dtype=torch.float64)  # [rows, _STRETCH]
    index = (stretch * _STRETCH + _search(within, threshold - before)).clamp(max=size - 1)
    return torch.where(torch.isfinite(total), index, -1)


def _search(cumulative: Tensor, threshold: Tensor) -> Tensor:
    """The first place of each row whose cumulative sum exceeds the threshold; the last where none does."""
    found = torch.searchsorted(cumulative, threshold[:, None], right=True)[:, 0]
    return found.clamp(max=cumulative.shape[1] - 1)


@contextlib.contextmanager
def _eval_mode(model: Any) -> Iterator[None]:
    """Eval mode for the length of a call: in train mode with checkpointing there is no cache, and it says nothing."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
