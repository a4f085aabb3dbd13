"""Error rates of the verdict, by simulation: claimed and measured rates with the Monte Carlo error.

    python -m benchmarks.evaluation.verdict_error_rates [equal] [protocol] [cascade] [scores] [power]

- equal: two equally good models at many sizes, by the candidate's comparison alone; coverage of the interval.
- protocol: the whole protocol with a champion in place. Of 20 candidates, the best on 1,500 validation rows is tested
  in a family with two further contenders, or with a hybrid that is frozen on validation. Rule 4 errs if all models are
  equal. Rule 7 errs if the cheaper candidate is worse by the margin.
- cascade: the same with a cascade of a bag of words, the champion or candidate, and an endpoint. Rule 3 errs if the
  frozen cascade is truly worse than the best of its parts and the incumbent by the margin or more.
- scores: runs of a chat metric without further contenders. Rare answers lose 90 points, or all rows of rare documents.
  Rule 7 errs if the cheaper candidate thereby loses the margin and is else nearly equal, rule 4 if small gains of all
  other answers make up for the losses. With normal differences, the power of rule 4 and of Student's t test alone.
- power: the claimed probability of FINE_TUNE, computed from the rows of single runs, and its measured frequency.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, ttest_1samp

from benchmarks.rounds import Figures, finish, print_table
from tailorbird.config.evaluation import HybridConfig, SubgroupGateConfig
from tailorbird.evaluation.gates.cost import ServingUsage
from tailorbird.evaluation.hybrid import FrozenHybrid, fit_hybrid
from tailorbird.evaluation.predictions import ModelPredictions, Predictions
from tailorbird.evaluation.statistics.paired import compare, midp_values, newcombe_limits
from tailorbird.evaluation.statistics.power import Scenario, draw_tables, rule_holds
from tailorbird.evaluation.verdict.assess import assess
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.evaluation.verdict.power import power_of
from tailorbird.evaluation.verdict.protocol import NO_GATES, TestProtocol
from tailorbird.registry.routing import Routing

ALPHA, MINIMUM_GAIN, ACCURACY = 0.05, 0.01, 0.75
SIZES, NUM_DRAWS = (100, 300, 1000, 3000), 40_000
TRUTHS = ((0.05, 0.9), (0.10, 0.75), (0.20, 0.66))  # discordance, incumbent's accuracy
NUM_CANDIDATES, NUM_VALIDATION, NUM_TEST, NUM_PROTOCOLS = 20, 1500, 1000, 400
NUM_RUNS, NUM_CLAIMS, NUM_GROUPS = 200, 30, 3
CLASS_SHARES, NUM_MACRO_F1 = (0.45, 0.25, 0.15, 0.10, 0.05), 200
RARE_LOSS, CHAT_SIZES = 0.9, (200, 500, 1000)
NORMAL = ((160, 0.06), (300, 0.05), (1000, 0.03))  # rows, and the mean of differences with a standard deviation of 0.25
CHEAP, DEAR = ServingUsage((1.0, 1.01, 0.99, 1.0, 1.0)), ServingUsage((2.0, 2.02, 1.98, 2.0, 2.0))
DEAREST = ServingUsage((9.0, 9.02, 8.98, 9.0, 9.0))
BOUNDS = {
    "fine_tune_rate_of_equal_models": "<= 0.03",  # one-sided, so alpha / 2
    "type_i_error_of_midp": "<= 0.055",
    "lowest_interval_coverage": ">= 0.94",
    "fine_tune_rate_of_equal_models_by_macro_f1": "<= 0.05",
    "rule_4_of_the_best_of_20_equal_candidates": "<= 0.05",
    "rule_3_of_a_cascade_worse_by_the_margin": "<= 0.05",
    "rule_4_with_a_cascade": "<= 0.05",
    "rule_7_of_a_candidate_worse_by_the_margin": "<= 0.05",
    "rule_7_with_rare_losses_of_the_margin": "<= 0.05",
    "rule_7_with_rare_losses_of_the_margin_by_documents": "<= 0.05",
    "rule_4_with_rare_losses_and_small_gains": "<= 0.05",
    "power_of_rule_4_lost_to_a_t_test": "<= 0.03",
    "largest_difference_of_power_claimed_and_measured": "<= 0.1",
}


def main() -> None:
    """Print a table per part, then one line of JSON."""
    parts: dict[str, Callable[[], Figures]] = {
        "equal": equal, "protocol": whole_protocol, "cascade": cascade, "scores": scores, "power": power
    }  # fmt: skip
    figures = {name: value for part in sys.argv[1:] or parts for name, value in parts[part]().items()}
    finish("verdict_error_rates", figures, bounds={name: BOUNDS[name] for name in BOUNDS if name in figures})


def equal() -> Figures:
    """Rates of two equally good models, by accuracy and by macro-F1."""
    rows: dict[str, Figures] = {}
    for n in SIZES:
        for discordance, accuracy in TRUTHS:
            tables = draw_tables(n, scenario=Scenario(0.0, discordance, accuracy), num_draws=NUM_DRAWS, seed=n)
            low, high = newcombe_limits(tables, alpha=ALPHA)
            rate = float(np.mean(rule_holds(tables, minimum_gain=MINIMUM_GAIN, alpha=ALPHA)))
            rows[f"{n:,} rows, discordance {discordance:g}"] = {
                "proven": rate,
                "mid-p < alpha": float(np.mean(midp_values(tables[:, 1], only_other=tables[:, 2]) < ALPHA)),
                "coverage": float(np.mean((low <= 0) & (high >= 0))),
                "+-": _error(rate, NUM_DRAWS),
            }
    print_table("Two equally good models", rows)
    by_macro_f1 = {f"{n:,} rows": _equal_by_macro_f1(n) for n in SIZES}
    print_table("Two equally good models of five classes, by macro-F1", by_macro_f1)
    return {
        "fine_tune_rate_of_equal_models": max(row["proven"] for row in rows.values()),
        "type_i_error_of_midp": max(row["mid-p < alpha"] for row in rows.values()),
        "lowest_interval_coverage": min(row["coverage"] for row in rows.values()),
        "mean_interval_coverage": float(np.mean([row["coverage"] for row in rows.values()])),
        "fine_tune_rate_of_equal_models_by_macro_f1": max(row["proven"] for row in by_macro_f1.values()),
        "lowest_interval_coverage_of_macro_f1": min(row["coverage"] for row in by_macro_f1.values()),
    }


@dataclass(frozen=True)
class Truth:
    """True differences to the champion's accuracy."""

    candidates: float = 0.0
    cheaper: bool = False


