"""Many named LoRA adapters on one frozen base: policy, reference, reward and value from the same weights.

peft makes the layers and is the file format; what is ours is the switch. peft's ``set_adapter`` turns
``requires_grad`` on and off as it switches, so switching between a forward and its backward pass loses gradients
without a word (peft issues 2832 and 2807). Here one object says which adapter is active, every LoRA layer reads it in
its forward pass, and no parameter's ``requires_grad`` ever changes after it was made. A gradient-checkpointed
forward remembers its adapter and recomputes with that one. A backward pass therefore always reaches the adapter that
made the forward pass, whatever was switched in between.

LoRA weights are fp32 masters, cast to the base's dtype as they are used.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.base_model import LoadedBase
from engine.decoder_layer import run_layers
from engine.dense_weights import is_packed
from engine.frames import frames_of
from engine.half_weights import half_for, has_room, hold_halves, is_wide, unpacked
from engine.heads import HEAD_KEY, mean_head, save_heads
from engine.layer_parts import LayerParts, parts_of
from engine.logps import token_stats
from engine.lora_linear import GatedMlp, Lora, lora_gated_mlp, lora_linear
from engine.masking import Example
from engine.memory import free_bytes
from engine.packing import Layout, lay_out
from workbench.errors import UserError

UNPACKED = "all unpacked"  # of what ``Adapters.hold_halves`` may say
_SWIGLU_FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3")
_PREFIX = "base_model.model."
_SCALING = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out")
_UNSUPPORTED = ("use_dora", "lora_bias", "use_qalora", "alora_invocation_tokens", "trainable_token_indices")


class _Recompute:
    """Runs a checkpointed recomputation under the adapter of its forward pass; may be entered again."""

    def __init__(self, base: LoadedBase) -> None:
        self._base, self._name, self._before = base, base.active, base.active

    def __enter__(self) -> None:
        self._before, self._base.active = self._base.active, self._name

    def __exit__(self, *_: object) -> None:
        self._base.active = self._before


class Adapters:
    """The adapters of one base. Names are ours (``policy``, ``reference``, ``reward``, ``value``, ...)."""

    def __init__(self, base: LoadedBase) -> None:
        self.base = base
        self.configs: dict[str, Any] = {}
        self._trainable: dict[str, bool] = {}
        self._checkpointing = False

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that exist."""
        return tuple(self.configs)

    @property
    def active(self) -> str | None:
        """The adapter in use, None for the bare base."""
        return self.base.active

    def add(self, name: str, *, rank: int, alpha: int, trainable: bool, seed: int = 0) -> None:
        """Make a new adapter on all linear layers but the LM head. It starts as no change (B = 0)."""
        from peft import LoraConfig

        config = LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        self._inject(name, config)
        source = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, layer in self._layers(name):
                first, second = layer.lora_A[name].weight, layer.lora_B[name].weight
                bound = 1 / math.sqrt(first.shape[1])  # kaiming_uniform(a=sqrt(5)), as peft and LoRA do
                first.copy_(torch.empty(first.shape).uniform_(-bound, bound, generator=source))
                second.zero_()
        self._set_trainable(name, trainable)

    def load(self, name: str, folder: str | Path, *, trainable: bool) -> None:
        """Load a plain peft LoRA adapter. Raises UserError when it does not fit this base or uses what we do not."""
        folder = Path(folder)
        config, tensors = _read(folder)
        self._refuse_ends(tensors, folder.name)
        config.target_modules = self._target_modules(tensors)
        self._inject(name, config)
        try:
            self._fill(name, tensors, folder.name)
        except UserError:
            self.remove(name)
            raise
        self._set_trainable(name, trainable)

    def copy(self, source: str, name: str, *, trainable: bool) -> None:
        """Make ``name`` an adapter with the same weights as ``source``."""
        self._inject(name, copy.deepcopy(self.configs[source]))
        with torch.no_grad():
            for _, layer in self._layers(name):
                layer.lora_A[name].weight.copy_(layer.lora_A[source].weight)
                layer.lora_B[name].weight.copy_(layer.lora_B[source].weight)
        self._set_trainable(name, trainable)

    def remove(self, name: str) -> None:
        """Forget an adapter and give its memory back."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft says which adapter it activates instead; ours is the switch
            for _, layer in list(self._layers(name)):
                layer.delete_adapter(name)
        self.base.model.peft_config.pop(name, None)
        self.configs.pop(name, None)
        self._trainable.pop(name, None)
        self._apply_trainable()
        if self.base.active == name:
            self.base.active = None

    @contextlib.contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """Run forward passes under an adapter (None: the bare base); the one before is restored afterwards."""
        if name is not None and name not in self.configs:
            raise KeyError(f"there is no adapter {name!r}")
        before = self.base.active
        self.base.active = name
        try:
            yield
        finally:
            self.base.active = before

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The fp32 masters of an adapter, in a fixed order. Optimisers and clipping take this list, nothing else."""
        return [
            one for _, layer in self._layers(name) for one in (layer.lora_A[name].weight, layer.lora_B[name].weight)
        ]

    def state(self, name: str) -> dict[str, Tensor]:
        """The weights by their names in a peft file (not copies)."""
        found: dict[str, Tensor] = {}
        for path, layer in self._layers(name):
            found[f"{_PREFIX}{path}.lora_A.weight"] = layer.lora_A[name].weight.detach()
            found[f"{_PREFIX}{path}.lora_B.weight"] = layer.lora_B[name].weight.detach()
        return found

    def restore(self, name: str, folder: str | Path) -> None:
        """Put the weights of a checkpoint back into an existing adapter of the same shape."""
        _, tensors = _read(Path(folder))
        self._fill(name, tensors, Path(folder).name)

    def save(self, name: str, folder: str | Path, head: Tensor | None = None) -> None:
        """Write an adapter as a plain peft folder; with ``head`` [K, D] as a sequence-classification adapter.

        Such a folder loads with ``AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)`` and
        ``PeftModel.from_pretrained``, which score with the mean of several heads.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: value.float().cpu().contiguous() for key, value in self.state(name).items()}
        config = copy.deepcopy(self.configs[name])
        config.target_modules = self._target_modules(tensors)
        config.inference_mode = True
        config.base_model_name_or_path = self.base.path or None
        config.task_type, config.modules_to_save = "CAUSAL_LM", None
        if head is not None:
            tensors[HEAD_KEY] = mean_head(head.detach().float().cpu()).contiguous()
            save_heads(folder, head)
            config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
        save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
        config.save_pretrained(str(folder))

    def flat(self, layout: Layout, places: Tensor | None = None) -> Tensor:
        """Final hidden states of a layout under the active adapter at ``places`` [R], [R, D]; None: at all positions.

        A place may be asked for twice. What is not asked for is spared the last layer where sequences are packed.
        """
        decoder: Any = self.base.decoder
        if not layout.blocks:
            output = decoder(input_ids=layout.input_ids, position_ids=layout.position_ids, use_cache=False)
            hidden: Tensor = output.last_hidden_state.flatten(0, 1)
            return hidden if places is None else hidden[places]
        read, again = (None, None) if places is None else places.unique(return_inverse=True)
        embedded: Tensor = decoder.get_input_embeddings()(layout.input_ids)
        cosine, sine = (one[0][:, None] for one in decoder.rotary_emb(embedded, position_ids=layout.position_ids))
        layers = list(active_layers(self.base))
        shared = layers[0].shared
        frames = frames_of(layout.blocks, cosine, sine, shared=shared, checkpointing=self._checkpointing, read=read)
        hidden = decoder.norm(run_layers(embedded[0], layers, frames))
        return hidden if again is None else hidden[again]

    def token_stats(self, name: str | None, layout: Layout, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """What an adapter makes of a layout's N targets: log-probability, entropy, whether it is the likeliest, [N].

        As :func:`engine.logps.token_stats`, with as many rows of logits at once as the base is told to hold.
        """
        with self.use(name):
            hidden = self.flat(layout, layout.states)
        half = half_for([self.base.model.get_output_embeddings()], len(hidden))
        return token_stats(hidden, layout.targets, self.base.head_weight, temperature, self.base.head_rows, half)

    def lay_out(self, examples: Sequence[Example]) -> Layout:
        """Lay sequences out for one forward pass of this base."""
        return lay_out(examples, self.base.device, packed=self.base.packs)

    def hold_halves(self, *, sampling: bool = False, head: bool = True, as_before: str = "") -> str:
        """Hold layers in 16 bits as well where that is faster (:mod:`engine.half_weights`), once and for all.

        Those that are much wider than their input, the LM head among them unless nothing is read through the ``head``;
        for a process that samples much, all of them, those in 4 bits while it samples; fewer where memory has no room
        for so many. With ``as_before``, what an earlier call returned, just those are held whatever is free: sums come
        out in another order, so that the last digits are others. Returns "all unpacked" (those in 4 bits too), "all",
        "wide", "wide layers" (without the head) or "none".
        """
        if self.base.packs:
            every = _groups(self.base)
            groups = [group for group in every if not is_packed(group[0])]
            whole = [*groups, [self.base.model.get_output_embeddings()]] if head else groups
            wide = {"wide": list(filter(is_wide, whole)), "wide layers": list(filter(is_wide, groups))}
            packed = [group for group in every if is_packed(group[0])]
            kinds = ({UNPACKED: [*packed, *whole]} if packed else {}) | {"all": whole} | wide
            wanted = [as_before] if as_before else list(kinds if sampling else wide)
            free = sys.maxsize if as_before else free_bytes(self.base.device)
            self.base.halves = next((kind for kind in wanted if self._holds(kinds.get(kind, []), free)), "none")
        return self.base.halves

    def _holds(self, groups: list[list[nn.Module]], free: int) -> bool:
        """Hold groups in 16 bits where there is room for all of them. Returns whether any is held."""
        return has_room(groups, free) and hold_halves(groups, self.base.dtype)

    def checkpointing(self, on: bool) -> None:
        """Recompute activations in the backward pass, from now on. Sampling must switch it off: it has no KV cache."""
        if on == self._checkpointing:
            return
        self._checkpointing = on
        model = self.base.model
        if on:
            model.gradient_checkpointing_enable(
                {"use_reentrant": False, "preserve_rng_state": False, "context_fn": self._recompute_contexts}
            )
            model.train()  # transformers checkpoints in train mode only; every dropout is 0
        else:
            model.gradient_checkpointing_disable()
            model.eval()

    def _recompute_contexts(self) -> tuple[Any, Any]:
        return contextlib.nullcontext(), _Recompute(self.base)

    def _layers(self, name: str) -> Iterator[tuple[str, Any]]:
        for path, module in self.base.model.named_modules():
            if hasattr(module, "lora_A") and name in module.lora_A:
                yield path, module

    def _inject(self, name: str, config: Any) -> None:
        from peft import inject_adapter_in_model

        if name in self.configs:
            raise ValueError(f"adapter {name!r} exists")
        config.inference_mode = False
        config.modules_to_save = None
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft warns of every second adapter, which is what we are for
            try:
                inject_adapter_in_model(config, self.base.model, name)
            except ValueError as error:
                raise UserError(
                    "The adapter does not fit this base model", str(error), "choose the base that it was trained on"
                ) from error
        self.configs[name] = config
        for _, layer in self._layers(name):
            for part in (layer.lora_A[name], layer.lora_B[name]):
                part.float()
                part.to(self.base.device)
            if not isinstance(layer.forward, partial):
                layer.forward = partial(_lora_forward, layer, self.base)
        for module in self.base.model.modules():
            if _is_gated_mlp(module) and not isinstance(module.forward, partial):
                module.forward = partial(_mlp_forward, module, self.base, module.forward)

    def _set_trainable(self, name: str, trainable: bool) -> None:
        self._trainable[name] = trainable
        self._apply_trainable()

    def _apply_trainable(self) -> None:
        """Undo what peft did to ``requires_grad`` as it added or removed an adapter."""
        self.base.model.requires_grad_(False)
        for name, trainable in self._trainable.items():
            for parameter in self.parameters(name):
                parameter.requires_grad_(trainable)

    def _target_modules(self, tensors: dict[str, Tensor]) -> list[str]:
        """Name the layers that a file has weights for: by last names where those name no other layer, else in full."""
        paths = {key.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for key in tensors if ".lora_" in key}
        short = {path.rsplit(".", 1)[-1] for path in paths}
        named = {path for path, _ in self.base.model.named_modules() if path.rsplit(".", 1)[-1] in short}
        return sorted(short if named == paths else paths)

    def _refuse_ends(self, tensors: dict[str, Tensor], source: str) -> None:
        """Refuse LoRA on the LM head or the embeddings: sampling would use it and training would not."""
        model = self.base.model
        ends = (model.get_output_embeddings(), model.get_input_embeddings())
        names = [path for path, module in model.named_modules() if module in ends]
        if any(key.removeprefix(_PREFIX).startswith(f"{name}.lora_") for key in tensors for name in names):
            raise UserError(
                f"The adapter in {source} cannot be used",
                "it changes the LM head or the embeddings, which are left alone here",
                "choose an adapter of the linear layers inside the blocks",
            )

    def _fill(self, name: str, tensors: dict[str, Tensor], source: str) -> None:
        wanted = self.state(name)
        given = {key: value for key, value in tensors.items() if key != HEAD_KEY}
        missing = wanted.keys() - given.keys()
        strange = given.keys() - wanted.keys()
        wrong = [key for key in wanted.keys() & given.keys() if wanted[key].shape != given[key].shape]
        if missing or strange or wrong:
            example = next(iter([*sorted(missing), *sorted(strange), *wrong]))
            raise UserError(
                f"The adapter in {source} does not fit this base model",
                f"{len(missing)} weights are missing, {len(strange)} unknown, {len(wrong)} of another shape, "
                f"for instance {example}",
                "choose the base that it was trained on",
            )
        with torch.no_grad():
            for key, target in wanted.items():
                target.copy_(given[key])


def active_layers(base: LoadedBase) -> Iterator[LayerParts]:
    """The decoder's layers under the active adapter, for a base that packs."""
    decoder: Any = base.decoder
    for layer in decoder.layers:
        yield parts_of(layer, partial(_lora_of, name=base.active))


