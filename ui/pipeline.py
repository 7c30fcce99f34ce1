"""The pipeline as a person sees it: each stage's state, and the one next thing worth doing. No Qt in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ui.words import LIVE_STATES, judges_by_thumbs, thumbs_said
from workbench.model_choice import by_training
from workbench.records import Counts, Method, ModelRecord, RunRecord

StageState = Literal["waiting", "ready", "active", "done", "failed"]
ENOUGH_DEMONSTRATIONS = 8
ENOUGH_PAIRS = 30
ENOUGH_THUMBS = 40
STATE_WORDS: dict[StageState, str] = {
    "waiting": "waits for an earlier stage",
    "ready": "ready",
    "active": "running",
    "done": "done",
    "failed": "failed",
}


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the map."""

    key: str  # demonstrate, sft, sample, rank, reward, ppo, dpo (KTO too), compare
    title: str
    icon: str
    number: str  # the count that matters, or ""
    unit: str
    state: StageState
    detail: str
    pane: str
    what: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class NextStep:
    """The one thing worth doing now, and why. ``pane`` "import" means the import dialog."""

    title: str
    why: str
    action: str
    pane: str
    what: tuple[tuple[str, str], ...] = ()
    stage: str = ""
    progress: float = -1.0  # towards what would be enough, 0..1; -1 where there is no such thing


def stages(counts: Counts, models: Sequence[ModelRecord], runs: Sequence[RunRecord]) -> dict[str, Stage]:
    """Work out every stage of the map, in the order of the pipeline."""
    models = by_training(models)
    made = {role: [one for one in models if one.role == role] for role in ("base", "sft", "reward", "policy")}
    methods = {one.id: one.method for one in runs}
    policies: dict[str, list[ModelRecord]] = {"ppo": [], "dpo": []}
    for one in made["policy"]:
        policies.setdefault(stage_of(methods.get(one.run_id, "")), []).append(one)
    drafts = f", {counts.demonstrations_draft} in draft" if counts.demonstrations_draft else ""
    has_pairs = counts.pairs > 0
    no_demonstrations = "" if counts.demonstrations_final else "no demonstrations"
    judged = counts.prompts_ranked
    thumbs_alone = counts.thumbs > 0 and not has_pairs
    enough = counts.pairs >= ENOUGH_PAIRS or _enough_thumbs(counts)
    waiting = counts.prompts_with_responses
    found = [
        Stage(
            "demonstrate",
            "Demonstrate",
            "demonstrate",
            str(counts.demonstrations_final),
            "final",
            "done" if counts.demonstrations_final >= ENOUGH_DEMONSTRATIONS else "ready",
            f"{_count(counts.prompts, 'prompt')}{drafts}",
            "demonstrate",
        ),
        _trained("sft", "SFT", made["sft"], runs, no_demonstrations, made["base"]),
        Stage(
            "sample",
            "Sample",
            "sample",
            f"{counts.responses:,}",
            "responses",
            "done" if waiting or judged or counts.thumbs else "ready" if counts.prompts and made["base"] else "waiting",
            f"{_count(waiting, 'prompt')} to rank" if waiting else "several each",
            "rank",
            (("sample", "1"),),
        ),
        Stage(
            "rank",
            "Rank",
            "rank",
            f"{counts.thumbs if thumbs_alone else counts.pairs:,}",
            "thumbs" if thumbs_alone else "pairs",
            "done" if enough else "ready" if waiting or has_pairs or counts.thumbs else "waiting",
            _judged(counts) or "none yet",
            "rank",
        ),
        _trained("reward", "Reward model", made["reward"], runs, "" if has_pairs else "no pairs yet", made["base"]),
        _trained("ppo", "PPO", policies["ppo"], runs, "" if made["reward"] else "no reward yet", made["base"]),
        _trained(
            "dpo",
            "DPO, KTO",
            policies["dpo"],
            runs,
            "" if has_pairs or counts.thumbs else "needs pairs or thumbs",
            made["base"],
            opens="kto" if thumbs_alone else "dpo",
        ),
        Stage(
            "compare",
            "Compare",
            "compare",
            str(len(made["sft"]) + len(made["policy"])),
            "models",
            "ready" if made["policy"] or made["sft"] else "waiting",
            "vote blind",
            "compare",
        ),
    ]
    return {one.key: one for one in found}


def stage_of(method: str) -> str:
    """Return the stage that a run's method belongs to: KTO and DPO both go straight from judgements to a policy."""
    return "dpo" if method == "kto" else method


