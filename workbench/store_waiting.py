"""What waits to be ranked by a rater: one definition, for the queue and for every count of it.

A prompt waits while one of its responses (it has two or more) is in none of the rater's current rankings of it and was
not shown where the rater could not rank. So it comes back when a model has written more. Responses that were skipped
wait too, but behind the prompts that have one which the rater has never seen. Triggers keep the tables that are read
here (``schema/0003.sql``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import apsw

_UNTOUCHED = "SELECT s.seq, s.id FROM prompt_state AS s INDEXED BY prompt_state_untouched WHERE s.archived = 0 "
_UNTOUCHED += "AND s.responses >= 2 AND s.raters = 0 AND s.seq {beyond}"
_NOT_MINE = "SELECT s.seq, s.id FROM prompt_state AS s INDEXED BY prompt_state_rankable WHERE s.archived = 0 "
_NOT_MINE += "AND s.responses >= 2 AND s.seq {beyond} "
_NOT_MINE += "AND NOT EXISTS (SELECT 1 FROM rater_prompts AS w WHERE w.prompt_seq = s.seq AND w.rater_seq = ?1)"
_MINE = "SELECT w.prompt_seq, s.id FROM rater_prompts AS w INDEXED BY rater_prompts_waiting JOIN prompt_state AS s "
_MINE += "ON s.seq = w.prompt_seq WHERE w.rater_seq = ?1 AND w.shown = {shown} AND w.rankable AND NOT w.done "
_MINE += "AND w.prompt_seq {beyond}"


def count(db: apsw.Connection, rater_id: str) -> int:
    """How many prompts wait for a rater; for one who has judged nothing, all that have two responses or more.

    The time does not grow with the project.
    """
    done = "SELECT done FROM rater_tallies WHERE rater_seq = (SELECT seq FROM raters WHERE id = ?1)"
    return int(db.execute(f"SELECT prompts_rankable - ifnull(({done}), 0) FROM tallies", (rater_id,)).get)


def next_to_rank(
    db: apsw.Connection, rater_id: str, after: str, exclude: Iterable[str], passed_over: Collection[str], limit: int
) -> list[str]:
    """See :meth:`Store.next_to_rank`."""
    start = db.execute("SELECT seq FROM prompt_state WHERE id = ?", (after,)).get or 0
    rater = db.execute("SELECT seq FROM raters WHERE id = ?", (rater_id,)).get or 0
    alone = db.execute("SELECT 1 FROM rater_tallies WHERE rater_seq <> ? LIMIT 1", (rater,)).get is None
    # who judges alone needs only look at what nobody has judged: time then goes with what is left, not what is done
    fresh = f"{_UNTOUCHED if alone else _NOT_MINE} UNION ALL {_MINE.replace('{shown}', '0')} ORDER BY 1"
    again = f"{_MINE.replace('{shown}', '1')} ORDER BY 1"
    left_out = set(exclude)
    found: list[str] = []
    for sql, besides in ((fresh, frozenset[str]()), (again, frozenset(passed_over))):
        for beyond in ("> ?2", "<= ?2"):
            for _, id_ in db.execute(sql.replace("{beyond}", beyond), (rater, start)):
                if len(found) >= limit:
                    return found
                if id_ not in left_out and id_ not in besides:
                    found.append(id_)
    return found
