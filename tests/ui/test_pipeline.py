from __future__ import annotations

import dataclasses

import pytest

from ui.pipeline import ENOUGH_DEMONSTRATIONS, ENOUGH_PAIRS, next_step, stages
from workbench.records import Counts, Method, ModelRecord, ModelRole, RunRecord, RunState


def model(name: str, role: ModelRole, run_id: str = "") -> ModelRecord:
    return ModelRecord(name, name, role, "x", run_id=run_id)


def run(method: Method, state: RunState, id: str = "") -> RunRecord:
    return RunRecord(id or method, method, f"{method} 1", state, "base", detail="it ran out of memory")


BASE = model("base", "base")
SFT = model("sft 1 on base", "sft", "sft")
REWARD = model("reward 1 on sft 1", "reward", "reward")
POLICY = model("ppo 1 on sft 1", "policy", "ppo")
FULL = Counts(
    prompts=50,
    prompts_held_out=10,
    demonstrations_final=ENOUGH_DEMONSTRATIONS,
    responses=200,
    rankings=30,
    prompts_ranked=30,
    pairs=ENOUGH_PAIRS,
)


def step(counts: Counts, models: tuple[ModelRecord, ...] = (BASE,), runs: tuple[RunRecord, ...] = ()) -> str:
    found = next_step(counts, models, runs)
    assert found.title
    assert found.why
    assert found.action
    return f"{found.pane}:{dict(found.what).get('method', '')}"


def test_the_next_step_leads_through_the_whole_loop() -> None:
    assert step(Counts(), ()) == "models:"
    assert step(Counts()) == "import:"
    assert step(Counts(prompts=50)) == "demonstrate:"
    demonstrated = Counts(prompts=50, demonstrations_final=ENOUGH_DEMONSTRATIONS)
    assert step(demonstrated) == "train:sft"
    assert step(demonstrated, (BASE, SFT)) == "rank:"
    waiting = dataclasses.replace(demonstrated, responses=40, prompts_with_responses=10)
    assert step(waiting, (BASE, SFT)) == "rank:"
    not_held = dataclasses.replace(FULL, prompts_held_out=0)
    assert step(not_held, (BASE, SFT)) == "demonstrate:"
    assert step(FULL, (BASE, SFT)) == "train:reward"
    assert step(FULL, (BASE, SFT, REWARD)) == "train:ppo"
    assert step(FULL, (BASE, SFT, REWARD, POLICY)) == "compare:"


def test_a_failed_newest_run_comes_before_more_work_and_says_why() -> None:
    found = next_step(FULL, (BASE, SFT), (run("sft", "done"), run("reward", "failed")))
    assert (found.pane, dict(found.what)) == ("runs", {"run_id": "reward"})
    assert found.why == "it ran out of memory"


def test_a_failed_run_that_a_newer_one_answered_is_history() -> None:
    assert step(FULL, (BASE, SFT), (run("reward", "failed", "a"), run("reward", "running", "b"))) != "runs:failed"
    found = next_step(FULL, (BASE, SFT), (run("reward", "failed", "a"), run("reward", "running", "b")))
    assert dict(found.what).get("run_id") != "a"


def test_what_is_being_trained_is_not_asked_for_again() -> None:
    assert step(FULL, (BASE, SFT), (run("reward", "running"),)) == "train:dpo"
    assert step(FULL, (BASE, SFT, REWARD), (run("ppo", "running"),)) == "runs:"


def test_progress_towards_enough_is_a_share() -> None:
    found = next_step(Counts(prompts=5, demonstrations_final=2), (BASE,), ())
    assert found.progress == pytest.approx(2 / ENOUGH_DEMONSTRATIONS)
    assert found.title == f"Write {ENOUGH_DEMONSTRATIONS - 2} more demonstrations"
    last = next_step(Counts(prompts=5, demonstrations_final=ENOUGH_DEMONSTRATIONS - 1), (BASE,), ())
    assert last.title == "Write 1 more demonstration"


def test_stages_of_an_empty_project_wait_but_for_the_first() -> None:
    found = stages(Counts(), (), ())
    assert list(found) == ["demonstrate", "sft", "sample", "rank", "reward", "ppo", "dpo", "compare"]
    assert found["demonstrate"].state == "ready"
    assert {one.state for key, one in found.items() if key != "demonstrate"} == {"waiting"}


def test_a_stage_says_what_it_lacks() -> None:
    found = stages(FULL, (), ())
    assert [found[key].detail for key in ("sft", "reward", "ppo")] == [
        "no base model",
        "no base model",
        "no reward yet",
    ]
    assert found["sample"].state == found["rank"].state == "done"
    assert stages(Counts(prompts=3), (BASE,), ())["sft"].detail == "no demonstrations"


def test_stages_of_a_finished_loop_are_done_and_lead_to_training_again() -> None:
    runs = (run("sft", "done"), run("reward", "done"), run("ppo", "done"))
    found = stages(FULL, (BASE, SFT, REWARD, POLICY), runs)
    assert {found[key].state for key in ("demonstrate", "sft", "sample", "rank", "reward", "ppo")} == {"done"}
    assert found["dpo"].state == "ready"
    assert found["ppo"].detail == "ppo 1"
    assert (found["ppo"].pane, dict(found["ppo"].what)) == ("train", {"method": "ppo"})
    assert found["rank"].number == str(ENOUGH_PAIRS)


@pytest.mark.parametrize("state", ["queued", "running", "paused", "stopping"])
def test_a_stage_with_a_live_run_is_active_and_leads_to_it(state: RunState) -> None:
    found = stages(FULL, (BASE, SFT), (run("reward", state),))["reward"]
    assert (found.state, found.pane, dict(found.what)) == ("active", "runs", {"run_id": "reward"})


@pytest.mark.parametrize("state", ["failed", "interrupted"])
def test_a_stage_whose_newest_run_broke_says_so(state: RunState) -> None:
    found = stages(FULL, (BASE, SFT), (run("reward", "done", "a"), run("reward", state, "b")))["reward"]
    assert (found.state, dict(found.what)) == ("failed", {"run_id": "b"})


def test_while_sft_trains_it_is_watched_rather_than_the_base_sampled() -> None:
    demonstrated = Counts(prompts=50, demonstrations_final=ENOUGH_DEMONSTRATIONS)
    found = next_step(demonstrated, (BASE,), (run("sft", "running"),))
    assert (found.pane, dict(found.what)) == ("runs", {"run_id": "sft"})


def test_the_newest_model_is_compared_with_its_parent() -> None:
    child = dataclasses.replace(POLICY, parent_id="sft 1 on base", base_id="base")
    found = next_step(FULL, (BASE, SFT, REWARD, child), ())
    assert dict(found.what) == {"model_id": child.id, "with_model_id": "sft 1 on base"}


def test_thumbs_are_enough_for_kto_so_the_map_never_asks_for_pairs_alone() -> None:
    only_thumbs = Counts(prompts=30, responses=60)  # cards with thumbs and no order: nobody counts them
    assert stages(only_thumbs, [BASE], [])["dpo"].detail == "needs pairs or thumbs"
    assert stages(only_thumbs, [BASE], [])["reward"].detail == "no pairs yet"
