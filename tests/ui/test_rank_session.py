from __future__ import annotations

from collections import Counter
from typing import Any

from tests.ui.conftest import Filled, response
from ui.rank_session import RankItem, SessionStats, Stopwatch, load_item, origin, reveal_line, seconds_text, shuffled
from workbench.records import Message, Outcome, Prompt, Ranking, Response


def ranking(prompt: str, seconds: float, *, tied: bool = False, outcome: Outcome = "ranked") -> Ranking:
    tiers = (("a", "b"),) if tied else (("a",), ("b",))
    return Ranking(f"r-{prompt}", prompt, "me", tiers if outcome == "ranked" else (), outcome, seconds=seconds)


def test_a_stopwatch_counts_only_while_it_runs() -> None:
    now = [0.0]
    watch = Stopwatch(lambda: now[0])
    now[0] = 5.0
    assert watch.seconds == 0.0
    watch.start()
    now[0] = 8.0
    watch.start()  # already runs
    assert watch.seconds == 3.0
    watch.pause()
    now[0] = 100.0
    assert watch.seconds == 3.0
    assert not watch.running
    watch.start()
    now[0] = 101.0
    assert watch.seconds == 4.0
    watch.restart(10.0)
    now[0] = 103.0
    assert watch.seconds == 12.0
    watch.pause()
    watch.restart()
    now[0] = 110.0
    assert watch.seconds == 0.0


def test_statistics_count_a_correction_once_and_forget_what_was_undone() -> None:
    stats = SessionStats()
    assert stats.line() == "none yet this session"
    first = ranking("o", 4)
    for one in (first, ranking("q", 10, tied=True), ranking("s", 1, outcome="skipped")):
        stats.add(one)
    stats.add(ranking("p", 6), corrects=first)
    assert (stats.count, stats.median_seconds, stats.ties) == (2, 8.0, 1)
    assert stats.line() == "2 this session · median 8 s · 1 with ties"
    stats.remove("r-q")
    stats.remove("unknown")
    assert stats.line() == "1 this session · median 6 s · no ties"


def test_durations_read_as_people_say_them() -> None:
    assert seconds_text(8.4) == "8 s"
    assert seconds_text(80) == "1 min 20 s"


def test_the_order_depends_on_the_ranking_alone() -> None:
    ids = ["a", "b", "c", "d"]
    assert shuffled("r1", ids) == shuffled("r1", reversed(ids))
    assert len({shuffled(f"r{i}", ids) for i in range(200)}) == 24


def test_what_was_ranked_before_is_shuffled_among_the_new_responses(filled: Filled) -> None:
    """Were it always last, "new ones win" would look like "first ones win"."""
    store, first = filled.project.store, filled.rankings[0]
    store.add_responses([response(filled.prompts[0], "New.")]).result(10)
    cards = [load_item(store, first.prompt_id, rater_id=filled.rater.id) for _ in range(200)]
    where_new = Counter(card.ids.index(one) for card in cards if card for one in set(card.ids) - set(card.anchors))
    assert set(where_new) == {0, 1, 2}  # beside the best and the worst
    assert min(where_new.values()) > 30  # a third of 200, give or take 7


def test_the_reveal_names_model_file_or_person() -> None:
    def made(**what: Any) -> Response:
        return Response("x", "p", "text", **what)

    names = {"m": "sft 1"}
    assert origin(made(model_id="m"), names) == "sft 1"
    assert origin(made(model_id="gone"), names) == "a model that was removed"
    assert origin(made(source="pairs.jsonl"), names) == "pairs.jsonl"
    assert origin(made(finish_reason="written"), names) == "written by hand"
    assert origin(made(), names) == "imported"
    item = RankItem("r", Prompt("p", (Message("user", "q"),)), (made(model_id="m"), made()))
    assert reveal_line(item, names, "AB") == "Last card: A sft 1 · B imported"
