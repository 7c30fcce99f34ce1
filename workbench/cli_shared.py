"""What several commands share: misuse, how a project is opened beside other programs, and checked arguments."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Callable
from pathlib import Path

from workbench.errors import UserError
from workbench.project import Project
from workbench.run_registry import refresh_runs


class Misuse(UserError):
    """The command cannot be carried out as it was written, whatever the project holds: exit code 2."""


def open_to_read(path: Path) -> Project:
    """Open a project for reading, beside whoever else has it, once its list has what ended runs have made.

    Raises UserError when it cannot be read.
    """
    with contextlib.suppress(UserError), Project.open(path) as project:  # who has it open already keeps that list
        refresh_runs(project)
    return Project.open(path, read_only=True)


def at_least(low: int) -> Callable[[str], int]:
    """Make a parser of whole numbers from ``low`` on."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"wants a whole number of at least {low}, not {text[:20]!r}")
        return value

    return parse


def one_in(text: str) -> int:
    """Parse how many prompts there are for each one that is held out: 0 for none, else 2 or more."""
    value = at_least(0)(text)
    if value == 1:
        raise argparse.ArgumentTypeError("would hold out every prompt; give 2 or more, or 0 for none")
    return value


def temperature(text: str) -> float:
    """Parse a sampling temperature, from 0 (always the likeliest token) to 10."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 10:
        raise argparse.ArgumentTypeError(f"wants a number from 0 to 10, not {text[:20]!r}")
    return value


def seed(text: str) -> int:
    """Parse a seed: what the engine's generators take."""
    value = at_least(0)(text)
    if value >= 2**31:
        raise argparse.ArgumentTypeError("wants a number below 2147483648")
    return value


def key_value(text: str) -> tuple[str, str]:
    """Parse ``KEY=VALUE``."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise argparse.ArgumentTypeError(f"wants KEY=VALUE, not {text[:40]!r}")
    return key.strip(), value
