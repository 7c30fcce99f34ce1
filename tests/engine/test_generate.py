"""Sampling: equal to transformers' greedy decoding, true to its distribution, and deaf to what else is in the batch."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import adapters as adapters_module
from engine import decoder, decoder_layer, frames
from engine import generate as generate_module
from engine.adapters import Adapters
from engine.base_model import LoadedBase, load_base
from engine.decoder import Decoder
from engine.generate import Cancelled, end_ids, generate, pick_tokens, row_seeds
from engine.kv_cache import new_cache
from engine.templates import encode_prompt
from tests.engine.test_decoder_layer import FAMILIES, adapters_of
from workbench.errors import UserError
from workbench.records import Message, Sampling

MakeBase = Callable[..., LoadedBase]
PROMPTS = [[5, 9, 30], [7] * 11, [40, 41, 42, 43, 44, 45], [12], [60, 8, 3, 90, 17, 33, 52]]


def greedy(tokens: int = 12) -> Sampling:
    return Sampling(temperature=0, max_new_tokens=tokens)


def transformers_greedy(base: LoadedBase, ids: list[int], tokens: int) -> list[int]:
    output = base.model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        max_new_tokens=tokens,
        pad_token_id=0,
        use_cache=True,
    )
    return list(output[0, len(ids) :].tolist())


def test_greedy_output_equals_transformers_generate(make_base: MakeBase) -> None:
    base = make_base(dtype=torch.float64)
    drawn = generate(base, PROMPTS, greedy(20), ends=[2])
    for ids, [completion] in zip(PROMPTS, drawn, strict=True):
        assert list(completion.ids) == transformers_greedy(base, ids, 20)


def test_a_small_batch_that_takes_in_prompts_as_others_end_draws_the_same(make_base: MakeBase) -> None:
    base = make_base(dtype=torch.float64)
    sampling = Sampling(temperature=1.0, max_new_tokens=24, seed=3)
    whole = generate(base, PROMPTS, sampling, count=3)
    for rows in (1, 2, 4, 7):
        assert generate(base, PROMPTS, sampling, count=3, max_rows=rows) == whole


def test_rows_end_at_different_lengths_and_include_their_eos(make_base: MakeBase) -> None:
    base = make_base()
    drawn = [one for many in generate(base, PROMPTS, Sampling(2.0, 1.0, 0, 200, 0), count=8) for one in many]
    assert len({len(one.ids) for one in drawn}) > 3
    for one in drawn:
        assert one.ended == (one.ids[-1] == 2)
        assert 2 not in one.ids[:-1]
        assert one.ended or len(one.ids) == 200


def test_a_response_can_be_drawn_again_alone_from_its_seed(make_base: MakeBase) -> None:
    base = make_base(dtype=torch.float64)
    sampling = Sampling(temperature=0.9, max_new_tokens=16, seed=11)
    drawn = generate(base, PROMPTS, sampling, count=2)
    assert [one.seed for many in drawn for one in many] == row_seeds(11, 10)
    for prompt, many in zip(PROMPTS, drawn, strict=True):
        for one in many:
            [[again]] = generate(base, [prompt], Sampling(0.9, 1.0, 0, 16, one.seed))
            assert again == one


def test_the_adapter_in_use_is_the_one_that_speaks(adapters: Adapters) -> None:
    adapters.add("loud", rank=4, alpha=8, trainable=False)
    with torch.no_grad():
        for parameter in adapters.parameters("loud"):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    bare = generate(adapters.base, PROMPTS, greedy())
    with adapters.use("loud"):
        loud = generate(adapters.base, PROMPTS, greedy())
    assert loud != bare
    assert generate(adapters.base, PROMPTS, greedy()) == bare


def test_every_token_is_told_as_it_is_drawn(make_base: MakeBase) -> None:
    base = make_base()
    told: dict[tuple[int, int], list[int]] = {}
    drawn = generate(
        base,
        PROMPTS,
        Sampling(1.0, 1.0, 0, 10, 5),
        count=2,
        on_token=lambda prompt, response, token: told.setdefault((prompt, response), []).append(token),
    )
    for prompt, many in enumerate(drawn):
        for response, one in enumerate(many):
            assert told[prompt, response] == list(one.ids)


def test_a_cancel_is_heard_within_one_token(make_base: MakeBase) -> None:
    told: list[int] = []
    with pytest.raises(Cancelled):
        generate(
            make_base(),
            PROMPTS[:1],
            greedy(50),
            ends=[],
            on_token=lambda *token: told.append(token[2]),
            cancelled=lambda: len(told) >= 3,
        )
    assert len(told) == 3


def test_settings_of_the_model_folder_do_not_leak_in(make_base: MakeBase) -> None:
    base = make_base(dtype=torch.float64)
    plain = generate(base, PROMPTS, Sampling(1.0, 1.0, 0, 10, 2))
    config = base.model.generation_config
    config.temperature, config.top_k, config.repetition_penalty, config.max_length = 0.1, 1, 5.0, 3
    assert generate(base, PROMPTS, Sampling(1.0, 1.0, 0, 10, 2)) == plain


def test_ends_come_from_template_tokenizer_and_generation_config(make_base: MakeBase) -> None:
    base = make_base()
    base.model.generation_config.eos_token_id = [2, 77]
    assert set(end_ids(base)) == {2, 77}
    base.model.generation_config.eos_token_id = None
    base.model.config.eos_token_id = None
    assert end_ids(base) == (2,)


def test_a_prompt_without_room_is_refused_and_one_with_little_room_is_cut_short(make_base: MakeBase) -> None:
    base = make_base()
    with pytest.raises(UserError, match="leaves no room"):
        generate(base, [[5] * base.context], greedy())
    with pytest.raises(UserError, match="empty"):
        generate(base, [[]], greedy())
    [[short]] = generate(base, [[5] * (base.context - 3)], greedy(50), ends=[])
    assert len(short.ids) == 3


def test_logits_that_are_not_numbers_are_named(make_base: MakeBase) -> None:
    base = make_base()
    with torch.no_grad():
        base.model.model.norm.weight.fill_(torch.nan)
    for temperature in (0.0, 1.0):
        with pytest.raises(UserError, match="no probabilities"):
            generate(base, PROMPTS, Sampling(temperature, 1.0, 0, 4, 0))


def test_checkpointing_comes_back_after_sampling(adapters: Adapters) -> None:
    adapters.checkpointing(True)
    generate(adapters.base, PROMPTS, greedy(3))
    assert adapters.base.model.training
    adapters.checkpointing(False)
    assert not adapters.base.model.training


def test_memory_that_runs_out_in_mid_batch_costs_no_token(make_base: MakeBase, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_base(dtype=torch.float64)
    sampling = Sampling(1.0, 1.0, 0, 20, 8)
    whole = generate(base, PROMPTS, sampling, count=2)
    calls = 0
    embedded = Decoder._embedded

    def short_of_memory(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in (4, 9):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return embedded(*given)

    monkeypatch.setattr(Decoder, "_embedded", short_of_memory)
    told: list[tuple[int, int]] = []
    drawn = generate(base, PROMPTS, sampling, count=2, on_less_room=lambda tried, room: told.append((tried, room)))
    assert drawn == whole
    assert calls > 20
    assert told == [(10, 5), (5, 2)]


def test_memory_that_runs_out_in_the_first_prefill_halves_the_rows_and_no_more(
    make_base: MakeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base(dtype=torch.float64)
    prompts = [[5, 6, 7]] * 16
    widths: list[int] = []
    prefill = Decoder.prefill

    def short_of_memory(self: Decoder, prompts: Any, cache: Any) -> Any:
        widths.append(len(prompts))
        if len(prompts) > 8:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return prefill(self, prompts, cache)

    monkeypatch.setattr(Decoder, "prefill", short_of_memory)
    drawn = generate(base, prompts, Sampling(1.0, 1.0, 0, 6, 8))
    assert (widths[0], max(widths[1:])) == (16, 8)
    assert all(len(one) == 1 for one in drawn)


def test_pick_tokens_follows_the_distribution() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0]]).expand(4000, 4)
    uniforms = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    for temperature in (0.5, 1.0, 2.0):
        drawn = pick_tokens(logits, Sampling(temperature), uniforms)
        share = torch.bincount(drawn, minlength=4) / 4000
        assert torch.allclose(share, torch.softmax(logits[0] / temperature, 0), atol=1e-3)


def test_top_k_and_top_p_keep_what_transformers_keeps() -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 2
    uniforms = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    for top_k, top_p in ((5, 1.0), (0, 0.7), (10, 0.8), (0, 0.05)):
        warped = TemperatureLogitsWarper(0.8)(None, logits)
        if top_k:
            warped = TopKLogitsWarper(top_k)(None, warped)
        if top_p < 1:
            warped = TopPLogitsWarper(top_p)(None, warped)
        for row in range(3):
            drawn = pick_tokens(logits[row : row + 1].expand(20000, 50), Sampling(0.8, top_p, top_k), uniforms)
            share = torch.bincount(drawn, minlength=50) / 20000
            assert torch.allclose(share, torch.softmax(warped[row], 0), atol=2e-3)


def test_a_model_with_sliding_windows_decodes_like_transformers() -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=272,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=8,
        max_position_embeddings=256,
        layer_types=["sliding_attention", "full_attention"],
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=None,
        initializer_range=0.15,
    )
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(config).double().eval()
    base = LoadedBase(model, None, torch.device("cpu"), torch.float64, 256, "")
    drawn = generate(base, PROMPTS, greedy(20), ends=[2], max_rows=3)
    for ids, [completion] in zip(PROMPTS, drawn, strict=True):
        assert list(completion.ids) == transformers_greedy(base, ids, 20)


def test_the_whole_distribution_is_drawn_from_at_every_vocabulary_size() -> None:
    """A stretch of the vocabulary is chosen first: its borders and a short last one must not show."""
    source = torch.Generator().manual_seed(0)
    for size in (1, 3, 256, 257, 700, 1024):
        logits = (torch.randn(size, generator=source, dtype=torch.float64) * 3).expand(2000, size)
        uniforms = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
        cumulative = torch.softmax(logits[0] / 0.7, 0).cumsum(0)
        expected = torch.searchsorted(cumulative, uniforms, right=True).clamp(max=size - 1)
        sampling = Sampling(temperature=0.7, max_new_tokens=1)
        assert torch.equal(pick_tokens(logits, sampling, uniforms), expected)
        assert torch.equal(pick_tokens(logits.T.contiguous().T, sampling, uniforms), expected)


@pytest.mark.parametrize("cut", [False, True], ids=["whole prompts", "a prompt cut"])
def test_prompts_that_pass_on_two_threads_fill_the_cache_as_on_one(
    make_base: MakeBase, monkeypatch: pytest.MonkeyPatch, two_threads: None, cut: bool
) -> None:
    base = make_base(dtype=torch.float64)
    monkeypatch.setattr(frames, "LEAST_CUT", 2)
    monkeypatch.setattr(frames, "EVEN", 0.0 if cut else 0.9)
    prompts = [[5, 6, 7, 8, 9, 10, 11]] if cut else PROMPTS
    found = []
    made = frames_made(monkeypatch)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        cache = new_cache(base.model)
        with torch.inference_mode():
            logits = Decoder(base).prefill(prompts, cache)
        found.append([logits, *(states for layer in cache.cache.layers for states in (layer.keys, layer.values))])
    assert made == [1, 2]
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def frames_made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fills with the number of frames of each prefill."""
    made: list[int] = []
    real = decoder.frames_of

    def counted(*given: Any, **more: Any) -> Any:
        found = real(*given, **more)
        made.append(len(found))
        return found

    monkeypatch.setattr(decoder, "frames_of", counted)
    return made


