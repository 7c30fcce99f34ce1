"""Which labels a run trains on and which it only measures on. Held-out prompts never train anything.

When a project holds no labelled prompts out, a tenth of the prompts is held out of training by the hash of their
text: the same ones for every method and every run, however many labels are added later.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from workbench.pairs import HELD_OUT_TWIN, Which, current_pairs
from workbench.project import Project
from workbench.recipes import DpoRecipe, KtoRecipe, PpoRecipe, Recipe, RewardRecipe
from workbench.records import Message, Method, Split
from workbench.rows import PairRow, PromptRow, SftRow, ThumbRow
from workbench.run_folder import Row
from workbench.store_rows import content_hash
from workbench.thumbs import AsThumbs, current_thumbs

AUTO_HELD_OUT_ONE_IN = 10
MIN_GROUPS_TO_HOLD_OUT = 10
_ALL = 1_000_000_000
_Source = Callable[[Split], Sequence[Row]]


@dataclass(slots=True)
class Selected:
    """The rows of a run, and how they came about."""

    train: list[Row] = field(default_factory=list)
    heldout: list[Row] = field(default_factory=list)
    demonstrations: list[SftRow] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)  # by reason
    auto_held_out: bool = False

    @property
    def held_out_prompts(self) -> int:
        """How many different prompts the held-out rows have."""
        return len({group_of(row) for row in self.heldout})


def select(project: Project, method: Method, recipe: Recipe, tags: Collection[str] = ()) -> Selected:
    """Choose the rows of a run from the project's current labels.

    With ``tags`` only prompts that have one of them train; all that is held out measures, whatever its tags.
    """
    chosen = Selected()
    which: Which = "all"
    if isinstance(recipe, RewardRecipe | DpoRecipe) and recipe.pairs_from_rankings == "best-vs-rest":
        which = "best-vs-rest"

    ties = isinstance(recipe, RewardRecipe) and recipe.ties

    def pairs(split: Split) -> list[Row]:
        found = current_pairs(project.store, split, which, ties=ties and split == "train")
        chosen.dropped.update(found.dropped)
        return list(found.rows)

    as_thumbs: AsThumbs = "none"
    if isinstance(recipe, KtoRecipe) and recipe.rankings_as_thumbs == "best-and-worst":
        as_thumbs = "best-and-worst"

    def thumbs(split: Split) -> list[Row]:
        found = current_thumbs(project.store, split, as_thumbs)
        chosen.dropped.update(found.dropped)
        return list(found.rows)

    sources: dict[str, _Source] = {
        "sft": lambda split: demonstrations(project, split),
        "reward": pairs,
        "dpo": pairs,
        "kto": thumbs,
        "ppo": lambda split: prompts(project, split, chosen.dropped),
    }
    source = sources[method]
    chosen.train = list(source("train"))
    chosen.heldout = list(source("held-out"))
    forbidden = held_out_hashes(project)
    hashes = _Hashes()
    clean = [row for row in chosen.train if hashes.of(row) not in forbidden]
    if len(clean) < len(chosen.train):
        chosen.dropped[HELD_OUT_TWIN] += len(chosen.train) - len(clean)
        chosen.train = clean
    tagged = _tagged(project, tags) if tags else None
    if tagged is not None:
        chosen.train = [row for row in chosen.train if hashes.of(row) in tagged]
    if not chosen.heldout:
        _hold_out_a_tenth(chosen, hashes)
    chosen.heldout = [row for row in chosen.heldout if not _is_tie(row)]
    if method == "reward" or (isinstance(recipe, PpoRecipe) and recipe.ptx_coefficient > 0):
        measured = {hashes.of(row) for row in chosen.heldout}
        chosen.demonstrations = [
            row
            for row in demonstrations(project, "train")
            if (group := group_of(row)) not in measured | forbidden and (tagged is None or group in tagged)
        ]
    return chosen


def demonstrations(project: Project, split: Split) -> list[SftRow]:
    """Return the final demonstrations of a split as rows."""
    found = project.store.demonstrations(status="final", split=split)
    known = project.store.prompts_by_id([one.prompt_id for one in found])
    return [
        SftRow(one.id, one.prompt_id, known[one.prompt_id].messages, one.text)
        for one in found
        if one.prompt_id in known
    ]


def prompts(project: Project, split: Split, dropped: Counter[str]) -> list[PromptRow]:
    """Return the prompts of a split as rows, each text once; repetitions are counted in ``dropped``."""
    rows: dict[str, PromptRow] = {}
    for one in project.store.prompts(split=split, limit=_ALL):
        key = content_hash(one.messages)
        if key in rows:
            dropped["the same prompt is there twice"] += 1
            continue
        rows[key] = PromptRow(one.id, one.messages)
    return list(rows.values())


def held_out_hashes(project: Project) -> frozenset[str]:
    """Return the hash of every held-out prompt's text, of archived ones too: those must not be trained on either."""
    return project.store.held_out_hashes()


