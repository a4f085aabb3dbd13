"""The requests that a run sends to the endpoint of its recipe and to that of the champion."""

from collections.abc import Iterator, Sequence

from tailorbird.checks.preflight_facts import Table
from tailorbird.checks.result import CheckResult, note
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.registry.endpoint import Endpoint


def check_endpoint(
    config: EvaluationConfig, tables: Sequence[Table], *, of_champion: Sequence[Endpoint] = ()
) -> Iterator[CheckResult]:
    """State how many requests are sent on validation, because they cost money and contain the texts
    of rows.

    `of_champion` are the endpoints of the champion and of its parts.
    """
    endpoint = config.endpoint
    num_rows = sum(table.num_rows for table in tables if table.split == "validation")
    for other in of_champion:
        if num_rows:
            number = f"{num_rows:,} requests for the validation rows"
        else:
            number = "one request for each validation row"
        text = (
            f"the champion sends the texts of rows to {other.url}: at most {number}, and one for "
            "each test row and changed test row, unless their answers are stored"
        )
        is_limited = endpoint is not None and (endpoint.url, endpoint.model) == (
            other.url,
            other.model,
        )
        if is_limited:
            remedy = ""
        else:
            remedy = f"to limit them, set evaluation.endpoint with the model {other.model!r} there"
        if not is_limited and other.max_spend is not None:
            text += (
                f"; all its stored answers may cost {other.max_spend:g}, the max_spend of its "
                "version"
            )
            remedy = (
                f"to change this limit, set evaluation.endpoint with the model {other.model!r} "
                "there"
            )
        yield note("champion", text, remedy)
    if endpoint is None:
        return
    per_row = config.requests_per_row
    number = f"{per_row} requests for each validation row"
    if num_rows:
        number = f"{per_row * num_rows:,} requests for {num_rows:,} validation rows"
    text = (
        f"{endpoint.url} gets the texts of rows: {number}, and one for each test row and changed "
        "test row and each of its kinds that is tested"
    )
    fewer = (
        "to send fewer requests, lower evaluation.prompt_draws or give fewer "
        "evaluation.retrieved_examples"
    )
    if endpoint.max_spend is not None:
        limit = ""
    else:
        limit = "; to limit their price, set evaluation.endpoint.max_spend"
    yield note("endpoint", text, f"{fewer}{limit}")
