"""Whether a database is sound: SQLite's own check, the sha256 of every label row, and what is derived from them.

SQLite's integrity check misses most flipped bits inside a text; the hash of each row does not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import apsw

from workbench import database
from workbench.store_rows import COLUMNS, HASHED_TABLES, values_hash

_RULES = {
    "the count of prompts, responses or rankings is wrong": """
        SELECT 1 FROM tallies AS t WHERE
          t.prompts IS NOT (SELECT count(*) FROM prompts WHERE archived = 0)
          OR t.responses IS NOT (SELECT count(*) FROM responses AS r JOIN prompts AS p ON p.id = r.prompt_id
            WHERE p.archived = 0)
          OR t.rankings IS NOT (SELECT count(*) FROM rankings AS k JOIN prompts AS p ON p.id = k.prompt_id
            WHERE p.archived = 0 AND k.superseded_by IS NULL AND k.outcome = 'ranked')
          OR t.pairs IS NOT (SELECT ifnull(sum(k.pairs), 0) FROM rankings AS k JOIN prompts AS p ON p.id = k.prompt_id
            WHERE p.archived = 0 AND k.superseded_by IS NULL)""",
    "a ranking is superseded by one of another prompt or rater": """
        SELECT 1 FROM rankings AS a JOIN rankings AS b ON b.id = a.superseded_by
        WHERE a.prompt_id <> b.prompt_id OR a.rater_id <> b.rater_id""",
    "a ranking that was superseded counts as current": """
        SELECT 1 FROM rankings AS a JOIN rankings AS b ON b.supersedes = a.id WHERE a.superseded_by IS NULL""",
}
_RULES_SINCE_2 = {  # a backup may be of version 1
    "the count of thumbs is wrong": """
        WITH said AS (SELECT DISTINCT t.ranking_seq, t.wanted, t.text FROM usable_thumbs AS t
          JOIN rankings AS k ON k.seq = t.ranking_seq JOIN prompts AS p ON p.id = k.prompt_id
          WHERE t.text <> '' AND p.archived = 0 AND k.superseded_by IS NULL)
        SELECT 1 FROM tallies WHERE thumbs_up IS NOT (SELECT count(*) FROM said WHERE wanted)
          OR thumbs_down IS NOT (SELECT count(*) FROM said WHERE NOT wanted)""",
}
_RULES_SINCE_3 = {
    "what waits for a rater is counted wrong": """
        WITH counted AS (SELECT a.seq AS rater_seq, (SELECT count(*) FROM prompt_state AS s
            WHERE s.archived = 0 AND s.responses >= 2 AND (
              EXISTS (SELECT 1 FROM rankings AS k WHERE k.prompt_id = s.id AND k.rater_id = a.id
                AND k.superseded_by IS NULL AND k.outcome <> 'skipped'
                AND NOT EXISTS (SELECT 1 FROM named WHERE ranking_seq = k.seq))
              OR NOT EXISTS (SELECT 1 FROM responses AS r WHERE r.prompt_id = s.id AND NOT EXISTS (
                SELECT 1 FROM rankings AS k JOIN named AS n ON n.ranking_seq = k.seq WHERE k.prompt_id = s.id
                AND k.rater_id = a.id AND k.superseded_by IS NULL AND k.outcome <> 'skipped'
                AND n.response_id = r.id)))) AS done FROM raters AS a)
        SELECT 1 FROM counted AS c LEFT JOIN rater_tallies AS t ON t.rater_seq = c.rater_seq
        WHERE c.done <> ifnull(t.done, 0)""",
}


_ROW_FAULT = "does not match its sha256"


def only_rows(found: Sequence[str]) -> bool:
    """Whether all faults are of single records, so that the database itself can be read and copied."""
    return all(fault.endswith(_ROW_FAULT) for fault in found)


def faults(db: apsw.Connection, limit: int = 100) -> list[str]:
    """Every fault found, in sentences; [] when the database is sound."""
    found: list[str] = []
    try:
        found += [f"SQLite: {line}" for (line,) in db.execute(f"PRAGMA integrity_check({limit})") if line != "ok"]
        found += [
            f"SQLite: row {seq} of {table} refers to nothing"
            for table, seq, *_ in db.execute("PRAGMA foreign_key_check")
        ]
        for table in HASHED_TABLES:
            columns = ", ".join(COLUMNS[table])
            for sha256, *values in db.execute(f"SELECT sha256, {columns} FROM {table}"):
                if values_hash(values) != sha256:
                    found.append(f"{table}: the record {values[0]} {_ROW_FAULT}")
        version = database.schema_version(db)
        rules = _RULES | (_RULES_SINCE_2 if version >= 2 else {}) | (_RULES_SINCE_3 if version >= 3 else {})
        found += [sentence for sentence, sql in rules.items() if db.execute(sql + " LIMIT 1").get is not None]
    except (apsw.Error, UnicodeDecodeError) as error:
        found.append(f"the database cannot be read: {error}")
    return found[:limit]


def faults_of_file(path: Path) -> list[str]:
    """The faults of a database file that nobody has open, such as a backup."""
    try:
        with contextlib.closing(apsw.Connection(f"file:{_quoted(path)}?immutable=1", flags=_READ)) as db:
            if db.pragma("application_id") != database.APPLICATION_ID:
                return [f"{path.name} is not a Tastemaker database"]
            return faults(db)
    except apsw.Error as error:
        return [f"{path.name}: {error}"]


_READ = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI


def _quoted(path: Path) -> str:
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
