"""Prompts with one completion each as token ids: demonstrations (SFT, PPO-ptx) and judged responses (KTO)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from engine.adapters import Adapters
from engine.masking import Example, sft_example
from engine.session import Session
from engine.trainee import NOTHING_TO_TRAIN, report_fit
from workbench.rows import SftRow, ThumbRow


def encode_completions(
    session: Session, adapters: Adapters, name: str, what: str, limit: int, train_on: str = "completion"
) -> list[tuple[SftRow | ThumbRow, Example]]:
    """Encode a data file within ``limit`` tokens; what is left may be nothing.

    Rows without a trained token are left out; they and what was cut are told. ``what`` names the rows.
    """
    rows = cast(Sequence[SftRow | ThumbRow], session.rows(name))
    found = []
    for row in rows:
        ended = not isinstance(row, ThumbRow) or row.ended  # a demonstration is whole
        one = sft_example(adapters.base.tokenizer, row.prompt, row.completion, limit, train_on, ended=ended)
        if one.trained_tokens:
            found.append((row, one))
    dropped = len(rows) - len(found)
    report_fit(
        session,
        f"held-out {what}" if name == "heldout" else what,
        len(rows),
        {NOTHING_TO_TRAIN: dropped} if dropped else {},
        [one for _, one in found],
        limit,
    )
    return found


def encode_demonstrations(
    session: Session, adapters: Adapters, name: str, limit: int, train_on: str = "completion"
) -> tuple[list[Example], list[str]]:
    """Encode a data file of demonstrations. Returns (examples, row ids), perhaps empty."""
    found = encode_completions(session, adapters, name, "demonstrations", limit, train_on)
    return [one for _, one in found], [row.id for row, _ in found]
