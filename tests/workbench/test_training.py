import dataclasses
import json
import os
import shlex
import shutil
import struct
import time

import pytest

from engine.events import EventLog
from workbench import cli, cli_runs
from workbench.cli_parser import make_parser
from workbench.errors import UserError
from workbench.ids import new_id
from workbench.manifests import faults_of, seal
from workbench.memory_plan import CUDA_CONTEXT_BYTES
from workbench.model_folders import HEADS_FILE, fingerprint
from workbench.project import Project
from workbench.protocol import Checkpoint, Ended, Memory, Metrics, Started
from workbench.reaper import LockNote, take, write_exit, write_note
from workbench.recipes import RECIPES, DpoRecipe, PpoRecipe, RewardRecipe, SftRecipe
from workbench.records import (
    BAD,
    GOOD,
    METHODS,
    Demonstration,
    Message,
    ModelRecord,
    Prompt,
    Ranking,
    Rater,
    Response,
    ResponseFlag,
)
from workbench.run_folder import RunFolder
from workbench.run_registry import delete_run, measured_peaks
from workbench.training import plan_run, preset_for, refresh_runs, start_run
from workbench.training_data import content_hash, is_auto_held_out, share_to_hold_out


def write_safetensors(path, tensors):
    header, offset = {}, 0
    for name, shape in tensors.items():
        size = 4
        for one in shape:
            size *= one
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(offset))


def write_base(folder, hidden=8, context=2048):
    folder.mkdir(parents=True)
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": 2,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "vocab_size": 32,
        "max_position_embeddings": context,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    write_safetensors(folder / "model.safetensors", {"model.embed_tokens.weight": [32, hidden]})


