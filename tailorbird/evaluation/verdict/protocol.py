"""The test protocol, fixed before training: metric, minimum gain, level, gates, prices and test
rows."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from tailorbird.config.answers import AnswersConfig
from tailorbird.config.evaluation import EvaluationConfig, GatesConfig
from tailorbird.config.serving import ServingConfig
from tailorbird.evaluation.gates.prices import CostTerms
from tailorbird.evaluation.gates.subgroups import LIKELY_HARM
from tailorbird.evaluation.verdict.parts import VerdictPart

VALID_DAYS = 365
"""Days for which a verdict may promote a model, counted from the access to the test rows."""
NO_GATES = GatesConfig(calibration=None, groups=None, counterfactual=None, robustness=None)


class TestProtocol(VerdictPart):
    """The rules for comparing the candidate with the incumbent, registered before the first
    trial."""

    __test__: ClassVar[bool] = False
    """Tells pytest that this class is not a test case."""

    metric: str
    """`evaluation.metric` of the recipe."""
    answers: AnswersConfig | None = None
    """(chat only) How structured answers are compared."""
    minimum_gain: float
    """The smallest gain worth a change of model, as a share (0.01 is one point)."""
    expected_gain: float
    """The gain at which power and the number of rows needed are computed."""
    non_inferiority_margin: float
    """The largest loss at which a hybrid or a cheaper model may replace another model, as a
    share."""
    alpha: float
    """Two-sided level of the tests, over all contenders; a further access to the same test rows has
    a lower one."""
    test_sha256: str
    num_test_rows: int
    regulated: bool = False
    """True if a gate that cannot be assessed stops a change of model."""
    gates: GatesConfig = NO_GATES
    required_gates: tuple[str, ...] = ()
    """Gates whose limits the recipe writes, or all if it is regulated: a model that fails one of
    them is no opponent."""
    suites: dict[str, str] = Field(default_factory=dict)
    """sha256 of the rows of each suite by name; empty without the gate `suites`."""
    cost: CostTerms | None = None
    """Prices, and the replicas of the recipe; None without a cost gate."""
    hybrid: str | None = None
    """Routing of a hybrid; None if the recipe allows no hybrid."""
    likely_harm: float = LIKELY_HARM
    """One-sided level of a likely loss of a group; with 0, a loss must be proven."""


def build_protocol(
    config: EvaluationConfig,
    *,
    serving: ServingConfig,
    test_sha256: str,
    num_test_rows: int,
    suites: Mapping[str, str] | None = None,
) -> TestProtocol:
    """Return a recipe's protocol for these test rows; `non_inferiority_margin` defaults to
    `minimum_gain`.

    `suites` are the sha256 of the rows of each suite by name; by default, there are no suites.
    """
    margin = config.non_inferiority_margin
    return TestProtocol(
        metric=config.metric,
        answers=config.answers,
        minimum_gain=config.minimum_gain,
        expected_gain=expected_gain(config),
        non_inferiority_margin=config.minimum_gain if margin is None else margin,
        alpha=config.alpha,
        test_sha256=test_sha256,
        num_test_rows=num_test_rows,
        regulated=config.regulated,
        gates=config.limits,
        required_gates=config.required_gates,
        suites=dict(suites or {}),
        cost=CostTerms.from_recipe(config, serving=serving),
        hybrid=config.hybrid,
    )


def expected_gain(config: EvaluationConfig) -> float:
    """Return the gain at which power is computed, by default twice `minimum_gain`."""
    if config.expected_gain is None:
        return min(2 * config.minimum_gain, 0.99)
    return config.expected_gain
