"""Labels out of a project into files that other programs read, and into our own that loses nothing."""

from __future__ import annotations

import contextlib
import gzip
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from workbench.errors import NothingToDo, UserError
from workbench.formats.conversation import checked_prompt, write_transcript
from workbench.formats.layout import suffixes
from workbench.formats.oasst import write_tree
from workbench.formats.parsed import FORMATS, WHATS, RowError, What, format_info
from workbench.formats.rankings import ranking_line
from workbench.jsonl import encode
from workbench.pairs import Which, current_pairs
from workbench.project import Project
from workbench.records import ForeignModel, Message, ModelRecord, Rater, Response, Split
from workbench.rows import PairRow, ThumbRow
from workbench.store import Store
from workbench.thumbs import current_thumbs

_T = TypeVar("_T")
_J = TypeVar("_J", PairRow, ThumbRow)
_CHUNK = 500
_FROM = {"system": "system", "user": "human", "assistant": "gpt"}
ONE_TURN = "a plain prompt has one user turn; this one has more, or a system turn"


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote. ``skipped`` counts rows that the format cannot hold, by reason."""

    rows: int
    path: Path
    skipped: dict[str, int] = field(default_factory=dict)
    cut_off: int = 0  # rows with a response that was cut off, which the format cannot say

    @property
    def caution(self) -> str:
        """What other programs will misunderstand, as the end of a sentence; "" for nothing."""
        if not self.cut_off:
            return ""
        have = "has" if self.cut_off == 1 else "have"
        return (
            f"{self.cut_off:,} of {self.rows:,} {have} a response that was cut off, which other programs read as whole"
        )


@dataclass(slots=True)
class _Tally:
    """What is said of rows besides that they were written: left out, by reason, or written with a cut-off response."""

    skipped: Counter[str] = field(default_factory=Counter)
    cut_off: int = 0


def export_file(
    project: Project,
    out_path: Path | str,
    *,
    what: str,
    format: str = "auto",
    split: Split | None = None,
    which: Which = "all",
    overwrite: bool = True,
) -> ExportReport:
    """Write labels to a file as one act: the file is whole or not there.

    Args:
        project: from where. Archived prompts stay out; of demonstrations the final ones are written.
        out_path: the file; ``.json`` makes one JSON array, anything else JSON lines, and ``.gz`` packs it.
        what: prompts, demonstrations, preferences, thumbs or rankings.
        format: "auto" for the first of :data:`FORMATS`, or its name.
        split: only that split; None for all.
        which: for preferences, every ordered pair across tiers, or the best tier against the rest.
        overwrite: replace a file that is there; whoever passes True has asked the user.

    Raises:
        UserError: unknown format, nowhere to write, a place that is not for exports, disk full.
    """
    out_path = Path(out_path)
    chosen, name = _settle(what, format)
    if split not in (None, "train", "held-out"):
        raise UserError("nothing was exported", f'there is no split "{split}"', "use train or held-out")
    _refuse_place(project, out_path, overwrite=overwrite)
    project.store.wait()
    tally = _Tally()
    rows = _ROWS[chosen](project, name, split, which, tally)
    count = _write(out_path, rows, f"there are no {chosen} to export", tally)
    return ExportReport(count, out_path, dict(tally.skipped), tally.cut_off)


def _settle(what: str, name: str) -> tuple[What, str]:
    chosen = next((one for one in WHATS if one == what), None)
    if chosen is None:
        raise UserError(f'there is nothing called "{what}" to export', "", f"choose one of {', '.join(WHATS)}")
    names = [info.name for info in FORMATS[chosen] if info.can_export]
    info = format_info(chosen, name)
    if name != "auto" and (info is None or not info.can_export):
        raise UserError(f'{what} cannot be exported as "{name}"', "", f"choose one of {', '.join(names)}")
    return chosen, names[0] if name == "auto" else name


def _refuse_place(project: Project, out_path: Path, *, overwrite: bool) -> None:
    """Refuse the project's own folder by whatever name, and anything there that a new file must not replace."""
    nothing = f"nothing was exported to {out_path}"
    try:
        place = out_path.parent.resolve() / out_path.name
        mode = place.lstat().st_mode
    except FileNotFoundError:
        mode = None
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise UserError(nothing, getattr(error, "strerror", "") or str(error), "choose another place") from error
    home = project.path.resolve()
    if home == place or home in place.parents:
        raise UserError(nothing, "it lies in the project's own folder", "choose a place outside the project")
    if mode is None:
        return
    if stat.S_ISDIR(mode):
        raise UserError(nothing, "it is a folder", "name a file in it")
    if not stat.S_ISREG(mode):
        what = "a link" if stat.S_ISLNK(mode) else "no regular file"
        raise UserError(nothing, f"it is {what}, and an export makes a new file", "name another file")
    if not overwrite:
        raise UserError(nothing, "that file is there already", "name another file, or allow it to be overwritten")