def write_adapter(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    write_safetensors(folder / "adapter_model.safetensors", {"base_model.model.q_proj.lora_A.weight": [4, 8]})


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("TASTEMAKER_RUNTIME", str(tmp_path / "runtime"))
    monkeypatch.setenv("TASTEMAKER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def base(project, tmp_path):
    folder = tmp_path / "cache" / "models" / "tiny"
    write_base(folder)
    record = ModelRecord(id=new_id(), name="tiny", role="base", path=str(folder), sha256=fingerprint(folder))
    project.store.save_model(record).result()
    return record


@pytest.fixture
def launched(monkeypatch):
    """Runs are frozen and listed, and not really launched."""
    started = []
    monkeypatch.setattr("workbench.supervisor.launch", lambda path, **_: started.append(path))
    return started


def add_prompts(project, count, split="train", word="question"):
    prompts = [Prompt(id=new_id(), messages=(Message("user", f"{word} {n}"),), split=split) for n in range(count)]
    project.store.add_prompts(prompts).result()
    return prompts


def demonstrate(project, prompts, status="final", text="An answer."):
    made = [
        Demonstration(id=new_id(), prompt_id=prompt.id, text=text, author="me", status=status) for prompt in prompts
    ]
    project.store.add_batch(demonstrations=made, label="demonstrate").result()


NEEDED = {"ppo": {"rule": "shorter-than:40"}, "kto": {"rankings_as_thumbs": "best-and-worst"}}
"""Settings without which a project of demonstrations and rankings has nothing for a method."""


def rank(project, prompts, responses=2, tied=False):
    rater = Rater(id="me", name="me")
    drawn = {
        prompt.id: [Response(id=new_id(), prompt_id=prompt.id, text=f"response {n}") for n in range(responses)]
        for prompt in prompts
    }
    rankings = [
        Ranking(id=new_id(), prompt_id=prompt, rater_id="me", tiers=tiers_of(found, tied))
        for prompt, found in drawn.items()
    ]
    every = [one for found in drawn.values() for one in found]
    project.store.add_batch(responses=every, rankings=rankings, raters=[rater], label="rank").result()


def tiers_of(responses, tied):
    """Every response a tier of its own, or the first two as the best tier together."""
    ids = [one.id for one in responses]
    return (tuple(ids[:2]), *((one,) for one in ids[2:])) if tied else tuple((one,) for one in ids)


def adapter_model(project, base, role, name):
    record = ModelRecord(id=new_id(), name=name, role=role, path=f"models/{name}", base_id=base.id, parent_id=base.id)
    write_adapter(project.path / record.path)
    project.store.save_model(record).result()
    return record


def messages(plan, severity="error"):
    return " | ".join(f"{one.message} -> {one.remedy}" for one in plan.problems if one.severity == severity)


# ---- data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_held_out_prompts_never_get_into_the_training_rows(project, base, method):
    train, held = add_prompts(project, 30), add_prompts(project, 12, "held-out", "kept question")
    demonstrate(project, train + held)
    rank(project, train + held, 3)
    twin = [Prompt(id=new_id(), messages=(Message("user", " kept question 3\r\n"),))]  # the same text, entered again
    project.store.add_prompts(twin).result()
    demonstrate(project, twin)
    rank(project, twin)
    recipe = RECIPES[method](**NEEDED.get(method, {}))
    plan = plan_run(project, method, start_model_id=base.id, recipe=recipe)
    assert not plan.errors, messages(plan)
    forbidden = {content_hash(prompt.messages) for prompt in held}
    assert {content_hash(row.prompt) for row in plan.heldout} == forbidden
    assert not {content_hash(row.prompt) for row in plan.train} & forbidden
    assert not {content_hash(row.prompt) for row in plan.demonstrations} & forbidden
    assert {content_hash(row.prompt) for row in plan.train} == {content_hash(prompt.messages) for prompt in train}
    assert not plan.auto_held_out


@pytest.mark.parametrize("method", METHODS)
def test_a_held_out_prompt_protects_its_text_also_when_it_is_archived(project, base, method):
    train, held = add_prompts(project, 30), add_prompts(project, 12, "held-out", "kept question")
    twins = add_prompts(project, 12, "train", "kept question")
    demonstrate(project, train + twins)
    rank(project, train + twins, 3)
    project.store.archive_prompts([prompt.id for prompt in held]).result()
    recipe = RECIPES[method](**NEEDED.get(method, {}))
    plan = plan_run(project, method, start_model_id=base.id, recipe=recipe)
    forbidden = {content_hash(prompt.messages) for prompt in held}
    assert not {content_hash(row.prompt) for row in [*plan.train, *plan.heldout, *plan.demonstrations]} & forbidden


@pytest.mark.parametrize("method", METHODS)
def test_a_tenth_of_the_prompts_is_held_out_when_none_is_and_siblings_stay_together(project, base, method):
    train = add_prompts(project, 80)
    demonstrate(project, train)
    rank(project, train, 4)
    changes = NEEDED.get(method, {}) | ({"ptx_coefficient": 1.0} if method == "ppo" else {})
    recipe = RECIPES[method](**changes)
    plan = plan_run(project, method, start_model_id=base.id, recipe=recipe)
    groups = [{content_hash(row.prompt) for row in rows} for rows in (plan.train, plan.heldout)]
    assert plan.auto_held_out
    assert not groups[0] & groups[1]
    assert len(groups[0] | groups[1]) == 80
    assert 2 <= len(groups[1]) <= 16
    assert "tenth" in plan.summary
    if method in ("reward", "ppo"):
        assert plan.demonstrations
        assert not {content_hash(row.prompt) for row in plan.demonstrations} & groups[1]
    if method in ("reward", "dpo"):
        assert len(plan.train) == 6 * len(groups[0])
    if method == "kto":  # of four tiers the best and the worst
        assert len(plan.train) == 2 * len(groups[0])


def test_thumbs_alone_are_ready_for_kto_and_the_command_line_says_how_many_it_trains_on(project, base, capsys):
    prompts = add_prompts(project, 12) + add_prompts(project, 3, "held-out", "kept")
    drawn = [[Response(new_id(), one.id, text) for text in ("yes", "no", "never")] for one in prompts]
    rankings = [
        Ranking(
            new_id(),
            a.prompt_id,
            "me",
            (),
            "cannot-rank",
            (ResponseFlag(a.id, GOOD), ResponseFlag(b.id, GOOD), ResponseFlag(c.id, BAD)),
        )
        for a, b, c in drawn
    ]
    every = [one for some in drawn for one in some]
    project.store.add_batch(responses=every, rankings=rankings, raters=[Rater("me", "me")], label="judge").result()
    counts = project.store.counts()
    assert (counts.thumbs_up, counts.thumbs_down, counts.pairs, counts.rankings) == (30, 15, 0, 0)
    assert train(project, "kto", "--plan") == 0
    shown = capsys.readouterr().out
    assert "Trains on 36 judged responses and measures on 9" in shown  # 12 and 3 prompts, each with 3 thumbs
    assert train(project, "dpo", "--plan") == 1
    assert "There is no preference pair to train on" in capsys.readouterr().out


def test_ppo_ptx_freezes_the_demonstrations_and_wants_some_and_plain_ppo_has_none(project, base, launched):
    prompts = add_prompts(project, 12)
    held = add_prompts(project, 3, "held-out", "kept")
    recipe = PpoRecipe(rule="shorter-than:40", ptx_coefficient=0.5)
    [problem] = plan_run(project, "ppo", start_model_id=base.id, recipe=recipe).errors
    assert (problem.field, problem.message) == (
        "ptx_coefficient",
        "There is no final demonstration that may be mixed into PPO",
    )
    demonstrate(project, prompts[:5] + held)
    plan = plan_run(project, "ppo", start_model_id=base.id, recipe=recipe)
    assert not plan.errors
    assert "5 demonstrations" in plan.summary
    record = start_run(project, plan)
    frozen = RunFolder(project.run_dir(record.id)).rows("demonstrations")
    assert {content_hash(row.prompt) for row in frozen} == {content_hash(one.messages) for one in prompts[:5]}
    plain = plan_run(project, "ppo", start_model_id=base.id, recipe=PpoRecipe(rule="shorter-than:40"))
    assert plain.demonstrations == ()


def test_demonstrations_that_ppo_mixes_in_count_in_its_memory_before_and_after_the_run(project, base, launched):
    prompts = add_prompts(project, 12)
    demonstrate(project, prompts[:1], text="A long answer. " * 200)  # some 750 tokens; an episode has some 150
    mixed, plain = (
        plan_run(
            project,
            "ppo",
            start_model_id=base.id,
            recipe=PpoRecipe(
                rule="shorter-than:40", ptx_coefficient=coefficient, mini_batches=32
            ),  # an episode whose graph is kept weighs less than the demonstration
        )
        for coefficient in (0.5, 0.0)
    )
    after = []
    for plan in (mixed, plain):
        update, alone = ({one.name: one.bytes for one in which.estimate.phases}["update"] for which in (plan, plain))
        assert (update > alone) == (plan is mixed)
        record = start_run(project, plan)
        events = EventLog(project.run_dir(record.id))
        events.emit(Metrics(step=1, values={"perf/peak_memory_bytes": 7e8}))
        events.close()
        finish(project, record)
        refresh_runs(project)
        after.append(measured_peaks(project)[0].foretold_by_phase["update"])
    assert after[0] > after[1]


def test_the_tenth_is_the_same_for_every_method_and_stays_when_labels_are_added(project, base):
    first = add_prompts(project, 60)
    demonstrate(project, first)
    rank(project, first)
    sft = plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe())
    dpo = plan_run(project, "dpo", start_model_id=base.id, recipe=DpoRecipe())
    held = {content_hash(row.prompt) for row in sft.heldout}
    assert held == {content_hash(row.prompt) for row in dpo.heldout}
    more = add_prompts(project, 60, word="later question")
    demonstrate(project, more)
    again = plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe())
    assert held < {content_hash(row.prompt) for row in again.heldout}


