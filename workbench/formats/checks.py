"""What can only be seen across rows: repeated rows, and preferences that contradict each other."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

from workbench.formats.parsed import ImportRow
from workbench.records import Message

_SHOWN = 5


def digest(*parts: str) -> bytes:
    """A short key of some texts, unambiguous about where each ends."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        found.update(len(raw).to_bytes(8, "big") + raw)
    return found.digest()


def prompt_key(messages: Iterable[Message]) -> bytes:
    """A key of a conversation: equal only for the same roles and texts."""
    return digest(*(part for message in messages for part in (message.role, message.content)))


def row_key(row: ImportRow) -> bytes:
    """A key of all that a row says."""
    if row.ranking is not None:
        return digest(row.ranking.ranking.id)
    if row.tiers:
        return prompt_key(row.prompt) + digest(row.rater, *(digest(*tier).hex() for tier in row.tiers))
    return prompt_key(row.prompt) + digest(row.completion, row.chosen, row.rejected, row.rater, str(row.desirable))


def numbered(word: str, numbers: list[int]) -> str:
    """Name some lines: "lines 3, 8, 9 and 4 more"."""
    shown = ", ".join(str(number) for number in numbers[:_SHOWN])
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return f"{word}{'s' if len(numbers) > 1 else ''} {shown}{more}"


class Repeats:
    """Finds rows that say what an earlier row of the file says."""

    def __init__(self) -> None:
        self._first: dict[bytes, int] = {}
        self.lines: list[int] = []

    def first(self, row: ImportRow) -> int:
        """Return the line that says the same, or 0."""
        line = self._first.setdefault(row_key(row), row.line)
        if line == row.line:
            return 0
        self.lines.append(row.line)
        return line


class Preferences:
    """Finds cycles: A over B over C over A, and A over B with B over A."""

    def __init__(self) -> None:
        self._edges: dict[bytes, dict[bytes, set[bytes]]] = defaultdict(lambda: defaultdict(set))
        self._lines: dict[bytes, int] = {}

    def add(self, row: ImportRow) -> None:
        """Take up one preference."""
        prompt = prompt_key(row.prompt)
        self._edges[prompt][digest(row.chosen)].add(digest(row.rejected))
        self._lines.setdefault(prompt, row.line)

    def cyclic(self) -> list[int]:
        """Return, for every prompt whose preferences go in a circle, the line where it first appears."""
        return [self._lines[prompt] for prompt, edges in self._edges.items() if len(edges) > 1 and _has_cycle(edges)]


def _has_cycle(edges: dict[bytes, set[bytes]]) -> bool:
    """Take away what nothing is better than, again and again; what stays goes in a circle."""
    incoming: dict[bytes, int] = defaultdict(int)
    for worse in edges.values():
        for node in worse:
            incoming[node] += 1
    free = [node for node in edges if not incoming[node]]
    left = len(edges.keys() | incoming.keys())
    while free:
        left -= 1
        for node in edges.get(free.pop(), ()):
            incoming[node] -= 1
            if not incoming[node]:
                free.append(node)
    return left > 0
