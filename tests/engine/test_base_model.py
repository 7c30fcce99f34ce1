from __future__ import annotations

import json
import platform
import shutil

import pytest
import torch

from engine import base_model
from engine.adapters import Adapters
from engine.base_model import compute_dtype, load_base
from engine.dense_weights import dense_weight
from engine.masking import Example
from tests.engine.conftest import randomise
from workbench.errors import UserError

CPU = torch.device("cpu")
ROWS = [Example.plain((5, 6, 7, 8, 9, 2)), Example.plain((11, 12, 13, 14, 15, 2))]


@pytest.fixture
def folder(tiny_model_dir, tmp_path):
    return shutil.copytree(tiny_model_dir, tmp_path / "model")


def test_a_base_is_frozen_and_knows_its_size(tiny_model_dir):
    base = load_base(tiny_model_dir, quantisation="fp32", device=CPU)
    assert not any(one.requires_grad for one in base.model.parameters())
    assert not base.model.training
    assert (base.context, base.hidden_size, base.dtype) == (512, 64, torch.float32)
    assert base.head_weight.shape == (272, 64)
    assert base.template_note == ""


def test_bf16_weights_are_widened_exactly_where_the_processor_has_no_bf16(tiny_model_dir, monkeypatch):
    exact = load_base(tiny_model_dir, quantisation="fp32", device=CPU).head_weight
    monkeypatch.setattr(base_model, "compute_dtype", lambda _device: torch.float32)
    wide = load_base(tiny_model_dir, quantisation="bf16", device=CPU)
    assert wide.dtype == wide.head_weight.dtype == torch.float32
    assert torch.equal(wide.head_weight, exact.bfloat16().float())
    assert compute_dtype(CPU) in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_rotary_frequencies_are_never_rounded_to_bf16(tiny_model_dir, monkeypatch, dtype):
    monkeypatch.setattr(base_model, "compute_dtype", lambda _device: dtype)
    base = load_base(tiny_model_dir, quantisation="bf16", device=CPU)
    width = base.model.config.head_dim
    exact = base.model.config.rope_parameters["rope_theta"] ** (-torch.arange(0, width, 2).double() / width)
    assert base.head_weight.dtype == dtype
    assert base.decoder.rotary_emb.inv_freq.dtype == torch.float32
    torch.testing.assert_close(base.decoder.rotary_emb.inv_freq.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "dtype"),
    [(True, False, torch.bfloat16), (False, True, torch.bfloat16), (False, False, torch.float32)],
)
def test_a_cpu_computes_in_bf16_only_where_it_multiplies_it(monkeypatch, avx512_bf16, amx, dtype):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert compute_dtype(CPU) == dtype


def test_nf4_trains_adapters_as_its_own_dense_weights_would(tiny_model_dir, monkeypatch):
    monkeypatch.setattr(base_model, "compute_dtype", lambda _device: torch.float32)
    small = Adapters(load_base(tiny_model_dir, quantisation="nf4", device=CPU))
    dense = Adapters(load_base(tiny_model_dir, quantisation="fp32", device=CPU))
    quantised = dict(small.base.model.named_modules())
    packed = 0
    with torch.no_grad():
        for name, module in dense.base.model.named_modules():
            if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
                module.weight.copy_(dense_weight(quantised[name], torch.float32))
                packed += hasattr(quantised[name].weight, "quant_state")
    assert packed == 14
    for adapters in (small, dense):
        adapters.add("policy", rank=4, alpha=8, trainable=True)
        randomise(adapters, "policy")
        with adapters.use("policy"):
            hidden = adapters.flat(adapters.lay_out(ROWS))
        hidden.square().sum().backward()
    for one, other in zip(small.parameters("policy"), dense.parameters("policy"), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3)


def test_a_bf16_base_trains_fp32_masters(tiny_model_dir, monkeypatch):
    monkeypatch.setattr(base_model, "compute_dtype", lambda _device: torch.bfloat16)
    adapters = Adapters(load_base(tiny_model_dir, quantisation="bf16", device=CPU))
    adapters.add("policy", rank=4, alpha=8, trainable=True)
    with adapters.use("policy"):
        hidden = adapters.flat(adapters.lay_out(ROWS))
    hidden.float().square().sum().backward()
    assert hidden.dtype == torch.bfloat16
    assert all(one.grad.dtype == one.dtype == torch.float32 for one in adapters.parameters("policy"))


def change_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_remote_code_is_refused(folder):
    change_config(folder, auto_map={"AutoModelForCausalLM": "evil.Model"})
    with pytest.raises(UserError, match="its own code"):
        load_base(folder, quantisation="fp32", device=CPU)


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="has no safetensors"):
        load_base(folder, quantisation="fp32", device=CPU)


def test_a_missing_or_damaged_folder_is_a_users_matter(folder, tmp_path):
    with pytest.raises(UserError, match=r"config\.json is missing"):
        load_base(tmp_path / "nowhere", quantisation="fp32", device=CPU)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        load_base(folder, quantisation="fp32", device=CPU)


def test_torn_weights_are_a_users_matter(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_base(folder, quantisation="fp32", device=CPU)


def test_a_model_with_logits_of_its_own_kind_is_refused(make_base):
    model = make_base().model
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(UserError, match="final_logit_softcapping"):
        base_model.prepare(model, None, CPU, torch.float32)


def test_a_4_bit_base_is_never_repacked_for_inference(tiny_model_dir):
    # On CPUs with AVX512-BF16 bitsandbytes repacks weights in the first forward pass without gradients, and its
    # dequantize_4bit then reads the new layout as the old one: gradients would be noise.
    base = load_base(tiny_model_dir, quantisation="nf4", device=CPU)
    layers = [one for one in base.model.modules() if hasattr(one, "support_avx512bf16_for_cpu")]
    assert len(layers) == 14
    assert not any(one.support_avx512bf16_for_cpu for one in layers)
    layers[0].weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(RuntimeError, match="repacked"):
        dense_weight(layers[0], torch.float32)
