"""Error rates of tests at small levels, and of a year of monthly re-evaluations, by simulation.

    python -m benchmarks.evaluation.repeated_tests

Small levels: how often are equal models significant at 0.004 by macro-F1, whose t statistic is
approximate? And how often is a gain of 40 points proven at each of 24 accesses, in a family of
three?

Re-evaluations: each month brings newly audited rows. "Separate tests" is the share if each month
tests only its new rows, at alpha / (month (month + 1)).
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from benchmarks.rounds import finish, print_table
from tailorbird.evaluation.gates.cost import ServingUsage
from tailorbird.evaluation.predictions import ModelPredictions, Predictions
from tailorbird.evaluation.statistics.class_metrics import class_metric_effect
from tailorbird.evaluation.statistics.confidence_sequence import confidence_sequence, log_wealth
from tailorbird.evaluation.statistics.means import mean_effect
from tailorbird.evaluation.statistics.paired import midp_values, newcombe_limits
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.operate.reevaluation_verdict import decide_reevaluation
from tailorbird.registry.test_set_ledger import share_of_alpha

ALPHA, MINIMUM_GAIN = 0.05, 0.01
CHUNK = 100
NUM_YEARS, MONTHS, ROWS_A_MONTH = 10_000, 12, 300
DISCORDANCES = (0.08, 0.12, 0.2)
NUM_TEXTS, NUM_CLUSTERED_YEARS, NUM_DECISIONS = 8, 2_000, 40
NUM_SUBJECTS, NUM_SUBJECT_YEARS = 300, 200
SMALL_LEVEL, NUM_SMALL = 0.004, 4_000
CLASS_SHARES, SMALL_SIZES, NUM_ACCESSES, NUM_LARGE = (
    (0.45, 0.25, 0.15, 0.10, 0.05),
    (200, 1_000),
    24,
    10,
)
VALUES = np.array([-1.0, 0.0, 1.0])
LEVEL = float(np.log(2 / ALPHA))
BOUNDS = {
    "rate_of_equal_models_significant_at_0.004_by_macro_f1": "<= 0.006",
    "share_of_gains_of_40_points_proven_at_24_accesses": ">= 1",
    "rate_of_withdrawing_a_champion_at_the_minimum_gain_within_a_year": f"<= {ALPHA}",
    "rate_of_withdrawing_such_a_champion_with_8_alike_texts_a_request": f"<= {ALPHA}",
    "rate_of_missing_an_equal_champion_with_few_subjects_within_a_year": f"<= {ALPHA}",
    "rate_of_renewing_an_equal_champion_within_a_year": f"<= {ALPHA}",
    "rate_of_missing_the_mean_of_partial_scores_within_a_year": f"<= {ALPHA}",
    "rate_of_withdrawing_a_cheaper_champion_at_minus_the_margin_within_a_year": f"<= {ALPHA}",
    "rate_of_renewing_a_cheaper_champion_at_minus_the_margin_within_a_year": f"<= {ALPHA}",
    "rate_of_withdrawing_an_equal_cheaper_champion_within_a_year": f"<= {ALPHA}",
    "rate_of_renewing_a_champion_at_3_points_in_month_12": ">= 0.97",
    "rate_of_withdrawing_a_champion_at_minus_3_points_within_a_year": ">= 0.97",
    "decisions_unlike_the_rule": "<= 0",
}
Indices = NDArray[np.int64]


def main() -> None:
    """Print the tables, then one line of JSON."""
    years = {f"discordance {rate:g}": _years(rate) for rate in DISCORDANCES}
    print_table(f"A year with {ROWS_A_MONTH} audited rows a month ({NUM_YEARS:,} years)", years)
    usual, worst = years["discordance 0.12"], _worst(years)
    alike = _withdrawn_with_alike_texts(by_request=True)
    small = {f"{n:,} rows": {"significant": _significant_at_small_level(n)} for n in SMALL_SIZES}
    print_table(f"Equal models by macro-F1, level {SMALL_LEVEL}, {NUM_SMALL:,} tests", small)
    figures = {
        "rate_of_equal_models_significant_at_0.004_by_macro_f1": max(
            row["significant"] for row in small.values()
        ),
        "share_of_gains_of_40_points_proven_at_24_accesses": _proven_at_all_accesses(),
        "rate_of_withdrawing_a_champion_at_the_minimum_gain_within_a_year": worst[
            "withdrawn at +1"
        ],
        "rate_of_withdrawing_such_a_champion_with_8_alike_texts_a_request": alike,
        "rate_of_withdrawing_it_if_texts_counted_as_independent": _withdrawn_with_alike_texts(
            by_request=False
        ),
        "rate_of_missing_an_equal_champion_with_few_subjects": _misses_with_few_subjects(
            by_subject=True
        ),
        "rate_of_missing_it_if_rows_counted_as_independent": _misses_with_few_subjects(
            by_subject=False
        ),
        "rate_of_renewing_an_equal_champion_within_a_year": worst["renewed at 0"],
        "rate_of_missing_the_mean_of_partial_scores_within_a_year": _misses_of_partial_scores(),
        "rate_of_withdrawing_a_cheaper_champion_at_minus_the_margin_within_a_year": worst[
            "cheaper, withdrawn at -1"
        ],
        "rate_of_renewing_a_cheaper_champion_at_minus_the_margin_within_a_year": worst[
            "cheaper, renewed at -1"
        ],
        "rate_of_withdrawing_an_equal_cheaper_champion_within_a_year": worst[
            "cheaper, withdrawn at 0"
        ],
        "rate_of_renewing_a_champion_at_3_points_in_month_12": usual["renewed at +3, month 12"],
        "rate_of_withdrawing_a_champion_at_minus_3_points_within_a_year": usual["withdrawn at -3"],
        "rate_of_renewing_it_in_month_12_by_separate_tests": usual[
            "renewed at +3, month 12, separate tests"
        ],
        "rate_of_withdrawing_it_within_a_year_by_separate_tests": usual[
            "withdrawn at -3, separate tests"
        ],
        "decisions_unlike_the_rule": float(_decisions_unlike_rule()),
    }
    finish("repeated_tests", figures, bounds=BOUNDS)


def proven(cells: Indices, *, alpha: float) -> NDArray[np.bool_]:
    low, _ = newcombe_limits(cells, alpha=alpha)
    gain = (cells[..., 1] - cells[..., 2]) / cells.sum(axis=-1)
    significant = midp_values(cells[..., 1], only_other=cells[..., 2]) < alpha
    return np.asarray(significant & (low > 0) & (gain >= MINIMUM_GAIN))


def _of_classes(
    generator: np.random.Generator, num_rows: int, *, accuracies: tuple[float, float]
) -> list[Predictions]:
    """Return two models on classes of uneven sizes; the models share the difficulty of a row."""
    labels, shared = (
        generator.choice(5, num_rows, p=CLASS_SHARES),
        generator.standard_normal(num_rows),
    )
    tables = []
    for accuracy in accuracies:
        own = generator.standard_normal(num_rows)
        right = np.sqrt(0.8) * shared + np.sqrt(0.2) * own < norm.ppf(accuracy)
        outputs = np.where(right, labels, (labels + generator.integers(1, 5, num_rows)) % 5).astype(
            str
        )
        table = _table(num_rows)("simulated", right)
        tables.append(
            replace(
                table, labels=tuple(labels.astype(str).tolist()), outputs=tuple(outputs.tolist())
            )
        )
    return tables


def _significant_at_small_level(num_rows: int) -> float:
    generator = np.random.default_rng((6, num_rows))
    tests = (_of_classes(generator, num_rows, accuracies=(0.75, 0.75)) for _ in range(NUM_SMALL))
    effects = [
        class_metric_effect(ours, other=theirs, metric="macro_f1", alpha=SMALL_LEVEL)
        for ours, theirs in tests
    ]
    return float(np.mean([effect.p_value < SMALL_LEVEL for effect in effects]))


def _proven_at_all_accesses() -> float:
    """Return the share of tests of 1,000 rows, by macro-F1 and by a mean score, in which the gain
    is proven."""
    generator, proven = np.random.default_rng(24), []
    levels = [ALPHA * share_of_alpha(np.array([number + 1])) / 3 for number in range(NUM_ACCESSES)]
    for _ in range(NUM_LARGE):
        scores = generator.uniform(0, 0.5, (2, 1_000)) + np.array([[0.4], [0.0]])
        better, worse = _of_classes(generator, 1_000, accuracies=(0.9, 0.5))
        effects = [
            class_metric_effect(better, other=worse, metric="macro_f1", alpha=level)
            for level in levels
        ]
        effects += [
            mean_effect(scores[0], other_scores=scores[1], alpha=level)
            for level in (levels[0], levels[-1])
        ]
        tested = [*levels, levels[0], levels[-1]]
        proven += [
            effect.p_value < level and effect.interval[0] > 0
            for effect, level in zip(effects, tested, strict=True)
        ]
    return float(np.mean(proven))


def _monthly(gain: float, discordance: float) -> Indices:
    """Return the monthly numbers of losses, ties and wins of a champion with a true gain, [years,
    months, 3]."""
    shares = [(discordance - gain) / 2, 1 - discordance, (discordance + gain) / 2]
    generator = np.random.default_rng((int(1_000 * discordance), int(1_000 * (1 + gain))))
    return generator.multinomial(ROWS_A_MONTH, shares, size=(NUM_YEARS, MONTHS))


def _years(discordance: float) -> dict[str, float]:
    figures = {}
    renewed, _ = _decided(_monthly(0.03, discordance))
    figures["renewed at +3, month 12"] = float(renewed[:, -1].mean())
    figures["renewed at +3, month 12, separate tests"] = float(
        _separately(0.03, discordance)[0][:, -1].mean()
    )
    for gain, name in ((-0.03, "-3"), (0.01, "+1"), (0.03, "+3")):
        figures[f"withdrawn at {name}"] = float(
            _decided(_monthly(gain, discordance))[1].any(axis=1).mean()
        )
    figures["withdrawn at -3, separate tests"] = float(
        _separately(-0.03, discordance)[1].any(axis=1).mean()
    )
    for gain, name in ((-MINIMUM_GAIN, "-1"), (0.0, "0"), (-0.03, "-3")):
        renewed, withdrawn = _decided_for_cost(_monthly(gain, discordance))
        figures[f"cheaper, renewed at {name}"] = float(renewed.any(axis=1).mean())
        figures[f"cheaper, withdrawn at {name}"] = float(withdrawn.any(axis=1).mean())
    figures["renewed at 0"] = float(_decided(_monthly(0.0, discordance))[0].any(axis=1).mean())
    return figures


def _decided(months: Indices) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return in which months [years, months] the verdict is renewed and withdrawn, for a champion
    of known cost."""
    counts = months.cumsum(axis=1)
    gain = (counts[..., 2] - counts[..., 0]) / counts.sum(axis=-1)
    better = log_wealth(VALUES, counts=counts, mean=0.0) >= LEVEL
    out_of_reach = log_wealth(VALUES, counts=counts[..., ::-1], mean=-MINIMUM_GAIN) >= LEVEL
    return better & (gain >= MINIMUM_GAIN), out_of_reach & ~better


