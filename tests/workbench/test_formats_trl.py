"""What we export, TRL trains on, unchanged."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest

from workbench.formats.exporter import export_file
from workbench.formats.preferences import shared_length
from workbench.ids import new_id
from workbench.project import Project
from workbench.records import Demonstration, Message, Prompt, Ranking, Rater, Response

datasets = pytest.importorskip("datasets")
trl = pytest.importorskip("trl")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

pytestmark = pytest.mark.filterwarnings("default")
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def filled(project: Project) -> Project:
    """Single turns and dialogues, tags and none, ties and tiers, awkward characters."""
    store = project.store
    store.save_rater(Rater("ann", "Ann")).result()
    for number in range(4):
        turns = [Message("user", f"Question {number}?\r\n\u2028 \N{GRINNING FACE}")]
        if number % 2:
            turns = [
                Message("system", "Be brief."),
                *turns,
                Message("assistant", "An answer."),
                Message("user", "And now?"),
            ]
        prompt = Prompt(new_id(), tuple(turns), ("even",) if number % 2 == 0 else ())
        own = [Response(new_id(), prompt.id, text) for text in ("best \u05e9", "fine", "good", "worst")]
        store.add_prompts([prompt]).result()
        store.add_responses(own).result()
        tiers = ((own[0].id,), (own[1].id, own[2].id), (own[3].id,))
        store.save_ranking(Ranking(new_id(), prompt.id, "ann", tiers)).result()
        store.save_demonstration(Demonstration(new_id(), prompt.id, "A demonstration.", "ann", "final")).result()
    return project


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Bytes as tokens, with a small chat template."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: number for number, sign in enumerate(["<pad>", "</s>", *alphabet])}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>")
    made.chat_template = TEMPLATE
    return made


def config(tokenizer: Any, **more: Any) -> Any:
    return transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **more,
    )


def one_step(tmp_path: Path) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path / "out"),
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "logging_steps": 1,
    }


def load(project: Project, tmp_path: Path, what: str, format: str) -> Any:
    out = tmp_path / f"{what}-{format}.jsonl"
    report = export_file(project, out, what=what, format=format)
    found = datasets.load_dataset("json", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(found) == report.rows
    return found


def finite_loss(trainer: Any) -> float:
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses
    assert all(math.isfinite(loss) for loss in losses)
    return float(losses[0])


@pytest.mark.parametrize("format", ["trl", "plain"])
def test_preferences_train_one_step_of_dpo(filled: Project, tmp_path: Path, tokenizer: Any, format: str) -> None:
    rows = load(filled, tmp_path, "preferences", format)
    assert rows.column_names[:3] == ["prompt", "chosen", "rejected"]
    model = transformers.LlamaForCausalLM(config(tokenizer))
    trainer = trl.DPOTrainer(
        model=model,
        ref_model=copy.deepcopy(model),
        args=trl.DPOConfig(**one_step(tmp_path)),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    assert finite_loss(trainer) == pytest.approx(math.log(2), abs=1e-3)  # the policy is still its reference


@pytest.mark.parametrize("format", ["trl", "plain"])
def test_preferences_train_one_step_of_a_reward_model(
    filled: Project, tmp_path: Path, tokenizer: Any, format: str
) -> None:
    trainer = trl.RewardTrainer(
        model=transformers.LlamaForSequenceClassification(config(tokenizer, num_labels=1)),
        args=trl.RewardConfig(**one_step(tmp_path)),
        train_dataset=load(filled, tmp_path, "preferences", format),
        processing_class=tokenizer,
    )
    finite_loss(trainer)


@pytest.mark.parametrize("format", ["messages", "prompt-completion", "prompt-completion-plain"])
def test_demonstrations_train_one_step_of_sft(filled: Project, tmp_path: Path, tokenizer: Any, format: str) -> None:
    trainer = trl.SFTTrainer(
        model=transformers.LlamaForCausalLM(config(tokenizer)),
        args=trl.SFTConfig(**one_step(tmp_path)),
        train_dataset=load(filled, tmp_path, "demonstrations", format),
        processing_class=tokenizer,
    )
    finite_loss(trainer)


def test_the_implicit_prompt_is_trls() -> None:
    texts = ["The sky is blue.", "The sky is green.", "The sky", "The skyline", "The  sky is", "x"]
    for chosen in texts:
        for rejected in texts:
            if chosen[0] == rejected[0]:
                cut = shared_length(chosen, rejected)
                expected = trl.data_utils.extract_prompt({"chosen": chosen, "rejected": rejected})
                assert {"prompt": chosen[:cut], "chosen": chosen[cut:], "rejected": rejected[cut:]} == expected
