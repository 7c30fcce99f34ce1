"""Prompts that say nearly the same, found by shared word pairs; exact ones are the store's ``find_duplicates``."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from workbench.records import Message, Prompt

ALIKE = 0.6
"""From this similarity on two prompts are said to be near duplicates."""
_WORD = re.compile(r"\w+")


def words_of(messages: Iterable[Message]) -> list[str]:
    """Words of a conversation, folded for comparison."""
    text = " ".join(one.content for one in messages)
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def similarity(first: Sequence[str], second: Sequence[str]) -> float:
    """Dice coefficient of the words and word pairs of two texts: 0 nothing shared, 1 the same words in order.

    Source: Dice, "Measures of the amount of ecologic association between species", 1945.
    """
    a, b = _shingles(first), _shingles(second)
    total = a.total() + b.total()
    return 2 * (a & b).total() / total if total else 0.0


def search_words(messages: Iterable[Message], most: int = 3) -> list[str]:
    """Pick the longest words of the last user turn: what a full-text search for candidates should look for."""
    last = next((one for one in reversed(list(messages)) if one.role == "user"), None)
    if last is None:
        return []
    words = dict.fromkeys(words_of([last]))
    return sorted(words, key=lambda word: (-len(word), word))[:most]


def near(messages: Sequence[Message], candidates: Iterable[Prompt], alike: float = ALIKE) -> list[tuple[float, Prompt]]:
    """Rank candidates that are alike, the nearest first."""
    words = words_of(messages)
    found = [(similarity(words, words_of(one.messages)), one) for one in candidates]
    return sorted((one for one in found if one[0] >= alike), key=lambda one: (-one[0], one[1].id))


def _shingles(words: Sequence[str]) -> Counter[tuple[str, ...]]:
    return Counter([(word,) for word in words] + list(itertools.pairwise(words)))
