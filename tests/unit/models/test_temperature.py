"""The softmax after temperature."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.models.temperature import temperature_softmax

logits = st.lists(st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3), min_size=1, max_size=5)


@given(logits, st.floats(0.05, 20))
def test_temperature_keeps_the_order_and_leaves_probabilities(rows: list[list[float]], temperature: float) -> None:
    logit_array = np.array(rows, np.float32)
    probabilities = temperature_softmax(logit_array, temperature=temperature)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(-1), 1.0, rtol=1e-5)
    best = logit_array.argmax(-1)
    assert (probabilities[np.arange(len(rows)), best] == probabilities.max(-1)).all()


@given(logits)
def test_a_hotter_model_is_less_sure(rows: list[list[float]]) -> None:
    array = np.array(rows, np.float64)
    assert (
        temperature_softmax(array, temperature=2.0).max(-1)
        <= temperature_softmax(array, temperature=1.0).max(-1) + 1e-12
    ).all()


def test_temperature_one_is_the_softmax_and_two_that_of_half_the_logits() -> None:
    rows = np.array([[2.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(temperature_softmax(rows, temperature=1.0)[:, 0], [1 / (1 + np.exp(-2)), 0.5])
    np.testing.assert_allclose(temperature_softmax(rows, temperature=2.0)[:, 0], [1 / (1 + np.exp(-1)), 0.5])


def test_probabilities_sum_to_one_even_for_large_logits() -> None:
    shares = temperature_softmax(np.array([[1000.0, 999.0, -1000.0], [0.0, 0.0, 0.0]]), temperature=1.0)
    np.testing.assert_allclose(shares.sum(1), 1)
    np.testing.assert_allclose(shares[0, 0], 1 / (1 + np.exp(-1)))


def test_a_tiny_temperature_and_large_logits_give_numbers() -> None:
    assert temperature_softmax(np.array([1000.0, 999.0, -1000.0]), temperature=1e-3).tolist() == [1.0, 0.0, 0.0]
