"""How sequences lie in one forward pass, and where in its output everything is found.

On a CPU sequences are **packed**: laid end to end in one row without padding, with attention done block by block
(:mod:`engine.attention`). Sequences that begin with the same prompt (the responses of a ranking) share it: the prompt
passes once, and each response attends to it and to itself ("prefix sharing", arXiv 2410.20305). On a GPU one call over
padded rows is worth more than no padding, and rows are **padded** on the right.

All indices are made from lengths on the CPU, so that no mask is read back from the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from engine.masking import Example
from workbench.model_shape import has_plain_layers

_PAD = 0  # any id would do: nothing is ever read from padding, and no mask from ids (pad may equal EOS)


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring tokens that attend to one another causally, and to all of a root before them."""

    length: int
    root: int = -1  # the number of the block that is attended to as well


@dataclass(slots=True)
class Layout:
    """U sequences of a forward pass whose output is taken as flat [positions, D]. N tokens have a loss."""

    input_ids: Tensor  # [B, T]; packed: [1, T]
    position_ids: Tensor  # [B, T]
    blocks: tuple[Block, ...]  # packed; () where rows are padded
    states: Tensor  # [N] the position whose state predicts the token, sequence by sequence
    targets: Tensor  # [N] the token
    rows: Tensor  # [N] its sequence
    last: Tensor  # [U] the position of each sequence's last token
    through: Tensor  # [N + U] each sequence's ``states`` and then its ``last``
    lengths: Tensor  # [U] the tokens of each sequence that have a loss
    tokens: int  # that pass through the model, padding left out

    def sequence_lengths(self) -> Tensor:
        """How long the sequence of each position is, [B, T]; a prompt that several share is as long as itself."""
        if not self.blocks:  # padded: row r ends at position r * T + length - 1
            last = self.last % self.input_ids.shape[1] + 1
            return last[:, None].expand(self.input_ids.shape)
        whole = [one.length + (self.blocks[one.root].length if one.root >= 0 else 0) for one in self.blocks]
        parts = torch.tensor([one.length for one in self.blocks], device=self.input_ids.device)
        return torch.tensor(whole, device=self.input_ids.device).repeat_interleave(parts)[None]

    def sums(self, values: Tensor) -> Tensor:
        """Sum values [N] by sequence. Returns [U]."""
        return torch.zeros(len(self.last), dtype=values.dtype, device=values.device).index_add(0, self.rows, values)


@dataclass(slots=True)
class _Places:
    """Collects the indices of a layout."""

    states: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    through: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def add(self, one: Example, positions: Sequence[int]) -> None:
        """Take the next sequence; ``positions`` says where each of its tokens lies."""
        row = len(self.last)
        for place in range(1, len(one.input_ids)):
            if one.mask[place]:
                self.states.append(positions[place - 1])
                self.targets.append(one.input_ids[place])
                self.rows.append(row)
                self.through.append(positions[place - 1])
        self.lengths.append(one.trained_tokens)
        self.last.append(positions[len(one.input_ids) - 1])
        self.through.append(self.last[-1])

    def layout(self, ids: Tensor, positions: Tensor, blocks: Sequence[Block], tokens: int, to: torch.device) -> Layout:
        """Put everything on a device."""
        lists = (self.states, self.targets, self.rows, self.last, self.through, self.lengths)
        states, targets, rows, last, through, lengths = (torch.tensor(one, dtype=torch.long).to(to) for one in lists)
        ids, positions = ids.to(to), positions.to(to)
        return Layout(ids, positions, tuple(blocks), states, targets, rows, last, through, lengths, tokens)


def lay_out(examples: Sequence[Example], device: torch.device, *, packed: bool) -> Layout:
    """Lay sequences out for one forward pass: packed with shared prompts, or padded on the right."""
    return _packed(examples, device) if packed else _padded(examples, device)


def tokens_passed(examples: Sequence[Example], *, packed: bool) -> int:
    """How many tokens pass through the model when these are laid out, padding included."""
    if not packed:
        return len(examples) * max((len(one.input_ids) for one in examples), default=0)
    parts = _parted(examples)
    return sum(len(own) for _, own in parts) + sum(map(len, {root for root, _ in parts}))


def _padded(examples: Sequence[Example], device: torch.device) -> Layout:
    longest = max(len(one.input_ids) for one in examples)
    ids = torch.full((len(examples), longest), _PAD, dtype=torch.long)
    places = _Places()
    for row, one in enumerate(examples):
        length = len(one.input_ids)
        ids[row, :length] = torch.tensor(one.input_ids, dtype=torch.long)
        places.add(one, range(row * longest, row * longest + length))
    positions = torch.arange(longest).expand(len(examples), longest)
    return places.layout(ids, positions, (), sum(len(one.input_ids) for one in examples), device)


def _packed(examples: Sequence[Example], device: torch.device) -> Layout:
    ids: list[int] = []
    positions: list[int] = []
    blocks: list[Block] = []
    roots: dict[tuple[int, ...], tuple[int, int]] = {}  # prompt: (number of its block, where it begins)
    places = _Places()

    def lay(tokens: Sequence[int], first: int, block: Block) -> int:
        begin = len(ids)
        ids.extend(tokens)
        positions.extend(range(first, first + len(tokens)))
        blocks.append(block)
        return begin

    for one, (prompt, own) in zip(examples, _parted(examples), strict=True):
        if not prompt:
            begin = lay(own, 0, Block(len(own)))
            places.add(one, range(begin, begin + len(own)))
            continue
        if prompt not in roots:
            roots[prompt] = (len(blocks), lay(prompt, 0, Block(len(prompt))))
        number, root = roots[prompt]
        begin = lay(own, len(prompt), Block(len(own), number))
        places.add(one, [*range(root, root + len(prompt)), *range(begin, begin + len(own))])
    return places.layout(torch.tensor([ids]), torch.tensor([positions]), blocks, len(ids), device)


def _parted(examples: Sequence[Example]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Of each sequence the prompt that it shares with others, () where it shares none, and the tokens of its own."""
    shared = _shared_prompts(examples)
    parts = []
    for one in examples:
        prompt, answer = one.input_ids[: one.prompt_length], one.input_ids[one.prompt_length :]
        parts.append((prompt, answer) if prompt in shared and answer else ((), one.input_ids))
    return parts


def _shared_prompts(examples: Sequence[Example]) -> set[tuple[int, ...]]:
    """The prompts of several sequences. A prompt that is trained itself is not shared: its loss would count once."""
    counts: dict[tuple[int, ...], int] = {}
    for one in examples:
        if one.prompt_length and not any(one.mask[: one.prompt_length]):
            prompt = one.input_ids[: one.prompt_length]
            counts[prompt] = counts.get(prompt, 0) + 1
    return {prompt for prompt, count in counts.items() if count > 1}


def can_pack(config: Any, device: torch.device) -> bool:
    """Whether a model's attention can be done block by block, and whether that pays on this device."""
    return device.type == "cpu" and has_plain_layers(config.to_dict())
