"""The groups' rule, first that holds, on paired counts made for each line of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailorbird.config.evaluation import SubgroupGateConfig
from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.gates.subgroups import gap, groups_gate, proven_harmed
from tailorbird.evaluation.predictions import Predictions, VerdictRefused
from tailorbird.evaluation.statistics.paired import PairedCounts, mcnemar_midp, newcombe_paired_interval

LIMITS = SubgroupGateConfig(max_loss=0.03, min_rows=100)
UNHARMED = (1400, 100, 100, 400)


def judged(groups: dict[str, tuple[int, int, int, int]], *, limits: SubgroupGateConfig = LIMITS) -> Gate:
    """The gate on one column with these paired counts (both right, only candidate, only incumbent, neither)."""
    candidate, incumbent = tables({"sex": groups})
    return groups_gate(candidate, incumbent=incumbent, limits=limits, alpha=0.05)


def tables(columns: dict[str, dict[str, tuple[int, int, int, int]]]) -> tuple[Predictions, Predictions]:
    """Candidate and incumbent with the first column's counts; further columns only name groups of the same sizes."""
    ours, theirs, names = [], [], []
    for name, (both, only_ours, only_theirs, neither) in next(iter(columns.values())).items():
        ours += [1.0] * (both + only_ours) + [0.0] * (only_theirs + neither)
        theirs += [1.0] * both + [0.0] * only_ours + [1.0] * only_theirs + [0.0] * neither
        names += [name] * (both + only_ours + only_theirs + neither)
    return tuple(table(scores, {column: tuple(names) for column in columns}) for scores in (ours, theirs))  # type: ignore[return-value]


def table(scores: list[float], groups: dict[str, tuple[str, ...]]) -> Predictions:
    """Predictions with these scores."""
    n = len(scores)
    outputs = tuple("a" if score == 1 else "b" for score in scores)
    row_ids = tuple(str(row) for row in range(n))
    return Predictions("full", row_ids, ("a",) * n, outputs, np.array(scores), np.ones(n), np.ones(n), groups)


def state_of(gate: Gate, group: str) -> State:
    """State of `sex = group`."""
    return next(bound.state for bound in gate.bounds if bound.what == f"change in sex = {group}")


def test_an_unharmed_group_of_many_rows_passes() -> None:
    gate = judged({"female": UNHARMED, "male": UNHARMED})
    assert gate.state is State.PASSES
    assert [bound.what for bound in gate.bounds] == ["change in sex = female", "change in sex = male"]
    assert gate.bounds[0].limit == -0.03


def test_a_proven_harm_fails_even_where_it_is_under_the_allowed_loss() -> None:
    counts = (9000, 10, 100, 890)
    assert newcombe_paired_interval(PairedCounts(*counts))[0] > -0.03
    assert state_of(judged({"female": UNHARMED, "male": counts}), "male") is State.FAILS


def test_a_harm_that_only_one_test_proves_is_no_proof_among_many_groups() -> None:
    slight = (1900, 20, 36, 44)  # mid-p 0.03
    assert 0.025 < mcnemar_midp(PairedCounts(*slight)) < 0.05
    assert state_of(judged({"male": slight}), "male") is State.FAILS
    among = judged({"female": UNHARMED, "male": slight, "other": UNHARMED})
    assert state_of(among, "male") is State.PASSES
    assert "proven worse after Holm over 3 groups: none" in among.note


def test_holm_goes_on_behind_the_first_and_stops_at_the_first_that_fails() -> None:
    strong, second, weak = PairedCounts(900, 5, 60, 35), PairedCounts(1900, 20, 36, 44), PairedCounts(1900, 20, 34, 46)
    # The second's p is under alpha / 1 but not under alpha / 2.
    assert proven_harmed([second, strong], alpha=0.05) == [True, True]
    assert proven_harmed([weak, second, strong], alpha=0.05) == [False, False, True]


def test_a_proven_gain_is_no_harm_yet_counts_in_the_step_down() -> None:
    gain, slight = PairedCounts(900, 60, 5, 35), PairedCounts(1900, 20, 36, 44)
    assert proven_harmed([gain, slight], alpha=0.05) == [False, True]


@pytest.mark.parametrize(
    ("counts", "state"),
    [
        ((80, 0, 3, 17), State.FAILS),  # a point of exactly -3 points on exactly 100 rows
        ((79, 0, 3, 17), State.NOT_ASSESSABLE),  # 99 rows
        ((81, 1, 3, 15), State.NOT_ASSESSABLE),  # -2 points
    ],
)
def test_a_point_decides_from_the_allowed_loss_and_from_the_least_rows_on(
    counts: tuple[int, int, int, int], state: State
) -> None:
    assert state_of(judged({"male": counts, "female": UNHARMED}), "male") is state


