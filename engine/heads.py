"""The scalar heads of a reward model or value function: hidden state to one number, in fp32, without a bias.

A reward model may have an **ensemble** of K heads on its one adapter. Its score is their mean, and their standard
deviation says how little the pairs decide: where heads that began apart and saw other pairs disagree, the score is a
guess (Coste et al. 2024, arXiv 2310.02743; Eisenstein et al. 2023, arXiv 2312.09244; heads on a shared trunk, each
with pairs of its own: Osband et al. 2016, arXiv 1602.04621). The mean of linear heads is a linear head, so that the
adapter's file holds that one for every other tool, and the heads lie beside it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from workbench.errors import UserError
from workbench.model_folders import HEAD_KEY, HEADS_FILE

__all__ = [
    "HEADS_FILE",
    "HEAD_KEY",
    "ScalarHead",
    "bootstrap_weights",
    "has_head",
    "load_head",
    "mean_head",
    "save_heads",
]
_HEADS = "heads"


class ScalarHead(nn.Module):
    """``hidden [..., D] -> scores [...]``, the mean of K heads, fp32 whatever the base computes in.

    Weights [K, D] start as N(0, 1/(D+1)) as OpenAI's do (N+ ``layer_init``), so that first scores have variance near
    1. The first of several heads starts as a single one would.
    """

    def __init__(self, hidden_size: int, device: torch.device | str = "cpu", *, seed: int = 0, heads: int = 1) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        start = torch.cat([torch.randn(1, hidden_size, generator=source) for _ in range(heads)])
        self.weight = nn.Parameter((start * (hidden_size + 1) ** -0.5).to(device))

    @property
    def count(self) -> int:
        """How many heads there are."""
        return len(self.weight)

    def each(self, hidden: Tensor) -> Tensor:
        """Score every position by every head, ``[..., K]``."""
        hidden = hidden.to(self.weight.dtype)
        return (hidden @ self.weight[0])[..., None] if self.count == 1 else hidden @ self.weight.T

    def forward(self, hidden: Tensor) -> Tensor:
        """Score every position by the mean of the heads."""
        return self.each(hidden).mean(-1)


def mean_head(weight: Tensor) -> Tensor:
    """The one head [1, D] that scores as the mean of the heads [K, D]: ``mean_k (w_k h) = (mean_k w_k) h``."""
    return weight if len(weight) == 1 else weight.mean(0, keepdim=True)


def bootstrap_weights(rankings: Iterable[str], heads: int, seed: int) -> dict[str, Tensor]:
    """How much each head learns from each ranking of a run, [K] by its id: 1 for a single head, else by coins.

    Double-or-nothing bootstrap (Owen & Eckles 2012), as Bernoulli(1/2) masks for heads on a shared trunk (Osband et
    al. 2016, section 3 and appendix). A coin is tossed once for a ranking and a head, and follows from the seed: the
    pairs of a ranking are one piece of evidence, and a later epoch shows a head the pairs that it had before.

    Two rules of our own mend what plain coins leave out where heads or rankings are few. A ranking that no head got
    is tossed again until one has it: else 2^-K of the labels would be lost. Then a head without a ranking, which
    would stay a random direction within the mean, tosses again for all until it has one. Otherwise all coins are
    independent. A ranking then goes to a head with the chance 1 / (2 - 2^(1-K)), and the weight of heads is its
    inverse: the mean is 1, and the expected loss that of all pairs.
    """
    kinds = sorted(set(rankings))
    if heads == 1:
        return {one: torch.ones(1) for one in kinds}
    coins = torch.tensor([_not_all_tails(f"{seed}/ranking/{one}", heads) for one in kinds])
    for head in range(heads):
        if not coins[:, head].any():
            coins[:, head] = torch.tensor(_not_all_tails(f"{seed}/head/{head}", len(kinds)))
    return dict(zip(kinds, coins * (2 - 2.0 ** (1 - heads)), strict=True))


def _not_all_tails(seed: str, count: int) -> list[int]:
    source = random.Random(seed)
    while True:
        coins = [source.getrandbits(1) for _ in range(count)]
        if any(coins):
            return coins


def save_heads(folder: Path, weight: Tensor) -> None:
    """Write the heads [K, D] beside an adapter; a single head lies in the adapter's own file alone."""
    from safetensors.torch import save_file

    if len(weight) > 1:
        save_file({_HEADS: weight.detach().float().cpu().contiguous()}, str(folder / HEADS_FILE))


def load_head(folder: str | Path, device: torch.device | str = "cpu") -> ScalarHead:
    """Read the head or heads of an adapter folder. Raises UserError where there is none, or they do not agree."""
    from safetensors import safe_open

    folder = Path(folder)
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise UserError(f"There is no adapter in {folder}", "adapter_model.safetensors is missing", "import it again")
    with safe_open(str(file), framework="pt") as tensors:
        if HEAD_KEY not in tensors.keys():  # noqa: SIM118 - a safetensors handle is no mapping
            raise UserError(
                f"The model in {folder.name} gives no scores",
                "it has no scalar head",
                "choose a reward model",
            )
        weight = tensors.get_tensor(HEAD_KEY).float()
    if (folder / HEADS_FILE).is_file():
        weight = _ensemble(folder, weight)
    head = ScalarHead(weight.shape[1], device, heads=len(weight))
    with torch.no_grad():
        head.weight.copy_(weight)
    return head


def _ensemble(folder: Path, mean: Tensor) -> Tensor:
    """The heads beside an adapter, whose mean must be the adapter's own head."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weight = load_file(str(folder / HEADS_FILE))[_HEADS].float()
        agrees = weight.dim() == 2 and torch.allclose(mean_head(weight), mean, rtol=1e-4, atol=1e-6)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise UserError(f"{folder.name}/{HEADS_FILE} is damaged", str(error), "import the model again") from error
    if not agrees:
        raise UserError(
            f"The heads of {folder.name} are of another model",
            f"the mean of those in {HEADS_FILE} is not the head in its adapter",
            f"put back the file that belongs to it, or delete {HEADS_FILE} to score without their spread",
        )
    return weight


def has_head(folder: str | Path) -> bool:
    """Whether an adapter folder holds a scalar head: whether it is a reward model."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(Path(folder) / "adapter_model.safetensors"), framework="pt") as tensors:
            return HEAD_KEY in tensors.keys()  # noqa: SIM118 - a safetensors handle is no mapping
    except (OSError, SafetensorError):
        return False
