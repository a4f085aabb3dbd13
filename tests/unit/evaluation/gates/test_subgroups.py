"""Tests of the groups gate on paired counts for each condition."""

from dataclasses import replace

import numpy as np
import pytest

from tailorbird.config.evaluation import SubgroupGateConfig
from tailorbird.evaluation.gates.base import Estimate, Gate, State
from tailorbird.evaluation.gates.subgroups import group_bounds, groups_gate
from tailorbird.evaluation.predictions import Predictions, VerdictRefused
from tailorbird.evaluation.statistics.paired import PairedCounts, newcombe_paired_interval
from tailorbird.evaluation.statistics.scoring import score_of

LIMITS = SubgroupGateConfig(max_loss=0.03)
UNHARMED = (1400, 100, 100, 400)
HELPED = (1400, 160, 100, 340)


def gate_of(groups: dict[str, tuple[int, int, int, int]], **options: float) -> Gate:
    """Return the gate for one column with paired counts (both right, only candidate, only
    incumbent, neither)."""
    candidate, incumbent = tables({"sex": groups})
    return groups_gate(candidate, incumbent=incumbent, limits=LIMITS, alpha=0.05, **options)


def tables(
    columns: dict[str, dict[str, tuple[int, int, int, int]]],
) -> tuple[Predictions, Predictions]:
    """Return candidate and incumbent with the counts of the first column; further columns have the
    same values."""
    ours, theirs, names = [], [], []
    for name, (both, only_ours, only_theirs, neither) in next(iter(columns.values())).items():
        ours += [1.0] * (both + only_ours) + [0.0] * (only_theirs + neither)
        theirs += [1.0] * both + [0.0] * only_ours + [1.0] * only_theirs + [0.0] * neither
        names += [name] * (both + only_ours + only_theirs + neither)
    return tuple(
        table(scores, {column: tuple(names) for column in columns}) for scores in (ours, theirs)
    )  # type: ignore[return-value]


def table(scores: list[float], groups: dict[str, tuple[str, ...]]) -> Predictions:
    """Return predictions with the given scores and groups."""
    n = len(scores)
    outputs = tuple("a" if score == 1 else "b" for score in scores)
    row_ids = tuple(str(row) for row in range(n))
    return Predictions(
        "full", row_ids, ("a",) * n, outputs, np.array(scores), np.ones(n), np.ones(n), groups
    )


def state_of(gate: Gate, group: str) -> State:
    """Return the state of the bound of `sex = group`."""
    return next(bound.state for bound in gate.bounds if bound.what == f"change for sex = {group}")


def test_a_group_passes_if_a_loss_of_the_limit_is_unlikely() -> None:
    """The 95% interval of 1 point lost on 375 rows contains -3, the one-sided 80% interval does
    not."""
    counts = (262, 26, 30, 57)
    assert newcombe_paired_interval(PairedCounts(*counts))[0] < -0.03
    gate = gate_of({"female": UNHARMED, "male": counts})
    assert state_of(gate, "male") is State.PASSES
    assert "passes if the one-sided 80% interval of its change is above -3 points" in gate.note
    proven = gate_of(
        {"female": UNHARMED, "male": counts},
        likely_harm=0,
    )
    assert state_of(proven, "male") is State.NOT_ASSESSABLE
    assert "the one-sided 97.5% interval" in proven.note


def test_a_significant_loss_within_the_limit_passes() -> None:
    counts = (9000, 10, 100, 890)
    assert newcombe_paired_interval(PairedCounts(*counts))[1] < 0
    assert state_of(gate_of({"female": UNHARMED, "male": counts}), "male") is State.PASSES


@pytest.mark.parametrize(
    ("counts", "state"),
    [
        ((70, 2, 7, 21), State.FAILS),  # 5 points lost on 100 rows
        ((69, 2, 7, 21), State.FAILS),  # the same on 99 rows
        (
            (70, 9, 13, 8),
            State.NOT_ASSESSABLE,
        ),  # 4 points lost on 100 rows, which is no more than chance
        ((81, 1, 3, 15), State.NOT_ASSESSABLE),  # 2 points lost
        ((20, 1, 5, 4), State.NOT_ASSESSABLE),  # 13 points lost on 30 rows
    ],
)
def test_a_likely_loss_that_differs_from_the_other_rows_fails(
    counts: tuple[int, int, int, int], state: State
) -> None:
    groups = {"male": counts, "female": HELPED}
    assert state_of(gate_of(groups), "male") is state
    assert state_of(gate_of(groups, likely_harm=0), "male") is State.NOT_ASSESSABLE


