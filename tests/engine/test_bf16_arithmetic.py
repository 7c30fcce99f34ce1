"""Where a processor multiplies bf16 (Zen 4, Sapphire Rapids, every recent GPU) the base computes in it; so here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine import base_model
from engine.adapters import Adapters
from engine.base_model import load_base
from engine.generate import generate
from engine.masking import Example
from tests.engine.conftest import randomise
from tests.engine.rows import QUICK, rows_of
from tests.engine.test_resumed_after_oom import history, run
from workbench.records import Sampling
from workbench.run_folder import RunFolder

METHODS = ("sft", "reward", "dpo", "kto", "ppo")
SETTINGS = {"epochs": 10, "max_steps": 4, "batch": 4, "micro_batch": 2, "learning_rate": 5e-3, "save_every": 2}


@pytest.fixture(autouse=True)
def in_bf16(arithmetic: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute in bf16, emulated where this CPU has none."""
    monkeypatch.setattr(base_model, "compute_dtype", lambda _: torch.bfloat16)


def create(runs: Any, method: str, name: str, quantisation: str = "bf16") -> RunFolder:
    settings = SETTINGS | (QUICK | {"episodes": 32} if method == "ppo" else {})
    made: RunFolder = runs.create(method, rows_of(method, 12), run_id=name, quantisation=quantisation, **settings)
    return made


def trained(folder: RunFolder) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for _, values in history(folder):
        for key, value in values.items():
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("quantisation", ["bf16", "nf4"])
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_goes_on_bit_for_bit(runs: Any, method: str, quantisation: str) -> None:
    whole, broken = (create(runs, method, name, quantisation) for name in ("whole", "broken"))
    run(whole)
    run(broken, killed_after=3)
    run(broken)
    assert history(broken) == history(whole)
    one, other = ((folder.path / "final" / "adapter_model.safetensors").read_bytes() for folder in (whole, broken))
    assert one == other


@pytest.mark.parametrize("method", METHODS[:-1])
def test_it_learns_as_in_fp32(runs: Any, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """The losses of four steps: fp32 masters learn; what rounds to eight bits is what they are multiplied with."""
    low = create(runs, method, "low")
    run(low)
    monkeypatch.setattr(base_model, "compute_dtype", lambda _: torch.float32)
    exact = create(runs, method, "exact")
    run(exact)
    losses, wanted = trained(low)["loss"], trained(exact)["loss"]
    assert losses == pytest.approx(wanted, rel=0.03, abs=0.01)
    assert losses != wanted
    assert min(losses) < losses[0]


def test_the_first_ratio_of_a_rollouts_update_is_exactly_1(runs: Any) -> None:
    folder = create(runs, "ppo", "run")
    run(folder)
    assert trained(folder)["ppo/ratio_first"] == [1.0] * 4


@pytest.mark.parametrize("quantisation", ["bf16", "nf4"])
def test_packed_log_probabilities_and_sampled_tokens_are_those_of_transformers_modules(
    tiny_model_dir: Path, quantisation: str
) -> None:
    """Within bf16's rounding: to transformers no token is likelier by more than that than one drawn greedily."""
    found: list[tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]] = []
    prompts = [[5, 9, 30], [7] * 11]
    for packs in (True, False):
        adapters = Adapters(load_base(tiny_model_dir, quantisation=quantisation, device=torch.device("cpu")))
        assert (adapters.base.dtype, adapters.base.packs) == (torch.bfloat16, True)
        adapters.base.packs = packs
        adapters.add("policy", rank=4, alpha=8, trainable=True)
        randomise(adapters, "policy", 0.05)
        rows = [Example.plain((5, 9, 30, 7, 11, 12), 2), Example.plain((5, 9, 31, 8), 2)]
        logps, *_ = adapters.token_stats("policy", adapters.lay_out(rows))
        logps.sum().backward()  # type: ignore[no-untyped-call]
        grads = [one.grad for one in adapters.parameters("policy") if one.grad is not None]
        with adapters.use("policy"):
            drawn = generate(adapters.base, prompts, Sampling(0.0, 1.0, 0, 6, 0), ends=[-1])
            ids = [torch.tensor([[*prompt, *one.ids]]) for prompt, [one] in zip(prompts, drawn, strict=True)]
            found.append((logps.detach(), torch.cat([one.flatten() for one in grads]), ids))
            if packs:
                continue
            for whole, prompt in zip(found[0][2], prompts, strict=True):
                logits = adapters.base.model(whole).logits[0, len(prompt) - 1 : -1].float()
                lost = logits.amax(1) - logits.gather(1, whole[0, len(prompt) :, None])[:, 0]
                assert lost.numel() == 6
                assert lost.max() < 0.1 < (logits.amax(1) - logits.mean(1)).min()
    (logps, grads, _), (wanted, their_grads, _) = found
    torch.testing.assert_close(logps, wanted, atol=0.1, rtol=0)
    assert torch.nn.functional.cosine_similarity(grads, their_grads, dim=0) > 0.99