def test_about_a_tenth_of_any_texts_falls_into_the_held_out_tenth():
    held = sum(is_auto_held_out(f"group {n}") for n in range(5000))
    assert 400 < held < 600


def test_drafts_do_not_train(project, base):
    prompts = add_prompts(project, 4)
    demonstrate(project, prompts[:1])
    demonstrate(project, prompts[1:2], status="draft")
    plan = plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe())
    assert [row.group for row in plan.train] == [prompts[0].id]


def test_best_against_the_rest_gives_fewer_pairs(project, base):
    rank(project, add_prompts(project, 3), 4)
    every = plan_run(project, "dpo", start_model_id=base.id, recipe=DpoRecipe())
    best = plan_run(project, "dpo", start_model_id=base.id, recipe=DpoRecipe(pairs_from_rankings="best-vs-rest"))
    assert (len(every.train), len(best.train)) == (18, 9)


@pytest.mark.parametrize("held_out_by_hand", [True, False])
def test_ties_train_a_reward_model_where_asked_and_are_never_measured_on(project, base, held_out_by_hand):
    rank(project, add_prompts(project, 40), 3, tied=True)  # a = b > c: two preferences and one tie
    if held_out_by_hand:
        rank(project, add_prompts(project, 2, split="held-out", word="other"), 3, tied=True)
    plain = plan_run(project, "reward", start_model_id=base.id, recipe=RewardRecipe())
    with_ties = plan_run(project, "reward", start_model_id=base.id, recipe=RewardRecipe(ties=True))
    assert 2 * len(with_ties.train) == 3 * len(plain.train)
    assert sum(row.tier_distance == 0 for row in with_ties.train) == len(plain.train) // 2
    assert with_ties.heldout == plain.heldout != []
    assert all(row.tier_distance for row in [*plain.train, *plain.heldout])


# ---- problems --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "word"), [("sft", "demonstration"), ("reward", "pair"), ("dpo", "pair")])
def test_no_labels_is_an_error_with_a_remedy(project, base, method, word):
    plan = plan_run(project, method, start_model_id=base.id, recipe=RECIPES[method]())
    assert word in messages(plan)
    with pytest.raises(UserError, match="cannot start"):
        start_run(project, plan)
    assert project.store.runs() == []


def test_few_pairs_and_nothing_held_out_are_warnings(project, base):
    rank(project, add_prompts(project, 5))
    plan = plan_run(project, "reward", start_model_id=base.id, recipe=RewardRecipe())
    assert not plan.errors
    assert "Only 5 preference pairs" in messages(plan, "warning")
    assert "Nothing is held out" in messages(plan, "warning")


def test_ppo_needs_a_reward_model_or_a_rule(project, base):
    add_prompts(project, 12)
    assert "neither a reward model nor a rule" in messages(
        plan_run(project, "ppo", start_model_id=base.id, recipe=PpoRecipe())
    )
    ruled = plan_run(project, "ppo", start_model_id=base.id, recipe=PpoRecipe(rule="shorter-than:40"))
    assert not ruled.errors
    assert ruled.reward is None


def test_models_of_the_wrong_role_or_base_are_refused(project, base, tmp_path):
    add_prompts(project, 12)
    sft = adapter_model(project, base, "sft", "sft-1")
    reward = adapter_model(project, base, "reward", "reward-1")
    write_base(tmp_path / "cache" / "models" / "other", hidden=16)
    other = dataclasses.replace(
        base, id=new_id(), name="other", path=str(tmp_path / "cache" / "models" / "other"), sha256=""
    )
    project.store.save_model(other).result()

    def plan(start, paid_by):
        return plan_run(project, "ppo", start_model_id=start.id, reward_model_id=paid_by.id, recipe=PpoRecipe())

    assert not plan(sft, reward).errors, messages(plan(sft, reward))
    assert "sft-1 is a sft model" in messages(plan(sft, sft))
    assert "reward-1 is a reward model" in messages(plan(reward, reward))
    assert "different bases" in messages(plan(other, reward))


