import dataclasses
from pathlib import Path

import pytest

from workbench.doctor_plan import planned
from workbench.memory_choice import MARGIN, choose, without_plan
from workbench.memory_plan import HEAD_ROWS, Peak, plan_memory
from workbench.model_shape import LLAMAS, Shape
from workbench.recipes import DpoRecipe, PpoRecipe, RewardRecipe, SftRecipe
from workbench.records import METHODS

EIGHT = LLAMAS["Llama 8B"]
SMALL = Shape(43_787_776, 512, 12, 1408, 8, 4, 64, 16_384, 2048)
GIB = 1024**3


def chosen(recipe, gib, *, rows=((1024,),) * 16, gpu=True, **more):
    found = choose("sft", recipe, EIGHT, rows, int(gib * GIB), gpu=gpu, **more)
    return found.recipe.micro_batch, found.recipe.gradient_checkpointing, found.plan.peak.bytes <= MARGIN * gib * GIB


def test_the_fastest_settings_that_fit_are_chosen_and_checkpointing_comes_last():
    recipe = SftRecipe(quantisation="nf4", batch=16)
    assert chosen(recipe, 200) == (16, False, True)
    _, checkpointing, fits = chosen(recipe, 15)
    assert (checkpointing, fits) == (False, True)
    size, checkpointing, fits = chosen(recipe, 12)
    assert (checkpointing, fits) == (True, True)
    assert size >= 1
    assert chosen(recipe, 1) == (1, True, False)  # nothing fits: the smallest


def test_a_micro_batch_that_is_set_binds_and_so_does_the_checkpointing_beside_it():
    assert chosen(SftRecipe(batch=16, micro_batch=8), 1) == (8, False, False)
    found = choose("sft", SftRecipe(batch=16, micro_batch=8), EIGHT, [[1024]] * 16, GIB, gpu=True)
    assert found.reason == ""
    assert found.chosen == ("head_rows",)
    assert chosen(SftRecipe(batch=16, gradient_checkpointing=True), 200) == (16, True, True)
    kept = choose("sft", SftRecipe(micro_batch=1, head_rows=7), EIGHT, [[1024]], GIB, gpu=True)
    assert (kept.recipe.head_rows, kept.chosen) == (7, ())


def test_what_was_chosen_is_named_with_its_reason():
    found = choose("sft", SftRecipe(batch=16), EIGHT, [[1024]] * 16, 12 * GIB, gpu=True)
    assert found.chosen == ("micro_batch", "gradient_checkpointing", "head_rows")
    assert f"micro-batches of {found.recipe.micro_batch} of the 16 rows" in found.reason
    assert "with gradient checkpointing" in found.reason
    assert "of 12.0 GiB free, most of it in update" in found.reason
    tight = choose("sft", SftRecipe(batch=16), EIGHT, [[1024]] * 16, GIB, gpu=True)
    assert "no choice fits, and this is the smallest" in tight.reason


def test_fewer_rows_of_logits_at_once_come_before_a_smaller_micro_batch():
    recipe, rows = SftRecipe(batch=4, gradient_checkpointing=True), [[512]] * 4
    whole, few = (
        plan_memory(
            "sft", dataclasses.replace(recipe, micro_batch=4, head_rows=count), EIGHT, rows, gpu=True
        ).peak.bytes
        for count in (HEAD_ROWS, 128)
    )
    assert whole - few > 384 * EIGHT.vocabulary * 4 * 3  # three chunks of logits in fp32 are 384 rows smaller
    found = choose("sft", recipe, EIGHT, rows, int((whole + few) / 2 / MARGIN), gpu=True)
    assert (found.recipe.micro_batch, found.recipe.head_rows) == (4, 128)


def test_on_a_cpu_no_more_rows_are_chosen_than_1024_tokens_hold_so_that_halving_helps():
    found = choose("sft", SftRecipe(batch=32), SMALL, [[100]] * 16 + [[250]] * 16, 64 * GIB, gpu=False)
    assert found.recipe.micro_batch == 10  # 1024 // 100
    pairs = choose("dpo", DpoRecipe(batch=8), SMALL, [[100, 160]] * 8, 64 * GIB, gpu=False, prompts=[80] * 8)
    assert pairs.recipe.micro_batch == 5  # 1024 // 180: the prompt passes once


def test_a_ranking_that_fits_once_its_prompt_is_shared_is_not_torn():
    # nine responses of 56 tokens to a prompt of 200: 704 pass at once
    rows = [[256, 256]] * 36
    found = choose("reward", RewardRecipe(batch=1), SMALL, rows, 64 * GIB, rankings=[9], gpu=False, prompts=[200] * 36)
    assert found.recipe.micro_batch == 5  # 10 sequences


def test_a_micro_batch_of_ppo_is_no_larger_than_a_mini_batch():
    recipe = PpoRecipe(batch=32, mini_batches=4, rule="shorter-than:40")
    assert choose("ppo", recipe, SMALL, [[50]] * 32, 64 * GIB, gpu=True).recipe.micro_batch == 8


