"""Which responses of a prompt a rater's next card shows, without Qt: those that wait first, then one or two anchors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ui.rank_state import MOST_RESPONSES
from workbench.records import Ranking


@dataclass(frozen=True, slots=True)
class Choice:
    """What a card shows: ids, oldest first."""

    waiting: tuple[str, ...]
    anchors: tuple[str, ...] = ()  # judged before by the same rater: they join the new ranking's scale to the old one's
    left_out: int = 0  # responses that wait too and do not fit


def unjudged(ids: Sequence[str], judgements: Sequence[Ranking]) -> list[str]:
    """The responses that none of a rater's current judgements names, skips aside."""
    judging = [one for one in judgements if one.outcome != "skipped"]
    if not all(one.named for one in judging):
        return []  # one of them is about the prompt as a whole
    named = frozenset[str]().union(*(one.named for one in judging))
    return [one for one in ids if one not in named]


def choose(ids: Sequence[str], judgements: Sequence[Ranking]) -> Choice:
    """Choose the card of a prompt.

    Responses that the rater never saw come first, then skipped ones, the newest where not all fit. The best and the
    worst of the newest ranking are put beside them, unless that would be a new judgement of all that an older one is
    about (and so supersede it): then the best alone.

    Args:
        ids: the prompt's responses, oldest first; two or more.
        judgements: the rater's current ones of this prompt, oldest first.

    Returns:
        The choice, of two to nine responses. Where nothing waits, the newest nine, all to be judged anew.
    """
    waiting = unjudged(ids, judgements)
    if not waiting:
        return Choice(tuple(ids[-MOST_RESPONSES:]), left_out=max(0, len(ids) - MOST_RESPONSES))
    seen = frozenset[str]().union(*(one.named for one in judgements))
    anchors = _anchors(judgements, frozenset(ids))
    newest = sorted(waiting, key=lambda one: (one not in seen, ids.index(one)))[-(MOST_RESPONSES - len(anchors)) :]
    if len(newest) + len(anchors) < 2:
        anchors = (next(one for one in reversed(ids) if one not in newest),)
    chosen = tuple(one for one in ids if one in newest)
    return Choice(chosen, anchors, len(waiting) - len(chosen))


def _anchors(judgements: Sequence[Ranking], ids: frozenset[str]) -> tuple[str, ...]:
    ranked = [one for one in judgements if one.outcome == "ranked" and one.tiers]
    if not ranked:
        return ()
    tiers = ranked[-1].tiers
    ends = tuple(one for one in dict.fromkeys((tiers[0][0], tiers[-1][-1])) if one in ids)
    judged = [one.named for one in judgements if one.outcome != "skipped"]
    for anchors in (ends, ends[:1]):
        if not any(one <= frozenset(anchors) for one in judged):
            return anchors
    return ()
