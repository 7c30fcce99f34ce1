"""Layers held in 16 bits give the products of the same numbers, in decoding and in training, or are left alone."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engine import half_weights
from engine.adapters import Adapters, active_layers
from engine.base_model import LoadedBase, load_base
from engine.dense_weights import dense_weight
from engine.generate import Cancelled, generate
from engine.half_weights import MOST_ROWS, half_for, half_linear, has_room, hold_halves, unpacked
from engine.logps import token_stats
from engine.masking import Example
from engine.packing import lay_out
from tests.engine.conftest import randomise
from tests.engine.test_decoder_layer import FAMILIES, ROWS, adapters_of
from workbench.records import Sampling


def layer(outputs: int, inputs: int, *, bias: bool = False, scale: float = 0.1, seed: int = 0) -> nn.Linear:
    """A frozen layer whose weights are bf16 numbers in fp32."""
    source = torch.Generator().manual_seed(seed)
    made = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    made.weight.copy_((scale * torch.randn(outputs, inputs, generator=source)).bfloat16().float())
    return made


def rows(count: int, width: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1))


def in_bf16(adapters: Adapters) -> Adapters:
    with torch.no_grad():
        for one in adapters.base.model.parameters():
            one.copy_(one.bfloat16().to(one.dtype))
        for one in adapters.parameters("policy"):
            one.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    return adapters


@pytest.fixture(params=FAMILIES)
def twins(request: pytest.FixtureRequest) -> tuple[Adapters, Adapters]:
    """A model of every family twice; the second holds all that it can in fp16."""
    plain, held = (in_bf16(adapters_of(FAMILIES[request.param], torch.float32)) for _ in range(2))
    held.hold_halves(sampling=True)
    assert all(half_for(group, 1) for group in groups_of(held.base))
    return plain, held


def groups_of(base: LoadedBase) -> list[list[Any]]:
    return [[one.base for one in group] for parts in active_layers(base) for group in parts.groups]


@pytest.mark.parametrize("scale", [1e-7, 0.05, 3e4], ids=["tiny", "usual", "large"])
@pytest.mark.parametrize("count", [1, 8, 70])
def test_a_product_is_as_near_to_the_true_one_as_in_fp32(count: int, scale: float) -> None:
    group = [layer(40, 96, scale=scale), layer(24, 96, bias=True, scale=scale, seed=2)]
    hold_halves([group], torch.float32)
    half, x = half_for(group, 1), rows(count, 96)
    assert half is not None
    assert half.widths == [40, 24]
    found = half_linear(half, x)
    exact = torch.cat([x.double() @ one.weight.double().T + (0 if one.bias is None else one.bias) for one in group], 1)
    fp32 = torch.cat([one(x) for one in group], 1)
    assert (found - exact).abs().max() <= 4 * (fp32 - exact).abs().max()


@pytest.mark.parametrize(
    "spoilt",
    [1 / 3, 1e-30, torch.inf, torch.nan],
    ids=["more digits than fp16 has", "far below the largest", "infinite", "not a number"],
)
def test_a_layer_that_would_be_rounded_is_left_alone(spoilt: float) -> None:
    one = layer(8, 4)
    one.weight[3, 2] = spoilt
    hold_halves([[one]], torch.float32)
    assert half_for([one], 1) is None


def test_zeros_are_held() -> None:
    one = layer(8, 4, scale=0.0)
    hold_halves([[one]], torch.float32)
    half = half_for([one], 1)
    assert half is not None
    assert torch.equal(half_linear(half, rows(3, 4)), torch.zeros(3, 8))


def test_weights_are_held_twice_only_where_three_times_as_much_is_free() -> None:
    one = layer(8, 4)
    needed = 2 * one.weight.numel()
    assert not has_room([[one]], 3 * needed - 1)
    assert has_room([[one]], 3 * needed)
    assert hold_halves([[one]], torch.float32)
    assert has_room([[one]], 0)  # it is held already


def test_a_process_that_samples_holds_what_is_wide_where_all_has_no_room_and_what_it_held_before_anyway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broad = FAMILIES["llama"].to_dict() | {"intermediate_size": 64, "vocab_size": 128}
    made = [in_bf16(adapters_of(type(FAMILIES["llama"])(**broad), torch.float32)) for _ in range(4)]
    groups = [*groups_of(made[0].base), [made[0].base.model.get_output_embeddings()]]
    wide = sum(2 * one.weight.numel() for group in groups if half_weights.is_wide(group) for one in group)
    monkeypatch.setattr("engine.adapters.free_bytes", lambda _: 3 * wide)
    assert [made[0].hold_halves(sampling=True), made[0].hold_halves()] == ["wide", "wide"]
    head = sum(2 * one.weight.numel() for one in groups[-1]) * half_weights.is_wide(groups[-1])
    assert 0 < head < wide
    monkeypatch.setattr("engine.adapters.free_bytes", lambda _: 3 * wide - 1)
    assert made[1].hold_halves() == "wide layers"
    monkeypatch.setattr("engine.adapters.free_bytes", lambda _: 3 * (wide - head) - 1)
    assert made[2].hold_halves(sampling=True) == "none"
    assert [made[2].hold_halves(sampling=True, as_before=kind) for kind in ("none", "wide")] == ["none", "wide"]
    assert made[3].hold_halves(as_before="all") == made[3].base.halves == "all"
    assert half_for([made[3].base.model.get_output_embeddings()], 1) is not None


def test_a_head_is_held_in_blocks_and_gives_the_log_probabilities_and_slopes_of_its_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head, hidden, targets = layer(300, 16), rows(9, 16), torch.arange(0, 297, 33)
    upstream = torch.linspace(-1, 2, 9)
    monkeypatch.setattr(half_weights, "BLOCK", 128)
    hold_halves([[head]], torch.float32)
    half = half_for([head], 9)
    assert half is not None
    assert [one.shape[1] for one in half_weights.half_blocks(half, hidden)] == [128, 128, 44]
    torch.testing.assert_close(half_linear(half, hidden), head(hidden), rtol=1e-5, atol=1e-5)
    found = []
    for held in (None, half):
        states = hidden.clone().requires_grad_()
        logps, entropy, correct = token_stats(states, targets, head.weight, 0.7, 4, held)
        (logps * upstream).sum().backward()
        measured = token_stats(hidden, targets, head.weight, 0.7, 4, held)
        found.append([logps.detach(), entropy, correct.float(), states.grad, *measured])
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0][1], found[0][5], rtol=1e-4, atol=1e-5)  # the entropy by both its ways


def test_the_head_is_held_in_training_unless_nothing_is_read_through_it() -> None:
    broad = FAMILIES["llama"].to_dict() | {"vocab_size": 128}
    for head in (True, False):
        adapters = in_bf16(adapters_of(type(FAMILIES["llama"])(**broad), torch.float32))
        adapters.hold_halves(head=head)
        assert (half_for([adapters.base.model.get_output_embeddings()], 1) is not None) == head


def test_only_a_wide_layer_is_worth_it_for_many_rows() -> None:
    wide, narrow = layer(32, 8), layer(31, 8)
    hold_halves([[wide], [narrow]], torch.float32)
    assert half_for([wide], MOST_ROWS + 1) is not None
    assert half_for([narrow], MOST_ROWS) is not None
    assert half_for([narrow], MOST_ROWS + 1) is None


def test_a_machine_without_fbgemm_computes_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        def linear_prepack_fp16(self, *_: Any) -> None:
            raise RuntimeError("Didn't find engine for operation quantized::linear_prepack_fp16 NoQEngine")

    plain, bare = (in_bf16(adapters_of(FAMILIES["llama"], torch.float32)) for _ in range(2))
    monkeypatch.setattr(half_weights.torch.ops, "quantized", Nothing())
    assert bare.hold_halves(sampling=True) == "none"
    assert not any(half_for(group, 1) for group in groups_of(bare.base))
    assert drawn(bare) == drawn(plain)


def test_what_does_not_pack_or_is_finer_than_fp32_is_left_alone() -> None:
    finer = adapters_of(FAMILIES["llama"], torch.float64)
    assert finer.hold_halves(sampling=True) == "none"
    assert not any(half_for(group, 1) for group in groups_of(finer.base))
    padded = in_bf16(adapters_of(FAMILIES["llama"], torch.float32))
    padded.base.packs = False
    padded.hold_halves(sampling=True)
    assert not any(half_for(group, 1) for group in groups_of(padded.base))


def test_training_holds_what_is_wide_alone() -> None:
    adapters = in_bf16(adapters_of(FAMILIES["llama"], torch.float32))
    adapters.hold_halves()
    held = [half_for(group, 1) is not None for group in groups_of(adapters.base)[:4]]
    # D 32, queries 32, keys and values 16 each, MLP 56: 112 of gate and up are less than 4 x 32
    assert held == [False, False, False, False]
    broad = FAMILIES["llama"].to_dict() | {"intermediate_size": 64}
    adapters = in_bf16(adapters_of(type(FAMILIES["llama"])(**broad), torch.float32))
    adapters.hold_halves()
    assert [half_for(group, 1) is not None for group in groups_of(adapters.base)[:4]] == [False, False, True, False]
    assert half_for([adapters.base.model.get_output_embeddings()], 1) is None


def drawn(adapters: Adapters) -> list[tuple[int, ...]]:
    with adapters.use("policy"):
        found = generate(adapters.base, [[5, 9, 30], [7] * 11, [12]], Sampling(0.0, 1.0, 0, 12, 0), count=2, ends=[2])
    return [one.ids for row in found for one in row]


def test_every_family_decodes_the_same_under_an_adapter_and_without(twins: tuple[Adapters, Adapters]) -> None:
    plain, held = twins
    assert drawn(held) == drawn(plain)
    for base in (plain.base, held.base):
        base.active = None
    prompts, greedy = [[5, 9, 30], [12]], Sampling(0.0, 1.0, 0, 12, 0)
    assert generate(held.base, prompts, greedy) == generate(plain.base, prompts, greedy)


def test_every_family_trains_the_same(twins: tuple[Adapters, Adapters]) -> None:
    found = []
    for adapters in twins:
        with adapters.use("policy"):
            states = adapters.flat(lay_out(ROWS, torch.device("cpu"), packed=True))
        states.square().sum().backward()
        found.append([states.detach(), *(one.grad for one in adapters.parameters("policy"))])
    for one, other in zip(*found, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-4 * one.abs().max().item())


def test_sequences_of_which_nothing_is_read_pass_all_the_same(twins: tuple[Adapters, Adapters]) -> None:
    found = []
    for adapters in twins:
        nothing = torch.empty(0, dtype=torch.long)
        with adapters.use("policy"):
            states = adapters.flat(lay_out(ROWS, torch.device("cpu"), packed=True), nothing)
        assert states.shape == (0, 32)
        states.sum().backward()
        found += [one.grad for one in adapters.parameters("policy")]
    assert all(one is not None and not one.any() for one in found)


def test_a_new_adapter_is_seen_by_the_next_batch(twins: tuple[Adapters, Adapters]) -> None:
    plain, held = twins
    before = drawn(held)
    for adapters in twins:
        with torch.no_grad():
            for one in adapters.parameters("policy"):
                one.mul_(-1.5)
    assert drawn(held) == drawn(plain) != before


def test_a_layer_of_a_group_alone_is_not_the_group() -> None:
    group = [layer(8, 4), layer(8, 4, seed=2)]
    hold_halves([group], torch.float32)
    assert half_for(group, 1) is not None
    assert half_for(group[:1], 1) is None


def test_examples_of_a_step_share_a_layout() -> None:
    """The rows above do have a shared prompt and a lone one, or the tests say less than they seem to."""
    assert len({one.input_ids[: one.prompt_length] for one in ROWS}) < len(ROWS)
    assert all(isinstance(one, Example) for one in ROWS)


# ---- where products are made in bf16 -------------------------------------------------------------------------------


@pytest.fixture
def onednn() -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN multiplies no bf16 on this processor")


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("count", [1, 8, MOST_ROWS])
def test_bf16_layers_are_multiplied_as_they_are_and_only_by_few_rows(count: int) -> None:
    group: list[nn.Module] = [layer(40, 96).bfloat16(), layer(24, 96, bias=True, seed=2).bfloat16()]
    assert hold_halves([group], torch.bfloat16)
    half, x = half_for(group, count), rows(count, 96).bfloat16()
    assert half is not None
    assert half_for(group, MOST_ROWS + 1) is None
    exact = torch.cat([one.double()(x.double()).detach() for one in group], 1)
    torch.testing.assert_close(half_linear(half, x).double(), exact, rtol=2**-8, atol=2**-10)


@pytest.mark.usefixtures("onednn")
def test_a_bf16_model_that_samples_holds_all_and_draws_the_same_and_one_that_trains_none() -> None:
    plain, held, training = (in_bf16(adapters_of(FAMILIES["llama"], torch.bfloat16)) for _ in range(3))
    assert held.hold_halves(sampling=True) == "all"
    assert all(half_for(group, 1) for group in groups_of(held.base))
    assert training.hold_halves() == "none"
    same = [one == other for one, other in zip(drawn(held), drawn(plain), strict=True)]
    assert sum(same) >= len(same) - 1  # random weights: two tokens may be as likely as one another up to rounding


@pytest.mark.usefixtures("onednn")
def test_log_probabilities_of_few_targets_come_from_the_held_head_in_fp32() -> None:
    head, hidden, targets = layer(300, 16).bfloat16(), rows(9, 16).bfloat16(), torch.arange(0, 297, 33)
    hold_halves([[head]], torch.bfloat16)
    plain, held = (token_stats(hidden, targets, head.weight, 0.7, 4, half) for half in (None, half_for([head], 9)))
    assert held[0].dtype == torch.float32
    for one, other in zip(held[:2], plain[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.02)


# ---- 4 bits --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def in_four_bits(request: pytest.FixtureRequest, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Adapters:
    """A tiny model in NF4 under an adapter, computing in fp32 or in bf16."""
    if request.param == torch.bfloat16:
        request.getfixturevalue("onednn")
    monkeypatch.setattr("engine.base_model.compute_dtype", lambda _: request.param)
    made = Adapters(load_base(tiny_model_dir, quantisation="nf4", device=torch.device("cpu")))
    made.add("policy", rank=4, alpha=8, trainable=True)
    randomise(made, "policy", 0.1, seed=3)
    return made


def held_at_each_token(adapters: Adapters) -> list[bool]:
    """Of three tokens that are drawn, whether each group is held as each of them comes."""
    seen: list[bool] = []

    def look(*_: int) -> None:
        seen.extend(half_for(group, 1) is not None for group in groups_of(adapters.base))

    with adapters.use("policy"):
        generate(adapters.base, [[5, 9, 30]], Sampling(0.0, 1.0, 0, 3, 0), ends=[-1], on_token=look)
    assert len(seen) == 3 * len(groups_of(adapters.base))
    return seen


def test_four_bits_are_unpacked_once_for_all_that_is_sampled_and_only_so_long(in_four_bits: Adapters) -> None:
    groups = groups_of(in_four_bits.base)
    before = drawn(in_four_bits)
    assert in_four_bits.hold_halves(sampling=True) == "all unpacked"
    assert not any(half_for(group, 1) for group in groups)
    assert all(held_at_each_token(in_four_bits))
    with pytest.raises(Cancelled):
        generate(in_four_bits.base, [[5, 9, 30]], Sampling(0.0, 1.0, 0, 3, 0), cancelled=lambda: True)
    assert not any(half_for(group, 1) for group in groups)
    same = [one == other for one, other in zip(drawn(in_four_bits), before, strict=True)]
    assert sum(same) >= len(same) - 1


def test_without_room_for_them_four_bits_are_unpacked_layer_by_layer(
    in_four_bits: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.adapters.free_bytes", lambda _: 1000)
    assert in_four_bits.hold_halves(sampling=True) == "none"
    assert not any(held_at_each_token(in_four_bits))


def test_what_four_bits_hold_is_exact_in_bf16_and_has_eleven_bits_in_fp16(in_four_bits: Adapters) -> None:
    groups, dtype = groups_of(in_four_bits.base), in_four_bits.base.dtype
    rounding = 0.0 if dtype == torch.bfloat16 else 2**-11
    with unpacked(groups, dtype):
        for group in groups:
            half = half_for(group, 1)
            assert half is not None
            whole = torch.cat([dense_weight(one, dtype) for one in group])
            found = half_linear(half, torch.eye(whole.shape[1], dtype=dtype)[:MOST_ROWS])
            torch.testing.assert_close(found, whole.T[: len(found)], rtol=rounding, atol=rounding * 2**-13)


def test_memory_that_runs_out_while_unpacking_ends_nothing(
    in_four_bits: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = drawn(in_four_bits)
    assert in_four_bits.hold_halves(sampling=True) == "all unpacked"
    real, calls = half_weights._product, itertools.count()

    def short(*given: Any) -> Any:
        if next(calls) == 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return real(*given)

    monkeypatch.setattr(half_weights, "_product", short)
    assert drawn(in_four_bits) == before
    assert next(calls) == 4
    assert not any(half_for(group, 1) for group in groups_of(in_four_bits.base))


def test_without_a_kernel_four_bits_are_never_unpacked_for_nothing(
    in_four_bits: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half_weights, "has_kernel", lambda _: False)
    monkeypatch.setattr(half_weights, "_half_of", lambda *_: pytest.fail("unpacked"))
    assert in_four_bits.hold_halves(sampling=True) == "none"
    assert len(drawn(in_four_bits)) == 6


def test_a_run_of_a_version_that_unpacked_nothing_goes_on_so(in_four_bits: Adapters) -> None:
    in_four_bits.hold_halves(sampling=True, as_before="all")
    assert not any(held_at_each_token(in_four_bits))
