"""A trial is stopped when even its hopeful end lies under the best rung, and not before."""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from tuning.stopping import can_still_reach

scores = st.lists(st.floats(0, 1), min_size=2, max_size=6)


def test_after_one_epoch_the_slope_is_unknown_and_it_goes_on() -> None:
    assert can_still_reach([0.0], epochs_left=9, to_beat=1.0, num_rows=1000)
    assert can_still_reach([], epochs_left=9, to_beat=1.0, num_rows=1000)


def test_a_finished_trial_is_not_stopped() -> None:
    assert can_still_reach([0.1, 0.1], epochs_left=0, to_beat=0.9, num_rows=1000)


def test_a_flat_trial_far_under_the_best_rung_is_stopped() -> None:
    assert not can_still_reach([0.5, 0.5], epochs_left=3, to_beat=0.7, num_rows=1000)


def test_a_falling_trial_gets_no_credit_for_its_slope() -> None:
    assert not can_still_reach([0.6, 0.5], epochs_left=3, to_beat=0.7, num_rows=1000)
    assert can_still_reach([0.6, 0.5], epochs_left=3, to_beat=0.5, num_rows=1000)


def test_a_rising_trial_goes_on_as_long_as_its_slope_can_carry_it() -> None:
    assert can_still_reach([0.5, 0.6], epochs_left=2, to_beat=0.79, num_rows=100_000)
    assert not can_still_reach([0.5, 0.6], epochs_left=1, to_beat=0.79, num_rows=100_000)


def test_on_few_rows_the_doubt_is_larger_than_on_many() -> None:
    assert can_still_reach([0.5, 0.5], epochs_left=1, to_beat=0.55, num_rows=100)
    assert not can_still_reach([0.5, 0.5], epochs_left=1, to_beat=0.55, num_rows=10_000)


@given(scores=scores, left=st.integers(1, 5), to_beat=st.floats(0, 1), num_rows=st.integers(1, 10_000))
def test_what_has_reached_the_best_rung_goes_on_and_a_lower_bar_never_stops_more(
    scores: list[float], left: int, to_beat: float, num_rows: int
) -> None:
    if scores[-1] >= to_beat:
        assert can_still_reach(scores, epochs_left=left, to_beat=to_beat, num_rows=num_rows)
    if can_still_reach(scores, epochs_left=left, to_beat=to_beat, num_rows=num_rows):
        assert can_still_reach(scores, epochs_left=left, to_beat=to_beat / 2, num_rows=num_rows)


def test_the_decision_needs_neither_ray_nor_torch() -> None:
    code = "import sys, tuning.stopping, recipes.schema; sys.exit(bool({'ray', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
