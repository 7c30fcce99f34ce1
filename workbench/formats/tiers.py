"""A ranking as other programs write it: the texts themselves in tiers, without ids of ours."""

from __future__ import annotations

from typing import NamedTuple

from workbench.formats.parsed import RowError
from workbench.records import Message

Tiers = tuple[tuple[str, ...], ...]
"""Texts, the best tier first; texts of one tier are tied."""


class Ranked(NamedTuple):
    """One judgement of some responses to a prompt."""

    prompt: tuple[Message, ...]
    tiers: Tiers
    rater: str = ""
    ranking_id: str = ""


def checked_tiers(tiers: Tiers) -> Tiers:
    """Return the tiers, each text of one once. Raises RowError where a text stands in two, or all stand in one."""
    once = tuple(tuple(dict.fromkeys(tier)) for tier in tiers)
    texts = [text for tier in once for text in tier]
    if len(set(texts)) != len(texts):
        raise RowError("one text stands at two places of its order")
    if len(texts) < 2:
        raise RowError("its order has fewer than two different texts")
    return once
