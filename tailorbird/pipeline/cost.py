"""The cost of serving all contenders of a run, the hybrid's from its parts and the test rows, and counts of answers."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tailorbird.data.rows import Rows
from tailorbird.data.tasks import data_task
from tailorbird.evaluation.gates.cost import MeasuredCosts, RowTokens, ServingUsage, Tokens, tokens_by_round
from tailorbird.evaluation.hybrid import FrozenHybrid, PartUsage, hybrid_usage, routed_to_second
from tailorbird.evaluation.inference.endpoint_coverage import AnswerCounts
from tailorbird.evaluation.inference.serving_cost import host_bytes, measure_serving
from tailorbird.evaluation.predictions import Predictions
from tailorbird.models.metadata import read_metadata
from tailorbird.pipeline.artifacts import Contender
from tailorbird.pipeline.endpoint import answer_counts, row_tokens
from tailorbird.pipeline.prepare import RunContext
from tailorbird.registry.versions import Hybrid, read_artifact_config, read_parts

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
    test = context.splits.test
    champions = _hybrids_with_endpoint(contenders)
    uris = _measured_uris(contenders, champions)
    parts_of = {role: _names(role) for role in champions}
    routed = _routed(champions, tables=tables, predict=predict)
    answered = {name: mask for role, mask in routed.items() for name, mask in _answered(champions[role], role, mask)}
    tokens = {
        name: counted
        for name, uri in uris.items()
        if (counted := _row_tokens(context, uri, rows=test, answered=answered.get(name))) is not None
    }
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
    context: RunContext,
    contenders: Mapping[str, Contender],
    *,
    tables: Mapping[str, Predictions],
    predict: Callable[[str], Predictions],
) -> dict[str, AnswerCounts]:
    """Return the counts of the answers of each endpoint to the test rows that it answers, by role or name of a part."""
    test, champions = context.splits.test, _hybrids_with_endpoint(contenders)
    routed = _routed(champions, tables=tables, predict=predict)
    answered = {name: mask for role, mask in routed.items() for name, mask in _answered(champions[role], role, mask)}
    counts = {}
    for name, uri in _measured_uris(contenders, champions).items():
        rows = test.take(np.flatnonzero(answered[name])) if name in answered else test
        if (counted := answer_counts(context.inputs, uri, rows=rows)) is not None:
            counts[name] = counted
    return counts


def _hybrids_with_endpoint(contenders: Mapping[str, Contender]) -> dict[str, Hybrid]:
    """Return the champions that are hybrids with an endpoint as a part, by role."""
    hybrids = {role: read_artifact_config(contender.uri).hybrid for role, contender in contenders.items()}
    return {
        role: hybrid
        for role, hybrid in hybrids.items()
        if hybrid is not None and any(part.endpoint for part in read_parts(hybrid))
    }


def _measured_uris(contenders: Mapping[str, Contender], champions: Mapping[str, Hybrid]) -> dict[str, str]:
    """Return the URIs of the contenders by role, with the parts of `champions` instead of these."""
    uris = {role: contender.uri for role, contender in contenders.items() if role not in champions}
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


def _row_tokens(context: RunContext, uri: str, *, rows: Rows, answered: NDArray[np.bool_] | None) -> RowTokens | None:
    """Return the tokens of an endpoint for each row, 0 for those that it does not answer; None for other models."""
    if answered is None:
        return row_tokens(context.inputs, uri, rows=rows)
    sent = np.flatnonzero(answered)
    tokens = row_tokens(context.inputs, uri, rows=rows.take(sent))
    if tokens is None:
        return None
    counts: list[list[int | None]] = [[0] * len(rows), [0] * len(rows)]
    for position, row in enumerate(sent):
        counts[0][row], counts[1][row] = tokens.input[position], tokens.output[position]
    return replace(tokens, input=tuple(counts[0]), output=tuple(counts[1]))


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
    inputs, test, on_gpu = context.inputs, context.splits.test, context.recipe.serving.gpus_per_replica > 0
    num_rows = context.task.num_cost_rows_gpu if on_gpu else context.task.num_cost_rows
    rows = test.take(range(min(len(test), num_rows)))
    batch_size = context.recipe.serving.batch_size(context.recipe.task)
    named = {"models": uris, "test": inputs.data.hashes["test"], "on_gpu": on_gpu, "batch_size": batch_size}
    stage_inputs = inputs.stage_inputs(measure_serving, **named)

    def compute(_: str) -> MeasuredCosts:
        measure = inputs.remote_evaluation(measure_serving, memory_bytes=_host_bytes(context, uris.values()))
        return measure(uris, rows=rows, on_gpu=on_gpu, tokens=tokens, batch_size=batch_size)

    return inputs.cached("cost", output=MeasuredCosts, inputs=stage_inputs, compute=compute)


def _host_bytes(context: RunContext, uris: Iterable[str]) -> int:
    """Return the memory of the host that the measurement of these models needs."""
    recipe = context.recipe
    configs = [read_artifact_config(uri) for uri in uris]
    parts = [read_parts(config.hybrid) if config.hybrid is not None else (config,) for config in configs]
    models = [part for of_one in parts for part in of_one]
    metadata = read_metadata(context.inputs.base_model.uri, task=data_task(recipe.task, system=recipe.data.system))
    bf16 = any(model.dtype == "bfloat16" for model in models)
    return host_bytes([model.kind for model in models], shape=metadata.shape, bf16=bf16)
