"""A sequence classifier of transformers gives the same logits with our encoder, pooling and head."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from tailorbird.data.tokenize import collate, encode_texts, load_tokenizer
from tailorbird.models.errors import ModelError
from tailorbird.models.imported_head import import_head
from tailorbird.models.loading import load_weights
from tailorbird.models.pretrained import load_encoder
from tests import small_encoder
from tests.unit.models.test_loading import change_config

TEXTS = ("a blue sky", "green leaf", "red rose at noon one two three", "dog")
CLASSES = ("blue", "green", "red")
SIZES = {
    "vocab_size": len(small_encoder.WORDS),
    "pad_token_id": 0,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
DISTILBERT = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
LABELS = {
    "id2label": {0: "red", 1: "blue", 2: "green"},
    "label2id": {"red": 0, "blue": 1, "green": 2},
}


def save_classifier(folder: Path, kind: str, **fields: Any) -> None:
    """Save a sequence classifier with random weights and the tokenizer of `small_encoder`."""
    small_encoder.save(folder)
    torch.manual_seed(1)
    sizes = SIZES | fields
    if kind == "distilbert":
        sizes = sizes | DISTILBERT
    config = AutoConfig.for_model(kind, **sizes, initializer_range=0.5)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "qwen2"])
def test_the_logits_are_those_of_transformers_in_the_order_of_the_classes(
    tmp_path: Path, kind: str
) -> None:
    save_classifier(tmp_path, kind, **LABELS)
    # The ids in the file have any order.
    change_config(tmp_path, id2label={2: "green", 1: "blue", 0: "red"})
    head, pooling = import_head(tmp_path, classes=CLASSES, texts=TEXTS, max_length=16)
    version = tmp_path / "version"
    version.mkdir()
    save_file(head.state_dict(), version / "head.safetensors")
    served = load_weights(version, encoder=load_encoder(tmp_path), kind="imported", pooling=pooling)

    tokenizer = load_tokenizer(tmp_path)
    tokens = encode_texts(TEXTS, tokenizer=tokenizer, max_length=16)
    batch = collate(tokens, pad_id=tokenizer.pad_token_id, device="cpu")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        expected = model(input_ids=batch[0], attention_mask=batch[1]).logits
        torch.testing.assert_close(served.eval()(*batch), expected[:, [1, 2, 0]])


@pytest.mark.parametrize("case", ["labels", "head", "no head"])
def test_a_model_that_cannot_be_compared_faithfully_is_refused(tmp_path: Path, case: str) -> None:
    kind = "modernbert" if case == "head" else "bert"
    save_classifier(tmp_path, kind, **({} if case == "labels" else LABELS))
    if case == "no head":
        file = tmp_path / "config.json"
        config = file.read_text()
        AutoModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
        file.write_text(config)
    with pytest.raises(ModelError, match=str(tmp_path)):
        import_head(tmp_path, classes=CLASSES, texts=TEXTS, max_length=16)
