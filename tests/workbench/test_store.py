from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import apsw
import pytest

from workbench import store_reads
from workbench.errors import NothingToDo, UserError
from workbench.ids import new_id
from workbench.records import Counts, Message, ModelRecord, Prompt, Rater, ResponseFlag, RunRecord, Sampling
from workbench.store_rows import content_hash

# ---- prompts -----------------------------------------------------------------------------------------------


def test_a_prompt_comes_back_as_it_was(store, make):
    prompt = Prompt(
        new_id(),
        (
            Message("system", "Be brief."),
            Message("user", "Hi\r\n  \t há 🙂"),
            Message("assistant", "Yes?"),
            Message("user", "Rain?"),
        ),
        ("z", "a"),
        "a file",
        "held-out",
        "2026-01-01T00:00:00.000000+00:00",
    )
    change = store.add_prompts([prompt]).result()
    assert store.prompt(prompt.id) == prompt
    assert change.kinds == {"prompts"}
    assert change.ids == (prompt.id,)
    assert store.prompt("nobody") is None


def test_what_no_model_can_answer_is_no_prompt(store):
    user, answer = Message("user", "a"), Message("assistant", "b")
    for turns, why in (
        ((answer,), "begins with an assistant turn"),
        ((user, user), "and so is the turn before it"),
        ((user, answer), "a prompt ends with a user turn"),
        ((user, Message("assistant", " "), user), "(?i)turn 2 is empty"),
        ((user, Message("system", "c"), user), "only the first can be"),
    ):
        with pytest.raises(UserError, match=why):
            store.add_prompts([Prompt(new_id(), turns)]).result()
    assert store.prompts() == []


def test_prompts_are_listed_oldest_first_and_in_pages(store, make):
    prompts = [make.prompt(f"number {i}") for i in range(5)]
    store.add_prompts(prompts).result()
    ids = [p.id for p in prompts]
    assert [p.id for p in store.prompts()] == ids
    assert [p.id for p in store.prompts(limit=2, offset=1)] == ids[1:3]
    assert [p.id for p in store.prompts(limit=-1)] == ids


def test_adding_a_prompt_again_is_harmless(store, make):
    prompt = make.prompt()
    store.add_prompts([prompt]).result()
    assert store.add_prompts([replace(prompt, source="elsewhere")]).result().kinds == frozenset()
    assert store.prompts()[0].source == ""
    assert len(store.journal()) == 1


def test_search_finds_whole_words_the_beginning_of_the_last_and_any_accent(store, make):
    rain, snow, kanji = (
        make.prompt("Why does café rain fall?"),
        make.prompt("Is snow white?"),
        make.prompt("雨は何故降るのか"),
    )
    percent = make.prompt("What is 100%_sure?")
    store.add_prompts([rain, snow, kanji, percent]).result()

    def found(text: str) -> list[Prompt]:
        return [replace(p, created_at="") for p in store.prompts(search=text)]

    assert found("cafe RAI") == [rain]
    assert found("rai does") == []
    assert found("snow") == [snow]
    assert found("故降") == [kanji]
    assert found("%_") == [percent]
    assert found('"') == []
    assert found("snow\ud800") == [snow]
    assert len(found("  ")) == 4


def test_prompts_are_filtered_by_tag_split_and_need(store, make):
    prompt, _ = make.rankable("a", "b")
    other = make.prompt("other", split="held-out", tags=("x", "x", " ", "y  z"))
    store.add_prompts([other]).result()
    assert [p.id for p in store.prompts(tag="y z")] == [other.id]
    assert store.prompt(other.id).tags == ("x", "y z")
    assert store.tags() == [("x", 1), ("y z", 1)]
    assert [p.id for p in store.prompts(split="train")] == [prompt.id]
    assert [p.id for p in store.prompts(need="responses")] == [other.id]
    assert len(store.prompts(need="demonstration")) == 2
    store.save_demonstration(make.demonstration(prompt, final=False)).result()
    assert len(store.prompts(need="demonstration")) == 2
    store.save_demonstration(make.demonstration(prompt)).result()
    assert [p.id for p in store.prompts(need="demonstration")] == [other.id]