def _write(out_path: Path, rows: Iterator[Any], nothing: str, tally: _Tally) -> int:
    """Write rows beside the file and put it in its place when it is whole. Raises NothingToDo without any row."""
    suffix, packed = suffixes(out_path)
    temporary = out_path.with_name(f".{out_path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            if packed:
                with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as stream:
                    count = _write_rows(stream, rows, as_list=suffix == ".json")
            else:
                count = _write_rows(file, rows, as_list=suffix == ".json")
            if not count:
                raise NothingToDo(nothing, "; ".join(f"{many} left out: {why}" for why, many in tally.skipped.items()))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(out_path)
    except OSError as error:
        raise UserError(
            f"the file {out_path.name} was not written",
            error.strerror or str(error),
            "choose another folder or make room",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return count


def _write_rows(out: IO[bytes] | gzip.GzipFile, rows: Iterator[Any], *, as_list: bool) -> int:
    count = 0
    for count, row in enumerate(rows, 1):
        if as_list:
            out.write(b"[\n" if count == 1 else b",\n")
        out.write(encode(row))
        if not as_list:
            out.write(b"\n")
    if as_list and count:
        out.write(b"\n]\n")
    return count


def _chunks(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


# ---- rows --------------------------------------------------------------------------------------------------


def _prompts(project: Project, _: str, split: Split | None, __: Which, ___: _Tally) -> Iterator[dict[str, Any]]:
    offset = 0
    while prompts := project.store.prompts(split=split, limit=_CHUNK, offset=offset):
        offset += len(prompts)
        for prompt in prompts:
            yield {
                "messages": _messages(prompt.messages),
                "tags": prompt.tags,
                "split": prompt.split,
                "source": prompt.source,
                "id": prompt.id,
            }


def _demonstrations(
    project: Project, name: str, split: Split | None, _: Which, tally: _Tally
) -> Iterator[dict[str, Any]]:
    drafts = len(project.store.demonstrations(status="draft", split=split))
    if drafts:
        tally.skipped["it is a draft"] += drafts
    shape = DEMONSTRATION_SHAPES[name]
    for chunk in _chunks(project.store.demonstrations(status="final", split=split)):
        prompts = project.store.prompts_by_id(one.prompt_id for one in chunk)
        for demonstration in chunk:
            prompt = prompts[demonstration.prompt_id]
            try:
                row = shape(prompt.messages, demonstration.text)
            except RowError as reason:
                tally.skipped[str(reason)] += 1
                continue
            yield {
                **row,
                "author": demonstration.author,
                "tags": prompt.tags,
                "split": prompt.split,
                "source": prompt.source,
                "prompt_id": prompt.id,
            }


def _preferences(
    project: Project, name: str, split: Split | None, which: Which, tally: _Tally
) -> Iterator[dict[str, Any]]:
    pairs = current_pairs(project.store, split, which)
    tally.skipped.update(pairs.dropped)
    for pair, row in _judged(project, pairs.rows, PREFERENCE_SHAPES[name], tally):
        tally.cut_off += not (pair.chosen_ended and pair.rejected_ended)
        yield row | {"tier_distance": pair.tier_distance}


def _thumbs(project: Project, name: str, split: Split | None, _: Which, tally: _Tally) -> Iterator[dict[str, Any]]:
    thumbs = current_thumbs(project.store, split)
    tally.skipped.update(thumbs.dropped)
    for thumb, row in _judged(project, thumbs.rows, THUMB_SHAPES[name], tally):
        tally.cut_off += not thumb.ended
        yield row


def _judged(
    project: Project, rows: Sequence[_J], shape: Callable[[_J], dict[str, Any]], tally: _Tally
) -> Iterator[tuple[_J, dict[str, Any]]]:
    """Judgements in the shape of a format, with whose they are and of which prompt; others are counted."""
    raters = {rater.id: rater.name for rater in project.store.raters()}
    for chunk in _chunks(rows):
        prompts = project.store.prompts_by_id(one.group for one in chunk)
        for one in chunk:
            try:
                shown = shape(one)
            except RowError as reason:
                tally.skipped[str(reason)] += 1
                continue
            prompt = prompts[one.group]
            yield (
                one,
                {
                    **shown,
                    "rater": raters.get(one.rater_id, one.rater_id),
                    "ranking_id": one.ranking_id,
                    "prompt_id": one.group,
                    "tags": prompt.tags,
                    "split": prompt.split,
                    "source": prompt.source,
                },
            )


def _rankings(project: Project, name: str, split: Split | None, _: Which, tally: _Tally) -> Iterator[Any]:
    return _native_rankings(project, split) if name == "native" else _trees(project, split, tally)


def _trees(project: Project, split: Split | None, tally: _Tally) -> Iterator[dict[str, Any]]:
    """Every ranking that holds, as a tree of OpenAssistant; what has no order is counted."""
    store = project.store
    raters = {rater.id: rater.name for rater in store.raters()}
    models = _models(store)
    for chunk in _chunks(store.rankings(split=split)):
        prompts = store.prompts_by_id(ranking.prompt_id for ranking in chunk)
        for ranking in chunk:
            responses = {one.id: one for one in store.responses(ranking.prompt_id)}
            rater = raters.get(ranking.rater_id, ranking.rater_id)
            try:
                row = write_tree(ranking, prompts[ranking.prompt_id], responses, rater, models)
            except RowError as reason:
                tally.skipped[str(reason)] += 1
                continue
            tally.cut_off += not all(responses[id_].ended for tier in ranking.tiers for id_ in tier)
            yield row


def _models(store: Store) -> dict[str, ModelRecord | ForeignModel]:
    models: dict[str, ModelRecord | ForeignModel] = dict(store.foreign_models())
    models.update({model.id: model for model in store.models()})
    return models


def _native_rankings(project: Project, split: Split | None) -> Iterator[Any]:
    """Every ranking with its history, in the order of their making.

    What was corrected comes before its correction; what was asked for again comes after the ranking that it repeats.
    """
    store = project.store
    raters = {rater.id: rater for rater in store.raters()}
    models = _models(store)
    successors = store.superseded_by()
    responses: dict[str, list[Response]] = {}
    for chunk in _chunks(store.rankings(include_superseded=True, split=split)):
        prompts = store.prompts_by_id(ranking.prompt_id for ranking in chunk)
        responses.clear()
        for ranking in chunk:
            if ranking.prompt_id not in responses:
                responses[ranking.prompt_id] = store.responses(ranking.prompt_id)
            yield ranking_line(
                ranking,
                prompts[ranking.prompt_id],
                responses[ranking.prompt_id],
                raters.get(ranking.rater_id) or Rater(ranking.rater_id, ranking.rater_id),
                models,
                successors.get(ranking.id, ""),
            )


_ROWS: dict[What, Callable[[Project, str, Split | None, Which, _Tally], Iterator[Any]]] = {
    "prompts": _prompts,
    "demonstrations": _demonstrations,
    "preferences": _preferences,
    "thumbs": _thumbs,
    "rankings": _rankings,
}


# ---- shapes ------------------------------------------------------------------------------------------------


def _messages(messages: tuple[Message, ...], *more: Message) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in (*messages, *more)]


def _turns(messages: tuple[Message, ...], *more: Message) -> list[dict[str, str]]:
    return [{"from": _FROM[message.role], "value": message.content} for message in (*messages, *more)]


def _answer(text: str) -> Message:
    return Message("assistant", text)


def _only_turn(messages: tuple[Message, ...]) -> str:
    if len(messages) != 1 or messages[0].role != "user":
        raise RowError(ONE_TURN)
    return messages[0].content


def _alpaca(messages: tuple[Message, ...], text: str) -> dict[str, Any]:
    checked_prompt(messages)
    system = messages[0].content if messages[0].role == "system" else ""
    turns = [message.content for message in messages if message.role != "system"]
    history = [list(pair) for pair in zip(turns[:-1:2], turns[1::2], strict=True)]
    return {"instruction": turns[-1], "input": "", "output": text, "system": system, "history": history}


DEMONSTRATION_SHAPES: dict[str, Callable[[tuple[Message, ...], str], dict[str, Any]]] = {
    "messages": lambda messages, text: {"messages": _messages(messages, _answer(text))},
    "alpaca": _alpaca,
    "sharegpt": lambda messages, text: {"conversations": _turns(messages, _answer(text))},
    "prompt-completion": lambda messages, text: {
        "prompt": _messages(messages),
        "completion": _messages((), _answer(text)),
    },
    "prompt-completion-plain": lambda messages, text: {"prompt": _only_turn(messages), "completion": text},
}
PREFERENCE_SHAPES: dict[str, Callable[[PairRow], dict[str, Any]]] = {
    "trl": lambda pair: {
        "prompt": _messages(pair.prompt),
        "chosen": _messages((), _answer(pair.chosen)),
        "rejected": _messages((), _answer(pair.rejected)),
    },
    "plain": lambda pair: {"prompt": _only_turn(pair.prompt), "chosen": pair.chosen, "rejected": pair.rejected},
    "hh": lambda pair: {
        "chosen": write_transcript(pair.prompt, pair.chosen),
        "rejected": write_transcript(pair.prompt, pair.rejected),
    },
    "sharegpt": lambda pair: {
        "conversations": _turns(pair.prompt),
        "chosen": _turns((), _answer(pair.chosen))[0],
        "rejected": _turns((), _answer(pair.rejected))[0],
    },
}
THUMB_SHAPES: dict[str, Callable[[ThumbRow], dict[str, Any]]] = {
    "trl": lambda row: {
        "prompt": _messages(row.prompt),
        "completion": _messages((), _answer(row.completion)),
        "label": row.desirable,
    },
    "sharegpt": lambda row: {"conversations": _turns(row.prompt, _answer(row.completion)), "kto_tag": row.desirable},
    "alpaca": lambda row: _alpaca(row.prompt, row.completion) | {"kto_tag": row.desirable},
}
