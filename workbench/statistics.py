"""Small statistics that labels and models are judged by."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

FEWEST = 5
"""Values whose spread says anything of how far their mean may be off."""


def wilson(successes: float, trials: float, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson score interval of a share (95 % by default). ``(0, 1)`` without trials.

    Trials may be a fraction (:func:`effective_trials`).

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    if trials <= 0:
        return 0.0, 1.0
    share = successes / trials
    shrink = 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / shrink
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / shrink
    return max(0.0, middle - half), min(1.0, middle + half)


def effective_trials(groups: Iterable[Hashable]) -> float:
    """How many independent outcomes those of some groups are worth, where all of a group may go together.

    A share over ``N = sum m`` outcomes in groups of ``m`` has then the variance ``p (1 - p) sum m^2 / N^2``, that of
    ``N^2 / sum m^2`` independent ones: the number of groups where they are equal, less where a large one decides.
    0 without outcomes. Source: Kish, "Survey sampling", 1965, section 8.2 (with an intraclass correlation of 1).
    """
    sizes = Counter(groups).values()
    return sum(sizes) ** 2 / sum(size * size for size in sizes) if sizes else 0.0


def wilson_of_groups(judged: Sequence[tuple[Hashable, bool]]) -> tuple[float, float, float]:
    """Return a share and its interval where outcomes come in groups, such as the pairs of one prompt.

    Outcomes of one group may go together, so that the interval is that of :func:`effective_trials`: whatever they
    share, it is no narrower than that of as many independent outcomes.

    Args:
        judged: of each outcome its group, and whether it is a success.
    """
    share = sum(right for _, right in judged) / max(1, len(judged))
    trials = effective_trials(group for group, _ in judged)
    return (share, *wilson(share * trials, trials))


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return a mean and its 95 % interval by Student's t. Raises ValueError below FEWEST values.

    The quantile is its expansion about the normal one, within 1 % from 4 degrees of freedom on.
    Source: Abramowitz and Stegun, "Handbook of mathematical functions", 1964, 26.7.5.
    """
    count = len(values)
    if count < FEWEST:
        raise ValueError(f"{count} values say too little of their spread")
    z, free = 1.959964, count - 1
    quantile = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    quantile += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
    mean = math.fsum(values) / count
    reach = quantile * math.sqrt(math.fsum((one - mean) ** 2 for one in values) / free / count)
    return mean, mean - reach, mean + reach
