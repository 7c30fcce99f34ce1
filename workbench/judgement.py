"""What a reward model is worth: its judgement of every held-out pair, and what follows from it. Numbers only, no torch.

The engine scores the held-out pairs once, at a run's end, into ``final/judgement.json``. What a pair's *gap* is, and
how sure it says that the model is: :mod:`workbench.calibration`.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from workbench.calibration import Bin, calibration_error, confidence, reliability
from workbench.errors import UserError
from workbench.jsonl import decode, encode, write_atomic
from workbench.statistics import wilson_of_groups

Key = TypeVar("Key", str, int)
JUDGEMENT_FILE = "judgement.json"
GAP_EDGES = (0.0, 0.25, 0.5, 1.0, 2.0, math.inf)
CONFIDENT = 0.7
"""As sure as this of the wrong side, a model is *confident and wrong*: the gap is below -0.85."""


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """A held-out pair and what the finished model thinks of it."""

    id: str
    unit: str  # its ranking
    gap: float  # score of the chosen side less that of the rejected one
    tier_distance: int = 1
    length_difference: int = 0  # in tokens, the chosen side's less the rejected one's
    rater: str = ""
    gap_std: float = 0.0  # of the gap over the heads of an ensemble; 0 for a single head
    group: str = ""  # its prompt; older versions did not write it down

    @property
    def evidence(self) -> str:
        """Its prompt, else its ranking: all pairs of a prompt, whoever ranked it, are one piece of evidence."""
        return self.group or self.unit

    @property
    def right(self) -> bool:
        """Whether the model prefers what the rater preferred."""
        return self.gap > 0

    @property
    def confidence(self) -> float:
        """How sure the model is of the side that it prefers, from 0.5 to 1."""
        return confidence(self.gap)


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """``judgement.json``: every held-out pair of a run, scored by the finished model."""

    step: int = 0
    pairs: tuple[JudgedPair, ...] = ()
    version: int = 1

    def write(self, folder: Path) -> None:
        """Write it into a model's folder. Raises ValueError for a gap that is not finite."""
        write_atomic(folder / JUDGEMENT_FILE, encode(self))

    @classmethod
    def read(cls, folder: Path) -> Judgement | None:
        """Read a model's judgement; None where it has none. Raises UserError when it is damaged."""
        try:
            return decode((folder / JUDGEMENT_FILE).read_bytes(), cls)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
            raise UserError(
                f"The judgement in {folder.name} cannot be read", str(error), "train the reward model again"
            ) from error


@dataclass(frozen=True, slots=True)
class Share:
    """How often the model agrees, in one part of the pairs, with a 95 % interval in which a prompt's pairs are one."""

    name: str
    pairs: int
    rankings: int
    prompts: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class LengthBias:
    """Whether length sways the model. Pairs of equal length are in ``chosen_longer`` and ``chosen_shorter`` neither."""

    chosen_longer: Share
    chosen_shorter: Share
    raters_prefer_longer: float  # share of the pairs of different length
    model_prefers_longer: float
    correlation: float  # of the difference in score with that in length, -1 to 1


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """Whether the heads of an ensemble know where it errs: how far their gaps are apart, by whether it was right."""

    mean_std: float
    right_std: float  # mean over the pairs that are judged rightly; 0 where there are none
    wrong_std: float
    larger_on_wrong: float  # chance that a wrong pair has the larger spread of it and a right one; 0.5 says nothing


@dataclass(frozen=True, slots=True)
class Report:
    """All that is told of a reward model."""

    accuracy: Share
    by_tag: tuple[Share, ...]
    by_tier_distance: tuple[Share, ...]
    by_gap: tuple[Share, ...]
    by_rater: tuple[Share, ...]
    reliability: tuple[Bin, ...]
    calibration_error: float
    length: LengthBias
    confident_and_wrong: tuple[JudgedPair, ...]  # the most confident first
    uncertainty: Uncertainty | None = None  # None for a single head


def report(
    pairs: Sequence[JudgedPair],
    *,
    tags: Mapping[str, Collection[str]] | None = None,
    raters: Mapping[str, str] | None = None,
) -> Report:
    """Draw up the report.

    Args:
        pairs: what was judged.
        tags: of each pair's id, the tags of its prompt.
        raters: names of raters by id.
    """
    tags, raters = tags or {}, raters or {}
    gaps = [one.gap for one in pairs]
    return Report(
        accuracy=share("all", pairs),
        by_tag=by(pairs, lambda one: sorted(tags.get(one.id, ()))),
        by_tier_distance=by(pairs, lambda one: [one.tier_distance], str),
        by_gap=by_gap(pairs),
        by_rater=by(pairs, lambda one: [one.rater], lambda rater: raters.get(rater, rater) or "unknown"),
        reliability=reliability(gaps),
        calibration_error=calibration_error(gaps),
        length=length_bias(pairs),
        confident_and_wrong=confident_and_wrong(pairs),
        uncertainty=uncertainty(pairs),
    )


