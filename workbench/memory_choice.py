"""Which micro-batch, chunk of logits and gradient checkpointing suit the memory that is free: the fastest that fit.

A ``micro_batch`` of 0 is automatic, and lets gradient checkpointing be turned on too; one that is set binds, and so
does the checkpointing beside it. ``head_rows`` is automatic at 0 by itself. The effective batch always stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from workbench.memory_plan import CPU_MICRO_TOKENS, HEAD_ROWS, MemoryPlan, Peak, on_gpu, plan_memory
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
) -> Choice:
    """Settle what a recipe leaves automatic: large micro-batches first, gradient checkpointing last.

    Arguments as :func:`workbench.memory_plan.plan_memory`; ``available`` bytes are free. Where nothing fits, the
    smallest plan comes back.
    """
    gpu = on_gpu(recipe.device) if gpu is None else gpu
    smallest: tuple[Recipe, MemoryPlan] | None = None
    for tried in _from_fast_to_small(recipe, _most_rows(recipe, rows, gpu=gpu), gpu=gpu):
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
            return _told(recipe, tried, plan, available, fits=True)
        if smallest is None or plan.peak.bytes <= smallest[1].peak.bytes:
            smallest = tried, plan
    assert smallest is not None
    return _told(recipe, *smallest, available, fits=False)


def without_plan(recipe: Recipe) -> Recipe:
    """Settle a recipe for which no plan was made: micro-batches of four rows, as the field's defaults have it."""
    return recipe if recipe.micro_batch else replace(recipe, micro_batch=min(4, recipe.batch))


def _most_rows(recipe: Recipe, rows: Sequence[Sequence[int]], *, gpu: bool) -> int:
    """The most rows that an update ever passes at once, so that halving it changes something."""
    most = recipe.batch // recipe.mini_batches if isinstance(recipe, PpoRecipe) else recipe.batch
    if not gpu:
        shortest = min((max(row) * len(row) for row in rows if row), default=1)
        most = min(most, CPU_MICRO_TOKENS // max(1, shortest))
    return max(1, most)


def _from_fast_to_small(recipe: Recipe, most: int, *, gpu: bool) -> Iterator[Recipe]:
    chunks = [recipe.head_rows] if recipe.head_rows else [HEAD_ROWS, FEW_HEAD_ROWS] if gpu else [HEAD_ROWS]
    automatic = recipe.micro_batch == 0
    for checkpointing in (False, True) if automatic and not recipe.gradient_checkpointing else (None,):
        size = most if automatic else recipe.micro_batch
        while size:
            for chunk in chunks:
                on = recipe.gradient_checkpointing if checkpointing is None else checkpointing
                yield replace(recipe, micro_batch=size, gradient_checkpointing=on, head_rows=chunk)
            size = size // 2 if automatic else 0


def _told(asked: Recipe, found: Recipe, plan: MemoryPlan, available: int, *, fits: bool) -> Choice:
    names = ("micro_batch", "gradient_checkpointing", "head_rows")
    chosen = tuple(name for name in names if getattr(asked, name) != getattr(found, name))
    if asked.micro_batch:
        return Choice(found, plan, chosen)
    rows = f"micro-batches of {found.micro_batch} of the {found.batch} rows of a batch"
    how = "with" if found.gradient_checkpointing else "without"
    few = f", {found.head_rows} rows of logits at once" if found.head_rows != HEAD_ROWS else ""
    need = f"about {in_bytes(plan.peak.bytes)} of {in_bytes(available)} free, most of it in {plan.peak.name}"
    verdict = "" if fits else "; no choice fits, and this is the smallest"
    return Choice(found, plan, chosen, f"{rows}, {how} gradient checkpointing{few}{verdict}", need)
