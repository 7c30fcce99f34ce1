"""What a run has said so far, ready to be drawn: one pyramid for each metric, the marks, the warnings.

:func:`digest` turns events into a :class:`Batch` of arrays and may run on any thread; :meth:`RunHistory.apply` adds
a batch on the window's thread in well under a millisecond.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ui.pyramid import Array, Pyramid
from workbench.protocol import (
    AnyEvent,
    Checkpoint,
    Diverged,
    Metrics,
    Noted,
    Progress,
    SampleBatch,
    Started,
    Warned,
)

TREND_POINTS = 256
"""So many points of a stretch tell its trend; a long line is sampled evenly."""
MarkKind = Literal["checkpoint", "resume", "diverged"]


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at a step: a checkpoint, a resume, a loss that was no number."""

    step: int
    kind: MarkKind


@dataclass(slots=True)
class Batch:
    """New events, digested. ``cut_after`` comes first: history right of it was done again by a resumed process."""

    cut_after: int | None = None
    points: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    marks: list[Mark] = field(default_factory=list)
    samples: list[SampleBatch] = field(default_factory=list)
    warnings: list[Warned] = field(default_factory=list)
    notes: list[Noted] = field(default_factory=list)
    step: int = 0
    total_steps: int = 0
    elapsed_s: float = 0.0
    device: str = ""
    events: int = 0


def digest(events: Iterable[AnyEvent]) -> Batch:
    """Gather events into arrays, joining the segments of a resumed run at the step of its checkpoint."""
    batch = Batch()
    steps: dict[str, list[int]] = {}
    values: dict[str, list[float]] = {}
    for event in events:
        batch.events += 1
        batch.elapsed_s = event.elapsed_s or batch.elapsed_s
        match event:
            case Metrics():
                batch.step = max(batch.step, event.step)
                for key, value in event.values.items():
                    at = steps.setdefault(key, [])
                    if at and event.step <= at[-1]:
                        continue  # said before (memory, with the held-out numbers), or out of order: no line goes back
                    at.append(event.step)
                    values.setdefault(key, []).append(value)
            case Started():
                _restart(batch, steps, values, event)
            case Progress():
                batch.step, batch.total_steps = event.step, event.total_steps
            case Checkpoint():
                batch.marks.append(Mark(event.step, "checkpoint"))
            case SampleBatch():
                batch.samples.append(event)
            case Diverged():
                batch.marks.append(Mark(event.step, "diverged"))
            case Warned():
                batch.warnings.append(event)
            case Noted():
                batch.notes.append(event)
            case _:
                pass
    for key, at in steps.items():
        if at:
            batch.points[key] = (np.array(at, dtype=np.float64), np.array(values[key], dtype=np.float64))
    return batch


def _restart(batch: Batch, steps: dict[str, list[int]], values: dict[str, list[float]], event: Started) -> None:
    keep = event.resumed_from
    for key, at in steps.items():
        while at and at[-1] > keep:
            at.pop()
            values[key].pop()
    batch.cut_after = keep if batch.cut_after is None else min(batch.cut_after, keep)
    batch.marks = _still_true(batch.marks, keep)
    batch.samples = [one for one in batch.samples if one.step <= keep]
    batch.step = max(0, keep)
    batch.total_steps = event.total_steps or batch.total_steps
    batch.device = event.device
    if keep >= 0:
        batch.marks.append(Mark(keep, "resume"))


def _still_true(marks: list[Mark], keep: int) -> list[Mark]:
    """A checkpoint right of the resumed one is gone; that a loss was no number remains worth knowing."""
    return [mark for mark in marks if mark.step <= keep or mark.kind != "checkpoint"]


class RunHistory:
    """All that a run has logged, by metric key."""

    def __init__(self) -> None:
        self.lines: dict[str, Pyramid] = {}
        self.marks: list[Mark] = []
        self.samples: list[SampleBatch] = []
        self.warnings: list[Warned] = []
        self.notes: list[Noted] = []
        self.step = 0
        self.total_steps = 0
        self.elapsed_s = 0.0
        self.device = ""
        self.events = 0

    def apply(self, batch: Batch) -> set[str]:
        """Add a batch; returns the keys whose line changed."""
        changed: set[str] = set()
        if batch.cut_after is not None:
            for key, line in self.lines.items():
                if line.cut_after(batch.cut_after):
                    changed.add(key)
            self.marks = _still_true(self.marks, batch.cut_after)
            self.samples = [one for one in self.samples if one.step <= batch.cut_after]
            self.step = max(0, batch.cut_after)
        for key, (x, y) in batch.points.items():
            line = self.lines.setdefault(key, Pyramid())
            fresh = np.searchsorted(x, line.x[-1], side="right") if len(line) else 0
            line.append(x[fresh:], y[fresh:])
            changed.add(key)
        self.marks += batch.marks
        self.samples += batch.samples
        self.warnings += batch.warnings
        self.notes += batch.notes
        self.step = max(self.step, batch.step)
        self.total_steps = batch.total_steps or self.total_steps
        self.elapsed_s = batch.elapsed_s or self.elapsed_s
        self.device = batch.device or self.device
        self.events += batch.events
        return changed

    def last(self, key: str) -> tuple[float, float] | None:
        """Return the newest (step, value) of a metric."""
        line = self.lines.get(key)
        return (float(line.x[-1]), float(line.y[-1])) if line else None

    def newest(self) -> dict[str, float]:
        """Return the newest value of every metric that has one."""
        return {key: float(line.y[-1]) for key, line in self.lines.items() if line}

    def last_step(self) -> float:
        """Return the largest step of any line, or 0."""
        return max((float(line.x[-1]) for line in self.lines.values() if len(line)), default=0.0)

    def sample_steps(self) -> list[int]:
        """List the steps that have samples, oldest first."""
        return sorted({one.step for one in self.samples})

    def rows(self) -> Iterator[tuple[int, str, float]]:
        """Yield every point as (step, key, value)."""
        for key, line in self.lines.items():
            for step, value in zip(line.x, line.y, strict=True):
                yield int(step), key, float(value)


def trend(line: Pyramid) -> str:
    """Say in one word where a line goes: compares the last fifth with the fifth before it."""
    part = max(2, len(line) // 5)
    if len(line) < 2 * part:
        return "just begun"
    stride = -(-part // TREND_POINTS)
    now, before = line.y[-part::stride], line.y[-2 * part : -part : stride]
    now, before = now[np.isfinite(now)], before[np.isfinite(before)]
    if not len(now) or not len(before):
        return "no number"
    change = float(now.mean() - before.mean())
    noise = float(np.sqrt((now.var() + before.var()) / len(now)))
    scale = max(abs(float(before.mean())), 1e-12)
    if abs(change) <= max(2 * noise, 0.01 * scale):
        return "flat"
    return "rising" if change > 0 else "falling"
