"""Which model a person means, and which one a method sensibly starts from."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TypeVar

from workbench.errors import UserError
from workbench.records import Method, ModelRecord, ModelRole, RunRecord

T = TypeVar("T", ModelRecord, RunRecord)
SHOWN_OF_ID = 8
"""As many characters of an id's end are shown in lists."""

START_ROLES: dict[Method, tuple[ModelRole, ...]] = {
    "sft": ("base", "sft"),
    "reward": ("base", "sft", "policy"),
    "dpo": ("base", "sft", "policy"),
    "kto": ("base", "sft", "policy"),
    "ppo": ("base", "sft", "policy"),
}
"""The roles that a method may start from."""


def named(records: Sequence[T], text: str, what: str, *, whole: bool = False) -> T:
    """Find the one record that ``text`` names: by its whole name or id, or by a beginning of one.

    Args:
        records: to choose from.
        text: a name or id, the beginning of either, or an id's end of 6 characters or more.
        what: the records' kind, for the errors: "model", "run".
        whole: take no beginnings, only a whole name or id or an id's end as lists show it: for what cannot be undone.

    Raises UserError that lists near names, or the records that the text fits.
    """
    exact = [one for one in records if text in (one.id, one.name)]
    if len(text) >= (SHOWN_OF_ID if whole else 6):
        exact = exact or [one for one in records if one.id.endswith(text)]
    start = text.casefold()
    parts = [] if whole or not text else [one for one in records if _begins(one, start)]
    fitting = exact or parts
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        which = ", ".join(f"{one.name!r} ({one.id[-SHOWN_OF_ID:]})" for one in fitting)
        raise UserError(f"{text!r} fits several {what}s", f"it fits {which}", "write the whole name, or the id's end")
    if not records:
        raise UserError(f"There is no {what} {text!r}", f"this project has no {what} yet", "add or train one first")
    near = difflib.get_close_matches(text, [one.name for one in records], 3, 0.4) or [one.name for one in records][-5:]
    only = "only a whole name or id will do here" if whole else f"no {what} has such a name or id"
    remedy = "did you mean " + ", ".join(repr(name) for name in near) + "?"
    raise UserError(f"There is no {what} {text!r}", only, remedy)


def _begins(one: ModelRecord | RunRecord, start: str) -> bool:
    return one.name.casefold().startswith(start) or (len(start) >= 6 and one.id.startswith(start))


def find_model(
    models: Sequence[ModelRecord], text: str, roles: Sequence[ModelRole] = (), *, whole: bool = False
) -> ModelRecord:
    """Find the model that ``text`` names, among those with one of ``roles``. Raises UserError as :func:`named`."""
    allowed = [one for one in models if not roles or one.role in roles]
    return named(allowed, text, " or ".join(roles) + " model" if roles else "model", whole=whole)


def furthest_of_run(models: Sequence[ModelRecord], run_id: str) -> ModelRecord | None:
    """Return the model of a run that was trained furthest: an earlier checkpoint may be kept after the end. Or None."""
    return max((one for one in models if one.run_id == run_id), key=lambda one: one.step, default=None)


def by_training(models: Sequence[ModelRecord]) -> list[ModelRecord]:
    """Order models as they were trained: a checkpoint that was kept after the end stands before its run's end.

    Args:
        models: as they were listed, which else is the order.
    """
    ends = {one.run_id or one.id: place for place, one in sorted(enumerate(models), key=lambda each: each[1].step)}
    return sorted(models, key=lambda one: (ends[one.run_id or one.id], one.step))


def default_start(models: Sequence[ModelRecord], method: Method) -> ModelRecord | None:
    """Return what a method starts from when nothing is said: the newest SFT model, or else the newest base.

    SFT itself starts from a base. None when the project has no model.
    """
    newest = sorted(models, key=lambda one: (one.created_at, one.id), reverse=True)
    order: tuple[ModelRole, ...] = ("base",) if method == "sft" else ("sft", "base")
    return next((one for role in order for one in newest if one.role == role), None)


def default_reward(models: Sequence[ModelRecord], start: ModelRecord | None) -> ModelRecord | None:
    """Return the newest reward model on the same base as ``start``, or None."""
    base = (start.base_id or start.id) if start else ""
    fitting = [one for one in models if one.role == "reward" and (not base or one.base_id == base)]
    return max(fitting, key=lambda one: (one.created_at, one.id), default=None)
