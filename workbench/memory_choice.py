"""Which micro-batch, chunk of logits and gradient checkpointing suit the memory that is free: the fastest that fit.

A ``micro_batch`` of 0 is automatic, and lets gradient checkpointing be turned on too; one that is set binds, and so
does the checkpointing beside it. ``head_rows`` is automatic at 0 by itself. The effective batch always stays.

A micro-batch of pairs holds twice as many responses. Where a batch counts rankings (a reward model's), it holds those
of a whole batch if they fit, and a ranking is torn last of all: each of its responses would then pass several times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from workbench.memory_plan import (
    CPU_MICRO_TOKENS,
    HEAD_ROWS,
    MemoryPlan,
    Peak,
    on_gpu,
    packed_tokens,
    plan_memory,
    with_prompts,
)
from workbench.model_shape import Shape
from workbench.recipes import PpoRecipe, Recipe
from workbench.records import Method
from workbench.terminal import in_bytes

MARGIN = 0.9  # settings are chosen to fill so much of what is free: a plan is right within a tenth
FEW_HEAD_ROWS = 128  # a quarter of the logits at once, where a vocabulary of 128,000 would take 0.8 GB


@dataclass(frozen=True, slots=True)
class Choice:
    """A recipe with nothing automatic left, what it will need, and what was chosen why."""

    recipe: Recipe
    plan: MemoryPlan
    chosen: tuple[str, ...] = ()  # the settings that were chosen here
    settings: str = ""  # they in words, and whether they fit; "" where nothing was automatic
    need: str = ""  # what they take of what is free

    @property
    def reason(self) -> str:
        """The choice in a sentence; "" where nothing was automatic."""
        return f"{self.settings}: {self.need}" if self.settings else ""


def choose(
    method: Method,
    recipe: Recipe,
    shape: Shape,
    rows: Sequence[Sequence[int]],
    available: int,
    *,
    prompts: Sequence[int] = (),
    mixed_in: Sequence[Sequence[int]] = (),
    start_rank: int = 0,
    peaks: Sequence[Peak] = (),
    base: str = "",
    gpu: bool | None = None,
    rankings: Sequence[int] = (),
) -> Choice:
    """Settle what a recipe leaves automatic: large micro-batches first, gradient checkpointing last.

    Arguments as :func:`workbench.memory_plan.plan_memory`; ``available`` bytes are free; ``rankings`` has the different
    responses of each ranking where a batch counts rankings, by default each row is one. Where nothing fits, the
    smallest plan comes back.
    """
    gpu = on_gpu(recipe.device) if gpu is None else gpu
    smallest: tuple[Recipe, MemoryPlan] | None = None
    rankings = sorted(rankings or map(len, rows), reverse=True)[: recipe.batch] if recipe.batch_counts_rankings else ()
    whole = -(-rankings[0] // 2) if rankings else 1  # holds every ranking
    bound = None if gpu else _most_that_pass(recipe, rows, prompts)
    for tried in _from_fast_to_small(recipe, _most_rows(recipe, bound, sum(rankings)), whole, gpu=gpu):
        plan = plan_memory(
            method,
            tried,
            shape,
            rows,
            prompts=prompts,
            mixed_in=mixed_in,
            start_rank=start_rank,
            peaks=peaks,
            base=base,
            available=available,
            gpu=gpu,
        )
        if plan.peak.bytes <= MARGIN * available:
            return _told(recipe, tried, plan, available, sum(rankings), fits=True)
        if smallest is None or plan.peak.bytes <= smallest[1].peak.bytes:
            smallest = tried, plan
    assert smallest is not None
    return _told(recipe, *smallest, available, sum(rankings), fits=False)


def without_plan(recipe: Recipe) -> Recipe:
    """Settle a recipe for which no plan was made: micro-batches of four rows, as the field's defaults have it."""
    if recipe.micro_batch:
        return recipe
    return replace(recipe, micro_batch=4 if recipe.batch_counts_rankings else min(4, recipe.batch))


def _most_that_pass(recipe: Recipe, rows: Sequence[Sequence[int]], prompts: Sequence[int]) -> int:
    """How many rows the tokens hold at most that pass at once on a CPU.

    Of a ranking every further pair brings two responses, and no prompt.
    """
    if not recipe.batch_counts_rankings:
        return CPU_MICRO_TOKENS // max(1, min(packed_tokens(rows, prompts), default=1))
    return max(
        ((CPU_MICRO_TOKENS - once) // max(1, 2 * (min(row) - once)) for row, once in with_prompts(rows, prompts)),
        default=1,
    )


def _most_rows(recipe: Recipe, bound: int | None, responses: int) -> int:
    """The most rows that an update ever passes at once, so that halving it changes something.

    ``bound`` is how many the device passes at once; ``responses`` is how many the rankings of a batch have at most,
    where it counts those.
    """
    most = recipe.batch // recipe.mini_batches if isinstance(recipe, PpoRecipe) else recipe.batch
    if recipe.batch_counts_rankings:
        most = -(-responses // 2)
    if bound is not None:
        most = min(most, bound)
    return max(1, most)


def _from_fast_to_small(recipe: Recipe, most: int, whole: int, *, gpu: bool) -> Iterator[Recipe]:
    """Every choice, the faster ones first. Below ``whole`` rankings are torn, which is slower than checkpointing."""
    chunks = [recipe.head_rows] if recipe.head_rows else [HEAD_ROWS, FEW_HEAD_ROWS] if gpu else [HEAD_ROWS]
    automatic = recipe.micro_batch == 0
    sizes = _halves(most, whole) if automatic else [recipe.micro_batch]
    for some in [size for size in sizes if size >= whole], [size for size in sizes if size < whole]:
        for checkpointing in (False, True) if automatic and not recipe.gradient_checkpointing else (None,):
            for size in some:
                for chunk in chunks:
                    on = recipe.gradient_checkpointing if checkpointing is None else checkpointing
                    yield replace(recipe, micro_batch=size, gradient_checkpointing=on, head_rows=chunk)


def _halves(most: int, whole: int) -> list[int]:
    """Halve a size down to 1, with ``whole`` on the way."""
    sizes = [most]
    while (size := sizes[-1]) > 1:
        sizes.append(whole if size > whole > size // 2 else size // 2)
    return sizes


def _told(asked: Recipe, found: Recipe, plan: MemoryPlan, available: int, responses: int, *, fits: bool) -> Choice:
    names = ("micro_batch", "gradient_checkpointing", "head_rows")
    chosen = tuple(name for name in names if getattr(asked, name) != getattr(found, name))
    if asked.micro_batch:
        return Choice(found, plan, chosen)
    rows = f"micro-batches of {found.micro_batch} of the {found.batch} rows of a batch"
    if found.batch_counts_rankings:
        at_once = min(2 * found.micro_batch, responses)
        rows = f"micro-batches of {at_once} of the {responses} responses that a batch has at most"
    how = "with" if found.gradient_checkpointing else "without"
    few = f", {found.head_rows} rows of logits at once" if found.head_rows != HEAD_ROWS else ""
    need = f"about {in_bytes(plan.peak.bytes)} of {in_bytes(available)} free, most of it in {plan.peak.name}"
    verdict = "" if fits else "; no choice fits, and this is the smallest"
    return Choice(found, plan, chosen, f"{rows}, {how} gradient checkpointing{few}{verdict}", need)
