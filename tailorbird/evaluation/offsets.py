"""Offsets of the classes, fitted on validation: a classifier decides by the recipe's metric, not by
the highest logit.

The classes of macro-F1 count equally, so a rare class is worth an answer at a probability below one
half. A class for requests outside the known classes is often more frequent in use than in the
training rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from tailorbird.config.metrics import METRICS
from tailorbird.evaluation.statistics.class_metrics import jackknife_scores
from tailorbird.evaluation.statistics.documents import document_effect, documents_of
from tailorbird.evaluation.statistics.scoring import CLASS_SCORES, score_of

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
FitOffsets = Callable[["_Rows"], FloatArray]

MIN_ROWS = 20
"""Validation rows that a class needs for an offset. The offset of any other class is 0."""
LEAST_TRIED = 10
MAX_TRIED = 500_000
"""Of classes with enough rows, the rarest are tried: as many as make up `MAX_TRIED` rows, at least
`LEAST_TRIED`. A fit then takes seconds."""
NUM_FOLDS = 5
FOLD_SEED = 1974
NUM_PASSES = 2
STEP_BEYOND = 1.0  # distance of an offset from the last row, if a class answers all rows or none


@dataclass(frozen=True, eq=False)
class OffsetFit:
    """Offsets [L] to add to a classifier's logits, and the score on validation."""

    offsets: tuple[float, ...]  # empty: the highest logit decides
    score: float
    """Score of the validation rows. With offsets, each row is decided with offsets of other
    folds."""
    held_out_logits: FloatArray
    """Logits [N, L] of the validation rows plus offsets that are fitted on other folds."""


