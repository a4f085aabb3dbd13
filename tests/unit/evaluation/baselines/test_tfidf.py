"""Tests of the TF-IDF baseline on small sets of texts."""

from pathlib import Path

import numpy as np
import pytest

from tailorbird.data.rows import Rows
from tailorbird.evaluation.baselines.tfidf import (
    FEATURES,
    REGULARISATIONS,
    TfidfBaseline,
    fit_tfidf,
    load_tfidf,
    majority,
    predict_tfidf,
    save_tfidf,
)

ORGANS = {
    "eye": ("retina", "cornea", "iris"),
    "ear": ("cochlea", "eardrum", "stapes"),
    "skin": ("scalp", "dermis", "nail"),
}
FINDINGS = ("injury of {}", "chronic pain in the {}", "{} infection", "unspecified lesion of {}", "swelling of {}")


def terms(findings: tuple[str, ...], classes: tuple[str, ...] = ("eye", "ear", "skin")) -> tuple[list[str], list[str]]:
    pairs = [(finding.format(organ), label) for label in classes for organ in ORGANS[label] for finding in findings]
    return [text for text, _ in pairs], [label for _, label in pairs]


def rows(texts: list[str], labels: list[str]) -> Rows:
    return Rows(tuple(map(str, range(len(texts)))), tuple(texts), tuple(labels))


def fit(classes: tuple[str, ...] = ("eye", "ear", "skin"), seed: int = 0) -> TfidfBaseline:
    train, validation = rows(*terms(FINDINGS[:3], classes)), rows(*terms(FINDINGS[3:4], classes))
    return fit_tfidf(train, validation=validation, seed=seed)


@pytest.mark.parametrize("classes", [("eye", "ear", "skin"), ("eye", "skin")])
def test_new_combinations_of_known_words_are_classified(classes: tuple[str, ...]) -> None:
    texts, labels = terms(FINDINGS[4:], classes)
    answers, confidence = fit(classes).predict(texts)
    assert list(answers) == labels
    assert confidence.shape == (len(texts),)
    assert (confidence > 1 / len(classes)).all()
    assert (confidence <= 1).all()


def test_a_text_with_known_words_has_a_higher_confidence_than_a_text_without() -> None:
    _, confidence = fit().predict(["retina injury", "zzz"])
    assert confidence[0] > confidence[1]


def test_all_settings_are_tried_and_the_best_on_validation_is_kept() -> None:
    baseline = fit()
    settings = [(attempt.features, attempt.c) for attempt in baseline.attempts]
    assert settings == [
        (features, c) for features in ("words", "characters", "words and characters") for c in REGULARISATIONS
    ]
    best = max(attempt.validation_score for attempt in baseline.attempts)
    first = next(attempt for attempt in baseline.attempts if attempt.validation_score == best)
    texts, labels = terms(FINDINGS[3:4])
    answers, _ = baseline.predict(texts)
    assert baseline.features == first.features
    assert np.mean([answer == label for answer, label in zip(answers, labels, strict=True)]) == pytest.approx(best)


def test_characters_classify_unknown_words() -> None:
    train = rows(
        ["gastritis", "colitis", "hepatitis", "gastroscopy", "colonoscopy", "arthroscopy"] * 2,
        ["disease", "disease", "disease", "procedure", "procedure", "procedure"] * 2,
    )
    baseline = fit_tfidf(train, validation=rows(["arthritis", "laparoscopy"], ["disease", "procedure"]))
    assert baseline.features == "characters"
    assert baseline.predict(["bronchitis", "bronchoscopy"])[0] == ("disease", "procedure")


def test_the_same_seed_gives_the_same_answers() -> None:
    texts, _ = terms(FINDINGS[4:])
    first, second = fit(seed=3).predict(texts), fit(seed=3).predict(texts)
    assert first[0] == second[0]
    assert (first[1] == second[1]).all()


def test_no_texts_give_no_answers() -> None:
    answers, confidence = fit().predict([])
    assert answers == ()
    assert confidence.shape == (0,)


def test_texts_of_punctuation_are_classified_by_characters() -> None:
    train = rows(["++ ++", "-- --", "++", "--"], ["p", "m", "p", "m"])
    baseline = fit_tfidf(train, validation=rows(["+++"], ["p"]))
    assert {attempt.features for attempt in baseline.attempts} == {"characters"}
    assert baseline.predict(["++++", "----"])[0] == ("p", "m")


def test_texts_without_a_character_are_refused() -> None:
    with pytest.raises(ValueError, match="no training text contains a word or a character"):
        fit_tfidf(rows(["", " "], ["a", "b"]), validation=rows([""], ["a"]))


def test_a_single_class_is_refused() -> None:
    with pytest.raises(ValueError, match="needs two classes"):
        fit_tfidf(rows(["x", "y"], ["a", "a"]), validation=rows(["x"], ["a"]))


def test_an_empty_validation_split_is_refused() -> None:
    with pytest.raises(ValueError, match="validation has no rows"):
        fit_tfidf(rows(["x", "y"], ["a", "b"]), validation=rows([], []))


@pytest.mark.parametrize("classes", [("eye", "ear", "skin"), ("eye", "skin")])
@pytest.mark.parametrize("train", [FINDINGS[:3], ("{}itis", "{}oscopy"), ("{}",)])
def test_a_loaded_baseline_has_the_same_predictions_as_the_fitted_baseline(
    tmp_path: Path, classes: tuple[str, ...], train: tuple[str, ...]
) -> None:
    fitted = fit_tfidf(rows(*terms(train, classes)), validation=rows(*terms(FINDINGS[3:4], classes)))
    save_tfidf(tmp_path.as_uri(), fitted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tfidf.json", "tfidf.safetensors"]
    texts, labels = terms((*FINDINGS, "größe {} ½ 日本"), classes)
    loaded = load_tfidf(tmp_path.as_uri())
    (outputs, confidences), expected = loaded.predict(texts), fitted.predict(texts)
    assert outputs == expected[0]
    np.testing.assert_array_equal(confidences, expected[1])
    assert (loaded.features, loaded.attempts, loaded.classes) == (fitted.features, fitted.attempts, fitted.classes)
    stored = predict_tfidf(tmp_path.as_uri(), rows=rows(texts, labels))
    assert (stored.model, stored.outputs, stored.labels) == ("tf_idf", outputs, tuple(labels))


@pytest.mark.parametrize("features", ["words", "characters", "words and characters"])
def test_every_kind_of_features_can_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, features: str) -> None:
    monkeypatch.setattr("tailorbird.evaluation.baselines.tfidf.FEATURES", {features: FEATURES[features]} | FEATURES)
    fitted = fit()
    assert fitted.features == features
    save_tfidf(tmp_path.as_uri(), fitted)
    texts, _ = terms(FINDINGS)
    np.testing.assert_array_equal(load_tfidf(tmp_path.as_uri()).predict(texts)[1], fitted.predict(texts)[1])


def test_the_majority_is_the_most_frequent_label_and_its_share() -> None:
    assert majority(["b", "a", "b", "c"]) == ("b", 0.5)


def test_the_first_of_equally_frequent_labels_in_the_alphabet_is_the_majority() -> None:
    assert majority(["b", "a"]) == majority(["a", "b"]) == ("a", 0.5)


def test_the_majority_of_no_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="no training labels"):
        majority([])
