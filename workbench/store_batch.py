"""An import: many records in one transaction, under one batch id, undone as a whole, without what is there already.

A record of the batch that says the same as one of the project is not stored again; what refers to it refers to the
one in the project instead. So importing a file twice adds nothing the second time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import apsw

from workbench import store_rows as rows
from workbench.errors import UserError
from workbench.ids import new_id
from workbench.records import Demonstration, ForeignModel, Prompt, Ranking, Rater, Response
from workbench.store_acts import check_ranking, insert_ranking, upsert_rater
from workbench.store_rows import Cleaner
from workbench.store_writer import Act
from workbench.thumbs import thumbs_of


@dataclass(frozen=True, slots=True)
class Batch:
    """What an import brings.

    ``by_id``: the records come from a project's own full export. What is new is then stored exactly as it is: records
    of the batch are told apart by id alone, even where two say the same.
    """

    prompts: Sequence[Prompt] = ()
    demonstrations: Sequence[Demonstration] = ()
    responses: Sequence[Response] = ()
    rankings: Sequence[Ranking] = ()
    raters: Sequence[Rater] = ()
    by_id: bool = False
    superseded_by: Mapping[str, str] = field(default_factory=dict)  # ranking id -> its successor
    models: Sequence[ForeignModel] = ()
    weights: Mapping[str, int] = field(default_factory=dict)  # for how many a ranking counts among duplicates, if not 1


TextPair = tuple[str, str]
"""A better and a worse text."""


@dataclass(slots=True)
class _State:
    db: apsw.Connection
    act: Act
    clean: Cleaner
    prompt_ids: dict[str, str] = field(default_factory=dict)  # id in the batch -> id in the project
    response_ids: dict[str, str] = field(default_factory=dict)
    by_id: bool = False
    fresh: set[str] = field(default_factory=set)  # prompts that this batch has added
    added: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)  # of the responses seen so far
    judged: dict[tuple[str, str], set[TextPair]] = field(default_factory=dict)  # prompt and rater: what is said already
    kinds: set[str] = field(default_factory=set)

    def note(self, kind: str, id_: str) -> None:
        self.kinds.add(kind)
        self.added.append(id_)


def add_batch(db: apsw.Connection, batch: Batch, label: str) -> Act:
    """Store a batch. Rankings of a batch supersede nothing (unless they say so): each row of a file is a judgement.

    A ranking that says no more than its rater's current ones in the project say of the same texts is there already.
    ``Change.duplicates`` counts rankings and demonstrations that were there already, and prompts and responses that
    were there already and on which nothing in the batch depends.
    """
    state = _State(db, Act("add_batch", batch_id=new_id()), Cleaner(), by_id=batch.by_id)
    act = state.act
    for rater in batch.raters:
        if upsert_rater(db, rater, state.clean, act.at):
            state.kinds.add("raters")
    for model in batch.models:
        rows.save_foreign_model(db, model, state.clean)
    used = _used_ids(batch)
    act.duplicates += _add_prompts(state, batch.prompts, used)
    act.duplicates += _add_demonstrations(state, batch.demonstrations)
    _match_ranked_responses(state, batch)
    act.duplicates += _add_responses(state, batch.responses, used)
    act.duplicates += _add_rankings(state, batch)
    if not state.kinds:
        act.batch_id = ""
    else:
        act.kinds, act.ids, act.notes = frozenset(state.kinds), tuple(state.added), state.clean.notes()
        act.label = label or f"Import {len(state.added)} records"
    return act


def _used_ids(batch: Batch) -> set[str]:
    """Prompts and responses on which something else in the batch depends."""
    used = {item.prompt_id for items in (batch.demonstrations, batch.responses, batch.rankings) for item in items}
    if batch.by_id:
        used.update(response.id for response in batch.responses)
    for ranking in batch.rankings:
        used.update(_ids_of(ranking))
    return used


def _ids_of(ranking: Ranking) -> Iterable[str]:
    return dict.fromkeys((*(id_ for tier in ranking.tiers for id_ in tier), *ranking.shown_order))


def _add_prompts(state: _State, prompts: Sequence[Prompt], used: set[str]) -> int:
    duplicates = 0
    for prompt in prompts:
        row = rows.prompt_row(prompt, state.clean, now=state.act.at, batch_id=state.act.batch_id)
        known = state.db.execute(
            "SELECT id FROM prompts WHERE id = ?1 UNION ALL "
            "SELECT id FROM (SELECT id FROM prompts WHERE content_hash = ?2 AND archived = 0 "
            "AND NOT (?3 AND batch_id = ?4) ORDER BY seq) LIMIT 1",
            (prompt.id, row["content_hash"], state.by_id, state.act.batch_id),
        ).get
        state.prompt_ids[prompt.id] = known or prompt.id
        if known is not None:
            duplicates += prompt.id not in used
            continue
        rows.insert(state.db, "prompts", row)
        state.fresh.add(prompt.id)
        state.note("prompts", prompt.id)
    return duplicates


def _add_demonstrations(state: _State, demonstrations: Sequence[Demonstration]) -> int:
    duplicates = 0
    for given in demonstrations:
        prompt_id = _prompt_id(state, given.prompt_id)
        row = rows.demonstration_row(given, state.clean, now=state.act.at, batch_id=state.act.batch_id)
        row["prompt_id"] = prompt_id
        known = state.db.execute(
            "SELECT 1 FROM demonstrations WHERE id = ? OR (NOT ? AND prompt_id = ? AND text = ? AND status = ?)",
            (given.id, state.by_id and prompt_id in state.fresh, prompt_id, row["text"], row["status"]),
        ).get
        if known is not None:
            duplicates += 1
            continue
        row["revision"] = (
            1
            + state.db.execute(
                "SELECT ifnull(max(revision), 0) FROM demonstrations WHERE prompt_id = ?", (prompt_id,)
            ).get
        )
        rows.insert(state.db, "demonstrations", row)
        state.note("demonstrations", given.id)
    return duplicates


def _match_ranked_responses(state: _State, batch: Batch) -> None:
    """Map each ranked response to one of the project that has its text; two of one ranking never to the same.

    The n-th response of a ranking with some text maps to the n-th of the project with that text, so that a file
    whose pair has the same text twice is also recognised when it is imported again.
    """
    given = {response.id: response for response in batch.responses}
    stored: dict[str, dict[str, list[str]]] = {}
    for ranking in batch.rankings:
        prompt_id = _prompt_id(state, ranking.prompt_id)
        if state.by_id and prompt_id in state.fresh:
            continue
        known = stored.setdefault(prompt_id, {})
        if not known:
            for id_, text in state.db.execute(
                "SELECT id, text FROM responses WHERE prompt_id = ? ORDER BY seq", (prompt_id,)
            ):
                known.setdefault(text, []).append(id_)
        taken: set[str] = set()
        for id_ in sorted(_ids_of(ranking), key=lambda id_: id_ in given and id_ not in state.response_ids):
            if id_ not in given:
                taken.add(id_)
                continue
            same = known.setdefault(Cleaner()(given[id_].text), [])
            kept = id_ if state.by_id and id_ in same else state.response_ids.get(id_)
            target = kept or next((one for one in same if one not in taken), id_)
            if target in taken:  # two that other rankings gave the same one meet here: this one stays itself
                target = id_
            state.response_ids[id_] = target
            taken.add(target)
            if target not in same:
                same.append(target)


def _add_responses(state: _State, responses: Sequence[Response], used: set[str]) -> int:
    duplicates = 0
    for given in responses:
        prompt_id = _prompt_id(state, given.prompt_id)
        row = rows.response_row(given, state.clean, now=state.act.at, batch_id=state.act.batch_id)
        row["prompt_id"] = prompt_id
        known = state.response_ids.get(given.id)
        if known is None and not (given.id in used or (state.by_id and prompt_id in state.fresh)):
            known = state.db.execute(
                "SELECT id FROM responses WHERE prompt_id = ? AND text = ? AND model_id = ? LIMIT 1",
                (prompt_id, row["text"], row["model_id"]),
            ).get
        state.response_ids[given.id] = known or given.id
        exists = state.db.execute("SELECT 1 FROM responses WHERE id = ?", (given.id,)).get
        if exists is not None or state.response_ids[given.id] != given.id:
            duplicates += given.id not in used
            continue
        rows.insert(state.db, "responses", row)
        state.note("responses", given.id)
    return duplicates


def _add_rankings(state: _State, batch: Batch) -> int:
    duplicates = 0
    added: set[str] = set()
    there: dict[str, str] = {}  # id in the batch -> id in the project
    repeats: dict[str, str] = {}  # a ranking that was asked for again -> the project's one that it repeats
    for given in batch.rankings:
        ids = state.response_ids
        ranking = replace(
            given,
            prompt_id=_prompt_id(state, given.prompt_id),
            tiers=tuple(tuple(ids.get(id_, id_) for id_ in tier) for tier in given.tiers),
            shown_order=tuple(ids.get(id_, id_) for id_ in given.shown_order),
            flags=tuple(replace(flag, response_id=ids.get(flag.response_id, flag.response_id)) for flag in given.flags),
        )
        first = there.get(batch.superseded_by.get(given.id, ""), "") if batch.by_id else ""
        if known := _known_as(state, ranking, is_repeat=bool(first)):
            there[given.id] = known
            duplicates += batch.weights.get(given.id, 1)
            continue
        there[given.id] = given.id
        if first:
            repeats[given.id] = first
        if not state.by_id and _tiers_of(state.db, ranking.id) is not None:
            ranking = replace(ranking, id=new_id())  # another judgement has its id
        pairs = check_ranking(state.db, ranking)
        old = None
        if ranking.supersedes:
            old = state.db.execute(
                "SELECT id FROM rankings WHERE id = ? AND prompt_id = ? AND rater_id = ? AND superseded_by IS NULL",
                (ranking.supersedes, ranking.prompt_id, ranking.rater_id),
            ).get
        insert_ranking(
            state.db,
            replace(ranking, supersedes=old or ""),
            state.clean,
            state.act.at,
            pairs,
            batch_id=state.act.batch_id,
        )
        if old:
            state.db.execute("UPDATE rankings SET superseded_by = ? WHERE id = ?", (ranking.id, old))
        state.note("rankings", ranking.id)
        added.add(ranking.id)
    for old, new in {**batch.superseded_by, **repeats}.items():
        if old in added or new in added:
            state.db.execute(
                "UPDATE rankings SET superseded_by = ?1 WHERE id = ?2 AND superseded_by IS NULL "
                "AND EXISTS (SELECT 1 FROM rankings AS new WHERE new.id = ?1 AND new.prompt_id = rankings.prompt_id "
                "AND new.rater_id = rankings.rater_id)",
                (new, old),
            )
    return duplicates


def _known_as(state: _State, r: Ranking, *, is_repeat: bool) -> str:
    """The id of the project's ranking that says the same already; "" where none does.

    What was asked for again (``is_repeat``) is known by its id alone: to say the same once more is what it was for.
    """
    db = state.db
    stored = _tiers_of(db, r.id)
    if is_repeat:
        return r.id if stored is not None else ""
    same: str | None = db.execute(
        "SELECT id FROM rankings WHERE prompt_id = ? AND rater_id = ? AND outcome = ? AND tiers = ? "
        "ORDER BY superseded_by IS NOT NULL, seq LIMIT 1",
        (r.prompt_id, r.rater_id, r.outcome, rows.to_json(r.tiers)),
    ).get
    knows_thumbs = thumbs_of(r).items() <= _thumbs_said(state, r)
    if state.by_id:
        if stored is not None:
            return r.id
        return same if same is not None and knows_thumbs and r.prompt_id not in state.fresh else ""
    if r.outcome != "ranked":
        return same if same is not None and knows_thumbs else ""
    said = _says(state, r.tiers)
    if same is not None or (said and said <= _judged(state, r)):
        return same or r.id
    # a judgement that was superseded since the file was written
    return r.id if said and stored is not None and said <= _says(state, stored) else ""


def _thumbs_said(state: _State, r: Ranking) -> set[tuple[str, bool]]:
    """All thumbs that a rater's current rankings of a prompt gave before this batch."""
    found = state.db.execute(
        f"SELECT {rows.RANKING} FROM rankings AS k WHERE k.prompt_id = ? AND k.rater_id = ? "
        "AND k.superseded_by IS NULL AND k.batch_id <> ?",
        (r.prompt_id, r.rater_id, state.act.batch_id),
    )
    return {thumb for row in found for thumb in thumbs_of(rows.read_ranking(row)).items()}


