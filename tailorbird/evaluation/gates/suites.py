"""The suites gate: the candidate loses at most a margin to the incumbent on each regression suite."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tailorbird.config.suites import EXTRACTION, SuiteConfig
from tailorbird.evaluation.gates.base import Bound, Gate, State, at_most, gate
from tailorbird.evaluation.predictions import TRAINING_TEXT, Predictions
from tailorbird.evaluation.statistics.effect import Effect, with_unseen
from tailorbird.evaluation.statistics.paired import cautious_change, newcombe_paired_interval, paired_counts
from tailorbird.registry.versions import INDEX_KINDS

WITH_TRAINING_ROWS = ("few_shot", "endpoint_few_shot", *INDEX_KINDS)  # kinds that contain training rows as text
Interval = tuple[float, float]


class AnsweredSuite(NamedTuple):
    """A suite with the answers of both models to the same rows."""

    config: SuiteConfig
    candidate: Predictions
    incumbent: Predictions

    def loss(self, *, alpha: float) -> tuple[float, Interval]:
        """Return the loss of the mean score (incumbent minus candidate), with its interval at level 1 - alpha.

        Newcombe's interval for scores of 0 and 1 on independent rows, at least the unseen rate wide to both sides, and
        `cautious_change` otherwise.
        """
        ours, theirs, clusters = self.candidate.scores, self._reference(), self.candidate.clusters
        if clusters is None and np.isin((ours, theirs), (0.0, 1.0)).all():
            counts = paired_counts(theirs, other=ours)
            interval = newcombe_paired_interval(counts, alpha=alpha)
            effect = with_unseen(Effect(counts.gain, interval, 1.0, 0.0), num_units=counts.n, alpha=alpha)
        else:
            effect = cautious_change(theirs, ours, alpha=alpha, clusters=clusters)
        return effect.gain, effect.interval

    def _reference(self) -> NDArray[np.float64]:
        """Return the incumbent's scores; 1 for each span of training rows if it holds these rows as text."""
        scores, flags = self.incumbent.scores, self.incumbent.measures.get(TRAINING_TEXT)
        holds_rows = self.incumbent.model in WITH_TRAINING_ROWS or (flags is not None and flags.any())
        return np.ones_like(scores) if self.config.uri == EXTRACTION and holds_rows else scores

    @property
    def unanswered(self) -> str | None:
        """The kind of a model that cannot answer some of the rows; None if both models answer all."""
        tables = (self.candidate, self.incumbent)
        return next((table.model for table in tables if np.isnan(table.scores).any()), None)


def suites_gate(suites: Mapping[str, AnsweredSuite], *, alpha: float, omitted: Sequence[str] = ()) -> Gate:
    """Test non-inferiority of the candidate on each suite, by name.

    A suite passes if the 1 - alpha interval of its loss ends at or below `max_loss`. It fails if the loss is above
    `max_loss` by Holm's method over the suites. The gate is not assessable if a model cannot answer a suite, and not
    applicable without suites. `omitted` are the extraction suites without rows.
    """
    notes = [f"{name} is omitted: no trained part of the answer of a single row has personal data" for name in omitted]
    if not suites:
        return Gate("suites", State.NOT_APPLICABLE, (), "; ".join(notes))
    compared = {name: suite for name, suite in suites.items() if suite.unanswered is None}
    failing, level = _failing(compared, alpha=alpha)
    bounds = [_bound(name, suite, alpha=alpha, level=level, fails=name in failing) for name, suite in compared.items()]
    unanswered = [
        f"{name} needs log-likelihoods of given answers, which the kind {suite.unanswered} does not have"
        for name, suite in suites.items()
        if suite.unanswered is not None
    ]
    result = gate("suites", bounds, note="; ".join((*unanswered, *notes)))
    if unanswered and result.state is State.PASSES:
        return Gate("suites", State.NOT_ASSESSABLE, result.bounds, result.note)
    return result


def _failing(suites: Mapping[str, AnsweredSuite], *, alpha: float) -> tuple[set[str], float]:
    """Return the suites with a loss above their limit by Holm's method, and the level of the other suites' tests.

    A test at a level rejects if the interval at this level is above the limit.
    """
    failing: set[str] = set()
    while True:
        level = alpha / max(1, len(suites) - len(failing))
        new = {
            name
            for name, suite in suites.items()
            if name not in failing and suite.loss(alpha=level)[1][0] > suite.config.max_loss
        }
        if not new:
            return failing, level
        failing |= new


def _bound(name: str, suite: AnsweredSuite, *, alpha: float, level: float, fails: bool) -> Bound:
    limit, num_rows = suite.config.max_loss, len(suite.candidate)
    what = f"loss on the suite {name} (incumbent minus candidate)"

    def at(level: float) -> Bound:
        estimate, interval = suite.loss(alpha=level)
        return at_most(limit, what=what, estimate=estimate, interval=interval, n=num_rows)

    bound = at(alpha)
    return at(level) if bound.state is State.FAILS and not fails else bound