@dataclass(frozen=True)
class _Rows:
    logits: FloatArray  # [N, L]
    truth: IntArray  # [N]
    metric: str
    documents: Sequence[str] | None = None  # document of each row; None if each row is one

    def take(self, rows: NDArray[np.bool_]) -> "_Rows":
        """Return the rows where `rows` [N] is True."""
        documents = None
        if self.documents is not None:
            documents = tuple(compress(self.documents, rows))
        return replace(self, logits=self.logits[rows], truth=self.truth[rows], documents=documents)

    @property
    def candidates(self) -> IntArray:
        """Classes that are tried for an offset, the rarest first."""
        counts = np.bincount(self.truth, minlength=self.logits.shape[1])
        order = np.argsort(counts, kind="stable")
        most = max(LEAST_TRIED, MAX_TRIED // max(len(self.truth), 1))
        return np.asarray(order[counts[order] >= MIN_ROWS][:most])


def fit_offsets(
    logits: NDArray[np.floating],
    *,
    truth: IntArray,
    metric: str,
    documents: Sequence[str] | None = None,
) -> OffsetFit:
    """Return the offsets that suit the metric, from logits [N, L] and class indices [N] of
    validation rows.

    Three rules are compared: no offset, an offset of one class, and an offset of each class with
    `MIN_ROWS` rows. An offset must win by more than one standard error where the rows are decided
    with offsets that are fitted on other folds. Rows of a document (a name per row) are in one
    fold. The score comes from nested folds, in which the rule is selected again: the score that
    selected the rule would be too high.
    """
    rows = _Rows(
        logits=np.asarray(logits, dtype=np.float64),
        truth=np.asarray(truth),
        metric=metric,
        documents=documents,
    )
    plain = rows.logits.argmax(axis=1)
    unadjusted = score_of(metric, labels=rows.truth, outputs=plain)
    rule = _select_rule(rows)
    if rule is None:
        return OffsetFit((), unadjusted, rows.logits)

    def select_and_fit(fitted: _Rows) -> FloatArray:
        selected = _select_rule(fitted)
        if selected is None:
            return np.zeros(rows.logits.shape[1])
        return selected(fitted)

    held_out = _shift_by_fold(rows, select_and_fit)
    score = score_of(metric, labels=rows.truth, outputs=held_out.argmax(axis=1))
    if score <= unadjusted:
        return OffsetFit((), unadjusted, rows.logits)
    return OffsetFit(tuple(rule(rows).tolist()), score, held_out)


def _select_rule(rows: _Rows) -> FitOffsets | None:
    """Return the rule with the best score, or None if no rule is better than none by more than one
    standard error."""
    rules: list[FitOffsets] = [_offset_of_one_class]
    if len(rows.candidates) > 1:
        rules.append(_offsets_of_all_classes)
    plain = rows.logits.argmax(axis=1)
    best = score_of(rows.metric, labels=rows.truth, outputs=plain)
    selected = None
    for rule in rules:
        outputs = _shift_by_fold(rows, rule).argmax(axis=1)
        score = score_of(rows.metric, labels=rows.truth, outputs=outputs)
        if score > best and _is_gain(rows, outputs, plain):
            best = score
            selected = rule
    return selected


def _shift_by_fold(rows: _Rows, fit: FitOffsets) -> FloatArray:
    """Return the logits [N, L] plus offsets that are fitted on the rows of the other folds."""
    grouped = documents_of(rows.documents, num_rows=len(rows.truth))
    folds = np.random.default_rng(FOLD_SEED).permutation(grouped.num)[grouped.codes] % NUM_FOLDS
    shifted = rows.logits.copy()
    for fold in range(NUM_FOLDS):
        in_fold = folds == fold
        if in_fold.any():
            shifted[in_fold] += fit(rows.take(~in_fold))
    return shifted


def _is_gain(rows: _Rows, outputs: IntArray, plain: IntArray) -> bool:
    """Return True if the outputs score better than the plain ones by more than one standard
    error."""
    if METRICS[rows.metric].is_over_classes:
        labels = rows.truth.tolist()
        before = jackknife_scores(rows.metric, labels=labels, outputs=plain.tolist())
        after = jackknife_scores(rows.metric, labels=labels, outputs=outputs.tolist())
    else:
        before = (plain == rows.truth).astype(np.float64)
        after = (outputs == rows.truth).astype(np.float64)
    documents = documents_of(rows.documents, num_rows=len(rows.truth))
    effect = document_effect(
        after - before, documents=documents, alpha=0.05, is_different=outputs != plain
    )
    return effect.gain > effect.standard_error


def _offset_of_one_class(rows: _Rows) -> FloatArray:
    """Return offsets [L] that are 0 for all classes but one: the class and the offset with the best
    score."""
    offsets = np.zeros(rows.logits.shape[1])
    ranked = _Ranked.of(rows.logits)
    best = -1.0
    for label in rows.candidates.tolist():
        score, offset = _best_offset(rows, ranked, label)
        if score > best:
            best = score
            offsets[:] = 0
            offsets[label] = offset
    return offsets


def _offsets_of_all_classes(rows: _Rows) -> FloatArray:
    """Return offsets [L] by coordinate ascent: one class after the other, the rarest first."""
    offsets = np.zeros(rows.logits.shape[1])
    ranked = _Ranked.of(rows.logits)
    best = score_of(rows.metric, labels=rows.truth, outputs=rows.logits.argmax(axis=1))
    for _ in range(NUM_PASSES):
        for label in rows.candidates.tolist():
            adjusted = replace(rows, logits=rows.logits + offsets)
            score, change = _best_offset(adjusted, ranked, label)
            if score > best + 1e-12:
                best = score
                offsets[label] += change
                ranked = _Ranked.of(rows.logits + offsets)
    return offsets


@dataclass(frozen=True)
class _Ranked:
    """The best class of each row, and the best and second best score."""

    first: IntArray
    second: IntArray
    highest: FloatArray
    next_highest: FloatArray

    @classmethod
    def of(cls, scores: FloatArray) -> "_Ranked":
        rows = np.arange(len(scores))
        first = scores.argmax(axis=1)
        second_best = scores.copy()
        second_best[rows, first] = -np.inf
        second = second_best.argmax(axis=1)
        return cls(
            first=first,
            second=second,
            highest=scores[rows, first],
            next_highest=second_best[rows, second],
        )


def _best_offset(rows: _Rows, ranked: _Ranked, label: int) -> tuple[float, float]:
    """Return the best score over all offsets of one class, and the offset closest to 0 that reaches
    it.

    A row's answer changes from its best other class to `label` where the offset exceeds the margin
    between the two. So all offsets are compared by one pass over the rows in the order of their
    margins.
    """
    is_first = ranked.first == label
    rivals = np.where(is_first, ranked.second, ranked.first)
    margins = np.where(is_first, ranked.next_highest, ranked.highest) - rows.logits[:, label]
    order = np.argsort(margins, kind="stable")
    margins = margins[order]
    rivals = rivals[order]
    truth = rows.truth[order]
    scores = _scores_by_count(rivals, truth, label=label, rows=rows)
    is_distinct = np.ones(len(scores), dtype=np.bool_)
    is_distinct[1:-1] = margins[1:] > margins[:-1]

    lower = np.concatenate([[margins[0] - 2 * STEP_BEYOND], margins])
    upper = np.concatenate([margins, [margins[-1] + 2 * STEP_BEYOND]])
    offsets = np.where((lower < 0) & (upper > 0), 0.0, (lower + upper) / 2)
    best = scores[is_distinct].max()
    equal = np.flatnonzero(is_distinct & (scores >= best - 1e-12))
    closest = equal[np.abs(offsets[equal]).argmin()]
    return float(best), float(offsets[closest])


def _scores_by_count(rivals: IntArray, truth: IntArray, *, label: int, rows: _Rows) -> FloatArray:
    """Return the scores [N + 1] where the first k rows are answered with `label` and the others
    with their rivals."""
    num_classes = rows.logits.shape[1]
    support = np.bincount(truth, minlength=num_classes)
    class_score = CLASS_SCORES.get(rows.metric)

    def value(classes: IntArray | int, right: IntArray, answered: IntArray) -> FloatArray:
        """Return the part of the score that classes contribute."""
        if class_score is None:
            return np.asarray(right / len(truth), dtype=np.float64)
        scores = class_score(right, support[classes], answered)
        return np.asarray(scores * (support[classes] > 0) / np.count_nonzero(support))

    is_right = rivals == truth
    right = np.bincount(rivals[is_right], minlength=num_classes)
    answered = np.bincount(rivals, minlength=num_classes)
    by_rival = np.argsort(rivals, kind="stable")
    grouped = rivals[by_rival]
    starts = np.cumsum(answered) - answered
    removed = np.arange(len(truth)) - starts[grouped] + 1
    total = np.concatenate([[0], np.cumsum(is_right[by_rival])])
    lost = total[1:] - total[starts[grouped]]
    after = value(grouped, right[grouped] - lost, answered[grouped] - removed)
    before = value(
        grouped, right[grouped] - lost + is_right[by_rival], answered[grouped] - removed + 1
    )
    changes = np.empty(len(truth))
    changes[by_rival] = after - before

    start = value(np.arange(num_classes), right, answered).sum()
    right_of_label = np.concatenate([[0], np.cumsum(truth == label)])
    value_of_label = value(label, right_of_label, np.arange(len(truth) + 1))
    return np.asarray(start + np.concatenate([[0.0], np.cumsum(changes)]) + value_of_label)