def test_a_penalty_on_disagreement_is_told_to_be_idle_where_the_reward_model_has_one_head(project, base):
    add_prompts(project, 12)
    sft = adapter_model(project, base, "sft", "sft-1")
    reward = adapter_model(project, base, "reward", "reward-1")
    ids = {"start_model_id": sft.id, "reward_model_id": reward.id}

    def warned(**changes):
        plan = plan_run(project, "ppo", recipe=PpoRecipe(**changes), **ids)
        assert not plan.errors, messages(plan)
        return [one.message for one in plan.warnings if one.field == "uncertainty_penalty"]

    assert warned() == []
    [said] = warned(uncertainty_penalty=0.5)
    assert "reward-1 has one head" in said
    (project.adapter_folder(reward) / HEADS_FILE).write_bytes(b"")
    assert warned(uncertainty_penalty=0.5) == []


def test_missing_model_files_are_named(project, base, tmp_path):
    demonstrate(project, add_prompts(project, 12))
    (tmp_path / "cache" / "models" / "tiny" / "model.safetensors").unlink()
    plan = plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe())
    assert "safetensors" in messages(plan)
    assert "No model is chosen" in messages(plan_run(project, "sft", start_model_id="", recipe=SftRecipe()))


def test_a_base_that_changed_on_disk_is_refused_at_start(project, base, tmp_path, launched):
    demonstrate(project, add_prompts(project, 12))
    plan = plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe())
    config = tmp_path / "cache" / "models" / "tiny" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(UserError, match="has changed"):
        start_run(project, plan)
    assert launched == []


def test_recipe_faults_and_limits_are_problems_and_never_raised(project, base):
    demonstrate(project, add_prompts(project, 12), text="word " * 4000)
    plan = plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe(micro_batch=64, max_length=4096))
    assert "micro_batch 64 is larger" in messages(plan)
    assert "context of 2048" in messages(plan, "warning")
    assert "longer than 4096" in messages(plan, "warning")
    assert "not those of dpo" in messages(plan_run(project, "dpo", start_model_id=base.id, recipe=SftRecipe()))
    plan = plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe(device="cuda"))
    assert "no GPU" in messages(plan)


def test_too_little_memory_is_said_with_a_remedy(project, base, monkeypatch):
    demonstrate(project, add_prompts(project, 12))
    monkeypatch.setattr("workbench.estimate.memory_available", lambda _: 50_000_000)
    plan = plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe(quantisation="bf16"))
    assert "47.7 MiB are free" in messages(plan, "warning")
    assert "nf4" in messages(plan, "warning")
    monkeypatch.setattr("workbench.estimate.memory_available", lambda _: 1)
    assert "smaller base" in messages(plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe()))


def test_a_full_disk_is_said_before_the_run(project, base, monkeypatch):
    demonstrate(project, add_prompts(project, 12))
    usage = type("Usage", (), {"free": 10_000_000})
    monkeypatch.setattr("workbench.preflight.shutil.disk_usage", lambda _: usage)
    plan = plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe())
    assert "on disk and 9.5 MiB are free" in messages(plan)


# ---- the command line ------------------------------------------------------------------------------------------


def test_the_command_line_names_what_differs_from_its_preset(project, base):
    demonstrate(project, add_prompts(project, 12))
    recipe = preset_for(project, "sft", "Balanced", base.id)
    plan = plan_run(project, "sft", start_model_id=base.id, recipe=recipe)
    assert shlex.split(plan.command_line) == ["tastemaker", "train", str(project.path), "sft", "--from", "tiny"]
    changed = dataclasses.replace(recipe, learning_rate=1e-5, gradient_checkpointing=True)
    words = shlex.split(plan_run(project, "sft", start_model_id=base.id, recipe=changed, name="my run").command_line)
    assert words[6:] == ["--name", "my run", "--set", "learning_rate=1e-05", "--set", "gradient_checkpointing=true"]


def test_an_unknown_preset_is_a_user_error(project, base):
    with pytest.raises(UserError, match="preset"):
        preset_for(project, "sft", "Fast", base.id)


# ---- starting and registering ----------------------------------------------------------------------------------


def test_start_freezes_the_data_and_lists_the_run(project, base, launched):
    demonstrate(project, add_prompts(project, 12) + add_prompts(project, 2, "held-out", "other"))
    record = start_run(project, plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe()))
    folder = RunFolder(project.run_dir(record.id))
    assert launched == [folder.path]
    assert record.name == "sft 1"
    assert [one.id for one in project.store.runs()] == [record.id]
    spec = folder.spec()
    assert (spec.method, spec.model.base, spec.name) == ("sft", base.path, "sft 1")
    assert len(folder.rows("train")) == 12
    assert len(folder.rows("heldout")) == 2
    assert set(spec.data_sha256) == {"train.jsonl", "heldout.jsonl"}
    again = start_run(project, plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe()))
    assert again.name == "sft 2"


