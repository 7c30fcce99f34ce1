"""What a file holds: told from its first rows, with the reason, and with what else it could be when unsure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import UserError
from workbench.formats import prompts
from workbench.formats.conversation import is_transcript, is_turns
from workbench.formats.demonstrations import ANSWERS
from workbench.formats.layout import LAYOUTS, Layout, Row, layout_of, rows
from workbench.formats.parsed import WHATS, Rejected, What, format_info
from workbench.formats.preferences import H2O_CHOSEN, H2O_REJECTED
from workbench.formats.ranked import could_be
from workbench.formats.thumbs import label_of
from workbench.formats.values import kind

SAMPLE_ROWS = 100
_SCANNED_ROWS = 2000
_SURE = 0.8  # of the sampled rows have one shape
Shape = tuple[What, str]
_THUMBS = {"alpaca": "alpaca", "sharegpt": "sharegpt"}
_HALVES = frozenset({"chosen", "rejected", *H2O_REJECTED})
_ASSISTANTS = frozenset({"assistant", "gpt", "chatgpt", "model", "bot"})


@dataclass(frozen=True, slots=True)
class Candidate:
    """One thing the file could be, and why."""

    what: What
    format: str
    why: str

    @property
    def title(self) -> str:
        """For a list to choose from."""
        info = format_info(self.what, self.format)
        return f"{self.what}: {info.title if info else self.format}"


@dataclass(frozen=True, slots=True)
class Detection:
    """What a file holds. Unless ``sure``, the researcher chooses among ``could_be``, the likeliest first."""

    what: What
    format: str
    why: str
    sure: bool
    could_be: tuple[Candidate, ...]


def detect(path: Path) -> tuple[What, str]:
    """Tell what a file holds and in which format. Raises UserError, naming what it could be, when unsure."""
    found = explain(path)
    if not found.sure:
        choices = "; or ".join(f"{one.title} ({one.why})" for one in found.could_be)
        raise UserError(
            f"it is not clear what {Path(path).name} holds", f"it could be {choices}", "say which it is and try again"
        )
    return found.what, found.format


def explain(path: Path, what: str = "auto") -> Detection:
    """Tell what a file holds and why, from its first rows.

    Args:
        path: the file.
        what: "auto", or what it must hold; then only formats of that are considered.

    Raises:
        UserError: the file cannot be read, or nothing in it looks like something to import.
    """
    path = Path(path)
    if what != "auto" and what not in WHATS:
        raise UserError(f'there is nothing called "{what}" to import', "", f"choose one of {', '.join(WHATS)}")
    layout = layout_of(path)
    if layout == "text":
        return _plain_text(path, what)
    sample, first_fault = _sample(path, layout)
    votes: Counter[Shape] = Counter()
    reasons: dict[Shape, str] = {}
    for value in sample:
        for what_, format_, why in shapes(value, layout, what):
            if what in ("auto", what_):
                votes[what_, format_] += 1
                reasons.setdefault((what_, format_), why)
                break
    if not votes:
        raise _unknown(path, what, layout, sample, first_fault)
    ranked = votes.most_common()
    could_be = tuple(Candidate(*shape, _share(reasons[shape], count, len(sample))) for shape, count in ranked)
    sure = len(ranked) == 1 or ranked[0][1] >= _SURE * sum(votes.values())
    best = could_be[0]
    return Detection(best.what, best.format, f"{LAYOUTS[layout]}; {best.why}", sure, could_be)


def shapes(value: Any, layout: Layout, what: str = "auto") -> Iterator[tuple[What, str, str]]:
    """Yield what one row could be, the likeliest first, each with the reason.

    A row with chosen but not rejected is half a preference: it is a prompt only for one who asks for prompts.
    """
    plain = "csv" if layout == "table" else "jsonl"
    if isinstance(value, str):
        yield "prompts", plain, "the rows are texts"
        return
    if not isinstance(value, dict):
        return
    keys = value.keys()
    if str(value.get("format", "")).startswith("tastemaker-ranking") or {"tiers", "responses", "rater"} <= keys:
        yield "rankings", "native", "the rows are Tastemaker's own rankings"
    elif found := list(could_be(value)):
        yield from (("rankings", *one) for one in found)
        return
    elif preference := _preference(value):
        yield "preferences", *preference
    elif not _HALVES & keys:
        shown = list(_demonstration(value, plain))
        label = label_of(value)
        for what_, format_, why in shown if label else ():
            if what_ == "demonstrations" and format_ != "kiln":
                yield "thumbs", _THUMBS.get(format_, "trl"), f'{why} beside "{label}", which judges it'
        yield from shown
    elif what == "auto":
        return
    name = next((name for name in (*prompts.COLUMNS, "messages", "conversations") if value.get(name)), None)
    if name is not None:
        yield "prompts", plain, f'the rows have "{name}"'


def _preference(value: dict[str, Any]) -> tuple[str, str] | None:
    """The format of a preference, with the reason; None for a row that lacks one of its sides."""
    if not {"chosen", "rejected"} <= value.keys():
        chosen, rejected = (next((one for one in names if one in value), "") for names in (H2O_CHOSEN, H2O_REJECTED))
        return ("h2o", f'the rows have "{chosen}" and "{rejected}"') if chosen and rejected else None
    both = 'the rows have "chosen" and "rejected"'
    turns = next((name for name in ("conversations", "messages") if name in value), None)
    if turns:
        return "sharegpt", f'{both} beside "{turns}"'
    if "instruction" in value:
        return "alpaca", f'{both} beside "instruction"'
    if is_transcript(value.get("prompt") or value["chosen"]):
        return "hh", f'{both}, which are dialogues marked "Human:" and "Assistant:"'
    if "prompt" in value:
        return "trl", f'{both} beside "prompt"'
    return "implicit", f"{both} without a prompt: what they share is the prompt"


def _demonstration(value: dict[str, Any], plain: str) -> Iterator[tuple[What, str, str]]:
    for name, format_ in (("conversations", "sharegpt"), ("messages", "messages")):
        turns = value.get(name)
        if isinstance(turns, list) and is_turns(turns):
            role = turns[-1].get("role", turns[-1].get("from"))
            if isinstance(role, str) and role.lower() in _ASSISTANTS:
                yield "demonstrations", format_, f'the rows have "{name}" that end with an answer'
            else:
                yield "prompts", plain, f'the rows have "{name}" that end without an answer'
                yield "demonstrations", format_, f'the rows have "{name}"'
            return
    answer = next((name for name in ANSWERS if name in value), None)
    if answer is None:
        return
    prompt = next((name for name in ("instruction", "prompt") if name in value), None)
    if prompt is None:
        if {"input", "output"} <= value.keys():
            yield "demonstrations", "kiln", 'the rows have "input" and "output"'
        return
    format_ = "alpaca" if prompt == "instruction" else "prompt-completion"
    if not value[answer]:
        yield "prompts", plain, f'the rows have "{prompt}" and an empty "{answer}"'
    yield "demonstrations", format_, f'the rows have "{prompt}" and "{answer}"'


def _plain_text(path: Path, what: str) -> Detection:
    if what not in ("auto", "prompts"):
        raise UserError(
            f"the file {path.name} holds no {what}", "it is plain text", "choose a JSON, JSON lines or CSV file"
        )
    why = "plain text: every line is a prompt"
    found = (Candidate("prompts", "text", why), Candidate("prompts", "csv", "a table with one column"))
    head = next((row.value for row in rows(path, "text") if isinstance(row, Row)), "")
    if str(head).strip().strip('"').lower() in prompts.COLUMNS:
        why = f'a table whose only column is "{str(head).strip()}"'
        return Detection("prompts", "csv", why, True, (Candidate("prompts", "csv", why), found[0]))
    return Detection("prompts", "text", why, True, found[:1])


def _sample(path: Path, layout: Layout) -> tuple[list[Any], Rejected | None]:
    sample: list[Any] = []
    fault: Rejected | None = None
    for count, row in enumerate(rows(path, layout), 1):
        if isinstance(row, Row):
            sample.append(row.value)
        else:
            fault = fault or row
        if len(sample) == SAMPLE_ROWS or count == _SCANNED_ROWS:
            break
    return sample, fault


def _share(why: str, count: int, total: int) -> str:
    return why if count == total else f"{why} in {count} of the first {total}"


def _unknown(path: Path, what: str, layout: Layout, sample: list[Any], fault: Rejected | None) -> UserError:
    remedy = "see the formats in the help, or say what it is"
    if not sample and fault is None:
        return UserError(f"the file {path.name} cannot be imported", "it has no rows", "choose another file")
    if not sample and fault is not None:
        row = "row" if layout in ("array", "objects") else "line"
        return UserError(
            f"the file {path.name} cannot be imported", f"{row} {fault.line}: {fault.reason}", "mend the file"
        )
    found = next((value for value in sample if isinstance(value, dict)), None)
    if found is None:
        cause = f"its first row is {kind(sample[0])}, and rows must be objects" + (
            " or texts" if what in ("auto", "prompts") else ""
        )
        return UserError(f"the file {path.name} cannot be imported", cause, remedy)
    keys = ", ".join(f'"{str(key)[:40]}"' for key in list(found)[:12])
    cause = f"its rows have {keys}" + (
        ", but not what " + what + " need" if what != "auto" else ", which no format has"
    )
    if len({"chosen", "rejected"} & found.keys()) == 1:
        cause = f"its rows have {keys}, but not both chosen and rejected"
    return UserError(f"the file {path.name} cannot be imported", cause, remedy)
