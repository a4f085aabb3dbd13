"""The external endpoint of a recipe: its baselines, and where its requests are sent.

The process of the run sends all requests. So only its environment needs the API key, and the limits
hold for the run.
"""

from collections.abc import Mapping, Sequence
from functools import partial

from tailorbird import storage
from tailorbird.config.evaluation import RETRIEVED_TOKENS
from tailorbird.data.rows import Rows
from tailorbird.evaluation.baselines.baseline import Baseline
from tailorbird.evaluation.baselines.chat import store_versions
from tailorbird.evaluation.baselines.endpoint_baselines import (
    EndpointContender,
    fit_endpoint_baseline,
    require_names,
)
from tailorbird.evaluation.inference.endpoint_coverage import (
    AnswerCounts,
    count_answers,
    require_room,
)
from tailorbird.evaluation.inference.endpoint_predictions import request_bodies
from tailorbird.evaluation.inference.endpoint_requests import RequestLimits, fetch_answers
from tailorbird.evaluation.inference.hybrid_rows import predict_hybrid
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.predictions import Predictions
from tailorbird.models.endpoint.client import Body
from tailorbird.models.endpoint.completion import EndpointAnswer
from tailorbird.models.endpoint.prompts import label_conversations, label_prompting
from tailorbird.models.loading import load_retrieval_index
from tailorbird.models.retrieval.files import index_files, index_sha256
from tailorbird.models.retrieval.index import RetrievalIndex, build_index
from tailorbird.pipeline.inputs import RunInputs
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.hybrid_routing import PARTS
from tailorbird.registry.versions import (
    INDEX_FILES,
    Prompting,
    Retrieval,
    VersionConfig,
    read_artifact_config,
    read_parts,
)
from tailorbird.storage.node_cache import local_copy


def endpoint_baseline(
    inputs: RunInputs, name: str, *, baselines: Sequence[Baseline], config: VersionConfig
) -> Baseline:
    """Return the endpoint with this name in the recipe as a baseline; a cached stage.

    `baselines` are those of the base model. A chat task uses the index of its baseline `retrieved`.
    `config` supplies the fields of the version that do not depend on the endpoint.
    """
    recipe = inputs.recipe
    splits = inputs.splits
    evaluation = recipe.evaluation
    endpoint = Endpoint.from_config(evaluation.endpoints[name])
    seed = recipe.training.seed
    retrieved = next((baseline.uri for baseline in baselines if baseline.kind == "retrieved"), None)

    prompting = _prompting(inputs, name, config=config)

    def send(bodies: Sequence[Body], endpoint: Endpoint) -> Sequence[EndpointAnswer]:
        return fetch_answers(
            bodies, endpoint=endpoint, parent=recipe.task_uri, limits=request_limits(inputs)
        )

    def compute(uri: str) -> Baseline:
        if retrieved is None:
            index, retrieval, files = _index_of_training_rows(inputs)
        else:
            index, retrieval, files = _index_of_baseline(retrieved)
        result = fit_endpoint_baseline(
            EndpointContender(
                name=name,
                endpoint=endpoint,
                prompting=prompting,
                index=index,
                retrieval=retrieval,
                config=config,
            ),
            train=splits.train,
            validation=splits.validation,
            config=evaluation,
            seed=seed,
            fetch_answers=send,
        )
        return store_versions(uri, [result], index_files=files)[0]

    named = {
        "name": name,
        "endpoint": endpoint.model_dump(mode="json", exclude={"max_spend"}),
        "prompting": prompting.model_dump(mode="json"),
        "shots": evaluation.prompt_shots,
        "draws": evaluation.prompt_draws,
        "retrieved": retrieved,
        "metric": evaluation.metric,
        "seed": seed,
    }
    stage_inputs = inputs.stage_inputs(fit_endpoint_baseline, endpoint_baseline, **named)
    return inputs.cached("endpoint", output=Baseline, inputs=stage_inputs, compute=compute)


