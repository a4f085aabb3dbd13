"""The requests to an endpoint that preflight announces."""

from typing import Any

from tailorbird.checks.preflight_endpoint import check_endpoint
from tailorbird.checks.preflight_facts import Table
from tailorbird.config.endpoint import EndpointConfig
from tailorbird.config.evaluation import EvaluationConfig

TABLES = tuple(
    Table(split, f"s3://lake/{split}", num_rows=300, num_files=1, num_read=1) for split in ("train", "validation")
)


def lines(tables: tuple[Table, ...] = TABLES, **endpoint: Any) -> list[str]:
    config = EvaluationConfig(
        endpoint=EndpointConfig(url="https://host/v1", model="m", **endpoint), prompt_draws=2, retrieved_examples=(4, 8)
    )
    return [line for result in check_endpoint(config, tables) for line in result.lines()]


def test_the_number_of_requests_on_validation_is_stated() -> None:
    first, remedy = lines()
    assert "https://host/v1 gets the texts of rows: 1,500 requests for 300 validation rows" in first
    assert "set evaluation.endpoint.max_spend" in remedy
    assert "max_spend" not in lines(price_input=1, price_output=1, max_spend=1)[1]
    assert "5 requests for each validation row" in lines(TABLES[:1])[0]


def test_without_an_endpoint_nothing_is_stated() -> None:
    assert list(check_endpoint(EvaluationConfig(), TABLES)) == []
