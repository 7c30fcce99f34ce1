"""From a file into a project: one undoable batch, nothing twice, and the researcher's own labels never replaced."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from workbench.errors import UserError
from workbench.formats.checks import digest, numbered
from workbench.formats.parsed import ImportRow, NativeRanking, Parsed, Rejected, What, excerpt
from workbench.formats.rankings import is_record_id
from workbench.formats.reader import parse
from workbench.formats.reassemble import tiers_of
from workbench.ids import new_id, now
from workbench.project import Project
from workbench.records import (
    BAD,
    GOOD,
    Demonstration,
    ForeignModel,
    Message,
    Prompt,
    Ranking,
    Rater,
    Response,
    ResponseFlag,
    Split,
)
from workbench.store import Store
from workbench.store_rows import content_hash


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did. ``added`` and ``duplicates`` count rows of the file, as ``what`` names them."""

    added: int
    duplicates: int
    rejected: list[Rejected]
    warnings: list[str]
    batch_id: str  # "" when nothing was added
    what: What = "prompts"
    format: str = ""
    held_out: int = 0  # prompts of this file that are held out in the project
    rejected_more: int = 0  # rows rejected beyond those that ``rejected`` lists

    @property
    def rejected_count(self) -> int:
        """How many rows were rejected, listed or not."""
        return len(self.rejected) + self.rejected_more


def import_file(
    project: Project,
    path: Path | str,
    *,
    what: str = "auto",
    format: str = "auto",
    split_every: int = 0,
    rater_name: str = "import",
) -> ImportReport:
    """Read a file and store it as one batch that is undone as a whole.

    Args:
        project: where to.
        path: the file.
        what: "auto", or what it holds.
        format: "auto", or a name in ``FORMATS``.
        split_every: hold every Nth prompt out, told by a hash of its text: rows of one prompt stay together, and the
            same prompt falls on the same side in every file. 0 holds none out. A row that names its split keeps it.
        rater_name: whose judgement rows are that do not say.

    Raises:
        UserError: the file cannot be read, or the project not written.
    """
    path = Path(path)
    if split_every < 0:
        raise UserError(
            "the file was not imported", f"every {split_every}th prompt cannot be held out", "give 2 or more"
        )
    return store_parsed(project, parse(path, what=what, format=format), path, split_every, rater_name)


def store_parsed(
    project: Project, parsed: Parsed, path: Path, split_every: int = 0, rater_name: str = "import"
) -> ImportReport:
    """Store what :func:`workbench.formats.reader.parse` has read; see :func:`import_file`."""
    native = parsed.format == "native"
    if native:
        batch = _native_batch(project.store, parsed.rows)
    else:
        batch = _Maker(project.store, path.name, split_every, rater_name).batch(parsed)
    rejected = sorted([*parsed.rejected, *batch.refused], key=lambda one: one.line)
    warnings = [*parsed.warnings, *batch.warnings]
    if not batch.rows:
        return ImportReport(
            0, 0, rejected, warnings, "", parsed.what, parsed.format, rejected_more=parsed.rejected_more
        )
    held_out = [prompt for prompt in batch.prompts if prompt.split == "held-out"]
    training = sum(_trains(project.store, prompt) for prompt in held_out)
    if training:
        warnings.append(
            f"{training} of the prompts to hold out {'is' if training == 1 else 'are'} in the project for training "
            "already, and left there."
        )
    change = project.store.add_batch(
        prompts=batch.prompts,
        demonstrations=batch.demonstrations,
        responses=batch.responses,
        rankings=batch.rankings,
        raters=batch.raters,
        models=batch.models,
        weights=batch.weights,
        label=f"Import {batch.rows} {parsed.what if batch.rows > 1 else parsed.what[:-1]} from {path.name}",
        by_id=native,
        superseded_by=batch.superseded_by,
    ).result()
    return ImportReport(
        added=batch.rows - batch.repeats - change.duplicates,
        duplicates=batch.repeats + change.duplicates,
        rejected=rejected,
        warnings=[*warnings, *change.notes],
        batch_id=change.batch_id,
        what=parsed.what,
        format=parsed.format,
        held_out=len(held_out) - training,
        rejected_more=parsed.rejected_more,
    )


def _trains(store: Store, prompt: Prompt) -> bool:
    known = store.find_duplicates(prompt.messages)
    return bool(known) and known[0].split == "train"


