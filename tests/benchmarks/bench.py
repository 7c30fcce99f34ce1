"""Tastemaker's engine and TRL on the same work, alternately, in fresh processes; tables for people and for machines.

    make bench                                  every method, three alternations
    make bench ONLY=sft,generate REPEATS=1      some of it
    make bench BENCH="--llamas 1B,3B,8B --quants nf4"   on a GPU: of rate is then the model FLOPs utilisation
    make bench BENCH=--curves                   how both scale: length, batch, responses, width
    python tests/benchmarks/bench.py --help

TRL 1.16 lies in the development environment; PPO's peer, TRL 1.12.0, in one of its own (``make bench`` builds it).
Each process loads the model, does the work and prints one line; the runner takes turns, so that what else the machine
does hits both alike, and compares the median of the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from curves import curves_table, measure_curves
from flops import needed_flops, shape_of
from measure import has_bf16, matrix_rate, prepare
from random_llama import write_random_llama
from work import METHODS, Work, make_work

from workbench.model_shape import LLAMAS

HERE = Path(__file__).resolve().parent

TARGETS = {
    "best": {"sft": 3.0, "reward": 1.5, "dpo": 3.0, "ppo": 2.0, "generate": 2.0},
    "default": {"sft": 4.0, "reward": 2.5, "dpo": 4.0},
    "full-value": {"ppo": 2.0},
}
"""What is aimed at: samples a second against the peer's, by its setting."""


