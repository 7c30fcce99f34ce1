"""Records to database rows and back: text made storable, content hashes, and the sha256 of every label row."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import apsw
import msgspec

from workbench.errors import UserError
from workbench.records import (
    Demonstration,
    ForeignModel,
    Message,
    ModelRecord,
    Prompt,
    Ranking,
    Rater,
    Response,
    ResponseFlag,
    RunRecord,
    Sampling,
)
from workbench.turns import prompt_fault

Row = dict[str, Any]
Read = tuple[Any, ...]

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

COLUMNS: dict[str, tuple[str, ...]] = {
    "prompts": (
        "id",
        "messages",
        "text",
        "tags",
        "source",
        "split",
        "archived",
        "content_hash",
        "batch_id",
        "created_at",
    ),
    "demonstrations": ("id", "prompt_id", "text", "author", "status", "revision", "batch_id", "created_at"),
    "responses": (
        "id",
        "prompt_id",
        "text",
        "model_id",
        "sampling",
        "finish_reason",
        "token_count",
        "source",
        "batch_id",
        "created_at",
    ),
    "rankings": (
        "id",
        "prompt_id",
        "rater_id",
        "tiers",
        "outcome",
        "flags",
        "note",
        "seconds",
        "shown_order",
        "blind",
        "touched",
        "supersedes",
        "pairs",
        "batch_id",
        "created_at",
    ),
    "raters": ("id", "name", "kind", "principles", "created_at"),
    "models": (
        "id",
        "name",
        "role",
        "path",
        "base_id",
        "parent_id",
        "run_id",
        "step",
        "source",
        "sha256",
        "note",
        "created_at",
    ),
    "runs": (
        "id",
        "method",
        "name",
        "state",
        "start_model_id",
        "reward_model_id",
        "detail",
        "created_at",
        "ended_at",
    ),
}
"""The columns of each table in their fixed order; for label tables (and raters) sha256 follows, over exactly these."""

LABEL_TABLES = ("prompts", "responses", "demonstrations", "rankings")
"""Recorded for undo, parents first."""

HASHED_TABLES = ("raters", *LABEL_TABLES)


@dataclass
class Cleaner:
    """Makes text storable and counts what it had to replace, so that the change can say so.

    SQLite and JSON have no lone surrogates, and a NUL ends a text for many readers: each becomes U+FFFD, visibly.
    Everything else is kept as it is.
    """

    replaced: int = 0

    def __call__(self, text: str) -> str:
        """Return the text as it can be stored."""
        if text.isascii() and "\x00" not in text:  # almost always
            return text
        cleaned, count = _UNSTORABLE.subn(REPLACEMENT, text)
        self.replaced += count
        return cleaned

    def notes(self) -> tuple[str, ...]:
        """What to tell the user."""
        if not self.replaced:
            return ()
        many = "1 character" if self.replaced == 1 else f"{self.replaced} characters"
        return (f"{many} that cannot be stored (NUL or half a surrogate pair) became {REPLACEMENT}",)


def content_hash(messages: Iterable[Message]) -> str:
    """Hash a conversation's normalised text: NFC, line ends as LF, no space around a turn. Equal means duplicate."""
    digest = hashlib.sha256()
    for message in messages:
        text = unicodedata.normalize("NFC", message.content).replace("\r\n", "\n").replace("\r", "\n").strip()
        digest.update(f"{message.role}\x1e{text}\x1f".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def values_hash(values: Iterable[Any]) -> str:
    """The sha256 of a row's values in the order of ``COLUMNS``, each with its type."""
    return hashlib.sha256(msgspec.json.encode(list(values))).hexdigest()


def to_json(value: Any) -> str:
    """Encode a value as JSON text."""
    return msgspec.json.encode(value).decode()


# ---- rows from records -------------------------------------------------------------------------------------


def prompt_row(prompt: Prompt, clean: Cleaner, *, now: str, batch_id: str = "") -> Row:
    """Check a new prompt and make its row."""
    _need_id(prompt.id, "prompt")
    if not any(message.content.strip() for message in prompt.messages):
        raise UserError("a prompt needs text", "all of its turns are empty", "write something for the model to answer")
    for message in prompt.messages:
        if message.role not in ("system", "user", "assistant"):
            raise UserError(
                "a prompt cannot be stored",
                f"a turn has the unknown role {message.role!r}",
                "use system, user, assistant",
            )
    if fault := prompt_fault(prompt.messages):
        raise UserError("a prompt cannot be stored", fault, "let user and assistant alternate, with a user turn last")
    if prompt.split not in ("train", "held-out"):
        raise UserError("a prompt cannot be stored", f"its split is {prompt.split!r}", "use train or held-out")
    messages = tuple(Message(m.role, clean(m.content)) for m in prompt.messages)
    return {
        "id": prompt.id,
        "messages": to_json(messages),
        "text": "\n".join(m.content for m in messages),
        "tags": tags_json(prompt.tags, clean),
        "source": clean(prompt.source),
        "split": prompt.split,
        "archived": 0,
        "content_hash": content_hash(messages),
        "batch_id": batch_id,
        "created_at": prompt.created_at or now,
    }


def tags_json(tags: Iterable[str], clean: Cleaner) -> str:
    """Encode tags without doubles or empty ones, in the order given."""
    kept = dict.fromkeys(" ".join(clean(tag).split()) for tag in tags)
    kept.pop("", None)
    return to_json(tuple(kept))


def demonstration_row(d: Demonstration, clean: Cleaner, *, now: str, batch_id: str = "") -> Row:
    """Check a demonstration and make its row; the revision is the caller's to fill."""
    _need_id(d.id, "demonstration")
    if d.status not in ("draft", "final"):
        raise UserError("a demonstration cannot be stored", f"its status is {d.status!r}", "use draft or final")
    text = clean(d.text)
    if d.status == "final" and not text.strip():
        raise UserError("an empty demonstration cannot be final", "it has no text", "write the answer, or keep a draft")
    return {
        "id": d.id,
        "prompt_id": d.prompt_id,
        "text": text,
        "author": clean(d.author),
        "status": d.status,
        "revision": d.revision,
        "batch_id": batch_id,
        "created_at": d.created_at or now,
    }


def response_row(r: Response, clean: Cleaner, *, now: str, batch_id: str = "") -> Row:
    """Check a response and make its row."""
    _need_id(r.id, "response")
    return {
        "id": r.id,
        "prompt_id": r.prompt_id,
        "text": clean(r.text),
        "model_id": r.model_id,
        "sampling": "" if r.sampling is None else to_json(r.sampling),
        "finish_reason": r.finish_reason,
        "token_count": r.token_count,
        "source": clean(r.source),
        "batch_id": batch_id,
        "created_at": r.created_at or now,
    }


def ranking_row(r: Ranking, clean: Cleaner, *, now: str, pairs: int, batch_id: str = "") -> Row:
    """Make a ranking's row (the caller has checked it against the prompt's responses)."""
    _need_id(r.id, "ranking")
    return {
        "id": r.id,
        "prompt_id": r.prompt_id,
        "rater_id": r.rater_id,
        "tiers": to_json(r.tiers),
        "outcome": r.outcome,
        "flags": to_json(tuple(ResponseFlag(f.response_id, clean(f.flag)) for f in r.flags)),
        "note": clean(r.note),
        "seconds": float(r.seconds),
        "shown_order": to_json(r.shown_order),
        "blind": int(r.blind),
        "touched": int(r.touched),
        "supersedes": r.supersedes or None,
        "pairs": pairs,
        "batch_id": batch_id,
        "created_at": r.created_at or now,
    }


def rater_row(r: Rater, clean: Cleaner, *, now: str) -> Row:
    """Check a rater and make its row."""
    _need_id(r.id, "rater")
    name = clean(r.name).strip()
    if not name:
        raise UserError("a rater needs a name", "every label says whose it is", "give a name")
    return {
        "id": r.id,
        "name": name,
        "kind": r.kind,
        "principles": clean(r.principles),
        "created_at": r.created_at or now,
    }


def model_row(m: ModelRecord, clean: Cleaner, *, now: str) -> Row:
    """Make a model's row."""
    _need_id(m.id, "model")
    row = {name: getattr(m, name) for name in COLUMNS["models"]}
    return {**_cleaned(row, clean), "created_at": m.created_at or now}


def run_row(r: RunRecord, clean: Cleaner, *, now: str) -> Row:
    """Make a run's row."""
    _need_id(r.id, "run")
    row = {name: getattr(r, name) for name in COLUMNS["runs"]}
    return {**_cleaned(row, clean), "created_at": r.created_at or now}


def insert(db: apsw.Connection, table: str, row: Row) -> None:
    """Insert a row, with its sha256 where the table has one.

    OR FAIL, since the whole act is rolled back anyway: without it SQLite keeps a journal of every statement, and the
    search index is written out after each prompt of an import.
    """
    names = COLUMNS[table]
    values = [row[name] for name in names]
    if table in HASHED_TABLES:
        names, values = (*names, "sha256"), [*values, values_hash(values)]
    db.execute(f"INSERT OR FAIL INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})", values)


def save_foreign_model(db: apsw.Connection, model: ForeignModel, clean: Cleaner) -> None:
    """Keep what is known of a model of another project; what was known of it before stays."""
    kept = ForeignModel(clean(model.id), clean(model.name), clean(model.sha256))
    db.execute("INSERT OR IGNORE INTO meta (key, value) VALUES (?, ?)", (FOREIGN_MODEL + kept.id, to_json(kept)))


def rehash(db: apsw.Connection, table: str, seq: int) -> None:
    """Bring a row's sha256 up to date after an intended change of its columns."""
    values = db.execute(f"SELECT {', '.join(COLUMNS[table])} FROM {table} WHERE seq = ?", (seq,)).get
    db.execute(f"UPDATE {table} SET sha256 = ? WHERE seq = ?", (values_hash(values), seq))


def _need_id(id_: str, what: str) -> None:
    if not id_ or _UNSTORABLE.search(id_) or (":" in id_ and what in ("ranking", "response")):  # see PairRow.id
        raise UserError(f"a {what} cannot be stored", f"its id is {id_!r}", "use workbench.ids.new_id()")


def _cleaned(row: Row, clean: Cleaner) -> Row:
    return {name: clean(value) if isinstance(value, str) else value for name, value in row.items()}


# ---- records from rows -------------------------------------------------------------------------------------

PROMPT = "p.id, p.messages, p.tags, p.source, p.split, p.created_at"
DEMONSTRATION = "d.id, d.prompt_id, d.text, d.author, d.status, d.revision, d.created_at"
RESPONSE = "r.id, r.prompt_id, r.text, r.model_id, r.sampling, r.finish_reason, r.token_count, r.source, r.created_at"
RANKING = (
    "k.id, k.prompt_id, k.rater_id, k.tiers, k.outcome, k.flags, k.note, k.seconds, k.shown_order, k.blind, "
    "k.touched, ifnull(k.supersedes, ''), k.created_at"
)
RATER = "id, name, kind, principles, created_at"

FOREIGN_MODEL = "foreign-model:"
"""Begins the keys of ``meta`` whose values are models of other projects."""

_messages = msgspec.json.Decoder(tuple[Message, ...])
_strings = msgspec.json.Decoder(tuple[str, ...])
_tiers = msgspec.json.Decoder(tuple[tuple[str, ...], ...])
_flags = msgspec.json.Decoder(tuple[ResponseFlag, ...])
_sampling = msgspec.json.Decoder(Sampling)
_foreign_model = msgspec.json.Decoder(ForeignModel)


def read_prompt(row: Read) -> Prompt:
    """Make a prompt of the columns of ``PROMPT``."""
    id_, messages, tags, source, split, created_at = row
    return Prompt(id_, _messages.decode(messages), _strings.decode(tags), source, split, created_at)


def read_demonstration(row: Read) -> Demonstration:
    """Make a demonstration of the columns of ``DEMONSTRATION``."""
    return Demonstration(*row)


def read_response(row: Read) -> Response:
    """Make a response of the columns of ``RESPONSE``."""
    id_, prompt_id, text, model_id, sampling, *rest = row
    return Response(id_, prompt_id, text, model_id, _sampling.decode(sampling) if sampling else None, *rest)


def read_ranking(row: Read) -> Ranking:
    """Make a ranking of the columns of ``RANKING``."""
    id_, prompt_id, rater_id, tiers, outcome, flags, note, seconds, shown, blind, touched, supersedes, created = row
    return Ranking(
        id_,
        prompt_id,
        rater_id,
        _tiers.decode(tiers),
        outcome,
        _flags.decode(flags),
        note,
        seconds,
        _strings.decode(shown),
        bool(blind),
        bool(touched),
        supersedes,
        created,
    )


def read_tiers(tiers: str) -> tuple[tuple[str, ...], ...]:
    """Decode the tiers of a ranking's row."""
    return _tiers.decode(tiers)


def read_foreign_model(value: str) -> ForeignModel:
    """Decode what ``meta`` says of a model of another project."""
    return _foreign_model.decode(value)


def read_rater(row: Read) -> Rater:
    """Make a rater of the columns of ``RATER``."""
    return Rater(*row)


def read_model(row: Read) -> ModelRecord:
    """Make a model of ``COLUMNS['models']``."""
    return ModelRecord(*row)


def read_run(row: Read) -> RunRecord:
    """Make a run of ``COLUMNS['runs']``."""
    return RunRecord(*row)
