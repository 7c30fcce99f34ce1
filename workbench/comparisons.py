"""Comparisons of models as files: what each answered, and every blind vote, durable the moment it is cast.

``comparisons/ID.jsonl`` in the project folder: a header, then answers, scores and votes in the order in which they
came. The file alone shows the comparison again; a later line about the same thing replaces an earlier one.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from pathlib import Path

import msgspec

from workbench.errors import UserError
from workbench.ids import new_id, now
from workbench.jsonl import encode
from workbench.records import Message, Sampling

FOLDER = "comparisons"


class _Line(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    pass


class Header(_Line, frozen=True, kw_only=True, tag="comparison"):
    """What is compared; the first line."""

    id: str
    created_at: str
    model_ids: tuple[str, ...]
    model_names: tuple[str, ...]
    reward_id: str = ""
    reward_name: str = ""
    rater_id: str = ""
    sampling: Sampling = Sampling()
    quantisation: str = "bf16"
    blind: bool = True
    version: int = 1


class Asked(_Line, frozen=True, kw_only=True, tag="prompt"):
    """A prompt that all models answer. ``prompt_id`` is "" for one that was only typed here."""

    key: str
    messages: tuple[Message, ...]
    prompt_id: str = ""


class Answered(_Line, frozen=True, kw_only=True, tag="answer"):
    """One model's whole answer."""

    key: str
    column: int
    text: str
    finish_reason: str
    token_count: int = 0
    seed: int = 0
    error: str = ""


class Scored(_Line, frozen=True, kw_only=True, tag="score"):
    """What the reward model gives an answer: raw, and in standard deviations of its calibration set."""

    key: str
    column: int
    score: float
    standardised: float | None = None


class Voted(_Line, frozen=True, kw_only=True, tag="vote"):
    """A vote: the column of the best answer, -1 for a tie, -2 when a vote is withdrawn."""

    key: str
    winner: int
    shown_order: tuple[int, ...] = ()
    blind: bool = True
    at: str = ""


TIE, WITHDRAWN = -1, -2
AnyLine = Header | Asked | Answered | Scored | Voted


class ComparisonLog:
    """Writes one comparison. ``add`` may be called on the window's thread; ``flush`` on a worker's."""

    def __init__(self, project: Path, header: Header) -> None:
        self.path = project / FOLDER / f"{header.id}.jsonl"
        self._waiting: deque[AnyLine] = deque([header])
        self._lock = threading.Lock()

    @classmethod
    def reopen(cls, project: Path, header: Header) -> ComparisonLog:
        """Go on with a comparison that is on disk."""
        log = cls(project, header)
        log._waiting.clear()
        return log

    @property
    def waiting(self) -> int:
        """Lines that are not on disk yet."""
        return len(self._waiting)

    def add(self, *lines: AnyLine) -> None:
        """Queue lines; they are on disk after the next :meth:`flush`."""
        self._waiting.extend(lines)

    def flush(self) -> None:
        """Write what waits, in order, and fsync. Raises UserError; what was not written waits on."""
        with self._lock:
            lines = list(self._waiting)
            if not lines:
                return
            try:
                self.path.parent.mkdir(mode=0o700, exist_ok=True)
                with open(self.path, "ab", opener=_private) as out:
                    _drop_torn_line(self.path)
                    out.write(b"".join(encode(line) + b"\n" for line in lines))
                    out.flush()
                    os.fsync(out.fileno())
            except OSError as error:
                raise UserError(
                    "the comparison was not saved", error.strerror or str(error), "free some space, then vote on"
                ) from error
            for _ in lines:
                self._waiting.popleft()


class Comparison(msgspec.Struct, kw_only=True):
    """A comparison read back."""

    header: Header
    prompts: list[Asked] = []
    answers: dict[tuple[str, int], Answered] = {}
    scores: dict[tuple[str, int], Scored] = {}
    votes: dict[str, Voted] = {}


def new_header(models: list[tuple[str, str]], **what: object) -> Header:
    """Make a header for models given as (id, name)."""
    return Header(
        id=new_id(),
        created_at=now(),
        model_ids=tuple(id_ for id_, _ in models),
        model_names=tuple(name for _, name in models),
        **what,  # type: ignore[arg-type]
    )


def read(path: Path) -> Comparison:
    """Read a comparison; a torn or unknown line is left out. Raises UserError when its header cannot be read."""
    found: Comparison | None = None
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path.name} cannot be read", error.strerror or str(error)) from error
    for line in raw.splitlines():
        try:
            one = msgspec.json.decode(line, type=AnyLine)
        except (msgspec.DecodeError, msgspec.ValidationError):
            continue
        if found is None:
            if isinstance(one, Header):
                found = Comparison(header=one)
        elif isinstance(one, Asked):
            found.prompts.append(one)
        elif isinstance(one, Answered):
            found.answers[one.key, one.column] = one
        elif isinstance(one, Scored):
            found.scores[one.key, one.column] = one
        elif isinstance(one, Voted):
            found.votes.pop(one.key, None)
            if one.winner != WITHDRAWN:
                found.votes[one.key] = one
    if found is None:
        raise UserError(f"{path.name} is not a comparison", "its first line is damaged", "compare the models again")
    return found


def listed(project: Path) -> list[Comparison]:
    """Read all comparisons of a project, newest first; ones that cannot be read are left out."""
    found = []
    for path in sorted((project / FOLDER).glob("*.jsonl"), reverse=True):
        try:
            found.append(read(path))
        except UserError:
            continue
    return found


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _drop_torn_line(path: Path) -> None:
    """Cut off a line that a crash left half-written, so that the next one begins on a line of its own."""
    raw_size = path.stat().st_size
    if not raw_size:
        return
    with path.open("rb+") as file:
        file.seek(raw_size - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
