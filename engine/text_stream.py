"""From token ids to text as it grows: no half characters, no lost spaces, and pieces that add up to the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\ufffd"
_LOOK_BACK_TOKENS = 6


class TextStream:
    """The text of one growing response.

    A token may be part of a character, and some tokenizers tell a space only from the token before: each step
    decodes a short window, and holds text back while it ends in an unfinished character. Special tokens print
    nothing.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # of the window
        self._told = 0  # ids whose text was given out

    def add(self, token: int) -> str:
        """Take one token and return the text that is certain now, perhaps none."""
        self._ids.append(token)
        before = self._decode(self._start, self._told)
        now = self._decode(self._start, len(self._ids))
        if now.endswith(_UNFINISHED) or len(now) <= len(before):
            return ""
        self._told = len(self._ids)
        self._start = max(self._start, self._told - _LOOK_BACK_TOKENS)
        return now[len(before) :]

    def rest(self) -> str:
        """Return what was held back: the end of a response that stopped within a character."""
        text = self._decode(self._start, len(self._ids))[len(self._decode(self._start, self._told)) :]
        self._told = len(self._ids)
        return text

    def _decode(self, start: int, end: int) -> str:
        return decode(self._tokenizer, self._ids[start:end])


def decode(tokenizer: Any, ids: Sequence[int], *, special: bool = False) -> str:
    """Decode ids as they are: special tokens left out (or kept), spaces untouched."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False))


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return each token's own text; special tokens show by name. Unfinished characters go to the last of their tokens.

    Without special tokens the texts add up to the decoded whole.
    """
    special = set(tokenizer.all_special_ids)
    stream = TextStream(tokenizer)
    texts = []
    for token in ids:
        if token in special:
            texts.append(stream.rest() + decode(tokenizer, [token], special=True))
            stream = TextStream(tokenizer)
        else:
            texts.append(stream.add(token))
    left = stream.rest()
    if left and texts:
        texts[-1] += left
    return texts
