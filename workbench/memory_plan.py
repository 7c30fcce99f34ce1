"""What memory a run will need in each of its phases, from the model's shape, the recipe and the rows' lengths.

Counted as the engine spends it. On a CPU a micro-batch is packed into at most 512 tokens and the weights are as wide as
the arithmetic; on a GPU a micro-batch is padded and weights are bf16 or NF4. A layer keeps for its backward pass:

    per token   b (2 D + 3 H + 2 G + 2 I + 7 r) + 8 D   bytes

with b bytes a number, width D, query width H, key width G, inner width I (a gated MLP keeps two tensors of it) and rank
r; the 8 D are the inputs of the two norms in fp32. The two fitted constants come from an SFT and a PPO run of a 44 M
model in fp32 on a CPU. A project's own finished runs correct the whole (:class:`Peak`).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from workbench.model_shape import Shape
from workbench.recipes import DpoRecipe, PpoRecipe, Recipe
from workbench.records import Method
from workbench.supervisor import has_gpu
from workbench.terminal import in_bytes

MIB = 1024**2
CPU_MICRO_TOKENS = 512  # as engine.batching
HEAD_ROWS = 512  # rows of logits at once, as engine.logps
HEAD_BLOCK = 2048  # of the vocabulary at once on a CPU
LIBRARIES_BYTES = 400 * MIB  # torch, transformers and peft as they are imported; measured
KERNELS_BYTES = 40 * MIB  # what they load at the first pass; measured
TOKENIZER_BYTES = 1024  # an entry of the vocabulary
CUDA_CONTEXT_BYTES = 512 * MIB  # what a process takes on a GPU before its first tensor
CPU_ALLOCATOR = 1.5  # blocks of changing size leave gaps in the heap; fitted
GPU_ALLOCATOR = 1.1
NF4_BYTES = 0.53  # a weight, with double quantisation
TRAINED_BYTES = 16  # a trained number: fp32 value, gradient and Adam's two moments
CACHE_ROOM = 1.25  # key-value buffers grow by a quarter
MARGIN = 0.9  # settings are chosen to fill so much of what is free: a plan is right within a tenth


def trained_adapters(recipe: Recipe) -> int:
    """Return how many adapters a run trains: PPO's value model is a second one."""
    return 2 if isinstance(recipe, PpoRecipe) and recipe.has_value else 1


@dataclass(frozen=True, slots=True)
class Phase:
    """What one phase holds at once, in bytes. A model's file is mapped beside it while it is read.

    Mapped pages count as resident, but nothing fails for them: the system takes them back when memory is short.
    """

    name: str  # load, rollout, score or update
    bytes: int
    mapped: int = 0


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The phases of a run in their order, and how they were reckoned."""

    phases: tuple[Phase, ...]
    lines: tuple[str, ...] = ()
    measured: bool = False  # whether the project's own runs corrected it

    @property
    def peak(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda one: one.bytes)

    @property
    def resident_bytes(self) -> int:
        """What will be measured at most: mapped pages count."""
        return max(one.bytes + one.mapped for one in self.phases)


@dataclass(frozen=True, slots=True)
class Peak:
    """What an earlier run of the project held at most, beside what would have been foretold for it."""

    method: Method
    measured: float
    foretold: float
    gpu: bool = False


def plan_memory(
    method: Method,
    recipe: Recipe,
    shape: Shape,
    rows: Sequence[Sequence[int]],
    *,
    start_rank: int = 0,
    peaks: Sequence[Peak] = (),
    gpu: bool | None = None,
) -> MemoryPlan:
    """Foretell the memory of every phase.

    Args:
        method: which method.
        recipe: its settings.
        shape: of the base model.
        rows: the tokens of each sequence of each row (see :func:`workbench.estimate.row_tokens`).
        start_rank: of the adapter that training continues; 0 for a new one.
        peaks: what earlier runs held; the median of measured / foretold corrects, the same method's before all.
        gpu: whether a GPU computes; by default as the recipe and the machine say.
    """
    gpu = on_gpu(recipe.device) if gpu is None else gpu
    one = _Reckoner(method, recipe, shape, rows, start_rank, gpu)
    alike = [peak for peak in peaks if peak.gpu == gpu and peak.foretold > 0]
    ratios = [peak.measured / peak.foretold for peak in alike if peak.method == method]
    ratios = ratios or [peak.measured / peak.foretold for peak in alike]
    ratio = statistics.median(ratios) if ratios else 1.0
    phases = tuple(Phase(name, int(size * ratio), int(mapped)) for name, size, mapped in one.phases())
    plan = MemoryPlan(phases, measured=bool(ratios))
    said = ", ".join(f"{phase.name} {in_bytes(phase.bytes)}" for phase in phases)
    corrected = f", times {ratio:.2f} as measured in this project's runs" if ratios else ""
    return replace(plan, lines=(*one.lines(), f"memory by phase{corrected}: {said}; most in {plan.peak.name}"))


def choose_micro_batch(
    method: Method,
    recipe: Recipe,
    shape: Shape,
    rows: Sequence[Sequence[int]],
    available: int,
    *,
    gpu: bool | None = None,
) -> tuple[Recipe, MemoryPlan]:
    """Return the fastest settings that fit: large micro-batches first, gradient checkpointing last.

    The effective batch stays. Where nothing fits, the smallest plan comes back.
    """
    smallest: tuple[Recipe, MemoryPlan] | None = None
    for tried in _from_fast_to_small(recipe):
        plan = plan_memory(method, tried, shape, rows, gpu=gpu)
        if plan.peak.bytes <= MARGIN * available:
            return tried, plan
        if smallest is None or plan.peak.bytes <= smallest[1].peak.bytes:
            smallest = tried, plan
    assert smallest is not None
    return smallest


def _from_fast_to_small(recipe: Recipe) -> Iterator[Recipe]:
    for checkpointing in (False, True):
        size = recipe.batch
        while size:
            yield replace(recipe, micro_batch=size, gradient_checkpointing=checkpointing)
            size //= 2


def on_gpu(device: str) -> bool:
    """Whether a run with this setting of ``device`` will compute on a GPU here."""
    return device != "cpu" and has_gpu()


@lru_cache(maxsize=1)
def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices as oneDNN wants it; where it cannot be told, no.

    Elsewhere the engine widens the weights to fp32 (see ``engine.base_model.compute_dtype``).
    """
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return False
    return {"avx512vl", "avx512bw", "avx512dq"} <= words or "bf16" in words


