"""The suites gate: the candidate loses at most a margin to the incumbent on each regression
suite."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tailorbird.config.suites import EXTRACTION, SuiteConfig
from tailorbird.evaluation.gates.base import Estimate, Gate, State, gate, no_loss
from tailorbird.evaluation.predictions import TRAINING_TEXT, Predictions
from tailorbird.evaluation.statistics.documents import documents_of
from tailorbird.evaluation.statistics.effect import with_unseen
from tailorbird.evaluation.statistics.paired import mean_change
from tailorbird.registry.kinds import spec_of


class AnsweredSuite(NamedTuple):
    """A suite with the answers of both models to the same rows."""

    config: SuiteConfig
    candidate: Predictions
    incumbent: Predictions

    def loss(self, *, alpha: float) -> Estimate:
        """Return the loss of the mean score, with an interval of at least the unseen rate to both
        sides."""
        num_rows = len(self.candidate)
        clusters = self.candidate.clusters
        loss = mean_change(self._reference(), self.candidate.scores, alpha=alpha, clusters=clusters)
        num_units = documents_of(clusters, num_rows=num_rows).num
        loss = with_unseen(loss, num_units=num_units, alpha=alpha)
        return Estimate(value=loss.gain, interval=loss.interval, n=num_rows, alpha=alpha)

    def _reference(self) -> NDArray[np.float64]:
        """Return the incumbent's scores; 1 for each span of training rows if it holds these rows as
        text."""
        scores = self.incumbent.scores
        flags = self.incumbent.measures.get(TRAINING_TEXT)
        holds_rows = spec_of(self.incumbent.model).holds_training_text or (
            flags is not None and flags.any()
        )
        if self.config.uri == EXTRACTION and holds_rows:
            return np.ones_like(scores)
        return scores

    @property
    def unanswered(self) -> str | None:
        """The kind of a model that cannot answer some of the rows; None if both models answer
        all."""
        tables = (self.candidate, self.incumbent)
        return next((table.model for table in tables if np.isnan(table.scores).any()), None)


def loss_name(suite: str) -> str:
    """Return the name of the bound of a suite."""
    return f"loss on the suite {suite} (incumbent minus candidate)"


def suites_gate(
    suites: Mapping[str, AnsweredSuite], *, alpha: float, omitted: Sequence[str] = ()
) -> Gate:
    """Test that the candidate loses at most `max_loss` on each suite, by name (`base.no_loss`).

    The gate is not assessable if a model cannot answer a suite, and not applicable without suites.
    `omitted` are the extraction suites without rows.
    """
    notes = [
        f"{name} is omitted: no trained part of the answer of a single row has personal data"
        for name in omitted
    ]
    if not suites:
        return Gate(name="suites", state=State.NOT_APPLICABLE, bounds=(), note="; ".join(notes))
    bounds = [
        no_loss(
            suite.config.max_loss,
            what=loss_name(name),
            loss=suite.loss(alpha=alpha),
            num_losses=len(suites),
        )
        for name, suite in suites.items()
        if suite.unanswered is None
    ]
    unanswered = [
        f"{name} needs log-likelihoods of given answers, which the kind {suite.unanswered} does "
        "not have"
        for name, suite in suites.items()
        if suite.unanswered is not None
    ]
    result = gate("suites", bounds, note="; ".join((*unanswered, *notes)))
    if unanswered and result.state is State.PASSES:
        return replace(result, state=State.NOT_ASSESSABLE)
    return result
