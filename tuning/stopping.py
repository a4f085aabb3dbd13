"""Whether a trial can still reach the best pretrained rung: a pure decision from its validation scores so far."""

from collections.abc import Sequence
from math import sqrt

Z_TWO_SIDED_95 = 1.96


def can_still_reach(scores: Sequence[float], *, epochs_left: int, to_beat: float, num_rows: int) -> bool:
    """False when a trial's hopeful end lies under `to_beat`.

    The hope: each epoch left brings as much as the latest one did (accuracy curves flatten, so later epochs bring
    less as a rule), and the score was read 1.96 standard errors too low (sqrt(p (1 - p) / `num_rows`)). After one
    epoch the slope is unknown and the trial goes on.
    """
    if len(scores) < 2 or epochs_left == 0:
        return True
    latest = scores[-1]
    slope = max(0.0, scores[-1] - scores[-2])
    error = Z_TWO_SIDED_95 * sqrt(latest * (1 - latest) / num_rows)
    return latest + epochs_left * slope + error >= to_beat