def test_changed_data_of_a_run_is_refused(project, base, launched):
    demonstrate(project, add_prompts(project, 12))
    record = start_run(project, plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe()))
    path = project.run_dir(record.id) / "data" / "train.jsonl"
    path.write_bytes(path.read_bytes().replace(b"answer", b"ANSWER"))
    with pytest.raises(UserError, match="changed after"):
        RunFolder(project.run_dir(record.id)).rows("train")


def finish(project, record, state="done", step=7, where="final"):
    """Write what an engine leaves."""
    path = project.run_dir(record.id)
    lock = take(path / "lock")
    write_note(lock, LockNote(state="running", since=0))
    log = EventLog(path)
    log.emit(Started(pid=1, device="cpu"))
    log.emit(Metrics(step=step, values={"loss": 1.0, "perf/tokens_per_s": 50.0}))
    write_adapter(path / where)
    (path / where / "state_training.pt").write_bytes(b"x")
    seal(path / where, kind="final", run_id=record.id, method=record.method, step=step)
    if where != "final":
        log.emit(Checkpoint(step=step, path=where))
    log.emit(Ended(state=state, step=step, message="The end"))
    log.close()
    write_exit(path, {"code": 0, "signal": None, "reason": ""})
    os.close(lock)


@pytest.mark.parametrize(
    ("method", "role"), [("sft", "sft"), ("reward", "reward"), ("dpo", "policy"), ("kto", "policy"), ("ppo", "policy")]
)
def test_a_finished_run_becomes_a_model_once(project, base, launched, method, role):
    prompts = add_prompts(project, 12)
    demonstrate(project, prompts)
    rank(project, prompts)
    recipe = RECIPES[method](**NEEDED.get(method, {}))
    record = start_run(project, plan_run(project, method, start_model_id=base.id, recipe=recipe))
    assert [one.state for one in refresh_runs(project)] == ["interrupted"]  # never launched in this test
    finish(project, record)
    for _ in range(3):
        (run,) = refresh_runs(project)
    assert run.state == "done"
    assert project.store.run(record.id).state == "done"
    (model,) = [one for one in project.store.models() if one.run_id]
    assert (model.role, model.name, model.step) == (role, f"{method} 1 on tiny", 7)
    assert (model.base_id, model.parent_id, model.path) == (base.id, base.id, f"runs/{record.id}/final")
    assert project.resolve(model).adapter == str(project.run_dir(record.id) / "final")


def test_a_stopped_and_saved_run_becomes_a_model_that_outlives_its_checkpoint(project, base, launched):
    demonstrate(project, add_prompts(project, 12))
    record = start_run(project, plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe()))
    finish(project, record, "stopped", 20, "checkpoints/20")
    refresh_runs(project)
    refresh_runs(project)
    (model,) = [one for one in project.store.models() if one.run_id]
    assert model.name == "sft 1 on tiny, step 20"
    folder = project.path / model.path
    assert faults_of(folder) == []
    assert not (folder / "state_training.pt").exists()
    shutil.rmtree(project.run_dir(record.id) / "checkpoints" / "20")
    assert faults_of(folder) == []
    finish(project, record, "stopped", 25, "checkpoints/25")  # resumed and stopped again, unseen in between
    refresh_runs(project)
    finish(project, record, "done", 30)
    refresh_runs(project)
    assert [one.step for one in project.store.models() if one.run_id] == [20, 25, 30]
    assert project.store.run(record.id).ended_at


def test_a_model_taken_off_the_list_does_not_come_back(project, base, launched):
    demonstrate(project, add_prompts(project, 12))
    record = start_run(project, plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe()))
    finish(project, record)
    refresh_runs(project)
    (model,) = [one for one in project.store.models() if one.run_id]
    project.store.remove_model(model.id).result()
    refresh_runs(project)
    assert [one for one in project.store.models() if one.run_id] == []
    delete_run(project, record.id)
    assert refresh_runs(project) == []
    assert not project.run_dir(record.id).exists()


def test_a_run_folder_that_no_record_names_is_listed(project, base, launched):
    demonstrate(project, add_prompts(project, 12))
    record = start_run(project, plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe()))
    finish(project, record)
    project.store.save_run(dataclasses.replace(record, state="failed")).result()
    project.store.remove_run(record.id).result()
    (run,) = refresh_runs(project)
    assert (run.id, run.state, run.name) == (record.id, "done", "sft 1")


def test_a_run_whose_folder_is_gone_says_so(project, base, launched):
    demonstrate(project, add_prompts(project, 12))
    record = start_run(project, plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe()))
    shutil.rmtree(project.run_dir(record.id))
    (run,) = refresh_runs(project)
    assert (run.state, run.detail) == ("interrupted", "Its folder is gone")


def test_the_pace_of_finished_runs_corrects_the_time(project, base, launched):
    demonstrate(project, add_prompts(project, 12))
    plan = plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe())
    assert not plan.estimate.measured
    finish(project, start_run(project, plan))
    refresh_runs(project)
    again = plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe())
    assert again.estimate.measured
    assert again.estimate.tokens_per_s == pytest.approx(50.0)  # as the run's events say
    assert any("measured in this project" in line for line in again.estimate.lines)


