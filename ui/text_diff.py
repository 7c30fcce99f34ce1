"""Which words of one text another text does not have, without Qt; capped, since difflib is quadratic at its worst."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

MOST_WORDS = 2_000
"""Longer texts are not compared: 2,000 words against 2,000 take about 0.1 s, and the time grows with the square."""

_WORD = re.compile(r"\w+|[^\w\s]")


def different_spans(base: str, other: str, most_words: int = MOST_WORDS) -> list[tuple[int, int]] | None:
    """Find the stretches of ``other`` that ``base`` does not have, word by word.

    Returns:
        Start and end offsets into ``other``, in order, neighbours joined; None when a text is too long to compare.
    """
    base_words = _WORD.findall(base)
    found = list(_WORD.finditer(other))
    if len(base_words) > most_words or len(found) > most_words:
        return None
    matcher = SequenceMatcher(None, base_words, [one.group() for one in found], autojunk=False)
    spans = []
    for tag, _, _, start, end in matcher.get_opcodes():
        if tag in ("insert", "replace"):
            spans.append((found[start].start(), found[end - 1].end()))
    return spans
