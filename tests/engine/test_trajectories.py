"""Twenty steps of SFT, reward model and DPO are those of TRL's trainers, from the same weights and batches.

Both compute in fp32. What differs is the order of sums: padded rows there, packed sequences with a shared prompt here;
logits whole there, in blocks here. Losses then agree to five digits for twenty steps, and that is what is asked; of
gradient lengths four, since a gradient is a sum of terms that cancel.

The trained weights must agree too, each matrix to a thousandth of the way that it went; they do to 2e-6. The room is
for other processors: AdamW divides a gradient by its own size, so that an element whose gradient is nothing but
rounding moves a learning rate either way, and none here is. A wrong rate, decay or scale is off by most of the way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine import batching
from engine.adapters import Adapters
from engine.base_model import load_base
from engine.heads import ScalarHead
from tests.engine.conftest import randomise
from workbench.records import Message
from workbench.rows import PairRow, SftRow

pytest.importorskip("trl")
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(300)]
STEPS, BATCH, RATE = 20, 4, 1e-3
WEIGHTS_NEAR = 1e-3
"""Of the way that a matrix went in twenty steps; see above."""
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Nothing stands behind an answer's end: TRL would train it, and here an answer ends at its end."""
WORDS = ("the hat", "then tea", "an ant in the heat", "that inn", "a tin hat in the den", "ten")


@pytest.fixture
def model(tmp_path: Path, make_base: Any) -> Path:
    """A tiny model whose padding is not its end of turn, since TRL reads masks from ids."""
    folder = tmp_path / "model"
    base = make_base()
    base.tokenizer.chat_template = TEMPLATE
    base.tokenizer.pad_token = "<|endoftext|>"
    base.model.config.pad_token_id = 0
    base.model.set_attn_implementation("sdpa")
    base.model.bfloat16().float()  # the engine rounds weights so: nothing is left to round
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def start(tmp_path: Path, model: Path) -> Path:
    """An adapter that changes something, so that every matrix has a gradient from the first step on."""
    return make_start(model, tmp_path / "start")


def make_start(model: Path, folder: Path, head: Any = None) -> Path:
    adapters = Adapters(load_base(model, quantisation="fp32", device=torch.device("cpu")))
    adapters.add("policy", rank=4, alpha=8, trainable=True)
    randomise(adapters, "policy", 0.05, seed=2)
    adapters.save("policy", folder, head)
    return folder


@pytest.fixture(autouse=True)
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take rows in their order, as the peer is told to."""

    def batches(lengths: Any, batch: int, *_: Any) -> list[list[int]]:
        return [list(range(first, min(first + batch, len(lengths)))) for first in range(0, len(lengths), batch)]

    monkeypatch.setattr(batching, "_batches", batches)
    monkeypatch.setattr(batching.random.Random, "shuffle", lambda *_: None)


def ask(number: int) -> str:
    return f"say {number}" + " in other words" * (number % 3)


def said(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def demonstrations() -> list[SftRow]:
    return [
        SftRow(str(n), str(n), (Message("user", ask(n)),), WORDS[n % 6] + "." * (n % 4)) for n in range(STEPS * BATCH)
    ]


def preferences() -> list[PairRow]:
    return [
        PairRow(str(n), str(n), f"r{n}", "me", (Message("user", ask(n)),), WORDS[n % 6], "zz" * (1 + n % 3))
        for n in range(STEPS * BATCH)
    ]


def recipe(**more: Any) -> dict[str, Any]:
    common = {"batch": BATCH, "micro_batch": 2, "epochs": 1.0, "learning_rate": RATE, "schedule": "constant"}
    return common | {"quantisation": "bf16", "max_length": 256} | more


def peer(trainer_type: Any, config_type: Any, model: Any, tokenizer: Any, rows: Any, folder: Path, **more: Any) -> Any:
    from datasets import Dataset

    config = config_type(
        output_dir=str(folder / "peer"),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_length=256,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        **more,
    )
    trainer = trainer_type(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    return trainer


def logged(trainer: Any, key: str) -> list[float]:
    return [float(one[key]) for one in trainer.state.log_history if key in one]


def tokenizer_of(model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def adapted(model: Path, start: Path, **more: Any) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if more else AutoModelForCausalLM
    return PeftModel.from_pretrained(kind.from_pretrained(model, **more), str(start), is_trainable=True)


def same(ours: list[tuple[int, float]], theirs: list[float], near: float = 1e-5) -> None:
    assert len(theirs) == STEPS
    assert [value for _, value in ours] == pytest.approx(theirs, rel=near, abs=near)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter's file by name, its head among them."""
    from safetensors.torch import load_file

    return load_file(str(folder / "adapter_model.safetensors"))