def test_tags_split_and_archive_change_only_what_differs(store, make):
    a, b = make.prompt("a", tags=("t",)), make.prompt("b")
    store.add_prompts([a, b]).result()
    assert store.set_tags([a.id, b.id], ["t"]).result().ids == (b.id,)
    assert store.tags() == [("t", 2)]
    change = store.set_split([a.id, b.id, "nobody"], "held-out").result()
    assert change.ids == (a.id, b.id)
    assert change.label == "Move 2 prompts to held-out"
    assert store.set_split([a.id], "held-out").result().kinds == frozenset()
    assert store.counts().prompts_held_out == 2
    store.archive_prompts([a.id]).result()
    assert [p.id for p in store.prompts()] == [b.id]
    assert store.prompt(a.id)
    assert store.tags() == [("t", 1)]
    assert store.counts().prompts == 1
    assert store.archive_prompts([a.id], archived=False).result().label == "Bring back 1 prompt"
    assert store.counts().prompts == 2


def test_duplicates_are_found_whatever_their_line_ends_outer_space_or_unicode_form(store, make):
    prompt = make.prompt("Caf\u00e9?\nYes")
    store.add_prompts([prompt]).result()
    assert [p.id for p in store.find_duplicates([Message("user", " Cafe\u0301?\r\nYes\n")])] == [prompt.id]
    assert store.find_duplicates([Message("user", "Café? Yes")]) == []
    assert store.find_duplicates([Message("assistant", "Café?\nYes")]) == []
    store.archive_prompts([prompt.id]).result()
    assert store.find_duplicates(prompt.messages) == []
    assert content_hash([Message("user", "a"), Message("user", "b")]) != content_hash([Message("user", "a\nb")])


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        (Prompt("a", ()), "needs text"),
        (Prompt("a", (Message("user", " \n"),)), "needs text"),
        (Prompt("a", (Message("tool", "x"),)), "role"),  # type: ignore[arg-type]
        (Prompt("a", (Message("user", "x"),), split="test"), "split"),  # type: ignore[arg-type]
        (Prompt("", (Message("user", "x"),)), "id"),
        (Prompt("a\x00", (Message("user", "x"),)), "id"),
    ],
)
def test_a_prompt_that_makes_no_sense_is_refused_and_nothing_of_the_act_remains(store, make, prompt, why):
    with pytest.raises(UserError, match=why):
        store.add_prompts([make.prompt(), prompt]).result()
    assert store.prompts() == []
    assert store.journal() == []
    with pytest.raises(UserError, match="no split"):
        store.set_split([], "test").result()


def test_text_that_cannot_be_stored_is_replaced_visibly_and_the_change_says_so(store, make):
    prompt = make.prompt("nul \x00 and half a pair \ud83d.")
    change = store.add_prompts([prompt]).result()
    assert store.prompts()[0].title == "nul � and half a pair �."
    assert change.notes == ("2 characters that cannot be stored (NUL or half a surrogate pair) became �",)
    one = store.save_demonstration(make.demonstration(prompt, "a\x00")).result()
    assert one.notes[0].startswith("1 character that")
    assert store.demonstration_for(prompt.id).text == "a�"


# ---- demonstrations ----------------------------------------------------------------------------------------


def test_each_save_that_changes_a_demonstration_is_a_revision(store, make):
    prompt = make.prompt()
    store.add_prompts([prompt]).result()
    first = make.demonstration(prompt, "W", final=False)
    assert store.save_demonstration(first).result().label == "Write the demonstration of “What is rain?”"
    assert store.save_demonstration(first).result().kinds == frozenset()
    second = store.save_demonstration(replace(first, text="Rain")).result()
    assert second.label.startswith("Edit")
    assert second.ids != (first.id,)  # the id was taken: a revision has its own
    store.save_demonstration(replace(first, text="Rain", status="final")).result()
    store.save_demonstration(replace(first, text="W", status="draft")).result()  # back to the first text: kept too
    history = store.demonstration_history(prompt.id)
    assert [(d.revision, d.text, d.status) for d in history] == [
        (4, "W", "draft"),
        (3, "Rain", "final"),
        (2, "Rain", "draft"),
        (1, "W", "draft"),
    ]
    assert store.demonstration_for(prompt.id) == history[0]
    assert store.demonstration_for("nobody") is None
    assert store.demonstrations() == [history[0]]


