"""From a prompt and a completion to token ids and a mask of what is trained; truncation, counted.

Truncation keeps the end of the prompt, where the question is, and the completion whole: the prompt loses its
beginning (but never its BOS), though never more than leaves it half the window; only then does the completion lose
its end, and with it EOS. ``keep_start`` is TRL's rule (cut the end of everything), for comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.templates import encode_pair, encode_prompt, end_of_turn
from workbench.records import Message

IGNORED = -100
"""Label of a token that is not trained, as everywhere in the field."""


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence: ``input_ids`` [T] and ``mask`` [T], True where the token is trained (or its log-prob counted)."""

    input_ids: tuple[int, ...]
    mask: tuple[bool, ...]
    prompt_length: int
    cut_prompt: int = 0  # tokens of the prompt's beginning that were cut
    cut_completion: int = 0  # tokens of the completion's end that were cut, EOS among them

    @classmethod
    def plain(cls, ids: Sequence[int], start: int | None = None) -> Example:
        """Ids whose tokens from ``start`` on are counted; without one none is."""
        first = len(ids) if start is None else start
        return cls(tuple(ids), (False,) * first + (True,) * (len(ids) - first), first)

    @property
    def truncated(self) -> bool:
        """Whether anything was cut."""
        return bool(self.cut_prompt or self.cut_completion)

    @property
    def trained_tokens(self) -> int:
        """How many tokens have a loss. The first token of a sequence is predicted by nothing and has none."""
        return sum(self.mask[1:])

    @property
    def labels(self) -> list[int]:
        """Ids where trained, -100 elsewhere: the form in which TRL and transformers hold a mask."""
        return [token if keep else IGNORED for token, keep in zip(self.input_ids, self.mask, strict=True)]


def fit(
    prompt: Sequence[int], completions: Sequence[Sequence[int]], max_length: int, *, bos: int | None = None
) -> tuple[list[int], list[list[int]], int, list[int]]:
    """Cut one prompt and its completions (one, or a pair that shares it) to a window of ``max_length`` tokens.

    Returns (prompt, completions, tokens cut from the prompt, tokens cut from each completion).
    """
    longest = max((len(one) for one in completions), default=0)
    room = max(max_length - longest, max_length // 2, 1)
    kept = keep_end(prompt, room, bos=bos)
    cut = [list(one[: max_length - len(kept)]) for one in completions]
    lost = [len(one) - len(left) for one, left in zip(completions, cut, strict=True)]
    return kept, cut, len(prompt) - len(kept), lost


def keep_end(prompt: Sequence[int], room: int, *, bos: int | None = None) -> list[int]:
    """Cut a prompt to its last ``room`` tokens; a BOS at its start stays."""
    if len(prompt) <= room:
        return list(prompt)
    if bos is not None and prompt and prompt[0] == bos and room > 1:
        return [bos, *prompt[len(prompt) - room + 1 :]]
    return list(prompt[len(prompt) - room :])


def sft_example(
    tokenizer: Any,
    messages: Sequence[Message],
    completion: str,
    max_length: int,
    train_on: str = "completion",
    *,
    ended: bool = True,
    ending: str = "eos",
    truncation: str = "keep_prompt_end",
) -> Example:
    """Encode a demonstration: ids of the whole conversation and which of them are trained.

    Args:
        tokenizer: with a chat template.
        messages: the prompt.
        completion: the answer, in words.
        max_length: the window in tokens.
        train_on: "completion", or "conversation" for every token.
        ended: False for a response that was cut off: it has no end.
        ending: "eos" ends at the end-of-turn token; "template" keeps what the template prints behind it (TRL).
        truncation: "keep_prompt_end", or "keep_start" (TRL).
    """
    prompt, answer = encode_pair(tokenizer, messages, completion, ended=ended, ending=ending)
    return _example(prompt, answer, max_length, train_on, bos=end_of_turn(tokenizer).bos, truncation=truncation)


def pair_examples(
    tokenizer: Any,
    messages: Sequence[Message],
    chosen: str,
    rejected: str,
    max_length: int,
    *,
    ended: tuple[bool, bool] = (True, True),
    ending: str = "eos",
    truncation: str = "keep_prompt_end",
) -> tuple[Example, Example]:
    """Encode a preference; both sides share the ids of their prompt (the shorter of the two common prefixes).

    A side that was cut off has not ``ended``, and has no end.
    """
    first = encode_pair(tokenizer, messages, chosen, ended=ended[0], ending=ending)
    second = encode_pair(tokenizer, messages, rejected, ended=ended[1], ending=ending)
    shared = min(len(first[0]), len(second[0]))
    prompt = first[0][:shared]
    sides = [first[0][shared:] + first[1], second[0][shared:] + second[1]]
    bos = end_of_turn(tokenizer).bos
    if truncation == "keep_start":
        one, two = (_example(prompt, side, max_length, "completion", bos=bos, truncation=truncation) for side in sides)
        return one, two
    kept, cut, lost_prompt, lost = fit(prompt, sides, max_length, bos=bos)
    one, two = (
        Example((*kept, *side), (False,) * len(kept) + (True,) * len(side), len(kept), lost_prompt, gone)
        for side, gone in zip(cut, lost, strict=True)
    )
    return one, two


def prompt_ids(tokenizer: Any, messages: Sequence[Message], room: int) -> tuple[list[int], int]:
    """Encode a prompt for sampling within ``room`` tokens. Returns (ids, tokens cut from its beginning)."""
    ids = encode_prompt(tokenizer, messages)
    kept = keep_end(ids, room, bos=end_of_turn(tokenizer).bos)
    return kept, len(ids) - len(kept)


def _example(
    prompt: list[int], answer: list[int], max_length: int, train_on: str, *, bos: int | None, truncation: str
) -> Example:
    if truncation == "keep_start":
        lost_prompt = 0
        whole = (prompt + answer)[:max_length]
        kept, side = whole[: len(prompt)], whole[len(prompt) :]
        gone = len(answer) - len(side)
    else:
        kept, [side], lost_prompt, [gone] = fit(prompt, [answer], max_length, bos=bos)
    before = train_on == "conversation"
    mask = (before,) * len(kept) + (True,) * len(side)
    return Example((*kept, *side), mask, len(kept), lost_prompt, gone)
