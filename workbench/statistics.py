"""Small statistics that labels and models are judged by."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence


def wilson(successes: float, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson score interval of a share (95 % by default). ``(0, 1)`` without trials.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    if trials <= 0:
        return 0.0, 1.0
    share = successes / trials
    shrink = 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / shrink
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / shrink
    return max(0.0, middle - half), min(1.0, middle + half)


def wilson_of_groups(judged: Sequence[tuple[Hashable, bool]]) -> tuple[float, float, float]:
    """Return a share and its interval where outcomes come in groups, such as the pairs of one prompt.

    Outcomes of one group go together, so that the interval counts groups: it is never too narrow, whatever they share.

    Args:
        judged: of each outcome its group, and whether it is a success.
    """
    share = sum(right for _, right in judged) / max(1, len(judged))
    groups = len({group for group, _ in judged})
    return (share, *wilson(share * groups, groups))
