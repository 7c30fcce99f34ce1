"""Llamas with random weights, of any size: what they say is noise, what they cost is real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.model_shape import Shape


def write_random_llama(folder: Path, tokenizer: Any, shape: Shape) -> None:
    """Save a random Llama in bf16 with a given tokenizer; it takes two bytes a parameter, in memory too."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=max(shape.vocabulary, len(tokenizer)),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.parameters < 5e9,  # as Llama 3.2 1B and 3B do
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        LlamaForCausalLM(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(before)
    tokenizer.save_pretrained(folder)
