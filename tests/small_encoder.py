"""A tiny text encoder: a tokenizer of words, and a BERT with random layers to which "azure" and
"blue" are the same."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tailorbird.config.base import digest
from tailorbird.registry.versions import PinnedEncoder
from tailorbird.storage.node_cache import sha256_files

WORDS = (
    "[PAD]",
    "[UNK]",
    "a",
    "azure",
    "blue",
    "sky",
    "skies",
    "green",
    "leaf",
    "of",
    "red",
    "rose",
    "at",
    "noon",
    "what",
    "is",
    "cat",
    "dog",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
)


def save(
    folder: Path, *, seed: int = 0, hidden_size: int = 16, broken: bool = False
) -> PinnedEncoder:
    """Save the encoder to a folder in the format of the Hugging Face Hub, and return its pin.

    The embeddings of a `broken` encoder are not finite.
    """
    torch.manual_seed(seed)
    encoder = BertModel(
        BertConfig(
            vocab_size=len(WORDS),
            hidden_size=hidden_size,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=24,
        )
    )
    with torch.no_grad():
        words = encoder.embeddings.word_embeddings.weight
        words.normal_()
        words[WORDS.index("azure")] = words[WORDS.index("blue")]
        if broken:
            words.fill_(torch.nan)
    encoder.save_pretrained(folder)
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(folder)
    return pin(folder)


def pin(folder: Path) -> PinnedEncoder:
    """Return the pin of an encoder in a folder."""
    return PinnedEncoder(
        uri=folder.as_uri(), sha256=digest(sha256_files(folder.as_uri())), dtype="float32"
    )