def whole_protocol() -> Figures:
    """False decisions by rules 4 and 7 through the whole protocol."""
    truths = {
        "rule_4_of_the_best_of_20_equal_candidates": (4, Truth()),
        "rule_7_of_a_candidate_worse_by_the_margin": (7, Truth(candidates=-MINIMUM_GAIN, cheaper=True)),
    }
    rows: dict[str, Figures] = {}
    for name, (rule, truth) in truths.items():
        generator = np.random.default_rng((rule, 0))
        rules = [_one_protocol(generator, truth) for _ in range(NUM_PROTOCOLS)]
        rate = float(np.mean([decided == rule for decided in rules]))
        others = {f"rule {other}": float(np.mean([decided == other for decided in rules])) for other in (3, 4, 7, 8, 9)}
        rows[name] = {"claimed at most": ALPHA, "measured": rate, "+-": _error(rate, NUM_PROTOCOLS), **others}
    print_table(f"Whole protocol, {NUM_TEST:,} test rows, {NUM_PROTOCOLS} protocols", rows)
    return {name: row["measured"] for name, row in rows.items()}


@dataclass(frozen=True)
class CascadeTruth:
    """What the bag of words loses to the champion, on the confident half of the rows and on the others."""

    sure: float
    unsure: float
    is_fitted: bool = True
    """False for a cascade that is not fitted: its bag of words answers the confident half."""


CASCADES = {
    "better by 8 points on confident rows": CascadeTruth(-0.08, 0.2),
    "equal on confident rows": CascadeTruth(0.0, 0.2),
    "worse by 1 point on confident rows": CascadeTruth(0.01, 0.2),
    "worse by 2 points on all rows": CascadeTruth(0.02, 0.02),
    "worse by 3 points on all rows": CascadeTruth(0.03, 0.03),
    "not fitted, worse by the margin": CascadeTruth(2 * MINIMUM_GAIN, 0.2, is_fitted=False),
}