def _trained(
    method: Method,
    title: str,
    models: Sequence[ModelRecord],
    runs: Sequence[RunRecord],
    lacks: str,
    bases: Sequence[ModelRecord],
    opens: Method | None = None,
) -> Stage:
    """Work out a stage that trains; ``lacks`` is what is missing for it, besides a base model.

    ``opens`` is the method that is chosen in Train where the stage has several.
    """
    own = [one for one in runs if stage_of(one.method) == method]
    live = [one for one in own if one.state in LIVE_STATES]
    newest = own[-1] if own else None
    state: StageState
    if live:
        state, detail = "active", f"{live[-1].name}: {live[-1].state}"
    elif newest is not None and newest.state in ("failed", "interrupted"):
        state, detail = "failed", f"{newest.name} {newest.state}"
    elif models:
        state, detail = "done", models[-1].name.split(" on ")[0]
    else:
        state, detail = ("waiting", lacks or "no base model") if lacks or not bases else ("ready", "ready to train")
    goes_to_runs = bool(live) or state == "failed"
    what = (("run_id", (live or own)[-1].id),) if goes_to_runs else (("method", opens or method),)
    unit = "model" if len(models) == 1 else "models"
    icon = {"sft": "train", "reward": "score", "dpo": "train", "ppo": "runs"}[method]
    return Stage(method, title, icon, str(len(models)), unit, state, detail, "runs" if goes_to_runs else "train", what)


def next_step(counts: Counts, models: Sequence[ModelRecord], runs: Sequence[RunRecord]) -> NextStep:
    """Choose the one next thing worth doing, and say why."""
    roles = {one.role for one in models}
    broken = _newest_broken(runs)
    live = [one for one in runs if one.state in LIVE_STATES]
    demos, pairs, waiting = counts.demonstrations_final, counts.pairs, counts.prompts_with_responses
    if "base" not in roles:
        return NextStep(
            "Add a base model",
            "Everything starts from a model that can already write: its taste is what you will change. The demo model "
            "is small enough for any machine.",
            "Add a model",
            "models",
            (("add", "1"),),
        )
    if not counts.prompts:
        return NextStep(
            "Bring in prompts",
            "A prompt is a question that you care how it is answered. A dozen of your own beat a thousand of others.",
            "Import a file",
            "import",
            stage="demonstrate",
        )
    if broken is not None:
        return NextStep(
            f"See why {broken.name} {'was interrupted' if broken.state == 'interrupted' else 'failed'}",
            broken.detail or "The run folder keeps its log and its last good checkpoint, so it can usually go on.",
            "Open the run",
            "runs",
            (("run_id", broken.id),),
            stage_of(broken.method),
        )
    by_thumbs = judges_by_thumbs(counts) and counts.thumbs > pairs
    enough = pairs >= ENOUGH_PAIRS or (by_thumbs and _enough_thumbs(counts))
    if demos < ENOUGH_DEMONSTRATIONS and not counts.rankings and not by_thumbs:
        return NextStep(
            f"Write {ENOUGH_DEMONSTRATIONS - demos} more demonstration{_s(ENOUGH_DEMONSTRATIONS - demos)}",
            "SFT copies how a good answer looks from examples: a few written with care set tone, length and form "
            "before any ranking.",
            "Write one",
            "demonstrate",
            stage="demonstrate",
            progress=demos / ENOUGH_DEMONSTRATIONS,
        )
    if demos and "sft" not in roles and not _live(live, "sft"):
        return NextStep(
            f"Train SFT on {_count(demos, 'demonstration')}",
            "Responses sampled after SFT already look like yours, so that ranking them teaches the finer differences.",
            "Train SFT",
            "train",
            (("method", "sft"),),
            "sft",
        )
    if "sft" not in roles and _live(live, "sft"):
        return _watch(live[-1], "Responses sampled from its model teach more than those of the bare base: wait for it.")
    if not enough:
        return _judge_more(counts, by_thumbs=by_thumbs)
    if not counts.prompts_held_out:
        return NextStep(
            "Hold some prompts out",
            "Held-out prompts never train anything. Without any, no accuracy or win rate can be believed.",
            "Choose prompts",
            "demonstrate",
            (("split", "train"),),
            "demonstrate",
        )
    if pairs < ENOUGH_PAIRS and "policy" not in roles and not _live(live, "ppo", "dpo", "kto"):
        return NextStep(
            f"Train KTO on {_count(counts.thumbs, 'thumb')}",
            "KTO makes the model answer more like what you gave thumbs up and less like what you gave thumbs down. It "
            "needs no reward model and no pairs.",
            "Train KTO",
            "train",
            (("method", "kto"),),
            "dpo",
        )
    if pairs >= ENOUGH_PAIRS and "reward" not in roles and not _live(live, "reward"):
        return NextStep(
            f"Train a reward model on {_count(pairs, 'pair')}",
            "Its accuracy on held-out pairs says how consistent your rankings are, and PPO needs it. DPO would do "
            "without.",
            "Train it",
            "train",
            (("method", "reward"),),
            "reward",
        )
    if "policy" not in roles and not _live(live, "ppo", "dpo", "kto"):
        return _optimise(live, has_reward="reward" in roles)
    if live and not waiting:
        return _watch(
            live[0],
            "Look at samples, not at the reward alone: a rising score with growing KL or length is often a trick.",
        )
    if waiting:
        return NextStep(
            f"Rank {_count(waiting, 'prompt')} that {'waits' if waiting == 1 else 'wait'}",
            "Fresh rankings of the newest model's own responses correct the reward model where it is now wrong."
            if "reward" in roles
            else "Fresh judgements of the newest model's own responses show where it is still wrong.",
            "Rank",
            "rank",
            stage="rank",
        )
    newest = next((one for one in reversed(by_training(models)) if one.role in ("policy", "sft")), None)
    return NextStep(
        f"Compare {newest.name} with its parent" if newest else "Compare two models",
        "Curves cannot say whether you like it better. A blind vote on held-out prompts can.",
        "Compare",
        "compare",
        (("model_id", newest.id), ("with_model_id", newest.parent_id or newest.base_id)) if newest else (),
        "compare",
    )


