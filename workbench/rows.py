"""Rows of a run's frozen data files (``runs/ID/data/*.jsonl``): all that the engine ever sees of a label."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from workbench.records import Message


@dataclass(frozen=True, slots=True)
class SftRow:
    """A demonstration: prompt messages and the completion that is trained."""

    id: str
    group: str
    prompt: tuple[Message, ...]
    completion: str


@dataclass(frozen=True, slots=True)
class PairRow:
    """A preference: the same prompt, a chosen and a rejected completion. ``id`` is ``RANKING:CHOSEN:REJECTED``.

    A ``tier_distance`` of 0 is a tie: neither is better, and chosen is only the first. A side that was cut off has
    not ``ended``, and passes through the model without an end (rows of older runs do not say it, and count as whole).
    """

    id: str
    group: str
    ranking_id: str
    rater_id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    tier_distance: int = 1
    chosen_ended: bool = True
    rejected_ended: bool = True


@dataclass(frozen=True, slots=True)
class ThumbRow:
    """One response judged by itself: wanted (thumbs up) or not. ``id`` is ``RANKING:RESPONSE``.

    For ``ended`` see :class:`PairRow`.
    """

    id: str
    group: str
    ranking_id: str
    rater_id: str
    prompt: tuple[Message, ...]
    completion: str
    desirable: bool
    ended: bool = True


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt to roll out or to sample from."""

    id: str
    prompt: tuple[Message, ...]


def rankings_of(rows: Iterable[object]) -> int:
    """How many rankings the pairs among some rows are of; a pair without one counts by itself."""
    return len({row.ranking_id or row.id for row in rows if isinstance(row, PairRow)})


def responses_of_rankings(rows: Iterable[object]) -> dict[str, set[tuple[str, bool]]]:
    """The different responses among the pairs of each ranking, each with whether it ended: what passes through a model.

    K responses give up to K(K-1)/2 pairs.
    """
    found: dict[str, set[tuple[str, bool]]] = {}
    for row in rows:
        if isinstance(row, PairRow):
            sides = found.setdefault(row.ranking_id or row.id, set())
            sides |= {(row.chosen, row.chosen_ended), (row.rejected, row.rejected_ended)}
    return found


DATA_FILES: dict[str, type] = {
    "sft": SftRow,
    "reward": PairRow,
    "dpo": PairRow,
    "kto": ThumbRow,
    "ppo": PromptRow,
}
"""Row type by method; every run has ``data/train.jsonl`` and ``data/heldout.jsonl`` (which may be empty) of it.
``reward`` and ``ppo`` runs may also have ``data/demonstrations.jsonl`` (:class:`SftRow`): what sets the zero of scores,
and what PPO-ptx mixes in."""