@contextlib.contextmanager
def unpacked_for_sampling(base: LoadedBase) -> Iterator[None]:
    """Hold what is in 4 bits in 16 for as long as this lasts, where ``Adapters.hold_halves`` found room for all."""
    with unpacked(_groups(base) if base.packs and base.halves == UNPACKED else [], base.dtype):
        yield


@contextlib.contextmanager
def masters_cast_once(base: LoadedBase) -> Iterator[None]:
    """While nothing is learnt: cast a layer's fp32 LoRA masters at its first use, not at every token.

    Decoding on a GPU is bound by the number of its kernels, and two casts for each of a layer's seven linear parts
    would be many of them. In fp32 nothing is cast. (:class:`engine.decoder.Decoder` has its own way.)
    """
    base.cast = {}
    try:
        yield
    finally:
        base.cast = None


def _groups(base: LoadedBase) -> list[list[nn.Module]]:
    """The frozen linear layers of a base that packs, those together that read the same input."""
    return [[one.base for one in group] for parts in active_layers(base) for group in parts.groups]


def _lora_forward(layer: Any, base: LoadedBase, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``W x + scaling * B A x`` with the active adapter, all in the base's dtype."""
    name = base.active
    if name is None or name not in layer.lora_A:
        result: Tensor = layer.base_layer(x, *args, **kwargs)
        return result
    return lora_linear(_lora_in_use(layer, base), x)


def _mlp_forward(module: Any, base: LoadedBase, plain: Any, x: Tensor) -> Tensor:
    """A gated MLP under the active adapter in one autograd step."""
    if base.active is None:
        result: Tensor = plain(x)
        return result
    parts = (module.gate_proj, module.up_proj, module.down_proj)
    return lora_gated_mlp(GatedMlp(*(_lora_in_use(part, base) for part in parts)), x)


def _lora_in_use(layer: Any, base: LoadedBase) -> Lora:
    """A linear layer with what the active adapter adds to it."""
    if base.cast is None:
        return _lora_of(layer, base.active)
    key = (id(layer), base.active)
    if key not in base.cast:
        one = _lora_of(layer, base.active)
        first, second = (None if master is None else master.detach().to(base.dtype) for master in one[1:3])
        base.cast[key] = one._replace(first=first, second=second)
    found: Lora = base.cast[key]
    return found


def _lora_of(layer: Any, name: str | None) -> Lora:
    """A linear layer with what an adapter adds to it."""
    if name is None or name not in getattr(layer, "lora_A", ()):
        return Lora(getattr(layer, "base_layer", layer))
    return Lora(layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])