def share_to_hold_out(project: Project, percent: int) -> list[str]:
    """Choose train prompts that, held out, make ``percent`` of all prompts held out; none where as many are already.

    The hash of the text decides, so that prompts of the same text go together and nobody's taste is in the choice.
    """
    every = project.store.prompts(limit=_ALL)
    missing = round(len(every) * percent / 100) - sum(one.split == "held-out" for one in every)
    groups: dict[str, list[str]] = {}
    for one in every:
        if one.split == "train":
            groups.setdefault(content_hash(one.messages), []).append(one.id)
    chosen: list[str] = []
    for group in sorted(groups, key=_draw):
        if len(chosen) >= missing:
            break
        chosen += groups[group]
    return chosen


def group_of(row: Row) -> str:
    """Return what never splits between train and held-out: the prompt's text, however often it was entered."""
    return content_hash(row.prompt)


def is_auto_held_out(group: str) -> bool:
    """Tell whether a group falls into the tenth that is held out when a project holds nothing out itself."""
    return int.from_bytes(_draw(group)[:8], "big") % AUTO_HELD_OUT_ONE_IN == 0


def _draw(group: str) -> bytes:
    return hashlib.sha256(b"held-out\0" + group.encode()).digest()


def _tagged(project: Project, tags: Collection[str]) -> set[str]:
    found = (one for tag in tags for one in project.store.prompts(tag=tag, split="train", limit=_ALL))
    return {content_hash(one.messages) for one in found}


class _Hashes:
    """The groups of rows; the pairs of one prompt share its messages, which are hashed once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Sequence[Message], str]] = {}  # the messages are held, so that no id is reused

    def of(self, row: Row) -> str:
        known = self._known.get(id(row.prompt))
        if known is None:
            known = self._known[id(row.prompt)] = (row.prompt, group_of(row))
        return known[1]


def _hold_out_a_tenth(chosen: Selected, hashes: _Hashes) -> None:
    groups = {hashes.of(row) for row in chosen.train}
    if len(groups) < MIN_GROUPS_TO_HOLD_OUT:
        return
    out = {group for group in groups if is_auto_held_out(group)}
    if out and out != groups:
        rows = chosen.train
        chosen.train = [row for row in rows if hashes.of(row) not in out]
        chosen.heldout = [row for row in rows if hashes.of(row) in out]
        chosen.auto_held_out = True


def _is_tie(row: Row) -> bool:
    """Whether a row is no preference: ties train, and nothing can be measured on them."""
    return isinstance(row, PairRow) and row.tier_distance == 0


def texts_of(row: Row) -> list[str]:
    """Return the whole texts that a row passes through the model, one for each sequence."""
    prompt = "\n".join(message.content for message in row.prompt)
    match row:
        case SftRow() | ThumbRow():
            return [prompt + row.completion]
        case PairRow():
            return [prompt + row.chosen, prompt + row.rejected]
        case _:
            return [prompt]
