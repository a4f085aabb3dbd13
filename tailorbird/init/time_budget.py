"""Settings of a draft with which a first run on large data takes hours, not days."""

import os
from dataclasses import dataclass

from tailorbird.data.profiling.token_lengths import TokenLengths
from tailorbird.init.task_defaults import TaskDefaults

NUM_TRIALS = 4
# rows to which a split is not reduced further
LEAST_TRAIN = 1000
LEAST_TEST = 300


@dataclass(frozen=True)
class RunSettings:
    """Settings of a draft that determine how long a run takes. None is no limit."""

    epochs: int
    num_trials: int = NUM_TRIALS
    max_train_rows: int | None = None
    max_validation_rows: int | None = None
    max_test_rows: int | None = None
    is_reduced: bool = False  # true if there are fewer trials, epochs or rows than usual


def draft_settings(
    num_train: int, *, num_test: int, epochs: int, lengths: TokenLengths, defaults: TaskDefaults
) -> RunSettings:
    """Return settings with fewer trials, epochs and rows if an epoch, or the answers to the test
    rows, would be long.

    The limits of `defaults` are for one CPU core and for its base model.
    """
    cores = os.cpu_count() or 1
    epoch_rows = max(LEAST_TRAIN, int(cores * defaults.epoch_tokens / max(1.0, lengths.mean)))
    test_rows = num_test
    if defaults.answer_tokens:
        test_rows = max(
            LEAST_TEST, int(cores * defaults.answer_tokens / max(1.0, lengths.answer_mean))
        )
    limit = test_rows if num_test > test_rows else None
    if num_train <= epoch_rows and limit is None:
        return RunSettings(epochs)
    fewer = epoch_rows if num_train > epoch_rows else None
    return RunSettings(min(2, epochs), 2, fewer, limit, limit, is_reduced=True)
