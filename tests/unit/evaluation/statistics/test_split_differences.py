"""Tests of the differences between validation and test."""

import numpy as np

from tailorbird.evaluation.statistics.split_differences import SplitSample, split_differences


def sample(
    seed: int, *, size: int, share: float = 0.03, length: float = 60.0, score: float = 0.8
) -> SplitSample:
    generator = np.random.default_rng(seed)
    labels = np.where(generator.random(size) < share, "oos", generator.choice(["a", "b"], size))
    texts = ["x" * int(characters) for characters in generator.gamma(4.0, length / 4, size).round()]
    return SplitSample(
        labels.tolist(), texts, None, scores=(generator.random(size) < score).astype(np.float64)
    )


def test_splits_of_one_population_rarely_differ() -> None:
    reported = [
        split_differences(sample(seed, size=800), test=sample(10_000 + seed, size=1_500))
        for seed in range(100)
    ]
    assert sum(map(bool, reported)) <= 5


def test_a_class_with_another_share_longer_texts_and_another_score_are_reported() -> None:
    validation = sample(1, size=800)
    test = sample(2, size=1_500, share=0.18, length=90, score=0.6)
    sentences = " / ".join(split_differences(validation, test=test))
    assert "the share of the class 'oos' is 2.4% in validation and" in sentences
    assert "the mean number of characters of a text is " in sentences
    assert "the incumbent's score is 0." in sentences


def test_rows_of_one_document_count_as_one_unit() -> None:
    """One long document must not look like many rows of another class."""
    validation = sample(1, size=300)
    labels = ["rare"] * 60 + ["a", "b"] * 120
    documents = ["one"] * 60 + [str(row) for row in range(240)]
    test = SplitSample(
        labels, ["x" * 60] * 300, documents, scores=np.resize([1.0, 1.0, 1.0, 1.0, 0.0], 300)
    )
    assert not any("'rare'" in sentence for sentence in split_differences(validation, test=test))
    independent = SplitSample(labels, test.texts, None, scores=test.scores)
    assert any("'rare'" in sentence for sentence in split_differences(validation, test=independent))
