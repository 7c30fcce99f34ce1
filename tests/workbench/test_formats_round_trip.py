"""Export, then import into another project, is the identity, as far as the format has fields."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from workbench.formats.conversation import parse_transcript, write_transcript
from workbench.formats.exporter import DEMONSTRATION_SHAPES, PREFERENCE_SHAPES, export_file
from workbench.formats.importer import import_file
from workbench.formats.parsed import FORMATS, RowError, format_info
from workbench.formats.reader import DEMONSTRATION_READERS, PREFERENCE_READERS
from workbench.ids import new_id
from workbench.jsonl import encode
from workbench.pairs import current_pairs
from workbench.project import Project
from workbench.records import (
    FLAGS,
    Demonstration,
    ForeignModel,
    Message,
    ModelRecord,
    Prompt,
    Ranking,
    Rater,
    Response,
    ResponseFlag,
    Sampling,
)
from workbench.rows import PairRow

FEW = settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
AWKWARD = st.sampled_from(
    [
        "CR\r\nLF\rlone\n",
        "line\u2028separator\u2029\x85",
        "\u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd",
        "\N{FAMILY}\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f600",
        "\u00a0no-break\u00a0",
        "e\u0301 \u00e9",
        '"quotes" \\ back\\slash \\u0000 {"a": [1]}',
        "\ufeffmark",
        " outer space ",
        "\x01\x1f\x7f",
        "null",
        "Human: x\n\nAssistant: y",
    ]
)
TEXT = st.one_of(AWKWARD, st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20))
FILLED = TEXT.filter(lambda text: bool(text.strip()))
TAGS = st.lists(st.sampled_from(["a", "b c", "\u05e9"]), unique=True, max_size=2).map(tuple)
SPLIT = st.sampled_from(["train", "held-out"])


@st.composite
def conversations(draw: st.DrawFn, number: int) -> tuple[Message, ...]:
    """A prompt; its number in the first user turn keeps prompts apart, since equal ones are one prompt."""
    turns = [Message("user", f"{number}{draw(TEXT)}")]
    for _ in range(draw(st.integers(0, 2))):
        turns += [Message("assistant", draw(FILLED)), Message("user", draw(FILLED))]
    return (Message("system", draw(FILLED)), *turns) if draw(st.booleans()) else tuple(turns)


@st.composite
def prompts(draw: st.DrawFn, at_most: int = 3) -> list[Prompt]:
    return [
        Prompt(new_id(), draw(conversations(n)), draw(TAGS), draw(TEXT), draw(SPLIT), "2026-01-01")
        for n in range(draw(st.integers(1, at_most)))
    ]


@st.composite
def judged(draw: st.DrawFn) -> dict[str, list[Any]]:
    """Prompts with responses, of which some are the same text, and judgements of every kind with corrections."""
    found: dict[str, list[Any]] = {"prompts": draw(prompts()), "responses": [], "rankings": []}
    found["raters"] = [Rater("ann", "Ann"), Rater("judge", "Judge", "model", draw(TEXT))]
    for prompt in found["prompts"]:
        own = [
            Response(
                new_id(),
                prompt.id,
                draw(st.sampled_from(["same", ""]) | TEXT),
                draw(st.sampled_from(["", "model"])),
                draw(st.none() | st.builds(Sampling, temperature=st.floats(0, 2), seed=st.integers(0, 1 << 40))),
                draw(st.sampled_from(["stop", "length", "imported", "written"])),
                draw(st.integers(0, 1000)),
                draw(TEXT),
                "2026-01-01",
            )
            for _ in range(draw(st.integers(2, 4)))
        ]
        found["responses"] += own
        found["rankings"] += [draw(rankings(prompt, own)) for _ in range(draw(st.integers(1, 3)))]
    return found


@st.composite
def rankings(draw: st.DrawFn, prompt: Prompt, own: list[Response]) -> Ranking:
    ids = [response.id for response in own]
    outcome = draw(st.sampled_from(["ranked", "ranked", "skipped", "cannot-rank"]))
    tiers: list[list[str]] = []
    for id_ in draw(st.permutations(ids))[: draw(st.integers(1, len(ids)))] if outcome == "ranked" else []:
        if tiers and draw(st.booleans()):
            tiers[-1].append(id_)
        else:
            tiers.append([id_])
    return Ranking(
        new_id(),
        prompt.id,
        draw(st.sampled_from(["ann", "judge"])),
        tuple(map(tuple, tiers)),
        outcome,
        tuple(draw(st.lists(st.builds(ResponseFlag, st.sampled_from(["", *ids]), st.sampled_from(FLAGS)), max_size=2))),
        draw(TEXT),
        draw(st.floats(0, 1e6)),
        tuple(draw(st.permutations(ids))),
        draw(st.booleans()),
        draw(st.booleans()),
        "",
        "2026-01-02",
    )


def exported(project: Project, folder: Path, what: str, format: str) -> list[dict[str, Any]]:
    out = folder / f"{new_id()}.jsonl"
    export_file(project, out, what=what, format=format)
    return [json.loads(line) for line in out.read_bytes().split(b"\n") if line]


def there_and_back(fill: Callable[[Project], object], what: str, format: str) -> None:
    """Fill a project, export, import into another, export again: the same, but for the ids that are made anew."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        one = stack.enter_context(Project.create(folder / "one"))
        two = stack.enter_context(Project.create(folder / "two"))
        fill(one)
        out = folder / "labels.jsonl"
        rows = export_file(one, out, what=what, format=format).rows
        report = import_file(two, out)
        assert report.what == what
        assert report.rejected == []
        assert report.added + report.duplicates == rows
        first, second = exported(one, folder, what, format), exported(two, folder, what, format)
        if format != "native":
            for row in (*first, *second):
                for name in ("id", "prompt_id", "ranking_id", "tier_distance"):
                    row.pop(name, None)
        assert second == first
        assert two.check() == []
        assert import_file(two, out).added == 0