def test_a_draft_that_only_grows_is_one_revision_and_nothing_that_was_taken_out_is_lost(project, store, make):
    prompt = make.prompt()
    store.add_prompts([prompt]).result()
    draft = make.demonstration(prompt, "", final=False)
    text = ""
    for word in ("Rain ", "is ", "water."):
        text += word
        store.save_demonstration(replace(draft, text=text)).result()
    store.save_demonstration(replace(draft, text="Rain, I think, is water.")).result()  # into the middle
    assert [(d.revision, d.text) for d in store.demonstration_history(prompt.id)] == [(4, "Rain, I think, is water.")]
    for shorter in ("Rain is water.", "Snow is water."):  # taken out, replaced
        store.save_demonstration(replace(draft, text=shorter)).result()
    store.save_demonstration(replace(draft, text="Snow is water, too.", author="Bob")).result()
    assert [d.text for d in store.demonstration_history(prompt.id)] == [
        "Snow is water, too.",
        "Snow is water.",
        "Rain is water.",
        "Rain, I think, is water.",
    ]
    assert project.check() == []


def test_demonstrations_are_filtered_and_training_never_sees_held_out_text(store, make):
    train, held, twin, draft = (
        make.prompt("a"),
        make.prompt("b", split="held-out"),
        make.prompt("b "),
        make.prompt("c"),
    )
    store.add_prompts([train, held, twin, draft]).result()
    for prompt in (held, twin, train):
        store.save_demonstration(make.demonstration(prompt, prompt.title)).result()
    store.save_demonstration(make.demonstration(draft, "", final=False)).result()

    def of(**filters):
        return [d.prompt_id for d in store.demonstrations(**filters)]

    assert of() == [train.id, held.id, twin.id, draft.id]
    assert of(status="final", split="train") == [train.id]
    assert of(split="held-out") == [held.id]
    assert of(status="draft") == [draft.id]
    assert store.held_out_twins() == {twin.id}
    store.archive_prompts([held.id]).result()  # what was measured on must not be trained on later either
    assert of(status="final", split="train") == [train.id]
    assert store.held_out_twins() == {twin.id}
    assert len(store.held_out_hashes()) == 1


def test_demonstrations_that_make_no_sense_are_refused(store, make):
    prompt = make.prompt()
    store.add_prompts([prompt]).result()
    with pytest.raises(UserError, match="cannot be final"):
        store.save_demonstration(make.demonstration(prompt, " ")).result()
    with pytest.raises(UserError, match="status"):
        store.save_demonstration(replace(make.demonstration(prompt), status="done")).result()
    with pytest.raises(UserError, match="not in the project"):
        store.save_demonstration(make.demonstration(make.prompt())).result()


# ---- responses and rankings --------------------------------------------------------------------------------


def test_a_response_comes_back_as_it_was(store, make):
    prompt, (first, *_) = make.rankable()
    sampled = replace(
        first, id=new_id(), model_id="m", sampling=Sampling(0.5, seed=7), finish_reason="length", token_count=3
    )
    label = store.add_responses([sampled]).result().label
    assert label == "Add 1 response to “What is rain?”"
    found = store.responses(prompt.id)[-1]
    assert replace(found, created_at="") == sampled
    assert store.responses_by_id([sampled.id, "nobody"]) == {sampled.id: found}
    assert store.add_responses([sampled]).result().kinds == frozenset()
    with pytest.raises(UserError, match="not in the project"):
        store.add_responses([replace(sampled, id=new_id(), prompt_id="nobody")]).result()
    with pytest.raises(UserError, match="id"):
        store.add_responses([replace(sampled, id="a:b")]).result()