def _decided_for_cost(months: Indices) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the same as `_decided` for a champion that is cheaper, with the minimum gain as the
    margin."""
    counts = months.cumsum(axis=1)
    not_inferior = log_wealth(VALUES, counts=counts, mean=-MINIMUM_GAIN) >= LEVEL
    inferior = log_wealth(VALUES, counts=counts[..., ::-1], mean=MINIMUM_GAIN) >= LEVEL
    return not_inferior, inferior & ~not_inferior


def _separately(gain: float, discordance: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the same as `_decided` by tests of the new rows of each month."""
    months = _monthly(gain, discordance)
    cells = np.stack(
        [np.zeros_like(months[..., 0]), months[..., 2], months[..., 0], months[..., 1]], axis=-1
    )
    renewed, withdrawn = [], []
    for month in range(MONTHS):
        alpha = ALPHA / ((month + 1) * (month + 2))
        low, high = newcombe_limits(cells[:, month], alpha=alpha)
        renewed.append(proven(cells[:, month], alpha=alpha))
        withdrawn.append((high < MINIMUM_GAIN) & (low <= 0))
    return np.stack(renewed, axis=1), np.stack(withdrawn, axis=1)


def _worst(years: dict[str, dict[str, float]]) -> dict[str, float]:
    return {
        name: max(figures[name] for figures in years.values()) for name in years["discordance 0.12"]
    }


