"""The best prompt for an external endpoint: alone, with fixed examples, or with retrieved
examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.data.rows import DataError, Rows
from tailorbird.evaluation.baselines.baseline import Baseline
from tailorbird.evaluation.baselines.prompts import TriedPrompt, tried_prompts
from tailorbird.evaluation.inference.endpoint_coverage import count_answers, require_answers
from tailorbird.evaluation.inference.endpoint_predictions import (
    NO_LABEL,
    endpoint_predictions,
    request_bodies,
)
from tailorbird.evaluation.statistics.scoring import score_table
from tailorbird.models.endpoint.client import Body
from tailorbird.models.endpoint.completion import EndpointAnswer
from tailorbird.models.endpoint.prompts import label_conversations
from tailorbird.models.retrieval.index import RetrievalIndex
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.versions import Prompting, Retrieval, VersionConfig

FetchAnswers = Callable[[Sequence[Body], Endpoint], Sequence[EndpointAnswer]]
"""Returns the answer of an endpoint to each request."""


@dataclass(frozen=True)
class EndpointContender:
    """An endpoint that is compared: its version without a reported model, and the index of its
    retrieved examples."""

    name: str  # in the recipe
    endpoint: Endpoint
    prompting: Prompting  # of the kind `endpoint_zero_shot`
    index: RetrievalIndex
    retrieval: Retrieval
    config: VersionConfig  # supplies all fields except kind, prompting and endpoint


def fit_endpoint_baseline(
    contender: EndpointContender,
    *,
    train: Rows,
    validation: Rows,
    config: EvaluationConfig,
    seed: int,
    fetch_answers: FetchAnswers,
) -> tuple[Baseline, VersionConfig]:
    """Return the endpoint as a baseline with its best prompt on validation, and its version.

    The prompts are those of `fit_prompt_baselines`; the first of equal scores wins. All answers
    must be of the model that the endpoint reports first. Raises DataError for an empty label, which
    an endpoint cannot name, and the errors of `fetch_answers` and `require_answers`.
    """
    require_names(contender.config.classes)
    examples = label_conversations(train) if train.class_labels else train
    pinned = contender.endpoint

    def scored(prompt: TriedPrompt) -> tuple[Baseline, VersionConfig]:
        nonlocal pinned
        fields = {
            "kind": f"endpoint_{prompt.kind}",
            "prompting": prompt.prompting,
            "endpoint": pinned,
        }
        version = contender.config.model_copy(update=fields)
        bodies = request_bodies(validation, version=version, index=contender.index)
        answers = fetch_answers(bodies, pinned)
        require_answers(answers, rows=validation, version=version)

        answered = [answer for answer in answers if answer.model]
        refused = set(chain.from_iterable(answer.omitted for answer in answered))
        reported = answered[0].model if answered else pinned.reported_model
        omitted = tuple(sorted({*pinned.omitted, *refused}))
        pinned = pinned.model_copy(update={"reported_model": reported, "omitted": omitted})

        predictions = endpoint_predictions(answers, rows=validation, version=version)
        score = score_table(config.metric, predictions)
        note = _note(
            f"{reported}: {prompt.note}",
            answers,
            omitted=sorted(refused),
            classes=version.classes,
        )
        baseline = Baseline(contender.name, None, score, servable=True, note=note)
        return baseline, version.model_copy(update={"endpoint": pinned})

    tried = tried_prompts(
        contender.prompting,
        retrieval=contender.retrieval,
        examples=examples,
        num_indexed=len(contender.index),
        config=config,
        seed=seed,
    )
    return max(map(scored, chain(*tried)), key=lambda result: result[0].validation)


def require_names(classes: Sequence[str]) -> None:
    """Raise DataError for an empty label."""
    if NO_LABEL in classes:
        raise DataError(
            "a label is empty, and an endpoint cannot name it; give the label a name, or remove "
            "the rows"
        )


def _note(
    detail: str,
    answers: Sequence[EndpointAnswer],
    *,
    omitted: Sequence[str],
    classes: tuple[str, ...],
) -> str:
    """Return the description of a prompt with what is unusual about its answers; `classes` is empty
    for chat.

    `omitted` are the parameters without which some requests were sent.
    """
    notes = [detail, str(count_answers(answers, classes=classes))]
    if omitted:
        notes.append(f"sent without {', '.join(omitted)}, which the endpoint refused")
    return "; ".join(filter(None, notes))
