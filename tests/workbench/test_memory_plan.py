import dataclasses

import pytest

from engine import batching, logps
from workbench import memory_plan
from workbench.memory_plan import Peak, graph_per_token, kept_room, plan_memory
from workbench.model_shape import LLAMAS, Shape
from workbench.recipes import DpoRecipe, KtoRecipe, PpoRecipe, RewardRecipe, SftRecipe
from workbench.terminal import in_bytes

SMALL = Shape(43_787_776, 512, 12, 1408, 8, 4, 64, 16_384, 2048)  # a random Llama of some size
EIGHT = LLAMAS["Llama 8B"]
GIB = 1024**3


def by_name(plan):
    return {one.name: one.bytes for one in plan.phases}


def test_the_parameters_of_the_llamas_are_those_of_their_layers():
    for shape, heads in ((LLAMAS["Llama 1B"], 1), (LLAMAS["Llama 3B"], 1), (EIGHT, 2)):  # the small ones tie their head
        norms = (2 * shape.layers + 1) * shape.hidden
        assert shape.parameters == shape.linear_parameters + norms + heads * shape.vocabulary * shape.hidden


def test_the_plan_counts_in_the_engines_own_pieces():
    assert (memory_plan.CPU_MICRO_TOKENS, memory_plan.HEAD_ROWS) == (batching.CPU_MICRO_TOKENS, logps.CHUNK_ROWS)
    assert memory_plan.HEAD_BLOCK == logps.VOCABULARY_BLOCK


def test_a_file_that_is_mapped_while_it_is_packed_is_resident_and_not_needed():
    plan = plan_memory("sft", SftRecipe(quantisation="nf4"), EIGHT, [[8]], gpu=False)
    assert plan.phases[0].mapped == 2 * EIGHT.parameters
    assert plan.resident_bytes > plan.peak.bytes
    assert plan_memory("sft", SftRecipe(quantisation="nf4"), EIGHT, [[8]], gpu=True).phases[0].mapped == 0


def test_a_cpu_never_passes_more_than_1024_tokens_at_once_unless_one_row_has_more():
    recipe = SftRecipe(batch=64, micro_batch=64)
    updates = [
        by_name(plan_memory("sft", recipe, SMALL, [[length]] * 64, gpu=False))["update"] for length in (16, 64, 1024)
    ]
    assert updates[0] == updates[1] == updates[2]
    longer = by_name(plan_memory("sft", recipe, SMALL, [[2048]] * 64, gpu=False))["update"]
    assert longer > updates[0]
    alone = dataclasses.replace(recipe, micro_batch=1)
    assert by_name(plan_memory("sft", alone, SMALL, [[2048]], gpu=False))["update"] == longer


def test_the_prompt_that_the_sides_of_a_pair_share_passes_once_where_it_is_packed():
    recipe = DpoRecipe(batch=4, micro_batch=1)

    def tokens(rows, prompts=(), *, gpu=False, recipe=recipe):
        plan = plan_memory("dpo", recipe, SMALL, rows, prompts=prompts, gpu=gpu)
        [line] = [one for one in plan.lines if one.startswith("activations")]
        return int(line.split()[1].replace(",", ""))

    assert tokens([[300, 340]] * 4) == 640
    assert tokens([[300, 340]] * 4, [200] * 4) == 440
    assert tokens([[300, 340]] * 4, [200] * 4, gpu=True) == 680  # padded rows share nothing
    # micro-batches are cut at 1024 tokens that pass: 4 pairs would have 4 x 300
    many = DpoRecipe(batch=4, micro_batch=4)
    assert tokens([[200, 200]] * 4, [100] * 4, recipe=many) == 1024
    assert tokens([[200, 200]] * 4, recipe=many) == 1024