def share(name: str, pairs: Sequence[JudgedPair]) -> Share:
    """Accuracy of some pairs with Wilson's interval, for which the pairs of one prompt hang together."""
    accuracy, low, high = wilson_of_groups([(one.evidence, one.right) for one in pairs])
    rankings, prompts = len({one.unit for one in pairs}), len({one.evidence for one in pairs})
    return Share(name, len(pairs), rankings, prompts, accuracy, low, high)


def by(
    pairs: Sequence[JudgedPair],
    keys: Callable[[JudgedPair], Sequence[Key]],
    name: Callable[[Key], str] = str,
) -> tuple[Share, ...]:
    """Accuracy by whatever ``keys`` says of a pair (it may have several, or none), in the order of the keys."""
    parts: dict[Key, list[JudgedPair]] = {}
    for one in pairs:
        for key in keys(one):
            parts.setdefault(key, []).append(one)
    return tuple(share(name(key), parts[key]) for key in sorted(parts))


def by_gap(pairs: Sequence[JudgedPair]) -> tuple[Share, ...]:
    """Accuracy by the size of the score gap; where it does not rise with the gap, the gap means nothing."""
    found = []
    for low, high in itertools.pairwise(GAP_EDGES):
        part = [one for one in pairs if low <= abs(one.gap) < high]
        if part:
            found.append(share(f"{low:g} to {high:g}" if high < math.inf else f"over {low:g}", part))
    return tuple(found)


def length_bias(pairs: Sequence[JudgedPair]) -> LengthBias:
    """How the model fares where the better response is the longer one and where it is the shorter one."""
    longer = [one for one in pairs if one.length_difference > 0]
    shorter = [one for one in pairs if one.length_difference < 0]
    different = max(1, len(longer) + len(shorter))
    takes_longer = sum(one.right for one in longer) + sum(one.gap < 0 for one in shorter)
    return LengthBias(
        chosen_longer=share("longer chosen", longer),
        chosen_shorter=share("shorter chosen", shorter),
        raters_prefer_longer=len(longer) / different,
        model_prefers_longer=takes_longer / different,
        correlation=length_correlation(pairs),
    )


def length_correlation(pairs: Sequence[JudgedPair]) -> float:
    """Correlate score with length within pairs: differences of the one with differences of the other.

    A pair may be read either way round, and both differences then change sign; Pearson's correlation over both
    readings has means of 0 and is ``sum(g d) / sqrt(sum(g^2) sum(d^2))``. The prompt's own level falls out. 0 where
    it is not defined.
    """
    spread = math.sqrt(sum(one.gap**2 for one in pairs)) * math.sqrt(sum(one.length_difference**2 for one in pairs))
    return sum(one.gap * one.length_difference for one in pairs) / spread if spread > 0 else 0.0


def confident_and_wrong(pairs: Sequence[JudgedPair]) -> tuple[JudgedPair, ...]:
    """The pairs of which the model prefers the rejected side by far: its mistakes, or the rater's."""
    wrong = [one for one in pairs if one.gap < 0 and one.confidence >= CONFIDENT]
    return tuple(sorted(wrong, key=lambda one: (one.gap, one.id)))


def uncertainty(pairs: Sequence[JudgedPair]) -> Uncertainty | None:
    """Compare the heads' spread on pairs that are judged wrongly with that on right ones. None for a single head.

    ``larger_on_wrong`` is the area under the ROC curve of the spread as a detector of mistakes, which is the share of
    the (wrong, right) pairs of pairs in which the wrong one has the larger spread, an equal one counting half
    (Mann and Whitney 1947); 0.5 where nothing is wrong or nothing right.
    """
    if not any(one.gap_std > 0 for one in pairs):
        return None
    right = sorted(one.gap_std for one in pairs if one.right)
    wrong = [one.gap_std for one in pairs if not one.right]
    larger = sum(bisect_left(right, std) + bisect_right(right, std) for std in wrong) / 2
    return Uncertainty(
        mean_std=sum(one.gap_std for one in pairs) / len(pairs),
        right_std=sum(right) / max(1, len(right)),
        wrong_std=sum(wrong) / max(1, len(wrong)),
        larger_on_wrong=larger / (len(right) * len(wrong)) if right and wrong else 0.5,
    )
