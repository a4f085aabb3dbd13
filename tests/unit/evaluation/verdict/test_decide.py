"""Tests of the outcome table, the wording of verdicts, and properties that hold for every verdict."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.config.serving import ServingConfig
from tailorbird.evaluation.predictions import ModelPredictions, Predictions, VerdictRefused
from tailorbird.evaluation.verdict import power
from tailorbird.evaluation.verdict.decide import decide
from tailorbird.evaluation.verdict.formatting import points
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.evaluation.verdict.protocol import TestProtocol, build_protocol, expected_gain
from tailorbird.evaluation.verdict.rules import OUTCOME_OF_RULE, Outcome
from tailorbird.evaluation.verdict.types import Verdict
from tests.unit.evaluation.simulated import on_cpu

SHA = "ab" * 32


def predictions(model: str, right: np.ndarray) -> Predictions:
    """Return one prediction per entry of `right`; every label is `yes`."""
    return Predictions(
        model=model,
        row_ids=tuple(str(i) for i in range(len(right))),
        labels=("yes",) * len(right),
        outputs=tuple("yes" if hit else "no" for hit in right),
        scores=right.astype(np.float64),
        confidences=np.full(len(right), 0.5),
        calibrated=np.full(len(right), 0.5),
    )


def models(both: int, only_candidate: int, only_incumbent: int, neither: int) -> tuple[Predictions, Predictions]:
    cells = np.repeat([0, 1, 2, 3], [both, only_candidate, only_incumbent, neither])
    return predictions("probe", (cells == 0) | (cells == 2)), predictions("full", (cells == 0) | (cells == 1))


def models_in_documents(num_documents: int, *, size: int) -> tuple[Predictions, Predictions]:
    """Return the incumbent's and the candidate's table; three rows are lost and two gained, in different documents."""
    rows, documents = np.arange(num_documents * size), tuple(str(i // size) for i in range(num_documents * size))
    incumbent, candidate = ~np.isin(rows, (size * 3, size * 4)), ~np.isin(rows, (0, size, size * 2))
    tables = predictions("probe", incumbent), predictions("full", candidate)
    return replace(tables[0], clusters=documents), replace(tables[1], clusters=documents)


def protocol_for(num_test_rows: int, **changes: Any) -> TestProtocol:
    values = {"metric": "accuracy", "minimum_gain": 0.01, "expected_gain": 0.02, "alpha": 0.05, "test_sha256": SHA}
    values |= {"num_test_rows": num_test_rows, "non_inferiority_margin": 0.01}
    return TestProtocol.model_validate(values | changes)


def inputs_of(*tables: Predictions, leaks: tuple[str, ...] = (), test_sha256: str = SHA) -> VerdictInputs:
    """Return verdict inputs from the tables of the incumbent and the candidate."""
    incumbent, candidate = tables
    return VerdictInputs(ModelPredictions(incumbent), ModelPredictions(candidate), test_sha256, leaks)


def verdict_of(*table: int, leaks: tuple[str, ...] = (), **changes: Any) -> Verdict:
    return decide(inputs_of(*models(*table), leaks=leaks), protocol=protocol_for(sum(table), **changes))


def test_rule_1_refuses_changed_test_rows() -> None:
    incumbent, candidate = models(50, 20, 10, 20)
    changed = inputs_of(incumbent, candidate, test_sha256="cd" * 32)
    with pytest.raises(VerdictRefused, match="the test rows changed"):
        decide(changed, protocol=protocol_for(100))
    with pytest.raises(VerdictRefused, match="100 rows have predictions, but the protocol has 99"):
        decide(inputs_of(incumbent, candidate), protocol=protocol_for(99))


@pytest.mark.parametrize("which", ["incumbent", "candidate"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_ids": tuple(str(i) for i in reversed(range(100)))}, "row ids"),
        ({"labels": ("no",) * 100}, "labels|score"),
        ({"scores": np.full(100, np.nan)}, "finite"),
        ({"scores": np.full(100, 0.5)}, "1 if the output equals the label"),
    ],
)
def test_rule_1_refuses_misaligned_and_unusable_predictions(
    which: str, change: dict[str, object], message: str
) -> None:
    incumbent, candidate = models(50, 20, 10, 20)
    contenders = {"incumbent": incumbent, "candidate": candidate}
    contenders[which] = replace(contenders[which], **change)  # type: ignore[arg-type]
    with pytest.raises(VerdictRefused, match=message):
        decide(inputs_of(*contenders.values()), protocol=protocol_for(100))


def test_verdict_refused_is_a_value_error() -> None:
    assert issubclass(VerdictRefused, ValueError)


def test_rule_2_a_leak_decides_regardless_of_the_gain() -> None:
    verdict = verdict_of(500, 400, 0, 100, leaks=("category 'A01' is in train and test",))
    assert (verdict.outcome, verdict.rule) == (Outcome.INSUFFICIENT_EVIDENCE, 2)
    assert verdict.reasons == ("leak: category 'A01' is in train and test",)


def test_rule_4_a_proven_gain_leads_to_fine_tune() -> None:
    verdict = verdict_of(1300, 290, 120, 441)
    assert (verdict.outcome, verdict.rule, verdict.proven) == (Outcome.FINE_TUNE, 4, True)
    assert verdict.reasons[0].startswith("a gain of at least 1 point is proven")
    assert verdict.interval[0] >= 0.01


def test_rule_4_claims_no_more_than_the_interval_supports() -> None:
    verdict = verdict_of(1400, 130, 90, 531)
    assert (verdict.outcome, verdict.rule) == (Outcome.FINE_TUNE, 4)
    assert 0 < verdict.interval[0] < 0.01 <= verdict.gain
    assert "at least" not in " ".join(verdict.reasons)
    assert "the true gain may be below the minimum" in verdict.reasons[0]


def test_rule_8_states_the_number_of_rows_needed() -> None:
    verdict = verdict_of(200, 30, 25, 45)
    assert (verdict.outcome, verdict.rule) == (Outcome.INSUFFICIENT_EVIDENCE, 8)
    assert verdict.rows_needed is not None
    assert verdict.rows_needed > verdict.n
    assert f"about {verdict.rows_needed:,}" in verdict.reasons[1]


def test_rule_8_states_the_rows_for_both_gains_even_if_there_are_enough_for_one() -> None:
    verdict = verdict_of(1400, 120, 108, 523, expected_gain=0.06)
    assert (verdict.rule, verdict.proven) == (8, False)
    assert verdict.rows_needed is not None
    assert verdict.rows_needed < verdict.n
    assert f"80% of tests need about {verdict.rows_needed:,} test rows" in verdict.reasons[1]
    assert verdict.rows_needed_for_minimum_gain is not None
    needed = f"about {verdict.rows_needed_for_minimum_gain:,} test rows are needed; this test has {verdict.n:,}"
    assert f"to detect a true gain of 1 point (minimum_gain) with 80% power, {needed}" in verdict.reasons[2]


def test_rule_8_states_that_the_minimum_gain_needs_more_rows_than_the_search_tries() -> None:
    verdict = verdict_of(200, 30, 25, 45, minimum_gain=1e-5, expected_gain=0.06)
    assert (verdict.rule, verdict.rows_needed_for_minimum_gain) == (8, None)
    assert "80% power, more than 10,000,000 test rows are needed" in verdict.reasons[2]


def test_rule_8_reports_that_no_number_of_rows_is_enough() -> None:
    verdict = verdict_of(200, 30, 25, 45, expected_gain=0.01)
    assert (verdict.rule, verdict.rows_needed) == (8, None)
    assert "no number of rows gives 80% power" in verdict.reasons[1]


def test_rule_9_stays_when_the_minimum_gain_is_ruled_out() -> None:
    verdict = verdict_of(9000, 100, 100, 800)
    assert (verdict.outcome, verdict.rule) == (Outcome.STAY, 9)
    assert "is ruled out" in verdict.reasons[0]


def test_rule_9_stays_when_the_candidate_is_worse() -> None:
    verdict = verdict_of(700, 20, 120, 160)
    assert (verdict.outcome, verdict.rule) == (Outcome.STAY, 9)
    assert "the candidate is worse than the incumbent" in verdict.reasons[0]


def test_rule_9_stays_when_the_gain_is_below_the_minimum() -> None:
    verdict = verdict_of(9000, 120, 60, 820)
    assert (verdict.outcome, verdict.rule) == (Outcome.STAY, 9)
    assert verdict.interval[0] > 0
    assert verdict_of(9000, 120, 60, 820, minimum_gain=0.006).outcome is Outcome.FINE_TUNE
    under = verdict_of(9000, 120, 60, 820, minimum_gain=0.007)
    assert under.interval[1] >= 0.007
    assert under.reasons == ("the measured gain of +0.60 points is below the minimum gain of 0.7 points",)


def test_rule_9_stays_when_the_interval_is_above_0_but_p_is_not_below_alpha() -> None:
    verdict = verdict_of(100, 46, 29, 100)
    assert (verdict.outcome, verdict.rule) == (Outcome.STAY, 9)
    assert verdict.interval[0] > 0
    assert verdict.p_value >= 0.05
    assert [reason[:40] for reason in verdict.reasons] == ["the p value and the interval disagree: p"]


def test_rule_8_reports_a_p_below_alpha_with_an_interval_that_contains_0() -> None:
    verdict = verdict_of(1400, 28, 15, 600, minimum_gain=0.005)
    assert (verdict.outcome, verdict.rule) == (Outcome.INSUFFICIENT_EVIDENCE, 8)
    assert verdict.p_value < 0.05
    assert "the p value and the interval disagree" in verdict.reasons[-1]


def test_a_gain_of_exactly_the_minimum_is_enough() -> None:
    for n, minimum in [(2150, 0.02), (3000, 0.01), (700, 0.03), (10_000, 0.07)]:
        verdict = verdict_of(n - round(n * minimum) - 10, round(n * minimum), 0, 10, minimum_gain=minimum)
        assert verdict.gain >= minimum
        assert verdict.outcome is Outcome.FINE_TUNE


def test_equal_models_are_never_fine_tuned() -> None:
    assert verdict_of(20, 0, 0, 10).outcome is Outcome.INSUFFICIENT_EVIDENCE
    large = verdict_of(3000, 0, 0, 1000)
    assert (large.outcome, large.p_value, large.gain) == (Outcome.STAY, 1, 0)
    assert large.minimum_detectable_effect > 0


def test_the_numbers_are_outcome_gain_interval_p_n_and_rule() -> None:
    assert verdict_of(1300, 290, 120, 441).numbers() == (
        "FINE_TUNE: +7.90 points (95% interval +6.08 to +9.72, p < 0.0001, n = 2,151), by rule 4"
    )


@pytest.mark.parametrize(
    ("share", "text"), [(0.0316, "+3.16"), (-0.01, "-1.00"), (0.0, "+0.00"), (0.00001, "+0.001"), (-0.00002, "-0.002")]
)
def test_points_never_shows_a_difference_as_0(share: float, text: str) -> None:
    assert points(share) == text


def test_a_verdict_needs_rows_reasons_and_a_rule_with_its_outcome() -> None:
    verdict = verdict_of(1300, 290, 120, 441)
    for change in ({"n": 0}, {"reasons": ()}, {"rule": 9}, {"rule": 1}):
        with pytest.raises(ValueError, match=r"verdict needs|does not have the outcome"):
            Verdict.model_validate(dict(verdict) | change)


def test_an_invalid_record_is_refused() -> None:
    record = verdict_of(1300, 290, 120, 441).model_dump(mode="json")
    for change in ({"surprise": 1}, {"outcome": "PERHAPS"}, {"p_value": float("nan")}):
        with pytest.raises(ValueError, match=f"for Verdict\n{next(iter(change))}"):
            Verdict.model_validate(record | change)
    record["gates"] = [{"name": "cost", "state": "passes", "bounds": [], "note": "", "surprise": 1}]
    with pytest.raises(ValueError, match=r"gates\.0\.surprise"):
        Verdict.model_validate(record)
    del record["gates"], record["n"]
    with pytest.raises(ValueError, match=r"\nn\n  Field required"):
        Verdict.model_validate(record)


def test_the_protocol_comes_from_the_recipe_and_survives_a_json_round_trip() -> None:
    protocol = build_protocol(
        EvaluationConfig(minimum_gain=0.015), serving=ServingConfig(), test_sha256=SHA, num_test_rows=2151
    )
    assert (protocol.minimum_gain, protocol.expected_gain, protocol.alpha) == (0.015, 0.03, 0.05)
    assert TestProtocol.model_validate_json(protocol.model_dump_json()) == protocol
    assert expected_gain(EvaluationConfig(expected_gain=0.04)) == 0.04


@pytest.mark.parametrize(
    "change", [{"metric": "f1"}, {"minimum_gain": -0.1}, {"expected_gain": 1.0}, {"alpha": 0.0}, {"num_test_rows": 0}]
)
def test_an_invalid_protocol_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        protocol_for(**{"num_test_rows": 10} | change)  # type: ignore[arg-type]


def test_the_decision_needs_neither_ray_nor_torch() -> None:
    code = (
        "import sys, tailorbird.evaluation.verdict.decide; "
        "print([m for m in ('ray', 'torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@contextmanager
def few_simulated_tests() -> Iterator[None]:
    """Compute the power, which does not affect the outcome, from a tenth of the simulated tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(power, "NUM_TESTS", 200)
        patched.setattr(power, "NUM_SEARCH_TESTS", 100)
        yield