@settings(FEW, max_examples=15)
@given(judged())
def test_native_rankings_come_back_with_everything(labels: dict[str, list[Any]]) -> None:
    def fill(project: Project) -> None:
        store = project.store
        for rater in labels["raters"]:
            store.save_rater(rater).result()
        store.add_prompts(labels["prompts"]).result()
        store.add_responses(labels["responses"]).result()
        for ranking in labels["rankings"]:  # each corrects the rater's one before
            store.save_ranking(ranking).result()

    there_and_back(fill, "rankings", "native")


PREFERENCE_FORMATS = [info.name for info in FORMATS["preferences"] if info.can_export]
DEMONSTRATION_FORMATS = [info.name for info in FORMATS["demonstrations"] if info.can_export]
ONE_TURN = {"plain", "prompt-completion-plain"}


@pytest.mark.parametrize("format", PREFERENCE_FORMATS)
@given(conversations(0), st.lists(FILLED, min_size=2, max_size=2, unique_by=str.strip))
def test_a_preference_written_and_read_is_itself(format: str, prompt: tuple[Message, ...], texts: list[str]) -> None:
    prompt = _fitting(prompt, format)
    try:
        row = PREFERENCE_SHAPES[format](PairRow("r:a:b", "p", "r", "ann", prompt, *texts))
    except RowError:
        assert format == "hh"
        return
    read = PREFERENCE_READERS["trl" if format == "plain" else format]
    assert read(json.loads(encode(row))) == (prompt, *texts, "")


@pytest.mark.parametrize("format", DEMONSTRATION_FORMATS)
@given(conversations(0), FILLED)
def test_a_demonstration_written_and_read_is_itself(format: str, prompt: tuple[Message, ...], text: str) -> None:
    prompt = _fitting(prompt, format)
    row = DEMONSTRATION_SHAPES[format](prompt, text)
    read = DEMONSTRATION_READERS[format.removesuffix("-plain")]
    assert read(json.loads(encode(row))) == (prompt, text)


