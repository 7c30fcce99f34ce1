"""How many floating-point operations a piece of work needs at least: what the measured rate is held against.

Counted are the matrix products of a frozen base with LoRA: forward, and the gradient of activations (not of frozen
weights); the LM head on trained positions only; attention over the tokens that a token sees. Recomputation, padding
and whatever else a program does beyond that is its own loss.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from work import Work


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's size."""

    linear: int  # weights of all linear layers inside the blocks
    layers: int
    width: int  # heads x their width
    head: int  # weights of the LM head


def shape_of(model: Path) -> Shape:
    """Read a model's shape from its config."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    hidden, layers, inner = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    wide, narrow = heads * head_dim, (config.get("num_key_value_heads") or heads) * head_dim
    return Shape(
        layers * (2 * hidden * wide + 2 * hidden * narrow + 3 * hidden * inner),
        layers,
        wide,
        config["vocab_size"] * hidden,
    )


def needed_flops(work: Work, shape: Shape, tokens: int, tokenizer: Any) -> float:
    """Operations of one sample (demonstration, pair, episode, response), on average over the work.

    Args:
        work: the rows, with the tokens of each.
        shape: of the model.
        tokens: all real tokens of the work, responses that were drawn included (generate: these alone).
        tokenizer: to count the trained tokens.
    """
    rows = len(work.rows)
    mean = tokens / rows
    sides = 2 if work.method in ("reward", "dpo") else 1
    length = mean / sides
    attention = 4 * shape.layers * shape.width * length / 2  # forward, a token, causal
    if work.method == "generate":  # a response: its share of the prompt's pass, and its own tokens
        drawn = mean / work.responses
        passed = drawn + sum(row["tokens"] for row in work.rows) / rows / work.responses
        return passed * (2 * shape.linear + attention) + drawn * 2 * shape.head
    if sides == 2:  # both sides begin with the prompt, which needs to pass but once
        mean -= sum(_prompt(row, tokenizer) for row in work.rows) / rows
    forward = mean * (2 * shape.linear + attention)
    backward = mean * (2 * shape.linear + 2 * attention)
    if work.method == "reward":
        return forward + backward
    if work.method in ("sft", "dpo"):
        trained = sum(_trained(row, tokenizer) for row in work.rows) / rows
        return forward + backward + trained * 4 * shape.head  # logits, and their product with the head again
    drawn = mean - sum(row["tokens"] for row in work.rows) / rows
    once = drawn * 2 * shape.head
    rollout = forward + once
    measured = 4 * forward + 2 * once  # policy, reference, value, reward; two of them with the head
    update = work.ppo_epochs * (2 * (forward + backward) + 2 * once)
    return rollout + measured + update


def _prompt(row: dict[str, Any], tokenizer: Any) -> int:
    made = tokenizer.apply_chat_template(row["prompt"], tokenize=True, add_generation_prompt=True, return_dict=True)
    return len(made["input_ids"])


def _trained(row: dict[str, Any], tokenizer: Any) -> int:
    answers = [row[key][0]["content"] for key in ("completion", "chosen", "rejected") if key in row]
    return sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in answers)
