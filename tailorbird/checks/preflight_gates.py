"""Simulate which gates the test rows can settle, for a candidate with the expected gain in every group.

The simulation is of the first access to the test rows, and of independent rows: rows that share documents settle less.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from tailorbird.checks.result import CheckResult, note, ok
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.config.recipe import Recipe
from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.gates.behavioral import robustness_gate
from tailorbird.evaluation.gates.calibration import calibration_gate
from tailorbird.evaluation.gates.redraw import all_of, group_states
from tailorbird.evaluation.gates.subgroups import likely_level
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.documents import LEAST_DOCUMENTS
from tailorbird.evaluation.statistics.simulation import TestedRows
from tailorbird.evaluation.verdict.protocol import expected_gain

DISCORDANCE, ACCURACY = 0.15, 0.75
"""Assumptions before any model is evaluated: share of rows on which two models differ, accuracy of the incumbent."""
LOST, WON = 0.04, 0.01  # shares of right and of wrong answers that a typing error changes
USUALLY = 0.8
NUM_TESTS, NUM_GATES, SEED = 2_000, 10, 1991
MAX_ROWS = 5_000  # rows of a simulated gate; more rows settle every gate but that on groups


@dataclass(frozen=True)
class PlannedTest:
    """The number of test rows, and the rows in each group by column and value."""

    num_rows: int
    groups: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    split_by: str | None = None  # column of the documents, which the simulation does not read
    num_documents: int | None = None
    """Values of `split_by` in the rows of which the test rows are a part, or in the test rows."""


def check_gates(config: EvaluationConfig, planned: PlannedTest) -> Iterator[CheckResult]:
    """Report how often a sound candidate would pass each gate and have FINE_TUNE."""
    gain = expected_gain(config)
    shares = settled_shares(config, planned, gain=gain)
    fine_tune = shares.pop("FINE_TUNE")
    open_gates = [f"{name} (passes in {share:.0%} of tests)" for name, share in shares.items() if share < USUALLY]
    candidate = f"a candidate that gains {100 * gain:g} points in every group of {planned.num_rows:,} test rows"
    smallest = min(
        ((num, f"{column} = {value}") for column, values in planned.groups.items() for value, num in values.items()),
        default=None,
    )
    if planned.split_by is not None:
        candidate += f" (counted as independent; documents of several rows by {planned.split_by} lower these shares)"
    if not open_gates and fine_tune >= USUALLY:
        text = f"{candidate} passes all gates that can be simulated, and has FINE_TUNE in {fine_tune:.0%} of tests"
        yield ok("gates", text)
        return
    text = f"{candidate} has FINE_TUNE in {fine_tune:.0%} of tests"
    if open_gates:
        text += f"; these data often cannot settle: {', '.join(open_gates)}"
    if smallest is not None and shares.get("groups", 1.0) < USUALLY:
        text += f"; the smallest group is {smallest[1]} with {smallest[0]:,} rows"
    remedy = "add test rows, merge small groups, or set a gate to null that you do not need"
    yield note("gates", text, remedy if open_gates else "add test rows, or expect a larger gain")


def check_documents(planned: PlannedTest) -> Iterator[CheckResult]:
    """Report if the test rows come from too few documents for an interval, because the outcome is then known."""
    if planned.num_documents is None or planned.num_documents >= LEAST_DOCUMENTS:
        return
    text = (
        f"data.split_by {planned.split_by!r} has {planned.num_documents:,} different values in the rows for the test, "
        f"but an interval needs at least {LEAST_DOCUMENTS}, so the verdict would be INSUFFICIENT_EVIDENCE"
    )
    yield note("documents", text, "add test rows with other values, or remove split_by if the rows are independent")


def check_prices(recipe: Recipe) -> Iterator[CheckResult]:
    """Name the missing prices, because the cost of a model that needs one of them is not assessable."""
    cost, endpoint = recipe.evaluation.cost, recipe.evaluation.endpoint
    if cost is None:
        return
    on_gpu = recipe.serving.gpus_per_replica > 0 or recipe.training.gpus_per_worker > 0
    missing = {
        "evaluation.cost.price_per_cpu_hour": cost.price_per_cpu_hour is None,
        "evaluation.cost.price_per_gpu_hour": on_gpu and cost.price_per_gpu_hour is None,
        "evaluation.cost.price_per_gb_month": cost.price_per_gb_month is None,
        "evaluation.endpoint.price_input and price_output": endpoint is not None and endpoint.price_input is None,
    }
    names = [name for name, holds in missing.items() if holds]
    if names:
        text = f"{', '.join(names)} is not set, so the cost of the models that use it is not assessable"
        stops = "; with evaluation.regulated, no such model is chosen" if recipe.evaluation.regulated else ""
        yield note(
            "prices", f"{text}{stops}", "set the price (0 if free), or expect a cost gate that is not assessable"
        )
    else:
        yield ok("prices", "all resources that the recipe uses have a price")


def settled_shares(config: EvaluationConfig, planned: PlannedTest, *, gain: float) -> dict[str, float]:
    """Return the share of simulated tests in which each gate passes, and with FINE_TUNE."""
    generator, limits = np.random.default_rng(SEED), config.gates
    rows = _rows(generator, planned, gain=gain)
    tests = rows.simulate(gain, num_rows=planned.num_rows, num_tests=NUM_TESTS)
    level = config.alpha
    proven = (tests.p_values[:, 0] < level) & (tests.intervals(level)[0][:, 0] > 0)
    holds = proven & (tests.gains[:, 0] >= config.minimum_gain)
    shares: dict[str, float] = {}
    allowed = {State.PASSES} if config.regulated else {State.PASSES, State.NOT_ASSESSABLE}
    if limits.groups is not None and planned.groups:
        errors, freedom = tests.group_errors, tests.group_freedom
        harm = likely_level(gain, errors=errors.mean(axis=0), freedom=freedom, limits=limits.groups)
        states = all_of(group_states(tests, limits=limits.groups, level=harm, alpha=config.alpha))
        shares["groups"] = float(np.mean(states == State.PASSES))
        holds &= np.isin(states.astype(str), [str(state) for state in allowed])
    fine_tune = float(holds.mean())
    gates: dict[str, Callable[[], Gate]] = {}
    if limits.calibration is not None:
        of_calibration = limits.calibration
        gates["calibration"] = lambda: calibration_gate(
            _model(generator, planned), incumbent=_model(generator, planned), limits=of_calibration, alpha=config.alpha
        )
    if limits.robustness is not None:
        of_robustness = limits.robustness
        gates["robustness"] = lambda: robustness_gate(
            candidate=_with_noise(generator, _model(generator, planned)),
            incumbent=_with_noise(generator, _model(generator, planned)),
            limits=of_robustness,
            alpha=config.alpha,
        )
    for name, draw in gates.items():
        drawn = [draw().state for _ in range(NUM_GATES)]
        shares[name] = float(np.mean([state is State.PASSES for state in drawn]))
        fine_tune *= float(np.mean([state in allowed for state in drawn]))
    return shares | {"FINE_TUNE": fine_tune}


def _rows(generator: np.random.Generator, planned: PlannedTest, *, gain: float) -> TestedRows:
    """Return rows of two models with the assumed accuracy and discordance, in groups of the planned sizes."""
    n, discordance = planned.num_rows, max(DISCORDANCE, gain)
    won, lost = (discordance + gain) / 2, (discordance - gain) / 2
    cell = generator.choice(4, n, p=[max(ACCURACY - lost, 0.0), won, lost, max(1 - ACCURACY - won, 0.0)])
    members = []
    for values in planned.groups.values():
        sizes = np.array(list(values.values()), dtype=np.float64)
        ends = np.round(np.cumsum(sizes) / sizes.sum() * n).astype(np.int64)
        order, starts = generator.permutation(n), np.concatenate([[0], ends[:-1]])
        members += [np.isin(order, np.arange(start, end)) for start, end in zip(starts, ends, strict=True)]
    inside = np.stack(members, axis=1) if members else np.zeros((n, 0), dtype=bool)
    inside = inside[:, inside.any(axis=0)]
    ours, theirs = ((cell <= 1), (cell == 0) | (cell == 2))
    return TestedRows(
        ours[:, None].astype(np.float64), theirs[:, None].astype(np.float64), inside, np.zeros(inside.shape[1]), None
    )


def _model(generator: np.random.Generator, planned: PlannedTest) -> Predictions:
    """Return the predictions of a perfectly calibrated model."""
    n = min(planned.num_rows, MAX_ROWS)
    confidence = 0.3 + 0.7 * generator.beta(4, 1.5, n)
    return _table(tuple(map(str, range(n))), generator.random(n) < confidence, confidence)


def _with_noise(generator: np.random.Generator, clean: Predictions) -> tuple[Predictions, Predictions]:
    """Return the predictions with those of changed texts, some of which are answered otherwise."""
    right = clean.scores == 1
    changed = np.where(right, generator.random(len(right)) >= LOST, generator.random(len(right)) < WON)
    return clean, _table(tuple(f"{row}|noise" for row in clean.row_ids), changed, clean.calibrated)


def _table(row_ids: tuple[str, ...], right: np.ndarray, confidence: np.ndarray) -> Predictions:
    outputs = tuple(np.where(right, "a", "b").tolist())
    scores = right.astype(np.float64)
    return Predictions("simulated", row_ids, ("a",) * len(row_ids), outputs, scores, confidence, confidence)