tables = st.tuples(*[st.integers(0, 60)] * 4).filter(any)


@few_simulated_tests()
@settings(max_examples=30, deadline=None)
@given(tables, st.sampled_from([0.0, 0.01, 0.1]), st.booleans(), st.randoms())
def test_every_valid_input_gets_a_consistent_verdict_in_any_row_order(
    table: tuple[int, int, int, int],
    minimum_gain: float,
    leaky: bool,
    random: "np.random.Generator",
) -> None:
    n = sum(table)
    incumbent, candidate = models(*table)
    protocol = protocol_for(n, minimum_gain=minimum_gain, expected_gain=2 * minimum_gain)
    leaks = ("a leak",) if leaky else ()
    verdict = decide(inputs_of(incumbent, candidate, leaks=leaks), protocol=protocol)

    assert verdict.outcome is OUTCOME_OF_RULE[verdict.rule]
    assert verdict.interval[0] <= verdict.gain <= verdict.interval[1]
    assert verdict.proven == (verdict.p_value < 0.05 and verdict.interval[0] > 0 and verdict.gain >= minimum_gain)
    assert (verdict.outcome is Outcome.FINE_TUNE) == (verdict.proven and not leaky)
    words = " ".join(verdict.reasons)
    assert "of at least" not in words or verdict.interval[0] >= minimum_gain
    for part in (str(verdict.outcome), "interval", f"n = {n:,}", f"rule {verdict.rule}"):
        assert part in verdict.numbers()

    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict

    order = list(range(n))
    random.shuffle(order)
    shuffled = [reordered(table, order) for table in (incumbent, candidate)]
    again = decide(inputs_of(*shuffled, leaks=leaks), protocol=protocol)
    # The bootstrap resamples rows by position, so the second metric's interval depends slightly on the row order.
    assert again.model_copy(update={"second_metric": verdict.second_metric}) == verdict

    swapped = decide(inputs_of(candidate, incumbent, leaks=leaks), protocol=protocol)
    assert swapped.gain == -verdict.gain
    assert swapped.interval == pytest.approx((-verdict.interval[1], -verdict.interval[0]), abs=1e-12)
    assert swapped.p_value == verdict.p_value
    assert not (swapped.proven and verdict.proven)


