"""``tastemaker demo``: the whole loop on the sample project and the demo model, without a screen.

SFT on the demonstrations, responses sampled from the result, a reward model on the rankings, DPO and PPO, then the
same held-out prompts answered by every model; it ends in plots and a before/after page that say honestly what
changed and what did not.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path

from platformdirs import user_data_path

from workbench.cli_runs import model_of_run
from workbench.cli_sample import draw, scores_of
from workbench.demo_report import Answer, Outcome, write_report
from workbench.errors import UserError
from workbench.models import add_model
from workbench.project import Project
from workbench.protocol import Progress
from workbench.recipes import preset
from workbench.records import Message, Method, ModelRecord, Prompt, Sampling
from workbench.run_folder import EventTail, RunFolder, join_segments
from workbench.sample_project import fill_with_sample
from workbench.serve_client import ServeClient
from workbench.settings_fields import with_settings
from workbench.supervisor import kill
from workbench.terminal import Terminal, in_time
from workbench.training import plan_run, refresh_runs, start_run

LIVE_STATES = ("queued", "running", "paused", "stopping")
TITLES: dict[Method, str] = {
    "sft": "Supervised fine-tuning on the demonstrations",
    "reward": "A reward model on the rankings",
    "dpo": "DPO straight from the pairs",
    "ppo": "PPO against the reward model, on a KL leash",
}
SETTINGS: dict[Method, dict[str, str]] = {
    "sft": {"epochs": "1.5", "max_length": "384", "learning_rate": "4e-4", "eval_every": "0"},
    "reward": {"epochs": "0.8", "max_steps": "0", "max_length": "384", "eval_every": "0"},
    "dpo": {"max_steps": "8", "max_length": "384", "learning_rate": "1e-4", "eval_every": "0"},
    "ppo": {"episodes": "64", "ppo_epochs": "1", "max_length": "384", "response_length": "40", "eval_every": "0"},
}
QUICK: dict[Method, dict[str, str]] = {
    "sft": {"max_steps": "3", "eval_every": "0"},
    "reward": {"max_steps": "3", "eval_every": "0"},
    "dpo": {"max_steps": "2", "eval_every": "0"},
    "ppo": {"episodes": "16", "batch": "8", "micro_batch": "8", "response_length": "24", "eval_every": "0"},
}
"""Changes to the preset; sized so that the whole demo stays within 15 minutes on two cores."""


@dataclass(slots=True)
class _Loop:
    """What the demo carries from stage to stage."""

    project: Project
    terminal: Terminal
    quick: bool
    models: dict[str, ModelRecord] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)


def demo(options: argparse.Namespace, terminal: Terminal) -> int:
    """Run the whole loop in a new project and write ``report/index.html``."""
    started = time.monotonic()
    project = Project.create(options.dir)
    try:
        count = fill_with_sample(project)
        terminal.say(f"Project {options.dir}: the sample project, {count} prompts.")
        loop = _Loop(project, terminal, options.quick)
        loop.models["base"] = add_demo_model(project, terminal)
        base = loop.models["base"]
        loop.models["sft"] = _train(loop, "sft", base)
        _sample_for_ranking(loop)
        loop.models["reward"] = _train(loop, "reward", loop.models["sft"])
        loop.models["dpo"] = _train(loop, "dpo", loop.models["sft"])
        loop.models["ppo"] = _train(loop, "ppo", loop.models["sft"], loop.models["reward"])
        answers = _compare(loop)
        seconds = time.monotonic() - started
        page = write_report(project.path / "report", loop.outcomes, answers, seconds)
    finally:
        project.close()
    terminal.say("")
    for outcome in loop.outcomes:
        terminal.say(f"{outcome.title}: {outcome.verdict}")
    terminal.result(
        {
            "report": str(page),
            "seconds": round(seconds),
            "verdicts": {one.method: one.verdict for one in loop.outcomes},
        },
        f"\nDone in {in_time(seconds)}. Before and after, with plots: {page}\n"
        f"Open the project in the window: tastemaker open {options.dir}",
    )
    return 0


def ensure_sample_project(terminal: Terminal) -> Path:
    """Make the sample project with the demo model in the user's data folder unless it is there; return its path."""
    path = user_data_path("tastemaker") / "Sample project"
    if (path / "project.db").exists():
        return path
    project = Project.create(path)
    try:
        fill_with_sample(project)
        add_demo_model(project, terminal)
    finally:
        project.close()
    return path


def add_demo_model(project: Project, terminal: Terminal) -> ModelRecord:
    """Add SmolLM2-135M-Instruct to the project; converted once into the cache, which takes seconds."""
    client = ServeClient()
    try:
        return add_model(project, "demo", client, lambda what, fraction: terminal.progress(what, fraction))
    finally:
        terminal.done()
        client.leave()


