"""Reading a whole file: every row either imported or rejected with its line and the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.errors import UserError
from workbench.formats import demonstrations, preferences, prompts, ranked, thumbs
from workbench.formats.checks import Preferences, Repeats, numbered
from workbench.formats.detect import detect, explain
from workbench.formats.fields import Extras
from workbench.formats.layout import Layout, layout_of, rows
from workbench.formats.lines import Limits
from workbench.formats.parsed import (
    FORMATS,
    WHATS,
    ImportRow,
    Parsed,
    Rejected,
    RowError,
    What,
    excerpt,
    format_info,
)
from workbench.formats.ranked import RANKING_READERS
from workbench.formats.rankings import read_native
from workbench.formats.tiers import Ranked
from workbench.formats.values import kind
from workbench.records import Message

PROMPT_READERS = {"text": prompts.read_text, "csv": prompts.read_table, "jsonl": prompts.read_json}
DEMONSTRATION_READERS = {
    "alpaca": demonstrations.read_alpaca,
    "sharegpt": demonstrations.read_sharegpt,
    "messages": demonstrations.read_messages,
    "prompt-completion": demonstrations.read_prompt_completion,
    "kiln": demonstrations.read_kiln,
}
PREFERENCE_READERS = {
    "trl": preferences.read_trl,
    "implicit": preferences.read_implicit,
    "hh": preferences.read_hh,
    "sharegpt": preferences.read_sharegpt,
    "alpaca": preferences.read_alpaca,
    "h2o": preferences.read_h2o,
}
THUMB_READERS = {"trl": thumbs.read_trl, "sharegpt": thumbs.read_sharegpt, "alpaca": thumbs.read_alpaca}
_ALIASES = {"plain": "trl", "prompt-completion-plain": "prompt-completion"}
_ROW_READ = Callable[[int, Any, Extras], list[ImportRow]]
_TIES_HEAVY = 0.5  # share of the rankings, from
_TIES_SAID = 10  # rankings on
REJECTED_KEPT = 10_000
"""So many rejected rows are listed; the others are counted."""
_GIVEN_UP_AFTER = 100_000  # rejected rows, where not one in a hundred is good


def parse(
    path: Path | str,
    *,
    what: str = "auto",
    format: str = "auto",
    limit: int | None = None,
    limits: Limits | None = None,
) -> Parsed:
    """Read a file.

    Args:
        path: the file; gzip is told by its content.
        what: "auto" or one of :data:`WHATS`.
        format: "auto" or a name in :data:`FORMATS`.
        limit: stop after so many good rows (for a preview); None reads all.
        limits: bounds on row and file size.

    Raises:
        UserError: the file as a whole cannot be read, or it is not clear what it holds.
    """
    path = Path(path)
    chosen, name, layout = _settle(path, what, format, limits)
    parsed = Parsed(chosen, name, numbered_by="row" if layout in ("array", "objects") else "line")
    extras, repeats, circles = Extras(), Repeats(), Preferences()
    read = _reader(chosen, name)
    for row in rows(path, layout, limits):
        if isinstance(row, Rejected):
            _reject(parsed, path, row)
            continue
        try:
            found = read(row.line, row.value, extras)
        except RowError as error:
            _reject(parsed, path, Rejected(row.line, str(error), excerpt(row.start)))
            continue
        for one in found:
            repeats.first(one)
            if chosen == "preferences":
                circles.add(one)
            parsed.rows.append(one)
        if limit is not None and len(parsed.rows) >= limit:
            break
    parsed.warnings = [*extras.warnings(), *_across(parsed, repeats, circles, parsed.numbered_by)]
    if parsed.rejected_more:
        parsed.warnings.append(
            f"{parsed.rejected_more + REJECTED_KEPT:,} rows were rejected; the first {REJECTED_KEPT:,} are listed."
        )
    return parsed


def _reject(parsed: Parsed, path: Path, row: Rejected) -> None:
    """List or count a rejected row. Raises UserError where the file is plainly not what it is read as."""
    if len(parsed.rejected) < REJECTED_KEPT:
        parsed.rejected.append(row)
        return
    parsed.rejected_more += 1
    count = parsed.rejected_more + REJECTED_KEPT
    if count >= _GIVEN_UP_AFTER and len(parsed.rows) * 100 < count:
        first = parsed.rejected[0]
        raise UserError(
            f"The file {path.name} cannot be imported",
            f"of its first {count + len(parsed.rows):,} rows only {len(parsed.rows):,} can be read; the first other is "
            f"{parsed.numbered_by} {first.line}: {first.reason}",
            "mend the file, or say what it holds and in which format",
        )


def _settle(path: Path, what: str, name: str, limits: Limits | None) -> tuple[What, str, Layout]:
    """Decide what to read the file as."""
    if what != "auto" and what not in WHATS:
        raise UserError(f'there is nothing called "{what}" to import', "", f"choose one of {', '.join(WHATS)}")
    name = _ALIASES.get(name, name)
    if name != "auto":
        fitting = [one for one in WHATS if what in ("auto", one) and _can_import(one, name)]
        if not fitting:
            raise UserError(
                f'"{name}" is not a format to import{"" if what == "auto" else " " + what + " from"}',
                "",
                f"choose one of {', '.join(_importable(what))}",
            )
        layout = layout_of(path, limits)
        chosen = fitting[0] if len(fitting) == 1 else explain(path).what
        return (chosen if chosen in fitting else fitting[0]), name, _layout_for(name, layout)
    if what == "auto":
        detected, name = detect(path)
        return detected, name, layout_of(path, limits)
    found = explain(path, what)
    return found.what, found.format, _layout_for(found.format, layout_of(path, limits))


def _layout_for(name: str, layout: Layout) -> Layout:
    if name in ("text", "csv"):
        return "text" if name == "text" else "table"
    return "lines" if layout == "text" else layout


def _can_import(what: What, name: str) -> bool:
    info = format_info(what, name)
    return info is not None and info.can_import


def _importable(what: str) -> Iterable[str]:
    found = (info.name for one in WHATS if what in ("auto", one) for info in FORMATS[one] if info.can_import)
    return dict.fromkeys(found)


def _reader(what: What, name: str) -> _ROW_READ:
    if what == "prompts":
        return _prompt_reader(PROMPT_READERS[name])
    if what == "demonstrations":
        return _demonstration_reader(DEMONSTRATION_READERS[name], demonstrations.USED[name])
    if what == "preferences":
        return _preference_reader(PREFERENCE_READERS[name], preferences.USED[name])
    if what == "thumbs":
        return _thumb_reader(THUMB_READERS[name], thumbs.USED[name])
    return _read_native if name == "native" else _ranking_reader(RANKING_READERS[name], ranked.USED[name])


def _prompt_reader(read: Callable[[Any], Any]) -> _ROW_READ:
    def read_row(line: int, value: Any, extras: Extras) -> list[ImportRow]:
        messages = read(value)
        if not isinstance(value, dict):
            return [ImportRow(line, messages)]
        extras.rest(value, prompts.USED)
        return [_row(line, messages, value, extras)]

    return read_row


def _demonstration_reader(read: Callable[[dict[str, Any]], demonstrations.Shown], used: frozenset[str]) -> _ROW_READ:
    def read_row(line: int, value: Any, extras: Extras) -> list[ImportRow]:
        value = _object(value)
        messages, completion = read(value)
        extras.rest(value, used | {"author"})
        row = _row(line, messages, value, extras)
        return [replace(row, completion=completion, rater=extras.text(value, "author") or "")]

    return read_row


def _preference_reader(read: Callable[[dict[str, Any]], preferences.Preference], used: frozenset[str]) -> _ROW_READ:
    def read_row(line: int, value: Any, extras: Extras) -> list[ImportRow]:
        value = _object(value)
        messages, chosen, rejected, note = read(value)
        extras.rest(value, used)
        row = _judged_row(line, messages, value, extras)
        return [replace(row, chosen=chosen, rejected=rejected, tier_distance=extras.tier_distance(value), note=note)]

    return read_row


def _thumb_reader(read: Callable[[dict[str, Any]], thumbs.Judged], used: frozenset[str]) -> _ROW_READ:
    def read_row(line: int, value: Any, extras: Extras) -> list[ImportRow]:
        value = _object(value)
        messages, completion, desirable = read(value)
        extras.rest(value, used)
        return [replace(_judged_row(line, messages, value, extras), completion=completion, desirable=desirable)]

    return read_row


def _row(line: int, messages: tuple[Message, ...], value: dict[str, Any], extras: Extras) -> ImportRow:
    """A prompt with what a row of every kind may say of it."""
    return ImportRow(
        line, messages, tags=extras.tags(value), split=extras.split(value), source=extras.text(value, "source")
    )


def _judged_row(line: int, messages: tuple[Message, ...], value: dict[str, Any], extras: Extras) -> ImportRow:
    """The same with whose judgement it is, and of which ranking."""
    row = _row(line, messages, value, extras)
    return replace(row, rater=extras.text(value, "rater") or "", ranking_id=extras.text(value, "ranking_id") or "")


def _ranking_reader(read: Callable[[dict[str, Any]], list[Ranked]], used: frozenset[str]) -> _ROW_READ:
    def read_row(line: int, value: Any, extras: Extras) -> list[ImportRow]:
        value = _object(value)
        found = read(value)
        extras.rest(value, used)
        rows = [(one, _row(line, one.prompt, value, extras)) for one in found]
        return [replace(row, tiers=one.tiers, rater=one.rater, ranking_id=one.ranking_id) for one, row in rows]

    return read_row


def _read_native(line: int, value: Any, _: Extras) -> list[ImportRow]:
    native = read_native(value)
    row = ImportRow(
        line,
        native.prompt.messages,
        ranking=native,
        tags=native.prompt.tags,
        split=native.prompt.split,
        source=native.prompt.source,
        rater=native.rater.name,
    )
    return [row]


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RowError(f"is {kind(value)}, not an object")
    return value


def _across(parsed: Parsed, repeats: Repeats, circles: Preferences, word: str) -> list[str]:
    said: list[str] = []
    if repeats.lines:
        one = len(repeats.lines) == 1
        said.append(
            f"{len(repeats.lines)} {'row repeats' if one else 'rows repeat'} an earlier row "
            f"({numbered(word, repeats.lines)})."
        )
    if cyclic := circles.cyclic():
        said.append(
            f"For {len(cyclic)} {'prompt' if len(cyclic) == 1 else 'prompts'} the preferences go in a circle, such as "
            f"A over B and B over A ({numbered(word, cyclic)}). They are kept as they are."
        )
    inside = [row.line for row in parsed.rows if row.note == preferences.MID_WORD]
    if inside:
        said.append(
            f"In {len(inside)} {'row' if len(inside) == 1 else 'rows'} {preferences.MID_WORD} "
            f"({numbered(word, inside)}): is the prompt in a field of its own?"
        )
    tied = [row for row in parsed.rows if _has_tie(row)]
    if len(tied) >= _TIES_SAID and len(tied) > _TIES_HEAVY * len(parsed.rows):
        said.append(f"{len(tied)} of {len(parsed.rows)} rankings have ties; tied responses give no pairs.")
    return said


def _has_tie(row: ImportRow) -> bool:
    return any(len(tier) > 1 for tier in (row.ranking.ranking.tiers if row.ranking else row.tiers))
