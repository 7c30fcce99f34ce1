"""A training method's view of its run: what to train, where to report, when to save, pause and stop.

A method is ``run(session)``: it loads, restores ``session.latest_checkpoint()`` if there is one, and loops over
steps, calling ``session.metrics(...)`` and then ``session.at_step_end(step, total, save)`` after each, and
``session.finish(write)`` at the end. Everything that a process must do besides training is here, composed.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine import checkpoints
from engine.control import Control, Stopped
from engine.events import EventLog, SampleFile
from engine.memory import PhasePeaks, bytes_for_run, memory_bytes
from workbench.batch_units import refuse_batch_of_pairs
from workbench.errors import UserError
from workbench.manifests import total_bytes
from workbench.memory_choice import without_plan
from workbench.memory_plan import PHASE_OF
from workbench.nvidia import has_gpu
from workbench.protocol import (
    PROTOCOL_VERSION,
    AnyEvent,
    Checkpoint,
    Command,
    Diverged,
    Memory,
    Metrics,
    Noted,
    Paused,
    Phase,
    Pong,
    Progress,
    Sample,
    SampleBatch,
    SampleNow,
    SaveNow,
    Started,
    Stop,
    Unpaused,
    Warned,
)
from workbench.protocol_version import refuse_other
from workbench.recipes import Recipe
from workbench.run_folder import STOPPING_PHASE, Row, RunFolder
from workbench.terminal import in_bytes

_PROGRESS_EVERY_S = 0.5
_VERSIONED = ("torch", "transformers", "peft", "bitsandbytes", "tastemaker")


class DivergedError(Exception):
    """A loss or gradient was NaN or infinite."""

    def __init__(self, step: int, metric: str, kind: str) -> None:
        super().__init__(f"{metric} was {kind} at step {step}")
        self.step = step
        self.metric = metric
        self.kind = kind


class Session:
    """One training process's run. See the module's first lines for how a method uses it.

    Args:
        folder: the run folder.
        control: commands; without one (in tests) a fresh one that nobody commands.
        events: the log of events, when the caller has it open already.
        device: where to train; by default as the recipe says.
    """

    def __init__(
        self,
        folder: Path,
        *,
        control: Control | None = None,
        events: EventLog | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.folder = folder
        self.run_folder = RunFolder(folder)
        self.spec = self.run_folder.spec()
        refuse_other(self.spec)
        refuse_batch_of_pairs(self.run_folder, self.spec)
        self.recipe: Recipe = without_plan(self.run_folder.recipe(self.spec))
        self.device = device or training_device(self.recipe.device)
        self.control = control or Control()
        self.step = 0
        self.total_steps = 0
        self._own_events = events is None
        self._events = events or EventLog(folder)
        self._samples = SampleFile(folder)
        self._phase = ""
        self._memory = PhasePeaks(self.device)
        self._model_bytes = 0
        self._stepped = False
        self._last_progress = 0.0
        self._pace: tuple[float, int] | None = None
        self._said: set[str] = set()
        self.control.status = self._pong
        self.control.heard = self._on_command
        checkpoints.sweep(self.checkpoints_dir)
        checkpoints.sweep(folder)
        checkpoints.seed_all(self.recipe.seed)
        found = checkpoints.newest_good(self.checkpoints_dir)
        self._resume_from = found.path
        # What was decided by the memory that was free, by name: a checkpoint keeps it and a resumed run follows it.
        self.choices: dict[str, str] = checkpoints.load_choices(found.path) if found.path else {}
        self.step = int(found.path.name) if found.path else 0
        self._emit(
            Started(
                pid=os.getpid(),
                device=device_name(self.device),
                resumed_from=int(found.path.name) if found.path else -1,
                protocol=PROTOCOL_VERSION,
                versions=versions(),
                available_bytes=bytes_for_run(self.device),
            )
        )
        if found.path is None:
            for note in self.spec.notes:
                self.note("plan", note)
        for path, faults in found.damaged:
            instead = f"step {found.path.name} is used instead" if found.path else "training starts again from step 0"
            self.warn("checkpoint-damaged", f"The checkpoint of step {path.name} is damaged ({faults}); {instead}")
            checkpoints.set_aside(path)

    # ---- what to train --------------------------------------------------------------------------------------

    @property
    def checkpoints_dir(self) -> Path:
        """Where checkpoints are kept."""
        return self.folder / "checkpoints"

    def rows(self, name: str) -> list[Row]:
        """Read a frozen data file: "train", "heldout" or "demonstrations". Raises UserError if it was changed."""
        return self.run_folder.rows(name, self.spec)

    def latest_checkpoint(self) -> Path | None:
        """Return the newest sound checkpoint to resume from (its step is the folder's name); None to begin.

        After restoring model and optimiser from it, call :meth:`restore_rng`.
        """
        return self._resume_from

    def restore_rng(self) -> None:
        """Put all random number generators back to where the checkpoint left them; nothing at a first start.

        To be called last before the first step, since loading models draws random numbers.
        """
        if self._resume_from is not None:
            checkpoints.restore_rng(self._resume_from)

    # ---- what to say ----------------------------------------------------------------------------------------

    @property
    def phase_name(self) -> str:
        """What is being done now."""
        return self._phase

    def phase(self, name: str, detail: str = "") -> None:
        """Say what is being done now: loading, reference, training, rollout, score, update, evaluating, saving.

        Raises Stopped when a stop was asked for before the first step of this process: nothing is lost by it.
        """
        if self.control.stop_asked() and not self._stepped:
            raise Stopped(self.step if self._resume_from else -1)
        if self._phase == "preparing":
            self._model_bytes = memory_bytes(self.device)[0]
        self._phase = name
        self._memory.enter(name)
        self._emit(Phase(name=name, detail=detail))

    def metrics(self, step: int, values: Mapping[str, float | Tensor]) -> None:
        """Report values at a step, by the glossary's names. Memory is added; what is not finite is left out, aloud."""
        numbers = {name: float(value) for name, value in values.items()}
        for name in [name for name, value in numbers.items() if not math.isfinite(value)]:
            del numbers[name]
            if name not in self._said:
                self._said.add(name)
                self.warn("not-finite", f"{name} was not a finite number at step {step}; such points are left out")
        now = memory_bytes(self.device)[0]
        peak = max(now, *self._memory.read().values(), 0)
        numbers.setdefault("perf/memory_bytes", float(now))
        numbers.setdefault("perf/peak_memory_bytes", float(peak))
        self._emit(Metrics(step=step, values=numbers))

    def warn(self, code: str, message: str, remedy: str = "") -> None:
        """Tell the researcher something; ``code`` names the kind."""
        self._emit(Warned(code=code, message=message, remedy=remedy))

    def note(self, code: str, message: str) -> None:
        """Tell the researcher something that is no fault; ``code`` names the kind."""
        self._emit(Noted(code=code, message=message))

    def progress(self, step: int, total: int) -> None:
        """Say how far it is, at most twice a second; the time left is estimated from this process's own pace."""
        now = time.monotonic()
        self.step, self.total_steps = step, total
        if self._pace is None:
            self._pace = (now, step)
        began, first = self._pace
        if now - self._last_progress < _PROGRESS_EVERY_S and step != total:
            return
        self._last_progress = now
        eta = (now - began) / (step - first) * (total - step) if step > first else -1.0
        self._emit(Progress(step=step, total_steps=total, eta_s=round(eta, 1)))

    def write_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Append samples and say where they are."""
        with self.control.whole():
            offset, kept = self._samples.append(samples)
            if kept:
                self._emit(SampleBatch(step=step, offset=offset, count=len(samples)))
            else:
                self.warn("disk-full", f"The samples of step {step} could not be written: the disk is full")

    def sample_asked(self) -> bool:
        """Whether the researcher asked for evaluation samples now; true once for each asking."""
        return self.control.take_sample()

    # ---- when to save, pause and stop -----------------------------------------------------------------------

    def checkpoint_due(self, step: int) -> bool:
        """Whether the recipe asks for a checkpoint at this step."""
        return self.recipe.save_every > 0 and step > 0 and step % self.recipe.save_every == 0

    def at_step_end(self, step: int, total: int, save: Callable[[Path], None]) -> None:
        """Do what is due between two steps: report, checkpoint, pause, stop.

        Args:
            step: steps done so far, of ``total``.
            total: optimiser steps (rollouts for PPO) of the whole run.
            save: writes into the folder it is given all that resuming at this step needs: the model as a plain
                peft folder, and files whose names begin with ``state`` (optimiser, position). Random numbers are
                added here.

        Raises:
            Stopped: after saving, if that was asked for. Not to be caught by a method.
        """
        self.control.check_cancelled()
        self._stepped = True
        self.progress(step, total)
        if self.control.take_save() or self.checkpoint_due(step):
            self._save_at_last(step, save)
        self._wait_while_paused(step, save)
        stop = self.control.stop_asked()
        if stop is not None:
            self._say_memory()
            raise Stopped(self._save_at_last(step, save) if stop.save else -1)

    def pause_and_save(self, code: str, message: str, remedy: str = "") -> None:
        """Warn, and at the next step's end save and wait for the researcher (PPO's ``max_kl``)."""
        self.warn(code, message, remedy)
        self.control.save_asked = True
        self.control.paused = True

    def check_finite(self, step: int, metric: str, value: Tensor | float, row_ids: Iterable[str] = ()) -> None:
        """Raise DivergedError, with an event that names the rows, unless every element is finite."""
        tensor = torch.as_tensor(value)
        if bool(torch.isfinite(tensor).all()):
            return
        kind = "nan" if bool(torch.isnan(tensor).any()) else "inf"
        self._emit(Diverged(step=step, metric=metric, kind=kind, rows=tuple(row_ids)))
        raise DivergedError(step, metric, kind)

    def finish(self, write_final: Callable[[Path], None]) -> None:
        """Write ``final/`` as one act. ``write_final`` fills the folder with the plain peft adapter and its extras."""
        self.phase("saving", "the finished model")
        self._say_memory()

        def attempt() -> None:
            checkpoints.write_folder(self.folder / "final", write_final, **self._manifest("final", self.step))

        while True:
            try:
                attempt()
                return
            except checkpoints.DiskFullError as error:
                self._wait_for_space("The finished model", self.step, error)

    def close(self) -> None:
        """Close the session's files (a training process just ends)."""
        self._samples.close()
        if self._own_events:
            self._events.close()

    def _say_memory(self) -> None:
        """Keep what each phase held at most: it corrects the next plan."""
        peaks = self._memory.read()
        self._emit(Memory(peaks=peaks, model_bytes=self._model_bytes))
        shown = {name: size for name, size in peaks.items() if name in PHASE_OF}
        said = ", ".join(f"{name} {in_bytes(size)}" for name, size in shown.items())
        self.note("memory", f"Memory held at most, by phase: {said}")

    # ---- inside ---------------------------------------------------------------------------------------------

    def _save_at_last(self, step: int, save: Callable[[Path], None]) -> int:
        """Save; while the disk is full, pause and try again when the researcher says Resume or Stop."""
        while True:
            try:
                self._save(step, save)
                return step
            except checkpoints.DiskFullError as error:
                self._wait_for_space(f"The checkpoint of step {step}", step, error)

    def _save(self, step: int, save: Callable[[Path], None]) -> None:
        destination = self.checkpoints_dir / str(step)
        if checkpoints.is_sound(destination):
            return
        before, self._phase = self._phase, "saving"
        newest = checkpoints.newest_good(self.checkpoints_dir).path

        def write(folder: Path) -> None:
            save(folder)
            checkpoints.save_choices(folder, self.choices)
            checkpoints.save_rng(folder)

        size = checkpoints.write_folder(
            destination,
            write,
            expected_bytes=total_bytes(newest) if newest else 0,
            **self._manifest("checkpoint", step),
        )
        checkpoints.prune(self.checkpoints_dir, self.recipe.keep_checkpoints)
        self._emit(Checkpoint(step=step, path=f"checkpoints/{step}", bytes=size))
        self._events.sync()
        self._phase = before

    def _wait_for_space(self, what: str, step: int, error: checkpoints.DiskFullError) -> None:
        self.warn(
            "disk-full",
            f"{what} was not written: it needs about {error.needed:,} bytes and {error.free:,} are free; "
            "the run waits and what was saved before is kept",
            f"free space on the disk of {self.folder.name}, then Resume; or stop without saving",
        )
        self.control.stop = None
        self.control.paused = True
        self._wait_while_paused(step, None)
        stop = self.control.stop_asked()
        if stop is not None and not stop.save:
            raise Stopped

    def _wait_while_paused(self, step: int, save: Callable[[Path], None] | None) -> None:
        if not self.control.paused or self.control.stop_asked():
            return
        self._emit(Paused(step=step))
        began = time.monotonic()
        while self.control.paused and not self.control.stop_asked():
            self.control.changed.wait(0.5)
            self.control.changed.clear()
            self.control.check_cancelled()
            if save is not None and self.control.take_save():
                try:
                    self._save(step, save)
                except checkpoints.DiskFullError as error:
                    self.warn("disk-full", f"The checkpoint of step {step} was not written: {error}")
        self.control.paused = False
        self._emit(Unpaused(step=step))
        if self._pace is not None:  # a pause is not training time
            self._pace = (self._pace[0] + time.monotonic() - began, self._pace[1])

    def _manifest(self, kind: str, step: int) -> dict[str, Any]:
        return {
            "kind": kind,
            "run_id": self.spec.run_id,
            "method": self.spec.method,
            "step": step,
            "base_name": Path(self.spec.model.base).name,
            "base_sha256": self.spec.model.base_sha256,
        }

    def _emit(self, event: AnyEvent) -> None:
        with self.control.whole():
            self._events.emit(event)

    def _pong(self) -> Pong:
        return Pong(seq=self._events.seq, step=self.step, phase=self._phase)

    def _on_command(self, command: Command) -> None:
        if isinstance(command, Stop):
            self._events.emit(Phase(name=STOPPING_PHASE, detail="at the end of this step"))
        elif isinstance(command, SaveNow | SampleNow):
            does = "saves" if isinstance(command, SaveNow) else "draws samples"
            self._events.emit(Phase(name=self._phase or "training", detail=f"{does} at the end of this step"))


