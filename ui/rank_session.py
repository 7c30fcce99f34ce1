"""What a sitting at the ranking screen knows, without Qt: cards made from the store, time spent, and statistics."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from ui.rank_choice import choose, unjudged
from ui.rank_state import MOST_RESPONSES, RankSheet, RankState
from workbench.ids import new_id, now
from workbench.records import BAD, GOOD, Outcome, Prompt, Ranking, Response, ResponseFlag
from workbench.store import Store


@dataclass(frozen=True, slots=True)
class RankItem:
    """One card ready to be shown: a prompt and its responses, in the shuffled order of its ranking id."""

    ranking_id: str
    prompt: Prompt
    responses: tuple[Response, ...]
    places: tuple[int, ...] = ()  # prefilled by the ranking that is being corrected
    corrects: Ranking | None = None
    left_out: int = 0  # responses that wait to be judged too, beyond the nine that fit
    thumbs: tuple[str, ...] = ()  # prefilled likewise; () for none
    anchors: tuple[str, ...] = ()  # ids of those that the rater has judged before
    re_asks: Ranking | None = None  # the ranking that this card asks for again

    @property
    def ids(self) -> tuple[str, ...]:
        """Response ids in the order shown."""
        return tuple(one.id for one in self.responses)

    def same_as(self, other: RankItem) -> bool:
        """Whether another card asks for the same judgement."""
        return self.corrects == other.corrects and set(self.ids) == set(other.ids)

    def state(self) -> RankState:
        """Return the card's first state."""
        fresh = RankState.fresh(self.ids, [one.text for one in self.responses], self.places)
        return replace(fresh, thumbs=self.thumbs)


@dataclass(slots=True)
class Work:
    """A card in work: all that would be lost with it."""

    item: RankItem
    sheet: RankSheet
    flags: set[tuple[str, str]]  # (response id or "" for all, flag); thumbs are in the sheet
    note: str = ""
    seconds: float = 0.0
    warned: str = ""  # the doubt that Enter was answered with: pressed again, it is meant

    @classmethod
    def begin(cls, item: RankItem) -> Work:
        """Start a card; a correction starts from the flags and the note that there were."""
        corrects = item.corrects
        flags = {(one.response_id, one.flag) for one in corrects.flags if not _is_thumb(one)} if corrects else set()
        return cls(item, RankSheet(item.state()), flags, corrects.note if corrects else "")

    def doubt(self) -> str:
        """Why the card might not be meant as it is: "untouched", "tied", or "" when there is no doubt."""
        state, begun = self.sheet.state, Work.begin(self.item)
        if self.item.places and not state.touched and (self.flags, self.note) == (begun.flags, begun.note):
            return "untouched"
        return "tied" if state.all_tied and not state.only_twins else ""


def shuffled(ranking_id: str, ids: Iterable[str]) -> tuple[str, ...]:
    """Order ids by a hash with the ranking's id: nobody's habit, and the same whenever it is asked again.

    More ids change nothing in the order of the others.
    """
    return tuple(sorted(ids, key=lambda one: hashlib.sha256(f"{ranking_id}:{one}".encode()).digest()))


def load_item(
    store: Store,
    prompt_id: str,
    *,
    rater_id: str,
    ranking_id: str = "",
    corrects: Ranking | None = None,
    places_of: Ranking | None = None,
) -> RankItem | None:
    """Read one card. May run on any thread.

    Args:
        store: the project's store.
        prompt_id: whose card.
        rater_id: who judges: what waits for them is shown first (:func:`ui.rank_choice.choose`).
        ranking_id: the id that the ranking will have, which decides the order; a new one when empty.
        corrects: a ranking that the new one will supersede: its order and places are taken over.
        places_of: a ranking that was undone: its order and places are taken over, and nothing is superseded.

    Returns:
        The card; None when the prompt is gone or has fewer than two responses.
    """
    prompt = store.prompt(prompt_id)
    if prompt is None:
        return None
    by_id = {one.id: one for one in store.responses(prompt_id)}
    if len(by_id) < 2:
        return None
    judgements = store.rankings(prompt_id=prompt_id, rater_id=rater_id)
    ranking_id = ranking_id or new_id()
    earlier = corrects or places_of
    places, anchors = tuple[int, ...](), tuple[str, ...]()
    if earlier is None:
        choice = choose(tuple(by_id), judgements)
        anchors, left_out = choice.anchors, choice.left_out
        order = shuffled(ranking_id, (*choice.waiting, *anchors))
    else:
        ranked = [one for tier in earlier.tiers for one in tier]
        known = [one for one in (earlier.shown_order or tuple(ranked)) if one in by_id]
        others = [one for one in judgements if one.id != earlier.id]
        new = [one for one in unjudged(tuple(by_id), others) if one not in known]
        order = tuple((known + list(shuffled(ranking_id, new)))[:MOST_RESPONSES])
        left_out = len(known) + len(new) - len(order)
        place_of = {one: 1 + index for index, tier in enumerate(earlier.tiers) for one in tier}
        places = tuple(place_of.get(one, 0) for one in order)
    responses = tuple(by_id[one] for one in order)
    given = {one.response_id: one.flag for one in earlier.flags if _is_thumb(one)} if earlier else {}
    thumbs = tuple(given.get(one, "") for one in order) if given else ()
    return RankItem(ranking_id, prompt, responses, places, corrects, left_out, thumbs, anchors)


