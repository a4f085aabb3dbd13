"""A trial stops if its optimistic final score is below the target; a sweep ends if no other trial
can reach it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.evaluation.baselines.baseline import Baseline
from tuning.futility import (
    TrialScores,
    can_still_reach,
    optimistic_final_score,
    set_target,
    sweep_futility,
)

RECORDED = (
    # ICD-10-CM chapters and Banking77, fully fine-tuned MiniLM, on their test rows.
    ((0.709, 0.711, 0.741, 0.736), 2151, 0.692),
    ((0.907, 0.932, 0.942), 3080, 0.927),
    # A sweep over learning rates from 1e-5 to 1e-3 on 512 ICD-10-CM terms; eight trials.
    ((0.4062, 0.6406, 0.6406), 256, 0.605),
    ((0.4531, 0.6172, 0.6133), 256, 0.605),
    ((0.4492, 0.6016, 0.6133), 256, 0.605),
    ((0.3555, 0.5508, 0.5938), 256, 0.605),
    ((0.3516, 0.5312, 0.5625), 256, 0.605),
    ((0.2500, 0.3125, 0.3555), 256, 0.605),
    ((0.3516, 0.3047, 0.2812), 256, 0.605),
    ((0.3477, 0.2891, 0.2695), 256, 0.605),
    # The trials of the same sweep on 384 terms, for four epochs, that exceed the baseline.
    ((0.4844, 0.5820, 0.6016, 0.6016), 256, 0.578),
    ((0.3750, 0.5508, 0.5977, 0.5977), 256, 0.578),
    ((0.3594, 0.5547, 0.6094, 0.5938), 256, 0.578),
)
"""Recorded trainings: the score after each epoch, the number of scored rows, and the score of the
best baseline."""
scores = st.lists(st.floats(0, 1), min_size=2, max_size=6)


def continues(scores: list[float], *, epochs_left: int, to_beat: float, num_rows: int) -> bool:
    return can_still_reach(TrialScores(scores, epochs_left), to_beat=to_beat, num_rows=num_rows)


@pytest.mark.parametrize(
    ("scores", "epochs_left", "expected"),
    [
        ([], 9, True),
        ([0.0], 9, True),  # after its first epoch
        ([0.1, 0.1], 0, True),  # finished
        ([0.5, 0.6], 2, True),
        ([0.5, 0.6], 1, False),
    ],
)
def test_a_trial_is_stopped_if_its_slope_cannot_reach_the_target(
    scores: list[float], epochs_left: int, expected: bool
) -> None:
    assert continues(scores, epochs_left=epochs_left, to_beat=0.79, num_rows=100_000) == expected


@given(
    scores=scores,
    epochs_left=st.integers(1, 5),
    to_beat=st.floats(0, 1),
    num_rows=st.integers(1, 10_000),
)
def test_a_trial_at_the_target_continues_and_a_lower_target_stops_no_more_trials(
    scores: list[float], epochs_left: int, to_beat: float, num_rows: int
) -> None:
    if scores[-1] >= to_beat:
        assert continues(scores, epochs_left=epochs_left, to_beat=to_beat, num_rows=num_rows)
    if continues(scores, epochs_left=epochs_left, to_beat=to_beat, num_rows=num_rows):
        assert continues(scores, epochs_left=epochs_left, to_beat=to_beat / 2, num_rows=num_rows)


def stopped_after(curve: tuple[float, ...], *, to_beat: float, num_rows: int) -> int | None:
    """Return the epoch after which the rule stops a training, or None if it does not stop it."""
    for num in range(1, len(curve)):
        if not continues(
            list(curve[:num]), epochs_left=len(curve) - num, to_beat=to_beat, num_rows=num_rows
        ):
            return num
    return None


@pytest.mark.parametrize(("curve", "num_rows", "baseline"), RECORDED)
def test_no_recorded_training_that_exceeds_the_target_by_over_0_2_points_is_stopped(
    curve: tuple[float, ...], num_rows: int, baseline: float
) -> None:
    targets = [target / 1000 for target in range(round(1000 * baseline), 1001)]
    lost = [
        curve[-1] - target
        for target in targets
        if stopped_after(curve, to_beat=target, num_rows=num_rows)
    ]
    assert max(lost) <= 0.002


def test_hopeless_trials_of_a_recorded_sweep_are_stopped_after_two_epochs() -> None:
    ends = [
        stopped_after(curve, to_beat=0.615, num_rows=num_rows)
        for curve, num_rows, _ in RECORDED[2:10]
    ]
    assert ends == [None, None, None, None, None, 2, 2, 2]


@pytest.mark.parametrize("to_beat", [0.5, 0.62, 0.66, 0.8])
def test_the_recorded_sweep_is_not_ended_wrongly_in_any_order(to_beat: float) -> None:
    trials = [TrialScores(curve, 0) for curve, *_ in RECORDED[2:10]]
    generator = np.random.default_rng(0)
    for _ in range(200):
        order = [trials[index] for index in generator.permutation(len(trials))]
        assert not ended_wrongly(order, to_beat=to_beat, num_rows=256)


def baseline(kind: str, score: float, *, servable: bool = True) -> Baseline:
    return Baseline(kind, None, score, servable, "")


def test_a_trial_is_compared_with_baselines_without_a_bag_of_words_as_it_can_be_mixed_with_one() -> (
    None
):
    baselines = [
        baseline("probe", 0.66),
        baseline("centroid", 0.6),
        baseline("majority", 0.7, servable=False),
        baseline("bag_of_words", 0.75),
        baseline("probe_bag", 0.76),
    ]
    target = set_target(baselines, minimum_gain=0.01)
    assert target.to_beat == pytest.approx(0.67)
    assert target.text == "0.670 (probe + 0.01)"


def test_the_target_is_the_champion_plus_the_minimum_gain_even_if_a_baseline_scores_higher() -> (
    None
):
    baselines = [baseline("champion", 0.7), baseline("probe_bag", 0.75)]
    assert set_target(baselines, minimum_gain=0.01).text == "0.710 (champion + 0.01)"


def finished(*ends: float) -> list[TrialScores]:
    return [TrialScores([end], 0) for end in ends]


def futility(
    trials: list[TrialScores], *, to_beat: float, num_trials: int = 8, num_rows: int = 1000
) -> str | None:
    return sweep_futility(trials, num_trials=num_trials, to_beat=to_beat, num_rows=num_rows)


def test_a_sweep_ends_if_all_trials_score_far_below_the_target() -> None:
    reason = futility(finished(0.5, 0.51, 0.5, 0.52), to_beat=0.8)
    assert (reason or "").startswith(
        "0.800 is out of reach: 4 trials reach at most 0.551, and the best of the other 4 at most "
        "0."
    )


@pytest.mark.parametrize(
    ("trials", "num_trials"),
    [
        (finished(0.1, 0.3, 0.5, 0.7), 8),  # widely spread
        ([*finished(*[0.5] * 7), TrialScores([0.5, 0.6], 2)], 9),  # one can reach it
        (finished(0.5, 0.5, 0.5, 0.5), 4),  # no trial is left
    ],
)
def test_other_sweeps_continue(trials: list[TrialScores], num_trials: int) -> None:
    assert futility(trials, to_beat=0.8, num_trials=num_trials) is None


@pytest.mark.parametrize("deviations", [1.0, 1.5, 2.0, 3.0])
def test_at_most_one_in_twenty_sweeps_with_similar_trials_is_ended_wrongly(
    deviations: float,
) -> None:
    sweeps = np.random.default_rng(0).normal(0.6, 0.03, size=(1000, 8))
    # each optimistic score is 0.03 above the measured score
    to_beat = 0.6 + deviations * 0.03 + 0.03
    wrong = sum(ended_wrongly(finished(*ends), to_beat=to_beat, num_rows=1000) for ends in sweeps)
    assert wrong / len(sweeps) <= 0.05


def ended_wrongly(trials: list[TrialScores], *, to_beat: float, num_rows: int) -> bool:
    """Return True if the rule, applied after each trial, ends the sweep before a trial that would
    reach the target."""
    for num in range(1, len(trials)):
        if futility(trials[:num], to_beat=to_beat, num_trials=len(trials), num_rows=num_rows):
            return any(
                (optimistic_final_score(trial, num_rows=num_rows) or 0.0) >= to_beat
                for trial in trials[num:]
            )
    return False
