"""Which episodes of a rollout make which mini-batch of its update: fixed by seed, step and epoch.

In each, episodes lie by length, so that micro-batches hold rows of like length, and the responses to one prompt lie
together, so that they can share its forward pass.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from engine.ppo_models import Episode


def mini_batches(rows: int, count: int) -> list[range]:
    """Cut rows into equal runs, one per mini-batch."""
    size = -(-rows // max(1, count))
    return [range(start, min(start + size, rows)) for start in range(0, rows, size)]


def longest_group_first(episodes: Sequence[Episode], rows: Sequence[int]) -> list[int]:
    """Order the episodes of a mini-batch, by number, by length, the responses to one prompt together."""
    longest: dict[int, int] = {}
    for row in rows:
        one = episodes[row]
        longest[one.group] = max(one.tokens, longest.get(one.group, 0))

    def place(row: int) -> tuple[int, int, int]:
        one = episodes[row]
        return -longest[one.group], one.group, -one.tokens

    return sorted(rows, key=place)


def in_order(minis: Sequence[range], seed: int, step: int, epoch: int) -> list[range]:
    """The mini-batches of a rollout in the order in which the first epoch of its update takes them."""
    return random.Random(f"{seed}/minis/{step}/{epoch}").sample(minis, len(minis))


def of_epoch(
    episodes: Sequence[Episode], minis: Sequence[range], seed: int, step: int, epoch: int
) -> Sequence[Sequence[int]]:
    """The mini-batches of an epoch (from 0) of an update, by the numbers of their episodes, in the order of the update.

    The first epoch has those of the rollout, since the passes over its first one were kept; every later one deals the
    prompts out anew (N+ and TRL: every epoch permutes the rollout). The responses to one prompt lie beside one
    another; where a mini-batch is no multiple of their number, its edge parts them, and the prompt passes twice.
    """
    if epoch == 0 or len(minis) == 1:
        return in_order(minis, seed, step, epoch)
    prompts: dict[int, list[int]] = {}
    for row, one in enumerate(episodes):
        prompts.setdefault(one.group, []).append(row)
    groups = list(prompts.values())
    random.Random(f"{seed}/minis/{step}/{epoch}").shuffle(groups)
    rows = [row for group in groups for row in group]
    return [longest_group_first(episodes, rows[mini.start : mini.stop]) for mini in minis]