def _train(loop: _Loop, method: Method, start: ModelRecord, reward: ModelRecord | None = None) -> ModelRecord:
    project, terminal = loop.project, loop.terminal
    counts = project.store.counts()
    rows = {"sft": counts.demonstrations_final, "ppo": counts.prompts}.get(method, counts.pairs)
    recipe = preset(method, "Quick look", rows, 135_000_000)
    recipe = with_settings(recipe, SETTINGS[method] | (QUICK[method] if loop.quick else {}))
    plan = plan_run(
        project,
        method,
        start_model_id=start.id,
        reward_model_id=reward.id if reward else "",
        recipe=recipe,
        name=f"demo {method}",
    )
    terminal.say(f"\n{TITLES[method]}\n  {plan.summary}\n  {plan.command_line}")
    started = time.monotonic()
    run = start_run(project, plan)
    folder = RunFolder(project.run_dir(run.id))
    try:
        _wait(folder, method, terminal)
    except KeyboardInterrupt:
        kill(folder.path)
        raise
    status = folder.state()
    if status.state != "done":
        terminal.done()
        raise UserError(f"The {method} run {status.state}", status.cause or status.detail, status.remedy)
    refresh_runs(project)
    made = model_of_run(project, run.id)
    if made is None:
        raise UserError(f"The {method} run left no model", f"see {folder.path / 'engine.log'}")
    history = [(one.step, one.values) for one in join_segments(folder.events())]
    outcome = Outcome.of(method, TITLES[method], history, len(folder.rows("heldout")), time.monotonic() - started)
    loop.outcomes.append(outcome)
    terminal.say(f"  {outcome.verdict} ({in_time(outcome.seconds)})")
    return made


def _wait(folder: RunFolder, method: str, terminal: Terminal) -> None:
    tail = EventTail(folder.path)
    while True:
        live = folder.state().state in LIVE_STATES
        for event in tail.read_new():
            if isinstance(event, Progress):
                left = f"{in_time(event.eta_s)} left" if event.eta_s >= 0 else ""
                terminal.progress(method, event.step / max(1, event.total_steps), left)
        if not live:
            terminal.done()
            return
        time.sleep(0.2)


def _sample_for_ranking(loop: _Loop) -> None:
    """Draw responses from the new SFT model to prompts that have none: the next thing to rank in the window."""
    project = loop.project
    prompts = project.store.prompts(split="train", need="responses", limit=2 if loop.quick else 6)
    if not prompts:
        return
    loop.terminal.say("\nResponses of the SFT model, ready to be ranked")
    client = ServeClient()
    try:
        sampling = Sampling(temperature=0.8, max_new_tokens=16 if loop.quick else 96)
        drawn = draw(project, client, loop.models["sft"], prompts, 3, sampling)
    finally:
        client.leave()
    project.store.add_responses(drawn).result()
    loop.terminal.say(f"  {len(drawn)} responses to {len(prompts)} prompts.")


def _compare(loop: _Loop) -> list[Answer]:
    """Let every model answer the same held-out prompts and score all answers with the reward model."""
    loop.terminal.say("\nThe same held-out prompts, answered before and after")
    prompts = loop.project.store.prompts(split="held-out", limit=2 if loop.quick else 6)
    client = ServeClient()
    answers: list[Answer] = []
    try:
        for name in ("base", "sft", "dpo", "ppo"):
            answers.extend(_answers(loop, client, name, prompts))
            loop.terminal.progress("comparing", len(answers) / (4 * max(1, len(prompts))))
        rows: list[tuple[tuple[Message, ...], str]] = [(one.prompt.messages, one.text) for one in answers]
        found = scores_of(loop.project, client, loop.models["reward"], rows)
    finally:
        loop.terminal.done()
        client.leave()
    for answer, value in zip(answers, found.standardised or found.scores, strict=True):
        answer.score = value
    return answers


def _answers(loop: _Loop, client: ServeClient, name: str, prompts: list[Prompt]) -> list[Answer]:
    sampling = Sampling(temperature=0.7, max_new_tokens=16 if loop.quick else 96, seed=1)
    drawn = draw(loop.project, client, loop.models[name], prompts, 1, sampling)
    by_prompt = {one.prompt_id: one for one in drawn}
    return [
        Answer(
            name, one, by_prompt[one.id].text, by_prompt[one.id].token_count, by_prompt[one.id].finish_reason == "stop"
        )
        for one in prompts
        if one.id in by_prompt
    ]