def test_on_a_gpu_a_kept_graph_covers_the_padding_too(monkeypatch):
    monkeypatch.setattr(memory_plan, "kept_room", lambda *_, **__: 2**50)
    recipe = PpoRecipe(rule="contains:a", batch=8, mini_batches=2, micro_batch=1, quantisation="nf4")
    kept = []
    for rows in ([[100]] * 8, [[100]] + [[10]] * 7):
        for gpu in (True, False):
            plan = plan_memory("ppo", recipe, SMALL, rows, gpu=gpu)
            kept.append(next(one for one in plan.lines if one.startswith("graphs kept")))
    padded, packed, padded_too, fewer = kept
    assert padded == padded_too  # 4 rows of 100 columns each
    assert packed != fewer


def test_more_mini_batches_than_episodes_are_planned_until_the_recipe_refuses_them():
    recipe = PpoRecipe(rule="contains:a", batch=8, mini_batches=16)
    for gpu in (True, False):
        assert plan_memory("ppo", recipe, SMALL, [[100]], gpu=gpu).peak.bytes > 0
    assert any(one.field == "mini_batches" for one in recipe.problems())


def test_prompts_that_come_again_in_a_mini_batch_are_kept_again(monkeypatch):
    monkeypatch.setattr(memory_plan, "kept_room", lambda *_, **__: 2**50)
    recipe = PpoRecipe(rule="contains:a", batch=8, mini_batches=2, micro_batch=1)
    few, many = (by_name(plan_memory("ppo", recipe, SMALL, [[100]] * count, gpu=False)) for count in (2, 8))
    assert few == many


def test_a_gpu_pads_so_that_memory_grows_with_the_micro_batch():
    plans = [
        by_name(plan_memory("sft", SftRecipe(micro_batch=size), EIGHT, [[256]] * 8, gpu=True))["update"]
        for size in (2, 4, 8)
    ]
    assert plans[2] - plans[1] == pytest.approx(2 * (plans[1] - plans[0]), rel=0.15)  # but for the head's chunk


def test_weights_are_four_bytes_on_a_cpu_without_bf16_two_with_it_and_half_of_one_in_nf4(monkeypatch):
    plain = SftRecipe(quantisation="bf16", micro_batch=1, batch=1)

    def update(recipe):
        return by_name(plan_memory("sft", recipe, EIGHT, [[8]], gpu=False))["update"]

    wide, packed = update(plain), update(dataclasses.replace(plain, quantisation="nf4"))
    monkeypatch.setattr(memory_plan, "cpu_has_bf16", lambda: True)
    narrow = update(plain)
    halves = 2 * 2 * EIGHT.layers * EIGHT.hidden * EIGHT.intermediate  # gate and up, held in fp16 as well
    head = 2 * EIGHT.vocabulary * EIGHT.hidden
    assert wide - narrow == pytest.approx(2 * EIGHT.parameters + halves + head, rel=0.02)
    without = (4 - memory_plan.NF4_BYTES) * EIGHT.linear_parameters
    assert wide - packed == pytest.approx(without + halves, rel=0.02)


def test_layers_are_held_in_16_bits_as_well_on_a_cpu_that_has_room(monkeypatch):
    plain, sampling = SftRecipe(quantisation="bf16"), PpoRecipe(quantisation="bf16", rule="contains:a")

    def load(recipe, **given):
        method = {SftRecipe: "sft", RewardRecipe: "reward", PpoRecipe: "ppo"}[type(recipe)]
        return by_name(plan_memory(method, recipe, SMALL, [[8]], gpu=False, **given))["load"]

    short = 4 * SMALL.parameters  # bytes: the model alone
    head = 2 * SMALL.vocabulary * SMALL.hidden
    mlps = 2 * SMALL.layers * SMALL.hidden * 2 * SMALL.intermediate
    wide = mlps + head
    reward = RewardRecipe(quantisation="bf16")  # nothing of it reads the LM head
    assert load(reward) - load(reward, available=short) == mlps
    assert load(plain) - load(plain, available=short) == wide
    every = 2 * SMALL.linear_parameters + head
    assert load(sampling) - load(sampling, available=short) == every
    between = int(load(sampling, available=short)) + 3 * wide + 1  # room for what is wide alone
    assert load(sampling, available=between) - load(sampling, available=short) == wide
    packed = dataclasses.replace(sampling, quantisation="nf4")
    assert load(packed) - load(packed, available=short) == head
    between = int(load(plain, available=short)) + 3 * mlps + 1  # the head has no room
    assert load(plain, available=between) - load(plain, available=short) == mlps
    finer = dataclasses.replace(plain, quantisation="fp32")
    assert load(finer) == load(plain) - wide
    monkeypatch.setattr(memory_plan, "cpu_has_bf16", lambda: True)
    assert load(plain) == load(plain, available=short)
    assert load(sampling) - load(sampling, available=short) == every


