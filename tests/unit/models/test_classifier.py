"""The forward pass of a classifier, in which padding has no effect and rows keep their order, and
its softmax with a temperature."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load

from tailorbird.evaluation.baselines.linear_head import Head
from tailorbird.models.classifier import Classifier, embed_rows, logits_rows
from tailorbird.models.decision import temperature_softmax
from tailorbird.models.pretrained import without_pooler
from tests.unit.models.tiny_bert import tiny_bert

MODEL = Classifier(without_pooler(tiny_bert()), torch.nn.Linear(16, 3)).eval()
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


def test_an_fp32_head_on_a_bf16_encoder_gives_the_logits_of_the_baseline() -> None:
    model = Classifier(without_pooler(tiny_bert()).to(torch.bfloat16), torch.nn.Linear(16, 3))
    rows = [[1, 2, 3], [4], [5, 6]]
    head = Head(model.head.weight.detach().numpy(), model.head.bias.detach().numpy())
    expected = head.logits(embed_rows(model, rows, pad_id=0))
    np.testing.assert_allclose(logits_rows(model, rows, pad_id=0), expected, atol=1e-6)


def test_a_head_in_column_major_order_is_stored_in_the_order_of_its_rows() -> None:
    weight = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    stored = load(Head(weight, np.zeros(2, dtype=np.float32)).to_bytes())
    np.testing.assert_array_equal(stored["weight"], weight)


logits = st.lists(
    st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3), min_size=1, max_size=5
)


@given(logits, st.floats(0.05, 20))
def test_a_temperature_keeps_the_best_class_and_gives_probabilities(
    rows: list[list[float]], temperature: float
) -> None:
    logit_array = np.array(rows, np.float32)
    probabilities = temperature_softmax(logit_array, temperature=temperature)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(-1), 1.0, rtol=1e-5)
    best = logit_array.argmax(-1)
    assert (probabilities[np.arange(len(rows)), best] == probabilities.max(-1)).all()


def test_logits_are_divided_by_the_temperature() -> None:
    probabilities = temperature_softmax(np.array([[2.0, 0.0], [0.0, 0.0]]), temperature=2.0)
    np.testing.assert_allclose(probabilities[:, 0], [1 / (1 + np.exp(-1)), 0.5])
