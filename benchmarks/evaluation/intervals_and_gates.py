"""Measure the statistics of documents, calibration and groups: claimed and measured rates with the Monte Carlo error.

    python -m benchmarks.evaluation.intervals_and_gates [documents] [calibration] [groups] [suites]

Documents: coverage of the 95% interval of a gain over rows that share documents of even or uneven sizes. Calibration:
coverage of the interval of the debiased calibration error, and how often a calibrated and a miscalibrated model pass
the gate. Groups: how often the gate refuses a candidate that gains 3 points in every group, and how often it does not
refuse one that loses 10 points in one of 12 groups. Suites: how often the gate fails and passes for a candidate without
a loss, with a loss of the margin, and with a loss of 20 points on one suite; with scores between 0 and 1, how often a
suite passes whose loss is the margin, by rare losses of 90 points; and how often a candidate without a loss passes a
suite of pairs and of questions, as `bias` has them.
"""

import sys
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from benchmarks.rounds import Figures, finish, print_table
from tailorbird.config.evaluation import CalibrationGateConfig, SubgroupGateConfig
from tailorbird.config.suites import SuiteConfig
from tailorbird.evaluation.gates.base import State
from tailorbird.evaluation.gates.calibration import NUM_BINS, calibration_gate
from tailorbird.evaluation.gates.subgroups import Change, MeanChange, group_bounds
from tailorbird.evaluation.gates.suites import AnsweredSuite, suites_gate
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.bootstrap import macro_f1_effect
from tailorbird.evaluation.statistics.documents import Documents, cluster_robust_means, documents_of
from tailorbird.evaluation.statistics.paired import PairedCounts

FloatArray = NDArray[np.float64]

ALPHA, SEED = 0.05, 2026
SIZES = ("even", "lognormal", "pareto")
NUM_DOCUMENTS, CORRELATIONS = (10, 30, 100, 1000), (0.03, 0.3, 0.6)
NUM_EFFECTS, NUM_MACRO_F1, NUM_CALIBRATIONS, NUM_GATES = 4_000, 200, 400, 1_000
GAIN, DISCORDANCE = 0.02, 0.2
HARM, NUM_GROUPS = -0.10, 12
GROUP_SIZES = (30, 50, 80, 200, 500)
NUM_SUITES, SUITE_ROWS, SUITE_HARM = (1, 4, 10), (100, 400), 0.20
RARE_LOSS, RARE_LOSS_SUITES = 0.9, ((5, 0.25), (20, 0.05), (50, 0.05), (50, 0.2), (150, 0.05))
"""Loss on a rare row; rows and margin of the suites that have such rows."""
NUM_PAIR_SUITES, NUM_PAIRS, NUM_QUESTIONS, CHANGED_ANSWERS = 200, 80, 20, (0.0, 0.05, 0.15)
"""Suites like `bias`: pairs with scores from 0.8 to 1, and questions, on shares of which one model alone is right."""
BOUNDS = {
    "lowest_coverage_of_documents": ">= 0.92",
    "mean_coverage_of_documents": ">= 0.93",
    "lowest_coverage_of_macro_f1_by_documents": ">= 0.90",
    "lowest_coverage_of_ece": ">= 0.93",
    "lowest_coverage_of_ece_difference": ">= 0.93",
    "lowest_coverage_of_ece_difference_to_0": ">= 0.92",
    "groups_false_refusals": "<= 0.06",
    "harmful_groups_that_pass": "<= 0.05",
    "suites_without_loss_that_fail": "<= 0.05",
    "suites_with_the_margin_as_loss_that_fail": "<= 0.05",
    "suites_with_the_margin_as_loss_that_pass": "<= 0.05",
    "suites_with_rare_losses_that_pass": "<= 0.06",
}


def main() -> None:
    """Prints a table per part, then one line of JSON."""
    parts: dict[str, Callable[[], Figures]] = {
        "documents": documents,
        "calibration": calibration,
        "groups": groups,
        "suites": suites,
    }
    chosen = sys.argv[1:] or list(parts)
    figures = {name: value for part in chosen for name, value in parts[part]().items()}
    finish("intervals_and_gates", figures, bounds={name: BOUNDS[name] for name in BOUNDS if name in figures})


