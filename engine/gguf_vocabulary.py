"""A byte-level BPE tokenizer in a GGUF file: tokens, merges, special tokens, chat template, and how text is cut first.

llama.cpp does not read a tokenizer's own rule for cutting text into words: it knows a list of them by name
(``tokenizer.ggml.pre``). The rule is therefore recognised, and a tokenizer with another one refused.
"""

from __future__ import annotations

import json
import tempfile
from typing import Any

from engine.templates import end_of_turn
from workbench.errors import UserError

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_RULES = {_WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe", _WORDS + r"\p{N}" + _REST: "qwen2"}
"""The patterns of Llama 3 and of Qwen2, which differ in how many digits make a token."""
_BYTES = {"type": "ByteLevel", "add_prefix_space": False}


def add_vocabulary(writer: Any, tokenizer: Any, rows: int) -> None:
    """Write a tokenizer with its chat template.

    Args:
        writer: a ``gguf.GGUFWriter``.
        tokenizer: a fast tokenizer of transformers with a chat template.
        rows: of the embedding; ids without a token are filled up as unused.

    Raises:
        UserError: no byte-level BPE, or one whose rule llama.cpp does not know.
    """
    import gguf

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused("it is of the old, slow kind")
    parts = json.loads(backend.to_str())
    rule = cutting_rule(parts)
    added = {one["id"]: one for one in parts["added_tokens"]}
    texts = {number: text for text, number in parts["model"]["vocab"].items()}
    texts |= {number: one["content"] for number, one in added.items()}
    if max(texts) >= rows:
        raise _refused(f"it has {max(texts) + 1:,} tokens and the model {rows:,}")
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list([texts.get(number, f"[PAD{number}]") for number in range(rows)])
    writer.add_token_types(
        [
            kinds.UNUSED
            if number not in texts
            else kinds.NORMAL
            if number not in added
            else kinds.CONTROL
            if added[number]["special"]
            else kinds.USER_DEFINED
            for number in range(rows)
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=rows)
    special.chat_template = tokenizer.chat_template  # newer files keep it beside the configuration
    special.add_special_token.setdefault("bos", False)
    special.add_to_gguf(writer, quiet=True)
    ending = end_of_turn(tokenizer).token
    if ending != tokenizer.eos_token_id:
        writer.add_eot_token_id(ending)


def cutting_rule(parts: dict[str, Any]) -> str:
    """Name the rule by which a tokenizer cuts text into words, as llama.cpp calls it.

    Args:
        parts: a ``tokenizer.json``.

    Raises:
        UserError: no byte-level BPE, or a rule that llama.cpp does not know.
    """
    model, normalizer = parts["model"], parts.get("normalizer")
    if model["type"] != "BPE" or model.get("byte_fallback") or (parts.get("decoder") or {}).get("type") != "ByteLevel":
        raise _refused("it is no byte-level BPE")
    if normalizer is not None and normalizer["type"] != "NFC":
        raise _refused(f"it changes text first ({normalizer['type']})")
    first = parts.get("pre_tokenizer") or {}
    steps = first.get("pretokenizers", [first])
    last = steps[-1]
    if any(last.get(key) != value for key, value in _BYTES.items()):
        raise _refused("it puts a space before the text")
    if last.get("use_regex", True):
        if len(steps) == 1:
            return "gpt-2"
        if len(steps) == 2 and steps[0].get("type") == "Digits" and steps[0].get("individual_digits"):
            return "smollm"
    elif len(steps) == 2 and steps[0].get("type") == "Split" and steps[0].get("behavior") == "Isolated":
        rule = _RULES.get(steps[0]["pattern"].get("Regex", ""))
        if rule is not None:
            return rule
    raise _refused("it cuts text into words by a rule that llama.cpp has no name for")


def _refused(cause: str) -> UserError:
    return UserError(
        "This model's tokenizer cannot be written as GGUF", cause, "export it merged, and convert it with llama.cpp"
    )
