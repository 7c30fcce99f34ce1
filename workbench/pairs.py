"""Rankings to preference pairs: every ordered pair across tiers; within one, ties if asked. Derived, never stored.

Contradictions (A over B by one rater, B over A by another, or a cycle) stay as they are: they are data.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from workbench.records import Pair, Ranking, Split
from workbench.rows import PairRow

if TYPE_CHECKING:
    from workbench.store import Store

Which = Literal["all", "best-vs-rest"]
IDENTICAL = "the two texts are identical"
EMPTY = "a completion is empty"
HELD_OUT_TWIN = "the same prompt is also held out"
_CHUNK = 2000


@dataclass(slots=True)
class PairSet:
    """Pairs that can train, and how many could not, by reason."""

    rows: list[PairRow]
    dropped: dict[str, int] = field(default_factory=dict)


def pairs_of(ranking: Ranking, which: Which = "all", *, ties: bool = False) -> list[Pair]:
    """The pairs of one ranking, best tier first; with ``ties`` then those within a tier, at a tier distance of 0.

    ``all``: every ordered pair across tiers (Ouyang et al. 2022, section 3.5: all comparisons of one prompt belong
    to one batch element, hence ``Pair.group``). ``best-vs-rest``: the best tier over every lower response, and the
    best tier's own ties.
    """
    tiers = ranking.tiers if ranking.outcome == "ranked" else ()
    compared = tiers if which == "all" else tiers[:1]
    ordered = [
        Pair(ranking.id, ranking.prompt_id, chosen, rejected, ranking.rater_id, lower - upper)
        for upper in range(len(compared))
        for lower in range(upper + 1, len(tiers))
        for chosen in tiers[upper]
        for rejected in tiers[lower]
    ]
    equal = [pair for tier in compared for pair in itertools.combinations(tier, 2)] if ties else []
    return ordered + [Pair(ranking.id, ranking.prompt_id, *two, ranking.rater_id, 0) for two in equal]


def why_unusable(chosen: str, rejected: str) -> str:
    """Say why two texts make no training pair, or ''. Space around a text does not make it another one."""
    chosen, rejected = chosen.strip(), rejected.strip()
    if not chosen or not rejected:
        return EMPTY
    return IDENTICAL if chosen == rejected else ""


def current_pairs(store: Store, split: Split | None = None, which: Which = "all", *, ties: bool = False) -> PairSet:
    """The pairs of all current rankings of a split, with their texts.

    ``train`` never holds a held-out prompt, nor one whose text is that of a held-out one. Archived prompts give none.
    """
    dropped: Counter[str] = Counter()
    twins = store.held_out_twins() if split == "train" else frozenset[str]()
    found: list[PairRow] = []
    for chunk in chunks(store.rankings(split=split)):
        prompts = store.prompts_by_id({ranking.prompt_id for ranking in chunk})
        responses = store.responses_by_id({id_ for ranking in chunk for tier in ranking.tiers for id_ in tier})
        for ranking in chunk:
            for pair in pairs_of(ranking, which, ties=ties):
                chosen, rejected = responses[pair.chosen_id], responses[pair.rejected_id]
                reason = HELD_OUT_TWIN if pair.prompt_id in twins else why_unusable(chosen.text, rejected.text)
                if reason:
                    dropped[reason] += 1
                    continue
                found.append(
                    PairRow(
                        id=f"{pair.ranking_id}:{pair.chosen_id}:{pair.rejected_id}",
                        group=pair.group,
                        ranking_id=pair.ranking_id,
                        rater_id=pair.rater_id,
                        prompt=prompts[pair.prompt_id].messages,
                        chosen=chosen.text,
                        rejected=rejected.text,
                        tier_distance=pair.tier_distance,
                        chosen_ended=chosen.ended,
                        rejected_ended=rejected.ended,
                    )
                )
    return PairSet(found, dict(dropped))


def chunks(rankings: list[Ranking]) -> Iterator[list[Ranking]]:
    """Some rankings at a time: their texts are read together."""
    for start in range(0, len(rankings), _CHUNK):
        yield rankings[start : start + _CHUNK]