def cascade() -> Figures:
    """False HYBRID: a frozen cascade is truly worse than the incumbent or a part by the margin, and rule 3 decides."""
    rows: dict[str, Figures] = {}
    for number, (name, truth) in enumerate(CASCADES.items()):
        generator = np.random.default_rng((3, number))
        runs = [_one_cascade(generator, truth) for _ in range(NUM_PROTOCOLS)]
        false = float(np.mean([run.rule == 3 and run.loss >= MINIMUM_GAIN for run in runs]))
        rows[name] = {
            "claimed at most": ALPHA,
            "measured": false,
            "+-": _error(false, NUM_PROTOCOLS),
            "frozen": float(np.mean([run.is_frozen for run in runs])),
            "frozen and worse": float(np.mean([run.loss >= MINIMUM_GAIN for run in runs])),
            "HYBRID": float(np.mean([run.rule == 3 for run in runs])),
            "rule 4": float(np.mean([run.rule == 4 for run in runs])),
        }
    print_table(f"Cascades, {NUM_TEST:,} test rows, {NUM_PROTOCOLS} protocols", rows)
    return {
        "rule_3_of_a_cascade_worse_by_the_margin": max(row["measured"] for row in rows.values()),
        "rule_4_with_a_cascade": max(row["rule 4"] for row in rows.values()),
    }


@dataclass(frozen=True)
class CascadeRun:
    """The rule that decides a simulated run, and its cascade's true loss to the best of its parts and the incumbent."""

    rule: int
    is_frozen: bool
    loss: float


UNFITTED = FrozenHybrid(Routing(by="cascade", threshold=0.5), "bag_of_words", "incumbent", "incumbent", 0.75, 0.5)


def _one_cascade(generator: np.random.Generator, truth: CascadeTruth) -> CascadeRun:
    """Return a simulated run with a champion, the best of 20 equal candidates, a bag of words and an endpoint."""
    gains = (0.0,) * (NUM_CANDIDATES + 1)  # champion and candidates
    tables = []
    for num_rows in (NUM_VALIDATION, NUM_TEST):
        right = _right(generator, num_rows, gains=(*gains, 0.0, 0.0))
        confidence = generator.uniform(0, 1, num_rows)
        loss, chance = np.where(confidence >= 0.5, truth.sure, truth.unsure), generator.uniform(0, 1, num_rows)
        gained, lost = chance < -loss / (1 - ACCURACY), chance < loss / ACCURACY
        right[:, -2] = np.where(right[:, 0], ~lost, gained)  # the champion, with the losses or gains of `truth`
        tables.append((right, confidence))
    best = int(tables[0][0][:, 1 : NUM_CANDIDATES + 1].mean(axis=0).argmax()) + 1
    columns = {"incumbent": (0, "probe"), "candidate": (best, "full"), "bag_of_words": (-2, "bag_of_words")}
    columns["endpoint_zero_shot"] = (-1, "endpoint_zero_shot")
    held_out, test = (
        {role: _predictions(kind, right[:, column], confidence=confidence) for role, (column, kind) in columns.items()}
        for right, confidence in tables
    )
    config = HybridConfig(by="cascade")
    hybrid = fit_hybrid(config, held_out, metric="accuracy") if truth.is_fitted else UNFITTED
    models = {role: ModelPredictions(table) for role, table in test.items()}
    further = ("bag_of_words", "endpoint_zero_shot")
    costs = {"incumbent": DEAR, "candidate": DEAR, "bag_of_words": CHEAP, "endpoint_zero_shot": DEAREST}
    inputs = VerdictInputs(
        models["incumbent"],
        models["candidate"],
        "simulated",
        contenders={role: models[role] for role in further},
        hybrid=hybrid,
        costs=costs,
    )
    rule = assess(inputs, protocol=_protocol(NUM_TEST, hybrid=config)).rule
    if hybrid is None:
        return CascadeRun(rule, is_frozen=False, loss=0.0)
    # All other models are equally accurate, so only answers of the bag of words lose.
    threshold = hybrid.routing.threshold or 0.0
    unsure, sure = max(0.5 - threshold, 0.0), min(1 - threshold, 0.5)
    true_loss = sure * truth.sure + unsure * truth.unsure if hybrid.first == "bag_of_words" else 0.0
    return CascadeRun(rule, is_frozen=True, loss=true_loss)