@pytest.mark.parametrize("bf16", [True, False])
def test_what_is_in_4_bits_lies_unpacked_beside_the_cache_while_ppo_samples_if_it_has_room(monkeypatch, bf16):
    monkeypatch.setattr(memory_plan, "cpu_has_bf16", lambda: bf16)
    recipe = PpoRecipe(quantisation="nf4", rule="contains:a", batch=2, micro_batch=1)

    def of(available):
        plan = plan_memory("ppo", recipe, EIGHT, [[8]], gpu=False, available=available)
        return by_name(plan), [line for line in plan.lines if line.startswith("4-bit layers unpacked")]

    (rich, said), (poor, unsaid) = of(200 * GIB), of(10 * GIB)
    every = 2 * EIGHT.linear_parameters
    assert rich["rollout"] - rich["load"] > every
    assert poor["rollout"] - poor["load"] < every / 2
    assert rich["update"] - rich["load"] < every / 2
    assert said == [f"4-bit layers unpacked while sampling: {in_bytes(every)}"]
    assert unsaid == []


def test_a_model_that_does_not_pack_passes_its_padding_on_a_cpu_and_holds_nothing_twice():
    other = dataclasses.replace(SMALL, packs=False)
    recipe = SftRecipe(quantisation="bf16", micro_batch=4, batch=4)

    def of(shape, rows, name="update"):
        return by_name(plan_memory("sft", recipe, shape, rows, gpu=False))[name]

    assert of(SMALL, [[8]], "load") - of(other, [[8]], "load") == 2 * (
        SMALL.layers * SMALL.hidden * 2 * SMALL.intermediate + SMALL.vocabulary * SMALL.hidden
    )
    even, uneven = [[200]] * 4, [[200], [10], [10], [10]]
    assert of(other, even) == of(other, uneven)
    assert of(SMALL, even) > of(SMALL, uneven)
    assert of(other, [[600]] * 4) < of(other, [[1000]] * 4)  # as many whole rows as 1,024 tokens hold: one


def test_ppo_keeps_the_graphs_of_its_first_mini_batch_where_there_is_room():
    recipe = PpoRecipe(rule="contains:a", batch=32, micro_batch=1, quantisation="nf4")
    of = dataclasses.replace

    def score(recipe, available=2**50, gpu=False):
        return by_name(plan_memory("ppo", recipe, SMALL, [[100]] * 32, available=available, gpu=gpu))["score"]

    nothing = score(of(recipe, mini_batches=32), available=1)
    one = 1.1 * 2 * 100 * graph_per_token(SMALL, recipe.lora_rank, 4, gpu=False, checkpointing=False)
    head = 2 * SMALL.vocabulary * SMALL.hidden  # held in fp16 as well, where there is room
    assert score(of(recipe, mini_batches=32)) - nothing - head == pytest.approx(one, abs=2)
    assert score(of(recipe, mini_batches=16)) - nothing - head == pytest.approx(2 * one, abs=2)
    assert score(of(recipe, mini_batches=32, advantage="rloo")) < score(of(recipe, mini_batches=32)) - one / 2 + 1
    assert score(of(recipe, mini_batches=1)) - nothing - head == pytest.approx(1.1 * memory_plan.KEPT_BYTES, abs=2)
    assert (kept_room(2**50, gpu=False), kept_room(2**20, gpu=False)) == (memory_plan.KEPT_BYTES, 2**18)
    assert (kept_room(2**50, gpu=True), kept_room(2**20, gpu=True)) == (memory_plan.GPU_KEPT_BYTES, 2**18)


