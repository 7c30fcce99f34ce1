"""How consistent the labels are: raters with each other, a rater with themselves, and what sways both. Numbers only.

Everything is told of *pairs*: two responses to one prompt, of which a ranking says that one is better or that they tie.
Pairs whose texts are identical, or of which one is empty, say nothing and are left out, as in training. Intervals count
prompts, since the pairs of one ranking go together.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.chance_corrected import Corrected, cohens_kappa, krippendorffs_alpha
from workbench.pairs import why_unusable
from workbench.re_asks import ReAsk, re_asks
from workbench.records import Ranking
from workbench.statistics import wilson_of_groups

if TYPE_CHECKING:
    from workbench.store import Store

Pair = tuple[str, str]
Verdicts = dict[Pair, int]
"""Of each pair of response ids, the smaller one first: 1 where the first is better, -1 the second, 0 a tie."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of some pairs with its 95 % interval."""

    share: float
    low: float
    high: float
    pairs: int
    prompts: int

    @property
    def leans(self) -> bool:
        """Whether one half lies outside of the interval."""
        return self.low > 0.5 or self.high < 0.5


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two answers to the same pairs have in common."""

    same: int  # both prefer one response, the same
    opposite: int
    one_tied: int  # one prefers, the other ties
    both_tied: int
    exact: Rate  # same or both tied, of all
    preferences: Rate | None  # same, of the pairs that both prefer a side of
    beyond_chance: float | None  # kappa of two answers, alpha of any number; None where chance agrees as well
    low: float = -1.0  # of beyond_chance, 95 %
    high: float = 1.0


@dataclass(frozen=True, slots=True)
class Between:
    """Two raters, by name, on the pairs that both judged."""

    first: str
    second: str
    told: Comparison


@dataclass(frozen=True, slots=True)
class Noise:
    """Labels flipped independently: how many, and so what the best reward model could reach on them."""

    flips: float
    low: float
    high: float
    source: str  # "re-asks" or "raters"

    @property
    def ceiling(self) -> float:
        """No reward model's accuracy on such labels can be expected above this."""
        return 1 - self.flips


@dataclass(frozen=True, slots=True)
class Agreement:
    """All that is told of a project's labels. What there is no evidence for is None."""

    rankings: int
    raters: int
    pairs: int
    ties: Rate | None
    between: Comparison | None  # all raters; beyond_chance is Krippendorff's alpha
    by_raters: tuple[Between, ...]  # every two raters; beyond_chance is Cohen's kappa
    re_asked: int  # rankings
    oneself: Comparison | None
    first_wins: Rate | None  # of preferences between the response shown first and another
    earlier_wins: Rate | None  # of preferences between any two that were shown
    longer_wins: Rate | None  # of preferences between texts of different length, in characters
    noise: Noise | None


def measure(store: Store) -> Agreement:
    """Measure a project's current rankings and its re-asks, of both splits; archived prompts are left out."""
    rankings = [one for one in store.rankings() if one.outcome == "ranked"]
    asked = re_asks(store)
    ids = {id_ for one in rankings for tier in one.tiers for id_ in tier}
    ids |= {id_ for one in asked for tier in one.again.tiers for id_ in tier}
    texts = {id_: one.text for id_, one in store.responses_by_id(ids).items()}
    return agreement(rankings, texts, asked=asked, names={one.id: one.name for one in store.raters()})


def agreement(
    rankings: Sequence[Ranking],
    texts: Mapping[str, str],
    *,
    asked: Sequence[ReAsk] = (),
    names: Mapping[str, str] | None = None,
) -> Agreement:
    """Measure labels.

    Args:
        rankings: current ones, oldest first.
        texts: of the responses, by id.
        asked: rankings that were asked for again.
        names: of the raters, by id.
    """
    said = _each_pair_once([(one, verdicts(one, texts)) for one in rankings])
    by_rater: dict[str, dict[str, Verdicts]] = defaultdict(lambda: defaultdict(dict))
    for ranking, found in said:
        by_rater[ranking.rater_id][ranking.prompt_id].update(found)
    all_of = [(prompt, value) for of in by_rater.values() for prompt, found in of.items() for value in found.values()]
    between, by_raters = _between(by_rater, names or {})
    oneself = _oneself(asked, texts)
    return Agreement(
        rankings=len(rankings),
        raters=len(by_rater),
        pairs=len(all_of),
        ties=rate((prompt, value == 0) for prompt, value in all_of),
        between=between,
        by_raters=by_raters,
        re_asked=len(asked),
        oneself=oneself,
        first_wins=_shown(said, first_only=True),
        earlier_wins=_shown(said, first_only=False),
        longer_wins=_longer(said, texts),
        noise=_noise(oneself, between),
    )


def verdicts(ranking: Ranking, texts: Mapping[str, str]) -> Verdicts:
    """Return what a ranking says of each usable pair of its responses."""
    placed = [(id_, place) for place, tier in enumerate(ranking.tiers) for id_ in tier]
    found: Verdicts = {}
    for (one, place), (other, below) in itertools.combinations(placed, 2):
        if not why_unusable(texts.get(one, ""), texts.get(other, "")):
            better = int(place < below)
            found[(one, other) if one < other else (other, one)] = better if one < other else -better
    return found


