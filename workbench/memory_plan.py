"""What memory a run will need in each of its phases, from the model's shape, the recipe and the rows' lengths.

Counted as the engine spends it. On a CPU a micro-batch is packed into at most 1024 tokens and the weights are as wide
as the arithmetic; on a GPU a micro-batch is padded and weights are bf16 or NF4. What a layer keeps for its backward
pass is :func:`kept_per_token`, which a test compares with what autograd really keeps. The project's own finished runs
correct every phase (:class:`Peak`). Which settings fit is chosen in :mod:`workbench.memory_choice`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from workbench.model_shape import Shape
from workbench.nvidia import gpu_has_bf16, has_gpu
from workbench.recipes import DpoRecipe, PpoRecipe, Recipe
from workbench.records import Method
from workbench.terminal import in_bytes

MIB = 1024**2
CPU_MICRO_TOKENS = 1024  # as engine.batching
HEAD_ROWS = 512  # rows of logits at once, as engine.logps
HEAD_BLOCK = 4096  # of the vocabulary at once on a CPU
LIBRARIES_BYTES = 380 * MIB  # torch, transformers and peft as they are imported; measured
KERNELS_BYTES = 40 * MIB  # what they load at the first pass; measured
BF16_KERNELS_BYTES = 20 * MIB  # the same on a CPU with bf16; measured
BF16_BACKWARD_BYTES = 60 * MIB  # what they load there at the first backward pass; measured
TOKENIZER_BYTES = 1024  # an entry of the vocabulary
CUDA_CONTEXT_BYTES = 512 * MIB  # what a process takes on a GPU before its first tensor
CPU_ALLOCATOR = 1.1  # blocks of changing size leave gaps in the heap; fitted
CPU_BF16_ALLOCATOR = 1.4  # larger ones where norms and logits of fp32 lie among what is kept in bf16; fitted
GPU_ALLOCATOR = 1.1
NF4_BYTES = 0.53  # a weight, with double quantisation
TRAINED_BYTES = 16  # a trained number: fp32 value, gradient and Adam's two moments
CACHE_ROOM = 1.25  # key-value buffers grow by a quarter
WIDE = 4  # times its input: from there on a layer is held in fp16 as well where fp32 is computed, whatever passes
HALVES_SPARE = 3  # layers are held in 16 bits as well (engine.half_weights) where so many times that is free
KEPT_BYTES = 1536 * MIB  # of graphs that PPO keeps from rollout to update at most (engine.kept_passes); on a CPU
GPU_KEPT_BYTES = 8 * 1024 * MIB  # the same on a GPU
PHASES = ("load", "rollout", "score", "update")
PHASE_OF = {
    "loading": "load",
    "preparing": "load",
    "reference": "score",
    "rollout": "rollout",
    "score": "score",
    "training": "update",
    "update": "update",
}
"""The phase of the plan that one of the engine's belongs to; what has none (evaluating, saving) is not planned."""


def trained_adapters(recipe: Recipe) -> int:
    """Return how many adapters a run trains: PPO's value model is a second one."""
    return 2 if isinstance(recipe, PpoRecipe) and recipe.has_value else 1


def kept_per_token(shape: Shape, rank: int, width: int, *, gpu: bool) -> int:
    """Bytes that a decoder layer keeps of a token between its forward and its backward pass.

    ``b (2 D + 2 H + 2 G + 2 I + 7 r)`` with b bytes a number: the layer's input and the stream after attention (D
    each), queries and attention's output (H each), keys and values (G each), gate and up (I each) and the inner
    products of seven LoRA layers. On a CPU (:mod:`engine.decoder_layer`) the scales of two norms and a logsumexp a head
    come to that, in fp32; on a GPU (transformers' modules with :mod:`engine.lora_linear`) the inputs of the two norms
    in fp32. Change it with them.
    """
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    kept = width * (2 * shape.hidden + 2 * queries + 2 * keys + 2 * shape.intermediate + 7 * rank)
    return kept + (8 * shape.hidden if gpu else 4 * (2 + shape.heads))


def graph_per_token(shape: Shape, rank: int, width: int, *, gpu: bool, checkpointing: bool) -> int:
    """Bytes that all layers keep of a token from a forward pass until its backward pass begins."""
    if checkpointing:
        return width * shape.hidden * shape.layers
    return kept_per_token(shape, rank, width, gpu=gpu) * shape.layers


