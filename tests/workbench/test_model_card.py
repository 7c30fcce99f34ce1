"""A model's card: what it was made of, how it was measured, what to mind, and what the hub reads of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from workbench import comparisons
from workbench.ids import new_id
from workbench.jsonl import encode
from workbench.model_card import Origin, card, front_matter, read_origins, readme
from workbench.project import Project
from workbench.protocol import Ended, Metrics, ModelRef, RunSpec, Started
from workbench.records import Message, Method, ModelRecord
from workbench.rows import PairRow
from workbench.run_folder import RunFolder

BASE = ModelRecord("b", "tiny_base", "base", "/x", source="hub:owner/tiny", sha256="f" * 64)
REF = ModelRef(model_id="b", name="tiny", base="/x")


def adapter(role: Any = "policy", **more: Any) -> ModelRecord:
    made = ModelRecord("p", "dpo *1*", role, "runs/r/final", base_id="b", parent_id="b", run_id="r", step=30)
    return replace(made, **more)


def spec_of(method: Method = "dpo", **more: Any) -> RunSpec:
    return RunSpec(**{"run_id": "r", "method": method, "name": "dpo 1", "recipe": {}, "model": REF} | more)


def test_a_card_tells_lineage_settings_measures_and_cautions() -> None:
    spec = spec_of("sft", recipe={"epochs": 5.0, "micro_batch": 6}, automatic=("micro_batch",))
    made = Origin(adapter("sft", name="sft *1*"), spec, {"train": 20, "heldout": 4}, {"eval_loss": 1.2345})
    text = card([made, Origin(BASE)])
    assert "# sft \\*1\\*" in text
    assert "A SFT model: a LoRA adapter on **tiny\\_base**." in text
    assert "downloaded from the hub: `owner/tiny`" in text
    assert "30 steps, on 20 training rows, 4 held-out rows" in text
    assert "loss, held-out: 1.234 nats" in text or "loss, held-out: 1.235 nats" in text
    assert "`epochs` 5.0 (default 3.0)" in text
    assert "micro_batch" not in text  # the memory plan chose it, nobody changed it
    assert "Trained on 20 demonstrations: little to learn a taste from." in text
    assert "only 4 held-out rows" in text
    assert "f" * 64 in text
    assert "merged into **tiny\\_base**" in card([made, Origin(BASE)], "merged")


def test_each_frozen_file_is_named_with_its_rows_and_sha256() -> None:
    spec = spec_of(data_sha256={"train.jsonl": "a" * 64, "heldout.jsonl": "b" * 64})
    text = card([Origin(adapter(), spec, {"train": 1200, "heldout": 60}), Origin(BASE)])
    assert f"- dpo 1, `train.jsonl`: 1,200 rows, sha256 `{'a' * 64}`" in text
    assert f"- dpo 1, `heldout.jsonl`: 60 rows, sha256 `{'b' * 64}`" in text
    assert "Trained on 1,200 pairs.\n" in text


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        (Origin(adapter(), spec_of(), {"train": 9}), "never validated: nothing was held out"),
        (Origin(adapter(), spec_of(), {"train": 9, "heldout": 7}), "its 7 held-out rows were not measured"),
        (Origin(adapter(), spec_of(), state="interrupted"), "did not reach its end (it is interrupted)"),
        (Origin(adapter(), spec_of("ppo"), {"train": 8}), "Trained on 8 prompts"),
        (Origin(adapter()), "Nobody has compared its answers"),
        (Origin(adapter("reward")), "a guess about one rater's taste"),
        (Origin(adapter("sft")), "the form of its demonstrations"),
    ],
)
def test_a_card_says_what_to_mind(origin: Origin, said: str) -> None:
    assert said in card([origin, Origin(BASE)])


def test_a_card_is_silent_on_what_was_done_well() -> None:
    rows, metrics = {"train": 2000, "heldout": 90}, {"eval_rewards/accuracies": 0.7}
    text = card([Origin(adapter(), spec_of(), rows, metrics, votes=12), Origin(BASE)])
    for warning in ("validated", "only", "did not reach", "Nobody", "little to learn", "quantised", "4 bits"):
        assert warning not in text


def test_a_merged_model_says_that_it_was_trained_on_another_rounding_of_its_base() -> None:
    lineage = [Origin(adapter(), spec_of(recipe={"quantisation": "nf4"})), Origin(replace(BASE, source="/m/x.GGUF"))]
    assert "4 bits" in card(lineage, "merged")
    assert "4 bits" not in card(lineage, "adapter")
    assert "unpacked from a GGUF file" in card(lineage)


def test_a_card_does_not_tell_where_files_lie_on_this_machine() -> None:
    text = card([Origin(adapter(run_id="", source="/home/ann/polite")), Origin(replace(BASE, source="/home/ann/tiny"))])
    assert "/home" not in text
    assert "imported from `polite`" in text
    assert "from `tiny`; its licence applies" in text


def test_nothing_that_others_named_turns_into_markup() -> None:
    """A code span ends at a fence of its own length, and outside of code every mark has a backslash."""
    name = "a`![](http:example)\n\n# b"
    spec = spec_of(
        recipe={"loss_type": "![](http:example)\n# c"}, versions={"torch": "`2`"}, data_sha256={"`x`.jsonl": "``"}
    )
    adapter_text = card([Origin(adapter(run_id="", source=f"/home/ann/{name}")), Origin(BASE)])
    assert "imported from `` a`![](http:example) # b ``" in adapter_text
    text = card([Origin(adapter(), spec), Origin(replace(BASE, source=f"/home/ann/{name}"))])
    assert "from `` a`![](http:example) # b ``; its licence applies" in text
    assert "- `loss_type` !\\[\\](http:example) \\# c (default" in text
    assert "(torch \\`2\\`)" in text
    assert "`` `x`.jsonl ``: 0 rows, sha256 ``` `` ```" in text
    assert "hub: `` a`b ``" in card([Origin(replace(BASE, source="hub:a`b"))])


def test_the_hub_reads_base_library_licence_and_tags() -> None:
    demo = Origin(replace(BASE, source="demo"))
    assert front_matter([Origin(adapter(), spec_of()), demo], "adapter") == (
        'base_model: "HuggingFaceTB/SmolLM2-135M-Instruct"\nbase_model_relation: "adapter"\nlibrary_name: "peft"\n'
        'license: "apache-2.0"\npipeline_tag: "text-generation"\ntags:\n- "tastemaker"\n- "lora"\n- "dpo"\n'
    )
    assert front_matter([Origin(adapter("reward")), Origin(BASE)], "merged") == (
        'base_model: "owner/tiny"\nbase_model_relation: "finetune"\nlibrary_name: "transformers"\n'
        'pipeline_tag: "text-classification"\ntags:\n- "tastemaker"\n- "lora"\n'
    )
    unnamed = Origin(replace(BASE, source="/m", name="what a model"))
    assert "base_model" not in front_matter([unnamed], "gguf")
    assert 'library_name: "gguf"' in front_matter([unnamed], "gguf")


@pytest.mark.parametrize(
    ("role", "what", "loaded"),
    [
        ("policy", "adapter", 'PeftModel.from_pretrained(base, "FOLDER")'),
        ("policy", "merged", 'AutoModelForCausalLM.from_pretrained("FOLDER")'),
        ("reward", "adapter", 'AutoModelForSequenceClassification.from_pretrained("owner/tiny", num_labels=1)'),
        ("reward", "merged", 'AutoModelForSequenceClassification.from_pretrained("FOLDER", num_labels=1)'),
        ("policy", "gguf", "llama.cpp"),
    ],
)
def test_an_exports_readme_begins_with_front_matter_and_ends_with_how_to_load_it(
    role: Any, what: str, loaded: str
) -> None:
    text = readme([Origin(adapter(role)), Origin(BASE)], what)
    assert text.startswith("---\nbase_model: ")
    assert "\n---\n\n# dpo \\*1\\*\n" in text
    assert loaded in text.split("## How to load it")[1]


def test_origins_are_read_from_the_run_the_events_and_the_votes(project: Project) -> None:
    base = replace(BASE, id=new_id(), path="/tiny")
    made = adapter(id=new_id(), run_id=new_id(), base_id=base.id, parent_id=base.id)
    for one in (base, made):
        project.store.save_model(one).result()
    prompt = (Message("user", "Hi"),)
    rows = [PairRow(f"r:a:{n}", "p", "r", "ann", prompt, "yes", f"no {n}") for n in range(3)]
    folder = RunFolder.create(project.path / "runs", spec_of(run_id=made.run_id), rows, rows[:1])
    events = (
        Metrics(seq=1, step=1, values={"eval_loss": 2.0}),
        Metrics(seq=2, step=2, values={"loss": 1.0}),
        Ended(seq=3, state="done"),
    )
    folder.events_path.write_bytes(b"".join(encode(one) + b"\n" for one in events))
    log = comparisons.ComparisonLog(project.path, comparisons.new_header([(base.id, "a"), (made.id, "b")]))
    log.add(comparisons.Voted(key="1", winner=1), comparisons.Voted(key="2", winner=0))
    log.flush()
    newest, oldest = read_origins(project, made)
    assert (newest.rows, newest.metrics["eval_loss"], newest.votes) == ({"train": 3, "heldout": 1}, 2.0, 2)
    assert newest.spec is not None
    assert set(newest.spec.data_sha256) == {"train.jsonl", "heldout.jsonl"}
    assert (oldest.model.id, oldest.spec) == (base.id, None)


def test_the_card_of_an_earlier_checkpoint_tells_what_was_measured_up_to_its_step_and_that_the_run_went_on(
    project: Project,
) -> None:
    base = replace(BASE, id=new_id(), path="/tiny")
    early = adapter(id=new_id(), run_id=new_id(), base_id=base.id, parent_id=base.id, step=10)
    end = replace(early, id=new_id(), step=30)
    for one in (base, early, end):
        project.store.save_model(one).result()
    folder = RunFolder.create(project.path / "runs", spec_of(run_id=early.run_id), [], [])
    accuracies = "eval_rewards/accuracies"
    events = (
        Metrics(seq=1, step=5, values={accuracies: 0.5, "eval_rewards/margins": 0.1}),
        Metrics(seq=2, step=10, values={accuracies: 0.6}),
        Started(seq=3, pid=1, device="cpu", resumed_from=5),  # what it did after step 5 it does again
        Metrics(seq=4, step=10, values={accuracies: 0.7}),
        Metrics(seq=5, step=30, values={accuracies: 0.9, "eval_rewards/margins": 0.4}),
        Ended(seq=6, state="done", step=30),
    )
    folder.events_path.write_bytes(b"".join(encode(one) + b"\n" for one in events))
    assert read_origins(project, early)[0].metrics == {accuracies: 0.7, "eval_rewards/margins": 0.1}
    assert read_origins(project, end)[0].metrics == {accuracies: 0.9, "eval_rewards/margins": 0.4}
    said = "Its run went on to step 30: these are the weights of step 10"
    assert said in card(read_origins(project, early))
    assert "went on" not in card(read_origins(project, end))


def test_a_card_of_a_model_whose_run_is_gone_says_so(project: Project) -> None:
    project.store.save_model(replace(BASE, path=str(Path("/x")))).result()
    project.store.save_model(adapter(run_id=new_id())).result()
    assert "its run folder is gone" in card(read_origins(project, project.store.models(role="policy")[0]))
