"""Rows that the engine's tests train on: real words against letters that make none, and prompts for a quick PPO."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from engine.masking import pair_examples
from engine.pairs import EncodedPair
from engine.score import RewardModel
from workbench.records import Message
from workbench.rows import PairRow, PromptRow, SftRow, ThumbRow

GOOD, BAD = ("the hat", "then tea", "an ant in the heat", "that inn"), ("xx", "zz qq", "qx zx", "jj")

QUICK = {
    "rule": "contains:a",
    "episodes": 16,
    "batch": 8,
    "micro_batch": 4,
    "ppo_epochs": 2,
    "mini_batches": 2,
    "response_length": 12,
    "temperature": 1.0,
}
"""Settings of PPO: two steps of two short episodes a prompt or so, scored by a rule."""

LEARNS = {"epochs": 100, "max_steps": 25, "batch": 6, "micro_batch": 3, "learning_rate": 5e-3}
"""Settings with which a reward model tells those pairs apart."""

LEARNT = QUICK | {
    "episodes": 16 * 24,
    "batch": 24,
    "micro_batch": 24,
    "mini_batches": 1,
    "ppo_epochs": 4,
    "learning_rate": 4e-3,
    "value_learning_rate": 1e-2,
    "missing_eos_penalty": 0.0,
    "kl_coefficient": 0.02,
}
"""PPO that learns a rule in sixteen rollouts."""


def pair_rows(count: int = 12, name: str = "p") -> list[PairRow]:
    """As many rankings of two responses, one of them a good one, one tier or two apart."""
    return [
        PairRow(
            f"{name}{index}",
            f"g{index}",
            f"k{index}",
            "rater",
            (Message("user", f"say {index}"),),
            GOOD[index % 4],
            BAD[(index // 2) % 4],
            1 + index % 2,
        )
        for index in range(count)
    ]


def ranked_rows(count: int, name: str = "p") -> list[PairRow]:
    """All pairs of as many rankings of four, three and two responses, and so on: six, three and one pair."""
    return [
        PairRow(f"{name}{index}:{at}", f"g{index}", f"k{index}", "rater", (Message("user", f"say {index}"),), *pair)
        for index in range(count)
        for at, pair in enumerate(itertools.combinations((GOOD[index % 4], *BAD)[: 4 - index % 3], 2))
    ]


def rows_of(method: str, count: int, name: str = "p") -> list[Any]:
    """As many rows of a method, of those pairs: shown, ranked, judged (every other one wanted) or to be answered."""
    pairs = pair_rows(count, name)
    if method == "sft":
        return [SftRow(one.id, one.id, one.prompt, one.chosen) for one in pairs]
    if method == "kto":
        sides = [(one, one.rejected if n % 2 else one.chosen) for n, one in enumerate(pairs)]
        return [
            ThumbRow(one.id, one.id, one.ranking_id, one.rater_id, one.prompt, text, text in GOOD)
            for one, text in sides
        ]
    return [PromptRow(one.id, one.prompt) for one in pairs] if method == "ppo" else pairs


def prompts(count: int = 6, size: int = 1) -> list[PromptRow]:
    """As many prompts; ``size`` makes them longer."""
    return [PromptRow(f"p{index}", (Message("user", f"{'Say ' * size}{index}."),)) for index in range(count)]


def ranked(tokenizer: Any, texts: Sequence[str] = ("the hat", "an ant", "xx", "zz")) -> list[EncodedPair]:
    """All pairs of one ranking of some responses, the best first, encoded."""
    found = []
    for better, worse in itertools.combinations(texts, 2):
        chosen, rejected = pair_examples(tokenizer, [Message("user", "say")], better, worse, 256)
        found.append(EncodedPair(f"{better}>{worse}", "k", chosen, rejected))
    return found


def scores_in_words(model: RewardModel, rows: Iterable[tuple[Sequence[Message], str]]) -> list[float]:
    """Raw scores of (prompt, response) in words, in the order given."""
    return model.score_ids([model.encode(messages, text) for messages, text in rows]).tolist()
