"""A decoder layer in one autograd step equals transformers' modules, in every family that runs on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config, Qwen3Config
from transformers.models.smollm3 import SmolLM3Config

from engine import decoder_layer
from engine.adapters import Adapters
from engine.base_model import prepare
from engine.layer_parts import Norm
from engine.masking import Example
from engine.packing import lay_out
from tests.engine.conftest import build_tokenizer, norms_in_fp64, randomise
from workbench.model_shape import has_plain_layers

CPU, F64 = torch.device("cpu"), torch.float64
SIZES: dict[str, Any] = {
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": LlamaConfig(**SIZES),
    "llama-with-biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    "smollm3": SmolLM3Config(**SIZES, no_rope_layers=[1, 1, 1, 0]),
}
PROMPT = (5, 6, 7, 8)
ROWS = [Example.plain((*PROMPT, *answer), len(PROMPT)) for answer in ((11, 12, 2), (14, 2), (15, 16, 17, 18, 2))] + [
    Example.plain((9, 10, 13, 2), 2)
]


def adapters_of(config: PretrainedConfig, dtype: torch.dtype = F64) -> Adapters:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if "bias" in name or "norm" in name:
                torch.nn.init.normal_(parameter, 1.0, 0.3)
    model = model.to(dtype)
    if dtype == F64:
        norms_in_fp64(model)
    found = Adapters(prepare(model, build_tokenizer(), CPU, dtype))
    found.add("policy", rank=3, alpha=6, trainable=True)
    randomise(found, "policy", 0.2, seed=3)
    return found


def states_and_gradients(
    adapters: Adapters, *, packed: bool, spared: bool = True
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """States that are read, and the gradients of all masters; ``spared`` what the last layer need not pass."""
    for parameter in adapters.parameters("policy"):
        parameter.grad = None
    layout = lay_out(ROWS, CPU, packed=packed)
    with adapters.use("policy"):
        states = adapters.flat(layout, layout.through) if spared else adapters.flat(layout)[layout.through]
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(5), dtype=F64)
    (states * weights).sum().backward()
    gradients = [parameter.grad for parameter in adapters.parameters("policy")]
    assert all(one is not None and one.abs().max() > 0 for one in gradients)
    return states.detach(), [one for one in gradients if one is not None]


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_states_and_every_gradient_equal_transformers_own(family: str) -> None:
    adapters = adapters_of(FAMILIES[family])
    assert adapters.base.packs
    packed, packed_grads = states_and_gradients(adapters, packed=True)
    padded, padded_grads = states_and_gradients(adapters, packed=False)
    torch.testing.assert_close(packed, padded, atol=1e-10, rtol=1e-10)
    for one, other in zip(packed_grads, padded_grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)  # LoRA masters are fp32


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama-with-biases", "qwen3"])
def test_tokens_that_nobody_reads_are_spared_the_last_mlp_and_nothing_changes(
    family: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = adapters_of(FAMILIES[family])
    adapters.checkpointing(checkpointing)
    whole, whole_grads = states_and_gradients(adapters, packed=True, spared=False)
    passed: list[int] = []
    mlp_forward = decoder_layer.mlp_forward

    def counted(mlp: Any, rows: torch.Tensor, *more: Any) -> Any:
        passed.append(len(rows))
        return mlp_forward(mlp, rows, *more)

    monkeypatch.setattr(decoder_layer, "mlp_forward", counted)
    spared, spared_grads = states_and_gradients(adapters, packed=True)
    tokens = len(PROMPT) + 3 + 2 + 5 + 4  # a shared prompt, its three answers, and a row of its own
    read = tokens - 3 - 1  # all but what lies before each prompt's last token
    assert passed[:4] == [tokens, tokens, tokens, read]
    assert passed[4:] == ([read, tokens, tokens, tokens] if checkpointing else [])
    torch.testing.assert_close(spared, whole, atol=1e-12, rtol=1e-12)
    for one, other in zip(spared_grads, whole_grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6 * other.abs().max().item(), rtol=0)


def test_half_precision_rounds_no_worse_than_transformers() -> None:
    exact, exact_grads = states_and_gradients(adapters_of(FAMILIES["llama"]), packed=True)
    errors, grad_errors = [], []
    for packed in (True, False):
        half = adapters_of(FAMILIES["llama"], torch.bfloat16)
        states, grads = states_and_gradients(half, packed=packed)
        errors.append(float((states - exact).norm() / exact.norm()))
        apart = sum(float((one - other).square().sum()) for one, other in zip(grads, exact_grads, strict=True))
        grad_errors.append((apart / sum(float(one.square().sum()) for one in exact_grads)) ** 0.5)
    assert errors[0] < 1.2 * errors[1] < 0.1
    assert grad_errors[0] < 1.2 * grad_errors[1] < 0.4


def test_checkpointing_changes_no_bit_and_keeps_one_tensor_a_layer() -> None:
    adapters = adapters_of(FAMILIES["qwen3"])
    _, plain = states_and_gradients(adapters, packed=True)
    kept_plain = kept_bytes(adapters)
    adapters.checkpointing(True)
    _, checkpointed = states_and_gradients(adapters, packed=True)
    assert all(torch.equal(one, other) for one, other in zip(plain, checkpointed, strict=True))
    assert kept_bytes(adapters) < 0.25 * kept_plain


def kept_bytes(adapters: Adapters) -> int:
    """What a pass keeps for its backward pass, weights left out."""
    sizes: dict[int, int] = {}
    weights = {one.data_ptr() for one in adapters.base.model.parameters()}

    def count(one: torch.Tensor) -> torch.Tensor:
        if one.data_ptr() not in weights:
            sizes[one.data_ptr()] = one.numel() * one.element_size()
        return one

    layout = lay_out(ROWS, CPU, packed=True)
    with adapters.use("policy"), torch.autograd.graph.saved_tensors_hooks(count, lambda one: one):
        adapters.flat(layout).sum()
    return sum(sizes.values())


def test_an_adapter_of_some_layers_runs_beside_one_of_all(tmp_path: Any) -> None:
    """Layers without LoRA pass as they are: an imported adapter may cover query and value alone."""
    import json

    from safetensors.torch import load_file, save_file

    adapters = adapters_of(FAMILIES["llama"])
    adapters.save("policy", tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    some = {key: value for key, value in weights.items() if "q_proj" in key or "v_proj" in key}
    save_file(some, tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj", "v_proj"]}))
    adapters.load("some", tmp_path, trainable=True)
    found = []
    for packed in (True, False):
        layout = lay_out(ROWS, CPU, packed=packed)
        with adapters.use("some"):
            states = adapters.flat(layout)[layout.through]
        found.append((states, torch.autograd.grad(states.square().sum(), adapters.parameters("some"))))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-10, rtol=1e-10)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_gradient_of_a_norm_is_right_even_for_a_row_of_zeros() -> None:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, generator=source, dtype=F64)
    x[1] = 0
    x.requires_grad_()
    norm = Norm(torch.randn(5, generator=source, dtype=F64), 1e-5)
    grad = torch.randn(3, 5, generator=source, dtype=F64)
    plain = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * norm.weight
    [expected] = torch.autograd.grad(plain, [x], grad)
    normed, scale = norm(x.detach())
    torch.testing.assert_close(normed, plain.detach())
    torch.testing.assert_close(norm.grad(x.detach(), scale, grad), expected)


def test_other_layers_are_left_to_transformers() -> None:
    windowed = Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=2)
    others = [
        LlamaConfig(**SIZES, hidden_act="gelu"),
        MistralConfig(**SIZES, sliding_window=64),
        windowed,
        PretrainedConfig(model_type="gpt2"),
    ]
    assert not any(has_plain_layers(one.to_dict()) for one in others)
    assert has_plain_layers(LlamaConfig(**SIZES).to_dict())
