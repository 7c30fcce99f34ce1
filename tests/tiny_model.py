"""A tiny random Llama in code: two layers, bytes, ChatML. ``python tests/tiny_model.py FOLDER`` saves it.

A test whose process must stay free of torch runs it as a program (the fixture ``tiny_model`` does); it is the same
model that the engine's tests build in their own process.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>")
MERGES = (("t", "h"), ("th", "e"), ("i", "n"), ("a", "n"), ("Ċ", "Ċ"))


def build_tokenizer(template: str | None = CHATML, *, bos: bool = False) -> Any:
    """256 bytes with a few merges; ``<|im_end|>`` is both EOS and pad, as in SmolLM2, but without a template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {text: number for number, text in enumerate(SPECIAL)}
    for piece in [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(first + second for first, second in MERGES)]:
        vocabulary[piece] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    end = "<|im_end|>" if template else "<|endoftext|>"
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, pad_token=end, bos_token="<s>" if bos else None
    )
    fast.chat_template = template
    return fast


def build_model(*, seed: int = 0, hidden: int = 64, layers: int = 2, context: int = 1024) -> Any:
    """A random Llama with grouped-query attention and tied embeddings, in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=272,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.15,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def save(folder: Path) -> None:
    """Save model and tokenizer as a Hugging Face folder."""
    build_model().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


if __name__ == "__main__":
    save(Path(sys.argv[1]))