def first_answer(inputs: RunInputs, name: str, *, config: VersionConfig) -> AnswerCounts:
    """Send an endpoint the request for the shortest validation row without examples, unless its
    answer is stored, and count it.

    A wrong name of the model, a missing permission or a too large `max_tokens` is an error of this
    request, before the baselines of the base model, which can take long. Raises the errors of
    `fetch_answers` and `require_room`.
    """
    require_names(config.classes)
    endpoint = Endpoint.from_config(inputs.recipe.evaluation.endpoints[name])
    prompting = _prompting(inputs, name, config=config)
    fields = {"kind": "endpoint_zero_shot", "prompting": prompting, "endpoint": endpoint}
    validation = inputs.splits.validation
    shortest = min(range(len(validation)), key=lambda position: len(validation.texts[position]))
    row = validation.take((shortest,))
    bodies = request_bodies(row, version=config.model_copy(update=fields), index=None)
    answers = fetch_answers(
        bodies,
        endpoint=endpoint,
        parent=inputs.recipe.task_uri,
        limits=request_limits(inputs),
    )
    require_room(answers[0], endpoint=endpoint, max_tokens=prompting.max_new_tokens)
    return count_answers(answers, classes=config.classes)


def predict_contender(
    inputs: RunInputs, uri: str, *, rows: Rows, on_gpu: bool = False
) -> Predictions:
    """Return the predictions of a contender: of an endpoint from this process, of other models in a
    Ray task.

    Raises RegistryError before the first request if a part of a hybrid is missing or has another
    digest.
    """
    config = read_artifact_config(uri)
    if config.hybrid is not None:
        uris = dict(zip(PARTS, (part.uri for part in read_parts(config.hybrid)), strict=True))
        predict = partial(predict_contender, inputs, on_gpu=on_gpu)
        routing = config.hybrid.routing
        return predict_hybrid(
            routing, rows=rows, predict=lambda name, part: predict(uris[name], rows=part)
        )
    if config.endpoint is not None:
        return predict_rows(uri, rows=rows, limits=request_limits(inputs))
    return inputs.remote_evaluation(predict_rows)(uri, rows=rows, on_gpu=on_gpu)


def request_limits(inputs: RunInputs) -> RequestLimits:
    """Return the limits of requests to endpoints."""
    return RequestLimits.from_config(inputs.recipe.evaluation)


def _prompting(inputs: RunInputs, name: str, *, config: VersionConfig) -> Prompting:
    """Return the prompt of the endpoint with this name, without examples."""
    data = inputs.recipe.data
    contender = inputs.recipe.evaluation.contenders[name]
    assert contender.endpoint is not None
    system = data.system if contender.prompt.system is None else contender.prompt.system
    template = contender.prompt.template or data.template
    if config.prompting is None:
        prompting = label_prompting(
            config.classes,
            system=system,
            template=template,
            descriptions=data.label_descriptions,
        )
    else:
        prompting = config.prompting.model_copy(update={"system": system, "template": template})
    max_tokens = contender.endpoint.max_tokens
    if max_tokens is None:
        return prompting
    return prompting.model_copy(update={"max_new_tokens": max_tokens})


def _index_of_baseline(retrieved: str) -> tuple[RetrievalIndex, Retrieval, Mapping[str, bytes]]:
    """Return the index of the baseline at `retrieved` with its settings and files."""
    with_index = read_artifact_config(retrieved).prompting
    assert with_index is not None
    assert with_index.retrieval is not None
    index = load_retrieval_index(
        local_copy(retrieved), retrieval=with_index.retrieval, device="cpu"
    )
    assert index is not None
    files = {name: storage.read_bytes(f"{retrieved}/{name}") for name in INDEX_FILES}
    return index, with_index.retrieval, files


def _index_of_training_rows(
    inputs: RunInputs,
) -> tuple[RetrievalIndex, Retrieval, Mapping[str, bytes]]:
    """Return an index of the labelled training rows by n-grams, with its settings and files."""
    index = build_index(label_conversations(inputs.splits.train), seed=inputs.recipe.training.seed)
    files = index_files(index)
    retrieval = Retrieval(
        num_examples=1,
        max_prompt_tokens=RETRIEVED_TOKENS,
        index_sha256=index_sha256(files),
    )
    return index, retrieval, files
