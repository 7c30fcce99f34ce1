"""Tiny models built in code: a two-layer Llama and a byte-level tokenizer with a ChatML template."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import base_model
from engine.adapters import Adapters
from engine.base_model import LoadedBase, load_base, prepare
from engine.control import Stopped
from engine.session import Session
from tests import tiny_model
from workbench.protocol import Metrics, ModelRef, RunSpec, SampleNow, Stop
from workbench.recipes import RECIPES
from workbench.run_folder import RunFolder

torch.set_num_threads(1)  # two-layer models: threads would only wait for one another

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer(*, template: str | None = CHATML, bos: bool = False) -> Any:
    """The tiny tokenizer with a template that names a system, as SmolLM2's does."""
    return tiny_model.build_tokenizer(template, bos=bos)


def build_model(*, dtype: torch.dtype = torch.float32, seed: int = 0, hidden: int = 64, layers: int = 2) -> Any:
    """The tiny model, in a precision."""
    model = tiny_model.build_model(seed=seed, hidden=hidden, layers=layers, context=512).to(dtype)
    return norms_in_fp64(model) if dtype == torch.float64 else model


def norms_in_fp64(model: Any) -> Any:
    """Let a fp64 model compute its norms in fp64 too, where transformers rounds to fp32.

    Two ways of computing the same can then be held against one another to ten digits.
    """

    def forward(norm: Any, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = norm.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)
        return result

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(forward, module)
    return model


def build_base(*, dtype: torch.dtype = torch.float32, seed: int = 0, path: str = "", hidden: int = 64) -> LoadedBase:
    quantisation = {torch.float64: "fp64", torch.float32: "fp32"}.get(dtype, "bf16")
    model = build_model(dtype=dtype, seed=seed, hidden=hidden)
    return prepare(model, build_tokenizer(), torch.device("cpu"), dtype, quantisation=quantisation, path=path)


@pytest.fixture(autouse=True)
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute a "bf16" base in fp32, whatever this CPU has: what is compared to five digits here has them everywhere.

    ``test_bf16_arithmetic.py`` computes in bf16, on every CPU too. With the mark ``native_arithmetic`` a test computes
    as this CPU does, like the processes that it starts.
    """
    if not request.node.get_closest_marker("native_arithmetic"):
        real = base_model.compute_dtype
        monkeypatch.setattr(base_model, "compute_dtype", lambda on: torch.float32 if on.type == "cpu" else real(on))


@pytest.fixture
def tokenizer() -> Any:
    """Tiny ChatML tokenizer; pad == eos == <|im_end|> (id 2)."""
    return build_tokenizer()


@pytest.fixture
def make_tokenizer() -> Callable[..., Any]:
    """Build a tiny tokenizer: ``make_tokenizer(template=None, bos=True)``."""
    return build_tokenizer


@pytest.fixture
def make_base() -> Callable[..., LoadedBase]:
    """Build a tiny base: ``make_base(dtype=torch.float64, seed=1)``."""
    return build_base


@pytest.fixture(scope="session")
def tiny_base() -> LoadedBase:
    """A tiny base in float64 that nobody changes."""
    return build_base(dtype=torch.float64)


@pytest.fixture
def adapters() -> Adapters:
    """A tiny fp32 base without adapters."""
    return Adapters(build_base())


def randomise(adapters: Adapters, name: str, std: float = 0.1, seed: int = 0) -> None:
    """Draw every weight of an adapter, so that it changes something and all of it has a gradient."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters(name):
            parameter.normal_(std=std, generator=source)


def with_adapter(base: LoadedBase, name: str) -> Adapters:
    """A base with one random adapter to be trained."""
    found = Adapters(base)
    found.add(name, rank=4, alpha=8, trainable=True)
    randomise(found, name)
    return found


@pytest.fixture
def policy() -> Adapters:
    """A tiny fp64 base with a random adapter "policy"."""
    return with_adapter(build_base(dtype=torch.float64), "policy")


@pytest.fixture
def sft_adapter(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """The folder of an adapter that is not the base."""
    start = Adapters(load_base(tiny_model_dir, quantisation="fp32", device=torch.device("cpu")))
    start.add("sft", rank=2, alpha=4, trainable=True)
    randomise(start, "sft", 0.3)
    start.save("sft", tmp_path / "sft")
    return tmp_path / "sft"


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model saved as a Hugging Face folder (fp32 safetensors, tokenizer, template)."""
    folder = tmp_path_factory.mktemp("tiny-model")
    build_model().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


class Runs:
    """Makes run folders on the tiny model and runs methods in this process."""

    def __init__(self, runs_dir: Path, base: Path) -> None:
        self.runs_dir = runs_dir
        self.base = base

    def create(
        self,
        method: str,
        train: Any,
        heldout: Any = (),
        demonstrations: Any = (),
        *,
        adapter: Path | str = "",
        reward: ModelRef | None = None,
        run_id: str = "run-1",
        **changes: Any,
    ) -> RunFolder:
        """Freeze a run; ``changes`` are fields of its recipe."""
        settings = {
            "device": "cpu",
            "quantisation": "bf16",
            "lora_rank": 8,
            "lora_alpha": 16,
            "max_length": 256,
            "save_every": 0,
        }
        recipe = dataclasses.replace(RECIPES[method](), **(settings | {"eval_every": 0} | changes))
        model = ModelRef(model_id="m", name="tiny", base=str(self.base), adapter=str(adapter))
        fields = {"name": run_id, "recipe": dataclasses.asdict(recipe), "model": model, "reward": reward}
        spec = RunSpec(run_id=run_id, method=method, **fields)
        return RunFolder.create(self.runs_dir, spec, train, heldout, demonstrations)

    def run(self, folder: RunFolder, stop_at: int = 0, *, ask_samples: bool = False) -> None:
        """Run in this process, to the end or to a stop with a checkpoint after ``stop_at`` steps."""
        method = importlib.import_module(f"engine.{folder.spec().method}")
        session = Session(folder.path)
        if ask_samples:
            session.control.obey(SampleNow())
        if not stop_at:
            method.run(session)
            return
        at_step_end = session.at_step_end

        def stopping(step: int, total: int, save: Callable[[Path], None]) -> None:
            if step == stop_at:
                session.control.obey(Stop(save=True))
            at_step_end(step, total, save)

        session.at_step_end = stopping  # type: ignore[method-assign]
        with pytest.raises(Stopped):
            method.run(session)


@pytest.fixture
def runs(tmp_path: Path, tiny_model_dir: Path) -> Runs:
    """Run folders in a temporary place, on the tiny model."""
    return Runs(tmp_path / "runs", tiny_model_dir)


def curve(folder: RunFolder, key: str) -> list[tuple[int, float]]:
    """The values of one metric by step."""
    return [(one.step, one.values[key]) for one in folder.events() if isinstance(one, Metrics) and key in one.values]


@pytest.fixture
def metric() -> Callable[[RunFolder, str], list[tuple[int, float]]]:
    """``metric(folder, key)``: the logged (step, value) of one metric."""
    return curve


@pytest.fixture
def golden() -> Callable[[str], Any]:
    """``golden(name)``: reference numbers kept beside the tests."""
    return lambda name: json.loads((Path(__file__).parent / "golden" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads for the test, and after it as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
