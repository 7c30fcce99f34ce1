"""The questions that views ask of a project's database."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import apsw

from workbench import store_rows as rows
from workbench import store_waiting
from workbench.records import (
    Counts,
    Demonstration,
    ForeignModel,
    Message,
    ModelRecord,
    Prompt,
    Ranking,
    Rater,
    Response,
    RunRecord,
    Split,
)

Need = Literal["demonstration", "draft", "final", "responses"]
_ASKED_FOR = "prompts_with_responses"  # of Counts: it depends on who asks
TALLIES = tuple(field.name for field in dataclasses.fields(Counts) if field.type == "int" and field.name != _ASKED_FOR)

_NEEDS: dict[str, str] = {
    "demonstration": "s.demonstration <> 'final'",
    "draft": "s.demonstration = 'draft'",
    "final": "s.demonstration = 'final'",
    "responses": "s.responses < 2",
}
_NO_WORD_BREAKS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
)
_TWIN = "EXISTS (SELECT 1 FROM prompts AS h WHERE h.content_hash = p.content_hash AND h.split = 'held-out')"


def counts(db: apsw.Connection, rater_id: str) -> Counts:
    """Read the tallies that triggers keep: the time does not grow with the project."""
    tally: tuple[int, ...] = db.execute(f"SELECT {', '.join(TALLIES)} FROM tallies").get
    return Counts(
        **dict(zip(TALLIES, tally, strict=True)),
        prompts_with_responses=store_waiting.count(db, rater_id),
        models=dict(_strings_to_ints(db, "SELECT role, count(*) FROM models GROUP BY role")),
        runs=dict(_strings_to_ints(db, "SELECT state, count(*) FROM runs GROUP BY state")),
    )


def prompts(
    db: apsw.Connection, search: str, tag: str, split: Split | None, need: Need | None, limit: int, offset: int
) -> list[Prompt]:
    """See :meth:`Store.prompts`."""
    where, values = ["s.archived = 0"], list[Any]()
    clean = rows.Cleaner()
    if search.strip():
        condition, value = _search(clean(search))
        where.append(condition)
        values.append(value)
    if tag:
        where.append("s.seq IN (SELECT prompt_seq FROM prompt_tags WHERE tag = ?)")
        values.append(clean(tag))
    if split is not None:
        where.append("s.split = ?")
        values.append(split)
    if need is not None:
        where.append(_NEEDS[need])
    found = db.execute(
        f"SELECT {rows.PROMPT} FROM prompt_state AS s JOIN prompts AS p ON p.seq = s.seq "
        f"WHERE {' AND '.join(where)} ORDER BY s.seq LIMIT ? OFFSET ?",
        [*values, limit, offset],
    )
    return [rows.read_prompt(row) for row in found]


def prompts_by_id(db: apsw.Connection, ids: Iterable[str]) -> dict[str, Prompt]:
    """See :meth:`Store.prompts_by_id`."""
    found = (rows.read_prompt(row) for row in _by_id(db, f"SELECT {rows.PROMPT} FROM prompts AS p WHERE p.id = ?", ids))
    return {prompt.id: prompt for prompt in found}


def demonstration_states(db: apsw.Connection, ids: Iterable[str]) -> dict[str, str]:
    """See :meth:`Store.demonstration_states`."""
    found = _by_id(db, "SELECT id, demonstration FROM prompt_state WHERE id = ?", ids)
    return {str(id_): str(state) for id_, state in found}


def live_prompts(db: apsw.Connection, ids: Iterable[str]) -> frozenset[str]:
    """See :meth:`Store.live_prompts`."""
    return frozenset(
        str(id_) for (id_,) in _by_id(db, "SELECT id FROM prompt_state WHERE archived = 0 AND id = ?", ids)
    )


def tags(db: apsw.Connection) -> list[tuple[str, int]]:
    """See :meth:`Store.tags`."""
    return _strings_to_ints(
        db,
        "SELECT tag, count(*) FROM prompt_tags JOIN prompt_state AS s ON s.seq = prompt_seq WHERE s.archived = 0 "
        "GROUP BY tag ORDER BY count(*) DESC, tag",
    )


def demonstrations(db: apsw.Connection, status: str | None, split: Split | None) -> list[Demonstration]:
    """See :meth:`Store.demonstrations`."""
    where, values = ["s.archived = 0", "s.demonstration <> ''"], list[Any]()
    if status is not None:
        where.append("s.demonstration = ?")
        values.append(status)
    if split is not None:
        where.append("s.split = ?")
        values.append(split)
    if split == "train":
        where.append(f"NOT {_TWIN}")
    found = db.execute(
        f"SELECT {rows.DEMONSTRATION} FROM prompt_state AS s JOIN prompts AS p ON p.seq = s.seq "
        "JOIN demonstrations AS d ON d.seq = (SELECT seq FROM demonstrations WHERE prompt_id = s.id "
        f"ORDER BY revision DESC LIMIT 1) WHERE {' AND '.join(where)} ORDER BY s.seq",
        values,
    )
    return [rows.read_demonstration(row) for row in found]


def demonstration_history(db: apsw.Connection, prompt_id: str) -> list[Demonstration]:
    """See :meth:`Store.demonstration_history`."""
    found = db.execute(
        f"SELECT {rows.DEMONSTRATION} FROM demonstrations AS d WHERE prompt_id = ? ORDER BY revision DESC", (prompt_id,)
    )
    return [rows.read_demonstration(row) for row in found]


def responses(db: apsw.Connection, prompt_id: str) -> list[Response]:
    """See :meth:`Store.responses`."""
    found = db.execute(f"SELECT {rows.RESPONSE} FROM responses AS r WHERE prompt_id = ? ORDER BY seq", (prompt_id,))
    return [rows.read_response(row) for row in found]


def responses_by_id(db: apsw.Connection, ids: Iterable[str]) -> dict[str, Response]:
    """See :meth:`Store.responses_by_id`."""
    found = (
        rows.read_response(row) for row in _by_id(db, f"SELECT {rows.RESPONSE} FROM responses AS r WHERE r.id = ?", ids)
    )
    return {response.id: response for response in found}


def rankings(
    db: apsw.Connection, prompt_id: str, rater_id: str, include_superseded: bool, split: Split | None
) -> list[Ranking]:
    """See :meth:`Store.rankings`."""
    where, values = ["s.archived = 0"], list[Any]()
    if not include_superseded:
        where.append("k.superseded_by IS NULL")
    for column, value in (("k.prompt_id", prompt_id), ("k.rater_id", rater_id), ("s.split", split)):
        if value:
            where.append(f"{column} = ?")
            values.append(value)
    found = db.execute(
        f"SELECT {rows.RANKING} FROM rankings AS k JOIN prompt_state AS s ON s.id = k.prompt_id "
        f"WHERE {' AND '.join(where)} ORDER BY k.seq",
        values,
    )
    return [rows.read_ranking(row) for row in found]


def superseded_by(db: apsw.Connection) -> dict[str, str]:
    """See :meth:`Store.superseded_by`."""
    found: list[Any] = db.execute("SELECT id, superseded_by FROM rankings WHERE superseded_by IS NOT NULL").fetchall()
    return dict(found)


def held_out_twins(db: apsw.Connection) -> frozenset[str]:
    """See :meth:`Store.held_out_twins`."""
    found = db.execute(
        "SELECT p.id FROM prompt_state AS s JOIN prompts AS h ON h.seq = s.seq JOIN prompts AS p "
        "ON p.content_hash = h.content_hash WHERE s.split = 'held-out' AND p.split = 'train'"
    )
    return frozenset(id_ for (id_,) in found)


def held_out_hashes(db: apsw.Connection) -> frozenset[str]:
    """See :meth:`Store.held_out_hashes`."""
    return frozenset(
        hash_ for (hash_,) in db.execute("SELECT DISTINCT content_hash FROM prompts WHERE split = 'held-out'")
    )


def foreign_models(db: apsw.Connection) -> dict[str, ForeignModel]:
    """See :meth:`Store.foreign_models`."""
    found = db.execute("SELECT value FROM meta WHERE key GLOB ?", (rows.FOREIGN_MODEL + "*",))
    return {one.id: one for one in (rows.read_foreign_model(value) for (value,) in found)}


def raters(db: apsw.Connection) -> list[Rater]:
    """See :meth:`Store.raters`."""
    return [rows.read_rater(row) for row in db.execute(f"SELECT {rows.RATER} FROM raters ORDER BY seq")]


def models(db: apsw.Connection, id_: str | None = None) -> list[ModelRecord]:
    """All models, or the one with an id."""
    return [rows.read_model(row) for row in _listed(db, "models", id_)]


def runs(db: apsw.Connection, id_: str | None = None) -> list[RunRecord]:
    """All runs, or the one with an id."""
    return [rows.read_run(row) for row in _listed(db, "runs", id_)]


def find_duplicates(db: apsw.Connection, messages: Iterable[Message]) -> list[Prompt]:
    """See :meth:`Store.find_duplicates`."""
    clean = rows.Cleaner()
    given = [Message(m.role, clean(m.content)) for m in messages]
    found = db.execute(
        f"SELECT {rows.PROMPT} FROM prompts AS p WHERE p.content_hash = ? AND p.archived = 0 ORDER BY p.seq",
        (rows.content_hash(given),),
    )
    return [rows.read_prompt(row) for row in found]


def _strings_to_ints(db: apsw.Connection, sql: str) -> list[tuple[str, int]]:
    found: list[Any] = db.execute(sql).fetchall()
    return found


def _listed(db: apsw.Connection, table: str, id_: str | None) -> Iterator[rows.Read]:
    return iter(
        db.execute(
            f"SELECT {', '.join(rows.COLUMNS[table])} FROM {table} WHERE ?1 IS NULL OR id = ?1 ORDER BY seq", (id_,)
        )
    )


def _by_id(db: apsw.Connection, sql: str, ids: Iterable[str]) -> Iterator[rows.Read]:
    for id_ in dict.fromkeys(ids):
        yield from db.execute(sql, (id_,))


def _search(text: str) -> tuple[str, str]:
    """A condition for a search: full text by words, the last one open-ended; plain text where words have no breaks."""
    words = re.findall(r"[^\W_]+", text)
    if words and not _NO_WORD_BREAKS.search(text):
        query = " ".join(f'"{word}"' for word in words) + "*"
        return "s.seq IN (SELECT rowid FROM prompt_search WHERE prompt_search MATCH ?)", query
    escaped = re.sub(r"([%_\\])", r"\\\1", text.strip())
    return "p.text LIKE ? ESCAPE '\\'", f"%{escaped}%"