def _is_gated_mlp(module: nn.Module) -> bool:
    """Whether a module is ``down(silu(gate x) * up x)`` with LoRA layers, as in Llama, Qwen, Mistral and SmolLM."""
    parts = [getattr(module, one, None) for one in ("gate_proj", "up_proj", "down_proj")]
    known = type(module).__name__.removesuffix("MLP") in _SWIGLU_FAMILIES
    return known and _is_silu(getattr(module, "act_fn", None)) and all(hasattr(part, "lora_A") for part in parts)


def _is_silu(activation: Any) -> bool:
    return (
        isinstance(activation, nn.SiLU)
        or activation is nn.functional.silu
        or type(activation).__name__ == "SiLUActivation"
    )


def _read(folder: Path) -> tuple[Any, dict[str, Tensor]]:
    from peft import LoraConfig
    from safetensors.torch import load_file

    try:
        raw = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(str(folder / "adapter_model.safetensors"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"The adapter in {folder} cannot be read", str(error), "restore it from a checkpoint or import it again"
        ) from error
    except Exception as error:  # safetensors has its own error type
        raise UserError(f"The adapter in {folder} is damaged", str(error), "import it again") from error
    if raw.get("peft_type") != "LORA":
        raise UserError(
            f"The adapter in {folder.name} cannot be used",
            f"it is of type {raw.get('peft_type')}",
            "choose a LoRA adapter",
        )
    odd = [key for key in _UNSUPPORTED if raw.get(key)]
    odd += [key for key in tensors if ".lora_A." not in key and ".lora_B." not in key and key != HEAD_KEY]
    if odd:
        raise UserError(
            f"The adapter in {folder.name} cannot be used", f"it has {odd[0]}", "choose a plain LoRA adapter"
        )
    # The file's own keys say which layers it has; of the rest only what scales B A x is taken over: peft's other
    # settings (pissa, olora, ...) would change the base under every other adapter as it is injected.
    known = {key: raw[key] for key in _SCALING if raw.get(key) is not None}
    return LoraConfig(lora_dropout=0.0, task_type=raw.get("task_type") or "CAUSAL_LM", **known), tensors
