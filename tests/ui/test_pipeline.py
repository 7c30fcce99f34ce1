from __future__ import annotations

import dataclasses

import pytest

from ui.pipeline import ENOUGH_DEMONSTRATIONS, ENOUGH_PAIRS, ENOUGH_THUMBS, next_step, stages
from ui.words import thumbs_said
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
    assert step(FULL, (BASE, SFT, REWARD), (run("ppo", "running"),)) == "runs:"


def test_a_reward_model_that_still_trains_is_watched_and_not_said_to_be_there() -> None:
    found = next_step(FULL, (BASE, SFT), (run("reward", "running"),))
    assert (found.pane, dict(found.what)) == ("runs", {"run_id": "reward"})
    assert "is there" not in found.why
    there = next_step(FULL, (BASE, SFT, REWARD), (run("reward", "done"),))
    assert (there.pane, dict(there.what)) == ("train", {"method": "ppo"})
    assert "is there" in there.why


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


def test_a_checkpoint_that_is_kept_after_the_end_is_not_what_is_compared_nor_what_its_stage_made() -> None:
    end = dataclasses.replace(POLICY, parent_id=SFT.id, step=500)
    kept = dataclasses.replace(end, id="early", name="ppo 1, step 10 on sft 1", step=10)
    models = (BASE, SFT, REWARD, end, kept)  # as they were listed
    assert dict(next_step(FULL, models, ()).what)["model_id"] == end.id
    assert stages(FULL, models, (run("ppo", "done"),))["ppo"].detail == "ppo 1"


ONLY_THUMBS = Counts(prompts=30, prompts_held_out=4, responses=60, thumbs_up=30, thumbs_down=ENOUGH_THUMBS - 30)


def test_a_project_with_thumbs_alone_is_led_to_kto_and_past_it() -> None:
    found = next_step(ONLY_THUMBS, (BASE,), ())
    assert (found.title, found.action, found.stage) == (f"Train KTO on {ENOUGH_THUMBS} thumbs", "Train KTO", "dpo")
    assert step(ONLY_THUMBS) == "train:kto"
    assert step(dataclasses.replace(ONLY_THUMBS, prompts_held_out=0)) == "demonstrate:"
    kto = model("kto 1 on base", "policy", "kto")
    assert step(ONLY_THUMBS, (BASE, kto), (run("kto", "done"),)) == "compare:"
    assert step(ONLY_THUMBS, (BASE,), (run("kto", "running"),)) == "runs:"


@pytest.mark.parametrize(("up", "down"), [(ENOUGH_THUMBS, 0), (0, ENOUGH_THUMBS), (5, 3)])
def test_few_thumbs_or_one_kind_alone_ask_for_more_and_say_what_is_there(up: int, down: int) -> None:
    few = dataclasses.replace(ONLY_THUMBS, thumbs_up=up, thumbs_down=down)
    assert step(few) == "rank:"
    assert next_step(few, (BASE,), ()).title == "Sample responses to judge"
    waiting = next_step(dataclasses.replace(few, prompts_with_responses=3), (BASE,), ())
    assert (waiting.title, waiting.progress) == ("Judge 3 prompts", (up + down) / ENOUGH_THUMBS)
    assert waiting.why.startswith(f"So far {thumbs_said(few)}. From about")
    assert "some of each kind" in waiting.why


def test_the_map_counts_thumbs_where_there_are_no_pairs_and_opens_kto() -> None:
    found = stages(ONLY_THUMBS, [BASE], [])
    rank, straight = found["rank"], found["dpo"]
    assert (rank.number, rank.unit, rank.state, rank.detail) == ("40", "thumbs", "done", "30 up, 10 down")
    assert (straight.state, straight.detail, dict(straight.what)) == ("ready", "ready to train", {"method": "kto"})
    assert found["sample"].state == "done"
    assert (found["reward"].state, found["reward"].detail) == ("waiting", "no pairs yet")


def test_where_there_are_pairs_thumbs_stand_beside_them() -> None:
    both = dataclasses.replace(FULL, thumbs_up=2, thumbs_down=1)
    found = stages(both, [BASE], [])
    assert (found["rank"].number, found["rank"].unit, found["rank"].detail) == (
        "30",
        "pairs",
        "30 prompts, 2 up, 1 down",
    )
    assert dict(found["dpo"].what) == {"method": "dpo"}
    assert step(both, (BASE, SFT)) == "train:reward"


def test_who_gives_no_thumbs_hears_nothing_of_them() -> None:
    """A card that is marked "all bad" gives thumbs down: beside rankings, it makes nobody one who judges by thumbs."""
    all_bad = dataclasses.replace(FULL, pairs=2, thumbs_down=4)
    assert stages(all_bad, [BASE], [])["rank"].detail == stages(FULL, [BASE], [])["rank"].detail == "30 prompts"
    assert next_step(all_bad, (BASE, SFT), ()).title == "Sample responses to rank"
    nothing = stages(Counts(prompts=30, responses=60), [BASE], [])
    assert (nothing["rank"].unit, nothing["rank"].detail) == ("pairs", "none yet")
    assert nothing["dpo"].detail == "needs pairs or thumbs"


@pytest.mark.parametrize(
    ("up", "down", "said"),
    [(12, 5, "17 thumbs: 12 up, 5 down"), (1, 0, "1 thumb up"), (0, 2, "2 thumbs down"), (0, 0, "")],
)
def test_thumbs_are_said_with_their_kinds(up: int, down: int, said: str) -> None:
    assert thumbs_said(Counts(thumbs_up=up, thumbs_down=down)) == said