def _optimise(live: Sequence[RunRecord], *, has_reward: bool) -> NextStep:
    """Say that a policy can be trained, or which run to wait for while its reward model still trains."""
    if not has_reward and (scoring := _newest(live, "reward")) is not None:
        return _watch(
            scoring,
            "Its accuracy on held-out pairs will say how consistent your rankings are, and PPO needs it. DPO would do "
            "without.",
        )
    return NextStep(
        "Optimise the model: PPO, DPO or KTO",
        "The reward model is there. PPO samples and improves against it on a KL leash; DPO learns from the pairs "
        "directly and is quicker, KTO from thumbs.",
        "Train PPO",
        "train",
        (("method", "ppo"),),
        "ppo",
    )


def _judge_more(counts: Counts, *, by_thumbs: bool) -> NextStep:
    """Say how far the judgements are from enough, and where more come from."""
    waiting, pairs = counts.prompts_with_responses, counts.pairs
    thumbs = (
        f"So far {thumbs_said(counts)}. From about {ENOUGH_THUMBS}, with some of each kind, KTO can learn from them."
    )
    if not waiting:
        return NextStep(
            "Sample responses to judge" if by_thumbs else "Sample responses to rank",
            thumbs
            if by_thumbs
            else "A ranking compares several answers of one model to the same prompt. Four to a prompt give six pairs "
            "each.",
            "Sample",
            "rank",
            (("sample", "1"),),
            "sample",
        )
    return NextStep(
        f"{'Judge' if by_thumbs else 'Rank'} {_count(waiting, 'prompt')}",
        thumbs
        if by_thumbs
        else f"{_count(pairs, 'pair')} so far. From about {ENOUGH_PAIRS} a reward model begins to tell your choices "
        "from chance; each prompt of four responses adds six.",
        "Rank",
        "rank",
        stage="rank",
        progress=min(1.0, counts.thumbs / ENOUGH_THUMBS) if by_thumbs else pairs / ENOUGH_PAIRS,
    )


def _newest_broken(runs: Sequence[RunRecord]) -> RunRecord | None:
    """Return the newest run if it failed or was interrupted: an older one has been answered by a newer."""
    newest = runs[-1] if runs else None
    return newest if newest is not None and newest.state in ("failed", "interrupted") else None


def _watch(run: RunRecord, why: str) -> NextStep:
    return NextStep(f"Watch {run.name}", why, "Open the run", "runs", (("run_id", run.id),), stage_of(run.method))


def _live(runs: Sequence[RunRecord], *methods: Method) -> bool:
    return _newest(runs, *methods) is not None


def _newest(runs: Sequence[RunRecord], *methods: Method) -> RunRecord | None:
    return next((one for one in reversed(runs) if one.method in methods), None)


def _enough_thumbs(counts: Counts) -> bool:
    """Whether KTO has something to learn from, and something to set it against."""
    return counts.thumbs >= ENOUGH_THUMBS and counts.thumbs_up > 0 and counts.thumbs_down > 0


def _judged(counts: Counts) -> str:
    """Say what has been judged: prompts in order, and responses by thumbs."""
    ranked = _count(counts.prompts_ranked, "prompt") if counts.prompts_ranked else ""
    thumbs = f"{counts.thumbs_up:,} up, {counts.thumbs_down:,} down" if judges_by_thumbs(counts) else ""
    return ", ".join(one for one in (ranked, thumbs) if one)


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{_s(number)}"


def _s(number: int) -> str:
    return "" if number == 1 else "s"
