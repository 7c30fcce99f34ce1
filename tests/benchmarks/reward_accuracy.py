"""A reward model of 200 real pairs scored on the 100 others: Tastemaker's, and TRL's on the same split and settings.

    python tests/benchmarks/reward_accuracy.py MODEL_DIR DATA.json                ours
    PYTHON_WITH_TRL tests/benchmarks/reward_accuracy.py MODEL_DIR DATA.json --trl TRL's RewardTrainer

DATA.json is a LLaMA-Factory ShareGPT preference file of 300 rows (dpo_en_demo.json). Both train LoRA (rank 16,
alpha 32, all linear layers) on bf16 weights for one epoch, batch 8, learning rate 1e-4, cosine, and print one JSON
line with the accuracy on the same 100 pairs and its 95 % Wilson interval. So that a CPU does it in minutes, and since
TRL drops pairs longer than max_length, both get the same shortened rows: the last turn's last 40 words, and the first
60 words of each response. TRL computes in bf16 where the CPU has it, else in float32, as ours does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from measure import has_bf16

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
SETTINGS = {"batch": 8, "micro_batch": 4, "max_length": 256, "learning_rate": 1e-4, "epochs": 1}
TRAIN_PAIRS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--trl", action="store_true")
    options = parser.parse_args()
    started = time.monotonic()
    result = (trl if options.trl else ours)(options.model.resolve(), options.data)
    print(json.dumps(result | {"seconds": round(time.monotonic() - started, 1), "settings": SETTINGS}))


def rows_of(data: Path) -> list[tuple[str, str, str]]:
    """Prompt, chosen and rejected of every row, shortened alike."""
    return [
        (
            " ".join(row["conversations"][-1]["value"].split()[-40:]),
            " ".join(row["chosen"]["value"].split()[:60]),
            " ".join(row["rejected"]["value"].split()[:60]),
        )
        for row in json.loads(data.read_text())
    ]


def ours(model: Path, data: Path) -> dict[str, Any]:
    import dataclasses
    import tempfile

    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from workbench import supervisor
    from workbench.ids import new_id
    from workbench.protocol import ModelRef, RunSpec
    from workbench.recipes import RewardRecipe
    from workbench.records import Message
    from workbench.rows import PairRow
    from workbench.run_folder import RunFolder, join_segments

    pairs = [
        PairRow(str(number), str(number), "", "", (Message("user", prompt),), chosen, rejected)
        for number, (prompt, chosen, rejected) in enumerate(rows_of(data))
    ]
    recipe = RewardRecipe(quantisation="bf16", eval_every=0, save_every=0, **SETTINGS)  # type: ignore[arg-type]
    spec = RunSpec(
        run_id=new_id(),
        method="reward",
        name="reward accuracy",
        recipe=dataclasses.asdict(recipe),
        model=ModelRef(model_id="demo", name="demo", base=str(model)),
    )
    with tempfile.TemporaryDirectory() as runs:
        folder = RunFolder.create(Path(runs), spec, pairs[:TRAIN_PAIRS], pairs[TRAIN_PAIRS:])
        supervisor.launch(folder.path)
        while folder.state().state in ("queued", "running", "stopping"):
            time.sleep(0.5)
        values: dict[str, float] = {}
        for event in join_segments(folder.events()):
            values |= event.values
        if folder.state().state != "done":
            raise SystemExit(folder.log_tail())
    return {
        "library": "tastemaker",
        "pairs": len(pairs) - TRAIN_PAIRS,
        "accuracy": values["eval_accuracy"],
        "interval": [values["eval_accuracy_low"], values["eval_accuracy_high"]],
        "eval_loss": values["eval_loss"],
        "calibration_error": values["eval_ece"],
    }


def trl(model: Path, data: Path) -> dict[str, Any]:
    import torch
    import trl as library
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    bf16 = has_bf16()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    rows = [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for prompt, chosen, rejected in rows_of(data)
    ]
    tokenizer = AutoTokenizer.from_pretrained(model)
    config = RewardConfig(
        output_dir="/tmp/trl-reward-accuracy",
        num_train_epochs=SETTINGS["epochs"],
        per_device_train_batch_size=SETTINGS["micro_batch"],
        gradient_accumulation_steps=SETTINGS["batch"] // SETTINGS["micro_batch"],
        learning_rate=SETTINGS["learning_rate"],
        max_length=SETTINGS["max_length"],
        lr_scheduler_type="cosine",
        center_rewards_coefficient=0.01,
        gradient_checkpointing=False,
        per_device_eval_batch_size=4,
        model_init_kwargs={"dtype": "bfloat16" if bf16 else "float32"},
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        save_strategy="no",
        seed=0,
    )
    lora = LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="SEQ_CLS",
        modules_to_save=["score"],
    )
    trainer = RewardTrainer(
        model=str(model),
        args=config,
        train_dataset=Dataset.from_list(rows[:TRAIN_PAIRS]),
        eval_dataset=Dataset.from_list(rows[TRAIN_PAIRS:]),
        processing_class=tokenizer,
        peft_config=lora,
    )
    trainer.train()
    values = trainer.evaluate()
    pairs = len(trainer.eval_dataset)
    accuracy = values["eval_accuracy"]
    return {
        "library": f"trl {library.__version__}",
        "pairs": pairs,
        "accuracy": accuracy,
        "interval": list(interval(accuracy, pairs)),
        "eval_loss": values["eval_loss"],
    }


def interval(share: float, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval; here again so that TRL's environment needs nothing of ours."""
    shrink = 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / shrink
    half = z * (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5 / shrink
    return middle - half, middle + half


if __name__ == "__main__":
    main()
