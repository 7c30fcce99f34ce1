"""A run is a folder: create it, read it, and tell its state, with or without an engine.

The state comes from the lock (alive or dead), ``exit.json`` (how the process ended) and the last events (what the
engine said); never from a pid.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from workbench import reaper
from workbench.errors import UserError
from workbench.jsonl import decode, encode, read_jsonl, write_atomic, write_jsonl
from workbench.manifests import MANIFEST, faults_of, fsync_folder, sha256_of
from workbench.protocol import AnyEvent, Exit, RunSpec, Sample, SampleBatch, Started, decode_spec
from workbench.protocol_version import problem_of_raw
from workbench.recipes import RECIPES, Recipe
from workbench.records import step_word
from workbench.rows import DATA_FILES, PairRow, PromptRow, SftRow, ThumbRow
from workbench.run_events import CHUNK_BYTES, EventTail, join_segments, parse_event
from workbench.run_status import STOPPING_PHASE, RunStatus, Seen

__all__ = ["STOPPING_PHASE", "EventTail", "Row", "RunFolder", "RunStatus", "join_segments", "parse_event"]

Row = SftRow | PairRow | ThumbRow | PromptRow
_TAIL_BYTES = 256 * 1024


class RunFolder:
    """Everything about one run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events_path = path / "events.jsonl"
        self.lock_path = path / "lock"

    @classmethod
    def create(
        cls,
        runs_dir: Path,
        spec: RunSpec,
        train: Iterable[Row],
        heldout: Iterable[Row],
        demonstrations: Iterable[SftRow] = (),
    ) -> RunFolder:
        """Freeze a run's recipe and data: a folder under a temporary name, made durable, then renamed.

        Raises UserError when the disk is full or the folder exists.
        """
        final = runs_dir / spec.run_id
        if final.exists():
            raise UserError(f"The run {spec.run_id} exists already", str(final), "start the run under a new id")
        draft = runs_dir / f".tmp-{spec.run_id}"
        try:
            shutil.rmtree(draft, ignore_errors=True)
            (draft / "data").mkdir(parents=True)
            (draft / "checkpoints").mkdir()
            hashes = {}
            for name, rows in (("train", train), ("heldout", heldout), ("demonstrations", demonstrations)):
                path = draft / "data" / f"{name}.jsonl"
                if write_jsonl(path, rows) == 0 and name == "demonstrations":
                    path.unlink()
                    continue
                hashes[path.name] = sha256_of(path)
            unit = "rankings" if RECIPES[spec.method]().batch_counts_rankings else "rows"
            spec = msgspec.structs.replace(spec, data_sha256=hashes, batch_of=unit)
            (draft / "recipe.json").write_bytes(_readable(spec))
            with (draft / "recipe.json").open("rb") as written:
                os.fsync(written.fileno())
            for folder in (draft / "data", draft):
                fsync_folder(folder)
            draft.rename(final)
            fsync_folder(runs_dir)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise UserError(
                "The run's folder could not be written", str(error), "free space or check the folder's rights"
            ) from error
        return cls(final)

    # ---- what was asked -------------------------------------------------------------------------------------

    def spec(self) -> RunSpec:
        """Read ``recipe.json``. Raises UserError when it is missing or damaged."""
        path = self.path / "recipe.json"
        raw = b""
        try:
            raw = path.read_bytes()
            return decode_spec(raw)
        except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
            if (problem := problem_of_raw(raw)) is not None:
                raise problem from error
            raise UserError(
                f"The recipe of run {self.path.name} cannot be read", str(error), "delete the run and start a new one"
            ) from error

    def write_spec(self, spec: RunSpec) -> None:
        """Replace ``recipe.json`` as one act. Raises OSError."""
        write_atomic(self.path / "recipe.json", _readable(spec))

    def recipe(self, spec: RunSpec | None = None) -> Recipe:
        """Return the run's settings, typed and checked. Raises UserError when they cannot be used."""
        spec = spec or self.spec()
        try:
            recipe: Recipe = msgspec.convert(spec.recipe, RECIPES[spec.method], strict=False)
        except msgspec.ValidationError as error:
            raise UserError("The run's recipe cannot be used", str(error), "start a new run") from error
        faults = [one for one in recipe.problems() if one.severity == "error"]
        if faults:
            raise UserError(
                "The run's recipe cannot be used",
                "; ".join(one.message for one in faults),
                "; ".join(one.remedy for one in faults if one.remedy),
            )
        return recipe

    def rows(self, name: str, spec: RunSpec | None = None) -> list[Row]:
        """Read a frozen data file (train, heldout, demonstrations) after checking its hash. Raises UserError."""
        spec = spec or self.spec()
        path = self.path / "data" / f"{name}.jsonl"
        expected = spec.data_sha256.get(path.name)
        if not path.exists():
            if expected:
                raise UserError(f"{path.name} of run {spec.name!r} is missing", str(path), "start a new run")
            return []
        if expected and sha256_of(path) != expected:
            raise UserError(
                f"{path.name} of run {spec.name!r} was changed after the run was made",
                "its sha256 is not the one in recipe.json",
                "start a new run, which freezes the labels again",
            )
        row_type = SftRow if name == "demonstrations" else DATA_FILES[spec.method]
        return list(read_jsonl(path, row_type))

    # ---- what happened --------------------------------------------------------------------------------------

    def events(self, after_seq: int = -1) -> Iterator[AnyEvent]:
        """Yield every whole event of the file with a number above ``after_seq``."""
        tail = EventTail(self.events_path)
        while batch := tail.read_new(CHUNK_BYTES):
            yield from (event for event in batch if event.seq > after_seq)

    def samples(self, offset: int = 0, limit: int | None = None, step: int | None = None) -> list[Sample]:
        """Read samples from a byte offset (see :class:`SampleBatch`), at most ``limit``, of one step if given.

        Of a step that was done twice (before and after a resume) only the last samples count.
        """
        found: list[Sample] = []
        if step is not None:
            batches = [one for one in self.events() if isinstance(one, SampleBatch | Started)]
            kept: list[SampleBatch] = []
            for one in batches:
                if isinstance(one, Started):
                    kept = [old for old in kept if old.step <= one.resumed_from]
                elif one.step == step:
                    kept.append(one)
            for one in kept:
                found.extend(self.samples(one.offset, one.count))
            return found[:limit]
        try:
            source = (self.path / "samples.jsonl").open("rb")
        except FileNotFoundError:
            return found
        with source:
            source.seek(offset)
            for line in source:
                if limit is not None and len(found) >= limit:
                    break
                try:
                    found.append(decode(line, Sample))
                except (msgspec.DecodeError, msgspec.ValidationError):
                    continue  # torn by a crash, or by a full disk
        return found

    def exit(self) -> Exit | None:
        """Read ``exit.json``: how the last process ended; None while one runs or when nobody saw the end."""
        try:
            return decode((self.path / "exit.json").read_bytes(), Exit)
        except (OSError, msgspec.DecodeError, msgspec.ValidationError):
            return None

    def log_tail(self, bytes: int = 65536) -> str:
        """Return the end of the engine's own output."""
        try:
            with (self.path / "engine.log").open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - bytes))
                return log.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def final_dir(self) -> Path | None:
        """Return the finished model's folder when it is there and sealed."""
        final = self.path / "final"
        return final if (final / MANIFEST).exists() else None

    def checkpoint_names(self) -> list[Path]:
        """Return the checkpoint folders, newest first, unverified."""
        try:
            found = [one for one in (self.path / "checkpoints").iterdir() if one.name.isdigit()]
        except OSError:
            return []
        return sorted(found, key=lambda one: int(one.name), reverse=True)

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints whose every file matches its manifest, newest first."""
        return [one for one in self.checkpoint_names() if not faults_of(one)]

    def alive(self) -> bool:
        """Tell whether a process holds the run's lock."""
        return reaper.held(self.lock_path)

    def state(self) -> RunStatus:
        """Tell what the run is doing or how it ended."""
        alive = self.alive()
        note = reaper.read_note(self.lock_path)
        seen = Seen()
        for event in self._last_events():
            seen.take(event)
        if alive:
            own = Seen()
            for event in self._last_events(note.since):
                own.take(event)
            own.step, own.total_steps = own.step or seen.step, own.total_steps or seen.total_steps
            return own.status_alive(note)
        return seen.status_dead(note, self.exit(), self.final_dir() is not None, self._step_word())

    def _step_word(self) -> str:
        try:
            return step_word(self.spec().method)
        except UserError:  # it cannot be resumed either; how it ended is still told
            return step_word("")

    def _last_events(self, since: int = 0) -> list[AnyEvent]:
        try:
            with self.events_path.open("rb") as source:
                size = source.seek(0, os.SEEK_END)
                start = max(since, size - _TAIL_BYTES)
                source.seek(start)
                lines = source.read().split(b"\n")
        except OSError:
            return []
        lines.pop()  # torn, or empty after the last newline
        whole = lines[1:] if start > since else lines
        return [event for line in whole if (event := parse_event(line)) is not None]


def _readable(spec: RunSpec) -> bytes:
    return msgspec.json.format(encode(spec), indent=2) + b"\n"
