"""Options that several commands share."""

import pytest

from tailorbird.cli.options import with_training


@pytest.mark.parametrize(
    ("overrides", "train_anyway", "expected"),
    [
        (None, False, []),
        (["tuning.num_trials=2"], False, ["tuning.num_trials=2"]),
        (["tuning.num_trials=2"], True, ["tuning.num_trials=2", "tuning.train_anyway=true"]),
    ],
)
def test_train_anyway_overrides_the_recipe(
    overrides: list[str] | None, train_anyway: bool, expected: list[str]
) -> None:
    assert with_training(overrides, train_anyway=train_anyway) == expected