def test_a_ranking_comes_back_as_it_was_and_a_second_one_supersedes_it(store, make):
    prompt, (a, b, c) = make.rankable()
    first = replace(
        make.ranking(prompt, [a, b], [c]),
        flags=(ResponseFlag(c.id, "false"), ResponseFlag("", "all bad")),
        note="hm",
        seconds=1.5,
        shown_order=(c.id, a.id, b.id),
        blind=False,
        touched=False,
    )
    assert store.save_ranking(first).result().label == "Rank “What is rain?”"
    assert replace(store.rankings()[0], created_at="") == first
    second = make.ranking(prompt, [c], [a, b])
    assert store.save_ranking(second).result().label.startswith("Rank again")
    (current,) = store.rankings()
    assert (current.id, current.supersedes) == (second.id, first.id)
    assert [r.id for r in store.rankings(include_superseded=True)] == [first.id, second.id]
    assert store.counts().rankings == 1
    assert store.counts().pairs == 2


def test_saving_a_ranking_again_is_harmless_but_another_one_may_not_take_its_id(store, make):
    prompt, (a, b, _) = make.rankable()
    ranking = make.ranking(prompt, [a], [b])
    store.save_ranking(ranking).result()
    assert store.save_ranking(ranking).result().kinds == frozenset()
    with pytest.raises(UserError, match="never change"):
        store.save_ranking(replace(ranking, tiers=((b.id,), (a.id,)))).result()
    assert store.counts().rankings == 1


def test_two_raters_judge_beside_each_other(store, make):
    prompt, (a, b, _) = make.rankable()
    store.save_rater(Rater("bob", "Bob")).result()
    store.save_ranking(make.ranking(prompt, [a], [b])).result()
    store.save_ranking(make.ranking(prompt, [b], [a], rater="bob")).result()
    assert [r.rater_id for r in store.rankings(prompt_id=prompt.id)] == ["ann", "bob"]
    assert [r.rater_id for r in store.rankings(rater_id="bob")] == ["bob"]
    counts = store.counts()
    assert (counts.rankings, counts.prompts_ranked, counts.pairs) == (2, 1, 2)


def test_a_new_ranking_leaves_a_judgement_of_other_responses_standing(store, make):
    prompt, (a, b, c, d) = make.rankable("a", "b", "c", "d")
    one, two = make.ranking(prompt, [a], [b]), make.ranking(prompt, [c], [d])
    store.add_batch(rankings=[one, two], label="import").result()
    again = make.ranking(prompt, [b], [a])
    change = store.save_ranking(again).result()
    assert [r.id for r in store.rankings()] == [two.id, again.id]
    assert store.rankings()[1].supersedes == one.id
    assert "stays beside the new one" in change.notes[0]
    shown = replace(make.ranking(prompt), outcome="cannot-rank", tiers=(), shown_order=(a.id, b.id))
    store.save_ranking(shown).result()
    assert [r.id for r in store.rankings()] == [two.id, shown.id]
    last = make.ranking(prompt, [d], [c, a, b])
    assert store.save_ranking(last).result().notes == ()
    assert [r.id for r in store.rankings()] == [last.id]


def test_several_judgements_that_stay_are_counted(store, make):
    prompt, responses = make.rankable("a", "b", "c", "d", "e")
    pairs = [make.ranking(prompt, [responses[n]], [responses[n + 1]]) for n in (0, 1)]
    store.add_batch(rankings=pairs, label="import").result()
    change = store.save_ranking(make.ranking(prompt, [responses[3]], [responses[4]])).result()
    assert change.notes == (
        "2 earlier judgements of this prompt are of other responses too and stay beside the new one",
    )
    assert len(store.rankings()) == 3