def documents() -> Figures:
    """Coverage of the interval of a mean and of macro-F1 over documents."""
    rows: dict[str, Figures] = {}
    for sizes in SIZES:
        for num in NUM_DOCUMENTS:
            for correlation in CORRELATIONS:
                rows[f"{sizes}, {num}, icc {correlation}"] = {
                    "continuous": _coverage(sizes, num=num, correlation=correlation, accuracy=False),
                    "accuracy": _coverage(sizes, num=num, correlation=correlation, accuracy=True),
                    "+-": _error(0.95, NUM_EFFECTS),
                }
    print_table("Coverage of the 95% interval over documents", rows)
    macro = {
        f"{sizes}, {num}": {"macro-F1": _macro_f1_coverage(sizes, num=num), "+-": _error(0.95, NUM_MACRO_F1)}
        for sizes in SIZES
        for num in (10, 50)
    }
    print_table("Coverage of the 95% interval of macro-F1 over documents, equal models", macro)
    coverage = [row[name] for row in rows.values() for name in ("continuous", "accuracy")]
    return {
        "lowest_coverage_of_documents": min(coverage),
        "mean_coverage_of_documents": float(np.mean(coverage)),
        "lowest_coverage_of_macro_f1_by_documents": min(row["macro-F1"] for row in macro.values()),
    }


def calibration() -> Figures:
    """Coverage of the interval of the debiased ECE and of its difference to the incumbent's."""
    settings = {
        "calibrated": (0.0, 0.0, None),
        "3 points overconfident": (0.03, 0.0, None),
        "8 points overconfident": (0.08, 0.05, None),
        "S-shaped, 5 points": (0.05, 0.05, None),
        "8 points, 50 documents": (0.08, 0.05, 50),
    }
    rows = {
        f"{name}, {n:,} rows": _calibration_rates(n, excess=(ours, theirs), s_shaped="S" in name, num_documents=num)
        for name, (ours, theirs, num) in settings.items()
        for n in (500, 1_000)
    }
    print_table("The calibration gate: debiased ECE at most 0.05, at most 0.02 above the incumbent's", rows)
    # The claim is about true errors above the boundary 0, at which debiasing is not possible.
    inside = [row for row in rows.values() if row["true ECE"] > 0.01]
    both = [row for row in inside if row["incumbent's"] > 0.01]
    return {
        "lowest_coverage_of_ece": min(row["coverage"] for row in inside),
        "lowest_coverage_of_ece_difference": min(row["of difference"] for row in both),
        "lowest_coverage_of_ece_difference_to_0": min(row["of difference"] for row in inside),
        "calibrated_passes_at_1000_rows": rows["calibrated, 1,000 rows"]["ECE passes"],
    }


def groups() -> Figures:
    """Error rates of the groups gate on sound and on harmful candidates."""
    many = {f"{NUM_GROUPS} groups of {n}": [n] * NUM_GROUPS for n in GROUP_SIZES}
    sizes = {"2 groups of 100": [100] * 2, "4 groups of 250": [250] * 4, **many}
    sizes["12 groups of 30 to 1,000"] = np.geomspace(30, 1_000, NUM_GROUPS).astype(int).tolist()
    false = {}
    for name, group_sizes in sizes.items():
        for by_documents in (False, True):
            failed, _, _ = _gate_rates([0.03] * len(group_sizes), sizes=group_sizes, by_documents=by_documents)
            label = f"{name}{', documents of 5 rows' if by_documents else ''}"
            false[label] = {"refused": failed, "+-": _error(failed, NUM_GATES)}
    print_table("The groups gate refuses a gain of 3 points in every group", false)
    harmful = {}
    for n in GROUP_SIZES:
        others = np.geomspace(100, 1_000, NUM_GROUPS - 1).astype(int).tolist()
        changes = [HARM] + [0.03] * (NUM_GROUPS - 1)
        _, failed, passed = _gate_rates(changes, sizes=[n, *others], by_documents=False)
        harmful[f"{n} rows"] = {
            "refused": failed,
            "named as not protected": 1 - failed - passed,
            "passes": passed,
            "+-": _error(failed, NUM_GATES),
        }
    print_table("A group that loses 10 points, among 11 that gain 3", harmful)
    return {
        "groups_false_refusals": max(row["refused"] for row in false.values()),
        "harmful_groups_that_pass": max(row["passes"] for row in harmful.values()),
        "harmful_groups_refused_at_200_rows": harmful["200 rows"]["refused"],
    }


