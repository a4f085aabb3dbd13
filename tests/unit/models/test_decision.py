"""Softmax with a temperature."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.models.decision import temperature_softmax

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
