"""The external endpoint of a recipe: its baselines, and where its requests are sent.

The process of the run sends all requests. So only its environment needs the API key, and the limits hold for the run.
"""

from collections.abc import Mapping, Sequence
from functools import partial

from tailorbird import storage
from tailorbird.data.rows import Rows
from tailorbird.evaluation.baselines.baseline import Baseline
from tailorbird.evaluation.baselines.endpoint import (
    EndpointContender,
    fit_endpoint_baselines,
    store_endpoint_baselines,
)
from tailorbird.evaluation.gates.cost import RowTokens, endpoint_name
from tailorbird.evaluation.inference.endpoint import answer_rows_of_endpoint
from tailorbird.evaluation.inference.endpoint_requests import RequestLimits, fetch_answers
from tailorbird.evaluation.inference.hybrid_rows import predict_hybrid
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.predictions import Predictions
from tailorbird.models.endpoint.client import Body
from tailorbird.models.endpoint.completion import EndpointAnswer
from tailorbird.models.endpoint.prompts import label_conversations, label_prompting
from tailorbird.models.loading import load_retrieval_index
from tailorbird.models.retrieval.files import index_files, index_sha256
from tailorbird.models.retrieval.index import build_index
from tailorbird.pipeline.inputs import RunInputs
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.versions import (
    ENDPOINT_KINDS,
    INDEX_FILES,
    Retrieval,
    VersionConfig,
    read_artifact_config,
    read_parts,
)
from tailorbird.storage.node_cache import local_copy


def endpoint_baselines(
    inputs: RunInputs, baselines: Sequence[Baseline], *, config: VersionConfig
) -> tuple[Baseline, ...]:
    """Return the baselines of the recipe's endpoint, or none without one; a cached stage.

    `baselines` are those of the base model. A chat task uses the index of its baseline `retrieved`. `config` supplies
    the fields of the versions that do not depend on the endpoint.
    """
    recipe, splits = inputs.recipe, inputs.splits
    if recipe.evaluation.endpoint is None:
        return ()
    endpoint, limits = Endpoint.from_config(recipe.evaluation.endpoint), request_limits(inputs)
    evaluation, seed = recipe.evaluation, recipe.training.seed
    retrieved = next((baseline.uri for baseline in baselines if baseline.kind == "retrieved"), None)

    def send(bodies: Sequence[Body], endpoint: Endpoint) -> Sequence[EndpointAnswer]:
        return fetch_answers(bodies, endpoint=endpoint, task_uri=recipe.task_uri, limits=limits)

    def compute(uri: str) -> tuple[Baseline, ...]:
        contender, files = (
            _classifier(inputs, endpoint, config=config)
            if retrieved is None
            else _chat(retrieved, endpoint, config=config)
        )
        results = fit_endpoint_baselines(
            contender,
            train=splits.train,
            validation=splits.validation,
            config=evaluation,
            seed=seed,
            fetch_answers=send,
        )
        return store_endpoint_baselines(uri, results, index_files=files)

    named = {
        "endpoint": endpoint.model_dump(mode="json", exclude={"max_spend"}),
        "prompting": config.prompting and config.prompting.model_dump(mode="json"),
        "shots": evaluation.prompt_shots,
        "draws": evaluation.prompt_draws,
        "retrieved": [evaluation.retrieved_examples, evaluation.retrieved_tokens, retrieved],
        "metric": evaluation.metric,
        "seed": seed,
    }
    stage_inputs = inputs.stage_inputs(fit_endpoint_baselines, endpoint_baselines, **named)
    return inputs.cached("endpoint", output=tuple[Baseline, ...], inputs=stage_inputs, compute=compute)


def predict_contender(inputs: RunInputs, uri: str, *, rows: Rows, on_gpu: bool = False) -> Predictions:
    """Return the predictions of a contender: of an endpoint from this process, of other models in a Ray task.

    Raises RegistryError before the first request if a part of a hybrid is missing or has another digest.
    """
    config = read_artifact_config(uri)
    if config.hybrid is not None:
        predict = partial(_predict_part, inputs, on_gpu=on_gpu)
        first, second = (partial(predict, part.uri) for part in read_parts(config.hybrid))
        return predict_hybrid(config.hybrid.routing, rows=rows, first=first, second=second)
    if config.kind in ENDPOINT_KINDS:
        return predict_rows(uri, rows=rows, limits=request_limits(inputs))
    return inputs.remote_evaluation(predict_rows)(uri, rows=rows, on_gpu=on_gpu)


def _predict_part(inputs: RunInputs, uri: str, rows: Rows, *, on_gpu: bool) -> Predictions:
    return predict_contender(inputs, uri, rows=rows, on_gpu=on_gpu)


def row_tokens(inputs: RunInputs, uri: str, *, rows: Rows) -> RowTokens | None:
    """Return the tokens of an endpoint for each row; None if the model at `uri` is not an endpoint.

    The requests for the rows are sent unless their answers are stored.
    """
    config = read_artifact_config(uri)
    if config.endpoint is None:
        return None
    answers = answer_rows_of_endpoint(uri, rows=rows, limits=request_limits(inputs))
    return RowTokens(
        endpoint_name(config.endpoint.model, url=config.endpoint.url),
        tuple(answer.input_tokens for answer in answers),
        tuple(answer.output_tokens for answer in answers),
        config.endpoint.prices,
    )


def request_limits(inputs: RunInputs) -> RequestLimits:
    """Return the limits of requests to the endpoint of the recipe."""
    return RequestLimits.from_config(inputs.recipe.evaluation.endpoint)


def _chat(
    retrieved: str, endpoint: Endpoint, *, config: VersionConfig
) -> tuple[EndpointContender, Mapping[str, bytes]]:
    """Return the contender with the index of the baseline at `retrieved`, and the files of the index."""
    with_index = read_artifact_config(retrieved).prompting
    assert with_index is not None
    assert with_index.retrieval is not None
    index = load_retrieval_index(local_copy(retrieved), retrieval=with_index.retrieval, device="cpu")
    assert index is not None
    files = {name: storage.read_bytes(f"{retrieved}/{name}") for name in INDEX_FILES}
    assert config.prompting is not None
    return EndpointContender(endpoint, config.prompting, index, with_index.retrieval, config), files


def _classifier(
    inputs: RunInputs, endpoint: Endpoint, *, config: VersionConfig
) -> tuple[EndpointContender, Mapping[str, bytes]]:
    """Return the contender with an index of the training rows by n-grams, and the files of the index."""
    index = build_index(label_conversations(inputs.splits.train), seed=inputs.recipe.training.seed)
    files = index_files(index)
    retrieval = Retrieval(
        num_examples=1,
        max_prompt_tokens=inputs.recipe.evaluation.retrieved_tokens,
        index_sha256=index_sha256(files),
    )
    return EndpointContender(endpoint, label_prompting(config.classes), index, retrieval, config), files
