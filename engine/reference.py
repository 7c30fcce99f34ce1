"""Log-probabilities under the frozen start of a run: computed once for DPO and KTO, and kept on disk.

They are computed in exactly the micro-batches, padding and kernels of the policy, so that low-precision errors cancel
and the first log-ratios are 0; they are kept under a hash of everything that they depend on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from engine.adapters import Adapters
from engine.checkpoints import load_tensors, save_tensors
from engine.masking import Example
from engine.memory import MicroBatch
from engine.session import Session

REFERENCE = "reference"
Reference = dict[str, tuple[float, ...]]
"""Summed reference log-probabilities by a row's id, one for each of its completions."""


class Encoded(Protocol):
    """A row in token ids: one completion of a prompt, or two."""

    @property
    def id(self) -> str:
        """What it is called in a :data:`Reference`."""

    @property
    def sides(self) -> tuple[Example, ...]:
        """Its completions."""


Row = TypeVar("Row", bound=Encoded)


@torch.no_grad()
def reference_logps(
    session: Session,
    adapters: Adapters,
    batches: Sequence[Sequence[Row]],
    micro_batch: MicroBatch,
    logps: Callable[[str | None, Sequence[Row]], Tensor],
    cut: Callable[[Sequence[Row], int], Sequence[Sequence[Row]]],
    what: str,
) -> Reference:
    """Log-probabilities under the frozen start of every row of these batches; read from disk when they are there.

    The start is the adapter that training starts from, the bare base where there is none.

    Args:
        session: the run.
        adapters: its base and adapters.
        batches: of the policy; a batch that is there twice is computed once.
        micro_batch: rows at once; left at what fitted into memory. Where that is less, all rows are passed again, so
            that none is paired with a policy that passes in other micro-batches.
        logps: sums [rows, completions of a row] under an adapter (None: the bare base).
        cut: batches into micro-batches, as for the policy.
        what: the rows' name, for the window.
    """
    unique = list({tuple(one.id for one in batch): batch for batch in batches if batch}.values())
    content = _content_hash(session, adapters, unique, micro_batch.rows)
    file = session.folder / "cache" / f"reference-{content}.safetensors"
    rows = [one for batch in unique for one in batch]
    if file.is_file():
        kept = load_tensors(file)
        if "fitted" in kept and kept["logps"].shape == (len(rows), len(rows[0].sides)):
            micro_batch.take(session, int(kept["fitted"]), REFERENCE)
            return _by_id(rows, kept["logps"])
    session.phase(REFERENCE, f"log-probabilities of {len({one.id for one in rows})} {what} under the start model")
    start = None  # the bare base
    if session.spec.model.adapter:
        adapters.load(REFERENCE, session.spec.model.adapter, trainable=False)
        start = REFERENCE

    def measure(part: Sequence[Row]) -> Tensor:
        session.control.check_cancelled()
        return logps(start, part).cpu()

    fitted, parts = 0, list[Tensor]()
    while fitted != micro_batch.rows:
        fitted, parts = micro_batch.rows, []
        for batch in unique:
            done = micro_batch.run(session, batch, measure, cut=cut, learns=False)
            if micro_batch.rows < fitted:
                break
            parts += done
    if start:
        adapters.remove(REFERENCE)
    found = torch.cat(parts)
    file.parent.mkdir(exist_ok=True)
    draft = file.with_suffix(".tmp")
    save_tensors(draft, {"logps": found, "fitted": torch.tensor(fitted)})
    draft.replace(file)
    return _by_id(rows, found)


def _by_id(rows: Sequence[Encoded], found: Tensor) -> Reference:
    return {one.id: tuple(map(float, sums)) for one, sums in zip(rows, found, strict=True)}


def _content_hash(session: Session, adapters: Adapters, batches: Sequence[Sequence[Encoded]], micro_batch: int) -> str:
    model, base = session.spec.model, adapters.base
    digest = hashlib.sha256()
    for one in (model.base_sha256 or model.base, model.adapter_sha256 or model.adapter, base.quantisation, base.dtype):
        digest.update(f"{one}\n".encode())
    digest.update(f"{base.device.type} {torch.__version__} {micro_batch} {base.halves}\n".encode())
    for batch in batches:
        for row in batch:
            for side in row.sides:
                digest.update(torch.tensor([side.prompt_length, *side.input_ids]).numpy().tobytes())
        digest.update(b"/")
    return digest.hexdigest()[:16]
