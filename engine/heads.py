"""The scalar head of a reward model or value function: hidden state to one number, in fp32, without a bias."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from workbench.errors import UserError

HEAD_KEY = "base_model.model.score.weight"
"""Where peft keeps the head of a sequence-classification adapter (``modules_to_save=["score"]``)."""


class ScalarHead(nn.Module):
    """``hidden [..., D] -> scores [...]``, fp32 whatever the base computes in.

    Weights start as N(0, 1/(D+1)) as OpenAI's do (N+ ``layer_init``), so that first scores have variance near 1.
    """

    def __init__(self, hidden_size: int, device: torch.device | str = "cpu", *, seed: int = 0) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        start = torch.randn(1, hidden_size, generator=source) * (hidden_size + 1) ** -0.5
        self.weight = nn.Parameter(start.to(device))

    def forward(self, hidden: Tensor) -> Tensor:
        """Score every position."""
        return hidden.to(self.weight.dtype) @ self.weight[0]


def load_head(folder: str | Path, device: torch.device | str = "cpu") -> ScalarHead:
    """Read the head that lies in an adapter folder. Raises UserError where there is none."""
    from safetensors import safe_open

    file = Path(folder) / "adapter_model.safetensors"
    if not file.is_file():
        raise UserError(f"There is no adapter in {folder}", "adapter_model.safetensors is missing", "import it again")
    with safe_open(str(file), framework="pt") as tensors:
        if HEAD_KEY not in tensors.keys():  # noqa: SIM118 - a safetensors handle is no mapping
            raise UserError(
                f"The model in {Path(folder).name} gives no scores",
                "it has no scalar head",
                "choose a reward model",
            )
        weight = tensors.get_tensor(HEAD_KEY).float()
    head = ScalarHead(weight.shape[1], device)
    with torch.no_grad():
        head.weight.copy_(weight)
    return head


def has_head(folder: str | Path) -> bool:
    """Whether an adapter folder holds a scalar head: whether it is a reward model."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(Path(folder) / "adapter_model.safetensors"), framework="pt") as tensors:
            return HEAD_KEY in tensors.keys()  # noqa: SIM118 - a safetensors handle is no mapping
    except (OSError, SafetensorError):
        return False