def scores() -> Figures:
    """False decisions by rules 4 and 7 with a chat metric if large losses are rare, and the power of rule 4."""
    generator = np.random.default_rng((4, 7))

    def lost(n: int, mean: float) -> NDArray[np.float64]:
        return np.asarray(RARE_LOSS * (generator.random(n) < mean / RARE_LOSS), dtype=np.float64)

    rows: dict[str, Figures] = {}
    for n in CHAT_SIZES:
        alike = [generator.choice([-0.001, 0.001], n) - lost(n, MINIMUM_GAIN) for _ in range(NUM_PROTOCOLS)]
        rows[f"{n} rows lose the margin"] = _chat_rates(7, alike)
        rows[f"{n} documents lose the margin"] = _chat_rates(7, alike, rows_of_document=2)
        rows[f"{n} rows, small gains"] = _chat_rates(4, [0.04 - lost(n, 0.04) for _ in range(NUM_PROTOCOLS)])
    for n, gain in NORMAL:
        normal = generator.normal(gain, 0.25, (NUM_PROTOCOLS, n)).clip(-1, 1)
        rows[f"{n} rows, normal, +{gain:g}"] = _chat_rates(4, list(normal))
    print_table(f"Runs of a chat metric, {NUM_PROTOCOLS} protocols", rows)

    def worst(case: str) -> float:
        return max(row["measured"] for name, row in rows.items() if name.endswith(case))

    return {
        "rule_7_with_rare_losses_of_the_margin": worst("rows lose the margin"),
        "rule_7_with_rare_losses_of_the_margin_by_documents": worst("documents lose the margin"),
        "rule_4_with_rare_losses_and_small_gains": worst("small gains"),
        "power_of_rule_4_lost_to_a_t_test": max(
            row["t interval"] - row["measured"] for name, row in rows.items() if "normal" in name
        ),
    }


def power() -> Figures:
    """The claimed and the measured probability of FINE_TUNE, with a groups gate."""
    rows: dict[str, Figures] = {}
    for n, gain, regulated in ((1000, 0.03, False), (3000, 0.03, False), (600, 0.05, True), (1000, 0.05, True)):
        protocol = _protocol(n, expected_gain=gain, groups=True, regulated=regulated)
        generator = np.random.default_rng((n, int(1000 * gain)))
        claims, measured = [], []
        for run in range(NUM_RUNS):
            right = _right(generator, n, gains=(0.0, gain))
            groups = tuple(str(number % NUM_GROUPS) for number in range(n))
            old, new = (
                _predictions(name, right[:, column], groups=groups) for column, name in enumerate(("old", "new"))
            )
            inputs = VerdictInputs(ModelPredictions(old), ModelPredictions(new), "simulated")
            assessment = assess(inputs, protocol=protocol)
            measured.append(assessment.rule in (4, 7))
            if run < NUM_CLAIMS:
                claims.append(power_of(inputs, assessment=assessment, protocol=protocol).fine_tune)
        rate, claimed = float(np.mean(measured)), float(np.mean(claims))
        rows[f"{n:,} rows, +{100 * gain:g} points{', regulated' if regulated else ''}"] = {
            "claimed": claimed,
            "measured": rate,
            "difference": abs(claimed - rate),
            "+-": float(np.hypot(_error(rate, NUM_RUNS), np.std(claims) / np.sqrt(NUM_CLAIMS))),
        }
    print_table(f"Power of FINE_TUNE with {NUM_GROUPS} groups", rows)
    return {"largest_difference_of_power_claimed_and_measured": max(row["difference"] for row in rows.values())}


def _one_protocol(generator: np.random.Generator, truth: Truth) -> int:
    """Return the rule that decides a simulated run with a champion, the best of 20 candidates, and two baselines."""
    gains = (0.0, *(truth.candidates,) * NUM_CANDIDATES, 0.0, 0.0)
    validation, test = (_right(generator, n, gains=gains) for n in (NUM_VALIDATION, NUM_TEST))
    best = int(validation[:, 1 : NUM_CANDIDATES + 1].mean(axis=0).argmax()) + 1
    columns = {"champion": 0, "candidate": best, "first": NUM_CANDIDATES + 1, "second": NUM_CANDIDATES + 2}
    models = {name: ModelPredictions(_predictions(name, test[:, column])) for name, column in columns.items()}
    roles = ("first", "second")
    candidate_cost = CHEAP if truth.cheaper else DEAR
    inputs = VerdictInputs(
        models["champion"],
        models["candidate"],
        "simulated",
        contenders={role: models[role] for role in roles},
        costs={"incumbent": DEAR, "candidate": candidate_cost, **dict.fromkeys(roles, DEAR)},
    )
    return assess(inputs, protocol=_protocol(NUM_TEST)).rule