def test_a_small_group_is_not_assessable_and_says_how_many_rows_an_unharmed_one_takes() -> None:
    gate = judged({"female": UNHARMED, "male": (70, 9, 6, 15)})
    assert gate.state is State.NOT_ASSESSABLE
    assert gate.bounds[1].rows_needed == 1308
    assert gate.bounds[0].rows_needed is None


def test_a_tiny_group_that_never_differed_is_not_passed_and_needs_rows_all_the_same() -> None:
    bound = judged({"male": (5, 0, 0, 0), "female": UNHARMED}).bounds[1]
    assert bound.state is State.NOT_ASSESSABLE
    assert bound.rows_needed is not None
    assert bound.rows_needed > 5


def test_rows_without_a_group_are_a_group() -> None:
    gate = judged({"female": UNHARMED, "(none)": (900, 0, 60, 40)})
    assert state_of(gate, "(none)") is State.FAILS


def test_groups_of_all_columns_share_one_step_down() -> None:
    slight = (1900, 20, 36, 44)
    candidate, incumbent = tables({"sex": {"male": slight}, "site": {"male": slight}})
    gate = groups_gate(candidate, incumbent=incumbent, limits=LIMITS, alpha=0.05)
    assert [bound.what for bound in gate.bounds] == ["change in sex = male", "change in site = male"]
    assert gate.state is State.PASSES  # each alone would fail


def test_without_a_group_column_nothing_is_assessable() -> None:
    none = table([1.0], {})
    gate = groups_gate(none, incumbent=none, limits=LIMITS, alpha=0.05)
    assert (gate.state, gate.bounds) == (State.NOT_ASSESSABLE, ())
    assert "data.groups" in gate.note


def test_groups_that_differ_between_the_models_and_scores_of_another_kind_are_refused() -> None:
    here, there = table([1.0, 0.0], {"sex": ("m", "f")}), table([1.0, 0.0], {"sex": ("f", "m")})
    with pytest.raises(VerdictRefused, match="differ in their groups"):
        groups_gate(here, incumbent=there, limits=LIMITS, alpha=0.05)
    half = table([0.5, 0.0], {"sex": ("m", "f")})
    with pytest.raises(ValueError, match="scores of 0 and 1"):
        groups_gate(half, incumbent=half, limits=LIMITS, alpha=0.05)


def test_a_gap_that_chance_gives_has_a_large_p_and_one_that_it_does_not_a_small() -> None:
    generator = np.random.default_rng(0)
    members = np.array_split(np.arange(600), 6)
    by_lot = gap((generator.random(600) < 0.7).astype(float), groups=members)
    assert by_lot.p_value > 0.05
    assert by_lot.usual > 0.06  # several small groups differ by more than 6 points by chance
    unequal = gap(np.repeat([1.0, 1, 1, 1, 1, 0.4], 100), groups=members)
    assert unequal.observed == pytest.approx(0.6)
    assert unequal.p_value == pytest.approx(1 / 1001)
    assert gap(np.ones(600), groups=members).p_value == 1


def test_p_of_gaps_by_lot_is_uniform_enough() -> None:
    generator = np.random.default_rng(3)
    members = np.array_split(np.arange(200), 4)
    values = [gap(generator.normal(size=200), groups=members).p_value for _ in range(60)]
    assert np.mean(np.array(values) < 0.2) == pytest.approx(0.2, abs=0.16)


def test_the_note_tells_each_columns_gap_and_a_single_group_has_none() -> None:
    note = judged({"female": (150, 10, 10, 30), "male": (90, 10, 10, 90)}).note
    assert "sex: between groups accuracies differ by 30.0 points" in note
    assert "changes differ by 0.0 points" in note
    assert "sex has one group" in judged({"female": UNHARMED}).note


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from("abc")), min_size=1, max_size=60),
    st.floats(0.001, 0.5),
)
def test_any_groups_give_each_one_state(rows: list[tuple[bool, bool, str]], max_loss: float) -> None:
    names = {"sex": tuple(row[2] for row in rows)}
    ours, theirs = (table([float(row[which]) for row in rows], names) for which in (0, 1))
    gate = groups_gate(ours, incumbent=theirs, limits=SubgroupGateConfig(max_loss=max_loss), alpha=0.05)
    assert len(gate.bounds) == len(set(names["sex"]))
    assert sum(bound.n for bound in gate.bounds) == len(rows)
    for bound in gate.bounds:
        assert (bound.rows_needed is not None) == (bound.state is State.NOT_ASSESSABLE)
