"""One piece of work through Tastemaker's engine, in this process. Prints one JSON line.

python tests/benchmarks/ours.py WORK.json MODEL_DIR --quant bf16|nf4
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import tempfile
from pathlib import Path
from typing import Any

from measure import MIB, Meter, means, prepare
from work import Work

from engine.__main__ import prepare_environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--quant", choices=("bf16", "nf4"), default="bf16")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    prepare(options.threads)
    prepare_environment()  # what the engine's own process sets beyond that
    work = Work.read(options.work)
    if work.method == "generate":
        generate(work, options)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(work, options, Path(folder))


def run(work: Work, options: argparse.Namespace, folder: Path) -> None:
    import torch

    from engine.session import Session

    torch.set_num_threads(options.threads)
    meter = Meter()
    session = Session(make_run(work, options, folder).path)
    phase, metrics = session.phase, session.metrics
    logs: list[dict[str, float]] = []
    phases: set[str] = set()  # of training

    def watched_phase(name: str, detail: str = "") -> None:
        phase(name, detail)
        phases.add(name)
        if name in ("training", "rollout") and not meter.began:
            phases.clear()
            phases.add(name)
            meter.start()

    def watched_metrics(step: int, values: Any) -> None:
        metrics(step, values)
        if "loss" in values or "objective/scores" in values:
            meter.step()
            logs.append({key: float(value) for key, value in values.items()})

    def finish(_: Any) -> None:
        meter.stop()
        # The session sets the process's high-water mark back at every phase, and knows each phase's own.
        peaks = [peak / MIB for name, peak in session._memory.read().items() if name in phases]
        meter.peak_mib = max([meter.peak_mib, *peaks])
        raise Finished

    session.phase, session.metrics, session.finish = watched_phase, watched_metrics, finish  # type: ignore[method-assign]
    with contextlib.suppress(Finished):
        importlib.import_module(f"engine.{work.method}").run(session)
    tokens = sum(row["tokens"] for row in work.rows)
    if work.method == "ppo":
        tokens += int(sum(log["ppo/mean_length"] for log in logs) * work.batch)
    meter.report(samples=len(work.rows), tokens=tokens, metrics=means(logs, by_tokens=work.method == "sft"))


def generate(work: Work, options: argparse.Namespace) -> None:
    """Sample several responses a prompt."""
    import torch

    from engine.adapters import Adapters
    from engine.base_model import load_base
    from engine.generate import generate as draw
    from engine.templates import encode_prompt
    from workbench.records import Message, Sampling

    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = load_base(options.model, quantisation=options.quant, device=device)
    Adapters(base).hold_halves(sampling=True)  # as every process that samples much
    prompts = [
        encode_prompt(base.tokenizer, [Message(one["role"], one["content"]) for one in row["prompt"]])
        for row in work.rows
    ]
    draw(base, prompts[:1], Sampling(work.temperature, 1.0, 0, 4, 0))
    meter = Meter()
    meter.start()
    sampling = Sampling(work.temperature, 1.0, 0, work.response_length, work.seed)
    drawn = draw(base, prompts, sampling, count=work.responses)
    meter.step()
    meter.stop()
    lengths = [len(one.ids) for row in drawn for one in row]
    meter.report(samples=len(lengths), tokens=sum(lengths), metrics={"mean_length": sum(lengths) / len(lengths)})


class Finished(Exception):
    """The training is over; what follows (samples, the final folder) is not measured."""


def make_run(work: Work, options: argparse.Namespace, folder: Path) -> Any:
    """Freeze the work as a run folder."""
    import dataclasses

    from workbench.protocol import ModelRef, RunSpec
    from workbench.recipes import RECIPES
    from workbench.records import Message
    from workbench.rows import PairRow, PromptRow, SftRow
    from workbench.run_folder import RunFolder

    def said(messages: list[dict[str, str]]) -> tuple[Message, ...]:
        return tuple(Message(one["role"], one["content"]) for one in messages)

    rows: list[Any] = []
    for number, row in enumerate(work.rows):
        name, prompt = str(number), said(row["prompt"])
        if work.method == "sft":
            rows.append(SftRow(name, name, prompt, row["completion"][0]["content"]))
        elif work.method == "ppo":
            rows.append(PromptRow(name, prompt))
        else:
            chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
            rows.append(PairRow(name, name, "", "", prompt, chosen, rejected))
    settings: dict[str, Any] = {
        "quantisation": options.quant,
        "batch": work.batch,
        "micro_batch": work.batch,
        "learning_rate": work.learning_rate,
        "schedule": "constant",
        "max_steps": work.steps,
        "eval_every": 0,
        "save_every": 0,
        "seed": work.seed,
        "max_length": work.max_length,
        "gradient_checkpointing": options.checkpointing,
        "epochs": 1.0,
    }
    reward = None
    if work.method == "ppo":
        reward = ModelRef(
            model_id="r", name="r", base=str(options.model), adapter=str(untrained_reward(options, folder))
        )
        settings |= {
            "max_length": work.max_length + work.response_length,
            "episodes": len(work.rows),
            "ppo_epochs": work.ppo_epochs,
            "mini_batches": work.mini_batches,
            "response_length": work.response_length,
            "temperature": work.temperature,
            "kl_coefficient": work.kl_coefficient,
            "value_learning_rate": work.learning_rate,
        }
    if work.method == "reward":
        settings |= {"head_learning_rate": work.learning_rate, "center_coefficient": 0.0}
    if work.method == "dpo":
        settings |= {"beta": work.beta}
    recipe = dataclasses.replace(RECIPES[work.method](), **settings)
    spec = RunSpec(
        run_id="bench",
        method=work.method,  # type: ignore[arg-type]
        name="bench",
        recipe=dataclasses.asdict(recipe),
        model=ModelRef(model_id="m", name="m", base=str(options.model)),
        reward=reward,
    )
    return RunFolder.create(folder / "runs", spec, rows, [])


def untrained_reward(options: argparse.Namespace, folder: Path) -> Path:
    """A reward model with a random head: what it says does not matter here, what it costs does."""
    import torch

    from engine.adapters import Adapters
    from engine.base_model import load_base
    from engine.heads import ScalarHead
    from engine.score import RewardStats

    made = folder / "reward"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    adapters = Adapters(load_base(options.model, quantisation=options.quant, device=device))
    adapters.add("reward", rank=16, alpha=32, trainable=False)
    adapters.save("reward", made, ScalarHead(adapters.base.hidden_size).weight)
    RewardStats(0.0, 1.0, 1, "nothing").write(made)
    return made


if __name__ == "__main__":
    main()
