"""The requests that a run sends to the endpoint of its recipe."""

from collections.abc import Iterator, Sequence

from tailorbird.checks.preflight_facts import Table
from tailorbird.checks.result import CheckResult, note
from tailorbird.config.evaluation import EvaluationConfig


def check_endpoint(config: EvaluationConfig, tables: Sequence[Table]) -> Iterator[CheckResult]:
    """State how many requests are sent on validation, because they cost money and contain the texts of rows."""
    endpoint = config.endpoint
    if endpoint is None:
        return
    per_row = 1 + config.prompt_draws + len(set(config.retrieved_examples))
    num_rows = sum(table.num_rows for table in tables if table.split == "validation")
    number = f"{per_row} requests for each validation row"
    if num_rows:
        number = f"{per_row * num_rows:,} requests for {num_rows:,} validation rows"
    text = (
        f"{endpoint.url} gets the texts of rows: {number}, and one for each test row and changed test row and each of "
        "its kinds that is tested"
    )
    fewer = "to send fewer requests, lower evaluation.prompt_draws or give fewer evaluation.retrieved_examples"
    limit = "" if endpoint.max_spend is not None else "; to limit their price, set evaluation.endpoint.max_spend"
    yield note("endpoint", text, f"{fewer}{limit}")
