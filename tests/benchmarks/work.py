"""The pieces of work that both sides do: real rows, the first that fit, in a fixed order, with all settings."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
METHODS = ("sft", "reward", "dpo", "ppo")
"""Of training; "generate" is sampling alone."""


@dataclass
class Work:
    """One method on some rows. A row's texts are lists of chat messages."""

    method: str
    steps: int
    batch: int  # rows of a step: demonstrations, pairs or episodes
    max_length: int
    learning_rate: float
    seed: int = 0
    response_length: int = 32  # PPO and generate
    responses: int = 1  # a prompt, in generate
    ppo_epochs: int = 2
    mini_batches: int = 1
    temperature: float = 0.7
    kl_coefficient: float = 0.05
    beta: float = 0.1  # DPO
    rows: list[dict[str, Any]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write the work as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Work:
        """Read what :meth:`write` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def make_work(method: str, data: Path, tokenizer: Any, *, steps: int = 0, batch: int = 0, length: int = 0) -> Work:
    """Choose the first rows that fit whole, so that no library cuts anything.

    Args:
        method: sft, reward, dpo, ppo or generate.
        data: the folder with ``alpaca_en_demo.json`` and ``dpo_en_demo.json``.
        tokenizer: with a chat template.
        steps: optimiser steps (rollouts for PPO); 0 for the method's own.
        batch: rows a step; 0 for the method's own.
        length: longest sequence (PPO: prompt); 0 for the method's own.
    """
    base = {
        "sft": Work("sft", steps=6, batch=4, max_length=384, learning_rate=2e-4),
        "reward": Work("reward", steps=5, batch=4, max_length=256, learning_rate=2e-4),
        "dpo": Work("dpo", steps=5, batch=2, max_length=512, learning_rate=5e-5),
        "ppo": Work("ppo", steps=3, batch=8, max_length=96, learning_rate=1e-4),
        "generate": Work("generate", 1, 8, 128, 0.0, response_length=128, responses=4),
    }[method]
    work = replace(base, steps=steps or base.steps, batch=batch or base.batch, max_length=length or base.max_length)
    rows = _demonstrations(data) if method == "sft" else _preferences(data)
    if method in ("ppo", "generate"):
        rows = [{"prompt": row["prompt"]} for row in rows if len(row["prompt"]) == 1]
    for row in rows:
        sizes = _sizes(tokenizer, row)
        if max(sizes) <= work.max_length and ("chosen" not in row or min(sizes) >= 32):
            work.rows.append(row | {"tokens": sum(sizes)})
        if len(work.rows) == work.steps * work.batch:
            return work
    raise SystemExit(f"only {len(work.rows)} rows of {work.max_length} tokens for {work.steps * work.batch}")


def even_work(data: Path, tokenizer: Any, *, length: int, batch: int, steps: int = 2) -> Work:
    """Demonstrations that are all of about one length (real text, joined and cut), for a curve over lengths or batches.

    Half of each is the prompt.
    """
    text = " ".join(row["completion"][0]["content"] for row in _demonstrations(data))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    work = Work("sft", steps=steps, batch=batch, max_length=length + 64, learning_rate=2e-4)
    half = (length - 32) // 2  # the template takes some 30 tokens
    for number in range(steps * batch):
        begin = (number * 2 * half) % (len(ids) - 2 * half)
        prompt, answer = (tokenizer.decode(ids[at : at + half]) for at in (begin, begin + half))
        row = {"prompt": [_said("user", prompt)], "completion": [_said("assistant", answer)]}
        work.rows.append(row | {"tokens": sum(_sizes(tokenizer, row))})
    return work


def _demonstrations(data: Path) -> list[dict[str, Any]]:
    rows = json.loads((data / "alpaca_en_demo.json").read_text(encoding="utf-8"))
    return [
        {
            "prompt": [_said("user", row["instruction"] + ("\n" + row["input"] if row.get("input") else ""))],
            "completion": [_said("assistant", row["output"])],
        }
        for row in rows
    ]


def _preferences(data: Path) -> list[dict[str, Any]]:
    rows = json.loads((data / "dpo_en_demo.json").read_text(encoding="utf-8"))
    return [
        {
            "prompt": [_said(ROLES[turn["from"]], turn["value"]) for turn in row["conversations"]],
            "chosen": [_said("assistant", row["chosen"]["value"])],
            "rejected": [_said("assistant", row["rejected"]["value"])],
        }
        for row in rows
    ]


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _sizes(tokenizer: Any, row: dict[str, Any]) -> list[int]:
    answers = [row[key] for key in ("completion", "chosen", "rejected") if key in row]
    if not answers:
        return [_tokens(tokenizer, row["prompt"], generation_prompt=True)]
    return [_tokens(tokenizer, row["prompt"] + answer) for answer in answers]


def _tokens(tokenizer: Any, messages: list[dict[str, str]], *, generation_prompt: bool = False) -> int:
    encoded = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=generation_prompt, return_dict=True
    )
    return len(encoded["input_ids"])
