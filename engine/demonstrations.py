"""Demonstrations as token ids, for SFT and for PPO-ptx, which mixes their loss into the policy's update."""

from __future__ import annotations

from typing import cast

from engine.adapters import Adapters
from engine.masking import Example, sft_example
from engine.session import Session
from engine.trainee import NOTHING_TO_TRAIN, report_fit
from workbench.rows import SftRow


def encode_demonstrations(
    session: Session, adapters: Adapters, name: str, limit: int, train_on: str = "completion"
) -> tuple[list[Example], list[str]]:
    """Encode a data file of demonstrations within ``limit`` tokens. Returns (examples, row ids), perhaps empty.

    Rows without a trained token are left out; they and what was cut are told.
    """
    rows = cast(list[SftRow], session.rows(name))
    examples, ids = [], []
    for row in rows:
        one = sft_example(adapters.base.tokenizer, row.prompt, row.completion, limit, train_on)
        if one.trained_tokens:
            examples.append(one)
            ids.append(row.id)
    what = "held-out demonstrations" if name == "heldout" else "demonstrations"
    dropped = len(rows) - len(examples)
    report_fit(session, what, len(rows), {NOTHING_TO_TRAIN: dropped} if dropped else {}, examples, limit)
    return examples, ids
