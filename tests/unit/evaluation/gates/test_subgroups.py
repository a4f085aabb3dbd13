"""Tests of the groups gate on paired counts for each condition."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.meta_analysis import combine_effects

from tailorbird.config.evaluation import SubgroupGateConfig
from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.gates.subgroups import (
    gap,
    groups_gate,
    harm_level,
    likely_level,
    proven_harmed,
    shrunken_changes,
)
from tailorbird.evaluation.predictions import Predictions, VerdictRefused
from tailorbird.evaluation.statistics.paired import PairedCounts, mcnemar_midp, newcombe_paired_interval
from tailorbird.evaluation.statistics.scoring import macro_f1

LIMITS = SubgroupGateConfig(max_loss=0.03)
UNHARMED = (1400, 100, 100, 400)
HELPED = (1400, 160, 100, 340)


def gate_of(groups: dict[str, tuple[int, int, int, int]], *, limits: SubgroupGateConfig = LIMITS) -> Gate:
    """Return the gate for one column with paired counts (both right, only candidate, only incumbent, neither)."""
    candidate, incumbent = tables({"sex": groups})
    return groups_gate(candidate, incumbent=incumbent, limits=limits, alpha=0.05)


def tables(columns: dict[str, dict[str, tuple[int, int, int, int]]]) -> tuple[Predictions, Predictions]:
    """Return candidate and incumbent with the counts of the first column; further columns have the same values."""
    ours, theirs, names = [], [], []
    for name, (both, only_ours, only_theirs, neither) in next(iter(columns.values())).items():
        ours += [1.0] * (both + only_ours) + [0.0] * (only_theirs + neither)
        theirs += [1.0] * both + [0.0] * only_ours + [1.0] * only_theirs + [0.0] * neither
        names += [name] * (both + only_ours + only_theirs + neither)
    return tuple(table(scores, {column: tuple(names) for column in columns}) for scores in (ours, theirs))  # type: ignore[return-value]


def table(scores: list[float], groups: dict[str, tuple[str, ...]]) -> Predictions:
    """Return predictions with the given scores and groups."""
    n = len(scores)
    outputs = tuple("a" if score == 1 else "b" for score in scores)
    row_ids = tuple(str(row) for row in range(n))
    return Predictions("full", row_ids, ("a",) * n, outputs, np.array(scores), np.ones(n), np.ones(n), groups)


def state_of(gate: Gate, group: str) -> State:
    """Return the state of the bound of `sex = group`."""
    return next(bound.state for bound in gate.bounds if bound.what == f"change for sex = {group}")


def test_an_unharmed_group_of_many_rows_passes() -> None:
    gate = gate_of({"female": UNHARMED, "male": UNHARMED})
    assert gate.state is State.PASSES
    assert [bound.what for bound in gate.bounds] == ["change for sex = female", "change for sex = male"]
    assert gate.bounds[0].limit == -0.03


def test_a_proven_harm_fails_even_if_it_is_smaller_than_max_loss() -> None:
    counts = (9000, 10, 100, 890)
    assert newcombe_paired_interval(PairedCounts(*counts))[0] > -0.03
    assert state_of(gate_of({"female": UNHARMED, "male": counts}), "male") is State.FAILS


def test_harm_that_is_significant_in_a_single_group_is_not_among_three_groups() -> None:
    slight = (1900, 20, 36, 44)  # mid-p 0.03
    assert 0.025 < mcnemar_midp(PairedCounts(*slight)) < 0.05
    assert state_of(gate_of({"male": slight}), "male") is State.FAILS
    three = gate_of({"female": UNHARMED, "male": slight, "other": UNHARMED})
    assert state_of(three, "male") is State.PASSES
    assert "groups proven worse (Holm over 3 groups): none" in three.note


def test_holm_continues_after_a_significant_group_and_stops_at_the_first_other() -> None:
    strong, second, weak = PairedCounts(900, 5, 60, 35), PairedCounts(1900, 20, 36, 44), PairedCounts(1900, 20, 34, 46)
    # The p value of the second group is below alpha / 1 but not below alpha / 2.
    assert proven_harmed([second, strong], alpha=0.05) == [True, True]
    assert proven_harmed([weak, second, strong], alpha=0.05) == [False, False, True]


def test_a_proven_gain_is_not_harm_but_counts_in_the_step_down() -> None:
    gain, slight = PairedCounts(900, 60, 5, 35), PairedCounts(1900, 20, 36, 44)
    assert proven_harmed([gain, slight], alpha=0.05) == [False, True]


@pytest.mark.parametrize(
    ("counts", "state"),
    [
        ((70, 2, 7, 21), State.FAILS),  # 5 points lost on 100 rows
        ((69, 2, 7, 21), State.FAILS),  # the same on 99 rows
        ((20, 1, 5, 4), State.FAILS),  # 13 points lost on 30 rows
        ((70, 9, 13, 8), State.NOT_ASSESSABLE),  # 4 points lost on 100 rows, which is no more than chance
        ((81, 1, 3, 15), State.NOT_ASSESSABLE),  # 2 points lost
    ],
)
def test_a_likely_loss_fails_at_every_number_of_rows(counts: tuple[int, int, int, int], state: State) -> None:
    groups = {"male": counts, "female": HELPED}
    assert not any(proven_harmed([PairedCounts(*values) for values in groups.values()], alpha=0.05))
    assert state_of(gate_of(groups), "male") is state
    only_proven = SubgroupGateConfig(max_loss=0.03, likely_harm=0)
    assert state_of(gate_of(groups, limits=only_proven), "male") is State.NOT_ASSESSABLE


def test_a_loss_must_be_more_likely_among_more_small_groups() -> None:
    counts = (70, 2, 7, 21)
    assert state_of(gate_of({"male": counts, "female": HELPED}), "male") is State.FAILS
    many = {f"g{number}": HELPED for number in range(20)}
    assert state_of(gate_of({"male": counts, **many}), "male") is State.FAILS  # chance harms no large group
    small = {f"g{number}": (70, 11, 8, 11) for number in range(20)}
    assert state_of(gate_of({"male": counts, **small}), "male") is State.NOT_ASSESSABLE


def test_the_level_of_a_likely_loss_refuses_one_candidate_in_twenty_at_most() -> None:
    small, large = PairedCounts(70, 9, 8, 13), PairedCounts(1400, 115, 100, 385)
    levels = [harm_level([small] * num, limits=LIMITS, alpha=0.05) for num in (1, 4, 16)]
    assert levels == sorted(levels, reverse=True)
    assert 0.05 / 16 < levels[2] < 3 * 0.05 / 16  # a gain of one point, so somewhat above Bonferroni's level
    assert harm_level([large] * 4, limits=LIMITS, alpha=0.05) == LIMITS.likely_harm


def test_groups_of_too_few_documents_do_not_lower_the_level_of_a_likely_loss() -> None:
    errors, freedom = np.array([0.05, np.inf]), np.array([40.0, 1.0])
    alone = likely_level(0.02, errors=errors[:1], freedom=freedom[:1], limits=LIMITS)
    assert 0 < alone == likely_level(0.02, errors=errors, freedom=freedom, limits=LIMITS)
    assert likely_level(0.02, errors=errors[1:], freedom=freedom[1:], limits=LIMITS) == 0


def test_macro_f1_is_compared_within_each_group() -> None:
    counts = {"female": (900, 60, 20, 20), "male": (300, 5, 60, 35)}
    candidate, incumbent = tables({"sex": counts})
    labels = tuple("a" if row % 3 else "b" for row in range(len(candidate)))
    swap = {"a": "b", "b": "a"}
    pair = [
        replace(
            model,
            labels=labels,
            outputs=tuple(label if score else swap[label] for label, score in zip(labels, model.scores, strict=True)),
        )
        for model in (candidate, incumbent)
    ]
    gate = groups_gate(pair[0], incumbent=pair[1], limits=LIMITS, alpha=0.05, metric="macro_f1")
    rows = slice(1000, 1400)
    scores = [macro_f1(model.labels[rows], outputs=model.outputs[rows]) for model in pair]
    assert gate.bounds[1].estimate == pytest.approx(scores[0] - scores[1])
    assert [bound.state for bound in gate.bounds] == [State.PASSES, State.FAILS]
    assert "accuracies differ" in gate.note


def test_changes_are_shrunken_to_their_mean_and_to_one_value_if_they_differ_by_chance() -> None:
    by_chance = shrunken_changes([(0.03, 0.02), (0.01, 0.02), (0.02, 0.02)])
    assert by_chance == pytest.approx([0.02] * 3)
    estimates = [(0.05, 0.01), (0.04, 0.02), (-0.10, 0.03)]
    shrunken = shrunken_changes(estimates)
    centre = [
        (change - gain) / (1 if change > gain else -1) for (gain, _), change in zip(estimates, shrunken, strict=True)
    ]
    assert all(0 < move < 0.05 for move in centre)
    assert -0.10 < shrunken[2] < 0 < shrunken[1]
    assert shrunken_changes([(0.05, 0.01)]) == [0.05]


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.05])
def test_shrunken_changes_are_those_of_statsmodels(spread: float) -> None:
    generator = np.random.default_rng(3)
    for _ in range(50):
        errors = generator.uniform(0.005, 0.05, 6)
        changes = generator.normal(0.02, spread, 6) + errors * generator.normal(size=6)
        pooled = combine_effects(changes, errors**2, method_re="iterated")
        own = pooled.tau2 / (pooled.tau2 + errors**2)
        expected = own * changes + (1 - own) * pooled.mean_effect_re
        assert shrunken_changes(list(zip(changes, errors, strict=True))) == pytest.approx(expected, abs=1e-12)


def test_each_bound_has_the_shrunken_change() -> None:
    bounds = gate_of({"female": UNHARMED, "male": (70, 9, 6, 15)}).bounds
    assert bounds[1].shrunken is not None
    assert 0 <= bounds[1].shrunken < bounds[1].estimate


def test_a_small_group_is_not_assessable_and_reports_the_rows_needed() -> None:
    gate = gate_of({"female": UNHARMED, "male": (70, 9, 6, 15)})
    assert gate.state is State.NOT_ASSESSABLE
    assert gate.bounds[1].rows_needed == 1308
    assert gate.bounds[0].rows_needed is None


def test_a_tiny_group_without_differences_is_not_assessable_and_needs_more_rows() -> None:
    bound = gate_of({"male": (5, 0, 0, 0), "female": UNHARMED}).bounds[1]
    assert bound.state is State.NOT_ASSESSABLE
    assert bound.rows_needed is not None
    assert bound.rows_needed > 5


def test_rows_without_a_group_are_a_group() -> None:
    gate = gate_of({"female": UNHARMED, "(none)": (900, 0, 60, 40)})
    assert state_of(gate, "(none)") is State.FAILS


def test_the_groups_of_all_columns_share_a_single_step_down() -> None:
    slight = (1900, 20, 36, 44)
    candidate, incumbent = tables({"sex": {"male": slight}, "site": {"male": slight}})
    gate = groups_gate(candidate, incumbent=incumbent, limits=LIMITS, alpha=0.05)
    assert [bound.what for bound in gate.bounds] == ["change for sex = male", "change for site = male"]
    assert gate.state is State.PASSES  # a single column would fail


def test_without_a_group_column_the_gate_is_not_assessable() -> None:
    ungrouped = table([1.0], {})
    gate = groups_gate(ungrouped, incumbent=ungrouped, limits=LIMITS, alpha=0.05)
    assert (gate.state, gate.bounds) == (State.NOT_ASSESSABLE, ())
    assert "data.groups" in gate.note


def test_different_groups_and_fractional_scores_are_refused() -> None:
    first, second = table([1.0, 0.0], {"sex": ("m", "f")}), table([1.0, 0.0], {"sex": ("f", "m")})
    with pytest.raises(VerdictRefused, match="differ in their groups"):
        groups_gate(first, incumbent=second, limits=LIMITS, alpha=0.05)
    fractional = table([0.5, 0.0], {"sex": ("m", "f")})
    with pytest.raises(ValueError, match="scores other than 0 and 1"):
        groups_gate(fractional, incumbent=fractional, limits=LIMITS, alpha=0.05)


def test_a_gap_by_chance_has_a_large_p_value_and_a_real_gap_a_small_one() -> None:
    generator = np.random.default_rng(0)
    members = np.array_split(np.arange(600), 6)
    random = gap((generator.random(600) < 0.7).astype(float), groups=members)
    assert random.p_value > 0.05
    assert random.usual > 0.06  # small groups differ by more than 6 points by chance
    unequal = gap(np.repeat([1.0, 1, 1, 1, 1, 0.4], 100), groups=members)
    assert unequal.observed == pytest.approx(0.6)
    assert unequal.p_value == pytest.approx(1 / 1001)
    assert gap(np.ones(600), groups=members).p_value == 1


@pytest.mark.slow
def test_p_values_of_random_gaps_are_uniform() -> None:
    generator = np.random.default_rng(3)
    members = np.array_split(np.arange(200), 4)
    values = [gap(generator.normal(size=200), groups=members).p_value for _ in range(60)]
    assert np.mean(np.array(values) < 0.2) == pytest.approx(0.2, abs=0.16)


def test_the_note_reports_the_gap_of_each_column_with_several_groups() -> None:
    note = gate_of({"female": (150, 10, 10, 30), "male": (90, 10, 10, 90)}).note
    assert "sex: between groups, accuracies differ by 30.0 points" in note
    assert "changes differ by 0.0 points" in note
    assert "sex has a single group" in gate_of({"female": UNHARMED}).note


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from("abc")), min_size=1, max_size=60),
    st.floats(0.001, 0.5),
)
def test_any_groups_have_one_bound_each(rows: list[tuple[bool, bool, str]], max_loss: float) -> None:
    names = {"sex": tuple(row[2] for row in rows)}
    ours, theirs = (table([float(row[which]) for row in rows], names) for which in (0, 1))
    gate = groups_gate(ours, incumbent=theirs, limits=SubgroupGateConfig(max_loss=max_loss), alpha=0.05)
    assert len(gate.bounds) == len(set(names["sex"]))
    assert sum(bound.n for bound in gate.bounds) == len(rows)
    for bound in gate.bounds:
        assert (bound.rows_needed is not None) == (bound.state is State.NOT_ASSESSABLE)