def test_a_skip_supersedes_a_skip_but_never_a_judgement(store, make):
    prompt, (a, b, _) = make.rankable()
    skip = replace(make.ranking(prompt), outcome="skipped")
    assert store.save_ranking(skip).result().label.startswith("Skip")
    assert store.counts("ann").prompts_with_responses == 1
    store.save_ranking(replace(skip, id=new_id())).result()
    assert len(store.rankings()) == 1
    ranking = make.ranking(prompt, [a], [b])
    store.save_ranking(ranking).result()
    store.save_ranking(replace(skip, id=new_id())).result()
    assert [r.id for r in store.rankings()] == [ranking.id]
    store.save_ranking(replace(skip, id=new_id(), outcome="cannot-rank")).result()
    assert [r.outcome for r in store.rankings()] == ["cannot-rank"]
    assert store.counts().rankings == 0
    assert store.counts("ann").prompts_with_responses == 0
    assert len(store.rankings(include_superseded=True)) == 5


def test_rankings_that_make_no_sense_are_refused(store, make):
    prompt, (a, b, _) = make.rankable()
    _, (strange, *_) = make.rankable(prompt="another")
    good = make.ranking(prompt, [a], [b])
    for bad, why in [
        (replace(good, outcome="done"), "outcome"),
        (replace(good, rater_id="nobody"), "rater"),
        (replace(good, seconds=float("nan")), "time"),
        (replace(good, seconds=-1.0), "time"),
        (replace(good, tiers=()), "no tiers"),
        (replace(good, tiers=((a.id,), ())), "no tiers"),
        (replace(good, outcome="skipped"), "yet has tiers"),
        (replace(good, tiers=((a.id,), (a.id,))), "twice"),
        (replace(good, tiers=((a.id,), (strange.id,))), "not responses of its prompt"),
        (replace(good, shown_order=(strange.id,)), "not responses of its prompt"),
        (replace(good, flags=(ResponseFlag(strange.id, "false"),)), "not responses of its prompt"),
        (replace(good, prompt_id="nobody"), "not in the project"),
    ]:
        with pytest.raises(UserError, match=why):
            store.save_ranking(bad).result()
    assert store.rankings() == []


def test_the_next_to_rank_go_round_from_where_one_is_and_skipped_ones_come_last(store, make):
    made = [make.rankable("a", "b", prompt=f"p{i}") for i in range(5)]
    store.add_prompts([make.prompt("no responses")]).result()
    ids = [prompt.id for prompt, _ in made]
    assert store.next_to_rank(rater_id="ann") == ids
    store.save_ranking(replace(make.ranking(made[0][0]), outcome="skipped")).result()
    assert store.next_to_rank(rater_id="ann") == [*ids[1:], ids[0]]
    assert store.next_to_rank(rater_id="ann", after=ids[2]) == [ids[3], ids[4], ids[1], ids[2], ids[0]]
    assert store.next_to_rank(rater_id="ann", after="nobody", exclude=[ids[3]]) == [ids[1], ids[2], ids[4], ids[0]]
    store.save_ranking(make.ranking(made[1][0], *([r] for r in made[1][1]))).result()
    assert store.next_to_rank(rater_id="ann", limit=2) == [ids[2], ids[3]]
    assert store.next_to_rank(rater_id="bob") == ids
    store.archive_prompts([ids[2]]).result()
    assert store.next_to_rank(rater_id="ann") == [ids[3], ids[4], ids[0]]


def test_pairs_are_counted_only_where_they_can_train(store, make):
    prompt, (a, b, c, d) = make.rankable("same", "same ", "other", " ", split="held-out")
    store.save_ranking(make.ranking(prompt, [a], [b], [c], [d])).result()
    counts = store.counts()  # a-b are the same text, three pairs have the empty one: of six two remain
    assert (counts.pairs, counts.pairs_held_out) == (2, 2)


# ---- raters, models, runs ----------------------------------------------------------------------------------


def test_raters_can_be_renamed_but_not_be_nameless(store):
    ann = Rater("ann", "Ann", principles="Be kind.")
    store.save_rater(ann).result()
    assert store.save_rater(ann).result().kinds == frozenset()
    store.save_rater(replace(ann, name="Anna", kind="model")).result()
    assert [(r.name, r.kind, r.principles) for r in store.raters()] == [("Anna", "model", "Be kind.")]
    assert store.undo_label() == ""
    with pytest.raises(UserError, match="needs a name"):
        store.save_rater(replace(ann, name=" ")).result()


