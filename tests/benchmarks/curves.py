"""How both sides scale: sequence length, batch, responses a prompt, width of the model. Once each, best setting.

Widths are random Llamas of six layers with the demo model's tokenizer; the other curves run on the demo model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from random_llama import write_random_llama
from work import Work, even_work, make_work

from workbench.model_shape import Shape

LENGTHS = (128, 512, 2048)
BATCHES = (1, 4, 16)
RESPONSES = (1, 4, 8)
WIDTHS = (256, 1024)

Measure = Callable[[list[str]], dict[str, Any]]


def points(data: Path, tokenizer: Any, model: Path, folder: Path) -> Iterator[tuple[str, int, Work, Path]]:
    """Every point: (curve, where on it, the work, the model)."""
    for length in LENGTHS:  # 1024 tokens a step, at least one row
        yield "length", length, even_work(data, tokenizer, length=length, batch=max(1, 1024 // length)), model
    for batch in BATCHES:
        yield "batch", batch, even_work(data, tokenizer, length=256, batch=batch), model
    for count in RESPONSES:
        work = make_work("generate", data, tokenizer)
        yield "responses", count, replace(work, rows=work.rows[:4], responses=count, response_length=64), model
    for width in WIDTHS:
        made = folder / f"width-{width}"
        heads = max(2, width // 64)
        keys = heads // 3 if heads % 3 == 0 else heads
        shape = Shape(0, width, 6, width * 8 // 3 // 64 * 64, heads, keys, 64, len(tokenizer), 4096)
        write_random_llama(made, tokenizer, shape)
        yield "width", width, even_work(data, tokenizer, length=256, batch=4), made


def measure_curves(
    measured: Measure, here: Path, data: Path, tokenizer: Any, model: Path, folder: Path, threads: int
) -> list[dict[str, Any]]:
    """Run both sides at every point."""
    rows = []
    for curve, at, work, base in points(data, tokenizer, model, folder):
        path = folder / f"{curve}-{at}.json"
        work.write(path)
        more = [str(path), str(base), "--threads", str(threads)]
        ours, peer = (measured([sys.executable, str(here / script), *more]) for script in ("ours.py", "peer.py"))
        row = {"curve": curve, "at": at, "method": work.method}
        for name, side in (("", ours), ("peer_", peer)):
            row |= {f"{name}tokens_per_s": side["tokens_per_s"], f"{name}above_model_mib": side["above_model_mib"]}
        rows.append(row)
        print(curves_table([row], header=len(rows) == 1), flush=True)
    return rows


def curves_table(rows: list[dict[str, Any]], *, header: bool = True) -> str:
    """The points as a Markdown table: real tokens a second and MiB above the model, ours and the peer's."""
    columns = ("curve", "at", "ours tokens/s", "peer tokens/s", "ratio", "ours MiB", "peer MiB", "ratio")
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)] if header else []
    for row in rows:
        speed, memory = row["tokens_per_s"] / row["peer_tokens_per_s"], None
        if row["peer_above_model_mib"] > 0:
            memory = row["above_model_mib"] / row["peer_above_model_mib"]
        cells = (
            row["curve"],
            str(row["at"]),
            f"{row['tokens_per_s']:.0f}",
            f"{row['peer_tokens_per_s']:.0f}",
            f"{speed:.2f}",
            f"{row['above_model_mib']:,.0f}",
            f"{row['peer_above_model_mib']:,.0f}",
            "" if memory is None else f"{memory:.2f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
