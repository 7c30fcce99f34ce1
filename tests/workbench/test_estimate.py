import dataclasses
import itertools
import json

import pytest

from workbench import estimate as estimating
from workbench.errors import UserError
from workbench.estimate import Pace, estimate, foretold_pace, memory_available, total_steps
from workbench.model_shape import Shape, read_shape
from workbench.recipes import DpoRecipe, PpoRecipe, RewardRecipe, SftRecipe
from workbench.records import Message
from workbench.rows import PairRow, PromptRow, SftRow

SMOL = Shape(134_515_008, 576, 30, 1536, 9, 3, 64, 49_152, 8192)
SEVEN = Shape(8_030_261_248, 4096, 32, 14_336, 32, 8, 128, 128_256, 131_072)
GB = 1e9


def sft_rows(count, characters=400):
    return [SftRow(str(n), str(n), (Message("user", "x" * characters),), "y" * characters) for n in range(count)]


def pair_rows(count):
    prompt = (Message("user", "x" * 400),)
    return [PairRow(str(n), str(n), "r", "me", prompt, "y" * 400, "z" * 400) for n in range(count)]


def prompt_rows(count):
    return [PromptRow(str(n), (Message("user", "x" * 200),)) for n in range(count)]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_the_parameters_of_a_model_and_its_adapter_are_counted_right():
    # SmolLM2-135M: 30 x (2 x 576 x 576 + 2 x 576 x 192 + 3 x 576 x 1536) in the blocks
    assert SMOL.linear_parameters == 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536) == 106_168_320
    assert SMOL.adapter_parameters(16) == 4_884_480  # what peft reports for all-linear, r=16
    assert SEVEN.adapter_parameters(16) == 41_943_040


def test_a_135_m_model_in_bf16_trains_in_about_what_was_measured():
    cost = estimate("sft", SftRecipe(quantisation="bf16", micro_batch=4), SMOL, sft_rows(71, 160))
    assert 1.0 * GB < cost.memory_bytes < 2.5 * GB
    assert cost.memory_available > 0
    assert len(cost.lines) >= 4


def test_nf4_gradient_checkpointing_and_small_micro_batches_save_memory():
    rows = sft_rows(50, 300)  # 174 tokens: two at once, since a CPU's micro-batch has at most 512
    plain = SftRecipe(quantisation="bf16", micro_batch=4)
    needed = estimate("sft", plain, SEVEN, rows).memory_bytes
    for change in ({"quantisation": "nf4"}, {"gradient_checkpointing": True}, {"micro_batch": 1}, {"lora_rank": 4}):
        assert estimate("sft", dataclasses.replace(plain, **change), SEVEN, rows).memory_bytes < needed, change


def test_an_8_b_models_ppo_fits_one_gpu_of_24_gb_on_a_shared_nf4_base():
    recipe = PpoRecipe(quantisation="nf4", gradient_checkpointing=True, micro_batch=2, batch=16, max_length=512)
    cost = estimate("ppo", recipe, SEVEN, prompt_rows(100))
    assert cost.memory_bytes < 24 * GB
    assert any("key-value cache" in line for line in cost.lines)


def test_pairs_need_twice_the_sequences():
    rows = pair_rows(40)
    reward = estimate("reward", RewardRecipe(), SMOL, rows)
    assert estimate("dpo", DpoRecipe(), SMOL, rows).tokens == reward.tokens
    assert estimate("reward", RewardRecipe(), SMOL, rows, demonstrations=50).tokens > reward.tokens


@pytest.mark.parametrize(
    ("recipe", "rows", "steps"),
    [
        (SftRecipe(epochs=3, batch=8), 71, 27),
        (SftRecipe(epochs=0.5, batch=8), 64, 4),
        (SftRecipe(epochs=3, batch=8, max_steps=5), 71, 5),
        (SftRecipe(), 0, 0),
        (PpoRecipe(episodes=512, batch=32), 10, 16),
        (PpoRecipe(episodes=33, batch=32), 10, 2),
    ],
)
def test_steps_are_counted_as_the_methods_do(recipe, rows, steps):
    assert total_steps(recipe, rows) == steps


def test_the_steps_of_a_reward_model_are_of_rankings_and_its_tokens_of_pairs():
    prompt = (Message("user", "x" * 400),)
    rows = [PairRow(f"{n}", f"{n // 6}", f"r{n // 6}", "me", prompt, "y" * 400, "z" * 400) for n in range(240)]
    reward, dpo = estimate("reward", RewardRecipe(), SMOL, rows), estimate("dpo", DpoRecipe(), SMOL, rows)
    assert (reward.total_steps, dpo.total_steps) == (5, 30)  # 40 rankings and 240 pairs, 8 a step
    assert reward.tokens == dpo.tokens