def _each_pair_once(said: Sequence[tuple[Ranking, Verdicts]]) -> list[tuple[Ranking, Verdicts]]:
    """Leave of what a rater says of a pair in several rankings of a prompt only what the newest says."""
    left: list[tuple[Ranking, Verdicts]] = []
    told: set[tuple[str, str, Pair]] = set()
    for ranking, found in reversed(said):
        who = ranking.rater_id, ranking.prompt_id
        left.append((ranking, {pair: value for pair, value in found.items() if (*who, pair) not in told}))
        told |= {(*who, pair) for pair in found}
    return left[::-1]


def rate(judged: Iterable[tuple[str, bool]]) -> Rate | None:
    """Return how often something holds, given each case's prompt; None without a case."""
    cases = list(judged)
    if not cases:
        return None
    share, low, high = wilson_of_groups(cases)
    return Rate(share, low, high, len(cases), len({prompt for prompt, _ in cases}))


def flips_of(self_agreement: float) -> float:
    """Return the share e of flipped labels that lets two answers agree in a share a of the pairs: a = 1 - 2e(1 - e).

    Two answers with independent flips agree where neither or both are flipped. Agreement below one half has no such e
    and gives 0.5, a coin.
    """
    return (1 - math.sqrt(max(0.0, 2 * self_agreement - 1))) / 2


def compare(answers: Sequence[tuple[str, int, int]], corrected: Corrected | None = None) -> Comparison | None:
    """Compare two answers to the same pairs; None without any.

    Which response of a pair comes first is arbitrary, so that chance is reckoned with every pair both ways round.

    Args:
        answers: each pair's prompt and both verdicts.
        corrected: what is beyond chance, where it is not Cohen's kappa of these.
    """
    exact = rate((prompt, one == other) for prompt, one, other in answers)
    if exact is None:
        return None
    if corrected is None:
        corrected = cohens_kappa([two for _, one, other in answers for two in ((one, other), (-one, -other))])
    strict = [(prompt, one == other) for prompt, one, other in answers if one and other]
    same, both_tied = sum(agreed for _, agreed in strict), sum(one == other == 0 for _, one, other in answers)
    low, high = corrected.between(exact.prompts) if corrected else (-1.0, 1.0)
    return Comparison(
        same=same,
        opposite=len(strict) - same,
        one_tied=len(answers) - len(strict) - both_tied,
        both_tied=both_tied,
        exact=exact,
        preferences=rate(strict),
        beyond_chance=corrected.value if corrected else None,
        low=low,
        high=high,
    )


def _between(
    by_rater: Mapping[str, Mapping[str, Verdicts]], names: Mapping[str, str]
) -> tuple[Comparison | None, tuple[Between, ...]]:
    every: list[tuple[str, int, int]] = []
    found: list[Between] = []
    for one, other in itertools.combinations(by_rater, 2):
        answers = [
            (prompt, value, by_rater[other][prompt][pair])
            for prompt in by_rater[one].keys() & by_rater[other].keys()
            for pair, value in by_rater[one][prompt].items()
            if pair in by_rater[other][prompt]
        ]
        told = compare(answers)
        if told is not None:
            found.append(Between(names.get(one, one), names.get(other, other), told))
            every += answers
    units: dict[tuple[str, Pair], list[int]] = defaultdict(list)
    for of in by_rater.values():
        for prompt, found_there in of.items():
            for pair, value in found_there.items():
                units[prompt, pair].append(value)
    both_ways = [[sign * value for value in values] for values in units.values() for sign in (1, -1)]
    found.sort(key=lambda two: -two.told.exact.pairs)
    return compare(every, krippendorffs_alpha(both_ways)), tuple(found)


def _oneself(asked: Sequence[ReAsk], texts: Mapping[str, str]) -> Comparison | None:
    answers = []
    for one in asked:
        again = verdicts(one.again, texts)
        before = verdicts(one.first, texts)
        answers += [(one.first.prompt_id, value, again[pair]) for pair, value in before.items() if pair in again]
    return compare(answers)


def _shown(said: Sequence[tuple[Ranking, Verdicts]], *, first_only: bool) -> Rate | None:
    cases = []
    for ranking, found in said:
        place = {id_: index for index, id_ in enumerate(ranking.shown_order)}
        for (one, other), value in found.items():
            if value and one in place and other in place and (not first_only or 0 in (place[one], place[other])):
                cases.append((ranking.prompt_id, (value > 0) == (place[one] < place[other])))
    return rate(cases)


def _longer(said: Sequence[tuple[Ranking, Verdicts]], texts: Mapping[str, str]) -> Rate | None:
    cases = []
    for ranking, found in said:
        for (one, other), value in found.items():
            difference = len(texts[one].strip()) - len(texts[other].strip())
            if value and difference:
                cases.append((ranking.prompt_id, (value > 0) == (difference > 0)))
    return rate(cases)


def _noise(oneself: Comparison | None, between: Comparison | None) -> Noise | None:
    for source, told in (("re-asks", oneself), ("raters", between)):
        if told is not None and told.preferences is not None:
            one = told.preferences
            return Noise(flips_of(one.share), flips_of(one.high), flips_of(one.low), source)
    return None
