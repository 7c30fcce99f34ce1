"""Which model a person means, and which one a method sensibly starts from."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from workbench.errors import UserError
from workbench.records import Method, ModelRecord, ModelRole

START_ROLES: dict[Method, tuple[ModelRole, ...]] = {
    "sft": ("base", "sft"),
    "reward": ("base", "sft", "policy"),
    "dpo": ("base", "sft", "policy"),
    "ppo": ("base", "sft", "policy"),
}
"""The roles that a method may start from."""


def find_model(models: Sequence[ModelRecord], text: str, roles: Sequence[ModelRole] = ()) -> ModelRecord:
    """Find the model that ``text`` names: a whole id or name, or the beginning of one name, or an end of one id.

    Raises UserError that lists near names, or the names that a beginning fits.
    """
    allowed = [one for one in models if not roles or one.role in roles]
    exact = [one for one in allowed if text in (one.id, one.name)]
    if exact:
        return exact[-1]
    start = text.casefold()
    fitting = [
        one
        for one in allowed
        if one.name.casefold().startswith(start)
        or (len(text) >= 6 and text in (one.id[: len(text)], one.id[-len(text) :]))
    ]
    if len(fitting) == 1:
        return fitting[0]
    kind = " or ".join(roles) + " model" if roles else "model"
    if fitting:
        names = ", ".join(repr(one.name) for one in fitting)
        raise UserError(f"{text!r} fits several models: {names}", "", "write the whole name")
    if not allowed:
        raise UserError(f"this project has no {kind} yet", "", "add or train one first")
    near = difflib.get_close_matches(text, [one.name for one in allowed], 3, 0.4) or [one.name for one in allowed][-5:]
    raise UserError(f"there is no {kind} {text!r}", "", "did you mean " + ", ".join(repr(name) for name in near) + "?")


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
