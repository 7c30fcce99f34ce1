"""Encoded preferences, shared by the reward model and DPO: what enters a batch, and how a batch is cut.

The pairs of one ranking share their responses, so they stay together: K responses give up to K(K-1)/2 pairs, yet only
K sequences pass through the model (Ouyang et al. 2022, section 3.5: apart, each response would be trained on K-1 times
an epoch, and the reward model overfits).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from engine.adapters import Adapters
from engine.base_model import LoadedBase
from engine.batching import most_tokens
from engine.masking import Example, pair_examples
from engine.packing import tokens_passed
from engine.session import Session
from engine.trainee import refuse_empty, report_fit
from workbench.rows import PairRow

Reason = str
"""Why a pair is left out, "" for none."""


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A preference in token ids."""

    id: str
    unit: str  # its ranking
    chosen: Example
    rejected: Example
    tier_distance: int = 1  # 0: a tie, neither side is better
    group: str = ""  # its prompt

    @property
    def sides(self) -> tuple[Example, Example]:
        """Chosen, rejected."""
        return self.chosen, self.rejected

    @property
    def length(self) -> int:
        """Tokens of the longer side."""
        return max(len(self.chosen.input_ids), len(self.rejected.input_ids))

    @property
    def length_difference(self) -> int:
        """Tokens that the chosen side has more than the rejected one."""
        return len(self.chosen.input_ids) - len(self.rejected.input_ids)


def encode_pairs(
    session: Session,
    adapters: Adapters,
    name: str,
    limit: int,
    unusable: Callable[[Example, Example], Reason],
) -> list[EncodedPair]:
    """Encode a data file ("train" or "heldout") within ``limit`` tokens; what is left out is said, by reason.

    Raises UserError when nothing is left to train on.
    """
    rows = cast(list[PairRow], session.rows(name))
    pairs, dropped = [], dict[Reason, int]()
    for row in rows:
        ended = row.chosen_ended, row.rejected_ended
        chosen, rejected = pair_examples(
            adapters.base.tokenizer, row.prompt, row.chosen, row.rejected, limit, ended=ended
        )
        reason = unusable(chosen, rejected)
        if reason:
            dropped[reason] = dropped.get(reason, 0) + 1
        else:
            unit = row.ranking_id or row.id
            pairs.append(EncodedPair(row.id, unit, chosen, rejected, row.tier_distance, row.group or unit))
    what = "pairs" if name == "train" else "held-out pairs"
    sides = list(dict.fromkeys(side for one in pairs for side in (one.chosen, one.rejected)))
    report_fit(session, what, len(rows), dropped, sides, limit)
    if name == "train" and not pairs:
        refuse_empty(what, len(rows), limit)
    return pairs


def ranking_weights(pairs: Sequence[EncodedPair]) -> dict[str, float]:
    """How much each pair of a ranking counts in a step of these P pairs of R rankings, by its ranking: ``P / (R m)``.

    With m pairs of a ranking in the step, ``sum_i w_i l_i / P`` is the mean over rankings of the mean over their pairs
    (Ouyang et al. 2022, eq. 1, divides a prompt's loss by its K choose 2 pairs): a ranking of 36 pairs weighs as one of
    one pair. The weights have a mean of 1, and are 1 where every ranking has as many pairs.
    """
    sizes = Counter(one.unit for one in pairs)
    return {unit: len(pairs) / (len(sizes) * size) for unit, size in sizes.items()}


def unique_sides(pairs: Sequence[EncodedPair]) -> tuple[list[Example], list[int]]:
    """The different responses of some pairs, and where each side is among them: chosen half, then rejected half."""
    place: dict[Example, int] = {}
    where = [place.setdefault(side, len(place)) for side in _sides(pairs)]
    return list(place), where


def whole_rankings(
    pairs: Sequence[EncodedPair], micro_batch: int, tokens: int | None = None, *, packed: bool = False
) -> list[Sequence[EncodedPair]]:
    """Cut a batch into micro-batches with rankings whole where they fit.

    A micro-batch has at most ``2 * micro_batch`` sequences, and ``tokens`` that pass, padding included, unless one
    pair has more. ``packed`` sequences have no padding, and share their prompt.
    """

    def fits(sides: set[Example]) -> bool:
        if len(sides) > 2 * micro_batch:
            return False
        return tokens is None or tokens_passed(list(sides), packed=packed) <= tokens

    parts: list[Sequence[EncodedPair]] = []
    part: list[EncodedPair] = []
    held: set[Example] = set()
    for _, one_ranking in itertools.groupby(pairs, key=lambda pair: pair.unit):
        ranking = list(one_ranking)
        whole = fits(held | set(_sides(ranking)))
        for index, pair in enumerate(ranking):
            sides = {pair.chosen, pair.rejected}
            if part and (not fits(held | sides) or (index == 0 and not whole)):
                parts.append(part)
                part, held = [], set()
            part.append(pair)
            held |= sides
    return [*parts, part] if part else parts


def micro_batches(base: LoadedBase) -> Callable[[Sequence[EncodedPair], int], list[Sequence[EncodedPair]]]:
    """How a batch of pairs is cut for a base; the same for policy and reference."""
    tokens = most_tokens(base.device)
    return lambda pairs, micro_batch: whole_rankings(pairs, micro_batch, tokens, packed=base.packs)


def _sides(pairs: Sequence[EncodedPair]) -> list[Example]:
    return [one.chosen for one in pairs] + [one.rejected for one in pairs]
