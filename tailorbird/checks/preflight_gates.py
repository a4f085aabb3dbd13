"""Simulate which gates the test rows can settle, by evaluating them on simulated predictions of a
sound candidate.

A sound candidate has the expected gain in every group, is calibrated, and is as robust as the
incumbent. Rows are simulated as independent: rows that share documents settle less.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailorbird.checks.result import CheckResult, note, ok
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.config.recipe import Recipe
from tailorbird.config.serving import ServingConfig
from tailorbird.evaluation.gates.base import State
from tailorbird.evaluation.gates.prices import CostComparison
from tailorbird.evaluation.predictions import ModelPredictions, Predictions
from tailorbird.evaluation.statistics.documents import LEAST_DOCUMENTS
from tailorbird.evaluation.verdict.gates import evaluate_gates
from tailorbird.evaluation.verdict.inputs import SUITE_PREFIX
from tailorbird.evaluation.verdict.protocol import NO_GATES, TestProtocol, build_protocol

DISCORDANCE = 0.15  # share of the rows on which exactly one of the two models is right
SWAPPED = 1 / 3  # share of the rows with a name, sex or age
FLIPPED = 0.03  # share of the predictions of a model that change with them
LOST = 0.04  # share of right answers that a typing error changes
WON = 0.01  # share of wrong answers that it makes right
CHANGED = 0.02  # share of the answers to a suite that get worse, and share that get better
USUALLY = 0.5
NUM_TESTS = 40
NUM_SEARCH_TESTS = 20
SEED = 1991
FACTORS = (1.5, 2, 3, 5, 10)  # that are tried for a margin and for the rows
MAX_ROWS = 20_000  # in a simulated test


@dataclass(frozen=True)
class PlannedTest:
    """The number of test rows, the rows in each group by column and value, and the rows of each
    suite."""

    num_rows: int
    groups: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    split_by: str | None = None  # column of the documents, which the simulation does not read
    num_documents: int | None = None
    """Values of `split_by` in the rows of which the test rows are a part, or in the test rows."""
    suites: Mapping[str, int] = field(default_factory=dict)


def check_gates(config: EvaluationConfig, planned: PlannedTest) -> Iterator[CheckResult]:
    """Report for each gate how often a sound candidate passes and, if seldom, which margin or rows
    would do."""
    for name, margin in MARGINS.items():
        if getattr(config.gates, name) is None or (
            name in ("groups", "suites") and not getattr(planned, name)
        ):
            continue
        share = pass_share(name, config=config, planned=planned)
        if name == "suites":
            text = f"simulated answers to {len(planned.suites)} suites"
        else:
            text = f"simulated tests of {planned.num_rows:,} rows"
            if planned.split_by is not None:
                text += (
                    f", counted as independent: documents of several rows by {planned.split_by} "
                    "settle less"
                )
        if name == "groups":
            num_rows, group = min(_groups(planned))
            text += f"; the smallest group is {group} with {num_rows:,} rows"
        text = f"a sound candidate passes in {share:.0%} of {text}"
        if share >= USUALLY:
            yield ok(f"gate {name}", text)
        else:
            yield note(
                f"gate {name}", text, _remedy(name, margin=margin, config=config, planned=planned)
            )


def pass_share(
    name: str, *, config: EvaluationConfig, planned: PlannedTest, num_tests: int = NUM_TESTS
) -> float:
    """Return the share of simulated tests in which a sound candidate passes a gate."""
    generator = np.random.default_rng(SEED)
    protocol = simulated_protocol(config, planned, **{name: getattr(config.gates, name)})
    num_passed = 0
    for _ in range(num_tests):
        candidate, incumbent = _models(generator, planned, protocol=protocol)
        [gate] = evaluate_gates(
            candidate, incumbent=incumbent, protocol=protocol, cost=CostComparison()
        )
        num_passed += gate.state is State.PASSES
    return num_passed / num_tests


def simulated_protocol(
    config: EvaluationConfig, planned: PlannedTest, **gates: object
) -> TestProtocol:
    """Return the protocol of a test of simulated classifiers in accuracy, with these gates only."""
    changes = {
        "metric": "accuracy",
        "gates": NO_GATES.model_copy(update=gates),
        "cost": None,
        "hybrid": None,
    }
    return build_protocol(
        config.model_copy(update=changes),
        serving=ServingConfig(),
        test_sha256="",
        num_test_rows=planned.num_rows,
        suites=dict.fromkeys(planned.suites, ""),
    )


def _remedy(name: str, *, margin: str, config: EvaluationConfig, planned: PlannedTest) -> str:
    """Return by how much the margin or the rows must grow so that a sound candidate usually
    passes, if a tried factor does."""
    options = []
    for factor in FACTORS:
        wider = _with_margin(config, name, margin=margin, factor=factor)
        if _usually_passes(name, config=wider, planned=planned):
            options.append(f"{factor:g} times the {margin}")
            break
    for factor in FACTORS:
        more = _with_rows(planned, factor=factor)
        if more.num_rows > MAX_ROWS:
            break
        if _usually_passes(name, config=config, planned=more):
            options.append(f"{factor:g} times the rows")
            break
    text = "set the gate to null"
    if name == "groups":
        text = f"merge small groups, or {text}"
    if options:
        text = f"use {' or '.join(options)}, or {text}"
    return text


def _usually_passes(name: str, *, config: EvaluationConfig, planned: PlannedTest) -> bool:
    share = pass_share(name, config=config, planned=planned, num_tests=NUM_SEARCH_TESTS)
    return share >= USUALLY


def _with_margin(
    config: EvaluationConfig, name: str, *, margin: str, factor: float
) -> EvaluationConfig:
    """Return the configuration with a wider margin of a gate; that of every suite."""

    def widened(limits: Any) -> Any:
        return limits.model_copy(update={margin: min(factor * getattr(limits, margin), 0.99)})

    limits = getattr(config.gates, name)
    if name == "suites":
        wider = {suite: widened(suite_limits) for suite, suite_limits in limits.items()}
    else:
        wider = widened(limits)
    return config.model_copy(update={"gates": config.gates.model_copy(update={name: wider})})


def _with_rows(planned: PlannedTest, *, factor: float) -> PlannedTest:
    suites = {name: round(factor * rows) for name, rows in planned.suites.items()}
    return replace(planned, num_rows=round(factor * planned.num_rows), suites=suites)


def _groups(planned: PlannedTest) -> Iterator[tuple[int, str]]:
    for column, sizes in planned.groups.items():
        for value, num_rows in sizes.items():
            yield num_rows, f"{column} = {value}"


def check_documents(planned: PlannedTest) -> Iterator[CheckResult]:
    """Report if the test rows come from too few documents for an interval, because the outcome is
    then known."""
    if planned.num_documents is None or planned.num_documents >= LEAST_DOCUMENTS:
        return
    text = (
        f"data.split_by {planned.split_by!r} has {planned.num_documents:,} different values in the "
        f"rows for the test, but an interval needs at least {LEAST_DOCUMENTS}, so the verdict "
        "would be INSUFFICIENT_EVIDENCE"
    )
    yield note(
        "documents",
        text,
        "add test rows with other values, or remove split_by if the rows are independent",
    )


def check_prices(recipe: Recipe) -> Iterator[CheckResult]:
    """Name the missing prices, because the cost of a model that needs one of them is not
    assessable."""
    cost = recipe.evaluation.cost
    if cost is None:
        return
    on_gpu = recipe.serving.gpus_per_replica > 0 or recipe.training.gpus_per_worker > 0
    missing = {
        "evaluation.cost.price_per_cpu_hour": cost.price_per_cpu_hour is None,
        "evaluation.cost.price_per_gpu_hour": on_gpu and cost.price_per_gpu_hour is None,
    }
    for name, endpoint in recipe.evaluation.endpoints.items():
        missing[f"evaluation.contenders.{name}.endpoint.prices"] = endpoint.prices is None
    names = [name for name, holds in missing.items() if holds]
    if names:
        text = (
            f"{', '.join(names)} is not set, so the cost of the models that use it is not "
            "assessable"
        )
        if recipe.evaluation.regulated:
            stops = "; with evaluation.regulated, no such model is chosen"
        else:
            stops = ""
        yield note(
            "prices",
            f"{text}{stops}",
            "set the price (0 if free), or expect a cost gate that is not assessable",
        )
    else:
        yield ok("prices", "all resources that the recipe uses have a price")


MARGINS = MappingProxyType({
    "calibration": "max_ece",
    "groups": "max_loss",
    "counterfactual": "max_increase",
    "robustness": "max_extra_drop",
    "suites": "max_loss",
})  # fmt: skip


def _models(
    generator: np.random.Generator, planned: PlannedTest, *, protocol: TestProtocol
) -> tuple[ModelPredictions, ModelPredictions]:
    """Return the predictions of a calibrated candidate with the expected gain, and of the
    incumbent."""
    n = planned.num_rows
    gain = protocol.expected_gain
    confidence = 0.3 + 0.7 * generator.beta(4, 1.5, n)
    right = generator.random(n) < confidence
    won = (max(DISCORDANCE, gain) + gain) / 2
    lost = (max(DISCORDANCE, gain) - gain) / 2
    changed = generator.random(n) < np.where(
        right, won / confidence.mean(), lost / (1 - confidence.mean())
    )
    groups = {}
    for column, sizes in planned.groups.items():
        shares = np.array(list(sizes.values())) / sum(sizes.values())
        groups[column] = tuple(generator.choice(list(sizes), n, p=shares).tolist())
    candidate = replace(simulated_answers(right), calibrated=confidence, groups=groups)
    incumbent = replace(simulated_answers(right != changed), groups=groups)

    gates = protocol.gates
    sets: tuple[dict[str, Predictions], dict[str, Predictions]] = ({}, {})
    for table, changed_sets in zip((candidate, incumbent), sets, strict=True):
        if gates.counterfactual is not None:
            swapped = table.take(range(max(1, round(SWAPPED * n))))
            changed_sets["counterfactual"] = _perturbed(
                generator, swapped, lost=FLIPPED, won=FLIPPED
            )
        if gates.robustness is not None:
            changed_sets["noise"] = _perturbed(generator, table, lost=LOST, won=WON)
    for name, num_rows in planned.suites.items() if gates.suites is not None else ():
        luck = generator.random(num_rows)
        right = luck < 0.8
        changed = (luck < CHANGED) | (luck > 1 - CHANGED)
        for answers, changed_sets in zip((right != changed, right), sets, strict=True):
            changed_sets[f"{SUITE_PREFIX}{name}"] = simulated_answers(answers)
    return ModelPredictions(candidate, sets[0]), ModelPredictions(incumbent, sets[1])


def _perturbed(
    generator: np.random.Generator, clean: Predictions, *, lost: float, won: float
) -> Predictions:
    """Return the predictions of changed texts, some of which are answered otherwise."""
    right = clean.scores == 1
    changed = generator.random(len(right)) < np.where(right, lost, won)
    answers = simulated_answers(right != changed)
    return replace(answers, row_ids=tuple(f"{row}|changed" for row in clean.row_ids))


def simulated_answers(
    right: NDArray[np.bool_], *, clusters: tuple[str, ...] | None = None
) -> Predictions:
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