def judged(
    item: RankItem,
    state: RankState,
    *,
    rater_id: str,
    outcome: Outcome = "ranked",
    flags: Iterable[ResponseFlag] = (),
    note: str = "",
    seconds: float = 0.0,
    blind: bool = True,
) -> Ranking:
    """Make the record of one act of judging. The tiers of a card that was not ranked are empty; its thumbs stay."""
    thumbs = [ResponseFlag(id_, thumb) for id_, thumb in zip(state.ids, state.thumbs, strict=False) if thumb]
    return Ranking(
        id=item.ranking_id,
        prompt_id=item.prompt.id,
        rater_id=rater_id,
        tiers=state.tiers() if outcome == "ranked" else (),
        outcome=outcome,
        flags=tuple(sorted([*flags, *thumbs], key=lambda one: (one.response_id, one.flag))),
        note=note.strip(),
        seconds=round(seconds, 3),
        shown_order=item.ids,
        blind=blind,
        touched=state.touched,
        created_at=now(),
    )


def _is_thumb(one: ResponseFlag) -> bool:
    return bool(one.response_id) and one.flag in (GOOD, BAD)


class Stopwatch:
    """Seconds that a card was in front of a person: it stands still while the window is not active."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._spent = 0.0
        self._since: float | None = None

    @property
    def running(self) -> bool:
        """Time counts now."""
        return self._since is not None

    @property
    def seconds(self) -> float:
        """Seconds counted so far."""
        return self._spent + (self._clock() - self._since if self._since is not None else 0.0)

    def start(self) -> None:
        """Let time count; no change when it already does."""
        if self._since is None:
            self._since = self._clock()

    def pause(self) -> None:
        """Stop counting until the next start."""
        self._spent = self.seconds
        self._since = None

    def restart(self, spent: float = 0.0) -> None:
        """Begin from zero, or from what an unfinished card had; counting or not as before."""
        self._spent = spent
        if self._since is not None:
            self._since = self._clock()


@dataclass(slots=True)
class SessionStats:
    """How this sitting goes. A correction replaces the numbers of what it corrects; an undo removes them."""

    _seconds: dict[str, float] = field(default_factory=dict)  # by ranking id
    _tied: dict[str, bool] = field(default_factory=dict)

    def add(self, ranking: Ranking, corrects: Ranking | None = None) -> None:
        """Count a ranking that was committed; skipped and unrankable ones are not counted."""
        if corrects is not None:
            self.remove(corrects.id)
        if ranking.outcome == "ranked":
            self._seconds[ranking.id] = ranking.seconds
            self._tied[ranking.id] = any(len(tier) > 1 for tier in ranking.tiers)

    def remove(self, ranking_id: str) -> None:
        """Forget a ranking that was undone."""
        self._seconds.pop(ranking_id, None)
        self._tied.pop(ranking_id, None)

    @property
    def count(self) -> int:
        """Rankings of this sitting."""
        return len(self._seconds)

    @property
    def median_seconds(self) -> float:
        """Median seconds a ranking; 0 before the first."""
        return statistics.median(self._seconds.values()) if self._seconds else 0.0

    @property
    def ties(self) -> int:
        """Rankings of this sitting with at least one tie."""
        return sum(self._tied.values())

    def line(self) -> str:
        """Say it in one short line."""
        if not self.count:
            return "none yet this session"
        tied = f"{self.ties} with ties" if self.ties else "no ties"
        return f"{self.count} this session · median {seconds_text(self.median_seconds)} · {tied}"


def seconds_text(seconds: float) -> str:
    """Write a duration as people say it: "8 s", "1 min 20 s"."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def reveal_line(item: RankItem, names: dict[str, str], letters: Sequence[str]) -> str:
    """Say which model each response of a finished card was from."""
    parts = [f"{letters[i]} {origin(one, names)}" for i, one in enumerate(item.responses)]
    return "Last card: " + " · ".join(parts)


def origin(response: Response, names: dict[str, str]) -> str:
    """Name where a response came from: its model, its file, or a person."""
    if response.model_id:
        return names.get(response.model_id, "a model that was removed")
    return response.source or {"written": "written by hand"}.get(response.finish_reason, "imported")