def rewarded(batch, rankings, available=1000 * GIB, **changes):
    """The choice for a reward model of rankings of so many responses."""
    rows = [[1024, 1024]] * sum(size * (size - 1) // 2 for size in rankings)
    return choose("reward", RewardRecipe(batch=batch, **changes), EIGHT, rows, available, rankings=rankings, gpu=True)


@pytest.mark.parametrize(
    ("batch", "rankings", "size", "at_once"),
    [
        (1, [9], 5, "9 of the 9"),  # 36 pairs, yet 9 responses: five pairs hold as many
        (2, [2, 9, 4], 7, "13 of the 13"),  # the two largest of three
        (8, [9] * 8, 36, "72 of the 72"),
        (8, [2] * 20, 8, "16 of the 16"),
        (8, [2, 2], 2, "4 of the 4"),
    ],
)
def test_where_a_batch_counts_rankings_a_micro_batch_holds_all_their_responses(batch, rankings, size, at_once):
    found = rewarded(batch, rankings)
    assert found.recipe.micro_batch == size
    assert found.reason.startswith(f"micro-batches of {at_once} responses that a batch has at most, without gradient")


def test_on_a_cpu_a_ranking_of_512_tokens_passes_at_once():
    rows = [[56, 56]] * 36
    found = choose("reward", RewardRecipe(batch=1), SMALL, rows, 64 * GIB, rankings=[9], gpu=False)
    assert 2 * found.recipe.micro_batch >= 8  # 512 // (2 x 56) pairs


def test_rankings_are_torn_only_where_gradient_checkpointing_does_not_keep_them_whole():
    def peak(size, checkpointing):
        recipe = RewardRecipe(micro_batch=size, gradient_checkpointing=checkpointing, head_rows=HEAD_ROWS)
        return plan_memory("reward", recipe, EIGHT, [[1024, 1024]], gpu=True).peak.bytes

    def given(size, checkpointing):
        found = rewarded(2, [9, 9], int(peak(size, checkpointing) / MARGIN) + 1).recipe
        return found.micro_batch, found.gradient_checkpointing

    assert given(9, False) == (9, False)
    assert given(5, False) == (5, False)  # half of 9 is 4, which would tear a ranking of 9
    assert peak(9, True) < peak(4, False)
    assert given(4, False) == (9, True)
    assert given(5, True) == (5, True)
    assert given(2, True) == (2, True)  # nothing else fits


def test_what_earlier_runs_measured_changes_the_choice():
    recipe, rows = SftRecipe(batch=16), ((1024,),) * 16
    plain = chosen(recipe, 16, rows=rows)
    assert chosen(recipe, 16, rows=rows, peaks=[Peak("sft", 3e9, 1e9, gpu=True)]) != plain


def test_without_a_plan_a_micro_batch_has_four_rows():
    assert without_plan(SftRecipe(batch=8)).micro_batch == 4
    assert without_plan(SftRecipe(batch=2)).micro_batch == 2
    assert without_plan(SftRecipe(batch=8, micro_batch=3)).micro_batch == 3
    assert without_plan(RewardRecipe(batch=1)).micro_batch == 4  # one ranking has several pairs


# ---- on paper ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "gib"), [("sft", 12), ("dpo", 12), ("reward", 12), ("ppo", 16)])
def test_an_8_b_model_in_nf4_trains_on_a_small_gpu_at_length_1024(method, gib):
    found = planned(method, EIGHT, gib * GIB, gpu=True, length=1024)
    assert found.recipe.quantisation == "nf4"
    assert found.plan.peak.bytes <= MARGIN * gib * GIB


@pytest.mark.parametrize("method", METHODS)
def test_memory_on_a_gpu_grows_with_the_model_and_with_the_length(method):
    recipe = dataclasses.replace(planned(method, EIGHT, 1, gpu=True).recipe, micro_batch=1)

    def peak(shape, length):
        rows = [[length] * (2 if method in ("reward", "dpo") else 1)] * recipe.batch
        return plan_memory(method, recipe, shape, rows, gpu=True).peak.bytes

    by_model = [peak(shape, 1024) for shape in LLAMAS.values()]
    by_length = [peak(EIGHT, length) for length in (512, 1024, 2048)]
    assert by_model == sorted(by_model)
    assert by_length == sorted(by_length)
    assert len({*by_model, *by_length}) == 5


DOCUMENT = Path(__file__).parent.parent / "benchmarks" / "MEMORY.md"
TITLES = {"sft": "SFT", "reward": "Reward", "dpo": "DPO", "kto": "KTO", "ppo": "PPO"}


def paper_table():
    """The peak of each Llama, method and length in GiB, and the settings that the plan chooses."""
    lines = []
    for name, shape in LLAMAS.items():
        for method in METHODS:
            gib = 16 if method == "ppo" else 12
            cells = []
            for length in (512, 1024, 2048):
                found = planned(method, shape, gib * GIB, gpu=True, length=length)
                size = found.plan.peak.bytes / GIB
                marks = "*" * found.recipe.gradient_checkpointing + "+" * (found.recipe.head_rows < HEAD_ROWS)
                over = " (too much)" if size > MARGIN * gib else ""
                cells.append(f"{size:.1f} with {found.recipe.micro_batch}{marks}{over}")
            lines.append(f"| {name} | {TITLES[method]} | {gib} | {' | '.join(cells)} |")
    return lines


def test_the_document_shows_what_the_plan_says():
    shown = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| Llama")]
    assert shown == paper_table()
