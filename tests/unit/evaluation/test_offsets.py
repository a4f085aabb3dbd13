"""Offsets of the classes: they reach the best score of a search by brute force, and are used only
where they win."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.evaluation import offsets as module
from tailorbird.evaluation.offsets import MIN_ROWS, fit_offsets
from tailorbird.evaluation.statistics.scoring import score_of

METRICS = ("accuracy", "macro_f1")


def simulated(
    seed: int, *, shares: tuple[float, ...], num_rows: int, signal: float = 1.5
) -> tuple[np.ndarray, np.ndarray]:
    """Return logits [N, L] and class indices [N] of rows whose classes have these shares."""
    generator = np.random.default_rng(seed)
    truth = generator.choice(len(shares), size=num_rows, p=shares)
    logits = generator.normal(size=(num_rows, len(shares))) + np.log(shares)
    logits[np.arange(num_rows), truth] += signal
    return logits, truth


@pytest.mark.parametrize("metric", METRICS)
@given(seed=st.integers(0, 1000), num_classes=st.integers(2, 5), num_rows=st.integers(1, 40))
def test_the_offset_of_a_class_reaches_the_best_score_of_all_offsets(
    metric: str, seed: int, num_classes: int, num_rows: int
) -> None:
    generator = np.random.default_rng(seed)
    truth = generator.integers(num_classes, size=num_rows)
    logits = generator.integers(-3, 4, size=(num_rows, num_classes)).astype(
        np.float64
    )  # with equal logits
    logits += generator.normal(scale=1e-3, size=logits.shape)
    rows = module._Rows(logits, truth, metric)
    for label in range(num_classes):
        score, offset = module._best_offset(rows, module._Ranked.of(logits), label)
        changed = logits + offset * np.eye(num_classes)[label]
        assert score == pytest.approx(score_of(metric, labels=truth, outputs=changed.argmax(1)))
        for other in np.linspace(-8, 8, 97):
            tried = (logits + other * np.eye(num_classes)[label]).argmax(1)
            assert score_of(metric, labels=truth, outputs=tried) <= score + 1e-9


def test_a_rare_class_gets_an_offset_that_raises_macro_f1_on_new_rows() -> None:
    logits, truth = simulated(0, shares=(0.92, 0.08), num_rows=2000)
    fit = fit_offsets(logits, truth=truth, metric="macro_f1")
    new, labels = simulated(1, shares=(0.92, 0.08), num_rows=4000)
    before, after = (
        score_of("macro_f1", labels=labels, outputs=(new + np.array(offsets or 0.0)).argmax(1))
        for offsets in ((), fit.offsets)
    )
    assert fit.score > score_of("macro_f1", labels=truth, outputs=logits.argmax(1))
    assert after > before + 0.03
    assert fit.offsets[1] - fit.offsets[0] > 0.5
    # Rows of a document are in the same fold, and few documents give no offset.
    documents = tuple(str(row % 5) for row in range(len(truth)))
    few = fit_offsets(logits, truth=truth, metric="macro_f1", documents=documents)
    score = score_of("macro_f1", labels=truth, outputs=logits.argmax(1))
    assert (few.offsets, few.score) == ((), score)
    np.testing.assert_array_equal(few.held_out_logits, logits)


def test_the_logits_of_held_out_rows_have_the_offsets_of_other_folds() -> None:
    """Their highest logits give the score, so a temperature that is fitted on them does not know
    the labels that fitted the offsets."""
    logits, truth = simulated(0, shares=(0.92, 0.08), num_rows=2000)
    fit = fit_offsets(logits, truth=truth, metric="macro_f1")
    shifts = (fit.held_out_logits - logits).round(9)
    assert 1 < len(np.unique(shifts, axis=0)) <= module.NUM_FOLDS
    outputs = fit.held_out_logits.argmax(1)
    assert score_of("macro_f1", labels=truth, outputs=outputs) == fit.score


def test_the_score_on_validation_is_not_higher_than_on_new_rows() -> None:
    """The rows of a fold are decided with offsets from other folds, so the score is not that of the
    fitted rows."""
    differences = []
    for seed in range(40):
        logits, truth = simulated(seed, shares=(0.8, 0.1, 0.1), num_rows=300, signal=1.0)
        fit = fit_offsets(logits, truth=truth, metric="macro_f1")
        new, labels = simulated(1000 + seed, shares=(0.8, 0.1, 0.1), num_rows=3000, signal=1.0)
        differences.append(
            fit.score
            - score_of(
                "macro_f1", labels=labels, outputs=(new + np.array(fit.offsets or 0.0)).argmax(1)
            )
        )
    assert np.mean(differences) < 2 * np.std(differences) / np.sqrt(len(differences))


@pytest.mark.parametrize("metric", METRICS)
def test_balanced_classes_keep_the_highest_logit(metric: str) -> None:
    num_fitted = 0
    for seed in range(20):
        logits, truth = simulated(seed, shares=(0.25,) * 4, num_rows=400)
        fit = fit_offsets(logits, truth=truth, metric=metric)
        assert fit.score >= score_of(metric, labels=truth, outputs=logits.argmax(1))
        num_fitted += bool(fit.offsets)
    assert num_fitted <= 4  # by chance


def test_a_class_with_few_validation_rows_has_no_offset() -> None:
    logits, truth = simulated(0, shares=(0.60, 0.39, 0.01), num_rows=20 * MIN_ROWS, signal=0.5)
    assert np.bincount(truth)[2] < MIN_ROWS
    fit = fit_offsets(logits + np.array([2.0, 0.0, 0.0]), truth=truth, metric="macro_f1")
    assert fit.offsets
    assert fit.offsets[2] == 0
    assert fit_offsets(logits[:5], truth=truth[:5], metric="accuracy").offsets == ()
