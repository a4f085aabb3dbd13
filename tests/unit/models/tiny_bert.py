"""A tiny random BERT for tests of encoders."""

import torch
from transformers import BertConfig, BertModel


def tiny_bert(
    *, width: int = 16, num_layers: int = 2, vocabulary: int = 50, dropout: float = 0.1
) -> BertModel:
    """Return a BERT with random weights."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertModel(config)