def suites() -> Figures:
    """Error rates of the suites gate, with the default margin on every suite."""
    margin = SuiteConfig(uri="builtin://general").max_loss
    rows: dict[str, Figures] = {}
    for num in NUM_SUITES:
        for n in SUITE_ROWS:
            for loss in (0.0, margin):
                rows[f"{num} x {n} rows, loss {loss:g}"] = _suite_rates([loss] * num, n=n)
            rows[f"{num} x {n} rows, loss {SUITE_HARM:g} on one"] = _suite_rates([SUITE_HARM] + [0.0] * (num - 1), n=n)
    print_table("The suites gate with a margin of 5 points", rows)
    rare = {f"{n} rows, margin {margin:g}": _rare_loss_rates(n, max_loss=margin) for n, margin in RARE_LOSS_SUITES}
    print_table("Nearly equal scores with rare losses", rare)
    paired = {f"{share:.0%} of the questions differ": _pair_rates(share) for share in CHANGED_ANSWERS}
    print_table(f"{NUM_PAIRS} pairs and {NUM_QUESTIONS} questions, no loss", paired)

    def worst(column: str, *, loss: str) -> float:
        return max(row[column] for name, row in rows.items() if name.endswith(loss))

    return {
        "suites_without_loss_that_fail": worst("fails", loss="loss 0"),
        "suites_with_the_margin_as_loss_that_fail": worst("fails", loss=f"loss {margin:g}"),
        "suites_with_the_margin_as_loss_that_pass": worst("passes", loss=f"loss {margin:g}"),
        "suites_with_rare_losses_that_pass": max(row["passes"] for row in rare.values()),
        "equal_models_that_pass_pairs_and_questions": min(row["passes"] for row in paired.values()),
        "harmful_suites_that_fail_at_100_rows": rows[f"4 x 100 rows, loss {SUITE_HARM:g} on one"]["fails"],
    }


def _suite_rates(losses: list[float], *, n: int) -> Figures:
    """Return how often the gate fails and passes. One model alone is right on 15% of the rows, or on more."""
    generator, results = np.random.default_rng((SEED, len(losses), n)), []
    for _ in range(NUM_GATES):
        answered = {}
        for number, loss in enumerate(losses):
            discordance = max(0.15, loss)
            won, lost = (discordance - loss) / 2, (discordance + loss) / 2
            shares = (0.7 * (1 - discordance), won, lost, 0.3 * (1 - discordance))
            cells = generator.choice(4, n, p=shares)  # both right, only the candidate, only the incumbent, neither
            ours, theirs = (_answers((cells == 0) | (cells == alone)) for alone in (1, 2))
            answered[str(number)] = AnsweredSuite(SuiteConfig(uri="builtin://general"), ours, theirs)
        results.append(suites_gate(answered, alpha=ALPHA).state)
    failed = results.count(State.FAILS) / NUM_GATES
    return {"fails": failed, "passes": results.count(State.PASSES) / NUM_GATES, "+-": _error(failed, NUM_GATES)}


def _rare_loss_rates(n: int, *, max_loss: float) -> Figures:
    """Return how often a suite passes whose loss is `max_loss`: 0.9 on rare rows, and about 0 on the other rows."""
    generator, passes = np.random.default_rng((SEED, n)), 0
    config = SuiteConfig(uri="builtin://general", max_loss=max_loss)
    for _ in range(NUM_GATES):
        theirs = generator.uniform(0.95, 0.99, n)
        ours = theirs + generator.normal(0, 0.002, n) - RARE_LOSS * (generator.random(n) < max_loss / RARE_LOSS)
        answered = AnsweredSuite(config, _answers(ours), _answers(theirs))
        passes += suites_gate({"suite": answered}, alpha=ALPHA).state is State.PASSES
    return {"passes": passes / NUM_GATES, "+-": _error(passes / NUM_GATES, NUM_GATES)}


def _pair_rates(share: float) -> Figures:
    """Return how often an equal model passes. Scores of pairs vary by 5 points; one model is right on `share` alone."""
    generator, passes = np.random.default_rng(SEED), 0
    accuracy = (1 + np.sqrt(1 - 2 * share)) / 2
    for _ in range(NUM_PAIR_SUITES):
        means, tables = generator.uniform(0.8, 1, NUM_PAIRS), []
        for _ in range(2):
            pairs = np.clip(means + generator.normal(0, 0.05, NUM_PAIRS), 0, 1)
            tables.append(_answers(np.append(pairs, generator.random(NUM_QUESTIONS) < accuracy)))
        answered = AnsweredSuite(SuiteConfig(uri="builtin://bias"), *tables)
        passes += suites_gate({"suite": answered}, alpha=ALPHA).state is State.PASSES
    rate = passes / NUM_PAIR_SUITES
    return {"passes": rate, "+-": _error(rate, NUM_PAIR_SUITES)}