@pytest.mark.parametrize("format", PREFERENCE_FORMATS)
@FEW
@given(prompts(), st.data())
def test_preferences_come_back(format: str, found: list[Prompt], data: st.DataObject) -> None:
    found = [replace(prompt, messages=_fitting(prompt.messages, format)) for prompt in found]
    answers = {one.id: data.draw(st.lists(FILLED, min_size=2, max_size=3, unique_by=str.strip)) for one in found}
    if format == "hh":
        found = [prompt for prompt in found if _is_hh(prompt, answers[prompt.id])]
        assume(found)

    def fill(project: Project) -> None:
        store = project.store
        store.save_rater(Rater("ann", "Ann")).result()
        store.add_prompts(found).result()
        own = {prompt.id: [Response(new_id(), prompt.id, text) for text in answers[prompt.id]] for prompt in found}
        store.add_batch(
            responses=[one for many in own.values() for one in many],
            rankings=[Ranking(new_id(), id_, "ann", tuple((one.id,) for one in many)) for id_, many in own.items()],
            label="fill",
        ).result()
        assert current_pairs(store).dropped == {}

    there_and_back(fill, "preferences", format)


@pytest.mark.parametrize("format", DEMONSTRATION_FORMATS)
@FEW
@given(prompts(), st.data())
def test_demonstrations_come_back(format: str, found: list[Prompt], data: st.DataObject) -> None:
    found = [replace(prompt, messages=_fitting(prompt.messages, format)) for prompt in found]
    texts = [data.draw(FILLED) for _ in found]

    def fill(project: Project) -> None:
        made = [
            Demonstration(new_id(), prompt.id, text, "import", "final")
            for prompt, text in zip(found, texts, strict=True)
        ]
        project.store.add_batch(prompts=found, demonstrations=made, label="fill").result()

    there_and_back(fill, "demonstrations", format)


@FEW
@given(prompts(8))
def test_prompts_come_back(found: list[Prompt]) -> None:
    there_and_back(lambda project: project.store.add_prompts(found).result(), "prompts", "jsonl")


@given(conversations(0), TEXT)
@example((Message("user", "a"), Message("assistant", "\n\n"), Message("user", " \n\n")), "\nHuman: ")
@example((Message("user", "\n\nHuman: x"),), "a")
def test_a_transcript_says_the_same_when_read_back_or_is_refused(messages: tuple[Message, ...], answer: str) -> None:
    try:
        text = write_transcript(messages, answer)
    except RowError:
        assert any(turn.role == "system" or "\n\n" in turn.content for turn in (*messages, Message("user", answer)))
        return
    assert parse_transcript(text, "text") == (*messages, Message("assistant", answer))


def test_what_is_exported_for_others_alone_is_read_under_another_name() -> None:
    for what in ("preferences", "demonstrations"):
        for info in FORMATS[what]:  # type: ignore[index]
            assert info.can_import or info.name in ONE_TURN
    assert format_info("prompts", "jsonl")


def _fitting(messages: tuple[Message, ...], format: str) -> tuple[Message, ...]:
    """The prompt, less what the format has no place for."""
    if format in ONE_TURN:
        return (next(message for message in messages if message.role == "user"),)
    return messages


def _is_hh(prompt: Prompt, answers: list[str]) -> bool:
    try:
        return all(bool(write_transcript(prompt.messages, text)) for text in answers)
    except RowError:
        return False


def three_tiers(project: Project) -> None:
    store = project.store
    store.save_rater(Rater("ann", "Ann")).result()
    store.add_prompts([Prompt("p", (Message("user", "What is rain?"),))]).result()
    store.add_responses([Response(one, "p", one) for one in "abcd"]).result()
    store.save_ranking(Ranking("k", "p", "ann", (("a",), ("b", "c"), ("d",)))).result()


