"""The family: several contenders are tested against the incumbent, and the right one is served."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tailorbird.evaluation.predictions import ModelPredictions, Predictions, VerdictRefused
from tailorbird.evaluation.verdict.decide import decide
from tailorbird.evaluation.verdict.family import compare_family, holm_levels
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.evaluation.verdict.rules import Outcome
from tailorbird.evaluation.verdict.types import Verdict
from tests.unit.evaluation.simulated import on_cpu
from tests.unit.evaluation.verdict.test_decide import SHA, predictions, protocol_for

NUM_ROWS = 2_000
COSTS = {"incumbent": 10.0, "candidate": 2.0, "bag_of_words": 1.0, "centroid": 10.0}


def right(count: int, *, of_rest: int = 0) -> np.ndarray:
    """Return which rows are right: the first `count`, and the first `of_rest` of those after row 1,500."""
    rows = np.arange(NUM_ROWS)
    return (rows < count) | ((rows >= 1_500) & (rows < 1_500 + of_rest))


def inputs_of(incumbent: np.ndarray, candidate: np.ndarray, **contenders: np.ndarray) -> VerdictInputs:
    tables = {kind: ModelPredictions(predictions(kind, hits)) for kind, hits in contenders.items()}
    old, new = (ModelPredictions(predictions(*pair)) for pair in (("probe", incumbent), ("full", candidate)))
    return VerdictInputs(old, new, test_sha256=SHA, contenders=tables)


def verdict_of(incumbent: np.ndarray, candidate: np.ndarray, **contenders: np.ndarray) -> Verdict:
    return decide(inputs_of(incumbent, candidate, **contenders), protocol=protocol_for(NUM_ROWS))


@pytest.mark.parametrize(
    ("p_values", "levels"),
    [
        ([0.2], [0.05]),
        ([0.2, 0.3, 0.4], [0.05 / 3] * 3),
        ([0.001, 0.3, 0.02], [0.05 / 3, 0.05, 0.05 / 2]),
        ([0.001, 0.3, 0.03], [0.05 / 3, 0.05 / 2, 0.05 / 2]),
        ([0.001, 0.002, 0.003], [0.05 / 3, 0.05 / 2, 0.05]),
    ],
)
def test_each_interval_has_the_level_of_its_own_test(p_values: Sequence[float], levels: Sequence[float]) -> None:
    assert holm_levels(p_values, alpha=0.05) == pytest.approx(levels)


def test_the_gain_of_a_contender_is_corrected_for_the_size_of_the_family() -> None:
    incumbent, candidate = predictions("probe", right(1_400)), predictions("full", right(1_406))
    alone = compare_family({"candidate": candidate}, incumbent=incumbent, protocol=protocol_for(NUM_ROWS))
    others = {kind: predictions(kind, right(1_400)) for kind in ("bag_of_words", "centroid")}
    family = compare_family({"candidate": candidate, **others}, incumbent=incumbent, protocol=protocol_for(NUM_ROWS))
    assert alone["candidate"].p_holm == alone["candidate"].comparison.p_value < 0.05
    assert family["candidate"].p_holm == pytest.approx(3 * alone["candidate"].p_holm)
    assert family["candidate"].comparison.interval[0] < alone["candidate"].comparison.interval[0]


def test_equal_contenders_are_proven_better_at_a_rate_of_at_most_alpha() -> None:
    generator, protocol, num_proven = np.random.default_rng(5), protocol_for(NUM_ROWS, minimum_gain=0.0), 0
    for _ in range(100):
        shared = generator.random(NUM_ROWS)
        tables = {
            name: predictions(
                name, np.where(generator.random(NUM_ROWS) < 0.8, shared, generator.random(NUM_ROWS)) < 0.7
            )
            for name in ("probe", "candidate", "bag_of_words", "centroid")
        }
        incumbent = tables.pop("probe")
        num_proven += any(
            result.proven for result in compare_family(tables, incumbent=incumbent, protocol=protocol).values()
        )
    # At a rate of alpha / 2 = 0.025, more than 8 of 100 have a probability of 1 in 1,000.
    assert num_proven <= 8


def test_a_baseline_that_is_proven_better_replaces_the_incumbent() -> None:
    verdict = verdict_of(right(1_300), right(1_310), bag_of_words=right(1_400), centroid=right(1_000))
    assert (verdict.outcome, verdict.rule, verdict.winner) == (Outcome.STAY, 9, "bag_of_words")
    assert verdict.sentence().startswith("Use the bag-of-words model (70.0%). It is better than the pretrained model")
    assert "`tailorbird promote` makes it the champion" in verdict.reasons[0]
    assert "slightly optimistic" in verdict.reasons[1]
    assert [contender.eligible for contender in verdict.contenders] == [True, False]


def test_the_line_of_numbers_names_the_level_of_the_interval_that_it_shows() -> None:
    unclear = verdict_of(right(1_300), right(1_310), bag_of_words=right(1_200), centroid=right(1_305))
    assert unclear.shown is unclear
    assert unclear.level == pytest.approx(0.05 / 2)
    assert "(97.5% interval" in unclear.numbers()
    replaced = verdict_of(right(1_300), right(1_310), bag_of_words=right(1_400), centroid=right(1_290))
    assert replaced.shown is replaced.contender is replaced.contenders[0]
    assert replaced.contenders[0].level == pytest.approx(0.05 / 3)
    assert "+5.00 points (98.33% interval" in replaced.numbers()


def test_no_baseline_replaces_the_incumbent_if_the_splits_leak() -> None:
    inputs = replace(inputs_of(right(1_300), right(1_310), bag_of_words=right(1_400)), leaks=("a leak",))
    verdict = decide(inputs, protocol=protocol_for(NUM_ROWS))
    assert (verdict.outcome, verdict.winner) == (Outcome.INSUFFICIENT_EVIDENCE, "incumbent")


def test_the_candidate_wins_over_a_proven_baseline_that_is_not_better_than_it() -> None:
    verdict = verdict_of(right(1_300), right(1_400), bag_of_words=right(1_395))
    assert (verdict.outcome, verdict.winner, verdict.replacement) == (Outcome.FINE_TUNE, "candidate", None)


def test_a_proven_candidate_is_not_used_if_a_baseline_is_better_than_it() -> None:
    verdict = verdict_of(right(1_300), right(1_350), bag_of_words=right(1_450))
    assert (verdict.outcome, verdict.rule, verdict.winner) == (Outcome.STAY, 9, "bag_of_words")
    assert "The fine-tuned model is better too, but less so: +2.5 points" in verdict.sentence()
    assert any("the other contender is better than the candidate" in reason for reason in verdict.reasons)


def test_a_candidate_that_is_cheaper_and_not_inferior_is_used_unless_a_contender_is_cheaper() -> None:
    inputs = inputs_of(right(1_300), right(1_299), bag_of_words=right(1_200), centroid=right(1_290))
    measured = replace(inputs, costs=on_cpu({role: (seconds,) * 5 for role, seconds in COSTS.items()}))
    protocol = protocol_for(NUM_ROWS, minimum_gain=0.02, non_inferiority_margin=0.02)
    verdict = decide(measured, protocol=protocol)
    assert (verdict.outcome, verdict.rule) == (Outcome.FINE_TUNE, 7)
    assert verdict.accepted_loss == pytest.approx(0.0005)
    # The bag of words costs less than the candidate, but it is proven worse. Here it is not.
    rival = {"bag_of_words": ModelPredictions(predictions("bag_of_words", right(1_299)))}
    assert decide(replace(measured, contenders=rival), protocol=protocol).rule != 7


def test_accepted_losses_add_up_until_a_champion_is_proven() -> None:
    inputs = inputs_of(right(1_300), right(1_290))
    measured = replace(inputs, costs=on_cpu({role: (COSTS[role],) * 5 for role in ("incumbent", "candidate")}))
    protocol = protocol_for(NUM_ROWS, minimum_gain=0.02, non_inferiority_margin=0.02)
    once = decide(replace(measured, accepted_loss=0.01), protocol=protocol)
    assert once.rule == 7
    assert once.accepted_loss == pytest.approx(0.015)
    refused = decide(replace(measured, accepted_loss=0.015), protocol=protocol)
    assert (refused.rule, refused.accepted_loss) == (9, 0.015)
    assert any("would sum to 2 points, not under the minimum gain" in reason for reason in refused.reasons)
    assert verdict_of(right(1_300), right(1_400)).accepted_loss == 0


def test_rule_1_refuses_a_contender_with_other_rows() -> None:
    inputs = inputs_of(right(1_300), right(1_310), bag_of_words=right(1_400))
    table: Predictions = inputs.contenders["bag_of_words"].clean
    other = replace(table, row_ids=tuple(reversed(table.row_ids)))
    with pytest.raises(VerdictRefused, match="row ids"):
        decide(replace(inputs, contenders={"bag_of_words": ModelPredictions(other)}), protocol=protocol_for(NUM_ROWS))
