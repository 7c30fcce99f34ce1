"""The same piece of work through TRL, in this process. Prints one JSON line. PPO wants TRL 1.12.0, its last.

    python tests/benchmarks/peer.py WORK.json MODEL_DIR --quant bf16|nf4 --setting best|default

``default`` is TRL as it comes: gradient checkpointing on. ``best`` switches that off and computes DPO's reference
beforehand. ``full-value`` (PPO) trains the whole value model, as TRL's example does, instead of a LoRA of it. All
compute in bf16 where the machine multiplies bf16 itself and in fp32 where it would emulate it, as Tastemaker does.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from measure import Meter, has_bf16, means, prepare
from work import Work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--quant", choices=("bf16", "nf4"), default="bf16")
    parser.add_argument("--setting", choices=("best", "default", "full-value"), default="best")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    prepare(options.threads)
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(options.threads)
    work = Work.read(options.work)
    with tempfile.TemporaryDirectory() as folder:
        {"sft": sft, "reward": reward, "dpo": dpo, "ppo": ppo, "generate": generate}[work.method](work, options, folder)


def sft(work: Work, options: argparse.Namespace, folder: str) -> None:
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        **common(work, options, folder),
        max_length=work.max_length,
        completion_only_loss=True,
        train_sampling_strategy="sequential",
        model_init_kwargs={"dtype": dtype()},
    )
    trainer_run(SFTTrainer, config, work, options)


def reward(work: Work, options: argparse.Namespace, folder: str) -> None:
    from trl import RewardConfig, RewardTrainer

    config = RewardConfig(
        **common(work, options, folder),
        max_length=work.max_length,
        train_sampling_strategy="sequential",
        model_init_kwargs={"dtype": dtype()},
    )
    trainer_run(RewardTrainer, config, work, options, task="SEQ_CLS", modules_to_save=["score"])


def dpo(work: Work, options: argparse.Namespace, folder: str) -> None:
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(
        **common(work, options, folder),
        max_length=work.max_length,
        beta=work.beta,
        precompute_ref_log_probs=options.setting == "best",
        train_sampling_strategy="sequential",
        model_init_kwargs={"dtype": dtype()},
    )
    trainer_run(DPOTrainer, config, work, options)


def trainer_run(
    trainer_type: Any, config: Any, work: Work, options: argparse.Namespace, *, task: str = "CAUSAL_LM", **lora: Any
) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer

    meter = Meter()
    rows = [{key: value for key, value in row.items() if key != "tokens"} for row in work.rows]
    began = time.perf_counter()
    trainer = trainer_type(
        model=str(options.model),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(options.model),
        quantization_config=nf4(options.quant),
        peft_config=lora_config(task, **lora),
        callbacks=[watcher(meter)],
    )
    if task == "SEQ_CLS" and options.quant == "nf4" and not has_bf16():
        # TRL casts what trains on a 4-bit base to bf16, and then meets its own head with states in fp32.
        trainer.model.base_model.model.score.float()
    setup = time.perf_counter() - began
    trainer.train()
    logs = [one for one in trainer.state.log_history if "loss" in one]
    tokens = sum(row["tokens"] for row in work.rows)
    meter.report(samples=len(rows), tokens=tokens, setup_s=setup, metrics=means(logs, by_tokens=work.method == "sft"))


def ppo(work: Work, options: argparse.Namespace, folder: str) -> None:
    """Policy = model + LoRA, reference = the same without it; reward and value are two more models, as TRL wants it."""
    import torch
    import trl.experimental.ppo.ppo_trainer as module
    from datasets import Dataset
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
    tokenizer.pad_token_id = 0  # it must differ from EOS: TRL masks every pad id
    encoded = [
        tokenizer.apply_chat_template(row["prompt"], tokenize=True, add_generation_prompt=True, return_dict=True)
        for row in work.rows
    ]
    prompts = [{"input_ids": one["input_ids"]} for one in encoded]
    drawn = 0
    truncate = module.truncate_response

    def counting(stop: int, pad: int, responses: Any) -> Any:
        nonlocal drawn
        kept = truncate(stop, pad, responses)
        drawn += int((kept != pad).sum())
        return kept

    module.truncate_response = counting
    kinds: dict[str, Any] = {"dtype": getattr(torch, dtype()), "quantization_config": nf4(options.quant)}
    policy = AutoModelForCausalLM.from_pretrained(options.model, **kinds)

    def scalar() -> Any:
        torch.manual_seed(0)
        made = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=1, **kinds)
        made.config.pad_token_id = tokenizer.pad_token_id
        return made

    judge, value = scalar(), scalar()
    judge.requires_grad_(False)
    if options.setting != "full-value":
        value = get_peft_model(value, lora_config("SEQ_CLS", modules_to_save=["score"]))
    if options.quant == "nf4":  # TRL's own way to a 4-bit policy fails; a ready one passes
        policy = get_peft_model(policy, lora_config("CAUSAL_LM"))
    settings = common(work, options, folder)
    settings.pop("max_steps")
    config = PPOConfig(
        **settings,
        total_episodes=len(prompts),
        num_mini_batches=work.mini_batches,
        num_ppo_epochs=work.ppo_epochs,
        response_length=work.response_length,
        local_rollout_forward_batch_size=work.batch,
        temperature=work.temperature,
        stop_token="eos",
        missing_eos_penalty=1.0,
        kl_coef=work.kl_coefficient,
        num_sample_generations=0,
    )
    for model in (policy, judge, value):
        read_in(model)
    meter = Meter()
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=judge,
        value_model=value,
        peft_config=None if options.quant == "nf4" else lora_config("CAUSAL_LM"),
        train_dataset=Dataset.from_list(prompts),
        eval_dataset=Dataset.from_list(prompts[:8]),
        callbacks=[watcher(meter)],
    )
    trainer.train()
    tokens = sum(len(one["input_ids"]) for one in prompts) + drawn
    meter.report(
        samples=len(prompts),
        tokens=tokens,
        metrics=means([log for log in trainer.state.log_history if "objective/kl" in log]),
    )


def generate(work: Work, options: argparse.Namespace, _: str) -> None:
    """transformers' own ``generate``, batched, from the whole distribution."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
    kinds: dict[str, Any] = {"dtype": getattr(torch, dtype()), "quantization_config": nf4(options.quant)}
    model = AutoModelForCausalLM.from_pretrained(options.model, **kinds).eval()
    model = model.to("cuda") if torch.cuda.is_available() and options.quant != "nf4" else model
    texts = [
        tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True) for row in work.rows
    ]
    inputs = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt").to(model.device)
    draw = {"do_sample": True, "temperature": work.temperature, "top_k": 0, "top_p": 1.0}
    model.generate(**{key: value[:1] for key, value in inputs.items()}, **draw, max_new_tokens=4)
    torch.manual_seed(work.seed)
    meter = Meter()
    meter.start()
    drawn = model.generate(**inputs, **draw, max_new_tokens=work.response_length, num_return_sequences=work.responses)[
        :, inputs["input_ids"].shape[1] :
    ]
    meter.step()
    meter.stop()
    ended = (drawn == tokenizer.eos_token_id).int()
    lengths = torch.where(ended.any(1), ended.argmax(1) + 1, drawn.shape[1])
    tokens = int(lengths.sum())
    meter.report(samples=len(lengths), tokens=tokens, metrics={"mean_length": tokens / len(lengths)})


def common(work: Work, options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """What every config is given."""
    import torch

    return {
        "output_dir": folder,
        "max_steps": work.steps,
        "per_device_train_batch_size": work.batch,
        "learning_rate": work.learning_rate,
        "gradient_checkpointing": options.setting == "default",
        "report_to": [],
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": work.seed,
        "data_seed": work.seed,
        "bf16": has_bf16(),
        "use_cpu": not torch.cuda.is_available(),
        "disable_tqdm": True,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch",
        "dataloader_pin_memory": False,
    }


def dtype() -> str:
    return "bfloat16" if has_bf16() else "float32"


def nf4(quant: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if quant != "nf4":
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype()),
    )


def read_in(model: Any) -> None:
    """Touch every page of the weights, which may be mapped from their file: they count as the model, as ours do."""
    for one in model.parameters():
        one.detach().reshape(-1)[:: 4096 // one.element_size()].sum()


def lora_config(task: str, **more: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type=task, **more)


def watcher(meter: Meter) -> Any:
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def on_train_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
            if model is not None:
                read_in(model)
            meter.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.step()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            meter.stop()

    return Watcher()


if __name__ == "__main__":
    main()
