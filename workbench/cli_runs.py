"""Commands about runs: train, list, watch, stop, resume."""

from __future__ import annotations

import argparse
import shlex
import time
from dataclasses import asdict

from workbench import supervisor
from workbench.errors import UserError
from workbench.model_choice import START_ROLES, default_reward, default_start, find_model
from workbench.project import Project
from workbench.protocol import AnyEvent, Checkpoint, Diverged, Metrics, Phase, Progress, Stop, Warned
from workbench.records import ModelRecord, RunRecord
from workbench.run_folder import EventTail, RunFolder, RunStatus
from workbench.settings_fields import with_settings
from workbench.terminal import Terminal, in_bytes, in_time
from workbench.training import RunPlan, plan_run, preset_for, refresh_runs, start_run

LIVE_STATES = ("queued", "running", "paused", "stopping")
HEADLINES = ("loss", "eval_loss", "eval_accuracy", "rewards/accuracies", "objective/scores", "objective/kl")


def train(options: argparse.Namespace, terminal: Terminal) -> int:
    """Plan a run, start it and follow it to its end."""
    project = Project.open(options.dir)
    try:
        refresh_runs(project)
        plan = _plan(project, options)
        _say_plan(plan, terminal)
        if options.plan:
            return 1 if any(one.severity == "error" for one in plan.problems) else 0
        run = start_run(project, plan)
        if options.detach:
            terminal.result({"run": run.id, "name": run.name}, f"Started {run.name!r}; `tastemaker watch` follows it.")
            return 0
        return follow(project, run, terminal)
    finally:
        project.close()


def _plan(project: Project, options: argparse.Namespace) -> RunPlan:
    models = project.store.models()
    start = (
        find_model(models, options.start, START_ROLES[options.method])
        if options.start
        else default_start(models, options.method)
    )
    if start is None:
        raise UserError(
            "This project has no model to train", "", f"add one first: tastemaker model add {options.dir} demo"
        )
    settings = dict(_key_value(text) for text in options.set)
    recipe = with_settings(preset_for(project, options.method, options.preset, start.id), settings)
    reward_id = ""
    if options.method == "ppo" and not settings.get("rule"):
        found = find_model(models, options.reward, ("reward",)) if options.reward else default_reward(models, start)
        reward_id = found.id if found else ""
    return plan_run(
        project,
        options.method,
        start_model_id=start.id,
        reward_model_id=reward_id,
        recipe=recipe,
        name=options.name,
    )


def _key_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set wants KEY=VALUE, not {text!r}")
    return key.strip(), value


def _say_plan(plan: RunPlan, terminal: Terminal) -> None:
    if terminal.json:
        terminal.result(
            {
                "plan": plan.command_line,
                "problems": [asdict(one) for one in plan.problems],
                "memory_bytes": plan.estimate.memory_bytes,
                "seconds": plan.estimate.seconds,
            }
        )
        return
    terminal.say(plan.summary)
    terminal.say(
        f"About {in_time(plan.estimate.seconds)} and {in_bytes(plan.estimate.memory_bytes)} of memory"
        f" ({in_bytes(plan.estimate.memory_available)} available)."
    )
    for one in plan.problems:
        terminal.say(f"  {one.severity}: {one.message}" + (f" ({one.remedy})" if one.remedy else ""))


def follow(project: Project, run: RunRecord, terminal: Terminal) -> int:
    """Print a run's events until it ends. The first interrupt stops and saves it; a second one leaves at once."""
    folder = RunFolder(project.run_dir(run.id))
    tail = EventTail(folder.path)
    interrupted = False
    while True:
        try:
            status = folder.state()  # before the events: the last ones are read after the end is seen
            for event in tail.read_new():
                _say_event(event, status, run, terminal)
            if status.state not in LIVE_STATES:
                break
            time.sleep(0.2)
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            terminal.say("Stopping at the end of this step and saving; press Ctrl+C again to leave at once.")
            supervisor.send(folder.path, Stop(save=True))
    refresh_runs(project)
    return _say_end(project, run, folder.state(), terminal, interrupted=interrupted)