def test_the_measured_peak_of_finished_runs_corrects_the_memory(project, base, launched):
    demonstrate(project, add_prompts(project, 12))
    first = plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe())
    assert not first.estimate.memory_measured
    record = start_run(project, first)
    events = EventLog(project.run_dir(record.id))
    for peak in (5e8, 7e8, 6e8):
        events.emit(Metrics(step=1, values={"perf/peak_memory_bytes": peak}))
    events.close()
    finish(project, record)
    refresh_runs(project)
    [peak] = measured_peaks(project)
    assert (peak.method, peak.measured, peak.gpu) == ("sft", 7e8, False)
    again = plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe())
    assert again.estimate.memory_measured
    assert again.estimate.memory_bytes == pytest.approx(first.estimate.memory_bytes * 7e8 / peak.foretold)
    assert any("corrected by what this project's runs measured" in line for line in again.estimate.lines)
    assert again.estimate.memory_last_bytes == 7e8


def test_the_peak_of_each_phase_is_read_from_the_runs_events(project, base, launched):
    demonstrate(project, add_prompts(project, 12))
    record = start_run(project, plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe()))
    events = EventLog(project.run_dir(record.id))
    events.emit(Metrics(step=1, values={"perf/peak_memory_bytes": 7e8}))
    events.emit(Memory(peaks={"loading": 3 * 10**8, "preparing": 4 * 10**8, "training": 7 * 10**8, "evaluating": 9}))
    events.close()
    finish(project, record)
    refresh_runs(project)
    [peak] = measured_peaks(project)
    assert peak.measured_by_phase == {"load": 4e8, "update": 7e8}  # loading and preparing are one, evaluating is none
    assert set(peak.foretold_by_phase) == {"load", "update"}
    again = plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe())
    by_phase = {one.name: one.bytes for one in again.estimate.phases}
    assert by_phase["update"] == pytest.approx(7e8, rel=0.01)  # the same run again: just what was measured
    assert "measured last time: 667.6 MiB (load 381.5 MiB, update 667.6 MiB)" in again.estimate.lines


def test_a_finished_run_is_compared_with_the_plan_for_as_much_as_it_had_free(project, base, launched):
    """With little free it samples few episodes at once and keeps few graphs."""
    add_prompts(project, 12)
    found = []
    for available in (2**40, 1):
        recipe = PpoRecipe(rule="shorter-than:40", device="cpu")
        record = start_run(project, plan_run(project, "ppo", start_model_id=base.id, recipe=recipe))
        finish(project, record)
        refresh_runs(project)
        events = EventLog(project.run_dir(record.id))
        events.emit(Started(pid=1, device="cpu", available_bytes=available))
        events.emit(Metrics(step=1, values={"perf/peak_memory_bytes": 7e8}))
        events.close()
        found.append(measured_peaks(project)[0].foretold_by_phase)
    assert found[0]["rollout"] > found[1]["rollout"]
    assert found[0]["score"] > found[1]["score"]


def test_start_settles_what_was_left_to_the_memory_plan_and_says_what_and_why(project, base, launched):
    demonstrate(project, add_prompts(project, 12))
    plan = plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe())
    assert plan.recipe.micro_batch == 0
    assert "micro_batch" not in plan.command_line
    record = start_run(project, plan)
    spec = RunFolder(project.run_dir(record.id)).spec()
    assert spec.recipe["micro_batch"] == plan.settled.micro_batch > 0
    assert spec.automatic == plan.automatic == ("micro_batch", "head_rows")
    [note] = spec.notes
    assert note == f"Chosen by the memory plan: {plan.chosen}"
    assert "without gradient checkpointing" in note
    own = plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe(micro_batch=2))
    assert (own.settled.micro_batch, own.chosen) == (2, "")


def test_settings_that_will_not_fit_are_warned_of_and_those_left_to_the_plan_shrink(project, base, monkeypatch):
    demonstrate(project, add_prompts(project, 12))
    whole = plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe(micro_batch=8)).estimate.memory_bytes
    monkeypatch.setattr("workbench.estimate.memory_available", lambda _: whole - 1)
    bound = plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe(micro_batch=8))
    assert bound.settled.micro_batch == 8
    assert "of memory are needed" in messages(bound, "warning")
    assert any("set micro_batch to 0" in one.remedy for one in bound.warnings)


def test_the_resident_peak_of_the_whole_process_counts_on_a_cpu_and_the_context_on_a_gpu(project, base, launched):
    demonstrate(project, add_prompts(project, 12))
    for device, expected in (("cpu", 9e8), ("cuda:0 (a GPU)", 3e8 + CUDA_CONTEXT_BYTES)):
        record = start_run(project, plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe()))
        finish(project, record)
        events = EventLog(project.run_dir(record.id))
        events.emit(Started(pid=1, device=device))
        events.emit(Metrics(step=1, values={"perf/peak_memory_bytes": 3e8}))
        events.close()
        write_exit(project.run_dir(record.id), {"code": 0, "signal": None, "reason": "", "peak_rss_bytes": 900_000_000})
        project.store.save_run(dataclasses.replace(record, state="done")).result()
        assert measured_peaks(project)[0].measured == expected
        assert measured_peaks(project)[0].gpu == device.startswith("cuda")