def test_models_and_runs_are_kept_updated_and_counted(store):
    base = ModelRecord("b", "base", "base", "/models/b", created_at="then")
    tuned = ModelRecord("t", "tuned", "sft", "runs/r/final", base_id="b", parent_id="b", run_id="r", step=3)
    run = RunRecord("r", "sft", "sft 1", "running", "b")
    for future in (store.save_model(base), store.save_model(tuned), store.save_run(run)):
        future.result()
    assert store.model("b") == base
    assert store.model("nobody") is None
    assert [m.id for m in store.models(role="sft")] == ["t"]
    assert store.counts() == Counts(models={"base": 1, "sft": 1}, runs={"running": 1})
    assert store.save_model(base).result().kinds == frozenset()
    store.save_model(replace(base, note="good", created_at="")).result()
    assert store.model("b") == replace(base, note="good")
    assert store.save_run(replace(run, detail="half way")).result().kinds == {"runs"}
    assert store.journal(1)[0].label == "Change the model base"  # a detail alone is not an act
    store.save_run(replace(run, state="done")).result()
    assert store.journal(1)[0].label == "Run sft 1: done"
    assert store.run("r").state == "done"
    assert store.run("nobody") is None
    assert [r.id for r in store.runs()] == ["r"]


def test_a_model_or_run_on_which_something_depends_cannot_be_removed(store):
    store.save_model(ModelRecord("b", "base", "base", "/b")).result()
    for name in "vwxyz":
        store.save_model(ModelRecord(name, name, "sft", "", base_id="b", run_id="r")).result()
    store.save_run(RunRecord("r", "sft", "one", "running", "x")).result()
    with pytest.raises(UserError, match="These descend from it or use it: v, w, x and 2 more"):
        store.remove_model("b").result()
    with pytest.raises(UserError, match="use it: the run one"):
        store.remove_model("x").result()
    with pytest.raises(UserError, match="came from it"):
        store.remove_run("r").result()
    store.save_run(RunRecord("s", "sft", "two", "queued", "b")).result()
    with pytest.raises(UserError, match="It is queued"):
        store.remove_run("s").result()
    store.save_run(RunRecord("s", "sft", "two", "done", "b")).result()
    store.save_run(RunRecord("r", "sft", "one", "done", "x")).result()
    assert store.remove_run("s").result().kinds == {"runs"}
    for name in "vwxyzb":
        assert store.remove_model(name).result().kinds == {"models"}
    assert store.journal()[0].label == "Remove the model base"
    assert store.models() == []
    assert store.remove_model("b").result().kinds == frozenset()
    assert store.remove_run("s").result().kinds == frozenset()


# ---- acts --------------------------------------------------------------------------------------------------


def test_subscribers_hear_of_each_change_before_its_future_completes_until_they_leave(store, make, caplog):
    heard = []
    leave = store.subscribe(heard.append)
    deaf = store.subscribe(lambda _: 1 / 0)
    change = store.add_prompts([make.prompt()]).result()
    assert heard == [change]
    assert "a view failed" in caplog.text
    deaf()
    leave()
    leave()
    store.add_prompts([make.prompt("b")]).result()
    assert len(heard) == 1


def test_wait_returns_when_the_queue_is_empty_and_close_finishes_it(store, make):
    futures = [store.add_prompts([make.prompt(str(i))]) for i in range(20)]
    store.wait()
    assert all(future.done() for future in futures)
    futures = [store.add_prompts([make.prompt(str(i))]) for i in range(20)]
    store.close()
    assert all(future.result().kinds for future in futures)
    store.wait()
    store.close()
    with pytest.raises(UserError, match="closed"):
        store.add_prompts([make.prompt()]).result()
    with pytest.raises(UserError, match="closed"):
        store.prompts()


