"""What is known about the text being written, without Qt: is it saved, must it be, and as what."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from workbench.records import Demonstration

HEAVY = 200_000
_ENDLESS = re.compile(r"\S{20000}")
Saved = Literal["none", "saved", "typing", "saving", "failed"]


def from_document(raw: str) -> str:
    """Turn a document's raw text into the text that was typed: Qt keeps paragraph ends as U+2029.

    ``toPlainText`` would also make a plain space of every no-break space, hence the raw text.
    """
    return raw.translate({0x2029: "\n", 0x2028: "\n", 0xFDD0: "\n", 0xFDD1: "\n"})


def too_heavy(text: str) -> bool:
    """Whether an editor would freeze over it: over 200 KB, or a line that never breaks."""
    return len(text) > HEAVY or _ENDLESS.search(text) is not None


def loses_in_editor(text: str) -> str:
    """Say what an editor changes about a text as soon as it is edited; "" for nothing."""
    found = []
    if "\r" in text:
        found.append("its Windows line ends become plain ones")
    if re.search("[\u2028\u2029\ufdd0\ufdd1]", text):
        found.append("its special line separators become line ends")
    if re.search("[\ufeff\ud800-\udfff]", text):
        found.append("its byte order marks or broken characters are dropped")
    return " and ".join(found)


@dataclass(frozen=True, slots=True)
class DraftState:
    """One prompt's demonstration while it is open."""

    prompt_id: str = ""
    stored: Demonstration | None = None  # the newest that is committed
    finished: str | None = None  # text of the newest final one: typing it again is not a new draft
    text: str = ""  # as it stands
    edited: bool = False  # a person changed it since it was opened; else nothing is ever saved
    saving: str | None = None  # text on its way to the disk
    error: str = ""
    author: str = ""  # of what stands: the rater, or a model whose draft nobody has touched

    @classmethod
    def open(cls, prompt_id: str, newest: Demonstration | None, unsaved: str | None = None) -> DraftState:
        """Open what is stored, or text that could not be saved before."""
        text = newest.text if newest else ""
        finished = newest.text if newest and newest.status == "final" else None
        state = cls(prompt_id, newest, finished, text)
        return state if unsaved is None else replace(state, text=unsaved, edited=True)

    @property
    def dirty(self) -> bool:
        """There is work that is not committed."""
        return self.edited and self.text != (self.stored.text if self.stored else "")

    @property
    def status(self) -> Literal["draft", "final"]:
        """What autosave would save it as: a draft, unless it reads again as the final one did."""
        return "final" if self.finished is not None and self.text == self.finished else "draft"

    @property
    def must_save(self) -> bool:
        """Autosave has something to do."""
        return self.dirty and self.text != self.saving

    @property
    def saved(self) -> Saved:
        """Where it stands."""
        if self.error:
            return "failed"
        if self.saving is not None:
            return "saving"
        if self.dirty:
            return "typing"
        return "saved" if self.stored else "none"

    def typed(self, text: str, author: str) -> DraftState:
        """A person changed the text."""
        return replace(self, text=text, edited=True, author=author)

    def sending(self) -> DraftState:
        """The text is on its way."""
        return replace(self, saving=self.text)

    def committed(self, newest: Demonstration, *, last: bool = True) -> DraftState:
        """A revision is on disk; ``last`` unless another one is on its way behind it."""
        finished = newest.text if newest.status == "final" else self.finished
        saving = None if last else self.saving
        return replace(self, stored=newest, finished=finished, saving=saving, error="")

    def refused(self, error: str) -> DraftState:
        """A revision could not be saved; the text stays here."""
        return replace(self, saving=None, error=error)
