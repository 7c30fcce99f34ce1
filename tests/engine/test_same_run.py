"""What makes no difference: running a method again, and the order and the cuts in which a step takes its rows."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import base_model, batching, dpo, kto, ppo, sft
from engine.dpo import pair_loss
from engine.kto import EncodedThumb, thumb_loss
from engine.masking import sft_example
from engine.meters import Meters
from engine.optim import Optimiser
from tests.engine.rows import BAD, GOOD, QUICK, ranked, ranked_rows, rows_of
from workbench.protocol import Metrics
from workbench.recipes import DpoRecipe, KtoRecipe
from workbench.records import Message
from workbench.run_folder import RunFolder

METHODS = ("sft", "reward", "dpo", "kto", "ppo")
CASES = [
    *(pytest.param(method, partial(rows_of, method), id=method) for method in METHODS),
    pytest.param("reward", ranked_rows, id="reward, rankings of unequal size"),
]
TWO_STEPS = {"epochs": 10, "max_steps": 2, "batch": 6, "micro_batch": 2, "learning_rate": 5e-3, "eval_every": 1}


def settings_of(method: str) -> dict[str, Any]:
    """Two optimiser steps, or two rollouts of two mini-batches and epochs."""
    return QUICK | {"learning_rate": 5e-3, "eval_every": 1} if method == "ppo" else TWO_STEPS


def numbers(folder: RunFolder) -> list[tuple[int, str, float]]:
    """Every number that a run reported, but for how fast it was."""
    found = [one for one in folder.events() if isinstance(one, Metrics)]
    return [(one.step, key, value) for one in found for key, value in one.values.items() if not key.startswith("perf/")]


def weights(folder: RunFolder) -> bytes:
    return (folder.path / "final" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(("method", "made_of"), CASES)
def test_the_same_seed_is_the_same_run_bit_for_bit_and_another_seed_another(
    runs: Any, method: str, made_of: Callable[..., list[Any]]
) -> None:
    made = {}
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        train, heldout = made_of(12), made_of(4, "held")
        made[name] = runs.create(method, train, heldout, run_id=name, seed=seed, **settings_of(method))
        runs.run(made[name])
    assert numbers(made["one"]) == numbers(made["again"])
    assert {step for step, *_ in numbers(made["one"])} == {0, 1, 2}
    assert weights(made["one"]) == weights(made["again"])
    assert made["one"].samples() == made["again"].samples()
    assert numbers(made["one"]) != numbers(made["other"])
    assert weights(made["one"]) != weights(made["other"])


# ---- order and cuts --------------------------------------------------------------------------------------------


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs compute in float64, but for the norms, where transformers rounds to fp32."""
    monkeypatch.setattr(base_model, "compute_dtype", lambda _device: torch.float64)


def gradients_of(runs: Any, folder: RunFolder) -> list[Tensor]:
    """The gradients of a run's only step, before clipping: the policy's, and in PPO then the value's."""
    found: list[Tensor] = []
    clip = Optimiser.clip

    def recorded(self: Optimiser) -> Tensor:
        found.extend(one.grad.clone() for one in self._parameters if one.grad is not None)
        return clip(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Optimiser, "clip", recorded)
        runs.run(folder)
    return found


