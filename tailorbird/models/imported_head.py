"""Import the head of a sequence classifier that was tuned elsewhere."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tailorbird.data.quality import listed
from tailorbird.data.tokenize import collate, encode_texts, load_tokenizer
from tailorbird.models.classifier import ACTIVATIONS, Classifier, DenseHead
from tailorbird.models.errors import ModelError
from tailorbird.models.pretrained import load_encoder, load_sequence_classifier
from tailorbird.registry.pooling import Pooling

TOLERANCE = 1e-4
"""Largest difference of a logit from that of transformers, relative to the largest logit."""


def import_head(
    folder: Path, *, classes: tuple[str, ...], texts: Sequence[str], max_length: int
) -> tuple[nn.Linear, Pooling]:
    """Return the head of a sequence classifier of transformers, with its outputs in the order of
    `classes`, and the pooling before it.

    Raises ModelError if the labels of the model are not `classes`, or if the encoder with this
    pooling and head does not have the logits of transformers on `texts`.
    """
    model = load_sequence_classifier(folder)
    labels = [label for _, label in sorted(model.config.id2label.items())]
    if sorted(labels) != sorted(classes):
        raise ModelError(
            f"{folder} has the labels {listed(labels)} in id2label of its config.json, but the "
            f"training rows have {listed(classes)}; write the labels of the rows to id2label"
        )
    order = [labels.index(label) for label in classes]
    tokenizer = load_tokenizer(folder)
    token_lists = encode_texts(texts, tokenizer=tokenizer, max_length=max_length)
    input_ids, mask = collate(token_lists, pad_id=tokenizer.pad_token_id, device="cpu")
    encoder = load_encoder(folder)
    with torch.inference_mode():
        expected = model(input_ids=input_ids, attention_mask=mask).logits[:, order]
        for head, pooling in _heads(model, order=order):
            logits = Classifier(encoder, head, pooling=pooling).eval()(input_ids, mask)
            if (logits - expected).abs().max() <= TOLERANCE * expected.abs().max():
                return head, pooling
    raise ModelError(
        f"{folder} is a {type(model).__name__}, whose head is not supported; name a model with a "
        "linear layer on the last token, as Qwen2, or on the first token after a dense layer of "
        f"the same size and {', '.join(ACTIVATIONS)}, as BERT, RoBERTa, DistilBERT or ELECTRA"
    )


def _heads(model: Any, *, order: list[int]) -> Iterator[tuple[nn.Linear, Pooling]]:
    """Yield the heads that a sequence classifier can have by the names of its layers."""
    if isinstance(score := getattr(model, "score", None), nn.Linear):
        yield _in_order(score, order), Pooling(mode="lasttoken")
        return
    classifier = getattr(model, "classifier", None)
    pooler = getattr(model, "pooler", None) or getattr(model.base_model, "pooler", None)
    layers = (
        (getattr(model, "pre_classifier", None), classifier),
        (getattr(pooler, "dense", None), classifier),
        (getattr(classifier, "dense", None), getattr(classifier, "out_proj", None)),
    )
    for dense, output in layers:
        if not (isinstance(output, nn.Linear) and isinstance(dense, nn.Linear)):
            continue
        if dense.in_features == dense.out_features:
            for activation in ACTIVATIONS:
                yield DenseHead(dense, _in_order(output, order), activation), Pooling(mode="cls")


def _in_order(linear: nn.Linear, order: list[int]) -> nn.Linear:
    """Return a linear layer with its outputs in this order, in fp32 and with a bias."""
    ordered = nn.Linear(linear.in_features, len(order))
    bias: Tensor = torch.zeros(len(order)) if linear.bias is None else linear.bias[order]
    ordered.load_state_dict({"weight": linear.weight[order].float(), "bias": bias.float()})
    return ordered
