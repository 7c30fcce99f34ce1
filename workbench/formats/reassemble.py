"""Preference rows of one ranking back into its tiers, where the rows say all that the ranking said, and no more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

Preferred = tuple[str, str, int]
"""Better response, worse response, and how many tiers lie between."""


def tiers_of(rows: Sequence[Preferred]) -> tuple[tuple[str, ...], ...] | None:
    """Return the tiers whose ordered pairs are exactly these rows with these distances; None where there are none.

    Rows that were filtered, best-versus-rest exports and contradictions give None: tiers would say more than they do.
    """
    levels = _levels(rows)
    if levels is None:
        return None
    tiers: dict[int, list[str]] = defaultdict(list)
    for response, level in levels.items():
        tiers[level].append(response)
    ordered = [tuple(tiers[level]) for level in sorted(tiers)]
    said = {
        (better, worse, lower - upper)
        for upper, tier in enumerate(ordered)
        for lower in range(upper + 1, len(ordered))
        for better in tier
        for worse in ordered[lower]
    }
    return tuple(ordered) if len(said) == len(rows) and said == set(rows) else None


def _levels(rows: Sequence[Preferred]) -> dict[str, int] | None:
    """Give each response a level by the distances, in the order of the file; None where two rows disagree."""
    steps: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for better, worse, distance in rows:
        steps[better].append((worse, distance))
        steps[worse].append((better, -distance))
    found = {rows[0][0]: 0}
    waiting = [rows[0][0]]
    while waiting:
        response = waiting.pop()
        for other, distance in steps[response]:
            level = found[response] + distance
            if other not in found:
                found[other] = level
                waiting.append(other)
            elif found[other] != level:
                return None
    return {response: found[response] for response in steps if response in found}