def test_what_a_layer_made_is_gone_before_the_next_one_runs(
    make_base: MakeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling has no backward pass: a prefill of 4,096 tokens must not hold two layers' worth of them."""
    real = decoder.layer_forward
    made: list[weakref.ref[torch.Tensor]] = []

    def watched(*given: Any, **more: Any) -> Any:
        assert all(one() is None for one in made)
        out, kept = real(*given, **more)
        made.extend(weakref.ref(one) for one in (kept.mlp_gate, kept.attended, kept.y))
        return out, kept

    for module in (decoder_layer, decoder):  # prompts, and tokens
        monkeypatch.setattr(module, "layer_forward", watched)
    monkeypatch.setattr(frames, "WAYS", 99)  # two frames at once hold a layer each
    generate(make_base(), PROMPTS, greedy(2))
    assert len(made) >= 3 * 2 * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_decodes_like_transformers_under_an_adapter(family: str) -> None:
    adapters = adapters_of(FAMILIES[family])
    prompts = [[5, 9, 30], [7] * 11, [40, 41, 42, 43, 44, 45], [12]]
    with adapters.use("policy"):
        drawn = generate(adapters.base, prompts, greedy(12), ends=[2])
        expected = [transformers_greedy(adapters.base, ids, 12) for ids in prompts]
    assert [list(one.ids) for [one] in drawn] == expected


def test_where_transformers_modules_decode_lora_is_cast_once_and_anew_after_it_has_learnt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapters = adapters_of(FAMILIES["llama"], torch.bfloat16)
    adapters.base.packs = False  # as on a GPU
    made: list[Any] = []
    real = adapters_module._lora_of

    def counted(layer: Any, name: str | None) -> Any:
        made.append(layer)
        return real(layer, name)

    monkeypatch.setattr(adapters_module, "_lora_of", counted)
    with adapters.use("policy"):
        [[before]] = generate(adapters.base, [[5, 9, 30]], greedy(12), ends=[])
    assert len(made) == len(set(map(id, made))) == 4 * 7  # layers and their linear parts, for twelve tokens
    assert adapters.base.cast is None
    with torch.no_grad():
        for one in adapters.parameters("policy"):
            one.mul_(-2)
    with adapters.use("policy"):
        [[after]] = generate(adapters.base, [[5, 9, 30]], greedy(12), ends=[])
        monkeypatch.setattr(generate_module, "masters_cast_once", contextlib.nullcontext)
        [[every_time]] = generate(adapters.base, [[5, 9, 30]], greedy(12), ends=[])
    assert after.ids == every_time.ids != before.ids


@pytest.mark.demo_model
def test_the_demo_model_decodes_greedily_like_transformers(demo_model_dir: Path) -> None:
    base = load_base(demo_model_dir, quantisation="fp32", device=torch.device("cpu"))
    prompts = [
        encode_prompt(base.tokenizer, [Message("user", text)])
        for text in ("What is the capital of France?", "Write one sentence about rain.", "Hi", "Count to five, please.")
    ]
    drawn = generate(base, prompts, greedy(24))
    for ids, [completion] in zip(prompts, drawn, strict=True):
        assert list(completion.ids) == transformers_greedy(base, ids, 24)