def _chat_rates(rule: int, runs: list[NDArray[np.float64]], *, rows_of_document: int = 1) -> Figures:
    """Return how often the rule decides runs with these differences [N] in token F1, by row or by document.

    Also return how often it would with Student's t interval of the differences.
    """
    decided, by_t = [], []
    for differences in runs:
        values = np.repeat(differences, rows_of_document)
        documents = tuple(str(row // rows_of_document) for row in range(len(values))) if rows_of_document > 1 else None
        old, new = (
            replace(_predictions(name, values > 1), clusters=documents, measures={"token_f1": part.clip(min=0)})
            for name, part in (("old", -values), ("new", values))
        )
        costs = {"incumbent": DEAR, "candidate": CHEAP if rule == 7 else DEAR}
        inputs = VerdictInputs(ModelPredictions(old), ModelPredictions(new), "simulated", costs=costs)
        decided.append(assess(inputs, protocol=_protocol(len(values), metric="token_f1")).rule == rule)
        low, gain = ttest_1samp(differences, 0.0).confidence_interval(1 - ALPHA).low, differences.mean()
        by_t.append(low > -MINIMUM_GAIN if rule == 7 else low > 0 and gain >= MINIMUM_GAIN)
    measured = float(np.mean(decided))
    return {"measured": measured, "+-": _error(measured, len(runs)), "t interval": float(np.mean(by_t))}


def _protocol(
    num_rows: int,
    *,
    expected_gain: float = 2 * MINIMUM_GAIN,
    groups: bool = False,
    regulated: bool = False,
    hybrid: HybridConfig | None = None,
    metric: str = "accuracy",
) -> TestProtocol:
    gates = NO_GATES.model_copy(update={"groups": SubgroupGateConfig()}) if groups else NO_GATES
    return TestProtocol(
        metric=metric,
        minimum_gain=MINIMUM_GAIN,
        non_inferiority_margin=MINIMUM_GAIN,
        expected_gain=expected_gain,
        alpha=ALPHA,
        test_sha256="simulated",
        num_test_rows=num_rows,
        gates=gates,
        regulated=regulated,
        hybrid=hybrid,
    )


def _right(generator: np.random.Generator, num_rows: int, *, gains: tuple[float, ...]) -> NDArray[np.bool_]:
    """Return which model is right on which row [rows, models]; a row has a difficulty that all models share."""
    shared = generator.standard_normal((num_rows, 1))
    own = generator.standard_normal((num_rows, len(gains)))
    least = norm.isf(ACCURACY + np.array(gains))
    return np.asarray(np.sqrt(0.8) * shared + np.sqrt(0.2) * own > least)


def _predictions(
    model: str,
    right: NDArray[np.bool_],
    *,
    groups: tuple[str, ...] | None = None,
    confidence: NDArray[np.float64] | None = None,
) -> Predictions:
    n = len(right)
    unsure = np.full(n, 0.5) if confidence is None else confidence
    outputs = tuple(np.where(right, "yes", "no").tolist())
    ids = tuple(map(str, range(n)))
    by_column: Mapping[str, tuple[str, ...]] = {} if groups is None else {"group": groups}
    return Predictions(model, ids, ("yes",) * n, outputs, right.astype(np.float64), unsure, unsure, dict(by_column))


def _equal_by_macro_f1(n: int) -> Figures:
    generator = np.random.default_rng((n, len(CLASS_SHARES)))
    classes = np.array([str(number) for number in range(len(CLASS_SHARES))])
    results = []
    for _ in range(NUM_MACRO_F1):
        truth = generator.choice(len(classes), n, p=CLASS_SHARES)
        wrong = (truth + generator.integers(1, len(classes), n)) % len(classes)  # the same for both models
        right = _right(generator, n, gains=(0.0, 0.0))
        pair = [_answers(classes[truth], classes[np.where(right[:, column], truth, wrong)]) for column in (0, 1)]
        results.append(compare(pair[0], other=pair[1], metric="macro_f1", alpha=ALPHA))
    proven = [each.p_value < ALPHA and each.interval[0] > 0 and each.gain >= MINIMUM_GAIN for each in results]
    return {
        "proven": float(np.mean(proven)),
        "coverage": float(np.mean([each.interval[0] <= 0 <= each.interval[1] for each in results])),
        "+-": _error(0.95, NUM_MACRO_F1),
    }


def _answers(labels: NDArray[np.str_], outputs: NDArray[np.str_]) -> Predictions:
    unsure = np.full(len(labels), 0.5)
    ids, right = tuple(map(str, range(len(labels)))), (labels == outputs).astype(np.float64)
    return Predictions("simulated", ids, tuple(labels.tolist()), tuple(outputs.tolist()), right, unsure, unsure)


def _error(rate: float, num: int) -> float:
    """Return the Monte Carlo standard error of a rate."""
    return float(np.sqrt(rate * (1 - rate) / num))


if __name__ == "__main__":
    main()