def close(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Gradients [...] agree to a millionth of their length: fp32 masters and norms round to 6e-8 at each addition."""
    length = torch.cat([one.flatten() for one in theirs]).norm()
    assert length > 1e-4  # there is something to get wrong
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6 * float(length))


@pytest.mark.parametrize(("method", "made_of"), CASES)
def test_the_rows_of_a_step_teach_the_same_in_any_order_and_any_cuts(
    runs: Any,
    metric: Any,
    in_float64: None,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    made_of: Callable[..., list[Any]],
) -> None:
    """A bucket is which rows lie beside one another: shuffled within the step, cut by rows or by tokens."""
    rows_of_step, by_length = batching.Schedule.rows, ppo.longest_group_first
    found = {}
    for name, most, tokens, seed in (("plain", 8, 4096, 0), ("apart", 1, 4096, 1), ("mixed", 3, 80, 2)):

        def shuffled(one: Sequence[Any], seed: int = seed) -> list[Any]:
            return random.Random(seed).sample(list(one), len(one)) if seed else list(one)

        monkeypatch.setattr(batching, "CPU_MICRO_TOKENS", tokens)
        monkeypatch.setattr(batching.Schedule, "rows", lambda self, step, mix=shuffled: mix(rows_of_step(self, step)))
        monkeypatch.setattr(ppo, "longest_group_first", lambda *mini, mix=shuffled: mix(by_length(*mini)))
        settings = settings_of(method) | {"batch": 8, "micro_batch": most, "max_steps": 1, "eval_every": 0}
        if method == "ppo":
            settings |= {"ppo_epochs": 1, "mini_batches": 1}
        folder = runs.create(method, made_of(8), run_id=name, **settings)
        gradients = gradients_of(runs, folder)
        # PPO's policy loss is 0 while policy and rollout agree: whitened advantages have no mean
        keys = ("loss/value_avg" if method == "ppo" else "loss", "grad_norm")
        found[name] = gradients, [metric(folder, key)[0][1] for key in keys]
    plain, values = found.pop("plain")
    for gradients, others in found.values():
        close(gradients, plain)
        assert others == pytest.approx(values, rel=1e-6)


def orders(rows: Sequence[Any]) -> Iterator[list[Sequence[Any]]]:
    """Some rows in their order and at once, then in other orders and cut at random."""
    yield [rows]
    for seed in range(4):
        source = random.Random(seed)
        mixed = source.sample(list(rows), len(rows))
        ends = [0, *sorted(source.sample(range(1, len(rows)), 3)), len(rows)]
        yield [mixed[start:end] for start, end in itertools.pairwise(ends)]


def judged(tokenizer: Any) -> list[EncodedThumb]:
    texts = [*GOOD, *BAD]
    return [
        EncodedThumb(str(n), sft_example(tokenizer, [Message("user", f"say {n % 3}")], text, 256), text in GOOD)
        for n, text in enumerate(texts)
    ]


@pytest.mark.parametrize("method", ["sft", "dpo", "kto"])
def test_far_from_the_reference_loss_and_gradient_are_the_same_in_any_order_too(
    policy: Any, tokenizer: Any, method: str
) -> None:
    zero, meters = torch.tensor(0.7, dtype=torch.float64), Meters()
    pairs = [*ranked(tokenizer), *ranked(tokenizer, ("in", "tea"))]
    thumbs = judged(tokenizer)
    reference: Any = {one.id: (-20.0 - n, -15.0 + n) for n, one in enumerate([*pairs, *thumbs])}
    losses: dict[str, tuple[Sequence[Any], Callable[[Sequence[Any]], Tensor]]] = {
        "sft": ([one.example for one in thumbs], lambda part: sft.loss_sum(policy, part, meters)),
        "dpo": (pairs, lambda part: pair_loss(policy, part, reference, DpoRecipe(), meters)[0].sum()),
        "kto": (thumbs, lambda part: thumb_loss(policy, part, reference, zero, KtoRecipe(), meters)[0].sum()),
    }
    assert dpo.POLICY == kto.POLICY == sft.POLICY == "policy"
    rows, loss_of = losses[method]
    wanted: tuple[float, list[Tensor]] | None = None
    for parts in orders(rows):
        for one in policy.parameters("policy"):
            one.grad = None
        total = 0.0
        for part in parts:
            loss = loss_of(part)
            loss.backward()
            total += float(loss.detach())
        gradients = [one.grad.clone() for one in policy.parameters("policy")]
        wanted = wanted or (total, gradients)
        assert total == pytest.approx(wanted[0], rel=1e-10)
        close(gradients, wanted[1])