def _answers(values: NDArray[np.bool_] | FloatArray) -> Predictions:
    n, scores = len(values), values.astype(np.float64)
    return Predictions("simulated", ("r",) * n, ("a",) * n, ("a",) * n, scores, scores, scores)


def _error(rate: float, num: int) -> float:
    """Return the Monte Carlo standard error of a rate."""
    return float(np.sqrt(rate * (1 - rate) / num))


def _draw_documents(generator: np.random.Generator, sizes: str, *, num: int) -> Documents:
    """Return documents of 20 rows each, or of sizes from a lognormal or a Pareto distribution."""
    rows = np.full(num, 20)
    if sizes == "lognormal":
        rows = np.maximum(1, generator.lognormal(2.0, 1.2, num).astype(np.int64))
    elif sizes == "pareto":
        rows = np.minimum(1 + (5 * generator.pareto(1.1, num)).astype(np.int64), 1_000)
    return Documents(np.repeat(np.arange(num), rows), rows.astype(np.float64))


def _latent(generator: np.random.Generator, drawn: Documents, *, correlation: float) -> FloatArray:
    """Return standard normal values [N] with this correlation within documents."""
    shared = generator.standard_normal(drawn.num)[drawn.codes]
    own = generator.standard_normal(len(drawn.codes))
    return np.asarray(np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own)


def _coverage(sizes: str, *, num: int, correlation: float, accuracy: bool) -> float:
    """Return the coverage over tests whose documents differ in size from test to test, from sums by document."""
    generator = np.random.default_rng((SEED, num, SIZES.index(sizes)))
    rows = np.stack([_draw_documents(generator, sizes, num=num).sizes for _ in range(NUM_EFFECTS)])
    shared = np.sqrt(correlation) * generator.standard_normal(rows.shape)
    if accuracy:
        won, lost = (DISCORDANCE + GAIN) / 2, (DISCORDANCE - GAIN) / 2
        own = np.sqrt(1 - correlation)
        share_won = norm.cdf((norm.ppf(won) - shared) / own)
        share_lost = norm.sf((norm.isf(lost) - shared) / own)
        wins = generator.binomial(rows.astype(np.int64), share_won)
        losses = generator.binomial(rows.astype(np.int64) - wins, np.clip(share_lost / (1 - share_won), 0, 1))
        sums = (wins - losses).astype(np.float64)
    else:
        own_sums = np.sqrt((1 - correlation) * rows) * generator.standard_normal(rows.shape)
        sums = GAIN * rows + 0.3 * (shared * rows + own_sums)
    estimates = cluster_robust_means(sums, sizes=rows)
    half = t.ppf(1 - ALPHA / 2, estimates.degrees_of_freedom) * estimates.errors
    return float(np.mean(np.abs(estimates.means - GAIN) <= half))


def _macro_f1_coverage(sizes: str, *, num: int) -> float:
    generator, covered = np.random.default_rng((SEED, num)), 0
    for _ in range(NUM_MACRO_F1):
        drawn = _draw_documents(generator, sizes, num=num)
        n = len(drawn.codes)
        truth = generator.choice(4, n, p=(0.45, 0.3, 0.15, 0.1))
        tables = [
            _table(
                np.char.add("class ", truth.astype(str)),
                right=_latent(generator, drawn, correlation=0.3) < norm.ppf(0.75),
                confidence=np.full(n, 0.5),
                clusters=drawn.codes,
            )
            for _ in range(2)
        ]
        low, high = macro_f1_effect(tables[0], other=tables[1], alpha=ALPHA).interval
        covered += low <= 0 <= high
    return covered / NUM_MACRO_F1


