"""The parts of a verdict."""

from pydantic import BaseModel, ConfigDict

from tailorbird.evaluation.gates.base import Gate
from tailorbird.registry.hybrid_routing import Routing


class VerdictPart(BaseModel):
    """Base class of frozen models without unknown fields; every number is finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TestedModel(VerdictPart):
    """A model that was compared on the test rows."""

    __test__ = False  # pytest must not collect this class

    role: str
    """`incumbent`, `candidate`, `hybrid`, or the kind of another model without fine-tuning."""
    kind: str
    scores: dict[str, float]
    """Score on the compared rows by metric: that of the verdict, then a second one that no decision
    reads."""
    score_on_all: float | None = None
    """Score in the verdict's metric on all test rows, if a compared model was trained on some of
    them."""
    is_fine_tuned: bool
    """True if this run trained it: the candidate, or a hybrid with the candidate."""
    may_replace: bool
    """True for a model without fine-tuning that may replace the incumbent."""
    passes: bool
    """True if no gate stops the model. A model that does not pass is not selected."""
    is_opponent: bool = True
    """False if the model fails a limit that the recipe writes: the others then need not dominate
    it, unless it is the incumbent."""
    gates: tuple[Gate, ...] = ()
    """Gates against the incumbent; of the incumbent, those with an absolute limit."""

    @property
    def score(self) -> float:
        """Score in the verdict's metric."""
        return next(iter(self.scores.values()))


class TestedHybrid(VerdictPart):
    """The rule of the hybrid that was fixed on validation, and the share of the rows of each
    part."""

    __test__ = False

    routing: Routing
    first: str
    """Role of the part that answers first in a cascade; the incumbent if the routing is by
    group."""
    second: str
    share_to_second: float
    """Share of the compared rows that the second part answers."""
    validation: float
    """Score on validation."""
    validation_share_to_second: float


class Power(VerdictPart):
    """How often a test like this one would choose a fine-tuned model, by resampling its rows.

    The candidate's answers are changed on random rows until its gain over the strongest model
    without fine-tuning is the stated one. Gates that fail keep this state, and all others are
    assumed to pass.
    """

    over: str
    """Role of the strongest model without fine-tuning on the compared rows."""
    at_minimum_gain: float
    """Share of tests with FINE_TUNE or HYBRID at a true gain of `minimum_gain`."""
    at_expected_gain: float
    rows_needed: int | None
    """Rows for FINE_TUNE or HYBRID in 80% of tests at the expected gain; None if `MAX_ROWS` are too
    few."""
    limited_by: str
    """Role of the model that most often blocks the candidate at the expected gain, or `gates`;
    empty if none does."""