def test_a_loss_must_be_clearer_among_more_groups() -> None:
    counts = (70, 2, 7, 21)
    assert state_of(gate_of({"male": counts, "female": HELPED}), "male") is State.FAILS
    many = {f"g{number}": HELPED for number in range(20)}
    assert state_of(gate_of({"male": counts, **many}), "male") is State.NOT_ASSESSABLE


def test_chance_fails_at_most_one_in_twenty_candidates_that_change_nothing() -> None:
    generator = np.random.default_rng(0)
    z = 1.96
    failed = 0
    for _ in range(1_000):
        gains = 0.02 * generator.standard_normal(8)
        changes = {
            str(row): Estimate(gain, (gain - z * 0.02, gain + z * 0.02), 375, 0.05)
            for row, gain in enumerate(gains)
        }
        states = [
            bound.state for bound in group_bounds(changes, limits=LIMITS, alpha=0.05, level=0.2)
        ]
        failed += State.FAILS in states
    assert 0.02 < failed / 1_000 < 0.07


def test_macro_f1_is_compared_within_each_group() -> None:
    counts = {"female": (900, 60, 20, 20), "male": (300, 5, 60, 35)}
    candidate, incumbent = tables({"sex": counts})
    labels = tuple("a" if row % 3 else "b" for row in range(len(candidate)))
    swap = {"a": "b", "b": "a"}
    pair = [
        replace(
            model,
            labels=labels,
            outputs=tuple(
                label if score else swap[label]
                for label, score in zip(labels, model.scores, strict=True)
            ),
        )
        for model in (candidate, incumbent)
    ]
    gate = groups_gate(pair[0], incumbent=pair[1], limits=LIMITS, alpha=0.05, metric="macro_f1")
    rows = slice(1000, 1400)
    scores = [
        score_of("macro_f1", labels=model.labels[rows], outputs=model.outputs[rows])
        for model in pair
    ]
    assert gate.bounds[1].estimate == pytest.approx(scores[0] - scores[1])
    assert [bound.state for bound in gate.bounds] == [State.PASSES, State.FAILS]


def test_a_small_group_is_not_assessable_and_reports_the_rows_needed() -> None:
    gate = gate_of({"female": UNHARMED, "male": (70, 7, 8, 15)})
    assert gate.state is State.NOT_ASSESSABLE
    # (0.84 + 0.84)^2 times the variance of the difference of a row, divided by 0.03^2
    assert gate.bounds[1].rows_needed == pytest.approx(0.15 * 1.683**2 / 0.03**2, rel=0.1)
    assert gate.bounds[0].rows_needed is None


def test_the_groups_of_all_columns_count() -> None:
    lost = (70, 3, 7, 20)
    single = {"sex": {"male": lost, "female": HELPED}}
    candidate, incumbent = tables(single)
    assert (
        groups_gate(candidate, incumbent=incumbent, limits=LIMITS, alpha=0.05).state is State.FAILS
    )
    columns = {f"site {number}": single["sex"] for number in range(9)}
    candidate, incumbent = tables(single | columns)
    gate = groups_gate(candidate, incumbent=incumbent, limits=LIMITS, alpha=0.05)
    assert [bound.what for bound in gate.bounds[:2]] == [
        "change for sex = female",
        "change for sex = male",
    ]
    assert gate.state is State.NOT_ASSESSABLE


def test_without_a_group_column_the_gate_is_not_assessable() -> None:
    ungrouped = table([1.0], {})
    gate = groups_gate(ungrouped, incumbent=ungrouped, limits=LIMITS, alpha=0.05)
    assert (gate.state, gate.bounds) == (State.NOT_ASSESSABLE, ())
    assert "data.groups" in gate.note


def test_different_groups_are_refused() -> None:
    first, second = table([1.0, 0.0], {"sex": ("m", "f")}), table([1.0, 0.0], {"sex": ("f", "m")})
    with pytest.raises(VerdictRefused, match="differ in their groups"):
        groups_gate(first, incumbent=second, limits=LIMITS, alpha=0.05)