def same_weights(ours: Path, peers: Any, start: Path, folder: Path) -> None:
    """Our final folder holds the matrices that the peer's trainer ended with, each to a thousandth of its way."""
    peers.model.save_pretrained(str(folder / "trained"))
    found, theirs, before = tensors(ours), tensors(folder / "trained"), tensors(start)
    assert found.keys() == theirs.keys() == before.keys()
    for name, wanted in theirs.items():
        way = float((wanted - before[name]).norm())
        assert way > 1e-3, name
        assert float((found[name] - wanted).norm()) < WEIGHTS_NEAR * way, name


def test_sft_learns_as_trl_does(runs: Any, metric: Any, model: Path, start: Path, tmp_path: Path) -> None:
    from trl import SFTConfig, SFTTrainer

    runs.base = model
    folder = runs.create("sft", demonstrations(), adapter=start, **recipe())
    runs.run(folder)
    rows = [
        {"prompt": said("user", row.prompt[0].content), "completion": said("assistant", row.completion)}
        for row in demonstrations()
    ]
    theirs = peer(
        SFTTrainer, SFTConfig, adapted(model, start), tokenizer_of(model), rows, tmp_path, completion_only_loss=True
    )
    same(metric(folder, "loss"), logged(theirs, "loss"))
    same(metric(folder, "grad_norm"), logged(theirs, "grad_norm"), 1e-4)
    same(metric(folder, "mean_token_accuracy"), logged(theirs, "mean_token_accuracy"))
    assert metric(folder, "loss")[-1][1] < 0.9 * metric(folder, "loss")[0][1]
    same_weights(folder.path / "final", theirs, start, tmp_path)


def pair_rows() -> list[dict[str, Any]]:
    return [
        {
            "prompt": said("user", row.prompt[0].content),
            "chosen": said("assistant", row.chosen),
            "rejected": said("assistant", row.rejected),
        }
        for row in preferences()
    ]


def test_dpo_learns_as_trl_does(runs: Any, metric: Any, model: Path, start: Path, tmp_path: Path) -> None:
    from trl import DPOConfig, DPOTrainer

    runs.base = model
    folder = runs.create("dpo", preferences(), adapter=start, **recipe())
    runs.run(folder)
    theirs = peer(DPOTrainer, DPOConfig, adapted(model, start), tokenizer_of(model), pair_rows(), tmp_path, beta=0.1)
    same(metric(folder, "loss"), logged(theirs, "loss"))
    same(metric(folder, "grad_norm"), logged(theirs, "grad_norm"), 1e-4)
    for key in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        same(metric(folder, key), logged(theirs, key), 1e-4)
    assert metric(folder, "loss")[0][1] == pytest.approx(0.6931472, abs=1e-6)
    assert metric(folder, "loss")[-1][1] < 0.6
    same_weights(folder.path / "final", theirs, start, tmp_path)


def test_the_reward_model_learns_as_trls_does(runs: Any, metric: Any, model: Path, tmp_path: Path) -> None:
    from trl import RewardConfig, RewardTrainer

    start = make_start(model, tmp_path / "start", ScalarHead(64, seed=5).weight)
    runs.base = model
    settings = recipe(head_learning_rate=RATE, center_coefficient=0.01)
    folder = runs.create("reward", preferences(), adapter=start, **settings)
    runs.run(folder)
    theirs = peer(
        RewardTrainer,
        RewardConfig,
        adapted(model, start, num_labels=1),
        tokenizer_of(model),
        pair_rows(),
        tmp_path,
        center_rewards_coefficient=0.01,
    )
    same(metric(folder, "loss"), logged(theirs, "loss"))
    same(metric(folder, "margin"), logged(theirs, "margin"), 1e-4)
    same(metric(folder, "accuracy"), logged(theirs, "accuracy"))
    same(metric(folder, "grad_norm"), logged(theirs, "grad_norm"), 1e-4)
    assert metric(folder, "loss")[-1][1] < 0.6
    same_weights(folder.path / "final", theirs, start, tmp_path)
