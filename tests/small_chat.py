"""A tiny chat model: a tokenizer of letters, a chat template, and a language model with two random
layers."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WORDS = (
    "<pad>",
    "</s>",
    "<system>",
    "<user>",
    "<assistant>",
    *"abcdefghijklmnopqrstuvwxyz ?0123456789.",
)


def tokenizer(template: str | None = TEMPLATE) -> Any:
    """Return a tokenizer with a token for each letter and digit, for each role and for the end of a
    turn."""
    inner = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="?")
    )
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("</?[a-z]+>|."), behavior="isolated")
    inner.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="<pad>", unk_token="?"
    )
    fast.chat_template = template
    return fast


def language_model(*, width: int = 32, layers: int = 2, dropout: float = 0.0) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        attention_dropout=dropout,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


def model_of(kind: str, **fields: Any) -> Any:
    """Return a model of the same size of another model type of transformers."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "initializer_range": 0.1,
    }
    heads = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
    }
    ids = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **sizes, **heads, **ids, **fields)
    ).eval()


def save(folder: Path, lm: Any = None) -> None:
    """Save the model and its tokenizer to a folder in the format of the Hugging Face Hub."""
    (lm or language_model()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