@dataclass(slots=True)
class _Batch:
    """Records on their way into the store; ``rows`` of the file have become records, ``refused`` have not."""

    rows: int = 0
    repeats: int = 0  # of those, rows that are another one's record again
    prompts: list[Prompt] = field(default_factory=list)
    demonstrations: list[Demonstration] = field(default_factory=list)
    responses: list[Response] = field(default_factory=list)
    rankings: list[Ranking] = field(default_factory=list)
    raters: list[Rater] = field(default_factory=list)
    refused: list[Rejected] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    superseded_by: dict[str, str] = field(default_factory=dict)
    models: list[ForeignModel] = field(default_factory=list)
    weights: dict[str, int] = field(default_factory=dict)  # of how many rows a ranking was made, where not of one


_Judged = tuple[ImportRow, str, str]  # a preference, and the ids of its chosen and rejected response


class _Maker:
    """Makes records of rows; one prompt, and one response of it, for each text."""

    def __init__(self, store: Store, source: str, split_every: int, rater_name: str) -> None:
        self._store = store
        self._source = source
        self._split_every = split_every
        self._rater_name = rater_name
        self._at = now()
        self._out = _Batch()
        self._prompts: dict[str, Prompt] = {}  # by content hash
        self._responses: dict[bytes, str] = {}
        self._raters = {rater.name: rater.id for rater in reversed(store.raters())}
        self._judged: dict[
            tuple[str, str, str], list[_Judged]
        ] = {}  # by prompt, rater and the ranking's id in the file
        self._used: set[str] = set()  # ids of rankings that are taken
        self._thumbs: dict[tuple[str, str, str], dict[tuple[str, bool], int]] = {}  # likewise: how many rows say it

    def batch(self, parsed: Parsed) -> _Batch:
        out = self._out
        splits = self._splits(parsed.rows, parsed.numbered_by)
        if parsed.what == "demonstrations":
            self._add_demonstrations(parsed.rows, splits)
        for row in parsed.rows if parsed.what != "demonstrations" else ():
            key = content_hash(row.prompt)
            if parsed.what == "thumbs":
                self._add_thumb(row, self._shared_prompt(row, key, splits[key]))
            elif parsed.what == "rankings":
                self._add_ranked(row, self._shared_prompt(row, key, splits[key]))
            elif parsed.what == "prompts":
                out.prompts.append(self._prompt(row, splits[key]))  # the store tells and counts what is there already
            else:
                self._add_preference(row, self._shared_prompt(row, key, splits[key]))
            out.rows += 1
        self._add_rankings()
        self._add_cards()
        return out

    def _splits(self, rows: Iterable[ImportRow], word: str) -> dict[str, Split]:
        """Every row of a prompt falls on one side. Where rows disagree it is held out: that is never wrong."""
        found: dict[str, Split] = {}
        torn: list[int] = []
        for row in rows:
            key = content_hash(row.prompt)
            wanted = row.split or self._split_of(key)
            if key in found and found[key] != wanted:
                torn.append(row.line)
                wanted = "held-out"
            found[key] = wanted
        if torn:
            self._out.warnings.append(
                f"Rows of one prompt name both splits ({numbered(word, torn)}): those prompts are held out."
            )
        return found

    def _split_of(self, key: str) -> Split:
        return "held-out" if self._split_every and int(key[:15], 16) % self._split_every == 0 else "train"

    def _prompt(self, row: ImportRow, split: Split) -> Prompt:
        return Prompt(
            id=new_id(),
            messages=row.prompt,
            tags=row.tags,
            source=self._source if row.source is None else row.source,
            split=split,
            created_at=self._at,
        )

    def _shared_prompt(self, row: ImportRow, key: str, split: Split) -> Prompt:
        prompt = self._prompts.get(key)
        if prompt is None:
            prompt = self._prompts[key] = self._prompt(row, split)
            self._out.prompts.append(prompt)
        return prompt

    def _rater(self, name: str) -> str:
        id_ = self._raters.get(name)
        if id_ is None:
            id_ = self._raters[name] = new_id()
            self._out.raters.append(Rater(id=id_, name=name, created_at=self._at))
        return id_

    def _response(self, prompt: Prompt, text: str) -> str:
        key = digest(prompt.id, text)
        id_ = self._responses.get(key)
        if id_ is None:
            id_ = self._responses[key] = new_id()
            self._out.responses.append(
                Response(id=id_, prompt_id=prompt.id, text=text, source=self._source, created_at=self._at)
            )
        return id_

    def _add_preference(self, row: ImportRow, prompt: Prompt) -> None:
        chosen, rejected = self._response(prompt, row.chosen), self._response(prompt, row.rejected)
        rater = self._rater(row.rater.strip() or self._rater_name)
        one = row.ranking_id or f":{row.line}"  # no id has a colon
        self._judged.setdefault((prompt.id, rater, one), []).append((row, chosen, rejected))

    def _add_thumb(self, row: ImportRow, prompt: Prompt) -> None:
        key = prompt.id, self._rater(row.rater.strip() or self._rater_name), row.ranking_id
        said = self._thumbs.setdefault(key, {})
        one = self._response(prompt, row.completion), bool(row.desirable)
        said[one] = said.get(one, 0) + 1

    def _add_cards(self) -> None:
        """One card for the thumbs of a prompt and rater; its responses have no order. Both thumbs make two cards."""
        for (prompt_id, rater_id, _), said in self._thumbs.items():
            torn = {id_ for id_, desirable in said if (id_, not desirable) in said}
            for part in (
                {one: rows for one, rows in said.items() if one[1] or one[0] not in torn},
                {one: rows for one, rows in said.items() if not one[1] and one[0] in torn},
            ):
                if not part:
                    continue
                id_ = new_id()
                self._out.weights[id_] = sum(part.values())
                self._out.rankings.append(
                    Ranking(
                        id=id_,
                        prompt_id=prompt_id,
                        rater_id=rater_id,
                        tiers=(),
                        outcome="cannot-rank",
                        flags=tuple(ResponseFlag(one, GOOD if desirable else BAD) for one, desirable in part),
                        shown_order=tuple(one for one, _ in part),
                        blind=False,  # nobody knows how it was shown
                        created_at=self._at,
                    )
                )

    def _add_rankings(self) -> None:
        """One ranking for the rows that were exported from one, where they are all there; else one for each row."""
        lost = 0
        for (prompt_id, rater_id, given), judged in self._judged.items():
            tiers = tiers_of([(chosen, rejected, row.tier_distance) for row, chosen, rejected in judged])
            if tiers is None:
                lost += sum(row.tier_distance > 1 for row, _, _ in judged)
                for _, chosen, rejected in judged:
                    self._add_ranking(new_id(), prompt_id, rater_id, ((chosen,), (rejected,)))
                continue
            id_ = self._ranking_id(given)
            self._add_ranking(id_, prompt_id, rater_id, tiers)
            self._out.weights[id_] = len(judged)
        if lost:
            self._out.warnings.append(
                f'The field "tier_distance" is not kept in {lost} {"row" if lost == 1 else "rows"}: the other pairs of '
                "their rankings are not in the file."
            )

    def _add_ranked(self, row: ImportRow, prompt: Prompt) -> None:
        """The whole order of a row that another program wrote."""
        tiers = tuple(tuple(self._response(prompt, text) for text in tier) for tier in row.tiers)
        rater = self._rater(row.rater.strip() or self._rater_name)
        self._add_ranking(self._ranking_id(row.ranking_id), prompt.id, rater, tiers)

    def _ranking_id(self, given: str) -> str:
        """The id that the file gives a ranking, where it can be one and is not taken; else a new one."""
        id_ = given if is_record_id(given) and given not in self._used else new_id()
        self._used.add(id_)
        return id_

    def _add_ranking(self, id_: str, prompt_id: str, rater_id: str, tiers: tuple[tuple[str, ...], ...]) -> None:
        self._out.rankings.append(
            Ranking(
                id=id_,
                prompt_id=prompt_id,
                rater_id=rater_id,
                tiers=tiers,
                blind=False,  # nobody knows how it was shown
                created_at=self._at,
            )
        )

    def _add_demonstrations(self, rows: list[ImportRow], splits: dict[str, Split]) -> None:
        """A prompt has one demonstration: one in the project, or earlier in the file, is never replaced."""
        out = self._out
        kept = _demonstrations(self._store)
        lines: dict[str, int] = {}
        for row in rows:
            key = content_hash(row.prompt)
            if kept.setdefault(key, row.completion) != row.completion:
                where = f"in row {lines[key]}" if key in lines else "in the project"
                reason = f"its prompt already has another demonstration, {where}, which is kept"
                out.refused.append(Rejected(row.line, reason, excerpt(row.completion)))
                continue
            lines.setdefault(key, row.line)
            prompt = self._shared_prompt(row, key, splits[key])
            out.demonstrations.append(
                Demonstration(
                    id=new_id(),
                    prompt_id=prompt.id,
                    text=row.completion,
                    author=row.rater.strip() or self._rater_name,
                    status="final",
                    created_at=self._at,
                )
            )
            out.rows += 1