def _calibration_rates(
    n: int, *, excess: tuple[float, float], s_shaped: bool, num_documents: int | None
) -> dict[str, float]:
    """Simulate models whose confidence exceeds the probability of a right answer by a function of the confidence."""

    def probabilities(confidence: FloatArray, of: float) -> FloatArray:
        gap = of * np.sin((confidence - 0.3) / 0.7 * 2 * np.pi) if s_shaped else of
        return np.clip(confidence - gap, 0.0, 1.0)

    def confidences(generator: np.random.Generator, size: int) -> FloatArray:
        return np.asarray(0.3 + 0.7 * generator.beta(4, 1.5, size))

    many = confidences(np.random.default_rng(0), 400_000)
    bins = np.minimum((many * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    true_ours, true_theirs = (
        float(np.abs(np.bincount(bins, many - probabilities(many, of))).sum()) / len(many) for of in excess
    )
    generator, results = np.random.default_rng((SEED, n)), []
    for _ in range(NUM_CALIBRATIONS):
        drawn = documents_of(None, num_rows=n)
        if num_documents is not None:
            drawn = Documents(np.arange(n) % num_documents, np.full(num_documents, n / num_documents))
        shared = _latent(generator, drawn, correlation=0.3 if num_documents else 0.0)
        tables = []
        for of in excess:
            confidence = confidences(generator, n)
            luck = np.sqrt(0.7) * shared + np.sqrt(0.3) * generator.standard_normal(n)
            right = norm.cdf(luck) < probabilities(confidence, of)
            clusters = None if num_documents is None else drawn.codes
            tables.append(_table(np.full(n, "a"), right=right, confidence=confidence, clusters=clusters))
        limits = CalibrationGateConfig()
        ece, increase = calibration_gate(tables[0], incumbent=tables[1], limits=limits, alpha=ALPHA).bounds
        difference = true_ours - true_theirs
        results.append(
            (
                ece.estimate - true_ours,
                ece.interval[0] <= true_ours <= ece.interval[1],
                increase.interval[0] <= difference <= increase.interval[1],
                ece.state is State.PASSES,
                ece.state is State.FAILS,
                increase.state is State.PASSES,
            )
        )
    names = ("bias", "coverage", "of difference", "ECE passes", "ECE fails", "increase passes")
    means = {name: float(value) for name, value in zip(names, np.mean(results, axis=0), strict=True)}
    return {"true ECE": true_ours, "incumbent's": true_theirs, **means, "+-": _error(0.95, NUM_CALIBRATIONS)}


def _gate_rates(changes: list[float], *, sizes: list[int], by_documents: bool) -> tuple[float, float, float]:
    """Return how often any group fails, and how often the first group fails and passes."""
    generator, results = np.random.default_rng((SEED, len(sizes), sizes[0])), []
    for _ in range(NUM_GATES):
        tables: Mapping[str, Change] = {
            str(number): _change(generator, change, n=n, by_documents=by_documents)
            for number, (change, n) in enumerate(zip(changes, sizes, strict=True))
        }
        states = [bound.state for bound in group_bounds(tables, limits=SubgroupGateConfig(), alpha=ALPHA)]
        results.append((State.FAILS in states, states[0] is State.FAILS, states[0] is State.PASSES))
    failed, first_failed, first_passed = np.mean(results, axis=0).tolist()
    return failed, first_failed, first_passed


def _change(generator: np.random.Generator, change: float, *, n: int, by_documents: bool) -> Change:
    discordance = max(0.15, abs(change))
    won, lost = (discordance + change) / 2, (discordance - change) / 2
    if not by_documents:
        return PairedCounts(*generator.multinomial(n, (0.7 * (1 - discordance), won, lost, 0.3 * (1 - discordance))))
    drawn = Documents(np.arange(n) // 5, np.bincount(np.arange(n) // 5).astype(np.float64))
    values = _latent(generator, drawn, correlation=0.3)
    differences = (values < norm.ppf(won)).astype(np.float64) - (values > norm.isf(lost))
    return MeanChange(differences, drawn)


def _table(
    labels: NDArray[np.str_], *, right: NDArray[np.bool_], confidence: FloatArray, clusters: NDArray[np.int64] | None
) -> Predictions:
    n = len(labels)
    others = np.roll(np.unique(labels), 1) if len(np.unique(labels)) > 1 else np.array(["other"])
    wrong = others[np.searchsorted(np.unique(labels), labels)]
    outputs = tuple(np.where(right, labels, wrong).tolist())
    shared = None if clusters is None else tuple(map(str, clusters.tolist()))
    ids = tuple(map(str, range(n)))
    scores = right.astype(np.float64)
    return Predictions(
        "simulated", ids, tuple(labels.tolist()), outputs, scores, confidence, confidence, {}, {}, shared
    )


if __name__ == "__main__":
    main()
