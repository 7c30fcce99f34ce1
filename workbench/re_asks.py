"""Rankings that were asked for again, to see how far a rater agrees with themselves.

In the database a re-ask is a ranking under an *older* one that stands: ``superseded_by`` names the ranking that it
repeats, which was there first. So it never counts, trains or takes a label's place, and undo, exports and checks treat
it as they treat every ranking.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import apsw

from workbench import store_rows as rows
from workbench.records import Ranking

if TYPE_CHECKING:
    from workbench.store import Store

LEAST_BETWEEN = 20
"""A card comes back when this many others were judged since, or a day has passed: nobody remembers it by heart."""


@dataclass(frozen=True, slots=True)
class ReAsk:
    """A ranking, and what the same rater said when asked again."""

    first: Ranking
    again: Ranking


def re_asks(store: Store) -> list[ReAsk]:
    """Return all that were answered, of prompts that are not archived, oldest first."""
    with store.reading() as db:
        found: list[Any] = db.execute(
            f"SELECT k.superseded_by, {rows.RANKING} FROM rankings AS k JOIN rankings AS f ON f.id = k.superseded_by "
            "JOIN prompt_state AS s ON s.id = k.prompt_id "
            "WHERE s.archived = 0 AND k.seq > f.seq AND k.outcome = 'ranked' ORDER BY k.seq"
        ).fetchall()
        answers: list[tuple[str, Ranking]] = [(row[0], rows.read_ranking(row[1:])) for row in found]
        first = {of: _ranking(db, of) for of, _ in answers}
    return [ReAsk(first[of], again) for of, again in answers]


def due(store: Store, rater_id: str, every: int) -> Ranking | None:
    """Return the ranking to ask this rater for again, once ``every`` judgements followed the last such question.

    Chosen by a hash, so by nobody's taste, among the rater's current rankings made here (not imported) that were not
    asked again yet, and of which :data:`LEAST_BETWEEN` judgements or a day have passed. None while none is due; 0 asks
    never.
    """
    if every <= 0:
        return None
    with store.reading() as db:
        under = (
            "FROM rankings AS k JOIN rankings AS f ON f.id = k.superseded_by WHERE k.seq > f.seq AND k.rater_id = ?1"
        )
        last: int = db.execute(f"SELECT ifnull(max(k.seq), 0) {under}", (rater_id,)).get
        own = "rater_id = ?1 AND batch_id = '' AND outcome = 'ranked'"
        since: int = db.execute(
            f"SELECT count(*) FROM rankings AS r WHERE {own} AND seq > ?2 AND NOT EXISTS "
            f"(SELECT 1 FROM rankings AS f WHERE f.id = r.superseded_by AND f.seq < r.seq)",
            (rater_id, last),
        ).get
        if since < every:
            return None
        enough: Any = db.execute(
            f"SELECT seq FROM rankings WHERE {own} ORDER BY seq DESC LIMIT 1 OFFSET ?2", (rater_id, LEAST_BETWEEN)
        ).get
        asked = "SELECT 1 FROM rankings AS k WHERE k.superseded_by = r.id AND k.seq > r.seq"
        ids = db.execute(
            "SELECT r.id FROM rankings AS r JOIN prompt_state AS s ON s.id = r.prompt_id "
            f"WHERE s.archived = 0 AND {own} AND r.superseded_by IS NULL AND r.pairs > 0 "
            f"AND (r.seq <= ?2 OR julianday(r.created_at) <= julianday('now') - 1) AND NOT EXISTS ({asked})",
            (rater_id, enough or 0),
        )
        chosen = min((id_ for (id_,) in ids), key=_draw, default=None)
        return _ranking(db, chosen) if chosen else None


def stands(store: Store, ranking_id: str) -> bool:
    """Whether a ranking can be asked for again: it is there, current, and its prompt is not archived."""
    with store.reading() as db:
        current = (
            "SELECT 1 FROM rankings AS k JOIN prompt_state AS s ON s.id = k.prompt_id "
            "WHERE k.id = ? AND k.superseded_by IS NULL AND s.archived = 0"
        )
        return db.execute(current, (ranking_id,)).get is not None


def _ranking(db: apsw.Connection, id_: str) -> Ranking:
    row: Any = db.execute(f"SELECT {rows.RANKING} FROM rankings AS k WHERE k.id = ?", (id_,)).fetchone()
    return rows.read_ranking(row)


def _draw(id_: str) -> bytes:
    return hashlib.sha256(b"re-ask\0" + id_.encode()).digest()
