"""What a layer keeps of a token for its backward pass, as autograd has it, is what the memory plan counts."""

from __future__ import annotations

import pytest
import torch

from engine.adapters import Adapters
from engine.base_model import prepare
from engine.masking import Example
from workbench.memory_plan import kept_per_token
from workbench.model_shape import Shape

RANK, TOKENS, D, INNER, HEADS, KEYS, WIDTH = 8, 384, 128, 352, 4, 2, 32


def kept_bytes(make_tokenizer, layers: int, *, packed: bool, family: str) -> int:
    """Bytes of the different tensors that a forward pass of a random model leaves for its backward pass."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        family,
        vocab_size=272,
        hidden_size=D,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        head_dim=WIDTH,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    base = prepare(AutoModelForCausalLM.from_config(config), make_tokenizer(), torch.device("cpu"), torch.float32)
    base.packs = packed
    adapters = Adapters(base)
    adapters.add("policy", rank=RANK, alpha=16, trainable=True)
    weights = {one.untyped_storage().data_ptr() for one in base.model.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    half = TOKENS // 2
    examples = [Example.plain(tuple(range(4, 4 + half)), 1), Example.plain(tuple(range(5, 5 + half)), 1)]
    with adapters.use("policy"), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        hidden = adapters.flat(adapters.lay_out(examples))
        assert hidden.shape == (TOKENS, D)
        return sum(kept.values())  # while ``hidden`` holds the graph, no address is given out twice


@pytest.mark.parametrize(
    ("family", "packed", "gpu"), [("llama", True, False), ("llama", False, True), ("qwen3", True, False)]
)
def test_a_layer_keeps_what_the_plan_counts(make_tokenizer, family, packed, gpu):
    """Two models that differ by two layers differ by what two layers keep: embeddings, positions, last norm cancel."""
    shape = Shape(1, D, 2, INNER, HEADS, KEYS, WIDTH, 272, 512)
    four, two = (kept_bytes(make_tokenizer, layers, packed=packed, family=family) for layers in (4, 2))
    difference = four - two
    # in fp32 a norm's input is the residual stream itself, and is counted once as its 4 D
    assert difference / 2 / TOKENS == pytest.approx(kept_per_token(shape, RANK, 4, gpu=gpu), rel=0.03)
