"""The records of a project: what one person wrote, sampled and judged, and what was trained from it.

All are frozen; a correction is a new record that supersedes the old one. Ids are :func:`workbench.ids.new_id`;
times are ISO 8601 text in UTC.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "user", "assistant"]
Split = Literal["train", "held-out"]
Outcome = Literal["ranked", "skipped", "cannot-rank"]
ModelRole = Literal["base", "sft", "reward", "policy"]
Method = Literal["sft", "reward", "dpo", "kto", "ppo"]
RunState = Literal["queued", "running", "paused", "stopping", "done", "stopped", "failed", "interrupted"]
METHODS: tuple[Method, ...] = ("sft", "reward", "dpo", "kto", "ppo")
ROLE_WORDS: dict[ModelRole, str] = {"base": "base", "sft": "SFT", "reward": "reward model", "policy": "policy"}
FLAGS: tuple[str, ...] = ("harmful", "off-topic", "false", "repetitive", "truncated", "all bad")
ALL_BAD = "all bad"
GOOD, BAD = "good", "bad"
"""Flags too, on one response: thumbs up and thumbs down. They say what it is worth by itself, not beside the others."""


def step_word(method: str, count: int = 1) -> str:
    """What so many steps of a run are called: rollouts for PPO, each of several optimiser steps, and else steps."""
    return ("rollout" if method == "ppo" else "step") + ("" if count == 1 else "s")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that ends in a user turn and asks for a response. Held-out prompts never train anything."""

    id: str
    messages: tuple[Message, ...]
    tags: tuple[str, ...] = ()
    source: str = ""
    split: Split = "train"
    created_at: str = ""

    @property
    def title(self) -> str:
        """The last user turn on one line, for lists."""
        last = next((m.content for m in reversed(self.messages) if m.role == "user"), "")
        return " ".join(last.split())


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What a good answer looks like, written by a person. A save is a new revision; the newest counts."""

    id: str
    prompt_id: str
    text: str
    author: str
    status: Literal["draft", "final"] = "draft"
    revision: int = 1
    created_at: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are drawn. ``top_p=1`` and ``top_k=0`` sample from the whole distribution."""

    temperature: float = 0.8
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Response:
    """One response of a model (or of a person, or from a file) to a prompt."""

    id: str
    prompt_id: str
    text: str
    model_id: str = ""  # "" when imported
    sampling: Sampling | None = None
    finish_reason: Literal["stop", "length", "imported", "written"] = "imported"
    token_count: int = 0
    source: str = ""
    created_at: str = ""

    @property
    def ended(self) -> bool:
        """Whether its text is whole: only a model that was stopped in mid-response leaves one that is not."""
        return self.finish_reason != "length"


@dataclass(frozen=True, slots=True)
class ResponseFlag:
    """A mark on one response of a ranking, or on all of them (``response_id == ""``)."""

    response_id: str
    flag: str


@dataclass(frozen=True, slots=True)
class Ranking:
    """One act of judging: tiers of response ids, best first; ids within a tier are ties.

    Immutable: a correction is a new ranking whose ``supersedes`` names the old one. ``outcome`` says whether it
    was ranked, skipped for later or judged impossible to rank (the tiers are then empty).
    """

    id: str
    prompt_id: str
    rater_id: str
    tiers: tuple[tuple[str, ...], ...]
    outcome: Outcome = "ranked"
    flags: tuple[ResponseFlag, ...] = ()
    note: str = ""
    seconds: float = 0.0
    shown_order: tuple[str, ...] = ()
    blind: bool = True
    touched: bool = True  # False: submitted in the order in which it was shown
    supersedes: str = ""
    created_at: str = ""

    @property
    def named(self) -> frozenset[str]:
        """Every response that it places, shows or flags; empty where it is about the prompt as a whole."""
        placed = (id_ for tier in self.tiers for id_ in tier)
        return frozenset((*placed, *self.shown_order, *(one.response_id for one in self.flags if one.response_id)))


@dataclass(frozen=True, slots=True)
class Rater:
    """Whose judgement a label is: a person, or a model with written principles."""

    id: str
    name: str
    kind: Literal["person", "model"] = "person"
    principles: str = ""
    created_at: str = ""


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A model: a base, or a base with one peft adapter.

    ``path`` is absolute for a base (the shared cache) and relative to the project for an adapter
    (``runs/ID/final`` or ``models/ID``).
    """

    id: str
    name: str
    role: ModelRole
    path: str
    base_id: str = ""  # "" for a base
    parent_id: str = ""  # the model that training started from
    run_id: str = ""
    step: int = 0
    source: str = ""  # where a base or an imported adapter came from
    sha256: str = ""  # of the files that define it (see workbench.models.fingerprint)
    note: str = ""
    created_at: str = ""


@dataclass(frozen=True, slots=True)
class ForeignModel:
    """A model of another project, of which only this is known: it wrote responses that were imported."""

    id: str
    name: str = ""
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A training run as the project lists it; the run folder has the whole truth."""

    id: str
    method: Method
    name: str
    state: RunState
    start_model_id: str
    reward_model_id: str = ""
    detail: str = ""  # why it failed or stopped, in one sentence
    created_at: str = ""
    ended_at: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """Chosen over rejected, derived from a ranking and never stored. ``group`` keeps a prompt's pairs together."""

    ranking_id: str
    prompt_id: str
    chosen_id: str
    rejected_id: str
    rater_id: str
    tier_distance: int

    @property
    def group(self) -> str:
        """What never splits between train and held-out: the prompt."""
        return self.prompt_id


@dataclass(frozen=True, slots=True)
class Change:
    """What an act changed, told to every view: kinds of record, and the ids where they are few."""

    kinds: frozenset[str]  # of "prompts", "demonstrations", "responses", "rankings", "raters", "models", "runs"
    ids: tuple[str, ...] = ()
    label: str = ""  # what undo would say: "Rank 'How do I...'"; "" when it cannot be undone
    batch_id: str = ""
    duplicates: int = 0  # labels of a batch that the project had already, and so were left out
    notes: tuple[str, ...] = ()  # what the store had to alter, in sentences: "1 character ... became U+FFFD"


@dataclass(frozen=True, slots=True)
class Counts:
    """How much of everything a project holds; drives Home and the pre-flight checks."""

    prompts: int = 0
    prompts_held_out: int = 0
    demonstrations_final: int = 0
    demonstrations_draft: int = 0
    responses: int = 0
    prompts_with_responses: int = 0  # that wait to be ranked by the rater who asks
    rankings: int = 0
    prompts_ranked: int = 0
    pairs: int = 0
    pairs_held_out: int = 0
    thumbs_up: int = 0  # of current rankings, as workbench.thumbs reads them without rankings_as_thumbs
    thumbs_down: int = 0
    models: dict[str, int] = field(default_factory=dict)  # by role
    runs: dict[str, int] = field(default_factory=dict)  # by state

    @property
    def thumbs(self) -> int:
        """Judged responses, for KTO: up and down together."""
        return self.thumbs_up + self.thumbs_down