@dataclass
class Comparison:
    """One method, quantisation and setting of the peer: what every alternation measured."""

    method: str
    quant: str
    setting: str
    ours: list[dict[str, Any]] = field(default_factory=list)
    peer: list[dict[str, Any]] = field(default_factory=list)

    def ratios(self, key: str, least: float = 0.0) -> list[float]:
        """Ours over the peer's, alternation by alternation, where the peer's is more than ``least``."""
        both = zip(self.ours, self.peer, strict=True)
        return [one[key] / other[key] for one, other in both if other.get(key, 0.0) > least]

    def row(self, rate: float, flops: float, device: str) -> dict[str, Any]:
        """The comparison as a row of ``results.json``."""
        # Responses end where they like, so sampling is compared by tokens.
        speed = self.ratios("tokens_per_s" if self.method == "generate" else "samples_per_s")
        memory = self.ratios("above_model_mib", least=1.0)
        ours = statistics.median(one["samples_per_s"] for one in self.ours)
        sides = {"": self.ours, "peer_": self.peer}
        numbers = ("samples_per_s", "tokens_per_s", "above_model_mib", "peak_mib")
        return {
            "method": self.method,
            "quant": self.quant,
            "setting": self.setting,
            "device": device,
            **{
                f"{side}{key}": statistics.median(one[key] for one in found)
                for side, found in sides.items()
                for key in numbers
            },
            "samples_per_s_ratio": statistics.median(speed),
            "spread": [min(speed), max(speed)],
            "peak_memory_ratio": statistics.median(memory) if memory else None,
            "rate_share": ours * flops / rate if flops else None,
            "repeats": len(self.ours),
            "metrics": self.ours[-1].get("metrics", {}),
            "peer_metrics": self.peer[-1].get("metrics", {}),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None, help="a Hugging Face folder; the demo model by default")
    parser.add_argument("--data", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--only", default="", help="methods, with commas: sft,reward,dpo,ppo,generate")
    parser.add_argument("--quants", default="bf16,nf4")
    parser.add_argument("--settings", default="best,default,full-value", help="of the peer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--llamas", default="", help="random weights instead of the demo model: 1B,3B,8B (for a GPU)")
    parser.add_argument("--curves", action="store_true", help="how both scale, instead of the methods' table")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--ppo-python", default=str(HERE.parents[1] / ".venv-ppo" / "bin" / "python"))
    parser.add_argument("--out", type=Path, default=HERE, help="where RESULTS.md and results.json are written")
    options = parser.parse_args()
    prepare(options.threads)
    if not options.data.is_dir():
        raise SystemExit(f"there is no {options.data}: name the folder of the real data with --data")
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or demo_model()
        if options.curves:
            write_curves(options.out, draw_curves(options, model, Path(folder)))
            return
        for name in options.llamas.split(",") if options.llamas else [""]:
            if name:
                model = random_llama(options, name, Path(folder))
            compare_all(options, model, Path(folder), name or model.name)
            if name:
                shutil.rmtree(model)


def random_llama(options: argparse.Namespace, name: str, folder: Path) -> Path:
    """Write a Llama of a known size with random weights."""
    from transformers import AutoTokenizer

    made = folder / name
    write_random_llama(made, AutoTokenizer.from_pretrained(options.model or demo_model()), LLAMAS[f"Llama {name}"])
    return made


def draw_curves(options: argparse.Namespace, model: Path, folder: Path) -> list[dict[str, Any]]:
    """Length, batch, responses and width, once each."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return measure_curves(measured, HERE, options.data, tokenizer, model, folder, options.threads)


def demo_model() -> Path:
    """The demo model, converted once into the cache."""
    from engine.model_import import import_model

    folder = HERE.parents[1] / "build" / "demo-model"
    if not folder.is_dir():
        folder.parent.mkdir(exist_ok=True)
        import_model("demo", folder)
    return folder


def compare_all(options: argparse.Namespace, model: Path, folder: Path, name: str) -> None:
    """Run every comparison; print and write each row as it is known."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    device, rate = device_name(), matrix_rate()
    print(f"{device}: {rate / 1e9:,.0f} GFLOP/s on matrices, {options.threads} threads", flush=True)
    wanted = options.only.split(",") if options.only else [*METHODS, "generate"]
    printed = False
    for method in wanted:
        path = folder / f"{method}.json"
        work = make_work(method, options.data, tokenizer)
        work.write(path)
        settings = [one for one in options.settings.split(",") if method in TARGETS[one]]
        if not settings:
            continue
        for quant in options.quants.split(","):
            found = compare(options, work, path, model, quant, settings)
            flops = needed_flops(work, shape_of(model), found[0].ours[-1]["tokens"], tokenizer)
            rows = [{"model": name} | one.row(rate, flops, device) | {"measured": stamp(options)} for one in found]
            print(table(rows, header=not printed), flush=True)
            printed = True
            write_results(options.out, rows, options)


def compare(
    options: argparse.Namespace, work: Work, path: Path, model: Path, quant: str, settings: list[str]
) -> list[Comparison]:
    """Alternate ours and every setting of the peer."""
    found = [Comparison(work.method, quant, setting) for setting in settings]
    threads = ["--quant", quant, "--threads", str(options.threads)]
    for _ in range(options.repeats):
        ours = measured([sys.executable, str(HERE / "ours.py"), str(path), str(model), *threads])
        for one in found:
            python = options.ppo_python if work.method == "ppo" else sys.executable
            more = ["--setting", one.setting]
            one.peer.append(measured([python, str(HERE / "peer.py"), str(path), str(model), *threads, *more]))
            one.ours.append(ours)
    return found


def measured(command: list[str]) -> dict[str, Any]:
    """Run one side and read its line."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=7200)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def stamp(options: argparse.Namespace) -> str:
    """When, and with what."""
    from importlib.metadata import version

    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "bitsandbytes", "trl"))
    return f"{datetime.now(UTC):%Y-%m-%d}, {options.threads} threads, {packages}"


def device_name() -> str:
    """The GPU's name, or the processor's and whether it multiplies bf16."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    low = ", bf16" if has_bf16() else ""
    return f"{names[0] if names else platform.processor()} ({len(os.sched_getaffinity(0))} cores{low})"


COLUMNS = (
    "model",
    "method",
    "base",
    "peer's setting",
    "runs",
    "samples/s",
    "ratio (spread)",
    "aim",
    "tokens/s",
    "above the model, MiB",
    "ratio",
    "in all, MiB",
    "of rate",
    "mean of all steps",
)
SHOWN = {"loss": "loss", "accuracy": "accuracy", "rewards/accuracies": "accuracy", "objective/kl": "KL"}
"""Which of the metrics the table shows, and as what."""


def table(rows: list[dict[str, Any]], *, header: bool = True) -> str:
    """The rows as a Markdown table; two numbers in a cell are ours and the peer's."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)] if header else []
    for row in rows:
        low, high = row["spread"]
        memory = row["peak_memory_ratio"]
        share = row["rate_share"]
        cells = (
            row["model"],
            row["method"],
            row["quant"],
            row["setting"],
            str(row["repeats"]),
            _both(row, "samples_per_s", ".3f"),
            f"{row['samples_per_s_ratio']:.2f} ({low:.2f} to {high:.2f})",
            f"{TARGETS[row['setting']][row['method']]:g}",
            _both(row, "tokens_per_s", ",.0f"),
            _both(row, "above_model_mib", ",.0f"),
            "" if memory is None else f"{memory:.2f}",
            _both(row, "peak_mib", ",.0f"),
            "" if share is None else f"{share:.0%}",
            "; ".join(
                f"{name} {row['metrics'][key]:.3f} / {row['peer_metrics'][key]:.3f}"
                for key, name in SHOWN.items()
                if key in row["metrics"] and key in row["peer_metrics"]
            ),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _both(row: dict[str, Any], key: str, shape: str) -> str:
    """Ours and the peer's number."""
    return f"{row[key]:{shape}} / {row['peer_' + key]:{shape}}"


def write_results(folder: Path, rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Write ``results.json``, and into ``RESULTS.md`` a table a device, with when it was last measured."""
    folder.mkdir(parents=True, exist_ok=True)
    kept_file = folder / "results.json"
    kept = json.loads(kept_file.read_text(encoding="utf-8")) if kept_file.is_file() else []
    keys = ("model", "method", "quant", "setting", "device")
    fresh = {tuple(row[key] for key in keys) for row in rows}
    rows = [row for row in kept if tuple(row.get(key) for key in keys) not in fresh] + rows
    order = [*METHODS, "generate"]
    rows.sort(key=lambda row: (row["device"], row["model"], row["quant"], row["setting"], order.index(row["method"])))
    kept_file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    tables = []
    for device in dict.fromkeys(row["device"] for row in rows):
        own = [row for row in rows if row["device"] == device]
        tables.append(f"{device}, {max(row['measured'] for row in own)}.\n\n{table(own)}")
    write_between(folder, "table", "\n\n".join(tables))


def write_curves(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``curves.json``, and the points into ``RESULTS.md`` between their marks."""
    (folder / "curves.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    shown = f"{datetime.now(UTC):%Y-%m-%d}, {device_name()}, bf16, once each.\n\n{curves_table(rows)}"
    print(f"\nwritten: {write_between(folder, 'curves', shown)}")


def write_between(folder: Path, name: str, shown: str) -> Path:
    """Put something into ``RESULTS.md`` between ``<!-- name -->`` and ``<!-- end -->``; without marks at its end."""
    page, mark = folder / "RESULTS.md", f"<!-- {name} -->"
    text = page.read_text(encoding="utf-8") if page.is_file() else "# Results\n"
    if mark not in text:
        text += f"\n{mark}\n<!-- end -->\n"
    before, _, rest = text.partition(mark)
    _, _, after = rest.partition("<!-- end -->")
    page.write_text(f"{before}{mark}\n{shown}\n<!-- end -->{after}", encoding="utf-8")
    return page


if __name__ == "__main__":
    main()
