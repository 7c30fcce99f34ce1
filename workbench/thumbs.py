"""Judgements of single responses, for KTO: thumbs on the responses of a ranking card. Derived, never stored.

A thumb is a flag of a ranking, whatever its outcome but skipped: an order among responses is not needed for it.
Contradictions between raters stay as they are: they are data. Triggers count thumbs by the same rule, said again in SQL
(``schema/0002.sql``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from workbench.pairs import EMPTY, HELD_OUT_TWIN, chunks
from workbench.records import ALL_BAD, BAD, GOOD, Ranking, Split
from workbench.rows import ThumbRow

if TYPE_CHECKING:
    from workbench.store import Store

AsThumbs = Literal["none", "best-and-worst"]
REPEATED = "the same text has that thumb already on its card"


@dataclass(slots=True)
class ThumbSet:
    """Judged responses that can train, and how many could not, by reason."""

    rows: list[ThumbRow]
    dropped: dict[str, int] = field(default_factory=dict)


def thumbs_of(ranking: Ranking, rankings_as_thumbs: AsThumbs = "none") -> dict[str, bool]:
    """Which responses a ranking says are wanted (True) and unwanted (False), by id.

    * ``good`` and ``bad`` flags, each on one response, say it.
    * ``all bad`` says it of every response that was shown and has no thumb of its own.
    * Other flags (harmful, off-topic, ...) say what is wrong, not that it outweighs the rest: they say nothing here.
    * An order says nothing either: the best of four may be poor. ``best-and-worst`` takes it to, where a ranking has
      neither thumbs nor ``all bad``: its best tier is wanted, its worst is not, those between are left out. (The paper
      splits preference pairs so, section 4.2; TRL's ``unpair_preference_dataset`` too.)
    """
    if ranking.outcome == "skipped":
        return {}
    given = {one.response_id: one.flag == GOOD for one in ranking.flags if one.flag in (GOOD, BAD) and one.response_id}
    if any(one.flag == ALL_BAD and not one.response_id for one in ranking.flags):
        shown = ranking.shown_order or tuple(id_ for tier in ranking.tiers for id_ in tier)
        return dict.fromkeys(shown, False) | given
    if not given and rankings_as_thumbs == "best-and-worst" and ranking.outcome == "ranked" and len(ranking.tiers) > 1:
        return dict.fromkeys(ranking.tiers[0], True) | dict.fromkeys(ranking.tiers[-1], False)
    return given


def current_thumbs(store: Store, split: Split | None = None, rankings_as_thumbs: AsThumbs = "none") -> ThumbSet:
    """All judged responses of the current rankings of a split, with their texts.

    ``train`` never holds a held-out prompt, nor one whose text is that of a held-out one. Archived prompts give none.
    """
    dropped: Counter[str] = Counter()
    twins = store.held_out_twins() if split == "train" else frozenset[str]()
    found: list[ThumbRow] = []
    for chunk in chunks(store.rankings(split=split)):
        thumbs = {ranking.id: judged for ranking in chunk if (judged := thumbs_of(ranking, rankings_as_thumbs))}
        chunk = [ranking for ranking in chunk if ranking.id in thumbs]
        prompts = store.prompts_by_id({ranking.prompt_id for ranking in chunk})
        responses = store.responses_by_id({id_ for judged in thumbs.values() for id_ in judged})
        for ranking in chunk:
            seen: set[tuple[str, bool]] = set()
            for id_, desirable in thumbs[ranking.id].items():
                response = responses[id_]
                key = response.text.strip(), desirable
                reason = HELD_OUT_TWIN if ranking.prompt_id in twins else _why_unusable(key, seen)
                if reason:
                    dropped[reason] += 1
                    continue
                seen.add(key)
                found.append(
                    ThumbRow(
                        id=f"{ranking.id}:{id_}",
                        group=ranking.prompt_id,
                        ranking_id=ranking.id,
                        rater_id=ranking.rater_id,
                        prompt=prompts[ranking.prompt_id].messages,
                        completion=response.text,
                        desirable=desirable,
                        ended=response.ended,
                    )
                )
    return ThumbSet(found, dict(dropped))


def _why_unusable(key: tuple[str, bool], seen: Collection[tuple[str, bool]]) -> str:
    if not key[0]:
        return EMPTY
    return REPEATED if key in seen else ""
