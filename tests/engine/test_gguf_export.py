"""A model as one GGUF file: what llama.cpp's own converter writes, the same logits when read back, or no file."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.adapters import Adapters
from engine.base_model import load_base, load_tokenizer
from engine.gguf_export import interleaved, rope_factors
from engine.gguf_vocabulary import cutting_rule
from engine.model_export import export_model
from engine.model_import import demo_file, import_model
from engine.templates import encode_prompt
from workbench.errors import UserError
from workbench.protocol import ModelRef
from workbench.records import Message

CPU = torch.device("cpu")
ASKED = (Message("user", "What is 1234 times two? Don't guess!\n\nThe end."),)
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    """The tiny tokenizer with a rule that llama.cpp knows."""
    from tokenizers import pre_tokenizers

    found = make_tokenizer()
    found.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return found


def tiny(kind: str, **more: Any) -> Any:
    """A random model of a family, with a head of its own unless ``more`` ties it."""
    from transformers import LlamaConfig, MistralConfig, Qwen2Config
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 272,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "initializer_range": 0.15,
    }
    config = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}[kind](**sizes | more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data.normal_(std=0.3)  # they begin as zeros, which would prove nothing
    return model


def saved(folder: Path, model: Any, tokenizer: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def adapted(base: Path, folder: Path) -> ModelRef:
    """An adapter with a random LoRA on every linear layer of a base."""
    adapters = Adapters(load_base(base, quantisation="fp32", device=CPU))
    adapters.add("policy", rank=4, alpha=8, trainable=True)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters("policy"):
            parameter.normal_(std=0.05, generator=source)
    adapters.save("policy", folder)
    return ModelRef(model_id="p", name="My Policy", base=str(base), adapter=str(folder))


def logits(folder: Path, ids: list[int], adapter: str = "", gguf_file: str = "") -> Tensor:
    """The logits of a model in fp32, with peft's own LoRA where there is an adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, GgufConfig

    unpacked = {"gguf_file": gguf_file, "quantization_config": GgufConfig(dequantize=True)} if gguf_file else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **unpacked)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits[0]


def same(theirs: Tensor, ours: Tensor, atol: float) -> None:
    """Compare logits, in units of their spread."""
    torch.testing.assert_close(theirs / ours.std(), ours / ours.std(), atol=atol, rtol=0)


def exported(model: ModelRef, out: Path, numbers: str = "f16", **more: Any) -> Path:
    export_model(model, out, "gguf", numbers=numbers, **more)
    (file,) = out.glob("*.gguf")
    return file