def _withdrawn_with_alike_texts(*, by_request: bool) -> float:
    """Return the share of champions at the minimum gain that are withdrawn, if the texts of a
    request are alike.

    The eight texts of a request have the same pair of outcomes with a probability of 0.8.
    """
    generator, withdrawn = np.random.default_rng(8), 0
    shares = [(0.12 - MINIMUM_GAIN) / 2, 0.88, (0.12 + MINIMUM_GAIN) / 2]
    num_requests = ROWS_A_MONTH // NUM_TEXTS
    for _ in range(NUM_CLUSTERED_YEARS // CHUNK):
        size = (CHUNK, MONTHS, num_requests)
        common = generator.choice(VALUES, (*size, 1), p=shares)
        single = generator.choice(VALUES, (*size, NUM_TEXTS), p=shares)
        texts = np.where(generator.random((*size, 1)) < 0.8, common, single)
        scores, values = (
            (texts.mean(axis=-1), np.arange(-8, 9) / 8) if by_request else (texts, VALUES)
        )
        flat = scores.reshape(CHUNK, MONTHS, -1)
        months = np.stack([(flat == value).sum(axis=-1) for value in values], axis=-1)
        counts = months.cumsum(axis=1)
        better = log_wealth(values, counts=counts, mean=0.0) >= LEVEL
        out_of_reach = log_wealth(values, counts=counts[..., ::-1], mean=-MINIMUM_GAIN) >= LEVEL
        withdrawn += int((out_of_reach & ~better).any(axis=1).sum())
    return withdrawn / NUM_CLUSTERED_YEARS


def _misses_with_few_subjects(*, by_subject: bool) -> float:
    """Return the share of years in which the interval of an equal champion ever excludes 0, if
    subjects return.

    Of 300 subjects, a tenth sends nearly half of the rows. A subject's rows have the same pair of
    outcomes with a probability of 0.8. With `by_subject`, each month takes the mean of all rows of
    a subject so far.
    """
    generator, missed = np.random.default_rng(13), 0
    shares = [0.06, 0.88, 0.06]
    for _ in range(NUM_SUBJECT_YEARS):
        subjects = (NUM_SUBJECTS * generator.random(MONTHS * ROWS_A_MONTH) ** 3).astype(np.int64)
        common = generator.choice(VALUES, NUM_SUBJECTS, p=shares)[subjects]
        single = generator.choice(VALUES, len(subjects), p=shares)
        rows = np.where(generator.random(len(subjects)) < 0.8, common, single)
        for end in range(ROWS_A_MONTH, len(rows) + 1, ROWS_A_MONTH):
            scores = rows[:end]
            if by_subject:
                num = np.bincount(subjects[:end], minlength=NUM_SUBJECTS)
                sums = np.bincount(subjects[:end], weights=scores, minlength=NUM_SUBJECTS)
                scores = sums[num > 0] / num[num > 0]
            low, high = confidence_sequence(scores, alpha=ALPHA)
            if low > 0 or high < 0:
                missed += 1
                break
    return missed / NUM_SUBJECT_YEARS


def _misses_of_partial_scores() -> float:
    """Return the share of years in which the confidence sequence of token F1 ever misses the true
    mean difference."""
    generator, missed, num_years = np.random.default_rng(21), 0, 500
    for _ in range(num_years):
        shape = (MONTHS, ROWS_A_MONTH)
        differences = np.round(generator.beta(0.5, 0.3, shape) - generator.beta(0.5, 0.3, shape), 2)
        values = np.arange(-100, 101) / 100
        counts = np.stack(
            [
                np.bincount(np.rint(100 * month + 100).astype(int), minlength=201)
                for month in differences
            ]
        )
        growing = counts.cumsum(axis=0)
        sides = (growing, growing[:, ::-1])  # the true mean is 0, so both sides are alike
        missed += any(np.any(log_wealth(values, counts=side, mean=0.0) >= LEVEL) for side in sides)
    return missed / num_years


def _decisions_unlike_rule() -> int:
    """Return the number of full decisions, from predictions to result, that differ from the rule on
    the same counts."""
    different = 0
    for gain, is_cheaper in (
        (-0.03, False),
        (0.01, False),
        (0.03, False),
        (-0.03, True),
        (0.0, True),
    ):
        months = _monthly(gain, 0.12)[:NUM_DECISIONS]
        renewed, withdrawn = _decided_for_cost(months) if is_cheaper else _decided(months)
        for year, month in enumerate(np.random.default_rng(3).integers(0, MONTHS, NUM_DECISIONS)):
            holds = _result(months[year, : month + 1].sum(axis=0), is_cheaper=is_cheaper)
            rule = True if renewed[year, month] else False if withdrawn[year, month] else None
            different += holds is not rule
    return different


def _result(counts: Indices, *, is_cheaper: bool) -> bool | None:
    """Return the result of the real decision for numbers of losses, ties and wins."""
    cost = ServingUsage((1.0, 1.01, 0.99, 1.0, 1.0))
    losses, ties, wins = counts.tolist()
    num_rows = losses + ties + wins
    table = _table(num_rows)
    inputs = VerdictInputs(
        {
            "incumbent": ModelPredictions(table("previous", np.arange(num_rows) < losses)),
            "candidate": ModelPredictions(table("champion", np.arange(num_rows) >= losses + ties)),
        },
        "simulated",
        costs={"incumbent": ServingUsage((2.0,) * 5), "candidate": cost} if is_cheaper else None,
    )
    protocol = TestProtocol(
        metric="accuracy",
        minimum_gain=MINIMUM_GAIN,
        non_inferiority_margin=MINIMUM_GAIN,
        expected_gain=2 * MINIMUM_GAIN,
        alpha=ALPHA,
        test_sha256="simulated",
        num_test_rows=num_rows,
    )
    verdict = decide_reevaluation(inputs, protocol=protocol, number=1)
    return None if verdict.holds is None else verdict.holds


def _table(num_rows: int) -> Callable[[str, NDArray[np.bool_]], Predictions]:
    ids, labels, unsure = (
        tuple(map(str, range(num_rows))),
        ("yes",) * num_rows,
        np.full(num_rows, 0.5),
    )

    def predictions(model: str, right: NDArray[np.bool_]) -> Predictions:
        outputs = tuple(np.where(right, "yes", "no").tolist())
        return Predictions(model, ids, labels, outputs, right.astype(np.float64), unsure, unsure)

    return predictions


if __name__ == "__main__":
    main()
