"""Error rates of the verdict, by simulation: bounds and measured rates with their Monte Carlo
errors.

    python -m benchmarks.evaluation.verdict_error_rates [rules] [equal_models] [power] [calibration]
        [losses] [intervals]

- rules: cases that earlier or simpler rules decided wrongly.
- equal_models: false decisions if models are equal.
- power: the measured frequency of FINE_TUNE, and the one that `power_of` computes from the rows of
  single runs.
- calibration: what the calibration gate does to a candidate that is 3 points better.
- losses: rare rows lose 90 points by a chat metric, and the candidate gains a little elsewhere.
- intervals: two equally good models, by their comparison alone.

A run has models whose answers are correlated, and uses the functions of real runs. Seeds are fixed.
Equally good candidates need no selection: on new rows, the best on validation is like any other.
Bounds of rates that are close to 0.025 or 0.05 by design are wider by two Monte Carlo errors. Other
benchmarks measure rows that a model was trained on, near copies of test rows, and repeated looks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, norm

from benchmarks.harness import Figures, print_table, run_parts, standard_error
from benchmarks.simulated import (
    ALPHA,
    CORRELATION,
    MARGIN,
    answers,
    right_answers,
    serving_usage,
    simulated_protocol,
)
from tailorbird.config.evaluation import CalibrationGateConfig, SubgroupGateConfig
from tailorbird.evaluation.gates.base import State
from tailorbird.evaluation.hybrid import FrozenHybrid, PartUsage, hybrid_usage, routed_to_second
from tailorbird.evaluation.predictions import ModelPredictions, Predictions
from tailorbird.evaluation.statistics.paired import compare, newcombe_limits
from tailorbird.evaluation.verdict.decide import (
    CANDIDATE,
    HYBRID,
    INCUMBENT,
    Decision,
    Outcome,
    decide,
)
from tailorbird.evaluation.verdict.inputs import Anchor, VerdictInputs
from tailorbird.evaluation.verdict.power import PowerInputs, power_of
from tailorbird.evaluation.verdict.protocol import NO_GATES, TestProtocol
from tailorbird.evaluation.verdict.reach import Compared, compare_models
from tailorbird.registry.hybrid_routing import Routing

NUM_REPLACING = 3  # baselines that may replace the incumbent
CASCADE = Routing(by="cascade", threshold=0.5)
NUM_CLAIMS = 25
STEP_OF_CHAIN = 0.005
CLASS_SHARES = {
    "five classes": np.array((0.45, 0.25, 0.15, 0.10, 0.05)),
    "20 classes": 0.278 / np.arange(1, 21),  # the rarest has 1.4% of the rows
}
RARE_LOSS = 0.9
LEAST_CONFIDENCE = 0.3
NUM_DRAWS = 40_000
NUM_MACRO_F1 = 2_000
Event = Callable[[np.random.Generator], bool]
"""Simulates a run, and returns whether the event happens in it."""


@dataclass(frozen=True)
class Case:
    """An event with the bound of its rate."""

    event: Event
    bound: str
    num_runs: int = 1_000


@dataclass(frozen=True)
class Truth:
    """The true accuracies of the models of a run, and the costs of serving them."""

    baselines: tuple[float, ...]  # the champion first
    candidate: float
    num_rows: int = 3_000
    num_validation: int | None = None
    """Rows that select the incumbent; None if the first baseline is the champion."""
    costs: tuple[float, ...] = ()  # of the baselines, then of the candidate; empty without prices
    value_of_point: float | None = None
    has_hybrid: bool = False
    """A cascade of the incumbent and the candidate, each of which answers half of the rows."""

    def compared(self, generator: np.random.Generator) -> Compared:
        """Return the compared models of a simulated run."""
        order = np.arange(len(self.baselines))
        if self.num_validation is not None:
            on_validation = right_answers(generator, self.num_validation, accuracies=self.baselines)
            order = np.argsort(-on_validation.mean(axis=0), kind="stable")

        accuracies = [*np.array(self.baselines)[order], self.candidate]
        right = right_answers(generator, self.num_rows, accuracies=accuracies)
        confidences = generator.uniform(0, 1, self.num_rows)
        roles = [INCUMBENT, *(f"other_{number}" for number in range(1, len(order))), CANDIDATE]
        models = {}
        for role, column in zip(roles, right.T, strict=True):
            models[role] = answers(column, confidences=confidences)

        hybrid = None
        if self.has_hybrid:
            hybrid = FrozenHybrid(CASCADE, INCUMBENT, CANDIDATE, 0.75, 0.5)
        return compare_roles(
            models,
            protocol=simulated_protocol(self.num_rows, value_of_point=self.value_of_point),
            costs=dict(zip(roles, self.costs, strict=False)),
            hybrid=hybrid,
        )


def compare_roles(
    tables: Mapping[str, Predictions],
    *,
    protocol: TestProtocol,
    costs: Mapping[str, float] | None = None,
    hybrid: FrozenHybrid | None = None,
    anchor: Anchor | None = None,
) -> Compared:
    """Return models by role, compared by the functions of a run; `costs` are by role."""
    usage = serving_usage(costs or {})
    if usage and hybrid is not None:
        routed = routed_to_second(hybrid.routing, tables[hybrid.first])
        first, second = (PartUsage(usage[role], np.ones(len(routed))) for role in hybrid.parts)
        usage[HYBRID] = hybrid_usage(hybrid.routing, routed=routed, first=first, second=second)
    further = [role for role in tables if role not in (INCUMBENT, CANDIDATE)]
    inputs = VerdictInputs(
        {role: ModelPredictions(table) for role, table in tables.items()},
        "simulated",
        replacing=tuple(further[:NUM_REPLACING]),
        hybrid=hybrid,
        anchor=anchor,
        costs=usage or None,
    )
    return compare_models(inputs, on_all_rows=inputs, protocol=protocol)


def decision(compared: Compared) -> Decision:
    """Return the decision between the compared models."""
    return decide(compared.entries, compared.relate, protocol=compared.costs.protocol)


def main() -> None:
    """Print a table per part, then one line of JSON."""
    cases = RULES | EQUAL_MODELS | POWER | CALIBRATION | LOSSES
    bounds = {name: case.bound for name, case in cases.items()} | BOUNDS
    parts = (rules, equal_models, power, calibration, losses, intervals)
    run_parts("verdict_error_rates", parts, bounds=bounds)


def rules() -> Figures:
    """Rates of the cases that earlier rules decided wrongly."""
    return _rates("What one relation mends", RULES)


def equal_models() -> Figures:
    """Rates of false decisions if models are equal."""
    return _rates("Equal models, and far worse ones", EQUAL_MODELS)


def calibration() -> Figures:
    """States of the calibration gate of a candidate that is 3 points better than the incumbent."""
    return _rates("Calibration gate, gain 3 points", CALIBRATION)


def losses() -> Figures:
    """Rates of candidates that are chosen despite rare losses."""
    return _rates("Rare losses of 90 points in token F1", LOSSES)


def _rates(title: str, cases: Mapping[str, Case]) -> Figures:
    """Print and return the rates of the events."""
    figures = {}
    rows = {}
    for number, (name, case) in enumerate(cases.items()):
        generator = np.random.default_rng((len(title), number))
        rate = float(np.mean([case.event(generator) for _ in range(case.num_runs)]))
        figures[name] = rate
        error = standard_error(rate, case.num_runs)
        rows[f"{name} ({case.bound})"] = {"measured": rate, "+-": error}
    print_table(title, rows)
    return figures


def power() -> Figures:
    """Frequency of FINE_TUNE if the candidate is 3 points better, measured and claimed."""
    measured = _rates("Power: FINE_TUNE if the candidate is 3 points better", POWER)
    rows = {}
    for name, truth in BETTER_CANDIDATES.items():
        generator = np.random.default_rng(truth.num_rows)
        claims = []
        for _ in range(NUM_CLAIMS):
            models = truth.compared(generator)
            inputs = PowerInputs(models.tables, models.entries, models.costs)
            claims.append(power_of(inputs).at_expected_gain)
        error = float(np.std(claims) / np.sqrt(NUM_CLAIMS))
        rows[name] = {"measured": measured[name], "claimed": float(np.mean(claims)), "+-": error}
    print_table("Power that single runs claim", rows)
    largest = max(abs(row["claimed"] - row["measured"]) for row in rows.values())
    return {**measured, "largest difference of power claimed and measured": largest}


def intervals() -> Figures:
    """Rates of two equally good models, by accuracy and by macro-F1."""
    by_accuracy = {}
    for n, (discordance, accuracy) in product(
        (100, 300, 1_000, 3_000), ((0.05, 0.9), (0.10, 0.75), (0.20, 0.66))
    ):
        half = discordance / 2
        shares = (accuracy - half, half, half, 1 - accuracy - half)
        cells = np.random.default_rng(n).multinomial(n, shares, size=NUM_DRAWS)
        gains = (cells[:, 1] - cells[:, 2]) / n
        rates = _equal_rates(gains, limits=newcombe_limits(cells, alpha=ALPHA))
        by_accuracy[f"{n:,} rows, discordance {discordance:g}"] = rates
    by_macro_f1 = {}
    for (name, shares_of_classes), n in product(CLASS_SHARES.items(), (300, 1_000)):
        by_macro_f1[f"{n:,} rows, {name}"] = _equal_by_macro_f1(n, shares=shares_of_classes)

    figures = {}
    for suffix, rows, num in (
        ("", by_accuracy, NUM_DRAWS),
        (" by macro-F1", by_macro_f1, NUM_MACRO_F1),
    ):
        print_table(f"Two equally good models{suffix}", rows, num_draws=num)
        proven = max(row["proven better"] for row in rows.values())
        figures[f"an equal model is proven better{suffix}"] = proven
        coverage = min(row["coverage"] for row in rows.values())
        figures[f"lowest coverage of the interval{suffix}"] = coverage
    return figures


def _equal_rates(gains: ArrayLike, *, limits: ArrayLike) -> dict[str, float]:
    """Return the rates of tests of equal models, from their gains [N] and intervals [2, N]."""
    low, high = np.asarray(limits)
    proven = (low > 0) & (np.asarray(gains) >= MARGIN)
    return {
        "proven better": float(proven.mean()),
        "coverage": float(np.mean((low <= 0) & (high >= 0))),
    }


def _equal_by_macro_f1(n: int, *, shares: NDArray[np.float64]) -> dict[str, float]:
    generator = np.random.default_rng(n)
    results = []
    for _ in range(NUM_MACRO_F1):
        labels = generator.choice(len(shares), n, p=shares / shares.sum())
        wrong = (labels + generator.integers(1, len(shares), n)) % len(shares)  # for both models
        right = right_answers(generator, n, accuracies=(0.75, 0.75))
        first, second = (answers(column, labels=labels, wrong=wrong) for column in right.T)
        results.append(compare(first, other=second, metric="macro_f1", alpha=ALPHA))
    limits = np.transpose([result.interval for result in results])
    return _equal_rates([result.gain for result in results], limits=limits)


def _ends_in(truth: Truth, *outcomes: Outcome) -> Event:
    """Return the event that the outcome is one of these."""
    return lambda generator: decision(truth.compared(generator)).outcome in outcomes


def _replaces(truth: Truth) -> Event:
    """Return the event that the incumbent is not selected."""
    return lambda generator: decision(truth.compared(generator)).selected != INCUMBENT


def _moves_away(generator: np.random.Generator) -> bool:
    """Return True if one more right answer of a candidate moves the outcome away from FINE_TUNE.

    One wrong answer after another becomes right, from 70% to 80% of 1,000 rows. Half of the
    candidates are cheaper than all other models, which pays for a loss of at most half a point.
    """
    n = 1_000
    roles = (INCUMBENT, "other", CANDIDATE)
    right = right_answers(generator, n, accuracies=(0.75, 0.74, 0.70))
    costs = None
    if generator.random() < 0.5:
        costs = dict(zip(roles, (10.0, 10.0, 5.0), strict=True))
    protocol = simulated_protocol(n, value_of_point=10)
    order = (Outcome.STAY, Outcome.INSUFFICIENT_EVIDENCE, Outcome.FINE_TUNE)
    ranks = []
    for row in generator.permutation(np.flatnonzero(~right[:, 2]))[: n // 10]:
        tables = {role: answers(column) for role, column in zip(roles, right.T, strict=True)}
        models = compare_roles(tables, protocol=protocol, costs=costs)
        ranks.append(order.index(decision(models).outcome))
        right[row, 2] = True
    return bool(np.any(np.diff(ranks) < 0))


def _ends_worse(generator: np.random.Generator) -> bool:
    """Return True if the champion after twelve runs is worse than the first one by more than the
    margin.

    Each run has 3,000 new rows, and a candidate that costs 20% less than its champion and is truly
    half a point worse.
    """
    champion = 0.75
    anchor = 0.75
    for _ in range(12):
        accuracies = (champion, champion - STEP_OF_CHAIN, anchor)
        right = right_answers(generator, 3_000, accuracies=accuracies)
        first, second, third = map(answers, right.T)
        models = compare_roles(
            {INCUMBENT: first, CANDIDATE: second},
            protocol=simulated_protocol(3_000, value_of_point=0.01),
            costs={INCUMBENT: 1.0, CANDIDATE: 0.8},
            anchor=None if champion == anchor else Anchor(third),
        )
        if decision(models).selected == CANDIDATE:
            champion -= STEP_OF_CHAIN
            if models.relate(CANDIDATE, INCUMBENT, 1).is_better:
                anchor = champion
    return champion < 0.75 - MARGIN - STEP_OF_CHAIN / 2


def _chosen_over_failing(
    generator: np.random.Generator, *, required_gates: tuple[str, ...]
) -> bool:
    """Return True for FINE_TUNE; an endpoint is better, but loses 10 points in a group of 600
    rows.

    The endpoint is an opponent, unless the recipe writes the limit of the groups.
    """
    n = 3_000
    is_in_group = np.arange(n) < 600
    endpoint = np.where(is_in_group, 0.64, 0.8525)
    accuracies = np.stack([np.full(n, 0.74), np.full(n, 0.80), endpoint], axis=1)
    right = right_answers(generator, n, accuracies=accuracies).T
    groups = {"group": tuple(np.where(is_in_group, "small", "large").tolist())}
    roles = (INCUMBENT, CANDIDATE, "endpoint_zero_shot")
    models = {
        role: answers(column, groups=groups) for role, column in zip(roles, right, strict=True)
    }
    gates = NO_GATES.model_copy(update={"groups": SubgroupGateConfig()})
    protocol = simulated_protocol(n, gates=gates, required_gates=required_gates)
    decided = decision(compare_roles(models, protocol=protocol))
    return decided.outcome is Outcome.FINE_TUNE


@dataclass(frozen=True)
class Confident:
    """Two models with accuracies of 75% (incumbent) and 78%, whose confidences exceed the
    probability of a right answer by their ECE."""

    incumbent_ece: float
    candidate_ece: float
    num_rows: int

    def compared(self, generator: np.random.Generator) -> Compared:
        """Return the compared models of a simulated run."""
        models = {}
        shared = generator.standard_normal((2, self.num_rows))
        for role, accuracy, ece in (
            (INCUMBENT, 0.75, self.incumbent_ece),
            (CANDIDATE, 0.78, self.candidate_ece),
        ):
            single = generator.standard_normal((2, self.num_rows))
            ranks = norm.cdf(np.sqrt(CORRELATION) * shared + np.sqrt(1 - CORRELATION) * single)
            mean = (accuracy + ece - LEAST_CONFIDENCE) / (1 - LEAST_CONFIDENCE)
            confidence = LEAST_CONFIDENCE + (1 - LEAST_CONFIDENCE) * beta.ppf(
                ranks[0], 4, 4 * (1 / mean - 1)
            )
            models[role] = answers(ranks[1] < confidence - ece, calibrated=confidence)
        gates = NO_GATES.model_copy(update={"calibration": CalibrationGateConfig()})
        return compare_roles(models, protocol=simulated_protocol(self.num_rows, gates=gates))

    def gate_is(self, state: State) -> Event:
        """Return the event that the gate of the candidate has this state."""

        def event(generator: np.random.Generator) -> bool:
            tested = {model.role: model for model in self.compared(generator).tested}
            (gate,) = tested[CANDIDATE].gates
            return gate.state is state

        return event

    def is_chosen(self, generator: np.random.Generator) -> bool:
        """Return True for FINE_TUNE."""
        return decision(self.compared(generator)).outcome is Outcome.FINE_TUNE


def _accepts_losses(num: int, *, rows_of_document: int = 1, small_gain: float = 0.0) -> Event:
    """Return the event FINE_TUNE for a candidate with rare losses in token F1.

    Without small gains, the candidate is cheaper and its mean loss is the margin; with them, its
    mean gain is 0.
    """
    n = num * rows_of_document
    columns: dict[str, Any] = {}
    if rows_of_document > 1:
        columns["clusters"] = tuple(map(str, np.arange(n) // rows_of_document))
    registered = simulated_protocol(n, value_of_point=None if small_gain else 0.01)
    registered = registered.model_copy(update={"metric": "token_f1"})
    costs = None if small_gain else {INCUMBENT: 2.0, CANDIDATE: 1.0}

    def event(generator: np.random.Generator) -> bool:
        lost = generator.random(num) < (small_gain or MARGIN) / RARE_LOSS
        usual = np.full(num, small_gain)
        if not small_gain:
            usual = generator.choice([-0.001, 0.001], num)
        differences = np.repeat(usual - RARE_LOSS * lost, rows_of_document)
        models = {}
        for role, part in ((CANDIDATE, differences), (INCUMBENT, -differences)):
            measures = {"token_f1": part.clip(min=0)}
            models[role] = answers(np.zeros(n, np.bool_), measures=measures, **columns)
        compared = compare_roles(models, protocol=registered, costs=costs)
        return decision(compared).outcome is Outcome.FINE_TUNE

    return event


FINE_TUNE = Outcome.FINE_TUNE
EQUAL = Truth((0.75,) * 4, 0.75, has_hybrid=True)
OTHERS_BELOW = Truth((0.75, 0.65, 0.65), 0.75)
SELECTED = Truth((0.77, 0.75, 0.75, 0.75, 0.70), 0.77, num_validation=200)
BETTER_BASELINE = Truth((0.78, 0.75, 0.75, 0.75), 0.775, num_validation=200)
DEAR_ENDPOINT = Truth((0.75,), 0.75, 10_000, costs=(100, 1), value_of_point=1)
# 67 times the incumbent's cost
DEAR_HYBRID = Truth((0.75,), 0.75, costs=(1, 132), value_of_point=1_000, has_hybrid=True)
RULES = {
    "FINE_TUNE: champion .74, baseline .77, candidate .77": Case(
        _ends_in(Truth((0.74, 0.77), 0.77), FINE_TUNE), "<= 0.05"
    ),
    "FINE_TUNE: baselines .77 .75 .75 .75 .70, candidate .77": Case(
        _ends_in(SELECTED, FINE_TUNE), "<= 0.08"
    ),
    "FINE_TUNE: baselines .78 .75 .75 .75, candidate .775": Case(
        _ends_in(BETTER_BASELINE, FINE_TUNE), "<= 0.025"
    ),
    "HYBRID: equal at 67 times the cost, 3,000 rows": Case(
        _ends_in(DEAR_HYBRID, Outcome.HYBRID), "<= 0.025"
    ),
    "HYBRID: the same, 10,000 rows": Case(
        _ends_in(replace(DEAR_HYBRID, num_rows=10_000), Outcome.HYBRID), "<= 0.025", 200
    ),
    "a better candidate moves away from FINE_TUNE": Case(_moves_away, "<= 0", 200),
    "a loss beyond the margin after 12 runs of 3,000 rows": Case(_ends_worse, "<= 0.05", 200),
    "STAY: equal at 1% of an endpoint's cost, 10,000 rows": Case(
        _ends_in(DEAR_ENDPOINT, Outcome.STAY), "<= 0", 200
    ),
    "FINE_TUNE: champion .74, failing endpoint .81, candidate .80": Case(
        partial(_chosen_over_failing, required_gates=("groups",)), ">= 0.95", 500
    ),
    "FINE_TUNE: the same, without a written limit": Case(
        partial(_chosen_over_failing, required_gates=()), "<= 0.025", 500
    ),
}
EQUAL_MODELS = {
    "FINE_TUNE or HYBRID: incumbent, three others, candidate, hybrid are equal": Case(
        _ends_in(EQUAL, FINE_TUNE, Outcome.HYBRID), "<= 0.025"
    ),
    "another model is selected: the same": Case(_replaces(EQUAL), "<= 0.06", 2_000),
    **{
        f"FINE_TUNE: candidate equal to the champion, others far below, {n:,} rows": Case(
            _ends_in(replace(OTHERS_BELOW, num_rows=n), FINE_TUNE), "<= 0.035"
        )
        for n in (100, 200, 300, 3_000)
    },
}
BETTER_CANDIDATES = {
    "baselines .75 .74 .73 .70, 2,000 rows": Truth((0.75, 0.74, 0.73, 0.70), 0.78, 2_000),
    "baselines .75 .74 .73 .70, 3,000 rows": Truth((0.75, 0.74, 0.73, 0.70), 0.78, 3_000),
    "baselines .75 .75 .75, 2,000 rows": Truth((0.75,) * 3, 0.78, 2_000),
}
LEAST_POWER = (">= 0.86", ">= 0.96", ">= 0.72")
POWER = {
    name: Case(_ends_in(truth, FINE_TUNE), bound)
    for (name, truth), bound in zip(BETTER_CANDIDATES.items(), LEAST_POWER, strict=True)
}
CALIBRATION = {}
for num_rows in (1_000, 3_000):
    for ece in (0.0, 0.055):
        CALIBRATION[f"fails: ECE of both {ece:g}, {num_rows:,} rows"] = Case(
            Confident(ece, ece, num_rows).gate_is(State.FAILS), "<= 0.05", 500
        )
        twice = ece + 2 * CalibrationGateConfig().margin
        CALIBRATION[f"passes: ECE {ece:g} and {twice:g}, {num_rows:,} rows"] = Case(
            Confident(ece, twice, num_rows).gate_is(State.PASSES), "<= 0.05", 500
        )
CALIBRATION["fails: ECE 0.055 and 0.115, 3,000 rows"] = Case(
    Confident(0.055, 0.115, 3_000).gate_is(State.FAILS), ">= 0.8", 500
)
CALIBRATION["FINE_TUNE: ECE of both 0.055, 3,000 rows"] = Case(
    Confident(0.055, 0.055, 3_000).is_chosen, ">= 0.9", 500
)
LOSSES = {}
for num_units in (200, 500, 1_000):
    for name, event_for in (
        ("losses of the margin, rows", _accepts_losses),
        ("losses of the margin, documents of 5", partial(_accepts_losses, rows_of_document=5)),
        ("small gains and rare losses, rows", partial(_accepts_losses, small_gain=0.04)),
    ):
        LOSSES[f"{name}: {num_units:,}"] = Case(event_for(num_units), "<= 0.05", 500)
BOUNDS = {
    "largest difference of power claimed and measured": "<= 0.1",
    "an equal model is proven better": "<= 0.03",
    "an equal model is proven better by macro-F1": "<= 0.035",
    "lowest coverage of the interval": ">= 0.94",
    "lowest coverage of the interval by macro-F1": ">= 0.94",
}

if __name__ == "__main__":
    main()