def _tiers_of(db: apsw.Connection, ranking_id: str) -> tuple[tuple[str, ...], ...] | None:
    tiers = db.execute("SELECT tiers FROM rankings WHERE id = ?", (ranking_id,)).get
    return None if tiers is None else rows.read_tiers(tiers)


def _judged(state: _State, r: Ranking) -> set[TextPair]:
    """All that a rater's current rankings of a prompt said before this batch."""
    key = r.prompt_id, r.rater_id
    if key not in state.judged:
        found = state.db.execute(
            "SELECT tiers FROM rankings WHERE prompt_id = ? AND rater_id = ? AND superseded_by IS NULL "
            "AND batch_id <> ?",
            (*key, state.act.batch_id),
        )
        tiers = [rows.read_tiers(one) for (one,) in found]
        state.judged[key] = {pair for one in tiers for pair in _says(state, one)}
    return state.judged[key]


def _says(state: _State, tiers: tuple[tuple[str, ...], ...]) -> set[TextPair]:
    """The pairs of texts that tiers put in order."""
    texts = [[_text(state, id_) for id_ in tier] for tier in tiers]
    return {
        (better, worse)
        for place, tier in enumerate(texts)
        for lower in texts[place + 1 :]
        for better in tier
        for worse in lower
    }


def _text(state: _State, response_id: str) -> str:
    if response_id not in state.texts:
        text = state.db.execute("SELECT text FROM responses WHERE id = ?", (response_id,)).get
        state.texts[response_id] = "" if text is None else text
    return state.texts[response_id]


def _prompt_id(state: _State, given: str) -> str:
    known = state.prompt_ids.get(given)
    if known is None:
        if state.db.execute("SELECT 1 FROM prompts WHERE id = ?", (given,)).get is None:
            raise UserError(
                "the import was not stored",
                "a label refers to a prompt that is neither in it nor in the project",
                "import the prompts too",
            )
        known = state.prompt_ids[given] = given
    return known
