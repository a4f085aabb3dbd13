"""Tests of the heads of the baselines on synthetic embeddings."""

from typing import Any

import numpy as np
import pytest

from tailorbird.evaluation.baselines.classification import COSINE_SCALE, Head, centroids, cosine_head, fit_probe, unit

GENERATOR = np.random.default_rng(0)


def clusters(num_classes: int, *, per_class: int = 40, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings around one direction per class, and their labels."""
    labels = np.repeat(np.arange(num_classes), per_class)
    noise = GENERATOR.normal(scale=0.1, size=(len(labels), width))
    return (np.eye(num_classes, width)[labels] + noise).astype(np.float32), labels


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_a_probe_separates_separable_classes_and_notes_its_regularisation(num_classes: int) -> None:
    features, labels = clusters(num_classes)
    head, note = fit_probe(features, labels, held_out=features, truth=labels)
    assert head.weight.shape == (num_classes, 8)
    assert head.score(features, labels, metric="accuracy") == 1.0
    assert note.startswith("C = ")


def test_the_regularisation_of_the_probe_is_selected_on_held_out_rows() -> None:
    features, labels = clusters(3)
    wrong = GENERATOR.permutation(labels)
    held_out, truth = clusters(3)
    head, _ = fit_probe(
        features, np.where(GENERATOR.random(len(labels)) < 0.4, wrong, labels), held_out=held_out, truth=truth
    )
    assert head.score(held_out, truth, metric="accuracy") > 0.8


def test_a_cosine_head_ignores_the_length_of_directions_and_scales_with_the_features() -> None:
    features, labels = clusters(3)
    head = cosine_head(np.eye(3, 8, dtype=np.float32) * np.array([[1], [5], [9]], dtype=np.float32), features)
    assert head.score(features, labels, metric="accuracy") == 1.0
    logits = features @ head.weight.T + head.bias
    assert np.abs(logits).max() <= COSINE_SCALE * 1.5
    np.testing.assert_array_equal(head.bias, 0)


def test_centroids_use_up_to_k_seeded_examples_per_class() -> None:
    features, labels = clusters(3)
    first, again, other = (centroids(features, labels, shots=2, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    everything = centroids(features, labels, shots=10_000, seed=0)
    np.testing.assert_allclose(everything[1], unit(features[labels == 1]).mean(0), atol=1e-6)


def test_a_head_is_contiguous_fp32_for_any_memory_layout() -> None:
    weight: Any = np.asfortranarray(GENERATOR.normal(size=(3, 8)))
    bias: Any = np.zeros(3)
    head = Head(weight, bias)
    assert head.weight.flags.c_contiguous
    assert head.weight.dtype == np.float32
    np.testing.assert_allclose(head.weight, weight, rtol=1e-6)


def test_unit_vectors_have_length_one_and_a_zero_vector_stays_finite() -> None:
    np.testing.assert_allclose(
        np.linalg.norm(unit(GENERATOR.normal(size=(4, 8)).astype(np.float32)), axis=1), 1, rtol=1e-6
    )
    assert np.isfinite(unit(np.zeros((1, 8), dtype=np.float32))).all()
