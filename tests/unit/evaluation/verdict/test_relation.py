"""Tests of a relation with prices: when a gain pays, and when more rows could show that it does."""

import pytest

from tailorbird.evaluation.gates.prices import CostComparison, CostTerms, YearlyNet
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.relation import Gain, Relation, relation_of

PRICES = CostTerms(value_of_correct=1, requests_per_month=1)


def relation(low: float, high: float, *, saving: float) -> Relation:
    """Return the relation of two models; a point is worth 10, and the first model saves an
    amount."""
    net = YearlyNet(value_of_one=1_000, training=0, saving=saving)
    ratio = 0.5 if saving > 0 else 2.0
    protocol = TestProtocol(
        metric="accuracy",
        minimum_gain=0.01,
        non_inferiority_margin=0.01,
        expected_gain=0.02,
        alpha=0.05,
        test_sha256="0" * 64,
        num_test_rows=1_000,
        cost=PRICES,
    )
    gain = Gain((low + high) / 2, (low, high), low, 0.05, ((low + high) / 2, (low, high)))
    return relation_of(
        ("candidate", "incumbent"), gain, cost=CostComparison((ratio,) * 3, net), protocol=protocol
    )


@pytest.mark.parametrize(
    ("low", "high", "saving", "is_out_of_reach"),
    [
        (
            -0.009,
            0.003,
            1.0,
            False,
        ),  # at -0.3 points, 3 is lost and 1 saved, but a gain is possible
        (-0.009, -0.002, 1.0, True),  # 2 or more is lost, and 1 is saved
        (-0.009, -0.002, 3.0, False),
        (0.012, 0.030, -25.0, False),  # at 2.1 points, 21 is gained and 25 paid, but 30 is possible
        (0.012, 0.024, -25.0, True),
    ],
)
def test_a_gain_that_does_not_pay_is_out_of_reach_only_if_the_whole_interval_does_not_pay(
    low: float, high: float, saving: float, is_out_of_reach: bool
) -> None:
    result = relation(low, high, saving=saving)
    assert result.is_out_of_reach is is_out_of_reach
    assert result.dominates is (result.net is not None and result.net > 0)