def _demonstrations(store: Store) -> dict[str, str]:
    """What the project's prompts have for a demonstration, by the prompt's content hash."""
    newest = store.demonstrations()
    prompts = store.prompts_by_id(one.prompt_id for one in newest)
    return {content_hash(prompts[one.prompt_id].messages): one.text for one in newest}


def _native_batch(store: Store, rows: list[ImportRow]) -> _Batch:
    """Take the records over with their ids; raters and prompts that the project has stay as they are there."""
    out = _Batch()
    raters = {rater.id for rater in store.raters()}
    prompts: dict[str, Prompt] = {}
    responses: dict[str, Response] = {}
    rankings: dict[str, Ranking] = {}
    models: dict[str, ForeignModel] = {}
    natives = [(row.line, row.ranking) for row in rows if row.ranking]
    known = store.prompts_by_id(native.prompt.id for _, native in natives)
    for line, native in natives:
        problem = _clash(native, prompts, responses, rankings, known)
        if problem:
            out.refused.append(Rejected(line, problem, excerpt(native.prompt.title)))
            continue
        out.rows += 1
        out.repeats += native.ranking.id in rankings
        prompts.setdefault(native.prompt.id, native.prompt)
        rankings.setdefault(native.ranking.id, native.ranking)
        for response in native.responses:
            responses.setdefault(response.id, response)
        models.update({model.id: model for model in native.models if model.name or model.sha256})
        if native.rater.id not in raters:
            raters.add(native.rater.id)
            out.raters.append(native.rater)
        if native.superseded_by:
            out.superseded_by[native.ranking.id] = native.superseded_by
    out.prompts, out.responses, out.rankings = list(prompts.values()), list(responses.values()), _oldest_first(rankings)
    out.models = list(models.values())
    _warn_of_lost_predecessors(store, out)
    return out


