"""The reference that needs no pretrained model, on texts small enough to reason about."""

import numpy as np
import pytest

from tailorbird.evaluation.baselines.tfidf import REGULARISATIONS, Reference, fit_reference, majority

ORGANS = {
    "eye": ("retina", "cornea", "iris"),
    "ear": ("cochlea", "eardrum", "stapes"),
    "skin": ("scalp", "dermis", "nail"),
}
FINDINGS = ("injury of {}", "chronic pain in the {}", "{} infection", "unspecified lesion of {}", "swelling of {}")


def terms(findings: tuple[str, ...], classes: tuple[str, ...] = ("eye", "ear", "skin")) -> tuple[list[str], list[str]]:
    pairs = [(finding.format(organ), label) for label in classes for organ in ORGANS[label] for finding in findings]
    return [text for text, _ in pairs], [label for _, label in pairs]


def fit(classes: tuple[str, ...] = ("eye", "ear", "skin"), seed: int = 0) -> Reference:
    validation_texts, validation_labels = terms(FINDINGS[3:4], classes)
    return fit_reference(
        *terms(FINDINGS[:3], classes),
        validation_texts=validation_texts,
        validation_labels=validation_labels,
        seed=seed,
    )


@pytest.mark.parametrize("classes", [("eye", "ear", "skin"), ("eye", "skin")])
def test_it_learns_which_words_tell_the_classes_apart(classes: tuple[str, ...]) -> None:
    texts, labels = terms(FINDINGS[4:], classes)
    answers, confidence = fit(classes).predict(texts)
    assert list(answers) == labels
    assert confidence.shape == (len(texts),)
    assert (confidence > 1 / len(classes)).all()
    assert (confidence <= 1).all()


def test_a_text_of_known_words_is_answered_with_more_confidence_than_one_of_none() -> None:
    _, confidence = fit().predict(["retina injury", "zzz"])
    assert confidence[0] > confidence[1]


def test_every_candidate_has_its_try_on_validation_and_the_best_is_kept() -> None:
    reference = fit()
    tried = [(attempt.features, attempt.c) for attempt in reference.attempts]
    assert tried == [
        (features, c) for features in ("words", "characters", "words and characters") for c in REGULARISATIONS
    ]
    best = max(attempt.validation_score for attempt in reference.attempts)
    assert reference.validation_score == best
    first = next(attempt for attempt in reference.attempts if attempt.validation_score == best)
    assert (reference.features, reference.c) == (first.features, first.c)


def test_validation_score_is_that_of_its_own_answers() -> None:
    texts, labels = terms(FINDINGS[3:4])
    reference = fit()
    answers, _ = reference.predict(texts)
    assert np.mean([answer == label for answer, label in zip(answers, labels, strict=True)]) == pytest.approx(
        reference.validation_score
    )


def test_parts_of_words_are_read_where_whole_words_are_new() -> None:
    reference = fit_reference(
        ["gastritis", "colitis", "hepatitis", "gastroscopy", "colonoscopy", "arthroscopy"] * 2,
        ["disease", "disease", "disease", "procedure", "procedure", "procedure"] * 2,
        validation_texts=["arthritis", "laparoscopy"],
        validation_labels=["disease", "procedure"],
    )
    assert reference.features == "characters"
    assert reference.predict(["bronchitis", "bronchoscopy"])[0] == ("disease", "procedure")


def test_the_same_seed_gives_the_same_answers() -> None:
    texts, _ = terms(FINDINGS[4:])
    one, other = fit(seed=3).predict(texts), fit(seed=3).predict(texts)
    assert one[0] == other[0]
    assert (one[1] == other[1]).all()


def test_no_texts_give_no_answers() -> None:
    answers, confidence = fit().predict([])
    assert answers == ()
    assert confidence.shape == (0,)


def test_texts_of_signs_are_told_apart_by_characters() -> None:
    reference = fit_reference(
        ["++ ++", "-- --", "++", "--"], ["p", "m", "p", "m"], validation_texts=["+++"], validation_labels=["p"]
    )
    assert {attempt.features for attempt in reference.attempts} == {"characters"}
    assert reference.predict(["++++", "----"])[0] == ("p", "m")


def test_texts_without_a_character_are_refused() -> None:
    with pytest.raises(ValueError, match="no training text has a word or a character"):
        fit_reference(["", " "], ["a", "b"], validation_texts=[""], validation_labels=["a"])


def test_one_class_only_is_refused() -> None:
    with pytest.raises(ValueError, match="needs two classes"):
        fit_reference(["x", "y"], ["a", "a"], validation_texts=["x"], validation_labels=["a"])


def test_an_empty_validation_is_refused() -> None:
    with pytest.raises(ValueError, match="validation, which has no rows"):
        fit_reference(["x", "y"], ["a", "b"], validation_texts=[], validation_labels=[])


def test_the_majority_is_the_most_frequent_label_and_its_share() -> None:
    assert majority(["b", "a", "b", "c"]) == ("b", 0.5)


def test_among_equally_frequent_labels_the_first_in_the_alphabet_is_taken() -> None:
    assert majority(["b", "a"]) == majority(["a", "b"]) == ("a", 0.5)


def test_the_majority_of_no_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="no training labels"):
        majority([])