def _say_event(event: AnyEvent, status: RunStatus, run: RunRecord, terminal: Terminal) -> None:
    if terminal.json:
        terminal.result({"run": run.id, "event": event})
        return
    if isinstance(event, Phase):
        terminal.progress(run.method, -1 if status.total_steps == 0 else status.step / status.total_steps, event.name)
    elif isinstance(event, Progress):
        left = f"{in_time(event.eta_s)} left" if event.eta_s >= 0 else ""
        terminal.progress(run.method, event.step / max(1, event.total_steps), left)
    elif isinstance(event, Metrics):
        shown = [f"{key} {event.values[key]:.4g}" for key in HEADLINES if key in event.values]
        if shown:
            terminal.say(f"  step {event.step:>5}  " + "  ".join(shown))
    elif isinstance(event, Warned):
        terminal.say(f"  note: {event.message}" + (f" ({event.remedy})" if event.remedy else ""))
    elif isinstance(event, Diverged):
        terminal.say(f"  {event.metric} became {event.kind} at step {event.step}; rows {', '.join(event.rows)}")
    elif isinstance(event, Checkpoint):
        terminal.say(f"  checkpoint at step {event.step} ({in_bytes(event.bytes)})")


def _say_end(project: Project, run: RunRecord, status: RunStatus, terminal: Terminal, *, interrupted: bool) -> int:
    terminal.done()
    made = model_of_run(project, run.id)
    data = {"run": run.id, "state": status.state, "step": status.step, "model": made.name if made else ""}
    if status.state == "done":
        terminal.result(data, f"Done: {run.name}. New model: {made.name!r}." if made else f"Done: {run.name}.")
        return 0
    detail = " ".join(part for part in (status.detail, status.cause, status.remedy) if part)
    again = f" Resume it with: tastemaker resume {shlex.quote(str(project.path))} {run.id[-8:]}"
    text = f"{run.name} {status.state} at step {status.step}. {detail}" + (again if status.resumable else "")
    terminal.result(data | {"detail": detail, "resumable": status.resumable}, text)
    return 130 if interrupted else 0 if status.state == "stopped" else 1


def model_of_run(project: Project, run_id: str) -> ModelRecord | None:
    """Return the newest model that a run made, or None."""
    return next((one for one in reversed(project.store.models()) if one.run_id == run_id), None)


def runs(options: argparse.Namespace, terminal: Terminal) -> int:
    """List the runs, newest last."""
    project = Project.open(options.dir)
    try:
        records = refresh_runs(project)
        for one in records:
            status = RunFolder(project.run_dir(one.id)).state()
            data = asdict(one) | {"state": status.state, "step": status.step, "total_steps": status.total_steps}
            steps = f"{status.step}/{status.total_steps}" if status.total_steps else ""
            terminal.result(data, f"{one.id[-8:]}  {status.state:<11}  {one.method:<6}  {steps:>9}  {one.name}")
        if not records and not terminal.json:
            terminal.say("No runs yet.")
    finally:
        project.close()
    return 0


def watch(options: argparse.Namespace, terminal: Terminal) -> int:
    """Follow a run from its first event."""
    project = Project.open(options.dir)
    try:
        return follow(project, find_run(project, options.run), terminal)
    finally:
        project.close()


def stop(options: argparse.Namespace, terminal: Terminal) -> int:
    """Stop a run at its step's end, with or without a checkpoint."""
    project = Project.open(options.dir)
    try:
        run = find_run(project, options.run)
        supervisor.send(project.run_dir(run.id), Stop(save=not options.no_save))
        terminal.result({"run": run.id, "stopping": True}, f"{run.name} stops at the end of its step.")
    finally:
        project.close()
    return 0


def resume(options: argparse.Namespace, terminal: Terminal) -> int:
    """Take up a run from its newest good checkpoint."""
    project = Project.open(options.dir)
    try:
        run = find_run(project, options.run)
        supervisor.resume(project.run_dir(run.id))
        if options.detach:
            terminal.result({"run": run.id, "resumed": True}, f"{run.name} goes on.")
            return 0
        return follow(project, run, terminal)
    finally:
        project.close()


def find_run(project: Project, text: str) -> RunRecord:
    """Find the run that ``text`` names: its name, its id, or the beginning or end of one id. Raises UserError."""
    records = refresh_runs(project)
    fitting = [one for one in records if text in (one.id, one.name)]
    fitting = fitting or [one for one in records if one.id.startswith(text) or one.id.endswith(text)]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise UserError(f"There is no run {text!r}", "", "`tastemaker runs DIR` lists them")
    raise UserError(f"{text!r} fits {len(fitting)} runs", "", "write more of the id")