def test_the_responses_of_a_ranking_are_passed_once_whatever_the_number_of_its_pairs():
    """Rankings of nine responses and of two: 37 pairs, and 11 responses of 44 tokens each."""
    prompt = (Message("user", "x" * 40),)
    rows = [
        PairRow(f"{name}:{a}:{b}", name, name, "me", prompt, f"{a}" * 40, f"{b}" * 40)
        for name, count in (("nine", 9), ("two", 2))
        for a, b in itertools.combinations(range(count), 2)
    ]
    cost = estimate("reward", RewardRecipe(batch=1), SMOL, rows)
    assert (len(rows), cost.total_steps) == (37, 2)
    assert cost.tokens == pytest.approx(11 * 44, abs=1)
    assert cost.choice.recipe.micro_batch == 5  # the ranking of nine at once
    assert cost.choice.reason.startswith("micro-batches of 9 of the 9 responses")


def test_time_grows_with_rows_epochs_and_model():
    recipe = SftRecipe(epochs=1.0)
    few, many = (estimate("sft", recipe, SMOL, sft_rows(n)).seconds for n in (20, 200))
    assert many > 5 * few - 5 * estimating.START_S
    assert estimate("sft", recipe, SEVEN, sft_rows(20)).seconds > 10 * few
    assert estimate("sft", recipe, SMOL, []).seconds == estimating.START_S
    held = estimate("sft", recipe, SMOL, sft_rows(20), heldout=100).seconds
    assert held > few


def test_measured_paces_correct_the_time_and_the_same_method_counts_first():
    recipe, rows = SftRecipe(), sft_rows(40)
    foretold = foretold_pace("sft", recipe, SMOL)
    rough = estimate("sft", recipe, SMOL, rows)
    assert rough.tokens_per_s == pytest.approx(foretold)
    paces = [Pace("sft", 200.0, 100.0), Pace("sft", 400.0, 100.0), Pace("sft", 300.0, 100.0), Pace("dpo", 1.0, 100.0)]
    assert estimate("sft", recipe, SMOL, rows, paces=paces).tokens_per_s == pytest.approx(3 * foretold)
    other = estimate("sft", recipe, SMOL, rows, paces=paces[3:])
    assert other.tokens_per_s == pytest.approx(0.01 * foretold)
    assert other.measured
    assert not rough.measured


def test_ppo_costs_more_a_token_than_sft():
    assert foretold_pace("ppo", PpoRecipe(), SMOL) < foretold_pace("sft", SftRecipe(), SMOL) / 5
    checkpointed = dataclasses.replace(SftRecipe(), gradient_checkpointing=True)
    assert foretold_pace("sft", checkpointed, SMOL) < foretold_pace("sft", SftRecipe(), SMOL)


def test_a_model_folder_that_cannot_be_read_is_a_user_error(tmp_path):
    for content in ("{", "{}", "[]", '{"hidden_size": "wide", "num_attention_heads": 1}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match="cannot be read"):
            read_shape(tmp_path)


def test_a_multimodal_config_is_read_by_its_text_part(tmp_path):
    inner = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 10}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": inner}))
    shape = read_shape(tmp_path)
    assert (shape.hidden, shape.intermediate, shape.kv_heads, shape.head_dim, shape.context) == (8, 32, 2, 4, 0)


def test_the_gpus_free_memory_is_asked_where_there_is_one(monkeypatch):
    monkeypatch.setattr(estimating, "has_gpu", lambda: True)
    answers = iter([20_000 * 1024**2, 0])
    monkeypatch.setattr(estimating, "gpu_free_bytes", lambda: next(answers))
    assert memory_available("auto") == 20_000 * 1024 * 1024
    assert memory_available("cuda") > 0  # what the machine has, when the GPU's cannot be told
    assert memory_available("cpu") > 0
    assert foretold_pace("sft", SftRecipe(), SMOL) > 10 * foretold_pace("sft", SftRecipe(device="cpu"), SMOL)


def test_a_cpu_that_multiplies_bf16_is_twice_as_fast(monkeypatch):
    plain = foretold_pace("sft", SftRecipe(device="cpu"), SMOL)
    monkeypatch.setattr(estimating, "cpu_has_bf16", lambda: True)
    assert foretold_pace("sft", SftRecipe(device="cpu"), SMOL) == 2 * plain


def test_long_scripts_count_more_tokens():
    assert estimating.tokens_of("x" * 400) == 100 + estimating.TEMPLATE_TOKENS
    assert estimating.tokens_of("語" * 400) == 200 + estimating.TEMPLATE_TOKENS


def test_a_preference_loss_without_a_reference_saves_its_pass():
    with_one, without = DpoRecipe(epochs=1.0), DpoRecipe(epochs=1.0, loss_type="orpo")
    # forward, backward and the head: 4; the reference is 2 more
    assert foretold_pace("dpo", without, SMOL) == pytest.approx(1.5 * foretold_pace("dpo", with_one, SMOL))


def test_advantages_within_a_group_save_the_value_models_memory_time_and_disk():
    gae = PpoRecipe(quantisation="bf16")
    grpo = dataclasses.replace(gae, advantage="grpo", responses_per_prompt=4)
    costly, cheap = (estimate("ppo", one, SMOL, prompt_rows(64)) for one in (gae, grpo))
    assert cheap.checkpoint_bytes * 2 == costly.checkpoint_bytes
    assert costly.memory_bytes - cheap.memory_bytes == pytest.approx(SMOL.adapter_parameters(16) * 16, abs=2)
    assert cheap.seconds < costly.seconds
