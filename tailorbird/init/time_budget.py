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

    @property
    def is_reduced(self) -> bool:
        """True if there are fewer trials, epochs or rows than usual."""
        return self.num_trials < NUM_TRIALS


def draft_settings(
    num_train: int, *, num_test: int, epochs: int, lengths: TokenLengths, defaults: TaskDefaults
) -> RunSettings:
    """Return settings with fewer trials, epochs and rows if an epoch, or the answers to the test
    rows, would be long.

    The limits of `defaults` are for one CPU core and for its base model.
    """
    cores = os.cpu_count() or 1
    max_train_rows = None
    epoch_rows = max(LEAST_TRAIN, int(cores * defaults.epoch_tokens / max(1.0, lengths.mean)))
    if num_train > epoch_rows:
        max_train_rows = epoch_rows

    max_test_rows = None
    if defaults.answer_tokens:
        answers = int(cores * defaults.answer_tokens / max(1.0, lengths.answer_mean))
        if num_test > max(LEAST_TEST, answers):
            max_test_rows = max(LEAST_TEST, answers)

    if max_train_rows is None and max_test_rows is None:
        return RunSettings(epochs)
    return RunSettings(
        epochs=min(2, epochs),
        num_trials=2,
        max_train_rows=max_train_rows,
        max_validation_rows=max_test_rows,
        max_test_rows=max_test_rows,
    )
