"""Small statistics that labels and models are judged by."""

from __future__ import annotations

import math


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
