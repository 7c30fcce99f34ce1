"""Which rows make which batch: bucketed by length, fixed by the seed, and resumable by position alone.

An epoch is shuffled, cut into windows of several batches, each window sorted by length and cut into batches, and the
batches shuffled again: rows of one batch are of similar length (little padding), and the order is still random.
Everything follows from ``(seed, epoch)``, so the batch of a step can be named without having run the steps before.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from engine.base_model import LoadedBase

T = TypeVar("T")
CPU_MICRO_TOKENS = 1024
WINDOW_BATCHES = 8
"""Batches that are sorted by length together."""


class Schedule:
    """Row indices of every optimiser step.

    Args:
        lengths: tokens of each row.
        batch: rows per step.
        epochs: passes over the rows; a fraction ends within an epoch.
        max_steps: end after so many steps; 0 for no limit.
        seed: fixes the order.
        units: rows that stay together (the pairs of one ranking) share a value; None: every row alone. Batches then
            have about ``batch`` rows: none cuts a unit in two.
        by_unit: ``batch`` counts units, of any number of rows each, and not rows.
        fixed: the same rows share a batch in every epoch, and only the order of the batches changes. DPO needs it:
            its reference log-probabilities are computed once, in exactly the batches of the policy.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch: int,
        epochs: float,
        max_steps: int = 0,
        seed: int = 0,
        units: Sequence[str] | None = None,
        by_unit: bool = False,
        fixed: bool = False,
    ) -> None:
        self._steps: list[list[int]] = []
        self._epoch_ends: list[float] = []
        wanted = epochs * len(lengths)  # rows
        seen = 0
        epoch = 0
        while seen < wanted - 1e-9 and lengths:
            source = random.Random(f"{seed}/{epoch}")
            batches = _batches(lengths, batch, random.Random(f"{seed}") if fixed else source, units, by_unit)
            source.shuffle(batches)
            for rows in batches:
                if seen >= wanted - 1e-9 or (max_steps and len(self._steps) == max_steps):
                    break
                self._steps.append(rows)
                seen += len(rows)
                self._epoch_ends.append(seen / len(lengths))
            epoch += 1
            if max_steps and len(self._steps) == max_steps:
                break

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return len(self._steps)

    def rows(self, step: int) -> list[int]:
        """Row indices of a step (0-based)."""
        return self._steps[step]

    def epoch(self, step: int) -> float:
        """Passes over the data when ``step`` steps are done."""
        return self._epoch_ends[step - 1] if step else 0.0


def in_passes(rows: Sequence[T], count: int, step: int, seed: str) -> list[T]:
    """Take the ``count`` rows of a step (from 1): each pass over all rows is a new shuffle, fixed by the seed."""
    taken: list[T] = []
    for place in range((step - 1) * count, step * count):
        epoch, index = divmod(place, len(rows))
        if index == 0 or not taken:
            order = random.Random(f"{seed}/{epoch}").sample(range(len(rows)), len(rows))
        taken.append(rows[order[index]])
    return taken


def by_length(lengths: Sequence[int], batch: int) -> list[list[int]]:
    """Every row once, longest first, in batches: for evaluation and for the reference pass."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + batch] for start in range(0, len(order), batch)]


def in_batches(rows: Sequence[T], length: Callable[[T], int], batch: int) -> list[list[T]]:
    """The rows themselves, as :func:`by_length` has them."""
    return [[rows[index] for index in part] for part in by_length([length(row) for row in rows], batch)]


def cut_within(
    rows: Sequence[T], length: Callable[[T], int], most_rows: int, most_tokens: int | None, *, packed: bool = False
) -> list[Sequence[T]]:
    """Cut neighbours into micro-batches of at most ``most_rows`` rows and ``most_tokens`` tokens, padding included.

    ``packed`` rows have no padding. A row that is longer than that stands alone.
    """
    parts: list[Sequence[T]] = []
    begin = longest = every = 0
    for index, row in enumerate(rows):
        longest, every = max(longest, length(row)), every + length(row)
        count = index - begin + 1
        tokens = every if packed else count * longest
        if count > 1 and (count > most_rows or (most_tokens is not None and tokens > most_tokens)):
            parts.append(rows[begin:index])
            begin, longest, every = index, length(row), length(row)
    return [*parts, rows[begin:]] if len(rows) else parts


def most_tokens(device: torch.device) -> int | None:
    """Tokens that a micro-batch should have at most; None for no limit.

    On a CPU some hundred tokens keep every core busy, and more at once cost memory and save little: 1024 instead of
    512 save a tenth of the time, since more sequences part better into two frames (:mod:`engine.frames`); twice as
    many again save nothing. A GPU wants them all.
    """
    return CPU_MICRO_TOKENS if device.type == "cpu" else None


def cutter(length: Callable[[T], int], base: LoadedBase) -> Callable[[Sequence[T], int], list[Sequence[T]]]:
    """How rows are cut for a base, given how many a micro-batch may hold: see :func:`cut_within`."""
    tokens = most_tokens(base.device)
    return lambda rows, most_rows: cut_within(rows, length, most_rows, tokens, packed=base.packs)


def _batches(
    lengths: Sequence[int], batch: int, source: random.Random, units: Sequence[str] | None, by_unit: bool
) -> list[list[int]]:
    together: dict[object, list[int]] = {}
    for index in range(len(lengths)):
        together.setdefault(units[index] if units else index, []).append(index)
    groups = list(together.values())
    source.shuffle(groups)
    ordered: list[list[int]] = []
    window: list[list[int]] = []
    in_window = 0
    for place, group in enumerate(groups, 1):
        window.append(group)
        in_window += 1 if by_unit else len(group)
        if in_window >= WINDOW_BATCHES * batch or place == len(groups):
            window.sort(key=lambda rows: -max(lengths[index] for index in rows))
            ordered.extend(window)
            window, in_window = [], 0
    batches: list[list[int]] = []
    held = 0
    for group in ordered:
        size = 1 if by_unit else len(group)
        # A unit joins the batch if that brings the batch nearer to its size than leaving it out.
        if batches and held + size / 2 <= batch:
            batches[-1].extend(group)
            held += size
        else:
            batches.append(list(group))
            held = size
    return batches