def test_preferences_of_whole_rankings_keep_the_ranking_its_tiers_and_its_id(project: Project, tmp_path: Path) -> None:
    three_tiers(project)
    out = tmp_path / "pairs.jsonl"
    export_file(project, out, what="preferences")
    with Project.create(tmp_path / "two") as two:
        report = import_file(two, out)
        assert (report.added, report.duplicates, report.warnings) == (5, 0, [])
        (ranking,) = two.store.rankings()
        texts = {one.id: one.text for one in two.store.responses(ranking.prompt_id)}
        assert (ranking.id, [[texts[one] for one in tier] for tier in ranking.tiers]) == (
            "k",
            [["a"], ["b", "c"], ["d"]],
        )
        assert exported(two, tmp_path, "preferences", "trl")[2]["tier_distance"] == 2
        assert (import_file(two, out).added, import_file(two, out).duplicates) == (0, 5)


def test_preferences_brought_back_into_their_own_project_add_nothing(project: Project, tmp_path: Path) -> None:
    three_tiers(project)
    for which in ("all", "best-vs-rest"):
        out = tmp_path / f"{which}.jsonl"
        count = export_file(project, out, what="preferences", which=which).rows  # type: ignore[arg-type]
        report = import_file(project, out)
        assert (report.added, report.duplicates, report.batch_id) == (0, count, "")
    assert project.store.counts().pairs == 5


def test_pairs_that_are_not_a_whole_ranking_say_no_more_than_they_do(project: Project, tmp_path: Path) -> None:
    three_tiers(project)
    out = tmp_path / "best.jsonl"
    export_file(project, out, what="preferences", which="best-vs-rest")
    with Project.create(tmp_path / "two") as two:
        report = import_file(two, out)
        assert report.warnings == [
            'The field "tier_distance" is not kept in 1 row: the other pairs of their rankings are not in the file.'
        ]
        assert two.store.counts().pairs == report.added == 3


def test_rows_that_contradict_each_other_or_have_an_odd_distance_stay_pairs(project: Project, tmp_path: Path) -> None:
    def row(chosen: str, rejected: str, distance: Any, ranking_id: str = "k") -> str:
        about = {"ranking_id": ranking_id, "tier_distance": distance}
        return json.dumps({"prompt": "p", "chosen": chosen, "rejected": rejected} | about)

    out = tmp_path / "odd.jsonl"
    rows = [
        row("a", "b", 1),
        row("b", "a", 1),
        row("c", "d", "far", "x:y"),
        row("e", "f", -1, "m"),
        row("c", "e", "1", "m"),
    ]
    out.write_text("\n".join(rows))
    report = import_file(project, out)
    assert report.added == 5
    assert project.store.counts().pairs == 5
    assert 'The field "tier_distance" is not kept (2 rows have it).' in report.warnings
    assert "k" not in {one.id for one in project.store.rankings()}


def test_a_demonstration_keeps_its_author(project: Project, tmp_path: Path) -> None:
    project.store.add_prompts([Prompt("p", (Message("user", "What is rain?"),))]).result()
    project.store.save_demonstration(Demonstration(new_id(), "p", "Water.", "Ann", "final")).result()
    out = tmp_path / "out.jsonl"
    export_file(project, out, what="demonstrations")
    with Project.create(tmp_path / "two") as two:
        assert import_file(two, out, rater_name="somebody").warnings == []
        assert [one.author for one in two.store.demonstrations()] == ["Ann"]


def test_what_is_known_of_the_models_of_another_project_travels_on(project: Project, tmp_path: Path) -> None:
    project.store.save_model(ModelRecord("m", "tiny", "base", "/x", sha256="abc")).result()
    project.store.save_rater(Rater("ann", "Ann")).result()
    project.store.add_prompts([Prompt("p", (Message("user", "What is rain?"),))]).result()
    project.store.add_responses([Response("a", "p", "a", "m"), Response("b", "p", "b", "gone")]).result()
    project.store.save_ranking(Ranking("k", "p", "ann", (("a",), ("b",)))).result()
    first = exported(project, tmp_path, "rankings", "native")
    out = tmp_path / "out.jsonl"
    out.write_bytes(b"\n".join(encode(row) for row in first))
    with Project.create(tmp_path / "two") as two:
        import_file(two, out)
        assert exported(two, tmp_path, "rankings", "native") == first
        assert two.store.foreign_models() == {"m": ForeignModel("m", "tiny", "abc")}
        assert two.store.models() == []
