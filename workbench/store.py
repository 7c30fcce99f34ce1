"""The records of a project: reads from any thread, writes as durable acts on one thread.

Every write returns a future that completes after its commit (WAL, ``synchronous=FULL``): what it stands for then
survives a kill or a power cut. When it fails it raises :class:`UserError` and nothing is half-done.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Literal

import apsw

from workbench import backups, database, store_acts, store_batch, store_reads, store_waiting, undo
from workbench import journal as journal_log
from workbench.errors import UserError
from workbench.journal import JournalEntry
from workbench.records import (
    Change,
    Counts,
    Demonstration,
    ForeignModel,
    Message,
    ModelRecord,
    ModelRole,
    Prompt,
    Ranking,
    Rater,
    Response,
    RunRecord,
    Split,
)
from workbench.store_reads import Need
from workbench.store_writer import Work, Writer


class Store:
    """A project's database. Close it: closing finishes the queue of writes."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.read_only = read_only
        self._writer = None if read_only else Writer(path, database.connect(path))
        self._idle: collections.deque[apsw.Connection] = collections.deque()
        self._closed = False

    def close(self) -> None:
        """Finish the queue of writes and close every connection. May be called twice."""
        self._closed = True
        self._close_idle()
        if self._writer:
            self._writer.close()

    def wait(self) -> None:
        """Return when the queue of writes is empty."""
        if self._writer:
            self._writer.wait()

    def subscribe(self, callback: Callable[[Change], None]) -> Callable[[], None]:
        """Call ``callback`` on the writer's thread after each commit (so it must be quick, and wait for nothing).

        Returns a function that ends the subscription.
        """
        return self._writer.subscribe(callback) if self._writer else lambda: None

    # ---- reads ---------------------------------------------------------------------------------------------

    def counts(self, rater_id: str = "") -> Counts:
        """How much of everything there is, without archived prompts and what hangs on them; totals include held-out.

        ``rater_id`` is whose ranks are awaited (:mod:`workbench.store_waiting`); without one, all that can be ranked
        counts as waiting.
        """
        with self.reading() as db:
            return store_reads.counts(db, rater_id)

    def prompts(
        self,
        *,
        search: str = "",
        tag: str = "",
        split: Split | None = None,
        need: Need | None = None,
        limit: int = 200,
        offset: int = 0,
    ) -> list[Prompt]:
        """Prompts that are not archived, oldest first.

        Args:
            search: words that all occur in any turn; the last may be a beginning.
            tag: only those with this tag.
            split: only those of this split.
            need: ``demonstration`` (no final one yet), ``draft`` or ``final`` (that is its demonstration's state), or
                ``responses`` (fewer than two).
            limit: how many at most; negative for all.
            offset: how many to leave out first.
        """
        with self.reading() as db:
            return store_reads.prompts(db, search, tag, split, need, limit, offset)

    def prompt(self, id: str) -> Prompt | None:
        """A prompt, also an archived one."""
        return self.prompts_by_id([id]).get(id)

    def prompts_by_id(self, ids: Iterable[str]) -> dict[str, Prompt]:
        """Those of ``ids`` that exist."""
        with self.reading() as db:
            return store_reads.prompts_by_id(db, ids)

    def demonstration_states(self, prompt_ids: Iterable[str]) -> dict[str, str]:
        """Of each prompt that exists: ``draft``, ``final`` or "" where it has no demonstration."""
        with self.reading() as db:
            return store_reads.demonstration_states(db, prompt_ids)

    def live_prompts(self, prompt_ids: Iterable[str]) -> frozenset[str]:
        """Those of ``prompt_ids`` that exist and are not archived."""
        with self.reading() as db:
            return store_reads.live_prompts(db, prompt_ids)

    def tags(self) -> list[tuple[str, int]]:
        """Every tag with its number of prompts, the most used first."""
        with self.reading() as db:
            return store_reads.tags(db)

    def demonstrations(
        self, *, status: Literal["draft", "final"] | None = None, split: Split | None = None
    ) -> list[Demonstration]:
        """The newest revision of each prompt's demonstration, in the order of the prompts.

        ``train`` leaves out a prompt whose text is also that of a held-out one.
        """
        with self.reading() as db:
            return store_reads.demonstrations(db, status, split)

    def demonstration_for(self, prompt_id: str) -> Demonstration | None:
        """The newest revision of a prompt's demonstration."""
        return next(iter(self.demonstration_history(prompt_id)), None)

    def demonstration_history(self, prompt_id: str) -> list[Demonstration]:
        """All revisions, newest first."""
        with self.reading() as db:
            return store_reads.demonstration_history(db, prompt_id)

    def responses(self, prompt_id: str) -> list[Response]:
        """A prompt's responses, oldest first."""
        with self.reading() as db:
            return store_reads.responses(db, prompt_id)

    def responses_by_id(self, ids: Iterable[str]) -> dict[str, Response]:
        """Those of ``ids`` that exist."""
        with self.reading() as db:
            return store_reads.responses_by_id(db, ids)

    def rankings(
        self,
        *,
        prompt_id: str = "",
        rater_id: str = "",
        include_superseded: bool = False,
        split: Split | None = None,
    ) -> list[Ranking]:
        """Rankings of prompts that are not archived, oldest first; skips and impossible ones too (see ``outcome``)."""
        with self.reading() as db:
            return store_reads.rankings(db, prompt_id, rater_id, include_superseded, split)

    def superseded_by(self) -> dict[str, str]:
        """The id of every superseded ranking, and which took its place."""
        with self.reading() as db:
            return store_reads.superseded_by(db)

    def next_to_rank(
        self,
        *,
        rater_id: str,
        after: str = "",
        exclude: Iterable[str] = (),
        passed_over: Iterable[str] = (),
        limit: int = 1000,
    ) -> list[str]:
        """Prompts that wait for this rater (:mod:`workbench.store_waiting`): those after ``after``, then those before.

        Prompts of which the rater has skipped all that is not judged come last, without those of ``passed_over``.
        """
        with self.reading() as db:
            return store_waiting.next_to_rank(db, rater_id, after, exclude, frozenset(passed_over), limit)

    def held_out_twins(self) -> frozenset[str]:
        """Train prompts whose text is also that of a held-out prompt: they must not train anything."""
        with self.reading() as db:
            return store_reads.held_out_twins(db)

    def raters(self) -> list[Rater]:
        """All raters, oldest first."""
        with self.reading() as db:
            return store_reads.raters(db)

    def models(self, *, role: ModelRole | None = None) -> list[ModelRecord]:
        """Models, oldest first."""
        with self.reading() as db:
            return [model for model in store_reads.models(db) if role in (None, model.role)]

    def model(self, id: str) -> ModelRecord | None:
        """One model."""
        with self.reading() as db:
            return next(iter(store_reads.models(db, id)), None)

    def runs(self) -> list[RunRecord]:
        """Runs, oldest first."""
        with self.reading() as db:
            return store_reads.runs(db)

    def run(self, id: str) -> RunRecord | None:
        """One run."""
        with self.reading() as db:
            return next(iter(store_reads.runs(db, id)), None)

    def find_duplicates(self, messages: Iterable[Message]) -> list[Prompt]:
        """Prompts, not archived, that say the same (line ends, outer space and Unicode form aside)."""
        with self.reading() as db:
            return store_reads.find_duplicates(db, messages)

    def journal(self, limit: int = 200, before: int | None = None) -> list[JournalEntry]:
        """The log of acts, newest first; ``before`` is the ``seq`` of the last entry already seen."""
        with self.reading() as db:
            return journal_log.read(db, limit, before)

    def undo_label(self) -> str:
        """What undo would take back; "" when there is nothing."""
        with self.reading() as db:
            return undo.labels(db)[0]

    def redo_label(self) -> str:
        """What redo would do again; "" when there is nothing."""
        with self.reading() as db:
            return undo.labels(db)[1]

    def taken_back(self, limit: int = 200) -> list[undo.TakenBack]:
        """Acts that were undone, with what they had written, newest first: undo destroys nothing."""
        with self.reading() as db:
            return undo.taken_back(db, limit)

    def held_out_hashes(self) -> frozenset[str]:
        """The content hash of every held-out prompt, archived ones too: their texts must not train anything."""
        with self.reading() as db:
            return store_reads.held_out_hashes(db)

    def foreign_models(self) -> dict[str, ForeignModel]:
        """Models of other projects that wrote imported responses, by id."""
        with self.reading() as db:
            return store_reads.foreign_models(db)

    # ---- writes --------------------------------------------------------------------------------------------

    def add_prompts(self, prompts: Iterable[Prompt], *, label: str = "") -> Future[Change]:
        """Add prompts with the split that they carry. Ask ``find_duplicates`` first, to warn."""
        given = tuple(prompts)
        return self._write(lambda db: store_acts.add_prompts(db, given, label))

    def replace_prompt(self, old_id: str, new: Prompt) -> Future[Change]:
        """Put a new prompt in the place of one on which no label hangs; that one is archived. One undo step."""
        return self._write(lambda db: store_acts.replace_prompt(db, old_id, new))

    def set_split(self, prompt_ids: Iterable[str], split: Split) -> Future[Change]:
        """Move prompts between train and held-out."""
        ids = tuple(prompt_ids)
        return self._write(lambda db: store_acts.set_split(db, ids, split))

    def set_tags(self, prompt_ids: Iterable[str], tags: Iterable[str]) -> Future[Change]:
        """Replace the tags of prompts."""
        ids, given = tuple(prompt_ids), tuple(tags)
        return self._write(lambda db: store_acts.set_tags(db, ids, given))

    def archive_prompts(self, ids: Iterable[str], *, archived: bool = True) -> Future[Change]:
        """Take prompts and all that hangs on them out of sight and out of training; ``archived=False`` brings back."""
        given = tuple(ids)
        return self._write(lambda db: store_acts.archive_prompts(db, given, archived))

    def save_demonstration(self, d: Demonstration) -> Future[Change]:
        """Save a new revision if the text, the status or the author changed. The store numbers the revisions.

        A draft that only grew takes the place of the one that it grew from.
        """
        return self._write(lambda db: store_acts.save_demonstration(db, d))

    def add_responses(self, responses: Iterable[Response]) -> Future[Change]:
        """Add responses."""
        given = tuple(responses)
        return self._write(lambda db: store_acts.add_responses(db, given))

    def save_ranking(self, r: Ranking) -> Future[Change]:
        """Save a ranking; it supersedes the rater's current ones of the prompt whose responses it places, too.

        The store fills in ``supersedes``. ``Change.notes`` says where an earlier one stays.
        """
        return self._write(lambda db: store_acts.save_ranking(db, r))

    def save_re_ask(self, r: Ranking, first_id: str) -> Future[Change]:
        """Save what a rater said when asked for a ranking again: it replaces, counts and trains nothing.

        See :mod:`workbench.re_asks`.
        """
        return self._write(lambda db: store_acts.save_re_ask(db, r, first_id))

    def add_batch(
        self,
        *,
        prompts: Iterable[Prompt] = (),
        demonstrations: Iterable[Demonstration] = (),
        responses: Iterable[Response] = (),
        rankings: Iterable[Ranking] = (),
        raters: Iterable[Rater] = (),
        models: Iterable[ForeignModel] = (),
        label: str,
        by_id: bool = False,
        superseded_by: Mapping[str, str] | None = None,
        weights: Mapping[str, int] | None = None,
    ) -> Future[Change]:
        """Store an import in one transaction, undone as a whole (raters stay); see :mod:`workbench.store_batch`."""
        batch = store_batch.Batch(
            tuple(prompts),
            tuple(demonstrations),
            tuple(responses),
            tuple(rankings),
            tuple(raters),
            by_id,
            dict(superseded_by or {}),
            tuple(models),
            dict(weights or {}),
        )
        return self._write(lambda db: store_batch.add_batch(db, batch, label))

    def save_rater(self, r: Rater) -> Future[Change]:
        """Add or change a rater."""
        return self._write(lambda db: store_acts.save_rater(db, r), undoable=False)

    def save_model(self, m: ModelRecord) -> Future[Change]:
        """Add or change a model."""
        return self._write(lambda db: store_acts.save_model(db, m), undoable=False)

    def remove_model(self, id: str) -> Future[Change]:
        """Take a model off the list; refused while something descends from it. Its files are the caller's."""
        return self._write(lambda db: store_acts.remove_model(db, id), undoable=False)

    def save_run(self, r: RunRecord) -> Future[Change]:
        """Add or change a run."""
        return self._write(lambda db: store_acts.save_run(db, r), undoable=False)

    def remove_run(self, id: str) -> Future[Change]:
        """Take a run off the list; refused while it is alive or its model is listed. Its folder is the caller's."""
        return self._write(lambda db: store_acts.remove_run(db, id), undoable=False)

    def undo(self) -> Future[Change]:
        """Take back the newest act on labels. Raises NothingToDo."""
        return self._write(store_acts.undo_last, undoable=False)

    def redo(self) -> Future[Change]:
        """Do again what was undone last. Raises NothingToDo."""
        return self._write(store_acts.redo_next, undoable=False)

    # ---- connections ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def reading(self) -> Iterator[apsw.Connection]:
        """A read-only connection, alone with it, seeing one moment of the database."""
        if self._closed:
            raise UserError("the project is closed", "", "open it again")
        try:
            try:
                db = self._idle.pop()
            except IndexError:
                db = database.connect(self.path, read_only=True)
            try:
                db.execute("BEGIN")
                yield db
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                self._give_back(db)
        except apsw.Error as error:
            raise backups.problem_of(error, self.path, doing="this could not be read") from error

    def _give_back(self, db: apsw.Connection) -> None:
        self._idle.append(db)
        if self._closed:  # while this one was in use
            self._close_idle()

    def _close_idle(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _write(self, work: Work, *, undoable: bool = True) -> Future[Change]:
        if self._writer is None:
            refused: Future[Change] = Future()
            refused.set_exception(
                UserError(
                    "this was not saved",
                    "the project is open for reading only",
                    "close the other window or program that has it open, then open it again",
                )
            )
            return refused
        return self._writer.submit(work, undoable=undoable)
