"""Scoring with a reward model: one scalar at the last real token of prompt and response.

A completion ends at EOS in training, in calibration, in PPO and here (see :mod:`engine.templates`); so the score is
always read at EOS, or at the last token of a response whose sampling was cut off. One that does not fit into the window
is scored nowhere: what is read in its middle says nothing of it. An ensemble's score is the mean of its heads'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from engine.adapters import Adapters
from engine.batching import cutter
from engine.heads import ScalarHead, load_head
from engine.masking import Example, fit
from engine.packing import Layout
from engine.templates import encode_pair, end_of_turn
from workbench.errors import UserError
from workbench.jsonl import encode, write_atomic
from workbench.records import Message

STATS_FILE = "reward_stats.json"
_ENOUGH_FOR_A_SPREAD = 8


@dataclass(frozen=True, slots=True)
class RewardStats:
    """Where raw scores lie: subtracting ``mean`` makes the reference set score 0 on average (InstructGPT's bias).

    ``std`` is the spread of ranked responses, the unit in which PPO is paid unless its recipe says otherwise.
    """

    mean: float = 0.0
    std: float = 1.0
    count: int = 0
    reference: str = ""  # "demonstrations" or "ranked responses"; "" when never calibrated
    head_means: tuple[float, ...] = ()  # of each head of an ensemble, over the same set

    def standardise(self, score: float) -> float:
        """A raw score in standard deviations above the calibration set's mean."""
        return (score - self.mean) / self.std

    def paid_in(self, score_norm: str) -> RewardStats:
        """What PPO takes as zero and unit by its recipe: "calibrated" both, "centred" the zero alone, "raw" neither."""
        return replace(
            self, mean=0.0 if score_norm == "raw" else self.mean, std=self.std if score_norm == "calibrated" else 1.0
        )

    def write(self, folder: Path) -> None:
        """Write ``reward_stats.json`` into a model's folder."""
        write_atomic(folder / STATS_FILE, encode(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> RewardStats:
        """Read a model's statistics; neutral ones where it has none. Raises UserError when damaged."""
        try:
            raw = (folder / STATS_FILE).read_bytes()
        except FileNotFoundError:
            return cls()
        try:
            return msgspec.json.decode(raw, type=cls)
        except msgspec.DecodeError as error:
            raise UserError(
                f"{folder.name}/{STATS_FILE} is damaged", str(error), "train the reward model again"
            ) from error

    @classmethod
    def of(cls, by_head: Tensor, reference: str) -> RewardStats:
        """Measure a calibration set's scores [N, K]; population mean and spread (1 when too few scores tell it)."""
        by_head = by_head.double()
        values = by_head.mean(-1)
        std = float(values.std(correction=0))
        known = len(values) >= _ENOUGH_FOR_A_SPREAD and std > 1e-6
        means = tuple(by_head.mean(0).tolist()) if by_head.shape[1] > 1 else ()
        return cls(float(values.mean()), std if known else 1.0, len(values), reference, means)


class TooLong(UserError):
    """A response does not fit into the window with its ending, where the score is read."""


class Scored(NamedTuple):
    """Raw scores [N], and how far the heads of an ensemble are apart on each, [N] (0 for a single head)."""

    scores: Tensor
    stds: Tensor


def scores_by_head(adapters: Adapters, name: str, head: ScalarHead, layout: Layout) -> Tensor:
    """Raw scores [U, K] in fp32, each read at its sequence's last token. Carries gradients if enabled."""
    with adapters.use(name):
        return head.each(adapters.flat(layout, layout.last))


def score(adapters: Adapters, name: str, head: ScalarHead, layout: Layout) -> Tensor:
    """Raw scores [U], the mean over the heads of :func:`scores_by_head`."""
    return scores_by_head(adapters, name, head, layout).mean(-1)


def spread(by_head: Tensor, head_means: Sequence[float] = ()) -> Tensor:
    """Standard deviation [...] over the heads of scores [..., K]: ``sqrt(mean_k (d_k - mean d)^2)``.

    ``d_k`` is a head's score less its mean over the calibration set, where that is known: Bradley-Terry leaves each
    head a level of its own, on which heads may differ without disagreeing about any two responses. In differences of
    two scores the level falls out. Source: Coste et al. 2024, section 3 (there the variance).
    """
    if len(head_means) == by_head.shape[-1]:
        by_head = by_head - torch.tensor(head_means, dtype=by_head.dtype, device=by_head.device)
    return by_head.std(-1, correction=0)


class RewardModel:
    """A trained reward model under a name on a shared base."""

    def __init__(
        self, adapters: Adapters, name: str, head: ScalarHead, stats: RewardStats, max_length: int = 0
    ) -> None:
        self.adapters = adapters
        self.name = name
        self.head = head
        self.stats = stats
        self.max_length = min(max_length or adapters.base.context, adapters.base.context)

    def score_ids(self, rows: Sequence[Sequence[int]], micro_batch: int = 8) -> Tensor:
        """Raw scores [N] (fp32, on the CPU) of whole sequences of ids, each read at its last id."""
        return self.ids_by_head(rows, micro_batch).mean(-1)

    def measure_ids(self, rows: Sequence[Sequence[int]], micro_batch: int = 8) -> Scored:
        """The same, with the standard deviation over the heads."""
        by_head = self.ids_by_head(rows, micro_batch)
        return Scored(by_head.mean(-1), spread(by_head, self.stats.head_means))

    @torch.no_grad()
    def ids_by_head(self, rows: Sequence[Sequence[int]], micro_batch: int = 8) -> Tensor:
        """Raw scores [N, K] by head, as in :meth:`score_ids`."""
        scores = torch.empty(len(rows), self.head.count, dtype=torch.float32)
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        cut: Callable[[Sequence[int], int], list[Sequence[int]]] = cutter(
            lambda index: len(rows[index]), self.adapters.base
        )
        for part in cut(order, micro_batch):
            layout = self.adapters.lay_out([Example.plain(rows[index]) for index in part])
            scores[list(part)] = scores_by_head(self.adapters, self.name, self.head, layout).float().cpu()
        return scores

    def encode(self, messages: Sequence[Message], text: str, *, ended: bool = True) -> list[int]:
        """Ids of a prompt and response as the reward model was trained on them; EOS is last where it ``ended``.

        Raises TooLong where the response would lose its ending within the window.
        """
        tokenizer = self.adapters.base.tokenizer
        prompt, answer = encode_pair(tokenizer, messages, text, ended=ended)
        kept, [side], _, [lost] = fit(prompt, [answer], self.max_length, bos=end_of_turn(tokenizer).bos)
        if lost:
            raise TooLong(
                "A response cannot be scored",
                f"it has {len(answer):,} tokens, and its last {lost:,}, where the score is read, do not fit beside its "
                f"prompt into {self.max_length:,} tokens",
                "shorten it",
            )
        return kept + side


def load_reward(
    adapters: Adapters, folder: str | Path, name: str = "reward", *, trainable: bool = False
) -> RewardModel:
    """Load a reward model's adapter, head and statistics from its folder, under a name on this base."""
    folder = Path(folder)
    head = load_head(folder, adapters.base.device)
    if head.weight.shape[1] != adapters.base.hidden_size:
        raise UserError(
            f"The reward model in {folder.name} does not fit this base model",
            f"its head reads {head.weight.shape[1]} numbers and the base gives {adapters.base.hidden_size}",
            "choose a reward model that was trained on the same base",
        )
    head.requires_grad_(trainable)
    adapters.load(name, folder, trainable=trainable)
    return RewardModel(adapters, name, head, RewardStats.read(folder))