def test_ppo_rolls_out_scores_and_updates_and_only_the_rollout_has_a_cache():
    recipe = PpoRecipe(quantisation="nf4", batch=32, micro_batch=1)
    plan = plan_memory("ppo", recipe, EIGHT, [[1024]] * 32, gpu=True)
    found = by_name(plan)
    assert list(found) == ["load", "rollout", "score", "update"]
    # keys and values of 32 episodes of 1024 tokens, 32 layers of 8 heads of 128 in bf16, with room for a quarter more
    cache = 32 * 1024 * 32 * 2 * 8 * 128 * 2 * 1.25
    kept = 1.1 * memory_plan.GPU_KEPT_BYTES  # graphs that are kept for the update, as far as there is room for them
    assert found["rollout"] - found["score"] == int(max(cache, kept) - kept)
    assert any("key-value cache of 32 episodes at once" in line for line in plan.lines)
    ruled = plan_memory("ppo", dataclasses.replace(recipe, rule="shorter-than:40"), EIGHT, [[1024]], gpu=True)
    rank = EIGHT.adapter_parameters(recipe.lora_rank)
    assert found["load"] - by_name(ruled)["load"] == 4 * rank  # no reward adapter


def test_a_rollout_samples_no_more_episodes_at_once_than_half_of_what_is_free_holds_twice():
    recipe = PpoRecipe(
        quantisation="nf4", batch=32, mini_batches=32, micro_batch=1, gradient_checkpointing=True
    )  # an episode of 32 keeps less than the cache takes
    rows = [[2048]] * 32
    whole = by_name(plan_memory("ppo", recipe, EIGHT, rows, gpu=True))
    bound = by_name(plan_memory("ppo", recipe, EIGHT, rows, available=16 * GIB, gpu=True))
    assert bound["update"] == whole["update"]
    episode = 2048 * 32 * 2 * 8 * 128 * 2
    fewer = (whole["rollout"] - bound["rollout"]) / (episode * 1.25)
    assert fewer == pytest.approx(round(fewer), abs=0.01)
    assert 1 < 32 - round(fewer) <= (16 * GIB / 2) / (2 * episode)
    least = by_name(plan_memory("ppo", recipe, EIGHT, rows, available=1, gpu=True))
    assert least["rollout"] - least["score"] == int(episode * 1.25)  # one at least


@pytest.mark.parametrize(("method", "recipe"), [("dpo", DpoRecipe()), ("kto", KtoRecipe())])
def test_a_reference_costs_an_adapter_only_where_one_is_continued(method, recipe):
    fresh, continued = (
        by_name(plan_memory(method, recipe, EIGHT, [[64, 64]], start_rank=rank, gpu=True))["load"]
        for rank in (0, recipe.lora_rank)
    )
    assert continued - fresh == 4 * EIGHT.adapter_parameters(recipe.lora_rank)


@pytest.mark.parametrize("gpu", [True, False])
def test_demonstrations_that_are_longer_than_the_episodes_cost_memory_in_the_update_alone(gpu, monkeypatch):
    monkeypatch.setattr(memory_plan, "kept_room", lambda *_, **__: 0)  # longer episodes would keep more
    recipe, rows = PpoRecipe(rule="contains:a", micro_batch=4), [[128]] * 8
    plain, mixed, short = (
        by_name(plan_memory("ppo", recipe, EIGHT, rows, mixed_in=shown, gpu=gpu)) for shown in ((), [[1024]], [[9]])
    )
    longer = by_name(plan_memory("ppo", recipe, EIGHT, [[1024]] * 8, gpu=gpu))
    assert mixed["update"] == longer["update"] > plain["update"]
    assert mixed | {"update": plain["update"]} == plain == short