def packed_tokens(rows: Sequence[Sequence[int]], prompts: Sequence[int]) -> list[int]:
    """How many tokens of each row pass where rows are packed; what its sides share of ``prompts`` passes once."""
    return [sum(row) - once * (len(row) - 1) for row, once in with_prompts(rows, prompts)]


def with_prompts(rows: Sequence[Sequence[int]], prompts: Sequence[int]) -> list[tuple[Sequence[int], int]]:
    """Each row that has sides, with the tokens that they share: 0 from where ``prompts`` ends."""
    shared = [*prompts, *[0] * (len(rows) - len(prompts))]
    return [(row, once) for row, once in zip(rows, shared, strict=True) if row]


def kept_room(free: int, *, gpu: bool) -> int:
    """Bytes that graphs may take which PPO keeps from its rollout to its update, of so many that are free."""
    return min(GPU_KEPT_BYTES if gpu else KEPT_BYTES, free // 4)


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
    last: Peak | None = None  # the newest of those that are most like it

    @property
    def peak(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda one: one.bytes)

    @property
    def resident_bytes(self) -> int:
        """What will be measured at most: mapped pages count."""
        return max(one.bytes + one.mapped for one in self.phases)

    def resident(self) -> dict[str, int]:
        """What will be measured by phase."""
        return {one.name: one.bytes + one.mapped for one in self.phases}


@dataclass(frozen=True, slots=True)
class Peak:
    """What an earlier run of the project held at most, beside what would have been foretold for it."""

    method: Method
    measured: float
    foretold: float
    gpu: bool = False
    base: str = ""  # the folder of its base model
    quantisation: str = ""
    measured_by_phase: Mapping[str, float] = field(default_factory=dict)  # by the plan's phases; as far as is known
    foretold_by_phase: Mapping[str, float] = field(default_factory=dict)

    def ratio(self, phase: str) -> float:
        """Measured over foretold, of the phase where that is known, else of the whole run."""
        measured, foretold = self.measured_by_phase.get(phase, 0.0), self.foretold_by_phase.get(phase, 0.0)
        return measured / foretold if measured and foretold else self.measured / self.foretold


def most_like(peaks: Sequence[Peak], method: Method, base: str, quantisation: str, *, gpu: bool) -> list[Peak]:
    """The peaks that say most of a run: of the same method and model, else the same method, else the same device."""
    usable = [one for one in peaks if one.gpu == gpu and one.foretold > 0]
    same = [one for one in usable if one.method == method]
    alike = [one for one in same if base and (one.base, one.quantisation) == (base, quantisation)]
    return alike or same or usable


def plan_memory(
    method: Method,
    recipe: Recipe,
    shape: Shape,
    rows: Sequence[Sequence[int]],
    *,
    prompts: Sequence[int] = (),
    mixed_in: Sequence[Sequence[int]] = (),
    start_rank: int = 0,
    peaks: Sequence[Peak] = (),
    base: str = "",
    available: int = 0,
    gpu: bool | None = None,
) -> MemoryPlan:
    """Foretell the memory of every phase.

    Args:
        method: which method.
        recipe: its settings, none of them automatic (see :func:`workbench.memory_choice.choose`).
        shape: of the base model.
        rows: the tokens of each sequence of each row (see :func:`workbench.estimate.row_tokens`).
        prompts: of each row the tokens that its sequences begin with alike, which pass once where they are packed;
            by default none.
        mixed_in: the same of the demonstrations that PPO-ptx passes in its updates.
        start_rank: of the adapter that training continues; 0 for a new one.
        peaks: what earlier runs held, newest first: the median of measured / foretold of :func:`most_like` corrects
            each phase.
        base: the base model's folder.
        available: free bytes, which bound how many episodes are sampled at once; 0: all of them are.
        gpu: whether a GPU computes; by default as the recipe and the machine say.
    """
    gpu = on_gpu(recipe.device) if gpu is None else gpu
    one = _Reckoner(method, recipe, shape, rows, prompts, mixed_in, start_rank, gpu, available)
    alike = most_like(peaks, method, base, recipe.quantisation, gpu=gpu)
    phases = []
    for name, size, mapped in one.phases():
        ratio = statistics.median(peak.ratio(name) for peak in alike) if alike else 1.0
        phases.append(Phase(name, int(size * ratio), int(mapped)))
    last = alike[0] if alike and alike[0].method == method else None
    plan = MemoryPlan(tuple(phases), measured=bool(alike), last=last)
    said = ", ".join(f"{phase.name} {in_bytes(phase.bytes)}" for phase in phases)
    corrected = " (corrected by what this project's runs measured)" if alike else ""
    lines = [*one.lines(), f"memory by phase{corrected}: {said}; most in {plan.peak.name}"]
    if last is not None:
        lines.append(f"measured last time: {measured_words(last)}")
    return replace(plan, lines=tuple(lines))


def measured_words(peak: Peak) -> str:
    """Say what a run held: at most, and by phase."""
    by_phase = [f"{name} {in_bytes(peak.measured_by_phase[name])}" for name in PHASES if name in peak.measured_by_phase]
    return in_bytes(peak.measured) + (f" ({', '.join(by_phase)})" if by_phase else "")


def on_gpu(device: str) -> bool:
    """Whether a run with this setting of ``device`` will compute on a GPU here."""
    return device != "cpu" and has_gpu()


@lru_cache(maxsize=1)
def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices itself (AVX512-BF16, AMX, Arm's BF16); where it cannot be told, no.

    Elsewhere the engine widens the weights to fp32 (see ``engine.base_model.compute_dtype``).
    """
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return False
    return not words.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


class _Reckoner:
    """The parts of a run's memory, in bytes."""

    def __init__(
        self,
        method: Method,
        recipe: Recipe,
        shape: Shape,
        rows: Sequence[Sequence[int]],
        prompts: Sequence[int],
        mixed_in: Sequence[Sequence[int]],
        start_rank: int,
        gpu: bool,
        available: int = 0,
    ) -> None:
        self.method, self.recipe, self.shape, self.gpu, self.available = method, recipe, shape, gpu, available
        self.rank = start_rank or recipe.lora_rank
        self.head_rows = recipe.head_rows or HEAD_ROWS
        # bytes of a number in the model's arithmetic
        self.width = 2 if (gpu_has_bf16() if gpu else cpu_has_bf16()) else 4
        self.rows = [list(row) for row in rows if row] or [[0]]
        self.passed = packed_tokens(rows, prompts) or [0]
        self.mixed_in = [list(row) for row in mixed_in if row]
        self.trained = trained_adapters(recipe)
        referred = method in ("kto", "ppo") or (isinstance(recipe, DpoRecipe) and recipe.needs_reference)
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
    def halves(self) -> float:
        """Layers that are held in 16 bits as well."""
        return self._halves[0]

    @property
    def unpacked_to_sample(self) -> float:
        """4-bit layers that are held in 16 bits as well while PPO samples."""
        return self._halves[1]

    @property
    def _halves(self) -> tuple[float, float]:
        """Layers in 16 bits as well (``engine.half_weights``): those always held, and those held while it samples.

        A process that samples holds all, of 4 bits while it does so. Others hold gate and up and the head, where fp32
        is computed; to a reward model the head is nothing.
        """
        if self.gpu or not self.shape.packs:
            return 0.0, 0.0
        if self.recipe.quantisation not in ("bf16", "nf4"):  # what is held finer than that would be rounded
            return 0.0, 0.0
        dense = self.recipe.quantisation == "bf16"
        shape = self.shape
        head = 0 if self.method == "reward" else shape.vocabulary * shape.hidden
        outputs = (2 * shape.intermediate, (shape.heads + 2 * shape.kv_heads) * shape.head_dim)
        wide = dense * shape.layers * shape.hidden * sum(one for one in outputs if one >= WIDE * shape.hidden)
        wanted: list[tuple[float, float]] = []
        if self.method == "ppo":  # all of them, and where these have no room the wide ones
            every = 2.0 * (shape.linear_parameters * dense + head)
            wanted += [(every, 2.0 * shape.linear_parameters * (not dense)), (every, 0.0)]
        if self.width == 4:
            wanted += [(2.0 * (wide + head), 0.0), (2.0 * wide, 0.0)]
        free = self.available - self.libraries - self.weights
        return next((one for one in wanted if not self.available or free >= HALVES_SPARE * sum(one)), (0.0, 0.0))

    @property
    def adapters(self) -> float:
        """All adapters as they are loaded: fp32."""
        return self.shape.adapter_parameters(self.rank) * (self.trained + self.frozen) * 4

    @property
    def optimiser(self) -> float:
        """Gradients and Adam's moments of what trains."""
        return self.shape.adapter_parameters(self.rank) * self.trained * (TRAINED_BYTES - 4)

    @property
    def loaded(self) -> float:
        """What stands once everything is loaded."""
        return self.libraries + self.weights + self.halves + self.adapters

    @property
    def left(self) -> float:
        """What is free beside that and the optimiser."""
        return max(0.0, self.available - (self.loaded + self.optimiser))

    @property
    def tokens(self) -> int:
        """Tokens of the largest forward pass over the rows."""
        return self._at_once(self.rows, self.passed)

    @property
    def updated_tokens(self) -> int:
        """Tokens of the largest forward pass of an update, demonstrations among them."""
        return (
            max(self.tokens, self._at_once(self.mixed_in, list(map(sum, self.mixed_in))))
            if self.mixed_in
            else self.tokens
        )

    def _at_once(self, rows: Sequence[Sequence[int]], passed: Sequence[int]) -> int:
        """Tokens of the largest pass over rows of which so many tokens pass where they are packed."""
        sides = max(len(row) for row in rows)
        longest = max(max(row) for row in rows)
        sequences = self.recipe.micro_batch * sides
        if self.gpu:
            return sequences * longest
        if not self.shape.packs:  # padded, and a row that is longer than a micro-batch stands alone
            return longest * max(sides, min(sequences, CPU_MICRO_TOKENS // max(1, longest)))
        every = sum(sorted(passed, reverse=True)[: self.recipe.micro_batch])
        return max(min(every, CPU_MICRO_TOKENS), *passed)  # a row that is longer stands alone

    @property
    def layer(self) -> float:
        """What a layer keeps of a token for its backward pass."""
        return kept_per_token(self.shape, self.rank, self.width, gpu=self.gpu)

    @property
    def graph(self) -> float:
        """What all layers keep of a token until its backward pass begins."""
        checkpointing = self.recipe.gradient_checkpointing
        return graph_per_token(self.shape, self.rank, self.width, gpu=self.gpu, checkpointing=checkpointing)

    @property
    def kept(self) -> float:
        """Graphs that PPO keeps from a rollout to its first mini-batch: see ``engine.kept_passes``."""
        if not isinstance(self.recipe, PpoRecipe):
            return 0.0
        count = max(1, self.recipe.batch // self.recipe.mini_batches)
        rows = sorted((max(row) for row in self.rows), reverse=True)
        rows = [row for row in rows for _ in range(-(-count // len(rows)))][:count]  # a prompt comes again
        tokens = count * rows[0] if self.gpu or not self.shape.packs else sum(rows)  # padding has a graph too
        most = tokens * self.graph * self.trained
        free = int(self.left) if self.available else 2**60
        return self._allocated(min(most, kept_room(free, gpu=self.gpu)), graph=True)

    @property
    def passing(self) -> float:
        """What a layer needs of a token while it is passed, forwards or backwards, and gives back."""
        return self.width * (7 * self.shape.intermediate + 4 * self.shape.hidden)

    @property
    def unpacked(self) -> float:
        """One 4-bit layer as a dense matrix."""
        dense = self.shape.hidden * self.shape.intermediate * self.width
        return dense if self.recipe.quantisation == "nf4" else 0.0

    def _head(self, tokens: int) -> float:
        """Logits of a chunk (three of their size), and three tensors [N, D]; a reward model's head is a vector."""
        if self.method == "reward":
            return 0.0
        rows = min(tokens, self.head_rows)
        block = self.shape.vocabulary if self.gpu else min(HEAD_BLOCK, self.shape.vocabulary)
        return rows * block * 4.0 * 3 + tokens * self.shape.hidden * 4.0 * 3

    @property
    def activations(self) -> float:
        """All that a forward and backward pass of one micro-batch holds."""
        kept = self.graph + (self.layer if self.recipe.gradient_checkpointing else 0)
        tokens = self.updated_tokens
        return self._allocated(tokens * (kept + self.passing) + self._head(tokens), graph=True) + self.unpacked

    @property
    def scoring(self) -> float:
        """A forward pass without gradients: one layer at a time, and nothing is kept."""
        return self._allocated(self.tokens * self.passing + self._head(self.tokens)) + self.unpacked

    @property
    def episode(self) -> float:
        """Keys and values of the longest episode."""
        columns = self.shape.layers * 2 * self.shape.kv_heads * self.shape.head_dim
        return max(max(row) for row in self.rows) * columns * self.width

    @property
    def drawn_at_once(self) -> int:
        """Episodes that are sampled together: as ``engine.generate.rows_that_fit`` has it from what is free."""
        if not self.available:
            return self.recipe.batch
        left = max(0.0, self.left - self.unpacked_to_sample)
        budget, most = (left / 2, 256) if self.gpu else (min(3.0 * 1024**3, left / 4), 64)
        fitting = int(budget / (2 * self.episode + 24 * self.shape.vocabulary))
        return max(1, min(self.recipe.batch, most, fitting))

    @property
    def cache(self) -> float:
        """Keys and values of the episodes that are sampled at once."""
        return self.drawn_at_once * self.episode * CACHE_ROOM

    def _allocated(self, size: float, *, graph: bool = False) -> float:
        """What an allocator takes for blocks of together this size; ``graph``: some of them stay for long."""
        if self.gpu:
            return size * GPU_ALLOCATOR
        return size * (CPU_BF16_ALLOCATOR if graph and self.width == 2 else CPU_ALLOCATOR)

    # ---- together ----

    def phases(self) -> list[tuple[str, float, float]]:
        """Bytes needed and bytes mapped, by phase. What is neither packed nor widened stays as its file has it."""
        held = self.loaded
        made_anew = self.recipe.quantisation == "nf4" or self.width == 4
        found = [("load", held + self.unpacked, 2.0 * self.shape.parameters * (made_anew and not self.gpu))]
        in_bf16 = self.width == 2 and not self.gpu
        held += 0 if self.gpu else BF16_KERNELS_BYTES if in_bf16 else KERNELS_BYTES
        if self.method == "ppo":
            drawing = max(self.cache + self.unpacked_to_sample, self.kept)
            found += [
                ("rollout", held + self.optimiser + drawing + self.scoring, 0.0),
                ("score", held + self.optimiser + self.kept + self.scoring, 0.0),
            ]
        elif self.method in ("dpo", "kto", "reward"):  # the reference's log-probabilities; the zero of the scores
            found.append(("score", held + self.scoring, 0.0))
        # Kept graphs are used up one after the other before any other pass is made.
        most = max(self.activations, self.kept + self.scoring)
        held += BF16_BACKWARD_BYTES if in_bf16 else 0
        return [*found, ("update", held + self.optimiser + most, 0.0)]

    def lines(self) -> list[str]:
        """How it was reckoned."""
        shape, recipe = self.shape, self.recipe
        one = shape.adapter_parameters(self.rank)
        in_what = (
            recipe.quantisation
            if self.width == 2 or recipe.quantisation == "nf4"
            else f"fp32 (this {'GPU' if self.gpu else 'CPU'} has no bf16)"
        )
        kept = "with gradient checkpointing" if recipe.gradient_checkpointing else f"all {shape.layers} layers kept"
        found = [
            f"base: {shape.parameters / 1e6:,.0f} M parameters in {in_what}, {in_bytes(self.weights)}",
            f"adapters: {one / 1e6:,.1f} M parameters of rank {self.rank}, {self.trained} trained and {self.frozen} "
            f"frozen, {in_bytes(self.adapters + self.optimiser)} with optimiser",
            f"activations: {self.updated_tokens:,} tokens at once, {kept}, {in_bytes(self.activations)}",
        ]
        if self.halves:
            found.append(f"layers held a second time, as the CPU multiplies them fastest: {in_bytes(self.halves)}")
        if isinstance(recipe, PpoRecipe):
            unpacked = self.unpacked_to_sample
            found += [
                f"key-value cache of {self.drawn_at_once} episodes at once: {in_bytes(self.cache)}",
                *([f"4-bit layers unpacked while sampling: {in_bytes(unpacked)}"] if unpacked else []),
                f"graphs kept from a rollout to its first update: {in_bytes(self.kept)}",
            ]
        return [*found, f"{'GPU context' if self.gpu else 'libraries'}: {in_bytes(self.libraries)}"]
