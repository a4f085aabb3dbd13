"""The forward pass of a classifier: padding has no effect, rows keep their order, and heads are
loaded correctly."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tailorbird.models.classifier import (
    Classifier,
    logits_rows,
)
from tailorbird.models.pretrained import without_pooler
from tests.unit.models.tiny_bert import tiny_bert


def tiny_encoder(seed: int = 0) -> torch.nn.Module:
    encoder: torch.nn.Module = without_pooler(tiny_bert(seed=seed)).eval()
    return encoder


def tiny_classifier(num_classes: int = 3) -> Classifier:
    model = Classifier(tiny_encoder(), torch.nn.Linear(16, num_classes))
    return model.eval()


MODEL = tiny_classifier()
token_lists = st.lists(
    st.lists(st.integers(1, 49), min_size=1, max_size=12), min_size=1, max_size=12
)


@settings(max_examples=20)
@given(rows=token_lists, batch_size=st.integers(1, 5))
def test_the_logits_of_a_row_do_not_depend_on_its_batch(
    rows: list[list[int]], batch_size: int
) -> None:
    together = logits_rows(MODEL, rows, pad_id=0, batch_size=batch_size)
    alone = np.concatenate([logits_rows(MODEL, [row], pad_id=0) for row in rows])
    np.testing.assert_allclose(together, alone, atol=1e-5)
