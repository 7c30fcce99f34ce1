"""The arithmetic of comparing models, without Qt: votes, Wilson intervals, and the numbers under each column."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from workbench.comparisons import Asked, Comparison, Header
from workbench.statistics import wilson


@dataclass(frozen=True, slots=True)
class Cell:
    """One model's answer to one prompt, as far as it has come."""

    text: str = ""
    done: bool = False
    finish_reason: str = ""  # "stop", "length", "stopped" (by hand), "failed"
    token_count: int = 0
    seed: int = 0
    score: float | None = None  # in standard deviations of the reward model's calibration set
    raw_score: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of one column over the prompts that are whole."""

    answers: int
    mean_score: float | None
    mean_tokens: float
    share_ended: float


@dataclass(frozen=True, slots=True)
class WinRate:
    """Votes for one model: wins of votes that were decided, with a 95 % Wilson interval."""

    wins: int
    decided: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """Wins over decided votes; 0 before the first."""
        return self.wins / self.decided if self.decided else 0.0


@dataclass(slots=True)
class Ballot:
    """Blind votes over prompts: which column won each, or None for a tie. Voting again on a prompt replaces."""

    columns: int
    _votes: dict[str, int | None] = field(default_factory=dict)

    def vote(self, prompt_key: str, winner: int | None) -> None:
        """Count a vote; ``winner`` is the column of the model, not where it stood. Raises ValueError outside."""
        if winner is not None and not 0 <= winner < self.columns:
            raise ValueError(f"there is no column {winner}")
        self._votes[prompt_key] = winner

    def withdraw(self, prompt_key: str) -> None:
        """Forget the vote on a prompt."""
        self._votes.pop(prompt_key, None)

    def winner_of(self, prompt_key: str) -> int | None:
        """Return the winner of a prompt that was voted on, None for a tie. Raises KeyError if it was not."""
        return self._votes[prompt_key]

    def voted(self, prompt_key: str) -> bool:
        """There is a vote on the prompt."""
        return prompt_key in self._votes

    @property
    def ties(self) -> int:
        """Votes that chose nobody; they are outside of the win rates."""
        return sum(1 for winner in self._votes.values() if winner is None)

    @property
    def total(self) -> int:
        """All votes."""
        return len(self._votes)

    def rate(self, column: int) -> WinRate:
        """How often a model won where somebody did."""
        decided = self.total - self.ties
        wins = sum(1 for winner in self._votes.values() if winner == column)
        low, high = wilson(wins, decided)
        return WinRate(wins, decided, low, high)


@dataclass(slots=True)
class Board:
    """One comparison as the screen shows it: prompts, cells and votes."""

    header: Header
    prompts: tuple[Asked, ...]
    cells: dict[tuple[int, int], Cell]
    ballot: Ballot

    @classmethod
    def begin(cls, header: Header, prompts: Sequence[Asked]) -> Board:
        """Start with empty cells."""
        columns = len(header.model_ids)
        cells = {(row, column): Cell() for row in range(len(prompts)) for column in range(columns)}
        return cls(header, tuple(prompts), cells, Ballot(columns))

    @classmethod
    def restored(cls, found: Comparison) -> Board:
        """Rebuild from a file; answers that never came are marked as stopped."""
        board = cls.begin(found.header, found.prompts)
        for (row, column), _ in list(board.cells.items()):
            key = board.prompts[row].key
            answer, score = found.answers.get((key, column)), found.scores.get((key, column))
            cell = Cell(done=True, finish_reason="stopped")
            if answer is not None:
                cell = Cell(answer.text, True, answer.finish_reason, answer.token_count, answer.seed)
                cell = replace(cell, error=answer.error)
            if score is not None:
                shown = score.score if score.standardised is None else score.standardised
                cell = replace(cell, raw_score=score.score, score=shown)
            board.cells[row, column] = cell
        for key, vote in found.votes.items():
            board.ballot.vote(key, None if vote.winner < 0 else vote.winner)
        return board

    @property
    def columns(self) -> int:
        """How many models."""
        return len(self.header.model_ids)

    def whole(self, row: int) -> bool:
        """Every model has answered the prompt."""
        return all(self.cells[row, column].done for column in range(self.columns))

    def voted(self, row: int) -> bool:
        """There is a vote on the prompt."""
        return self.ballot.voted(self.prompts[row].key)

    def order(self, row: int) -> tuple[int, ...]:
        """Columns in the order shown: shuffled by prompt when the vote is blind."""
        if not self.header.blind:
            return tuple(range(self.columns))
        return blind_order(f"{self.header.id}:{self.prompts[row].key}", self.columns)

    def hidden(self, row: int) -> bool:
        """Names and scores are hidden: the vote is blind and not cast yet."""
        return self.header.blind and not self.voted(row)

    def next_to_vote(self, after: int) -> int:
        """Return the next prompt whose answers are whole and without a vote, -1 for none."""
        count = len(self.prompts)
        rows = ((after + step) % count for step in range(1, count + 1))
        return next((row for row in rows if self.whole(row) and not self.voted(row)), -1) if count else -1

    def summary(self, column: int) -> Summary:
        """The numbers of one model."""
        return summarise([self.cells[row, column] for row in range(len(self.prompts))])


def summarise(cells: Sequence[Cell]) -> Summary:
    """Compute the summary row of one column. Answers that failed or were stopped by hand are left out."""
    whole = [one for one in cells if one.done and one.finish_reason in ("stop", "length")]
    scores = [one.score for one in whole if one.score is not None]
    return Summary(
        answers=len(whole),
        mean_score=sum(scores) / len(scores) if scores else None,
        mean_tokens=sum(one.token_count for one in whole) / len(whole) if whole else 0.0,
        share_ended=sum(one.finish_reason == "stop" for one in whole) / len(whole) if whole else 0.0,
    )


def blind_order(key: str, columns: int) -> tuple[int, ...]:
    """Shuffle the columns of one prompt by a hash of its key: the same whenever it is shown again."""
    return tuple(sorted(range(columns), key=lambda one: hashlib.sha256(f"{key}:{one}".encode()).digest()))


def votes_needed(rate: WinRate) -> int:
    """How many more votes at this share until the interval leaves one half; 0 when it has, -1 when it never will.

    Args:
        rate: the win rate of one of two models.
    """
    if rate.decided and (rate.low > 0.5 or rate.high < 0.5):
        return 0
    if not rate.decided or rate.wins * 2 == rate.decided:
        return -1
    total = rate.decided
    while total < 100_000:
        total += max(1, total // 50)
        low, high = wilson(round(rate.share * total), total)
        if low > 0.5 or high < 0.5:
            return total - rate.decided
    return -1