def reordered(table: Predictions, order: list[int]) -> Predictions:
    return replace(
        table,
        row_ids=tuple(table.row_ids[i] for i in order),
        labels=tuple(table.labels[i] for i in order),
        outputs=tuple(table.outputs[i] for i in order),
        scores=table.scores[order],
        confidences=table.confidences[order],
        calibrated=table.calibrated[order],
    )


@few_simulated_tests()
def test_equal_models_lead_to_fine_tune_at_a_rate_of_at_most_alpha() -> None:
    generator = np.random.default_rng(11)
    outcomes = []
    for _ in range(80):
        cells = generator.multinomial(400, [0.6, 0.08, 0.08, 0.24])
        outcomes.append(verdict_of(*(int(count) for count in cells)).outcome)
    # At a rate of alpha / 2 = 0.025, more than 8 of 80 have a probability of 1 in 5,000.
    assert outcomes.count(Outcome.FINE_TUNE) <= 8


def test_equal_inputs_give_equal_verdicts() -> None:
    first, second = verdict_of(200, 30, 25, 45), verdict_of(200, 30, 25, 45)
    assert first == second
    assert first.model_dump() == second.model_dump()


def test_the_interval_of_the_cost_ratio_has_the_level_of_the_protocol() -> None:
    costs = on_cpu({"incumbent": (10.0, 10.2, 9.9, 10.1, 10.0), "candidate": (8.0, 8.3, 7.9, 8.1, 8.2)})
    incumbent, candidate = models(50, 20, 10, 20)
    inputs = replace(inputs_of(incumbent, candidate), costs=costs)
    ratios = [decide(inputs, protocol=protocol_for(100, alpha=alpha)).cost_ratio for alpha in (0.05, 0.01)]
    assert ratios[0] is not None
    assert ratios[1] is not None
    assert ratios[0][0] == ratios[1][0]
    assert ratios[1][2] > ratios[0][2]
