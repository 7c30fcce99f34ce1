"""Run folders as an engine would leave them: real recipes, events in the real protocol, samples, logs, exits."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from workbench import reaper
from workbench.ids import new_id, now
from workbench.jsonl import encode
from workbench.protocol import (
    Checkpoint,
    Ended,
    Event,
    Metrics,
    ModelRef,
    Phase,
    Progress,
    RunSpec,
    Sample,
    SampleBatch,
    Started,
)
from workbench.recipes import preset
from workbench.records import Message, Method, RunRecord
from workbench.rows import PairRow, PromptRow, SftRow
from workbench.run_folder import RunFolder

REPLIES = (
    "A kettle boils water by pushing current through a coil. The coil gets hot and the water takes the heat.",
    "Think of a library: the index tells you the shelf, and the shelf has the book. A database index is the same.",
    "Sure! Start small. Walk ten minutes after lunch, every day, and only then think about running.",
    "It depends on what you need: for a quick note use plain text, for a long report use a template.",
)
QUESTIONS = (
    "How does a kettle work?",
    "What is a database index, in two sentences?",
    "How do I start exercising again after a long break?",
    "Which format should I write my notes in?",
)


class ScriptedRun:
    """A run folder that a test writes line by line, with the engine's own records."""

    def __init__(self, runs_dir: Path, method: Method = "ppo", name: str = "", *, seed: int = 0, **recipe: Any) -> None:
        self.random = random.Random(seed)
        self.id = new_id()
        self.method = method
        self.name = name or f"{method} 1"
        runs_dir.mkdir(parents=True, exist_ok=True)
        model = ModelRef(model_id="base", name="tiny base", base="/nowhere")
        spec = RunSpec(
            run_id=self.id,
            method=method,
            name=self.name,
            recipe={**asdict(preset(method, "Balanced", 120)), **recipe},
            model=model,
            reward=ModelRef(model_id="rm", name="reward 1", base="/nowhere") if method == "ppo" else None,
            versions={"tastemaker": "0.1.0", "torch": "2.13.0"},
            created_at=now(),
        )
        prompt = (Message("user", QUESTIONS[0]),)
        row: Any = {
            "sft": SftRow("d1", "p1", prompt, REPLIES[0]),
            "ppo": PromptRow("p1", prompt),
        }.get(method, PairRow("r:a:b", "p1", "r", "me", prompt, REPLIES[0], REPLIES[1]))
        self.folder = RunFolder.create(runs_dir, spec, [row], [])
        self.path = self.folder.path
        self.spec = self.folder.spec()
        self.seq = 0
        self.elapsed = 0.0
        self._lock: int | None = None

    def record(self, state: str = "running", detail: str = "") -> RunRecord:
        return RunRecord(self.id, self.method, self.name, state, "base", detail=detail, created_at=self.spec.created_at)

    def write(self, *events: Event) -> None:
        with self.folder.events_path.open("ab") as out:
            for event in events:
                self.seq += 1
                self.elapsed += 1.5
                fields = {name: getattr(event, name) for name in event.__struct_fields__}
                fields |= {"seq": self.seq, "at": now(), "elapsed_s": self.elapsed}
                out.write(encode(type(event)(**fields)) + b"\n")

    def start(self, total: int = 60, resumed_from: int = -1) -> None:
        self.write(
            Started(pid=1, device="cpu", total_steps=total, resumed_from=resumed_from),
            Phase(name="loading", detail="base model"),
            Phase(name="rollout" if self.method == "ppo" else "training"),
            Progress(step=max(0, resumed_from), total_steps=total),
        )

    def steps(self, first: int, last: int, total: int = 60, *, every: int = 1, hacking: bool = False) -> None:
        for step in range(first, last + 1, every):
            values = self.values(step, step / total, hacking)
            self.write(
                Metrics(step=step, values=values), Progress(step=step, total_steps=total, eta_s=2.5 * (total - step))
            )

    def values(self, step: int, done: float, hacking: bool = False) -> dict[str, float]:
        noise = self.random.gauss
        rise = 1 - math.exp(-3 * done)
        common = {
            "grad_norm": abs(0.8 + 1.2 * math.exp(-5 * done) + noise(0, 0.12)),
            "learning_rate": 2e-4 * (1 - done),
            "epoch": 3 * done,
            "num_tokens": 1800.0 * step,
            "perf/tokens_per_s": 950 + noise(0, 30),
            "perf/samples_per_s": 6 + noise(0, 0.2),
            "perf/memory_bytes": 1.6e9 + 4e7 * noise(0, 1),
            "perf/peak_memory_bytes": 1.9e9,
        }
        held = step % 5 == 0
        if self.method == "sft":
            loss = 1.25 + 1.3 * math.exp(-4 * done)
            return common | {
                "loss": loss + noise(0, 0.08),
                "mean_token_accuracy": 0.48 + 0.22 * rise + noise(0, 0.015),
                "entropy": 2.1 - 0.6 * rise + noise(0, 0.05),
                **({"eval_loss": loss + 0.08, "eval_mean_token_accuracy": 0.46 + 0.21 * rise} if held else {}),
            }
        if self.method == "reward":
            accuracy = 0.5 + 0.28 * rise
            return common | {
                "loss": 0.693 - 0.22 * rise + noise(0, 0.03),
                "accuracy": min(1, max(0, accuracy + noise(0, 0.07))),
                "margin": 1.4 * rise + noise(0, 0.15),
                "mean_reward": noise(0, 0.1),
                "min_reward": -1.2 - rise + noise(0, 0.2),
                "max_reward": 1.3 + rise + noise(0, 0.2),
                "chosen_reward": 0.7 * rise + noise(0, 0.1),
                "rejected_reward": -0.7 * rise + noise(0, 0.1),
                **(
                    {
                        "eval_loss": 0.70 - 0.16 * rise,
                        "eval_accuracy": accuracy - 0.05,
                        "eval_accuracy_low": accuracy - 0.14,
                        "eval_accuracy_high": accuracy + 0.03,
                        "eval_margin": 1.1 * rise,
                        "eval_ece": 0.12 - 0.06 * rise,
                    }
                    if held
                    else {}
                ),
            }
        if self.method == "dpo":
            return common | {
                "loss": 0.693 - 0.3 * rise + noise(0, 0.03),
                "rewards/chosen": 0.2 * rise + noise(0, 0.04),
                "rewards/rejected": -0.9 * rise + noise(0, 0.06),
                "rewards/accuracies": min(1, 0.5 + 0.35 * rise + noise(0, 0.06)),
                "rewards/margins": 1.1 * rise + noise(0, 0.06),
                "logps/chosen": -88 - 4 * rise + noise(0, 2),
                "logps/rejected": -95 - 12 * rise + noise(0, 2),
                **(
                    {
                        "eval_loss": 0.693 - 0.22 * rise,
                        "eval_rewards/chosen": 0.15 * rise,
                        "eval_rewards/rejected": -0.7 * rise,
                        "eval_rewards/accuracies": 0.5 + 0.26 * rise,
                        "eval_rewards/margins": 0.85 * rise,
                    }
                    if held
                    else {}
                ),
            }
        kl = (22 if hacking else 6) * rise + abs(noise(0, 0.3))
        score = -0.4 + 1.9 * rise + noise(0, 0.12)
        return common | {
            "objective/scores": score,
            "objective/kl": kl,
            "objective/rlhf_reward": score - 0.05 * kl,
            "objective/non_score_reward": -0.05 * kl,
            "objective/entropy": 110 - 40 * rise + noise(0, 3),
            "policy/entropy_avg": 2.2 - 0.7 * rise + noise(0, 0.04),
            "loss/policy_avg": -0.02 + noise(0, 0.01),
            "loss/value_avg": 0.4 * math.exp(-3 * done) + 0.05 + abs(noise(0, 0.02)),
            "policy/approxkl_avg": abs(0.012 + noise(0, 0.004)),
            "policy/clipfrac_avg": abs(0.09 + noise(0, 0.03)),
            "val/clipfrac_avg": abs(0.05 + noise(0, 0.02)),
            "val/ratio": 1 + noise(0, 0.01),
            "val/ratio_var": abs(noise(0, 0.002)),
            "ppo/ratio_first": 1.0,
            "val/num_eos_tokens": round(20 + 9 * rise + noise(0, 1)),
            "ppo/eos_missing": max(0.0, 0.35 - 0.3 * rise + noise(0, 0.03)),
            "ppo/mean_length": 46 + (30 if hacking else 4) * rise + noise(0, 2),
            "ppo/kl_coefficient": 0.05,
            "ppo/returns_mean": score * 0.8,
            "ppo/values_mean": score * 0.7 + noise(0, 0.1),
            "ppo/explained_variance": 0.75 * rise + noise(0, 0.05),
            "ppo/repetition": max(0.0, 0.02 + (0.3 if hacking else 0.02) * rise + noise(0, 0.01)),
            "episode": 32.0 * step,
            **(
                {"eval_objective/scores": score - 0.15, "eval_objective/kl": kl * 1.05, "eval_ppo/mean_length": 47.0}
                if held
                else {}
            ),
        }

    def samples(self, step: int, count: int = 4) -> None:
        path = self.path / "samples.jsonl"
        offset = path.stat().st_size if path.exists() else 0
        with path.open("ab") as out:
            for index in range(count):
                out.write(encode(self.sample(step, index)) + b"\n")
        self.write(SampleBatch(step=step, offset=offset, count=count))

    def sample(self, step: int, index: int) -> Sample:
        text = REPLIES[index % 4]
        words = text.split(" ")
        tokens = tuple(word if not n else " " + word for n, word in enumerate(words))
        kl = tuple(self.random.gauss(0.1, 0.25) for _ in words)
        plain = {"step": step, "prompt_id": f"p{index}", "prompt": QUESTIONS[index % 4], "response": text}
        if self.method != "ppo":
            return Sample(**plain, ended=index != 3)
        rewards = [-0.05 * one for one in kl]
        score = self.random.gauss(0.8, 0.6)
        rewards[-1] += score
        return Sample(
            **plain,
            score=score,
            kl=sum(kl),
            ended=index != 3,
            tokens=tokens,
            token_logps=tuple(-abs(self.random.gauss(1, 0.7)) for _ in words),
            token_kl=kl,
            token_rewards=tuple(rewards),
            token_values=tuple(self.random.gauss(0.5, 0.1) for _ in words),
            token_advantages=tuple(self.random.gauss(0, 0.3) for _ in words),
        )

    def checkpoint(self, step: int) -> None:
        self.write(Checkpoint(step=step, path=f"checkpoints/{step}", bytes=4_200_000))

    def log(self, text: str) -> None:
        with (self.path / "engine.log").open("a") as out:
            out.write(text)

    # ---- alive or dead: a held lock, as the reaper holds it ----

    def live(self, state: str = "running", ahead: int = 0) -> None:
        self._lock = reaper.take(self.path / "lock")
        assert self._lock is not None
        size = self.folder.events_path.stat().st_size if self.folder.events_path.exists() else 0
        reaper.write_note(
            self._lock, reaper.LockNote(state, 0 if state == "running" else size, ahead=ahead, lease="cpu")
        )

    def vanish(self) -> None:
        if self._lock is not None:
            reaper.os.close(self._lock)
            self._lock = None

    def end(self, state: str = "done", step: int = 60, message: str = "", cause: str = "", remedy: str = "") -> None:
        self.write(Ended(state=state, step=step, message=message, cause=cause, remedy=remedy))
        if state == "done":
            (self.path / "final").mkdir(exist_ok=True)
            (self.path / "final" / "tastemaker.json").write_text("{}")
        self.exit(code=0 if state != "failed" else 1)

    def exit(self, code: int | None = 0, signal: int | None = None, reason: str = "") -> None:
        (self.path / "exit.json").write_text(json.dumps({"code": code, "signal": signal, "reason": reason}))
        self.vanish()


@pytest.fixture
def script(tmp_path: Path) -> Iterable[Callable[..., ScriptedRun]]:
    """Make scripted runs: ``script("ppo")`` in a folder of its own, or ``script("ppo", runs_dir=project.runs_dir)``."""
    made: list[ScriptedRun] = []

    def make(method: Method = "ppo", name: str = "", *, runs_dir: Path | None = None, **options: Any) -> ScriptedRun:
        run = ScriptedRun(runs_dir or tmp_path / "runs", method, name, **options)
        made.append(run)
        return run

    yield make
    for run in made:
        run.vanish()