def test_a_read_that_outlives_the_store_is_finished_and_its_connection_closed(store):
    with store.reading() as db:
        store.close()
        assert db.execute("SELECT count(*) FROM prompts").get == 0
    with pytest.raises(Exception, match="closed"):
        db.execute("SELECT 1")


def test_many_threads_read_while_one_writes(store, make):
    stop = threading.Event()
    seen: list[int] = []

    def read() -> int:
        last = 0
        while not stop.is_set():
            count = store.counts().prompts
            assert count == len(store.prompts(limit=-1)) or store.counts().prompts > count
            assert count >= last
            last = count
        return last

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        for i in range(100):
            store.add_prompts([make.prompt(str(i))])
        store.wait()
        stop.set()
        seen = [reader.result() for reader in readers]
    assert max(seen) <= 100
    assert store.counts().prompts == 100


def test_a_change_of_very_many_records_names_none(store, make):
    change = store.add_prompts([make.prompt(str(i)) for i in range(1001)], label="Many").result()
    assert (change.ids, change.label) == ((), "Many")
    assert store.journal()[0].count == 1001
    assert len(store.journal()[0].ids) == 100
    undone = store.undo().result()
    assert undone.ids == ()
    assert store.journal()[0].count == 1001


def test_the_journal_remembers_every_act_also_undone_ones_and_cannot_be_altered(store, make):
    prompt, (a, b, _) = make.rankable()
    store.save_ranking(make.ranking(prompt, [a], [b])).result()
    store.undo().result()
    entries = store.journal()
    assert [e.act for e in entries] == ["undo", "save_ranking", "add_responses", "add_prompts", "save_rater"]
    assert entries[1].author == "ann"
    assert entries[1].kinds == ("rankings",)
    assert entries[0].label == "Undo: Rank “What is rain?”"
    assert entries[0].ids == entries[1].ids
    assert store.journal(limit=2, before=entries[1].seq) == entries[2:4]

    def alter(sql):
        store._writer.submit(lambda db: db.execute(sql), undoable=False).result()

    for sql in ("DELETE FROM journal", "UPDATE journal SET label = ''"):
        with pytest.raises(UserError, match="append-only"):
            alter(sql)


def test_nothing_to_undo_or_redo_says_so(store):
    with pytest.raises(NothingToDo, match="nothing to undo"):
        store.undo().result()
    with pytest.raises(NothingToDo, match="nothing to redo"):
        store.redo().result()


def test_long_titles_are_cut_in_labels(store, make):
    change = store.add_prompts([make.prompt("word " * 30)]).result()
    assert len(change.label) < 50
    assert change.label.endswith("…”")


def test_counting_reads_no_labels_so_it_is_as_quick_at_a_hundred_thousand(store, make):
    prompt, (a, b, _) = make.rankable()
    store.save_ranking(make.ranking(prompt, [a], [b])).result()
    read = set()

    def watch(operation, table, *_):
        if operation == apsw.SQLITE_READ:
            read.add(table)
        return apsw.SQLITE_OK

    with store.reading() as db:
        db.authorizer = watch
        counts = store_reads.counts(db, "ann")
        db.authorizer = None
    assert counts.rankings == 1
    assert read <= {"tallies", "rater_tallies", "raters", "models", "runs"}


def test_the_states_of_demonstrations_are_asked_for_by_prompt(store, make):
    prompts = [make.prompt(text) for text in "abc"]
    store.add_prompts(prompts).result()
    store.save_demonstration(make.demonstration(prompts[1], final=False)).result()
    store.save_demonstration(make.demonstration(prompts[2])).result()
    states = store.demonstration_states([*(p.id for p in prompts), "nobody"])
    assert list(states.values()) == ["", "draft", "final"]


def test_a_read_whose_transaction_is_over_already_gives_its_connection_back(store):
    with store.reading() as db:
        db.execute("ROLLBACK")
    with store.reading() as again:
        assert again is db


def test_saving_a_run_as_it_is_changes_nothing(store):
    run = RunRecord("r", "sft", "one", "running", "m")
    store.save_run(run).result()
    assert store.save_run(run).result().kinds == frozenset()
