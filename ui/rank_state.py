"""Places, ties and keys of one ranking card, without Qt: every key press is a function from state to state.

A card shows K responses. Each has a place from 1 (best) to K, or none yet; equal places are ties, and gaps do not
count. Responses whose texts are the same (*twins*) always share a place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from workbench.records import BAD, GOOD

MOST_RESPONSES = 9
"""As many as there are digit keys for."""
LETTERS = "ABCDEFGHI"


@dataclass(frozen=True, slots=True)
class RankState:
    """One moment of a card. ``places[i]`` is the place of the response shown i-th; 0 while it has none."""

    ids: tuple[str, ...]
    places: tuple[int, ...]
    twins: tuple[tuple[int, ...], ...] = ()  # positions that share one text; groups of two or more only
    focus: int = 0
    trail: tuple[int, ...] = ()  # positions in the order in which they were placed, newest last
    touched: bool = False  # a person placed, tied or cleared something
    thumbs: tuple[str, ...] = ()  # what each is worth by itself: GOOD, BAD or ""; () while none has a thumb
    said: str = ""  # why the last key did nothing, for the hint line

    @classmethod
    def fresh(cls, ids: Sequence[str], texts: Sequence[str], places: Sequence[int] = ()) -> RankState:
        """Start a card; ``places`` prefills it (a correction of an earlier ranking).

        Raises ValueError if there are fewer than two responses or more than nine.
        """
        if not 2 <= len(ids) <= MOST_RESPONSES or len(texts) != len(ids):
            raise ValueError(f"a card holds 2 to {MOST_RESPONSES} responses, each with its text")
        prefilled = tuple(places) if places else (0,) * len(ids)
        trail = tuple(sorted((i for i, place in enumerate(prefilled) if place), key=lambda i: prefilled[i]))
        focus = next((i for i, place in enumerate(prefilled) if not place), 0)
        return cls(tuple(ids), prefilled, twins_of(texts), focus, trail)

    # ---- what can be read off -------------------------------------------------------------------------------

    @property
    def unplaced(self) -> tuple[int, ...]:
        """Positions without a place."""
        return tuple(i for i, place in enumerate(self.places) if not place)

    @property
    def complete(self) -> bool:
        """Every response has a place."""
        return 0 not in self.places

    @property
    def all_tied(self) -> bool:
        """Every response shares one place: nothing can be learned from such a card."""
        return self.complete and len(set(self.places)) == 1

    @property
    def only_twins(self) -> bool:
        """All texts are the same, so that a tie is the only honest ranking."""
        return any(len(group) == len(self.ids) for group in self.twins)

    def tiers(self) -> tuple[tuple[str, ...], ...]:
        """Return tiers of ids, best first, ties in the order shown. Unplaced responses are left out."""
        used = sorted({place for place in self.places if place})
        return tuple(tuple(self.ids[i] for i, own in enumerate(self.places) if own == place) for place in used)

    def shown_place(self, position: int) -> str:
        """What the badge of a card says: "2", "2=" for a tie, "" while unplaced. Gaps are closed."""
        place = self.places[position]
        if not place:
            return ""
        rank = 1 + sum(1 for other in self.places if 0 < other < place)
        return f"{rank}=" if self.places.count(place) > 1 else f"{rank}"

    def group_of(self, position: int) -> tuple[int, ...]:
        """The positions that carry the same text as this one, itself included."""
        return next((group for group in self.twins if position in group), (position,))

    def missing(self) -> str:
        """What keeps the card from being submitted, in one sentence; "" when nothing does."""
        left = self.unplaced
        if not left:
            return ""
        names = join_words([LETTERS[i] for i in left])
        return f"{names} {'has' if len(left) == 1 else 'have'} no place yet."

    # ---- acts -----------------------------------------------------------------------------------------------

    def place(self, position: int, place: int) -> RankState:
        """Put a response (and its twins) in a place and move on to the next one without a place."""
        if not 1 <= place <= len(self.ids):
            return replace(self, said=f"There are {len(self.ids)} responses: places go from 1 to {len(self.ids)}.")
        group = self.group_of(position)
        places = tuple(place if i in group else old for i, old in enumerate(self.places))
        trail = tuple(i for i in self.trail if i not in group) + tuple(i for i in group if i != position) + (position,)
        moved = replace(self, places=places, trail=trail, focus=position, touched=True, said="")
        return replace(moved, focus=moved._next_unplaced())

    def tie(self, position: int) -> RankState:
        """Give a response the place of the one that was placed before it."""
        group = self.group_of(position)
        before = next((i for i in reversed(self.trail) if i not in group), None)
        if before is None:
            return replace(self, said="Nothing to tie with yet: give one response a place first.")
        return self.place(position, self.places[before])

    def clear(self, position: int) -> RankState:
        """Take the place of a response (and of its twins) away."""
        group = self.group_of(position)
        if not self.places[position]:
            return replace(self, said=f"{LETTERS[position]} has no place to take away.")
        places = tuple(0 if i in group else old for i, old in enumerate(self.places))
        trail = tuple(i for i in self.trail if i not in group)
        return replace(self, places=places, trail=trail, focus=position, touched=True, said="")

    def thumb(self, position: int) -> str:
        """What a response is worth by itself: GOOD, BAD, or "" where nothing was said."""
        return self.thumbs[position] if self.thumbs else ""

    def with_thumb(self, position: int, thumb: str) -> RankState:
        """Give a response (and its twins) thumbs up or down; the thumb that it has already is taken away."""
        given = "" if self.thumb(position) == thumb else thumb
        group = self.group_of(position)
        thumbs = tuple(given if i in group else self.thumb(i) for i in range(len(self.ids)))
        return replace(self, thumbs=thumbs, focus=position, touched=True, said="")

    def focused(self, position: int) -> RankState:
        """Move the focus; it wraps around at both ends."""
        return replace(self, focus=position % len(self.ids), said="")

    def _next_unplaced(self) -> int:
        count = len(self.ids)
        ahead = ((self.focus + step) % count for step in range(1, count + 1))
        return next((i for i in ahead if not self.places[i]), self.focus)


class RankSheet:
    """A card with its own undo and redo: placements are taken back one by one, focus moves are not."""

    def __init__(self, state: RankState) -> None:
        self.state = state
        self._past: list[RankState] = []
        self._future: list[RankState] = []

    @property
    def can_undo(self) -> bool:
        """A placement of this card can be taken back."""
        return bool(self._past)

    @property
    def can_redo(self) -> bool:
        """A placement of this card was taken back and can return."""
        return bool(self._future)

    def press(self, key: str, columns: int = MOST_RESPONSES) -> bool:
        """Apply a key by its name: "1".."9", "=", "+", "-", "Backspace", the arrows, "Tab", "Backtab".

        Args:
            key: the name of the key.
            columns: how many cards stand in a row, for Up and Down.

        Returns:
            True when the key meant something here. Up and Down mean nothing where there is no such row.
        """
        state = self.state
        if key.isdigit() and key != "0":
            return self._act(state.place(state.focus, int(key)))
        if key in ("+", "-"):
            return self._act(state.with_thumb(state.focus, GOOD if key == "+" else BAD))
        if key == "=":
            return self._act(state.tie(state.focus))
        if key == "Backspace":
            return self._act(state.clear(state.focus))
        step = {"Left": -1, "Right": 1, "Tab": 1, "Backtab": -1}.get(key)
        if step is not None:
            self.state = state.focused(state.focus + step)
            return True
        row = {"Up": -columns, "Down": columns}.get(key)
        if row is None or not 0 <= state.focus + row < len(state.ids):
            return False
        self.state = state.focused(state.focus + row)
        return True

    def place(self, position: int, place: int) -> None:
        """A place button was clicked: the same as focusing and pressing the digit; again on its own place clears."""
        state = self.state.focused(position)
        again = state.places[position] == place
        self._act(state.clear(position) if again else state.place(position, place))

    def set_thumb(self, position: int, thumb: str) -> None:
        """A thumb was chosen from the menu: the same as its key."""
        self._act(self.state.with_thumb(position, thumb))

    def focus(self, position: int) -> None:
        """Move the focus to a card."""
        self.state = self.state.focused(position)

    def undo(self) -> bool:
        """Take the last placement back; False when there is none."""
        if not self._past:
            return False
        self._future.append(self.state)
        self.state = self._past.pop()
        return True

    def redo(self) -> bool:
        """Bring the last placement that was taken back; False when there is none."""
        if not self._future:
            return False
        self._past.append(self.state)
        self.state = self._future.pop()
        return True

    def _act(self, after: RankState) -> bool:
        if after.said:  # refused: nothing to take back
            self.state = after
            return True
        self._past.append(replace(self.state, said=""))
        self._future.clear()
        self.state = after
        return True


def twins_of(texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Group the positions of texts that read the same (white space at the ends aside)."""
    groups: dict[str, list[int]] = {}
    for position, text in enumerate(texts):
        groups.setdefault(text.strip(), []).append(position)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def join_words(words: Sequence[str]) -> str:
    """Join words for a sentence: "A", "A and B", "A, B and C"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
