"""The cost of serving all contenders of a run, the hybrid's from its parts and the test rows, and counts of answers."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tailorbird.data.rows import Rows
from tailorbird.data.task_data import recipe_task
from tailorbird.evaluation.gates.cost import (
    MeasuredCosts,
    RowTokens,
    ServingUsage,
    Tokens,
    endpoint_name,
    tokens_by_round,
)
from tailorbird.evaluation.hybrid import FrozenHybrid, PartUsage, hybrid_usage, routed_to_second
from tailorbird.evaluation.inference.endpoint_coverage import AnswerCounts, count_answers
from tailorbird.evaluation.inference.endpoint_predictions import answer_rows_of_endpoint
from tailorbird.evaluation.inference.endpoint_requests import RequestLimits
from tailorbird.evaluation.inference.serving_cost import host_bytes, measure_serving
from tailorbird.evaluation.predictions import Predictions
from tailorbird.models.endpoint.completion import EndpointAnswer
from tailorbird.models.metadata import read_metadata
from tailorbird.pipeline.artifacts import Contender
from tailorbird.pipeline.endpoint_contender import request_limits
from tailorbird.pipeline.prepare import RunContext
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.versions import Hybrid, VersionConfig, read_artifact_config, read_parts

Parts = tuple[str, str]
"""Names under which the parts of a hybrid are measured."""


def measure_cost(
    context: RunContext,
    contenders: Mapping[str, Contender],
    *,
    hybrid: FrozenHybrid | None,
    tables: Mapping[str, Predictions],
    predict: Callable[[str], Predictions],
) -> MeasuredCosts:
    """Return the cost of all models on the device that serves, measured in alternating rounds; a cached stage.

    `tables` has the predictions of the test rows by role, and `predict` returns those of the model at a URI. A champion
    that is a hybrid with an endpoint is measured as its parts. The cost of such a champion and of the run's `hybrid` is
    that of the parts for the test rows that each answers (see `hybrid_usage`).
    """
    test, models = context.splits.test, {role: contender.uri for role, contender in contenders.items()}
    champions = _hybrids_with_endpoint(models)
    uris = _measured_uris(models, champions)
    parts_of = {role: _names(role) for role in champions}
    routed = _routed(champions, tables=tables, predict=predict)
    of_endpoints = _of_endpoints(uris, champions, routed=routed, rows=test, limits=request_limits(context.inputs))
    tokens = {name: of_endpoint.row_tokens(len(test)) for name, of_endpoint in of_endpoints.items()}
    measured = _measured(context, uris, tokens={name: tokens_by_round(rows) for name, rows in tokens.items()})
    lengths = {name: _lengths(test, tables.get(name)) for name in uris}

    def part(name: str) -> PartUsage:
        return PartUsage(measured.serving[name], lengths[name], tokens.get(name))

    serving: dict[str, ServingUsage] = {}
    for role in contenders:
        if role not in champions:
            serving[role] = measured.serving[role]
            continue
        first, second = map(part, parts_of[role])
        serving[role] = hybrid_usage(champions[role].routing, routed=routed[role], first=first, second=second)
    if hybrid is not None:
        first, second = map(part, hybrid.parts)
        mask = routed_to_second(hybrid.routing, tables[hybrid.first])
        serving["hybrid"] = hybrid_usage(hybrid.routing, routed=mask, first=first, second=second)
    role_of = {name: role for role, names in parts_of.items() for name in names}
    emulated = tuple(dict.fromkeys(role_of.get(name, name) for name in measured.device.emulated))
    return MeasuredCosts(replace(measured.device, emulated=emulated), serving)


def endpoint_answers(
    models: Mapping[str, str],
    *,
    rows: Rows,
    tables: Mapping[str, Predictions],
    predict: Callable[[str], Predictions],
    limits: RequestLimits,
) -> dict[str, AnswerCounts]:
    """Return the counts of the answers of each endpoint to the rows that it answers, by role or name of a part.

    `models` has the URIs by role, `tables` the predictions of the rows by role, and `predict` returns those of the
    model at a URI. Requests are sent unless their answers are stored.
    """
    champions = _hybrids_with_endpoint(models)
    uris, routed = _measured_uris(models, champions), _routed(champions, tables=tables, predict=predict)
    of_endpoints = _of_endpoints(uris, champions, routed=routed, rows=rows, limits=limits)
    return {
        name: count_answers(tuple(of_endpoint.answers.values()), classes=of_endpoint.config.classes)
        for name, of_endpoint in of_endpoints.items()
    }


@dataclass(frozen=True)
class _OfEndpoint:
    """The answers of an endpoint."""

    config: VersionConfig
    endpoint: Endpoint
    answers: Mapping[int, EndpointAnswer]  # by the position of the row, only of rows that it answers

    def row_tokens(self, num_rows: int) -> RowTokens:
        """Return the tokens for each row, 0 for those that it does not answer."""
        rows = [self.answers.get(row) for row in range(num_rows)]
        return RowTokens(
            endpoint_name(self.endpoint.model, url=self.endpoint.url),
            tuple(0 if answer is None else answer.input_tokens for answer in rows),
            tuple(0 if answer is None else answer.output_tokens for answer in rows),
            self.endpoint.prices,
        )


def _of_endpoints(
    uris: Mapping[str, str],
    champions: Mapping[str, Hybrid],
    *,
    routed: Mapping[str, NDArray[np.bool_]],
    rows: Rows,
    limits: RequestLimits,
) -> dict[str, _OfEndpoint]:
    """Return the answers of the endpoints at `uris` to the rows that they answer, by name."""
    answered = {name: mask for role, mask in routed.items() for name, mask in _answered(champions[role], role, mask)}
    of_endpoints = {}
    for name, uri in uris.items():
        config = read_artifact_config(uri)
        if config.endpoint is not None:
            sent = np.flatnonzero(answered.get(name, np.ones(len(rows), bool))).tolist()
            answers = answer_rows_of_endpoint(uri, rows=rows.take(sent), limits=limits)
            of_endpoints[name] = _OfEndpoint(config, config.endpoint, dict(zip(sent, answers, strict=True)))
    return of_endpoints


def _hybrids_with_endpoint(models: Mapping[str, str]) -> dict[str, Hybrid]:
    """Return the models that are hybrids with an endpoint as a part, by role."""
    hybrids = {role: read_artifact_config(uri).hybrid for role, uri in models.items()}
    return {
        role: hybrid
        for role, hybrid in hybrids.items()
        if hybrid is not None and any(part.endpoint for part in read_parts(hybrid))
    }


def _measured_uris(models: Mapping[str, str], champions: Mapping[str, Hybrid]) -> dict[str, str]:
    """Return the URIs of the models by role, with the parts of `champions` instead of these."""
    uris = {role: uri for role, uri in models.items() if role not in champions}
    for role, champion in champions.items():
        uris |= dict(zip(_names(role), (part.uri for part in champion.parts), strict=True))
    return uris


def _routed(
    champions: Mapping[str, Hybrid], *, tables: Mapping[str, Predictions], predict: Callable[[str], Predictions]
) -> dict[str, NDArray[np.bool_]]:
    """Return for each champion the mask [N] of the test rows that its second part answers."""
    return {
        role: routed_to_second(champion.routing, _routing_table(champion, role, tables=tables, predict=predict))
        for role, champion in champions.items()
    }


def _names(role: str) -> Parts:
    return f"{role}: first part", f"{role}: second part"


def _routing_table(
    champion: Hybrid, role: str, *, tables: Mapping[str, Predictions], predict: Callable[[str], Predictions]
) -> Predictions:
    """Return the table from which the routing selects rows; a cascade needs the confidences of its first part."""
    return tables[role] if champion.routing.by == "group" else predict(champion.parts[0].uri)


def _answered(
    champion: Hybrid, role: str, routed: NDArray[np.bool_]
) -> tuple[tuple[str, NDArray[np.bool_]], tuple[str, NDArray[np.bool_]]]:
    """Return the names of the parts, each with the mask [N] of the rows that it answers."""
    first, second = _names(role)
    return (first, ~routed if champion.routing.by == "group" else np.ones_like(routed)), (second, routed)


def _lengths(rows: Rows, table: Predictions | None) -> NDArray[np.float64]:
    """Return a number [N] for each row that is proportional to the time that a model needs for it.

    Most of the time of a language model is that of the tokens of its answer. The time of other models is about
    proportional to the length of the text.
    """
    if table is not None and table.logprobs is not None:
        return np.array([len(table.logprobs_of(row)) for row in range(len(rows))], dtype=np.float64)
    return np.array([len(text) for text in rows.texts], dtype=np.float64)


def _measured(context: RunContext, uris: Mapping[str, str], *, tokens: Mapping[str, Tokens]) -> MeasuredCosts:
    """Return the cost of the models at `uris` for all rows; a cached stage."""
    inputs, test = context.inputs, context.splits.test
    num_gpus = math.ceil(context.recipe.serving.gpus_per_replica)
    num_rows = context.task.num_cost_rows_gpu if num_gpus else context.task.num_cost_rows
    rows = test.take(range(min(len(test), num_rows)))
    batch_size = context.recipe.serving.batch_size(context.recipe.task)
    named = {"models": uris, "test": inputs.data.hashes["test"], "num_gpus": num_gpus, "batch_size": batch_size}
    stage_inputs = inputs.stage_inputs(measure_serving, num_ranks=inputs.ranks.number, **named)

    def compute(_: str) -> MeasuredCosts:
        measure = inputs.remote_evaluation(measure_serving, memory_bytes=_host_bytes(context, uris.values()))
        return measure(uris, rows=rows, num_gpus=num_gpus, tokens=tokens, batch_size=batch_size)

    return inputs.cached("cost", output=MeasuredCosts, inputs=stage_inputs, compute=compute)


def _host_bytes(context: RunContext, uris: Iterable[str]) -> int:
    """Return the memory of the host that the measurement of these models needs."""
    recipe = context.recipe
    configs = [read_artifact_config(uri) for uri in uris]
    parts = [read_parts(config.hybrid) if config.hybrid is not None else (config,) for config in configs]
    models = [part for of_one in parts for part in of_one]
    metadata = read_metadata(context.inputs.base_model.uri, task=recipe_task(recipe))
    bf16 = any(model.dtype == "bfloat16" for model in models)
    kinds, num_ranks = [model.kind for model in models], context.inputs.ranks.number
    return host_bytes(kinds, shape=metadata.shape, bf16=bf16, num_ranks=num_ranks)
