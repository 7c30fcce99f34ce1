"""What the window remembers between starts: theme, text size, recent projects, its geometry.

One small JSON file in the user's configuration folder. A damaged file means defaults, never a failed start.
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

RECENT_LIMIT = 10
_log = logging.getLogger("tastemaker.ui")


@dataclass
class Values:
    """The file's content. ``panes`` holds small facts of the panes (splitter sizes, last choices) by name."""

    theme: str = "system"
    text_size: str = "normal"
    rater_name: str = ""
    recent: list[str] = field(default_factory=list)
    geometry: str = ""
    panes: dict[str, str] = field(default_factory=dict)


class Settings:
    """The values, and their file; without a path nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.values = _read(path)
        self._lock = threading.Lock()

    def remember_project(self, project: Path) -> None:
        """Put a project first among the recent ones."""
        text = str(project)
        self.values.recent = [text, *(one for one in self.values.recent if one != text)][:RECENT_LIMIT]

    def forget_project(self, project: str) -> None:
        """Take a project off the list (its folder stays)."""
        self.values.recent = [one for one in self.values.recent if one != project]

    def pane(self, key: str, default: str = "") -> str:
        """Return what a pane kept under ``key``."""
        return self.values.panes.get(key, default)

    def set_pane(self, key: str, value: str) -> None:
        """Keep a small text for a pane until the next start."""
        self.values.panes[key] = value

    def save(self) -> None:
        """Write the file. A file that cannot be written is a line in the log: nothing of value is in it."""
        from workbench.jsonl import write_atomic  # late: reading them is all that a start needs

        if self.path is None:
            return
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(self.path, json.dumps(asdict(self.values), indent=1).encode())
            except OSError as error:
                _log.warning("the window's settings could not be saved: %s", error)


def _read(path: Path | None) -> Values:
    values = Values()
    if path is None:
        return values
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return values
    except (OSError, ValueError) as error:
        _log.warning("%s could not be read, so defaults are used: %s", path.name, error)
        return values
    if not isinstance(found, dict):
        return values
    for one in fields(Values):
        given = found.get(one.name)
        if _fits(given, getattr(values, one.name)):
            setattr(values, one.name, given)
    return values


def _fits(given: Any, default: Any) -> bool:
    """Whether a value of the file is of the kind that belongs there."""
    if isinstance(default, list):
        return isinstance(given, list) and all(isinstance(one, str) for one in given)
    if isinstance(default, dict):
        return isinstance(given, dict) and all(isinstance(one, str) for pair in given.items() for one in pair)
    return isinstance(given, type(default))
