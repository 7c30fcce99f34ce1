"""What a serving process keeps warm: one base, several adapters on it, and tokenizers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.adapters import Adapters
from engine.base_model import LoadedBase, load_base, load_tokenizer
from engine.memory import free_memory
from engine.score import RewardModel, load_reward
from engine.session import choose_device
from workbench.model_folders import refuse_changed_adapter, refuse_changed_base
from workbench.protocol import ModelRef

ADAPTERS_KEPT = 6
TOKENIZERS_KEPT = 4
Say = Callable[[str], None]


class WarmModels:
    """One base at a time; the adapters used last stay on it. For one thread."""

    def __init__(self) -> None:
        self._key: tuple[str, str] | None = None
        self._adapters: Adapters | None = None
        self._names: OrderedDict[tuple[str, int], str] = OrderedDict()  # adapter folder and date: its name here
        self._rewards: dict[str, RewardModel] = {}
        self._count = 0

    def base(self, model: ModelRef, quantisation: str, say: Say = lambda _: None) -> tuple[LoadedBase, Adapters]:
        """Return the base of a model, loading it unless it is warm; the one before is dropped first."""
        key = (model.base, quantisation)
        if self._key != key or self._adapters is None:
            self.let_go()
            say("Loading the model")
            refuse_changed_base(model)
            loaded = load_base(model.base, quantisation=quantisation, device=choose_device("auto"))
            self._adapters, self._key = Adapters(loaded), key
        return self._adapters.base, self._adapters

    def policy(
        self, model: ModelRef, quantisation: str, say: Say = lambda _: None
    ) -> tuple[LoadedBase, Adapters, str | None]:
        """Return base, adapters, and the adapter's name there (None for the bare base)."""
        base, adapters = self.base(model, quantisation, say)
        if not model.adapter:
            return base, adapters, None
        key = self._dated(model.adapter)
        if key not in self._names:
            self._make_room(adapters)
            say("Loading the adapter")
            refuse_changed_adapter(model)
            self._count += 1
            name = f"model{self._count}"
            adapters.load(name, model.adapter, trainable=False)
            self._names[key] = name
        self._names.move_to_end(key)
        return base, adapters, self._names[key]

    def reward(self, model: ModelRef, quantisation: str, say: Say = lambda _: None) -> RewardModel:
        """Return a reward model, its adapter, head and statistics."""
        _, adapters = self.base(model, quantisation, say)
        key = self._dated(model.adapter)
        name = self._names.get(key)
        if name is None or name not in self._rewards:
            if name is not None:  # sampled from before, without its head
                adapters.remove(name)
                del self._names[key]
            self._make_room(adapters)
            say("Loading the reward model")
            refuse_changed_adapter(model)
            self._count += 1
            name = f"model{self._count}"
            self._rewards[name] = load_reward(adapters, model.adapter, name)
            self._names[key] = name
        self._names.move_to_end(key)
        return self._rewards[name]

    def let_go(self) -> None:
        """Drop everything and give the memory back."""
        self._key = self._adapters = None
        self._names.clear()
        self._rewards.clear()
        free_memory()

    def _make_room(self, adapters: Adapters) -> None:
        while len(self._names) >= ADAPTERS_KEPT:
            _, oldest = self._names.popitem(last=False)
            self._rewards.pop(oldest, None)
            adapters.remove(oldest)

    @staticmethod
    def _dated(folder: str) -> tuple[str, int]:
        file = Path(folder) / "adapter_model.safetensors"
        return folder, file.stat().st_mtime_ns if file.is_file() else 0


class Tokenizers:
    """The tokenizers used last, for the thread that renders."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[Any, str]] = OrderedDict()

    def get(self, folder: str) -> tuple[Any, str]:
        """Return a base's tokenizer and the note about its template."""
        if folder not in self._known:
            while len(self._known) >= TOKENIZERS_KEPT:
                self._known.popitem(last=False)
            self._known[folder] = load_tokenizer(folder)
        self._known.move_to_end(folder)
        return self._known[folder]


warm = WarmModels()
tokenizers = Tokenizers()
