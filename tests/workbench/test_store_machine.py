"""The store against a model of plain dicts, under random acts, undo, redo and reopening."""

from __future__ import annotations

import copy
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from workbench.ids import new_id
from workbench.pairs import current_pairs, why_unusable
from workbench.project import Project
from workbench.records import (
    ALL_BAD,
    BAD,
    GOOD,
    Demonstration,
    Message,
    Prompt,
    Ranking,
    Rater,
    Response,
    ResponseFlag,
)
from workbench.thumbs import current_thumbs, thumbs_of

RATERS = ("ann", "bob")
MEMORY = "/dev/shm"  # a file system without a disk: the machine tests logic, not durability
TEXTS = st.sampled_from(["rain", "snow", "rain ", "", "hail\ud800", "fög\x00"])


@dataclass
class Model:
    """What the project should hold."""

    prompts: dict[str, Prompt] = field(default_factory=dict)
    archived: set[str] = field(default_factory=set)
    responses: dict[str, Response] = field(default_factory=dict)
    revisions: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)
    rankings: dict[str, Ranking] = field(default_factory=dict)
    superseded: set[str] = field(default_factory=set)
    burst: str = ""  # of the act that was done next

    def live(self) -> list[Prompt]:
        return [p for p in self.prompts.values() if p.id not in self.archived]

    def of(self, prompt_id: str) -> list[Response]:
        return [r for r in self.responses.values() if r.prompt_id == prompt_id]

    def current(self) -> list[Ranking]:
        return [r for r in self.rankings.values() if r.id not in self.superseded and r.prompt_id not in self.archived]


def about(ranking: Ranking) -> set[str]:
    return {id_ for tier in ranking.tiers for id_ in tier} or set(ranking.shown_order)


