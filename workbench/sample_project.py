"""The sample project: prompts, demonstrations and rankings of a researcher who likes short, plain, honest answers.

``assets/sample/*.jsonl`` holds one :class:`SampleEntry` a line; everything in it is written for this project.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from workbench.errors import UserError
from workbench.ids import new_id, now
from workbench.jsonl import read_jsonl
from workbench.project import Project
from workbench.records import Demonstration, Message, Prompt, Ranking, Rater, Response, ResponseFlag

ASSETS = Path(__file__).resolve().parent.parent / "assets"
RATER_NAME = "Sample rater"


class SampleEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt of the sample with what was written and judged about it.

    ``tiers`` holds indices into ``responses``, best first; indices in one tier are ties.
    """

    key: str
    messages: tuple[Message, ...]
    tags: tuple[str, ...] = ()
    split: str = "train"
    demonstration: str = ""
    responses: tuple[str, ...] = ()
    tiers: tuple[tuple[int, ...], ...] = ()
    flags: tuple[tuple[int, str], ...] = ()
    note: str = ""
    seconds: float = 20.0


def sample_entries(folder: Path = ASSETS / "sample") -> list[SampleEntry]:
    """Read every entry, in the order of file names and lines. Raises UserError when the sample is not installed."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise UserError("The sample project is missing", f"{folder} has no .jsonl files", "install Tastemaker anew")
    return [entry for file in files for entry in read_jsonl(file, SampleEntry)]


def fill_with_sample(project: Project) -> int:
    """Put the sample into an empty project as one undoable batch. Returns how many prompts it has."""
    entries = sample_entries()
    created = now()
    rater = Rater(id=new_id(), name=RATER_NAME, created_at=created)
    prompts, demonstrations, responses, rankings = [], [], [], []
    for entry in entries:
        prompt = Prompt(
            id=new_id(),
            messages=entry.messages,
            tags=entry.tags,
            source="sample",
            split="held-out" if entry.split == "held-out" else "train",
            created_at=created,
        )
        prompts.append(prompt)
        if entry.demonstration:
            demonstrations.append(
                Demonstration(
                    id=new_id(),
                    prompt_id=prompt.id,
                    text=entry.demonstration,
                    author=rater.id,
                    status="final",
                    created_at=created,
                )
            )
        own = [
            Response(id=new_id(), prompt_id=prompt.id, text=text, source="sample", created_at=created)
            for text in entry.responses
        ]
        responses.extend(own)
        if entry.tiers:
            rankings.append(_ranking(entry, prompt, own, rater, created))
    project.store.add_batch(
        prompts=prompts,
        demonstrations=demonstrations,
        responses=responses,
        rankings=rankings,
        raters=[rater],
        label="Add the sample project",
    ).result()
    return len(prompts)


def _ranking(entry: SampleEntry, prompt: Prompt, own: list[Response], rater: Rater, created: str) -> Ranking:
    by_hash = sorted(own, key=lambda one: hashlib.sha256((entry.key + one.text).encode()).digest())
    return Ranking(
        id=new_id(),
        prompt_id=prompt.id,
        rater_id=rater.id,
        tiers=tuple(tuple(own[index].id for index in tier) for tier in entry.tiers),
        flags=tuple(ResponseFlag(own[index].id, flag) for index, flag in entry.flags),
        note=entry.note,
        seconds=entry.seconds,
        shown_order=tuple(one.id for one in by_hash),
        created_at=created,
    )
