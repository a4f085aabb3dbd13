"""Tests of classification baselines on synthetic embeddings."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.evaluation.baselines import classification
from tailorbird.evaluation.baselines.baseline import Baseline
from tailorbird.evaluation.baselines.classification import (
    BaselineResults,
    FittedBaseline,
    centroids,
    cosine_head,
    embed_in_time,
    fit_bag,
    fit_baselines,
    fit_probe,
    fit_with_embeddings,
    mix_fits,
    store_baselines,
    unit,
)
from tailorbird.evaluation.baselines.linear_head import Head, HeadData, HeldOut, fit_linear
from tailorbird.models.bag_of_words import BagOfWords, fit_vectorizers
from tailorbird.registry.kinds import Kind
from tailorbird.registry.pooling import Pooling
from tailorbird.registry.versions import read_artifact_config
from tests import build
from tests.build import version_config

GENERATOR = np.random.default_rng(0)


def clusters(
    num_classes: int, *, per_class: int = 40, width: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings around one direction per class, and their labels."""
    labels = np.repeat(np.arange(num_classes), per_class)
    noise = GENERATOR.normal(scale=0.1, size=(len(labels), width))
    return (np.eye(num_classes, width)[labels] + noise).astype(np.float32), labels


def test_the_probe_does_not_depend_on_the_scale_of_the_embeddings() -> None:
    features, labels = clusters(3)
    held_out = HeldOut(labels, "accuracy")
    small, large = (
        fit_probe(
            HeadData((scale * features,), labels, features=(scale * features,), held_out=held_out)
        )
        for scale in (1, 64)
    )
    assert small.c == large.c
    assert small.score == 1.0
    np.testing.assert_allclose(large.logits, small.logits, atol=1e-4)


def test_a_cosine_head_ignores_lengths_and_centroids_use_up_to_k_seeded_examples() -> None:
    features, labels = clusters(3)
    lengths = np.array([[1], [5], [9]], dtype=np.float32)
    logits = cosine_head(np.eye(3, 8, dtype=np.float32) * lengths, features).logits(features)
    assert (logits.argmax(1) == labels).all()
    few = centroids(features, labels, shots=2, seed=0)
    np.testing.assert_array_equal(few, centroids(features, labels, shots=2, seed=0))
    assert not np.array_equal(few, centroids(features, labels, shots=2, seed=1))
    everything = centroids(features, labels, shots=10_000, seed=0)
    np.testing.assert_allclose(everything[1], unit(features[labels == 1]).mean(0), atol=1e-6)


def data_of(num_classes: int = 3) -> HeadData:
    """Return sparse features of training and validation rows that separate most of the classes."""
    train, labels = clusters(num_classes)
    features, truth = clusters(num_classes)
    return HeadData(
        train=(csr_matrix(np.maximum(train, 0)),),
        labels=labels,
        features=(csr_matrix(np.maximum(features, 0)),),
        held_out=HeldOut(truth, "accuracy"),
    )


def test_a_bag_of_words_with_embeddings_or_a_probe_of_fewer_rows_has_weights_for_both() -> None:
    data = data_of()
    bag = fit_bag(data)
    features = unit(clusters(3)[0])
    embeddings = replace(data, train=(unit(clusters(3)[0]),), features=(features,))
    few, labels = clusters(3, per_class=4)
    probe = fit_probe(replace(embeddings, train=(unit(few),), labels=labels))
    mixed = mix_fits(probe, bag=bag, held_out=data.held_out)
    for fit in (fit_with_embeddings(data, embeddings=embeddings, alone=bag), mixed):
        expected = features @ fit.weights[0] + data.features[0] @ fit.weights[1] + fit.bias
        np.testing.assert_allclose(fit.logits, expected, rtol=1e-3, atol=1e-4)
    assert mixed.score >= bag.score


@pytest.mark.parametrize(("kind", "dtype"), [("bag_of_words", "float32"), ("probe", "bfloat16")])
def test_a_stored_baseline_has_its_temperature_its_offsets_and_the_dtype_that_it_computes_in(
    tmp_path: Path, kind: Kind, dtype: str
) -> None:
    bias = np.zeros(2, dtype=np.float32)
    vectorizers, terms = fit_vectorizers(["x", "y"], num_classes=2)
    bag = BagOfWords(vectorizers, np.zeros((terms.shape[1], 2), dtype=np.float32), bias)
    parts: dict[str, Any] = {"bag": bag}
    if kind == "probe":
        parts = {"head": Head(np.zeros((2, 1), dtype=np.float32), bias)}
    baseline = Baseline(kind, uri=None, validation=0.5, servable=True, note="")
    fitted = FittedBaseline(baseline, temperature=2.0, offsets=(0.0, 1.5), **parts)
    config = version_config(classes=("a", "b"), dtype="bfloat16")
    store_baselines(
        tmp_path.as_uri(), BaselineResults((fitted,), "bfloat16", Pooling()), config=config
    )
    stored = read_artifact_config(f"{tmp_path.as_uri()}/{kind}")
    assert (stored.temperature, stored.offsets, stored.dtype) == (2.0, (0.0, 1.5), dtype)


def test_training_rows_of_one_class_are_refused() -> None:
    train = build.rows("xy", "aa")
    options: Any = {"max_length": 8, "config": EvaluationConfig(), "seed": 0, "descriptions": {}}
    with pytest.raises(ValueError, match="two classes"):
        fit_baselines("s3://m/base", train=train, validation=train, **options)


def test_settings_are_selected_on_a_part_of_many_rows_and_the_head_learns_from_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = data_of()
    expected = fit_bag(data)
    monkeypatch.setattr(classification, "MAX_SELECTION_ROWS", 12)
    fit = fit_bag(data)
    assert fit.score >= expected.score - 0.1
    part = data.take(np.arange(12))
    assert (len(part.labels), part.train[0].shape[0]) == (12, 12)
    [alone] = fit_linear(part, fit.model, strengths=(fit.c,), class_weights=fit.class_weights)
    assert not np.allclose(alone.weights[0], fit.weights[0])


def test_rows_are_embedded_until_the_time_is_over_with_every_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = ("a",) * 50 + ("b", "c")
    rows = build.rows(tuple(f"text {number}" for number in range(52)), labels)
    monkeypatch.setattr(classification, "FIRST_EMBEDDED", 8)

    def embed(texts: Sequence[str]) -> np.ndarray:
        return np.array([[float(text.split()[1])] for text in texts], dtype=np.float32)

    positions, features = embed_in_time(rows, embed=embed, seconds=0, seed=0)
    assert len(positions) == 8
    assert {labels[row] for row in positions} == {"a", "b", "c"}
    assert features[:, 0].tolist() == positions.tolist() == sorted(positions)

    assert embed_in_time(rows, embed=embed, seconds=600, seed=0)[0].tolist() == list(range(52))
