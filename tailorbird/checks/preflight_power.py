"""Simulate how often the planned test rows choose a fine-tuned model, by the function that a
verdict uses."""

import numpy as np
from numpy.typing import NDArray

from tailorbird.checks.planned_test import PlannedTest
from tailorbird.checks.result import CheckResult, note, ok
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.config.serving import ServingConfig
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.power import TARGET_POWER, rows_text
from tailorbird.evaluation.verdict.decide import CANDIDATE, INCUMBENT, Entry
from tailorbird.evaluation.verdict.formatting import size
from tailorbird.evaluation.verdict.parts import Power
from tailorbird.evaluation.verdict.power import PowerInputs, power_of
from tailorbird.evaluation.verdict.protocol import (
    NO_GATES,
    TestProtocol,
    build_protocol,
    expected_gain,
)
from tailorbird.evaluation.verdict.relation import CostTable

ACCURACY = {INCUMBENT: 0.75, CANDIDATE: 0.75, "second": 0.74, "third": 0.72}
"""Assumed accuracy before any model is evaluated. The power function changes that of the
candidate."""
SHARED = 0.6
"""Share of the rows on which all models are right or wrong together. Two equal models then differ
on 15% of them."""
MAX_ROWS = 20_000  # more rows decide about gains of one point
SEED = 1991


def check_power(power: Power, *, config: EvaluationConfig, planned: PlannedTest) -> CheckResult:
    """Return how often a candidate with the expected and the minimum gain is chosen, and the rows
    that are needed."""
    gain = size(expected_gain(config))
    text = (
        f"a candidate that is {gain} better than the best of three baselines is chosen in "
        f"{power.at_expected_gain:.0%} of simulated tests of {planned.num_rows:,} rows, if its "
        f"gates pass; one that is {size(config.minimum_gain)} better in "
        f"{power.at_minimum_gain:.0%}"
    )
    if power.at_expected_gain >= TARGET_POWER:
        return ok("power", text)
    remedy = (
        f"{rows_text(power.rows_needed)} give {TARGET_POWER:.0%}; add test rows, or expect a "
        "larger gain"
    )
    return note("power", text, remedy)


def planned_power(config: EvaluationConfig, planned: PlannedTest) -> Power:
    """Return the power of the first look at the planned rows, for models with the assumed
    accuracies."""
    num_rows = min(planned.num_rows, MAX_ROWS)
    generator = np.random.default_rng(SEED)
    shared = generator.random(num_rows)
    is_shared = generator.random(num_rows) < SHARED
    clusters = None
    if planned.num_documents is not None:
        clusters = tuple(str(row % planned.num_documents) for row in range(num_rows))
    tables = {}
    for role, accuracy in ACCURACY.items():
        luck = np.where(is_shared, shared, generator.random(num_rows))
        tables[role] = _answers(luck < accuracy, clusters=clusters)
    entries = tuple(Entry(role, is_fine_tuned=role == CANDIDATE) for role in ACCURACY)
    costs = CostTable(
        serving=None, training={}, protocol=_protocol(config, planned), alpha=config.alpha
    )
    return power_of(PowerInputs(tables, entries, costs))


def _protocol(config: EvaluationConfig, planned: PlannedTest) -> TestProtocol:
    """Return the protocol of a test of simulated classifiers in accuracy, without gates."""
    changes = {"metric": "accuracy", "gates": NO_GATES, "cost": None, "hybrid": None}
    return build_protocol(
        config.model_copy(update=changes),
        serving=ServingConfig(),
        test_sha256="",
        num_test_rows=planned.num_rows,
    )


def _answers(right: NDArray[np.bool_], *, clusters: tuple[str, ...] | None = None) -> Predictions:
    """Return the predictions of a model that is right on these rows [N]."""
    n = len(right)
    scores = right.astype(np.float64)
    outputs = tuple(np.where(right, "a", "b").tolist())
    row_ids = tuple(map(str, range(n)))
    return Predictions(
        model="simulated",
        row_ids=row_ids,
        labels=("a",) * n,
        outputs=outputs,
        scores=scores,
        confidences=scores,
        calibrated=scores,
        clusters=clusters,
    )