def stored(text: str) -> str:
    return text.replace("\ud800", "�").replace("\x00", "�")


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def create(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tm-machine-", dir=MEMORY if Path(MEMORY).is_dir() else None))
        self.project = Project.create(self.folder / "p")
        for rater in RATERS:
            self.project.store.save_rater(Rater(rater, rater.title())).result()
        self.model = Model()
        self.done: list[Model] = []
        self.undone: list[Model] = []
        self.add_prompts_of(["start"], "train")  # so that judging needs no luck
        self.respond_to(next(iter(self.model.prompts)), ["rain", "snow", "hail"])

    def teardown(self) -> None:
        if hasattr(self, "project"):
            assert self.project.check() == []
            self.project.close()
            shutil.rmtree(self.folder)

    def act(self, future: Any, change: Any, burst: str = "") -> None:
        """Do in the model what the store has done, if it did anything."""
        if future.result().kinds:
            self.done.append(replace(copy.deepcopy(self.model), burst=burst))
            self.undone.clear()
            change()

    @property
    def store(self) -> Any:
        return self.project.store

    # ---- acts ----

    @rule(
        texts=st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3),
        split=st.sampled_from(["train", "held-out"]),
    )
    def add_prompts(self, texts: list[str], split: Any) -> None:
        self.add_prompts_of(texts, split)

    def add_prompts_of(self, texts: list[str], split: Any) -> None:
        prompts = [Prompt(new_id(), (Message("user", text),), split=split) for text in texts]
        self.act(self.store.add_prompts(prompts), lambda: self.model.prompts.update({p.id: p for p in prompts}))

    @precondition(lambda self: self.model.prompts)
    @rule(data=st.data(), split=st.sampled_from(["train", "held-out"]))
    def move(self, data: st.DataObject, split: Any) -> None:
        id_ = data.draw(st.sampled_from(list(self.model.prompts)))
        prompts = self.model.prompts
        self.act(self.store.set_split([id_], split), lambda: prompts.update({id_: replace(prompts[id_], split=split)}))

    @precondition(lambda self: self.model.prompts)
    @rule(data=st.data(), tags=st.lists(st.sampled_from(["x", "y"]), unique=True).map(tuple))
    def tag(self, data: st.DataObject, tags: tuple[str, ...]) -> None:
        id_ = data.draw(st.sampled_from(list(self.model.prompts)))
        prompts = self.model.prompts
        self.act(self.store.set_tags([id_], tags), lambda: prompts.update({id_: replace(prompts[id_], tags=tags)}))

    @precondition(lambda self: self.model.prompts)
    @rule(data=st.data(), archived=st.booleans())
    def archive(self, data: st.DataObject, archived: bool) -> None:
        id_ = data.draw(st.sampled_from(list(self.model.prompts)))
        change = self.model.archived.add if archived else self.model.archived.discard
        self.act(self.store.archive_prompts([id_], archived=archived), lambda: change(id_))

    @precondition(lambda self: self.model.prompts)
    @rule(data=st.data(), text=TEXTS, author=st.sampled_from(RATERS))
    def finish(self, data: st.DataObject, text: str, author: str) -> None:
        id_ = data.draw(st.sampled_from(list(self.model.prompts)))
        status = "final" if text.strip() else "draft"
        future = self.store.save_demonstration(Demonstration(new_id(), id_, text, author, status))  # type: ignore[arg-type]

        def change() -> None:
            revisions = self.model.revisions.setdefault(id_, [])
            newest = revisions[-1] if revisions else None
            if status == "draft" and newest and newest[1:] == (status, author) and stored(text).startswith(newest[0]):
                revisions.pop()
            revisions.append((stored(text), status, author))

        burst = f"{id_}:{author}" if status == "draft" else ""
        if future.result().kinds and burst and not self.undone and self.done and self.done[-1].burst == burst:
            change()  # one step with the draft before it
        else:
            self.act(future, change, burst)

    @precondition(lambda self: self.model.prompts)
    @rule(data=st.data(), texts=st.lists(TEXTS, min_size=1, max_size=3))
    def respond(self, data: st.DataObject, texts: list[str]) -> None:
        id_ = data.draw(st.sampled_from(list(self.model.prompts)))
        self.respond_to(id_, texts)

    def respond_to(self, id_: str, texts: list[str]) -> None:
        added = [Response(new_id(), id_, text) for text in texts]
        kept = {r.id: replace(r, text=stored(r.text)) for r in added}
        self.act(self.store.add_responses(added), lambda: self.model.responses.update(kept))

    @precondition(lambda self: any(len(self.model.of(p)) >= 2 for p in self.model.prompts))
    @rule(
        data=st.data(),
        rater=st.sampled_from(RATERS),
        outcome=st.sampled_from(["ranked", "ranked", "skipped", "cannot-rank"]),
    )
    def judge(self, data: st.DataObject, rater: str, outcome: Any) -> None:
        id_ = data.draw(st.sampled_from([p for p in self.model.prompts if len(self.model.of(p)) >= 2]))
        every = data.draw(st.permutations([r.id for r in self.model.of(id_)]))
        ids = every[: data.draw(st.integers(1, len(every)))]  # a card shows what it likes
        cut = data.draw(st.integers(0, len(ids) - 1))
        tiers = tuple(tier for tier in (tuple(ids[:cut]), tuple(ids[cut:])) if tier) if outcome == "ranked" else ()
        marks = st.tuples(st.sampled_from(["", *ids]), st.sampled_from([GOOD, BAD, ALL_BAD]))
        flags = tuple(ResponseFlag(*one) for one in data.draw(st.lists(marks, max_size=2)))
        ranking = Ranking(new_id(), id_, rater, tiers, outcome, flags, shown_order=tuple(ids))

        def change() -> None:
            old = [
                r
                for r in self.model.rankings.values()
                if (r.prompt_id, r.rater_id) == (id_, rater) and r.id not in self.model.superseded
            ]
            judged = {one for r in old if r.outcome != "skipped" for one in r.named}
            if outcome == "skipped":
                old = [r for r in old if r.outcome == "skipped"]
            if outcome == "skipped" and judged >= set(ids):
                self.model.superseded.add(ranking.id)
            else:
                self.model.superseded.update(r.id for r in old if set(ids) >= about(r))
            self.model.rankings[ranking.id] = ranking

        self.act(self.store.save_ranking(ranking), change)
        assert self.store.save_ranking(ranking).result().kinds == frozenset()

    @rule(texts=st.lists(st.tuples(st.sampled_from(["a", "b", "n"]), TEXTS, TEXTS), max_size=3))
    def import_batch(self, texts: list[tuple[str, str, str]]) -> None:
        """Only what is new by its text: then the model needs no rule about duplicates."""
        known = {p.messages[0].content for p in self.model.prompts.values()}
        texts = list({t[0]: t for t in texts if t[0] not in known}.values())
        prompts = [Prompt(new_id(), (Message("user", text),)) for text, _, _ in texts]
        responses = [Response(new_id(), p.id, text) for p, row in zip(prompts, texts, strict=True) for text in row[1:]]
        rankings = [
            Ranking(new_id(), p.id, "bob", ((responses[2 * i].id,), (responses[2 * i + 1].id,)))
            for i, p in enumerate(prompts)
        ]

        def change() -> None:
            self.model.prompts.update({p.id: p for p in prompts})
            self.model.responses.update({r.id: replace(r, text=stored(r.text)) for r in responses})
            self.model.rankings.update({r.id: r for r in rankings})

        self.act(self.store.add_batch(prompts=prompts, responses=responses, rankings=rankings, label="import"), change)

    @precondition(lambda self: self.done)
    @rule()
    def undo(self) -> None:
        self.store.undo().result()
        self.undone.append(self.model)
        self.model = self.done.pop()

    @precondition(lambda self: self.undone)
    @rule()
    def redo(self) -> None:
        self.store.redo().result()
        self.done.append(self.model)
        self.model = self.undone.pop()

    @rule()
    def reopen(self) -> None:
        self.project.close()
        self.project = Project.open(self.folder / "p")

    # ---- what must always hold ----

    @invariant()
    def the_store_holds_what_the_model_holds(self) -> None:
        if not hasattr(self, "project"):
            return
        store, model = self.store, self.model

        def bare(records: Any) -> list[Any]:
            return [replace(r, created_at="") for r in records]

        assert bare(store.prompts(limit=-1)) == model.live()
        assert {id_: bare([p])[0] for id_, p in store.prompts_by_id(model.prompts).items()} == model.prompts
        for id_ in model.prompts:
            assert bare(store.responses(id_)) == model.of(id_)
            history = [(d.text, d.status, d.author) for d in reversed(store.demonstration_history(id_))]
            assert history == model.revisions.get(id_, [])
        assert [replace(r, supersedes="") for r in bare(store.rankings())] == model.current()
        for rater in RATERS:
            mine = [r for r in model.current() if r.rater_id == rater]
            seen = {id_ for r in mine for id_ in r.named}
            judged = {id_ for r in mine if r.outcome != "skipped" for id_ in r.named}
            rankable = [(p.id, {r.id for r in model.of(p.id)}) for p in model.live() if len(model.of(p.id)) >= 2]
            expected = [id_ for id_, responses in rankable if responses - seen]
            expected += [id_ for id_, responses in rankable if responses <= seen and responses - judged]
            assert store.next_to_rank(rater_id=rater) == expected
            assert store.counts(rater).prompts_with_responses == len(expected)
        assert bool(store.undo_label()) == bool(self.done)
        assert bool(store.redo_label()) == bool(self.undone)

    @invariant()
    def the_counts_are_those_of_the_model(self) -> None:
        if not hasattr(self, "project"):
            return
        counts, model, live = self.store.counts(), self.model, self.model.live()
        ranked = [r for r in model.current() if r.outcome == "ranked"]
        newest = [model.revisions[p.id][-1][1] for p in live if p.id in model.revisions]
        assert counts.prompts == len(live)
        assert counts.prompts_held_out == sum(p.split == "held-out" for p in live)
        assert (counts.demonstrations_final, counts.demonstrations_draft) == (
            newest.count("final"),
            newest.count("draft"),
        )
        assert counts.responses == sum(len(model.of(p.id)) for p in live)
        assert counts.prompts_with_responses == sum(len(model.of(p.id)) >= 2 for p in live)
        assert counts.rankings == len(ranked)
        assert counts.prompts_ranked == len({r.prompt_id for r in ranked})
        usable = sum(
            not why_unusable(model.responses[a].text, model.responses[b].text)
            for r in ranked
            for i, tier in enumerate(r.tiers)
            for lower in r.tiers[i + 1 :]
            for a in tier
            for b in lower
        )
        assert counts.pairs == usable == len(current_pairs(self.store).rows)
        said = {
            (r.id, model.responses[id_].text.strip(), wanted)
            for r in model.current()
            for id_, wanted in thumbs_of(r).items()
        }
        wanted = [good for _, text, good in said if text]
        assert (counts.thumbs_up, counts.thumbs_down) == (wanted.count(True), wanted.count(False))
        assert counts.thumbs == len(current_thumbs(self.store).rows)


StoreMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStoreMachine = StoreMachine.TestCase
