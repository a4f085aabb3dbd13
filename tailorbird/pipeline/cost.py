"""The cost of serving all contenders of a run, the hybrid's from its parts and the test rows, and
counts of answers."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tailorbird.data.rows import Rows
from tailorbird.evaluation.gates.cost import (
    MeasuredCosts,
    RowTokens,
    ServingUsage,
    Tokens,
    endpoint_name,
    tokens_by_round,
)
from tailorbird.evaluation.hybrid import (
    FrozenHybrid,
    PartUsage,
    answered_by_first,
    hybrid_usage,
    routed_to_second,
)
from tailorbird.evaluation.inference.endpoint_coverage import AnswerCounts, count_answers
from tailorbird.evaluation.inference.endpoint_predictions import answer_rows_of_endpoint
from tailorbird.evaluation.inference.endpoint_requests import RequestLimits
from tailorbird.evaluation.inference.serving_cost import measure_serving
from tailorbird.evaluation.predictions import Predictions
from tailorbird.models.endpoint.completion import EndpointAnswer
from tailorbird.pipeline.endpoint_contender import request_limits
from tailorbird.pipeline.prepare import RunContext
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.hybrid_routing import Routing
from tailorbird.registry.versions import VersionConfig, read_artifact_config


@dataclass(frozen=True)
class _Split:
    """A hybrid whose cost is that of its parts for the test rows that each answers."""

    routing: Routing
    parts: tuple[str, str]  # names under which the parts are measured
    routed: NDArray[np.bool_]  # mask [N] of the test rows that the second part answers


def measure_cost(
    context: RunContext,
    models: Mapping[str, str],
    *,
    hybrid: FrozenHybrid | None,
    tables: Mapping[str, Predictions],
    predict: Callable[[str], Predictions],
) -> MeasuredCosts:
    """Return the cost of all models on the device that serves, measured in alternating rounds; a
    cached stage.

    `models` has the URIs and `tables` the predictions of the test rows by role, and `predict`
    returns the predictions of the model at a URI. The cost of a hybrid, the run's or a champion, is
    that of its parts (`hybrid_usage`).
    """
    test = context.splits.test
    uris, splits = _split(models, tables=tables, predict=predict)
    endpoints = _answers_of_endpoints(
        uris, splits, rows=test, limits=request_limits(context.inputs)
    )
    tokens = {name: endpoint.row_tokens(len(test)) for name, endpoint in endpoints.items()}
    measured = _measured(
        context, uris, tokens={name: tokens_by_round(rows) for name, rows in tokens.items()}
    )

    def part(name: str) -> PartUsage:
        return PartUsage(measured.serving[name], _lengths(test, tables.get(name)), tokens.get(name))

    if hybrid is not None:
        routed = routed_to_second(hybrid.routing, tables[hybrid.first])
        splits["hybrid"] = _Split(hybrid.routing, hybrid.parts, routed)
    serving: dict[str, ServingUsage] = {}
    for role in dict.fromkeys((*models, *splits)):
        if role not in splits:
            serving[role] = measured.serving[role]
            continue
        split = splits[role]
        first, second = map(part, split.parts)
        serving[role] = hybrid_usage(split.routing, routed=split.routed, first=first, second=second)
    emulated = tuple(dict.fromkeys(name.partition(": ")[0] for name in measured.device.emulated))
    return MeasuredCosts(replace(measured.device, emulated=emulated), serving)


def endpoint_answers(
    models: Mapping[str, str],
    *,
    rows: Rows,
    tables: Mapping[str, Predictions],
    predict: Callable[[str], Predictions],
    limits: RequestLimits,
) -> dict[str, AnswerCounts]:
    """Return the counts of the answers of each endpoint to the rows that it answers, by role or
    name of a part.

    `models` has the URIs by role, `tables` the predictions of the rows by role, and `predict`
    returns those of the model at a URI. Requests are sent unless their answers are stored.
    """
    uris, splits = _split(models, tables=tables, predict=predict)
    return {
        name: count_answers(tuple(endpoint.answers.values()), classes=endpoint.config.classes)
        for name, endpoint in _answers_of_endpoints(uris, splits, rows=rows, limits=limits).items()
    }


@dataclass(frozen=True)
class _EndpointAnswers:
    """The answers of an endpoint."""

    config: VersionConfig
    endpoint: Endpoint
    answers: Mapping[int, EndpointAnswer]  # by the position of the row that is answered

    def row_tokens(self, num_rows: int) -> RowTokens:
        """Return the tokens for each row, 0 for those that it does not answer."""
        input_tokens: list[int | None] = [0] * num_rows
        output_tokens: list[int | None] = [0] * num_rows
        for row, answer in self.answers.items():
            input_tokens[row] = answer.input_tokens
            output_tokens[row] = answer.output_tokens
        name = endpoint_name(self.endpoint.model, url=self.endpoint.url)
        return RowTokens(
            endpoint=name,
            input=tuple(input_tokens),
            output=tuple(output_tokens),
            prices=self.endpoint.prices,
        )


def _answers_of_endpoints(
    uris: Mapping[str, str], splits: Mapping[str, _Split], *, rows: Rows, limits: RequestLimits
) -> dict[str, _EndpointAnswers]:
    """Return the answers of the endpoints at `uris` to the rows that they answer, by name."""
    answered: dict[str, NDArray[np.bool_]] = {}
    for split in splits.values():
        answered[split.parts[0]] = answered_by_first(split.routing, split.routed)
        answered[split.parts[1]] = split.routed
    endpoints = {}
    for name, uri in uris.items():
        config = read_artifact_config(uri)
        if config.endpoint is not None:
            sent = np.flatnonzero(answered.get(name, np.ones(len(rows), bool))).tolist()
            answers = answer_rows_of_endpoint(uri, rows=rows.take(sent), limits=limits)
            endpoints[name] = _EndpointAnswers(
                config, config.endpoint, dict(zip(sent, answers, strict=True))
            )
    return endpoints


def _split(
    models: Mapping[str, str],
    *,
    tables: Mapping[str, Predictions],
    predict: Callable[[str], Predictions],
) -> tuple[dict[str, str], dict[str, _Split]]:
    """Return the URIs to measure by role or name of a part, and the hybrids, measured as their
    parts.

    A cascade selects rows by the confidences of its first part.
    """
    uris = {}
    splits = {}
    for role, uri in models.items():
        hybrid = read_artifact_config(uri).hybrid
        if hybrid is None:
            uris[role] = uri
            continue
        parts = (f"{role}: first part", f"{role}: second part")
        uris |= dict(zip(parts, (part.uri for part in hybrid.parts), strict=True))
        table = tables[role]
        if hybrid.routing.by != "group":
            table = predict(hybrid.parts[0].uri)
        splits[role] = _Split(hybrid.routing, parts, routed_to_second(hybrid.routing, table))
    return uris, splits


def _lengths(rows: Rows, table: Predictions | None) -> NDArray[np.float64]:
    """Return a number [N] for each row that is proportional to the time that a model needs for it.

    Most of the time of a language model is that of the tokens of its answer. The time of other
    models is about proportional to the length of the text.
    """
    if table is not None and table.logprobs is not None:
        return np.array([len(table.logprobs_of(row)) for row in range(len(rows))], dtype=np.float64)
    return np.array([len(text) for text in rows.texts], dtype=np.float64)


def _measured(
    context: RunContext, uris: Mapping[str, str], *, tokens: Mapping[str, Tokens]
) -> MeasuredCosts:
    """Return the cost of the models at `uris` for all rows; a cached stage."""
    inputs = context.inputs
    test = context.splits.test
    num_gpus = math.ceil(context.recipe.serving.gpus_per_replica)
    num_rows = context.task.num_cost_rows
    if num_gpus:
        num_rows = context.task.num_cost_rows_gpu
    rows = test.take(range(min(len(test), num_rows)))
    batch_size = context.recipe.serving.batch_size(context.recipe.task)
    named = {
        "models": uris,
        "test": inputs.data.hashes["test"],
        "num_gpus": num_gpus,
        "batch_size": batch_size,
    }
    stage_inputs = inputs.stage_inputs(measure_serving, **named)

    def compute(_: str) -> MeasuredCosts:
        measure = inputs.remote_evaluation(measure_serving)
        return measure(uris, rows=rows, num_gpus=num_gpus, tokens=tokens, batch_size=batch_size)

    return inputs.cached("cost", output=MeasuredCosts, inputs=stage_inputs, compute=compute)