def choose_device(wanted: str) -> torch.device:
    """Resolve "auto", "cuda" or "cpu". Raises UserError when a GPU is asked for and there is none."""
    if wanted == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if wanted == "cuda":
        raise UserError(
            "This run asks for a GPU and PyTorch finds none",
            "the driver is missing, or this build of PyTorch has no CUDA",
            "choose the device auto or cpu, or mend the driver (see `tastemaker doctor`)",
        )
    return torch.device("cpu")


def training_device(wanted: str) -> torch.device:
    """Resolve the device of a run, as :func:`choose_device`.

    Raises UserError where "auto" found a GPU when the run was planned and PyTorch finds none now: preset, memory plan
    and the place in the line were made for the GPU, and the CPU might take a hundred times as long.
    """
    device = choose_device(wanted)
    if wanted == "auto" and device.type == "cpu" and has_gpu():
        raise UserError(
            "This machine has an NVIDIA GPU and PyTorch cannot use it",
            "the driver does not answer or is too old for this PyTorch, or this build of PyTorch has no CUDA; the run "
            "was planned for the GPU and does not go to the CPU unasked",
            "see `nvidia-smi` and `tastemaker doctor` and resume; or start a run with the device cpu (to resume this "
            "one on the CPU, set CUDA_VISIBLE_DEVICES=-1 first)",
        )
    return device


def device_name(device: torch.device) -> str:
    """Name a device for people: "cpu", or "cuda:0 (NVIDIA ...)"."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def versions() -> dict[str, str]:
    """Return the versions of what trains."""
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
