from __future__ import annotations

import math

import pytest
import torch

from engine.logps import token_logps
from workbench.records import Message
from workbench.rows import PairRow, SftRow

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_log_probabilities_accumulate_in_fp32():
    source = torch.Generator().manual_seed(0)
    hidden = torch.randn(700, 64, generator=source).bfloat16().cuda().requires_grad_()
    weight = torch.randn(3000, 64, generator=source).bfloat16().cuda()
    targets = torch.randint(3000, (700,), generator=source).cuda()
    found, _ = token_logps(hidden, targets, weight)
    table = torch.log_softmax(hidden.detach().double() @ weight.double().T, 1)
    torch.testing.assert_close(found.double(), table.gather(1, targets[:, None]).squeeze(1), atol=1e-4, rtol=1e-5)
    found.sum().backward()
    exact = weight.double()[targets] - table.exp() @ weight.double()
    torch.testing.assert_close(hidden.grad.double(), exact, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("quantisation", ["bf16", "nf4"])
def test_dpo_begins_at_log_2_and_learns(runs, metric, quantisation):
    rows = [
        PairRow(f"p{i}", f"g{i}", f"k{i}", "r", (Message("user", f"say {i}"),), "the hat " * (1 + i % 3), "zz qq")
        for i in range(12)
    ]
    folder = runs.create(
        "dpo", rows, device="cuda", quantisation=quantisation, epochs=20, max_steps=20, batch=6, learning_rate=5e-3
    )
    runs.run(folder)
    losses = [value for _, value in metric(folder, "loss")]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[-1] < losses[0]


def test_sft_learns_with_and_without_checkpointing(runs, metric):
    rows = [SftRow(f"r{i}", f"g{i}", (Message("user", f"say {i}"),), "the hat") for i in range(8)]
    for index, on in enumerate((False, True)):
        folder = runs.create(
            "sft",
            rows,
            run_id=f"run-{index}",
            device="cuda",
            epochs=20,
            max_steps=15,
            learning_rate=5e-3,
            gradient_checkpointing=on,
        )
        runs.run(folder)
        losses = [value for _, value in metric(folder, "loss")]
        assert losses[-1] < 0.7 * losses[0]
