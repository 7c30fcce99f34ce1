"""Whether a reward model is as sure as it is right: its confidence beside its accuracy. Numbers only, no torch.

A pair's *gap* is the chosen response's score less the rejected one's. Bradley-Terry reads it as log-odds, so that
``sigmoid(|gap|)`` is how sure the model is of the side it prefers, from 0.5 to 1. A tie (gap 0) is wrong.
Source: Guo et al., "On calibration of modern neural networks", 2017.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

BINS = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """One bin of a reliability curve: how sure the model was, and how often it was right."""

    low: float
    high: float
    pairs: int
    confidence: float  # their mean; 0 in an empty bin
    accuracy: float


def confidence(gap: float) -> float:
    """How sure a model is of the side that it prefers, from 0.5 to 1."""
    return 1 / (1 + math.exp(-abs(gap)))


def reliability(gaps: Sequence[float], bins: int = BINS) -> tuple[Bin, ...]:
    """Confidence beside accuracy in equal bins of confidence from 0.5 to 1 (figure 1). Raises ValueError for a NaN."""
    parts: list[list[float]] = [[] for _ in range(bins)]
    for gap in gaps:
        parts[min(bins - 1, int((confidence(gap) - 0.5) * 2 * bins))].append(gap)
    return tuple(
        Bin(
            low=0.5 + place / (2 * bins),
            high=0.5 + (place + 1) / (2 * bins),
            pairs=len(part),
            confidence=sum(map(confidence, part)) / max(1, len(part)),
            accuracy=sum(gap > 0 for gap in part) / max(1, len(part)),
        )
        for place, part in enumerate(parts)
    )


def calibration_error(gaps: Sequence[float], bins: int = BINS) -> float:
    """Expected calibration error: the bins' gaps between confidence and accuracy, by their share (equation 3).

    NaN where a gap is NaN: a model that scores so has no calibration. 0 without gaps.
    """
    if any(map(math.isnan, gaps)):
        return math.nan
    total = sum(one.pairs * abs(one.accuracy - one.confidence) for one in reliability(gaps, bins))
    return total / max(1, len(gaps))