def test_a_real_engine_that_fails_is_told_in_one_sentence(project, base, monkeypatch):
    """The whole way: reaper, ``python -m engine``, UserError in the method, state, record."""
    demonstrate(project, add_prompts(project, 12))
    record = start_run(project, plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe(device="cpu")))
    deadline = time.monotonic() + 90
    while (run := refresh_runs(project)[0]).state in ("queued", "running", "stopping"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert run.state == "failed"
    assert run.detail
    assert run.id == record.id


# ---- corners -----------------------------------------------------------------------------------------------------


def test_a_project_open_for_reading_shows_runs_and_starts_none(project, base, launched):
    demonstrate(project, add_prompts(project, 12))
    record = start_run(project, plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe()))
    finish(project, record)
    project.read_only = True
    assert [one.state for one in refresh_runs(project)] == ["done"]
    assert project.store.run(record.id).state == "queued"
    assert "reading only" in messages(plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe()))


def test_training_goes_on_from_an_adapter_with_its_own_rank(project, base):
    demonstrate(project, add_prompts(project, 12))
    sft = adapter_model(project, base, "sft", "sft-1")
    plan = plan_run(project, "sft", start_model_id=sft.id, recipe=SftRecipe(lora_rank=64))
    assert plan.model.adapter
    assert any("rank 4" in line for line in plan.estimate.lines)
    assert plan.command_line.startswith("tastemaker train")
    assert preset_for(project, "sft", "Quick look", sft.id).quantisation == "bf16"


def test_models_of_one_name_are_told_apart_by_id(project, base):
    demonstrate(project, add_prompts(project, 12))
    project.store.save_model(dataclasses.replace(base, id=new_id())).result()
    plan = plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe())
    assert f"--from {base.id}" in plan.command_line


def test_errors_and_warnings_are_told_apart(project, base):
    demonstrate(project, add_prompts(project, 3))
    plan = plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe(micro_batch=64))
    assert {one.severity for one in plan.errors} == {"error"}
    assert {one.severity for one in plan.warnings} == {"warning"}
    with pytest.raises(UserError, match="micro_batch 64"):
        start_run(project, plan)


def test_a_run_that_is_at_work_is_not_deleted(project, base, launched):
    demonstrate(project, add_prompts(project, 12))
    record = start_run(project, plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe()))
    lock = take(project.run_dir(record.id) / "lock")
    with pytest.raises(UserError, match="at work"):
        delete_run(project, record.id)
    os.close(lock)
    delete_run(project, record.id)
    assert refresh_runs(project) == []


def test_strange_folders_under_runs_are_left_alone(project, base, launched):
    demonstrate(project, add_prompts(project, 12))
    record = start_run(project, plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe()))
    shutil.copytree(project.run_dir(record.id), project.runs_dir / "a copy")  # its recipe names another folder
    (project.runs_dir / "notes").mkdir()
    (project.runs_dir / "broken").mkdir()
    (project.runs_dir / "broken" / "recipe.json").write_text("{")
    assert [one.id for one in refresh_runs(project)] == [record.id]
    (project.run_dir(record.id) / "recipe.json").unlink()
    assert refresh_runs(project)[0].detail == "Its recipe is missing"


def test_the_model_of_a_run_whose_start_was_removed_stays_in_its_folder(project, base, launched):
    demonstrate(project, add_prompts(project, 12))
    record = start_run(project, plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe()))
    finish(project, record)
    project.store.save_run(dataclasses.replace(record, state="failed")).result()
    project.store.remove_model(base.id).result()
    assert [one.state for one in refresh_runs(project)] == ["done"]
    assert project.store.models() == []


def test_repeated_prompts_are_rolled_out_once(project, base):
    add_prompts(project, 12)
    add_prompts(project, 3)
    plan = plan_run(project, "ppo", start_model_id=base.id, recipe=PpoRecipe(rule="contains:yes"))
    assert len(plan.train) + len(plan.heldout) == 12
    assert "3 because the same prompt is there twice" in plan.summary


def test_little_disk_space_is_a_warning(project, base, monkeypatch):
    demonstrate(project, add_prompts(project, 12))
    usage = type("Usage", (), {"free": 500 * 1024**2})
    monkeypatch.setattr("workbench.preflight.shutil.disk_usage", lambda _: usage)
    plan = plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe())
    assert "500.0 MiB are free" in messages(plan, "warning")


def test_runs_on_a_base_that_is_gone_do_not_stop_planning(project, base, launched, tmp_path):
    demonstrate(project, add_prompts(project, 12))
    finish(project, start_run(project, plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe())))
    refresh_runs(project)
    [run] = project.store.runs()
    events = EventLog(project.run_dir(run.id))
    events.emit(Metrics(step=1, values={"perf/peak_memory_bytes": 5e8}))
    events.close()
    (tmp_path / "cache" / "models" / "tiny").rename(tmp_path / "moved")
    other = dataclasses.replace(base, id=new_id(), name="moved", path=str(tmp_path / "moved"), sha256="")
    project.store.save_model(other).result()
    plan = plan_run(project, "sft", start_model_id=other.id, recipe=SftRecipe())
    assert not plan.errors
    assert not plan.estimate.measured
    assert not plan.estimate.memory_measured
    assert "is not there" in messages(plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe()))
    assert preset_for(project, "sft", "Balanced", base.id).quantisation == "nf4"  # its size is unknown


