"""Agreement corrected for chance: Cohen's kappa of two raters, Krippendorff's alpha of any number."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workbench.statistics import wilson

Distance = Callable[[int, int], float]


@dataclass(frozen=True, slots=True)
class Corrected:
    """``1 - observed / expected`` disagreement: 1 is perfect, 0 is chance, below 0 is worse than chance."""

    observed: float
    expected: float
    most: float = 1.0  # the largest disagreement that two values can have

    @property
    def value(self) -> float:
        """Kappa or alpha."""
        return 1 - self.observed / self.expected

    def between(self, groups: int) -> tuple[float, float]:
        """Return the 95 % interval: Wilson's of the agreement over so many independent groups, chance as it is."""
        low, high = wilson((1 - self.observed / self.most) * groups, groups)
        return tuple(max(-1.0, min(1.0, 1 - (1 - end) * self.most / self.expected)) for end in (low, high))  # type: ignore[return-value]


def nominal(one: int, other: int) -> float:
    """Squared distance of names: 0 where they are the same, else 1."""
    return float(one != other)


def interval(one: int, other: int) -> float:
    """Squared distance of numbers."""
    return float((one - other) ** 2)


def krippendorffs_alpha(units: Sequence[Sequence[int]], distance: Distance = interval) -> Corrected | None:
    """Return how far raters agree beyond chance.

    Each unit holds the values that its raters gave, in no order; units with fewer than two values say nothing. None
    where there is nothing to compare, or where every value is the same, so that chance would agree as well.
    Source: Krippendorff, "Computing Krippendorff's alpha-reliability", 2011.
    """
    paired = [unit for unit in units if len(unit) > 1]
    totals = Counter(value for unit in paired for value in unit)
    count = totals.total()
    two = list(itertools.permutations(totals, 2))
    expected = sum(totals[one] * totals[other] * distance(one, other) for one, other in two)
    if not expected:
        return None
    observed = sum(
        distance(one, other) / (len(unit) - 1) for unit in paired for one, other in itertools.permutations(unit, 2)
    )
    return Corrected(observed / count, expected / (count * (count - 1)), max(distance(*both) for both in two))


def cohens_kappa(pairs: Sequence[tuple[int, int]]) -> Corrected | None:
    """Return how far two raters agree, by name, on the same things, beyond what each says overall.

    None without pairs, or where both always say one and the same.
    Source: Cohen, "A coefficient of agreement for nominal scales", 1960.
    """
    count = len(pairs)
    first, second = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    by_chance = sum(first[value] * second[value] for value in first)
    if by_chance == count * count:
        return None
    differing = sum(one != other for one, other in pairs)
    return Corrected(differing / count, 1 - by_chance / (count * count))