def read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The fields and tensors of a GGUF file, as the gguf package reads them."""
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(file)
    tensors = {one.name: torch.tensor(dequantize(one.data, one.tensor_type)) for one in reader.tensors}
    return {key: field.contents() for key, field in reader.fields.items()}, tensors


# ---- the same model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"head_dim": 32}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {}),
    ],
)
def test_logits_are_the_same_when_a_merged_model_is_read_back(
    tokenizer: Any, tmp_path: Path, kind: str, more: dict[str, Any]
) -> None:
    base = saved(tmp_path / "base", tiny(kind, **more), tokenizer)
    model = adapted(base, tmp_path / "adapter")
    file = exported(model, tmp_path / "out")
    assert file.name == "my-policy-F16.gguf"
    back = import_model(str(file), tmp_path / "back").path
    ids = encode_prompt(load_tokenizer(base)[0], ASKED)
    assert encode_prompt(load_tokenizer(back)[0], ASKED) == ids
    ours = logits(base, ids, model.adapter)
    assert (ours - logits(base, ids)).abs().max() > 0.5  # the adapter says something
    same(logits(file.parent, ids, gguf_file=file.name), ours, atol=0.01)  # each weight was rounded to 11 bits
    same(logits(back, ids), ours, atol=0.1)  # and by the import to 8


@pytest.mark.parametrize(("numbers", "bits"), [("f16", 11), ("bf16", 8), ("f32", 23)])
def test_each_weight_is_merged_in_fp32_and_rounded_once(
    tokenizer: Any, tmp_path: Path, numbers: str, bits: int
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = saved(tmp_path / "base", tiny("qwen2"), tokenizer)
    model = adapted(base, tmp_path / "adapter")
    _, tensors = read(exported(model, tmp_path / "out", numbers))
    whole: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), model.adapter).merge_and_unload()
    for name, ours in (
        ("blk.1.attn_q.weight", whole.model.layers[1].self_attn.q_proj.weight),
        ("blk.0.ffn_down.weight", whole.model.layers[0].mlp.down_proj.weight),
        ("output.weight", whole.lm_head.weight),
    ):
        torch.testing.assert_close(tensors[name], ours.detach(), rtol=2.0**-bits, atol=1e-6)
    assert torch.equal(tensors["blk.0.attn_k.bias"], whole.model.layers[0].self_attn.k_proj.bias)  # always fp32


def test_a_pair_that_rotates_together_lies_side_by_side() -> None:
    # two heads of width 4: transformers rotates rows (0, 2), (1, 3), llama.cpp (0, 1), (2, 3)
    rows = torch.arange(8.0).reshape(8, 1)
    assert interleaved(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert interleaved(torch.arange(4.0), 1).tolist() == [0, 2, 1, 3]


def test_llama_31s_frequencies_are_divided_by_what_transformers_divides_them_by() -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = tiny("llama", head_dim=128, rope_parameters=rope, max_position_embeddings=131072)
    factors = rope_factors(model.config)
    assert factors is not None
    # fast rotations stay, slow ones are 8 times slower: f = 1 where wavelength < 8192 / 4, 8 where > 8192 / 1
    assert (factors[0], factors[-1]) == (pytest.approx(1.0), pytest.approx(8.0))
    plain = 500000.0 ** -(torch.arange(0, 128, 2) / 128)
    torch.testing.assert_close(plain / factors, model.model.rotary_emb.inv_freq, rtol=1e-4, atol=0)
    assert rope_factors(tiny("llama").config) is None


def test_scaled_positions_are_in_the_file(tokenizer: Any, tmp_path: Path) -> None:
    linear = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    base = saved(tmp_path / "linear", tiny("llama", rope_parameters=linear), tokenizer)
    fields, _ = read(exported(ModelRef(model_id="b", name="b", base=str(base)), tmp_path / "out"))
    assert (fields["llama.rope.scaling.type"], fields["llama.rope.scaling.factor"]) == ("linear", 2.0)
    llama3 = linear | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3["original_max_position_embeddings"] = 128
    base = saved(tmp_path / "llama3", tiny("llama", rope_parameters=llama3), tokenizer)
    _, tensors = read(exported(ModelRef(model_id="b", name="b", base=str(base)), tmp_path / "out3"))
    assert tensors["rope_freqs.weight"].shape == (8,)


def test_a_window_bounds_the_context_since_llama_cpp_has_none_for_it(tokenizer: Any, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", tiny("mistral", sliding_window=128), tokenizer)
    fields, _ = read(exported(ModelRef(model_id="b", name="b", base=str(base)), tmp_path / "out"))
    assert fields["llama.context_length"] == 128


@pytest.mark.demo_model
def test_the_demo_model_comes_out_as_llama_cpp_wrote_it(demo_model_dir: Path, tmp_path: Path) -> None:
    model = adapted(demo_model_dir, tmp_path / "adapter")
    plain = ModelRef(model_id="b", name="demo", base=str(demo_model_dir))
    theirs, weights = read(demo_file())
    fields, tensors = read(exported(plain, tmp_path / "plain"))
    for key in ("tokens", "token_type", "merges", "bos_token_id", "eos_token_id", "add_bos_token", "model"):
        assert fields[f"tokenizer.ggml.{key}"] == theirs[f"tokenizer.ggml.{key}"], key
    assert fields["tokenizer.chat_template"] == theirs["tokenizer.chat_template"]
    for key, value in theirs.items():
        if key.startswith("llama."):
            assert fields[key] == value, key
    assert tensors.keys() == weights.keys()
    for name, weight in weights.items():  # theirs is quantised, and the import rounded it to bf16: 8 bits
        torch.testing.assert_close(tensors[name], weight, rtol=2.0**-8, atol=1e-6)
    file = exported(model, tmp_path / "out")
    back = import_model(str(file), tmp_path / "back").path
    ids = encode_prompt(load_tokenizer(demo_model_dir)[0], ASKED)
    assert encode_prompt(load_tokenizer(back)[0], ASKED) == ids
    ours = logits(demo_model_dir, ids, model.adapter)
    same(logits(file.parent, ids, gguf_file=file.name), ours, atol=0.02)
    same(logits(back, ids), ours, atol=0.2)


# ---- the tokenizer ---------------------------------------------------------------------------------------------


def bytes_of(**more: Any) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True} | more


def split(pattern: str) -> dict[str, Any]:
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, bytes_of(use_regex=False)]}


def parts(pre_tokenizer: Any, **more: Any) -> dict[str, Any]:
    return {"model": {"type": "BPE"}, "decoder": {"type": "ByteLevel"}, "pre_tokenizer": pre_tokenizer} | more


@pytest.mark.parametrize(
    ("pre_tokenizer", "rule"),
    [
        (bytes_of(), "gpt-2"),
        ({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, bytes_of()]}, "smollm"),
        (split(LLAMA_3), "llama-bpe"),
        (split(LLAMA_3.replace("{1,3}", "")), "qwen2"),
    ],
)
def test_the_rule_that_cuts_text_is_called_as_llama_cpp_calls_it(pre_tokenizer: Any, rule: str) -> None:
    assert cutting_rule(parts(pre_tokenizer)) == rule
    assert cutting_rule(parts(pre_tokenizer, normalizer={"type": "NFC"})) == rule


@pytest.mark.parametrize(
    ("tokenizer", "why"),
    [
        (parts(split(r"\w+")), "no name for"),
        (parts(bytes_of(use_regex=False)), "no name for"),
        (parts(None), "puts a space before"),
        (parts(bytes_of(add_prefix_space=True)), "puts a space before"),
        (parts(bytes_of(), normalizer={"type": "Lowercase"}), "changes text first"),
        (parts(bytes_of(), model={"type": "Unigram"}), "no byte-level BPE"),
        (parts(bytes_of(), model={"type": "BPE", "byte_fallback": True}), "no byte-level BPE"),
        (parts(bytes_of(), decoder=None), "no byte-level BPE"),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_read_in_another_way_is_refused(tokenizer: Any, why: str) -> None:
    with pytest.raises(UserError, match=why):
        cutting_rule(tokenizer)


def test_special_tokens_template_and_the_end_of_a_turn_are_in_the_file(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.eos_token = "<|endoftext|>"
    base = saved(tmp_path / "base", tiny("llama", vocab_size=280), tokenizer)
    fields, _ = read(exported(ModelRef(model_id="b", name="b", base=str(base)), tmp_path / "out"))
    found = {key: fields[f"tokenizer.ggml.{key}_token_id"] for key in ("eos", "eot")}
    assert found == {"eos": 0, "eot": 2}  # ChatML closes a turn with <|im_end|>
    assert fields["tokenizer.chat_template"] == tokenizer.chat_template
    assert fields["tokenizer.ggml.add_bos_token"] is False
    kinds = fields["tokenizer.ggml.token_type"]
    assert kinds[:5] == [3, 3, 3, 3, 1]  # control, then plain
    assert kinds[-1] == 5  # unused: the embedding has more rows than there are tokens
    assert fields["tokenizer.ggml.tokens"][-1] == "[PAD279]"


# ---- refused, cancelled, no room -------------------------------------------------------------------------------


def test_a_reward_model_is_no_writer_of_text(tokenizer: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = saved(tmp_path / "base", tiny("llama"), tokenizer)
    model = adapted(base, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file(load_file(file) | {"base_model.model.score.weight": torch.ones(1, 64)}, file)
    with pytest.raises(UserError, match="It is a reward model"):
        exported(model, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model_type": "gemma3_text"}, "Its architecture is gemma3_text"),
        ({"hidden_act": "gelu"}, "Its activation is gelu"),
        ({"attention_bias": True}, "biases"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "scaled by dynamic"),
    ],
)
def test_what_llama_cpp_would_compute_in_another_way_is_refused(
    tokenizer: Any, tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    base = saved(tmp_path / "base", tiny("llama"), tokenizer)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=why):
        exported(ModelRef(model_id="b", name="b", base=str(base)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_beyond_fp16_are_refused_and_fit_in_bf16(tokenizer: Any, tmp_path: Path) -> None:
    model = tiny("llama")
    model.lm_head.weight.data[0, 0] = 70000.0  # the largest number of fp16 is 65504
    base = saved(tmp_path / "base", model, tokenizer)
    ref = ModelRef(model_id="b", name="b", base=str(base))
    with pytest.raises(UserError, match=r"lm_head\.weight has numbers beyond its range.*[Cc]hoose bf16"):
        exported(ref, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [base]
    _, tensors = read(exported(ref, tmp_path / "out", "bf16"))
    assert tensors["output.weight"][0, 0] == pytest.approx(70000, rel=2**-8)


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file can grow beyond 100,000 bytes, as on a disk that is full then."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_fills_leaves_nothing(tokenizer: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    base = saved(tmp_path / "base", tiny("llama"), tokenizer)
    request.getfixturevalue("small_files")
    with pytest.raises(UserError, match="was not written to"):
        exported(ModelRef(model_id="b", name="b", base=str(base)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == [base]


def test_a_cancelled_export_leaves_nothing(tokenizer: Any, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", tiny("llama"), tokenizer)

    def cancel(what: str, fraction: float) -> None:
        if fraction > 0.5:
            assert list((tmp_path / ".exporting-out").glob("*.gguf"))  # half of it is there
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exported(ModelRef(model_id="b", name="b", base=str(base)), tmp_path / "out", on_progress=cancel)
    assert list(tmp_path.iterdir()) == [base]


@pytest.mark.parametrize("what", ["adapter", "merged", "gguf"])
def test_every_export_carries_its_card(tokenizer: Any, tmp_path: Path, what: str) -> None:
    base = saved(tmp_path / "base", tiny("llama"), tokenizer)
    model = adapted(base, tmp_path / "adapter")
    (tmp_path / "adapter" / "README.md").write_text("peft's template")
    export_model(model, tmp_path / "out", what, card="# Mine\n")
    assert (tmp_path / "out" / "README.md").read_text() == "# Mine\n"
