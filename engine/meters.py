"""Metrics as sums and counts, divided once per report, over real tokens and every micro-batch."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench import calibration, statistics


class Meters:
    """Collects values between reports. Sums stay on the device: nothing waits for it until :meth:`flush`."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._lows: dict[str, Tensor] = {}
        self._highs: dict[str, Tensor] = {}

    def add(self, key: str, values: Tensor | float) -> None:
        """Add values (any shape), each of which counts once."""
        if isinstance(values, Tensor):
            detached = values.detach()
            wide = torch.promote_types(detached.dtype, torch.float32)
            self.add_sum(key, detached.sum(dtype=wide), detached.numel())
        else:
            self.add_sum(key, values, 1)

    def add_sum(self, key: str, total: Tensor | float, count: int) -> None:
        """Add a sum over ``count`` values."""
        value = torch.as_tensor(total, dtype=torch.float64).detach()
        self._sums[key] = self._sums[key] + value if key in self._sums else value
        self._counts[key] = self._counts.get(key, 0) + count

    def add_low(self, key: str, values: Tensor) -> None:
        """Remember the lowest value."""
        low = values.detach().min()
        self._lows[key] = torch.minimum(self._lows[key], low) if key in self._lows else low

    def add_high(self, key: str, values: Tensor) -> None:
        """Remember the highest value."""
        high = values.detach().max()
        self._highs[key] = torch.maximum(self._highs[key], high) if key in self._highs else high

    def reset(self) -> None:
        """Forget everything since the last report."""
        for store in (self._sums, self._counts, self._lows, self._highs):
            store.clear()

    def flush(self, prefix: str = "") -> dict[str, float]:
        """Return each mean (and lowest and highest) since the last report, and begin anew. Empty keys are left out."""
        values = {
            prefix + key: float(total) / self._counts[key] for key, total in self._sums.items() if self._counts[key]
        }
        values |= {prefix + key: float(value) for store in (self._lows, self._highs) for key, value in store.items()}
        self.reset()
        return values


class Throughput:
    """Real tokens and rows a second since the last report, and tokens since the run's first start."""

    def __init__(self, num_tokens: int = 0) -> None:
        self.num_tokens = num_tokens
        self._tokens = 0
        self._rows = 0
        self._since = time.perf_counter()

    def add(self, tokens: int, rows: int) -> None:
        """Count what was passed through the model."""
        self.num_tokens += tokens
        self._tokens += tokens
        self._rows += rows

    def restart(self) -> None:
        """Begin measuring now: what came before (evaluation, saving, a pause) is not training time."""
        self._since = time.perf_counter()

    def flush(self) -> dict[str, float]:
        """Return the three numbers and begin anew."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        values = {
            "num_tokens": float(self.num_tokens),
            "perf/tokens_per_s": self._tokens / seconds,
            "perf/samples_per_s": self._rows / seconds,
        }
        self._tokens = self._rows = 0
        self.restart()
        return values


@dataclass(frozen=True, slots=True)
class Interval:
    """A share and its 95 % confidence interval."""

    value: float
    low: float
    high: float


def wilson(successes: float, trials: float) -> Interval:
    """A share and its Wilson score interval (:func:`workbench.statistics.wilson`)."""
    return Interval(successes / trials if trials > 0 else 0.0, *statistics.wilson(successes, trials))


def calibration_error(margins: Tensor) -> float:
    """Expected calibration error of margins [P] (:func:`workbench.calibration.calibration_error`)."""
    return calibration.calibration_error(margins.tolist())