def _warn_of_lost_predecessors(store: Store, out: _Batch) -> None:
    wanted = {ranking.supersedes for ranking in out.rankings if ranking.supersedes}
    wanted -= {ranking.id for ranking in out.rankings}
    if wanted:
        wanted -= {ranking.id for ranking in store.rankings(include_superseded=True)}
    if wanted:
        out.warnings.append(
            f"{len(wanted)} of the rankings that later ones correct {'is' if len(wanted) == 1 else 'are'} in neither "
            "the file nor the project."
        )


def _clash(
    native: NativeRanking,
    prompts: dict[str, Prompt],
    responses: dict[str, Response],
    rankings: dict[str, Ranking],
    known: dict[str, Prompt],
) -> str:
    """Say why a row cannot be what an earlier row, or the project, says of the same ids; or ''."""
    id_ = native.prompt.id
    if _texts(prompts.get(id_, native.prompt)) != _texts(native.prompt):
        return "an earlier row has another prompt with the same id"
    if _texts(known.get(id_, native.prompt)) != _texts(native.prompt):
        return "the project has another prompt with the same id"
    for response in native.responses:
        earlier = responses.get(response.id, response)
        if (earlier.prompt_id, earlier.text) != (response.prompt_id, response.text):
            return f'an earlier row has another response with the id "{response.id[:40]}"'
    same = rankings.get(native.ranking.id, native.ranking)
    if replace(same, supersedes="") != replace(native.ranking, supersedes=""):
        return "an earlier row has another ranking with the same id"
    return ""


def _texts(prompt: Prompt) -> tuple[Message, ...]:
    return prompt.messages


def _oldest_first(rankings: dict[str, Ranking]) -> list[Ranking]:
    """Order rankings so that each comes after the one that it supersedes."""
    placed: dict[str, Ranking] = {}
    for ranking in rankings.values():
        chain: dict[str, Ranking] = {}
        while ranking.id not in placed and ranking.id not in chain:
            chain[ranking.id] = ranking
            ranking = rankings.get(ranking.supersedes, ranking)
        placed.update(reversed(chain.items()))
    return list(placed.values())