# ---- the command line ------------------------------------------------------------------------------------------


def train(project, *arguments):
    return cli.main(["train", str(project.path), *arguments], lambda _: 0)


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        ("sft", "batch=0"),
        ("sft", "epochs=nan"),
        ("dpo", "epochs=inf"),
        ("reward", "batch=" + "9" * 400),
        ("ppo", "mini_batches=0"),
        ("ppo", "batch=0"),
        ("sft", "device=toaster"),
    ],
)
def test_settings_outside_their_range_are_said_and_nothing_is_reckoned_with_them(
    project, base, method, setting, capsys
):
    field = setting.partition("=")[0]
    assert train(project, method, "--plan", "--set", setting, "--json") == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert field in [one["field"] for one in problems if one["severity"] == "error"]


def test_a_setting_that_does_not_exist_is_misuse(project, base, capsys):
    assert train(project, "sft", "--plan", "--set", "btach=2") == 2
    assert "id you mean batch" in capsys.readouterr().err


def test_a_plan_is_made_beside_the_window_that_has_the_project(project, base, capsys):
    demonstrate(project, add_prompts(project, 12))
    assert train(project, "sft", "--plan", "--json") == 0
    assert "reading only" not in capsys.readouterr().out


def test_the_project_is_let_go_of_before_a_run_is_followed(tmp_path, launched, monkeypatch, capsys):
    with Project.create(tmp_path / "own") as own:
        folder = tmp_path / "cache" / "models" / "tiny"
        write_base(folder)
        record = ModelRecord(id=new_id(), name="tiny", role="base", path=str(folder), sha256=fingerprint(folder))
        own.store.save_model(record).result()
        demonstrate(own, add_prompts(own, 12))
    free = []

    def follow(path, run, terminal):
        with Project.open(path):
            free.append(run.name)
        return 0

    monkeypatch.setattr(cli_runs, "follow", follow)
    assert train(own, "sft") == 0
    assert free == ["sft 1"]


@pytest.mark.parametrize("method", METHODS)
def test_tags_narrow_what_trains_and_nothing_of_what_measures(project, base, method):
    plain, held = add_prompts(project, 30), add_prompts(project, 12, "held-out", "kept question")
    project.store.set_tags([one.id for one in plain[:9]], ["good"]).result()
    project.store.set_tags([one.id for one in plain[9:12]], ["fine"]).result()
    project.store.set_tags([held[0].id], ["good"]).result()
    demonstrate(project, plain + held)
    rank(project, plain + held, 2)
    recipe = RECIPES[method](**NEEDED.get(method, {}))
    plan = plan_run(project, method, start_model_id=base.id, recipe=recipe, tags=("good", "fine"))
    assert not plan.errors, messages(plan)
    wanted = {content_hash(one.messages) for one in plain[:12]}
    assert {content_hash(row.prompt) for row in plan.train} == wanted
    assert {content_hash(row.prompt) for row in plan.heldout} == {content_hash(one.messages) for one in held}
    assert {content_hash(row.prompt) for row in plan.demonstrations} <= wanted
    assert "prompts tagged good or fine" in plan.summary
    assert "prompts of prompts" not in plan.summary
    assert make_parser().parse_args(shlex.split(plan.command_line)[1:]).tag == ["good", "fine"]


def test_the_tags_are_frozen_with_the_run(project, base, launched):
    prompts = add_prompts(project, 4)
    project.store.set_tags([prompts[0].id], ["good"]).result()
    demonstrate(project, prompts)
    plan = plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe(), tags=("good",))
    run = start_run(project, plan)
    folder = RunFolder(project.run_dir(run.id))
    assert folder.spec().tags == ("good",)
    assert len(list(folder.rows("train"))) == 1


def test_tags_without_a_label_are_an_error_of_theirs(project, base):
    demonstrate(project, add_prompts(project, 4))
    plan = plan_run(project, "sft", start_model_id=base.id, recipe=SftRecipe(), tags=("rare",))
    assert [one.field for one in plan.errors] == ["tags"]
    assert "has the tag rare" in messages(plan)


def test_a_share_to_hold_out_counts_what_is_held_out_and_keeps_twins_together(project):
    prompts = add_prompts(project, 18) + add_prompts(project, 2, "held-out", "kept question")
    twins = [Prompt(id=new_id(), messages=one.messages) for one in prompts[:18]]
    project.store.add_prompts(twins).result()
    chosen = share_to_hold_out(project, 25)  # of 38: 10, and 2 are held out already
    assert len(chosen) == 8
    texts = {one.id: one.messages for one in (*prompts, *twins)}
    assert len({texts[one] for one in chosen}) == 4
    assert share_to_hold_out(project, 25) == chosen
    assert share_to_hold_out(project, 5) == []
    assert set(share_to_hold_out(project, 100)) == {one.id for one in (*prompts[:18], *twins)}
