"""Settings as dataclass fields that carry their own meaning: help, unit, range, choices and source.

The form in the window, the command line's ``--set key=value`` and the checks are all made from these fields.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from workbench.errors import UserError

R = TypeVar("R")
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True, slots=True)
class Applies:
    """When a setting has an effect: while another one has one of some values; without values, while it is above 0."""

    field: str
    values: tuple[str, ...] = ()

    def met(self, recipe: Any) -> bool:
        """Whether a recipe heeds the setting."""
        value = getattr(recipe, self.field)
        return value in self.values if self.values else value > 0

    @property
    def wish(self) -> str:
        """What the other setting has to be: "gae or rloo", "empty", "above 0"."""
        return " or ".join(value or "empty" for value in self.values) or "above 0"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a person needs to know about one field of a recipe."""

    name: str
    type: type  # bool, int, float or str; an optional field is its inner type with optional=True
    default: Any
    help: str
    unit: str = ""
    low: float | None = None  # inclusive
    high: float | None = None
    choices: tuple[str, ...] = ()
    source: str = ""  # whose default this is
    group: str = "Training"
    optional: bool = False
    applies: Applies | None = None  # None: always


@dataclass(frozen=True, slots=True)
class Problem:
    """A fault of one field (or of the whole, ``field == ""``); an error blocks Start, a warning does not."""

    field: str
    message: str
    remedy: str = ""
    severity: str = "error"  # "error" or "warning"


def setting(
    default: Any,
    help: str,  # the word everybody uses for it
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    source: str = "",
    group: str = "Training",
    applies: Applies | None = None,
) -> Any:
    """Declare a recipe field with its meaning (see :class:`Setting`)."""
    about = {
        "help": help,
        "unit": unit,
        "low": low,
        "high": high,
        "choices": choices,
        "source": source,
        "group": group,
        "applies": applies,
    }
    return field(default=default, metadata=about)


def settings_of(recipe_type: type) -> tuple[Setting, ...]:
    """List the settings of a recipe class in the order they were declared."""
    hints = typing.get_type_hints(recipe_type)
    found = []
    for one in dataclasses.fields(recipe_type):
        if "help" not in one.metadata:
            continue
        kind, optional = _plain(hints[one.name])
        found.append(Setting(one.name, kind, one.default, optional=optional, **one.metadata))
    return tuple(found)


def range_problems(recipe: Any) -> list[Problem]:
    """Check every declared range and choice of a recipe."""
    found = []
    for one in settings_of(type(recipe)):
        value = getattr(recipe, one.name)
        if value is None:
            continue
        if one.choices and value not in one.choices:
            near = difflib.get_close_matches(str(value), one.choices, 1)
            hint = f"did you mean {near[0]}?" if near else "choose one of " + ", ".join(one.choices)
            found.append(Problem(one.name, f"{value!r} is no choice for {one.name}", hint))
        elif one.type in (int, float) and not _in_range(value, one):
            found.append(
                Problem(one.name, f"{one.name} is {_shown(value)}, outside {_range_text(one)}", "choose a value inside")
            )
    return found


def unused_problems(recipe: Any, standards: Sequence[Any]) -> list[Problem]:
    """Warn of every setting that has no effect and whose value is in none of ``standards`` (the defaults, presets)."""
    return [
        Problem(
            one.name,
            f"{one.name} has no effect while {one.applies.field} is {getattr(recipe, one.applies.field)}",
            f"set {one.applies.field} {'to ' if one.applies.values else ''}{one.applies.wish}, or {one.name} back",
            "warning",
        )
        for one in settings_of(type(recipe))
        if one.applies is not None
        and not one.applies.met(recipe)
        and all(getattr(recipe, one.name) != getattr(standard, one.name) for standard in standards)
    ]


def with_settings(recipe: R, given: Mapping[str, str], owners: Callable[[str], Sequence[str]] = lambda _name: ()) -> R:
    """Return the recipe with fields replaced from text (``--set beta=0.2``). One UserError names all faults.

    ``owners`` tells which methods have a setting that this recipe lacks.
    """
    known = {one.name: one for one in settings_of(type(recipe))}
    values: dict[str, Any] = {}
    faults = []
    for name, text in given.items():
        if name not in known:
            faults.append(_unknown(name, known, owners(name)))
            continue
        try:
            values[name] = parse_value(known[name], text)
        except ValueError:
            faults.append(f"{name} wants {_KINDS[known[name].type]}, not {text[:40]!r}")
    if faults:
        raise UserError(
            "The settings cannot be used",
            "; ".join(faults),
            "`tastemaker train --help` lists the settings of each method",
        )
    return dataclasses.replace(recipe, **values)  # type: ignore[type-var]


def _unknown(name: str, known: Mapping[str, Setting], owners: Sequence[str]) -> str:
    if owners:
        return f"{name!r} is a setting of {', '.join(owners)}, not of this method"
    near = difflib.get_close_matches(name, known, 1)
    return f"there is no setting {name!r}" + (f" (did you mean {near[0]}?)" if near else "")


def parse_value(one: Setting, text: str) -> Any:
    """Read a setting's value from text. Raises ValueError."""
    text = text.strip()
    if one.optional and text.lower() in ("", "none", "off"):
        return None
    if one.type is bool:
        if text.lower() in ("1", "true", "yes", "on"):
            return True
        if text.lower() in ("0", "false", "no", "off"):
            return False
        raise ValueError(text)
    if one.type is int:
        return int(text)
    if one.type is float:
        return float(text)
    return text


def _plain(hint: Any) -> tuple[type, bool]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return inner[0], True
    return (str, False) if typing.get_origin(hint) is typing.Literal else (hint, False)


def _in_range(value: float, one: Setting) -> bool:
    finite = isinstance(value, int) or math.isfinite(value)  # a long whole number fits no float
    return finite and (one.low is None or value >= one.low) and (one.high is None or value <= one.high)


def _shown(value: float) -> str:
    if isinstance(value, int) and abs(value) >= 10**15:
        return f"a number of {len(str(abs(value)))} digits"
    return f"{value:g}"


def _range_text(one: Setting) -> str:
    low = "-inf" if one.low is None else f"{one.low:g}"
    high = "inf" if one.high is None else f"{one.high:g}"
    return f"{low} to {high}"