class _Reckoner:
    """The parts of a run's memory, in bytes."""

    def __init__(
        self,
        method: Method,
        recipe: Recipe,
        shape: Shape,
        rows: Sequence[Sequence[int]],
        start_rank: int,
        gpu: bool,
    ) -> None:
        self.method, self.recipe, self.shape, self.gpu = method, recipe, shape, gpu
        self.rank = start_rank or recipe.lora_rank
        self.width = 2 if gpu or cpu_has_bf16() else 4  # bytes of a number in the model's arithmetic
        self.rows = [list(row) for row in rows if row] or [[0]]
        self.trained = trained_adapters(recipe)
        referred = method == "ppo" or (isinstance(recipe, DpoRecipe) and recipe.needs_reference)
        self.frozen = (referred and start_rank > 0) + (isinstance(recipe, PpoRecipe) and not recipe.rule)

    # ---- parts ----

    @property
    def libraries(self) -> float:
        """What is there before a model is."""
        return CUDA_CONTEXT_BYTES if self.gpu else LIBRARIES_BYTES + self.shape.vocabulary * TOKENIZER_BYTES

    @property
    def weights(self) -> float:
        """The base: NF4 packs the linear layers of the blocks, all else is as wide as the arithmetic."""
        packed = self.shape.linear_parameters if self.recipe.quantisation == "nf4" else 0
        return packed * NF4_BYTES + max(0, self.shape.parameters - packed) * self.width

    @property
    def adapters(self) -> float:
        """All adapters as they are loaded: fp32."""
        return self.shape.adapter_parameters(self.rank) * (self.trained + self.frozen) * 4

    @property
    def optimiser(self) -> float:
        """Gradients and Adam's moments of what trains."""
        return self.shape.adapter_parameters(self.rank) * self.trained * (TRAINED_BYTES - 4)

    @property
    def tokens(self) -> int:
        """Tokens of the largest forward pass of an update."""
        sides = max(len(row) for row in self.rows)
        longest = max(max(row) for row in self.rows)
        sequences = self.recipe.micro_batch * sides
        if self.gpu:
            return sequences * longest
        every = sum(sorted((max(row) * sides for row in self.rows), reverse=True)[: self.recipe.micro_batch])
        return max(min(every, CPU_MICRO_TOKENS), longest * sides)  # a row that is longer stands alone

    @property
    def layer(self) -> float:
        """What a layer keeps of a token for its backward pass."""
        shape, queries, keys = self.shape, self.shape.heads * self.shape.head_dim, self.shape.kv_heads
        keys *= shape.head_dim
        attention = 4 * queries if self.gpu else 3 * queries + 2 * keys  # a GPU repeats keys for each query head
        numbers = 2 * shape.hidden + attention + 2 * shape.intermediate + 7 * self.rank
        return self.width * numbers + 8 * shape.hidden

    @property
    def passing(self) -> float:
        """What a layer needs of a token while it is passed, forwards or backwards, and gives back."""
        return self.width * (7 * self.shape.intermediate + 4 * self.shape.hidden)

    @property
    def unpacked(self) -> float:
        """One 4-bit layer as a dense matrix."""
        dense = self.shape.hidden * self.shape.intermediate * self.width
        return dense if self.recipe.quantisation == "nf4" else 0.0

    @property
    def head(self) -> float:
        """Logits of a chunk (three of their size), and three tensors [N, D]; a reward model's head is a vector."""
        if self.method == "reward":
            return 0.0
        rows = min(self.tokens, HEAD_ROWS)
        block = self.shape.vocabulary if self.gpu else min(HEAD_BLOCK, self.shape.vocabulary)
        return rows * block * 4.0 * 3 + self.tokens * self.shape.hidden * 4.0 * 3

    @property
    def activations(self) -> float:
        """All that a forward and backward pass of one micro-batch holds."""
        kept = self.layer * self.shape.layers
        if self.recipe.gradient_checkpointing:
            kept = self.width * self.shape.hidden * self.shape.layers + self.layer
        return self._allocated(self.tokens * (kept + self.passing) + self.head) + self.unpacked

    @property
    def scoring(self) -> float:
        """A forward pass without gradients: one layer at a time, and nothing is kept."""
        return self._allocated(self.tokens * self.passing + self.head) + self.unpacked

    @property
    def cache(self) -> float:
        """Keys and values of all episodes of a rollout."""
        longest = max(max(row) for row in self.rows)
        columns = self.shape.layers * 2 * self.shape.kv_heads * self.shape.head_dim
        return self.recipe.batch * longest * columns * self.width * CACHE_ROOM

    def _allocated(self, size: float) -> float:
        return size * (GPU_ALLOCATOR if self.gpu else CPU_ALLOCATOR)

    # ---- together ----

    def phases(self) -> list[tuple[str, float, float]]:
        """Bytes needed and bytes mapped, by phase. What is neither packed nor widened stays as its file has it."""
        held = self.libraries + self.weights + self.adapters
        made_anew = self.recipe.quantisation == "nf4" or self.width == 4
        found = [("load", held + self.unpacked, 2.0 * self.shape.parameters * (made_anew and not self.gpu))]
        held += 0 if self.gpu else KERNELS_BYTES
        if self.method == "ppo":
            found += [
                ("rollout", held + self.optimiser + self.cache + self.scoring, 0.0),
                ("score", held + self.optimiser + self.scoring, 0.0),
            ]
        elif self.method in ("dpo", "kto", "reward"):  # the reference's log-probabilities; the zero of the scores
            found.append(("score", held + self.scoring, 0.0))
        return [*found, ("update", held + self.optimiser + self.activations, 0.0)]

    def lines(self) -> list[str]:
        """How it was reckoned."""
        shape, recipe = self.shape, self.recipe
        one = shape.adapter_parameters(self.rank)
        in_what = (
            recipe.quantisation if self.width == 2 or recipe.quantisation == "nf4" else "fp32 (this CPU has no bf16)"
        )
        kept = "with gradient checkpointing" if recipe.gradient_checkpointing else f"all {shape.layers} layers kept"
        found = [
            f"base: {shape.parameters / 1e6:,.0f} M parameters in {in_what}, {in_bytes(self.weights)}",
            f"adapters: {one / 1e6:,.1f} M parameters of rank {self.rank}, {self.trained} trained and {self.frozen} "
            f"frozen, {in_bytes(self.adapters + self.optimiser)} with optimiser",
            f"activations: {self.tokens:,} tokens at once, {kept}, {in_bytes(self.activations)}",
        ]
        if isinstance(recipe, PpoRecipe):
            found.append(f"key-value cache of {recipe.batch} episodes: {in_bytes(self.cache)}")
        return [*found, f"{'GPU context' if self.gpu else 'libraries'}: {in_bytes(self.libraries)}"]