def test_a_reward_model_has_no_logits():
    rows = [[512, 512]]
    reward = plan_memory("reward", RewardRecipe(micro_batch=4), EIGHT, rows, gpu=True)
    dpo = plan_memory("dpo", DpoRecipe(micro_batch=4), EIGHT, rows, gpu=True)
    assert by_name(dpo)["update"] - by_name(reward)["update"] > 512 * EIGHT.vocabulary * 4 * 3


def test_what_runs_measured_corrects_the_next_plan_and_the_same_method_counts_first():
    recipe, rows = SftRecipe(), [[100]] * 8
    plain = plan_memory("sft", recipe, SMALL, rows, gpu=False)
    peaks = [Peak("sft", 300, 200), Peak("sft", 240, 200), Peak("sft", 100, 100), Peak("dpo", 900, 100)]

    def ratio(peaks):
        plan = plan_memory("sft", recipe, SMALL, rows, peaks=peaks, gpu=False)
        return plan.measured, plan.peak.bytes / plain.peak.bytes

    assert ratio(peaks) == (True, pytest.approx(1.2))
    assert ratio(peaks[3:]) == (True, pytest.approx(9))
    assert ratio([Peak("sft", 300, 100, gpu=True), Peak("sft", 1, 0)]) == (False, 1)  # another device says nothing


def test_runs_of_the_same_model_and_quantisation_say_most_and_each_phase_is_corrected_by_its_own():
    recipe, rows = PpoRecipe(rule="shorter-than:40", micro_batch=1), [[100]] * 8
    plain = by_name(plan_memory("ppo", recipe, SMALL, rows, gpu=False))
    here = {"base": "/a", "quantisation": "nf4"}
    twice = Peak("ppo", 4e9, 2e9, **here, measured_by_phase={"update": 3e9}, foretold_by_phase={"update": 1e9})
    others = [Peak("ppo", 9e9, 1e9, base="/b", quantisation="nf4"), Peak("ppo", 9e9, 1e9, base="/a")]
    plan = plan_memory("ppo", recipe, SMALL, rows, peaks=[*others, twice], base="/a", gpu=False)
    ratios = {name: size / plain[name] for name, size in by_name(plan).items()}
    # measured / foretold: 3 / 1 of the update, whose phase is known; 4 / 2 of the whole for the rest
    assert ratios == pytest.approx({"load": 2, "rollout": 2, "score": 2, "update": 3})
    assert plan.last is twice
    assert "measured last time: 3.7 GiB (update 2.8 GiB)" in plan.lines
    elsewhere = plan_memory("ppo", recipe, SMALL, rows, peaks=[twice], base="/c", gpu=False)
    assert elsewhere.measured  # the same method is better than nothing
    dpo = plan_memory("dpo", DpoRecipe(micro_batch=1), SMALL, [[50, 50]], peaks=[twice], base="/a", gpu=False)
    assert dpo.measured
    assert dpo.last is None  # another method's peak corrects, and is not shown as this one's


def test_whether_a_cpu_has_bf16_is_read_from_its_flags(monkeypatch, tmp_path):
    monkeypatch.undo()
    probe = memory_plan.cpu_has_bf16.__wrapped__  # what it says without its memory
    told = {"fpu avx2": False, "avx512vl avx512bw avx512dq": False, "avx512vl avx512_bf16": True, "asimd bf16": True}
    for flags, has in told.items():
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
        monkeypatch.setattr(memory_plan, "Path", lambda _: tmp_path / "cpuinfo")
        assert probe() is has
    monkeypatch.setattr(memory_plan, "Path", lambda _: tmp_path / "nowhere")
    assert probe() is False
