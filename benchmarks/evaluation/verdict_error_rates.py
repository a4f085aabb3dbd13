"""Error rates of the verdict, by simulation: bounds and measured rates with their Monte Carlo
errors.

    python -m benchmarks.evaluation.verdict_error_rates [mended] [dominates] [power] [losses]
    [equal]

- mended: the cases for which one relation replaced nine rules, with the previous rates ("before").
- dominates: false decisions if models are equal, or if cheaper models are worse by the margin.
- power: the measured frequency of FINE_TUNE, and the one that `power_of` computes from the rows of
  single runs.
- losses: by a chat metric, rare rows or documents lose 90 points. It is wrong to accept a cheaper
  candidate whose mean loss is the margin, or a candidate whose small gains only make up for the
  losses.
- equal: two equally good models, by their comparison alone.

A run has models whose answers are correlated, and uses the functions of real runs. Seeds are fixed.
Equally good candidates need no selection: on new rows, the best on validation is like any other.
Bounds of rates that are close to 0.025 or 0.05 by design are wider by two Monte Carlo errors. Other
benchmarks measure rows that a model was trained on, near copies of test rows, and repeated looks.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import numpy as np
from numpy.typing import NDArray

from benchmarks.rounds import finish, print_table
from benchmarks.simulated_runs import (
    ALPHA,
    CASCADE,
    MARGIN,
    Truth,
    answers,
    compared,
    decision,
    protocol,
    right_answers,
)
from tailorbird.config.evaluation import SubgroupGateConfig
from tailorbird.evaluation.gates.prices import CostComparison, YearlyNet
from tailorbird.evaluation.hybrid import FrozenHybrid
from tailorbird.evaluation.statistics.paired import (
    compare,
    newcombe_limits,
    newcombe_paired_interval,
    paired_counts,
)
from tailorbird.evaluation.verdict.decide import CANDIDATE, INCUMBENT, Entry, Outcome, decide
from tailorbird.evaluation.verdict.inputs import Anchor
from tailorbird.evaluation.verdict.power import PowerInputs, power_of
from tailorbird.evaluation.verdict.protocol import NO_GATES
from tailorbird.evaluation.verdict.relation import Gain, Relation, relation_of

NUM_CLAIMS = 25
STEP_OF_CHAIN = 0.005
RARE_LOSS = 0.9
CLASS_SHARES = {
    "five classes": np.array((0.45, 0.25, 0.15, 0.10, 0.05)),
    "20 classes": 0.278 / np.arange(1, 21),  # the rarest has 1.4% of the rows
}
NUM_DRAWS = 40_000
NUM_MACRO_F1 = 2_000
Event = Callable[[np.random.Generator], bool]
"""Simulates a run, and returns whether the event happens in it."""
Measured = tuple[dict[str, float], dict[str, str]]
"""Figures, and their bounds, by name."""


@dataclass(frozen=True)
class Case:
    """An event with the bound of its rate."""

    event: Event
    bound: str
    before: float | None = None  # rate with nine rules, or with a simpler relation that was tried
    num_runs: int = 1_000


def main() -> None:
    """Print a table per part, then one line of JSON."""
    parts: dict[str, Callable[[], Measured]] = {
        "mended": lambda: _rates("What one relation mends", MENDED),
        "dominates": lambda: _rates("Equal models, and cheaper models", DOMINATES),
        "power": power,
        "losses": lambda: _rates("Rare losses of 90 points", LOSSES),
        "equal": equal,
    }
    figures: dict[str, float] = {}
    bounds: dict[str, str] = {}
    for part in sys.argv[1:] or parts:
        measured, limits = parts[part]()
        figures |= measured
        bounds |= limits
    finish("verdict_error_rates", figures, bounds=bounds)


def _rates(title: str, cases: Mapping[str, Case]) -> Measured:
    """Print and return the rates of the events."""
    rows: dict[str, dict[str, float]] = {}
    for number, (name, case) in enumerate(cases.items()):
        generator = np.random.default_rng((len(title), number))
        rate = float(np.mean([case.event(generator) for _ in range(case.num_runs)]))
        row = {"before": case.before} if case.before is not None else {}
        rows[f"{name} ({case.bound})"] = row | {"measured": rate, "+-": _error(rate, case.num_runs)}
    print_table(title, rows)
    figures = {name: row["measured"] for name, row in zip(cases, rows.values(), strict=True)}
    return figures, {name: case.bound for name, case in cases.items()}


def power() -> Measured:
    """Frequency of FINE_TUNE if the candidate is 3 points better, measured and claimed."""
    figures, bounds = _rates(
        "Power: FINE_TUNE if the candidate is 3 points better",
        {
            name: Case(_ends_in(truth, Outcome.FINE_TUNE), bound)
            for name, (truth, bound) in POWER.items()
        },
    )
    rows: dict[str, dict[str, float]] = {}
    for name, (truth, _) in POWER.items():
        generator = np.random.default_rng(truth.num_rows)
        claims = []
        for _ in range(NUM_CLAIMS):
            models = truth.compared(generator)
            claims.append(
                power_of(PowerInputs(models.tables, models.entries, models.costs)).at_expected_gain
            )
        error = float(np.std(claims) / np.sqrt(NUM_CLAIMS))
        rows[name] = {"measured": figures[name], "claimed": float(np.mean(claims)), "+-": error}
    print_table("Power that single runs claim", rows)
    difference = "largest difference of power claimed and measured"
    figures[difference] = max(abs(row["claimed"] - row["measured"]) for row in rows.values())
    return figures, bounds | {difference: "<= 0.1"}


def equal() -> Measured:
    """Rates of two equally good models, by accuracy and by macro-F1."""
    rows = {}
    for n in (100, 300, 1_000, 3_000):
        for discordance, accuracy in ((0.05, 0.9), (0.10, 0.75), (0.20, 0.66)):
            half = discordance / 2
            shares = (accuracy - half, half, half, 1 - accuracy - half)
            cells = np.random.default_rng(n).multinomial(n, shares, size=NUM_DRAWS)
            low, high = newcombe_limits(cells, alpha=ALPHA)
            rows[f"{n:,} rows, discordance {discordance:g}"] = {
                "proven better": float(
                    np.mean((low > 0) & (cells[:, 1] - cells[:, 2] >= MARGIN * n))
                ),
                "coverage": float(np.mean((low <= 0) & (high >= 0))),
                "+-": _error(0.95, NUM_DRAWS),
            }
    print_table("Two equally good models", rows)
    by_macro_f1 = {}
    for (name, shares), n in product(CLASS_SHARES.items(), (300, 1_000)):
        by_macro_f1[f"{n:,} rows, {name}"] = _equal_by_macro_f1(n, shares=shares / shares.sum())
    print_table("Two equally good models, by macro-F1", by_macro_f1)
    figures = {
        "an equal model is proven better": max(row["proven better"] for row in rows.values()),
        "lowest coverage of the interval": min(row["coverage"] for row in rows.values()),
        "an equal model is proven better by macro-F1": max(
            row["proven better"] for row in by_macro_f1.values()
        ),
        "lowest coverage of the interval of macro-F1": min(
            row["coverage"] for row in by_macro_f1.values()
        ),
    }
    return figures, dict(zip(figures, ("<= 0.03", ">= 0.94", "<= 0.035", ">= 0.94"), strict=True))


def _equal_by_macro_f1(n: int, *, shares: NDArray[np.float64]) -> dict[str, float]:
    generator = np.random.default_rng(n)
    results = []
    for _ in range(NUM_MACRO_F1):
        labels = generator.choice(len(shares), n, p=shares)
        wrong = (labels + generator.integers(1, len(shares), n)) % len(
            shares
        )  # the same for both models
        first, second = (
            answers(right, labels=labels.astype(str), wrong=wrong.astype(str)).clean
            for right in right_answers(generator, n, accuracies=(0.75, 0.75)).T
        )
        results.append(compare(first, other=second, metric="macro_f1", alpha=ALPHA))
    return {
        "proven better": float(
            np.mean([each.interval[0] > 0 and each.gain >= MARGIN for each in results])
        ),
        "coverage": float(np.mean([each.interval[0] <= 0 <= each.interval[1] for each in results])),
        "+-": _error(0.95, NUM_MACRO_F1),
    }


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
    right = right_answers(generator, n, accuracies=(0.75, 0.74, 0.70))
    columns = {INCUMBENT: 0, "other": 1, CANDIDATE: 2}
    entries = [Entry(role, is_fine_tuned=role == CANDIDATE) for role in columns]
    cheaper = CostComparison((0.5, 0.5, 0.5), YearlyNet(value_of_one=1_000, training=0, saving=5))
    cost = cheaper if generator.random() < 0.5 else CostComparison()
    of_run = protocol(n, value_of_point=10)

    def relate(first: str, second: str, share: int) -> Relation:
        pair = right[:, [columns[first], columns[second]]].astype(np.float64)
        counts = paired_counts(pair[:, 0], other=pair[:, 1])
        interval = newcombe_paired_interval(counts, alpha=ALPHA / share)
        gain = Gain(counts.gain, interval, interval[0], ALPHA / share, (counts.gain, interval))
        return relation_of((first, second), gain, cost=cost, protocol=of_run)

    order = (Outcome.STAY, Outcome.INSUFFICIENT_EVIDENCE, Outcome.FINE_TUNE)
    ranks = []
    for row in generator.permutation(np.flatnonzero(~right[:, 2]))[: n // 10]:
        ranks.append(order.index(decide(entries, relate, protocol=of_run).outcome))
        right[row, 2] = True
    return bool(np.any(np.diff(ranks) < 0))


def _chain(num_rows: int) -> Event:
    """Return the event that the champion after twelve runs is worse than the first one by more than
    the margin.

    Each run has new rows, and a candidate that costs 20% less than its champion and is truly half a
    point worse.
    """

    def event(generator: np.random.Generator) -> bool:
        champion = 0.75
        anchor = 0.75
        for _ in range(12):
            accuracies = (champion, champion - STEP_OF_CHAIN, anchor)
            right = right_answers(generator, num_rows, accuracies=accuracies)
            models = compared(
                {INCUMBENT: answers(right[:, 0]), CANDIDATE: answers(right[:, 1])},
                protocol=protocol(num_rows, value_of_point=0.01),
                costs={INCUMBENT: 1.0, CANDIDATE: 0.8},
                anchor=None if champion == anchor else Anchor(answers(right[:, 2]).clean),
            )
            if decision(models).selected == CANDIDATE:
                champion -= STEP_OF_CHAIN
                anchor = champion if models.relate(CANDIDATE, INCUMBENT, 1).is_better else anchor
        return champion < 0.75 - MARGIN - STEP_OF_CHAIN / 2

    return event


def _chosen_over_failing(generator: np.random.Generator) -> bool:
    """Return True for FINE_TUNE; an endpoint is better, but loses 10 points in a group of 600
    rows."""
    n = 3_000
    is_in_group = np.arange(n) < 600
    accuracies = np.stack(
        [np.full(n, 0.74), np.full(n, 0.80), np.where(is_in_group, 0.64, 0.8525)], axis=1
    )
    right = right_answers(generator, n, accuracies=accuracies).T
    groups = {"group": tuple(np.where(is_in_group, "small", "large").tolist())}
    roles = (INCUMBENT, CANDIDATE, "endpoint_zero_shot")
    models = {
        role: answers(column, groups=groups) for role, column in zip(roles, right, strict=True)
    }
    gates = NO_GATES.model_copy(update={"groups": SubgroupGateConfig()})
    return (
        decision(compared(models, protocol=protocol(n, gates=gates))).outcome is Outcome.FINE_TUNE
    )


def _worse_cascade(generator: np.random.Generator) -> bool:
    """Return True for HYBRID; the cascade is cheaper, but worse than incumbent and candidate by the
    margin.

    Its first part is worse by two points on the half that it answers, and by 20 points on the other
    half.
    """
    n = 10_000
    confidences = generator.uniform(0, 1, n)
    accuracies = np.full((n, 3), 0.75)
    accuracies[:, 2] = np.where(confidences >= 0.5, 0.75 - 2 * MARGIN, 0.55)
    right = right_answers(generator, n, accuracies=accuracies).T
    roles = (INCUMBENT, CANDIDATE, "bag_of_words")
    models = compared(
        {
            role: answers(column, confidences=confidences)
            for role, column in zip(roles, right, strict=True)
        },
        protocol=protocol(n, value_of_point=0.01),
        costs={INCUMBENT: 2.0, CANDIDATE: 2.0, "bag_of_words": 0.2},
        hybrid=FrozenHybrid(CASCADE, "bag_of_words", CANDIDATE, 0.75, 0.5),
    )
    return decision(models).outcome is Outcome.HYBRID


def _accepts_losses(num: int, *, rows_of_document: int = 1, small_gain: float = 0.0) -> Event:
    """Return the event FINE_TUNE for a candidate with rare losses in token F1.

    Without small gains, the candidate is cheaper and its mean loss is the margin; with them, its
    mean gain is 0.
    """

    def event(generator: np.random.Generator) -> bool:
        lost = generator.random(num) < (small_gain or MARGIN) / RARE_LOSS
        others = np.full(num, small_gain) if small_gain else generator.choice([-0.001, 0.001], num)
        differences = np.repeat(others - RARE_LOSS * lost, rows_of_document)
        n = len(differences)
        documents = None
        if rows_of_document > 1:
            documents = tuple(map(str, np.arange(n) // rows_of_document))
        ours, theirs = (
            answers(
                np.zeros(n, np.bool_), clusters=documents, measures={"token_f1": part.clip(min=0)}
            )
            for part in (differences, -differences)
        )
        models = compared(
            {INCUMBENT: theirs, CANDIDATE: ours},
            protocol=protocol(n, metric="token_f1", value_of_point=None if small_gain else 0.01),
            costs=None if small_gain else {INCUMBENT: 2.0, CANDIDATE: 1.0},
        )
        return decision(models).outcome is Outcome.FINE_TUNE

    return event


def _error(rate: float, num: int) -> float:
    """Return the Monte Carlo standard error of a rate."""
    return float(np.sqrt(rate * (1 - rate) / num))


FINE_TUNE = Outcome.FINE_TUNE
DEAR_HYBRID = Truth(
    (0.75,), 0.75, costs=(1, 132), value_of_point=1_000, has_hybrid=True
)  # 67 times the incumbent's
DEAR_ENDPOINT = Truth((0.75,), 0.75, 10_000, costs=(100, 1), value_of_point=1)
CHEAPER = Truth((0.75,), 0.75 - MARGIN, 10_000, costs=(2, 1), value_of_point=0.01)
EQUAL = Truth((0.75,) * 4, 0.75, has_hybrid=True)
OTHERS_BELOW = Truth((0.75, 0.65, 0.65), 0.75)
SELECTED = Truth((0.77, 0.75, 0.75, 0.75, 0.70), 0.77, num_validation=200)
BETTER_BASELINE = Truth((0.78, 0.75, 0.75, 0.75), 0.775, num_validation=200)
MENDED = {
    "FINE_TUNE: champion .74, baseline .77, candidate .77": Case(
        _ends_in(Truth((0.74, 0.77), 0.77), FINE_TUNE), "<= 0.05", 0.97
    ),
    "FINE_TUNE: baselines .77 .75 .75 .75 .70, candidate .77": Case(
        _ends_in(SELECTED, FINE_TUNE), "<= 0.08", 0.29
    ),
    "FINE_TUNE: baselines .78 .75 .75 .75, candidate .775": Case(
        _ends_in(BETTER_BASELINE, FINE_TUNE), "<= 0.025", 0.18
    ),
    "HYBRID: equal at 67 times the cost, 3,000 rows": Case(
        _ends_in(DEAR_HYBRID, Outcome.HYBRID), "<= 0.025", 0.33
    ),
    "HYBRID: the same, 10,000 rows": Case(
        _ends_in(replace(DEAR_HYBRID, num_rows=10_000), Outcome.HYBRID), "<= 0.025", 0.84, 200
    ),
    "a better candidate moves away from FINE_TUNE": Case(_moves_away, "<= 0", num_runs=200),
    "a loss beyond the margin after 12 runs of 3,000 rows": Case(
        _chain(3_000), "<= 0.05", 0.62, 200
    ),  # 0.62 to 0.88
    "a loss beyond the margin after 12 runs of 10,000 rows": Case(
        _chain(10_000), "<= 0.05", num_runs=100
    ),
    "STAY: equal at 1% of an endpoint's cost, 10,000 rows": Case(
        _ends_in(DEAR_ENDPOINT, Outcome.STAY), "<= 0", 0.52, 200
    ),
    "STAY: the same, a point is worth ten times the saving": Case(
        _ends_in(replace(DEAR_ENDPOINT, value_of_point=1_000), Outcome.STAY),
        "<= 0.05",
        num_runs=200,
    ),
    "FINE_TUNE: champion .74, failing endpoint .81, candidate .80": Case(
        _chosen_over_failing, ">= 0.95", 0.03, 500
    ),
}
DOMINATES = {
    "FINE_TUNE or HYBRID: incumbent, three others, candidate, hybrid are equal": Case(
        _ends_in(EQUAL, FINE_TUNE, Outcome.HYBRID), "<= 0.025"
    ),
    "another model is selected: the same": Case(_replaces(EQUAL), "<= 0.06", num_runs=2_000),
    **{
        f"FINE_TUNE: candidate equal to the champion, others far below, {n:,} rows": Case(
            _ends_in(replace(OTHERS_BELOW, num_rows=n), FINE_TUNE), "<= 0.035"
        )
        for n in (100, 200, 300, 3_000)
    },
    "FINE_TUNE: champion .75, candidate equal to another model, .77": Case(
        _ends_in(Truth((0.75, 0.77), 0.77), FINE_TUNE), "<= 0.035"
    ),
    "FINE_TUNE: at half the cost, worse by the margin, 10,000 rows": Case(
        _ends_in(CHEAPER, FINE_TUNE), "<= 0.05", num_runs=200
    ),
    "HYBRID: cheaper, worse by the margin, 10,000 rows": Case(
        _worse_cascade, "<= 0.05", num_runs=200
    ),
}
POWER = {
    "baselines .75 .74 .73 .70, 2,000 rows": (
        Truth((0.75, 0.74, 0.73, 0.70), 0.78, 2_000),
        ">= 0.86",
    ),
    "baselines .75 .74 .73 .70, 3,000 rows": (
        Truth((0.75, 0.74, 0.73, 0.70), 0.78, 3_000),
        ">= 0.96",
    ),
    "baselines .75 .75 .75, 2,000 rows": (Truth((0.75,) * 3, 0.78, 2_000), ">= 0.72"),
}
LOSSES = {
    f"{name}, {num:,} {units}": Case(event(num), "<= 0.05", num_runs=500)
    for name, units, event in (
        ("non-inferior: losses of the margin", "rows", _accepts_losses),
        (
            "non-inferior: losses of the margin",
            "documents of 5",
            partial(_accepts_losses, rows_of_document=5),
        ),
        (
            "proven better: small gains and rare losses",
            "rows",
            partial(_accepts_losses, small_gain=0.04),
        ),
    )
    for num in (200, 500, 1_000)
}

if __name__ == "__main__":
    main()
