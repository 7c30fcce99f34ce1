"""What to do about a run folder or an engine that speaks another version of the protocol.

Reading is always tried: unknown fields are ignored, unknown events skipped, and what is old stays readable. Nothing is
written into a run of another version and nothing is resumed, and a run of a newer one is given no command either.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from workbench.errors import UserError
from workbench.protocol import PROTOCOL_VERSION, RunSpec

VARIABLE = "TASTEMAKER_PROTOCOL"
"""Tells an engine that is started what its starter speaks."""


class _Peek(msgspec.Struct):
    protocol: int = PROTOCOL_VERSION
    name: str = ""


def _peek(raw: bytes) -> _Peek:
    try:
        return msgspec.json.decode(raw, type=_Peek)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return _Peek()


def is_newer(spec: RunSpec) -> bool:
    """Tell whether a run was made by a newer version: then it is only to be read."""
    return spec.protocol > PROTOCOL_VERSION


def problem_of(spec: RunSpec) -> UserError | None:
    """Return why a run can only be read, with the remedy; None for one of our own version."""
    return _problem(spec.name, spec.protocol)


def refuse_other(spec: RunSpec) -> None:
    """Raise UserError for a run of another version, before anything would be written into it."""
    if (problem := problem_of(spec)) is not None:
        raise problem


def refuse_newer(run_dir: Path) -> None:
    """Raise UserError for a run of a newer version, whose engine may take our commands for others."""
    try:
        seen = _peek((run_dir / "recipe.json").read_bytes())
    except OSError:
        return  # a run whose recipe is lost can still be stopped
    if seen.protocol > PROTOCOL_VERSION and (problem := _problem(seen.name, seen.protocol)) is not None:
        raise problem


def problem_of_raw(raw: bytes) -> UserError | None:
    """The same of a ``recipe.json`` that we cannot decode; None where it is not its version that makes it so."""
    seen = _peek(raw)
    return _problem(seen.name, seen.protocol)


def refuse_other_starter() -> None:
    """Raise UserError in an engine whose starter said that it speaks another version: it was updated meanwhile."""
    said = os.environ.get(VARIABLE, "")
    if said and said != str(PROTOCOL_VERSION):
        raise UserError(
            "The engine is of another version than the window",
            f"the window speaks protocol {said[:12]}, and the engine that is installed now {PROTOCOL_VERSION}",
            "close the window and open it again: Tastemaker was updated meanwhile",
        )


def _problem(name: str, protocol: int) -> UserError | None:
    if protocol == PROTOCOL_VERSION:
        return None
    newer = protocol > PROTOCOL_VERSION
    return UserError(
        f"The run {name!r} is of {'a newer' if newer else 'an older'} version of Tastemaker",
        f"it speaks protocol {protocol} and this version {PROTOCOL_VERSION}, so it can only be read",
        "update Tastemaker to command or resume it"
        if newer
        else "start a new run with its settings; its models and checkpoints are of use as they are",
    )
