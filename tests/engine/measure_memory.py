"""Measure what the methods hold, each in its own process, beside what the plan foretells: a line of JSON each.

``python measure_memory.py FOLDER [METHOD ...] [--layers N] [--hidden N] [--tokens N] [--checkpointing] [--fp32]`` on a
random Llama whose activations outweigh it; ``--fp32`` computes in it where this CPU has bf16. The libraries are
imported once; every run is a fork that has only those.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from engine.__main__ import prepare_environment

prepare_environment()

import torch  # noqa: E402

import engine.dpo  # noqa: E402
import engine.kto  # noqa: E402
import engine.ppo  # noqa: E402
import engine.reward  # noqa: E402
import engine.sft  # noqa: E402, F401
from engine import base_model  # noqa: E402
from engine.job import train  # noqa: E402
from engine.masking import pair_examples, sft_example  # noqa: E402
from engine.templates import encode_prompt  # noqa: E402
from workbench import memory_plan  # noqa: E402
from workbench.memory_plan import PHASE_OF, plan_memory  # noqa: E402
from workbench.model_shape import read_shape  # noqa: E402
from workbench.protocol import Ended, Memory, ModelRef, RunSpec  # noqa: E402
from workbench.recipes import RECIPES  # noqa: E402
from workbench.records import METHODS, Message  # noqa: E402
from workbench.rows import PairRow, PromptRow, SftRow, ThumbRow  # noqa: E402
from workbench.run_folder import RunFolder  # noqa: E402

RESPONSE = 48  # tokens of a response that PPO draws


def in_fork(work: Callable[[], Any]) -> None:
    """Do something in a process of its own: whatever it allocates is gone afterwards."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit(f"a process ended with status {status}")


def tiny_model() -> Any:
    """The module that builds the tests' own tokenizer."""
    spec = importlib.util.spec_from_file_location("tiny_model", Path(__file__).parent.with_name("tiny_model.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_model(folder: Path, hidden: int, layers: int) -> None:
    """Save a random Llama of the proportions of a small real one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 128),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def rows_of(method: str, tokenizer: Any, tokens: int) -> tuple[list[Any], list[list[int]], list[int]]:
    """Two rows of about so many tokens (pairs: both sides together), how many they have, and how many of a prompt."""
    letters = "bdfgjkmpqvwz"  # no merge of the tokenizer joins two of these: a token each
    ask = (Message("user", "b" * 40),)
    pick = [letters[number] for number in range(4)]
    if method == "ppo":
        asks = [(Message("user", one * (tokens - RESPONSE - 60)),) for one in pick[:2]]
        rows: list[Any] = [PromptRow(str(number), ask) for number, ask in enumerate(asks)]
        return rows, [[len(encode_prompt(tokenizer, one)) + RESPONSE] for one in asks], []
    if method == "sft":
        found = [SftRow(str(number), str(number), ask, one * (tokens - 100)) for number, one in enumerate(pick[:2])]
        made = [sft_example(tokenizer, ask, one.completion, 4096, "completion") for one in found]
        return list(found), [[len(one.input_ids)] for one in made], []
    if method == "kto":
        half = tokens - 100
        thumbs = [ThumbRow(str(n), str(n), str(n), "me", ask, one * half, n == 0) for n, one in enumerate(pick[:2])]
        lone = [sft_example(tokenizer, ask, one.completion, 4096, "completion") for one in thumbs]
        return list(thumbs), [[len(one.input_ids)] for one in lone], []
    half = tokens // 2 - 100
    pairs = [PairRow(str(n), str(n), str(n), "me", ask, pick[2 * n] * half, pick[2 * n + 1] * half) for n in range(2)]
    sides = [pair_examples(tokenizer, ask, one.chosen, one.rejected, 4096) for one in pairs]
    lengths = [[len(chosen.input_ids), len(rejected.input_ids)] for chosen, rejected in sides]
    return list(pairs), lengths, [chosen.prompt_length for chosen, _ in sides]


def held_in(runs: Path, spec: RunSpec, rows: list[Any]) -> tuple[Memory, dict[str, int]]:
    """Carry a run out in a fork. Returns what it says it held, and that by the plan's phases."""
    folder = RunFolder.create(runs, spec, rows, [])
    in_fork(lambda: train(folder.path))
    told = next((one for one in folder.events() if isinstance(one, Memory)), None)
    if told is None:
        [end] = [one for one in folder.events() if isinstance(one, Ended)]
        sys.exit(f"{spec.method}: {end.message} {end.cause}")
    found: dict[str, int] = {}
    for name, size in told.peaks.items():
        if name in PHASE_OF:
            found[PHASE_OF[name]] = max(size, found.get(PHASE_OF[name], 0))
    return told, found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--fp32", action="store_true")
    options = parser.parse_args()
    if options.fp32:
        base_model.compute_dtype = lambda _: torch.float32
        memory_plan.cpu_has_bf16 = lambda: False
    base = options.folder / "base"
    tokenizer = tiny_model().build_tokenizer()
    in_fork(lambda: write_model(base, options.hidden, options.layers))
    tokenizer.save_pretrained(base)
    for method in options.methods or METHODS:
        rows, lengths, prompts = rows_of(method, tokenizer, options.tokens)
        settings: dict[str, Any] = {
            "quantisation": "bf16",
            "batch": 2,
            "micro_batch": 1,
            "max_length": 2048,
            "eval_every": 0,
            "save_every": 0,
            "max_steps": 2,
            "device": "cpu",
            "gradient_checkpointing": options.checkpointing,
        }
        if method == "ppo":
            settings |= {"response_length": RESPONSE, "episodes": 4, "ppo_epochs": 1, "rule": "longer-than:10"}
        recipe = dataclasses.replace(RECIPES[method](), **settings)
        model = ModelRef(model_id="m", name="random", base=str(base))
        spec = RunSpec(run_id=method, method=method, name=method, recipe=dataclasses.asdict(recipe), model=model)
        told, measured = held_in(options.folder / "runs", spec, rows)
        if method == "ppo":  # a second rollout is measured near the update: what was freed stays with the process
            once = dataclasses.asdict(dataclasses.replace(recipe, max_steps=1))
            _, first = held_in(options.folder / "runs", msgspec.structs.replace(spec, run_id="once", recipe=once), rows)
            measured |= {name: first[name] for name in ("rollout", "score")}
        plan = plan_memory(method, recipe, read_shape(base), lengths, prompts=prompts, gpu=False)
        found = {"method": method, "measured": measured, "model": told.model_bytes, "foretold": plan.resident()}
        found["foretold_model"] = plan.phases[0].bytes
        print(json.dumps(found | {"lines": plan.lines}), flush=True)


if __name__ == "__main__":
    main()
