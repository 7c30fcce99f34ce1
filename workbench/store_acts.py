"""What each act writes, inside the writer's transaction. Saving the same record twice is one save."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import apsw

from workbench import store_rows as rows
from workbench import undo
from workbench.errors import UserError
from workbench.ids import new_id
from workbench.pairs import why_unusable
from workbench.records import (
    Demonstration,
    ModelRecord,
    Prompt,
    Ranking,
    Rater,
    Response,
    RunRecord,
    Split,
)
from workbench.store_rows import Cleaner
from workbench.store_writer import Act


def add_prompts(db: apsw.Connection, prompts: Sequence[Prompt], label: str) -> Act:
    """Add new prompts; ones whose id is known are left as they are."""
    act, clean, added = Act("add_prompts"), Cleaner(), []
    for prompt in prompts:
        row = rows.prompt_row(prompt, clean, now=act.at)
        if not _known(db, "prompts", prompt.id):
            rows.insert(db, "prompts", row)
            added.append(prompt)
    if added:
        act.label = label or (f"Add {quoted(added[0].title)}" if len(added) == 1 else f"Add {len(added)} prompts")
        act.kinds, act.ids, act.notes = frozenset({"prompts"}), tuple(p.id for p in added), clean.notes()
    return act


def replace_prompt(db: apsw.Connection, old_id: str, new: Prompt) -> Act:
    """Put a prompt in the place of another, which is archived: one act, so that one undo takes both back."""
    act = add_prompts(db, [new], "")
    archived = _update_prompts(db, "archive_prompts", [old_id], "archived", True)
    act.name, act.kinds, act.ids = "replace_prompt", act.kinds | archived.kinds, act.ids + archived.ids
    act.label = f"Edit {quoted(new.title)}" if act.kinds else ""
    return act


def set_split(db: apsw.Connection, prompt_ids: Iterable[str], split: Split) -> Act:
    """Move prompts between train and held-out."""
    if split not in ("train", "held-out"):
        raise UserError("the prompts were not moved", f"there is no split {split!r}", "use train or held-out")
    act = _update_prompts(db, "set_split", prompt_ids, "split", split)
    act.label = f"Move {_some(act.ids, 'prompt')} to {split}"
    return act


def set_tags(db: apsw.Connection, prompt_ids: Iterable[str], tags: Iterable[str]) -> Act:
    """Replace the tags of prompts."""
    clean = Cleaner()
    act = _update_prompts(db, "set_tags", prompt_ids, "tags", rows.tags_json(tags, clean))
    act.label, act.notes = f"Tag {_some(act.ids, 'prompt')}", clean.notes()
    return act


def archive_prompts(db: apsw.Connection, prompt_ids: Iterable[str], archived: bool) -> Act:
    """Put prompts, with all that hangs on them, out of sight and out of training, or bring them back."""
    act = _update_prompts(db, "archive_prompts" if archived else "restore_prompts", prompt_ids, "archived", archived)
    act.label = f"{'Archive' if archived else 'Bring back'} {_some(act.ids, 'prompt')}"
    return act


def save_demonstration(db: apsw.Connection, d: Demonstration) -> Act:
    """Save a new revision of a prompt's demonstration, unless the newest one says the same.

    A draft to which its author has only added takes the place of that draft: no word is lost, and autosaving a long
    text does not store it whole again each time.
    """
    act, clean = Act("save_demonstration", author=d.author), Cleaner()
    title = _title_of(db, d.prompt_id)
    row = rows.demonstration_row(d, clean, now=act.at)
    newest: Any = db.execute(
        "SELECT revision, text, status, author, seq, id FROM demonstrations WHERE prompt_id = ? "
        "ORDER BY revision DESC LIMIT 1",
        (d.prompt_id,),
    ).get
    if newest and newest[1:4] == (row["text"], row["status"], row["author"]):
        return act
    row["revision"] = newest[0] + 1 if newest else 1
    if newest and newest[2:4] == ("draft", row["author"]) and d.status == "draft" and _grew(newest[1], row["text"]):
        row["id"] = newest[5]
        db.execute(
            "UPDATE demonstrations SET text = ?, revision = ?, created_at = ? WHERE seq = ?",
            (row["text"], row["revision"], act.at, newest[4]),
        )
        rows.rehash(db, "demonstrations", newest[4])
    else:
        if _known(db, "demonstrations", d.id):  # the caller keeps one id while its text changes
            row["id"] = new_id()
            row["created_at"] = act.at
        rows.insert(db, "demonstrations", row)
    act.kinds, act.ids, act.notes = frozenset({"demonstrations"}), (row["id"],), clean.notes()
    act.burst = f"draft:{d.prompt_id}:{d.author}" if d.status == "draft" else ""
    act.label = f"{'Write' if not newest else 'Edit'} the demonstration of {quoted(title)}"
    return act


def _grew(old: str, new: str) -> bool:
    """Whether ``new`` is ``old`` with something added in one place."""
    start = next((place for place, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), len(old))
    return len(new) > len(old) and new.endswith(old[start:])


def add_responses(db: apsw.Connection, responses: Sequence[Response]) -> Act:
    """Add responses to their prompts; ones whose id is known are left as they are."""
    act, clean, added = Act("add_responses"), Cleaner(), []
    for response in responses:
        row = rows.response_row(response, clean, now=act.at)
        if _known(db, "responses", response.id):
            continue
        title = _title_of(db, response.prompt_id)
        rows.insert(db, "responses", row)
        added.append(response.id)
    if added:
        act.kinds, act.ids, act.notes = frozenset({"responses"}), tuple(added), clean.notes()
        act.label = f"Add {_some(added, 'response')}" + (f" to {quoted(title)}" if len(added) == 1 else "")
    return act


def save_ranking(db: apsw.Connection, r: Ranking) -> Act:
    """Save a judgement; it supersedes what the same rater judged before of no other responses of the prompt.

    A judgement stays current beside a new one that does not place all of its responses: so does the ranking of older
    responses when newer ones are ranked. A skip supersedes only skips; where all that it shows is judged, the
    judgement stands and the skip is only noted.
    """
    act, clean = Act("save_ranking", author=r.rater_id), Cleaner()
    title = _title_of(db, r.prompt_id)
    if _is_retry(db, r):
        return act
    pairs = check_ranking(db, r)
    found = db.execute(
        f"SELECT {rows.RANKING} FROM rankings AS k WHERE prompt_id = ? AND rater_id = ? AND superseded_by IS NULL "
        "ORDER BY seq DESC",
        (r.prompt_id, r.rater_id),
    )
    current = [rows.read_ranking(row) for row in found]
    standing = [one for one in current if one.outcome != "skipped"]
    if r.outcome == "skipped":
        current = [one for one in current if one.outcome == "skipped"]
    if r.outcome == "skipped" and standing and _all_judged(r, standing):
        insert_ranking(db, replace(r, supersedes=""), clean, act.at, pairs, superseded_by=standing[0].id)
    else:
        covered = [one.id for one in current if _covers(r, one)]
        insert_ranking(db, replace(r, supersedes=covered[0] if covered else ""), clean, act.at, pairs)
        db.executemany("UPDATE rankings SET superseded_by = ? WHERE id = ?", [(r.id, id_) for id_ in covered])
        if kept := len(current) - len(covered):
            act.notes = (_kept_beside(kept),)
    verb = {"ranked": "Rank", "skipped": "Skip", "cannot-rank": "Mark as impossible to rank"}[r.outcome]
    act.kinds, act.ids, act.notes = frozenset({"rankings"}), (r.id,), (*act.notes, *clean.notes())
    act.label = f"{'Rank again' if standing and verb == 'Rank' else verb} {quoted(title)}"
    return act


def save_re_ask(db: apsw.Connection, r: Ranking, first_id: str) -> Act:
    """Save what a rater said when asked for a ranking again: it stands under that one, so that it never counts itself.

    Raises UserError where the first is not a ranking of this prompt by this rater.
    """
    act, clean = Act("save_re_ask", author=r.rater_id), Cleaner()
    title = _title_of(db, r.prompt_id)
    if _is_retry(db, r):
        return act
    same = "SELECT 1 FROM rankings WHERE id = ? AND prompt_id = ? AND rater_id = ? AND outcome = 'ranked'"
    if db.execute(same, (first_id, r.prompt_id, r.rater_id)).get is None:
        raise UserError(
            "this answer cannot be saved",
            "the ranking that it repeats is not there (any more)",
            "skip the card; the ranking that stands is not touched",
        )
    pairs = check_ranking(db, r)
    insert_ranking(db, replace(r, supersedes=""), clean, act.at, pairs, superseded_by=first_id)
    act.kinds, act.ids, act.notes = frozenset({"rankings"}), (r.id,), clean.notes()
    act.label = f"Answer once more for {quoted(title)}"
    return act


def _about(r: Ranking) -> frozenset[str]:
    """What a judgement places; where it places nothing, what was shown."""
    return frozenset(id_ for tier in r.tiers for id_ in tier) or frozenset(r.shown_order)


def _covers(new: Ranking, old: Ranking) -> bool:
    """Whether a judgement is about all that an older one is about."""
    return not _about(new) or _about(new) >= _about(old)


def _all_judged(skip: Ranking, standing: Sequence[Ranking]) -> bool:
    """Whether a skip shows nothing that was not judged before."""
    if not skip.shown_order or not all(one.named for one in standing):
        return True
    return frozenset(skip.shown_order) <= frozenset[str]().union(*(one.named for one in standing))


def _kept_beside(count: int) -> str:
    if count == 1:
        return "An earlier judgement of this prompt is of other responses too and stays beside the new one"
    return f"{count} earlier judgements of this prompt are of other responses too and stay beside the new one"


def save_rater(db: apsw.Connection, r: Rater) -> Act:
    """Add a rater, or change their name or principles. Raters are never deleted, nor undone."""
    act, clean = Act("save_rater", author=r.id), Cleaner()
    if upsert_rater(db, r, clean, act.at):
        act.kinds, act.ids, act.notes = frozenset({"raters"}), (r.id,), clean.notes()
        act.label = f"Save the rater {r.name}"
    return act


def upsert_rater(db: apsw.Connection, r: Rater, clean: Cleaner, now: str) -> bool:
    """Insert or update a rater. Returns whether anything changed."""
    row = rows.rater_row(r, clean, now=now)
    old = db.execute("SELECT seq, name, kind, principles, created_at FROM raters WHERE id = ?", (r.id,)).get
    if old is None:
        rows.insert(db, "raters", row)
        return True
    if old[1:4] == (row["name"], row["kind"], row["principles"]):
        return False
    db.execute(
        "UPDATE raters SET name = ?, kind = ?, principles = ? WHERE seq = ?",
        (row["name"], row["kind"], row["principles"], old[0]),
    )
    rows.rehash(db, "raters", old[0])
    return True


def save_model(db: apsw.Connection, m: ModelRecord) -> Act:
    """Add or update a model."""
    act, clean = Act("save_model"), Cleaner()
    known = _known(db, "models", m.id)
    if _upsert(db, "models", rows.model_row(m, clean, now=act.at)):
        act.kinds, act.ids, act.notes = frozenset({"models"}), (m.id,), clean.notes()
        act.label = f"{'Change' if known else 'Add'} the model {m.name}"
    return act


def remove_model(db: apsw.Connection, id_: str) -> Act:
    """Take a model off the list. Raises UserError while another model descends from it or a run uses it."""
    act = Act("remove_model")
    name = db.execute("SELECT name FROM models WHERE id = ?", (id_,)).get
    if name is None:
        return act
    heirs: list[Any] = db.execute(
        "SELECT name FROM models WHERE id <> ?1 AND (base_id = ?1 OR parent_id = ?1) UNION ALL "
        "SELECT 'the run ' || name FROM runs WHERE (start_model_id = ?1 OR reward_model_id = ?1) "
        "AND state IN ('queued', 'running', 'paused', 'stopping')",
        (id_,),
    ).fetchall()
    if heirs:
        names = ", ".join(heir for (heir,) in heirs[:3]) + ("" if len(heirs) <= 3 else f" and {len(heirs) - 3} more")
        raise UserError(
            f"the model {name} cannot be removed", f"these descend from it or use it: {names}", "remove those first"
        )
    db.execute("DELETE FROM models WHERE id = ?", (id_,))
    act.kinds, act.ids, act.label = frozenset({"models"}), (id_,), f"Remove the model {name}"
    return act


def save_run(db: apsw.Connection, r: RunRecord) -> Act:
    """Add or update a run. The journal notes its start and each change of its state."""
    act, clean = Act("save_run"), Cleaner()
    state = db.execute("SELECT state FROM runs WHERE id = ?", (r.id,)).get
    if _upsert(db, "runs", rows.run_row(r, clean, now=act.at)):
        act.kinds, act.ids, act.notes = frozenset({"runs"}), (r.id,), clean.notes()
        act.label, act.logged = f"Run {r.name}: {r.state}", state != r.state
    return act


def remove_run(db: apsw.Connection, id_: str) -> Act:
    """Take a run off the list. Raises UserError while a model of it is on the list or it is alive."""
    act = Act("remove_run")
    found = db.execute("SELECT name, state FROM runs WHERE id = ?", (id_,)).get
    if found is None:
        return act
    name, state = found
    model = db.execute("SELECT name FROM models WHERE run_id = ? LIMIT 1", (id_,)).get
    if model is not None:
        raise UserError(
            f"the run {name} cannot be removed", f"the model {model} came from it", "remove the model first"
        )
    if state in ("queued", "running", "paused", "stopping"):
        raise UserError(f"the run {name} cannot be removed", f"it is {state}", "stop it first")
    db.execute("DELETE FROM runs WHERE id = ?", (id_,))
    act.kinds, act.ids, act.label = frozenset({"runs"}), (id_,), f"Remove the run {name}"
    return act


def undo_last(db: apsw.Connection) -> Act:
    """Take back the newest act on labels."""
    return _stepped("undo", undo.undo(db))


def redo_next(db: apsw.Connection) -> Act:
    """Do again what was undone last."""
    return _stepped("redo", undo.redo(db))


# ---- shared ------------------------------------------------------------------------------------------------


def check_ranking(db: apsw.Connection, r: Ranking) -> int:
    """Check a ranking against its prompt, responses and rater. Returns how many usable pairs it gives.

    Raises:
        UserError: it names a response twice, or one of another prompt, or an unknown rater, or has the wrong tiers.
    """

    def refuse(cause: str) -> UserError:
        return UserError("the ranking cannot be saved", cause, "reload the prompt and rank it again")

    if r.outcome not in ("ranked", "skipped", "cannot-rank"):
        raise refuse(f"its outcome is {r.outcome!r}")
    if not _known(db, "raters", r.rater_id):
        raise refuse(f"its rater {r.rater_id!r} is not in the project")
    if not math.isfinite(r.seconds) or r.seconds < 0:
        raise refuse(f"its time is {r.seconds} seconds")
    texts = dict(db.execute("SELECT id, text FROM responses WHERE prompt_id = ?", (r.prompt_id,)))
    ids = [id_ for tier in r.tiers for id_ in tier]
    if r.outcome == "ranked" and (not ids or not all(r.tiers)):
        raise refuse("it has no tiers, or an empty one")
    if r.outcome != "ranked" and ids:
        raise refuse(f"it is {r.outcome} and yet has tiers")
    if len(set(ids)) != len(ids):
        raise refuse("it names a response twice")
    named = {*ids, *r.shown_order, *(flag.response_id for flag in r.flags if flag.response_id)}
    if strange := named - texts.keys():
        raise refuse(f"{len(strange)} of its responses are not responses of its prompt")
    return sum(
        why_unusable(texts[better], texts[worse]) == ""
        for place, tier in enumerate(r.tiers)
        for lower in r.tiers[place + 1 :]
        for better in tier
        for worse in lower
    )


def insert_ranking(
    db: apsw.Connection,
    r: Ranking,
    clean: Cleaner,
    now: str,
    pairs: int,
    *,
    batch_id: str = "",
    superseded_by: str | None = None,
) -> None:
    """Insert a checked ranking."""
    rows.insert(db, "rankings", rows.ranking_row(r, clean, now=now, pairs=pairs, batch_id=batch_id))
    if superseded_by:
        db.execute("UPDATE rankings SET superseded_by = ? WHERE id = ?", (superseded_by, r.id))


def quoted(title: str, limit: int = 40) -> str:
    """A title in quotation marks, cut to fit a menu."""
    return f"“{title if len(title) <= limit else title[: limit - 1].rstrip() + '…'}”"


def _title_of(db: apsw.Connection, prompt_id: str) -> str:
    row = db.execute(f"SELECT {rows.PROMPT} FROM prompts AS p WHERE id = ?", (prompt_id,)).fetchone()
    if row is None:
        raise UserError("this was not saved", "its prompt is not in the project (any more)", "choose another prompt")
    return rows.read_prompt(row).title


def _is_retry(db: apsw.Connection, r: Ranking) -> bool:
    row = db.execute(f"SELECT {rows.RANKING} FROM rankings AS k WHERE id = ?", (r.id,)).fetchone()
    if row is None:
        return False
    kept = rows.read_ranking(row)
    if (kept.prompt_id, kept.rater_id, kept.tiers, kept.outcome) != (r.prompt_id, r.rater_id, r.tiers, r.outcome):
        raise UserError(
            "the ranking cannot be saved", "another ranking has its id: rankings never change", "give it a new id"
        )
    return True


def _known(db: apsw.Connection, table: str, id_: str) -> bool:
    return db.execute(f"SELECT 1 FROM {table} WHERE id = ?", (id_,)).get is not None


def _update_prompts(db: apsw.Connection, name: str, ids: Iterable[str], column: str, value: object) -> Act:
    act, changed = Act(name), []
    for id_ in dict.fromkeys(ids):
        seq = db.execute(f"SELECT seq FROM prompts WHERE id = ? AND {column} IS NOT ?", (id_, value)).get
        if seq is not None:
            db.execute(f"UPDATE prompts SET {column} = ? WHERE seq = ?", (value, seq))
            rows.rehash(db, "prompts", seq)
            changed.append(id_)
    if changed:
        act.kinds, act.ids = frozenset({"prompts"}), tuple(changed)
    return act


def _upsert(db: apsw.Connection, table: str, row: rows.Row) -> bool:
    names = rows.COLUMNS[table]
    old = db.execute(f"SELECT {', '.join(names)} FROM {table} WHERE id = ?", (row["id"],)).fetchone()
    if old is None:
        rows.insert(db, table, row)
        return True
    row = {**row, "created_at": old[names.index("created_at")]}
    if old == tuple(row[name] for name in names):
        return False
    db.execute(
        f"UPDATE {table} SET {', '.join(f'{name} = ?' for name in names)} WHERE id = ?",
        [*(row[name] for name in names), row["id"]],
    )
    return True


def _some(ids: Sequence[str], what: str) -> str:
    return f"1 {what}" if len(ids) == 1 else f"{len(ids)} {what}s"


def _stepped(name: str, entry: undo.Entry) -> Act:
    label = f"{name.capitalize()}: {entry.label}"
    return Act(name, frozenset(entry.kinds), entry.ids, label, batch_id=entry.batch_id, count=entry.count)
