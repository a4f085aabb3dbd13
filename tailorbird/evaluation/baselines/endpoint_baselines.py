"""Baselines on an external endpoint: the prompt alone, with fixed examples, and with retrieved examples."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.data.rows import DataError, Rows
from tailorbird.data.splits import subsample
from tailorbird.evaluation.baselines.baseline import Baseline
from tailorbird.evaluation.baselines.chat import replace_shots
from tailorbird.evaluation.inference.endpoint_coverage import AnswerCounts, count_answers, require_answers
from tailorbird.evaluation.inference.endpoint_predictions import NO_LABEL, endpoint_predictions, request_bodies
from tailorbird.evaluation.statistics.scoring import score_table
from tailorbird.models.endpoint.client import Body
from tailorbird.models.endpoint.completion import EndpointAnswer
from tailorbird.models.endpoint.prompts import label_conversations, label_of
from tailorbird.models.retrieval.index import RetrievalIndex
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.kinds import Kind
from tailorbird.registry.versions import Prompting, Retrieval, VersionConfig

FetchAnswers = Callable[[Sequence[Body], Endpoint], Sequence[EndpointAnswer]]
"""Returns the answer of an endpoint to each request."""


@dataclass(frozen=True)
class EndpointContender:
    """An endpoint that is compared: its version without a reported model, and the index of its retrieved examples."""

    endpoint: Endpoint
    prompting: Prompting  # of the kind `endpoint_zero_shot`
    index: RetrievalIndex
    retrieval: Retrieval
    config: VersionConfig  # supplies all fields except kind, prompting and endpoint


@dataclass(frozen=True)
class _Scored:
    """A version with its predictions of the validation rows."""

    version: VersionConfig
    score: float
    share_without_label: float  # of the answers; 0 for chat
    counts: AnswerCounts
    shares_without: Mapping[str, float]  # of the answers whose request was sent without a parameter, by parameter
    detail: str  # description of its prompt

    def baseline(self) -> Baseline:
        assert self.version.endpoint is not None
        note = f"{self.version.endpoint.reported_model}: {self.detail}"
        if self.share_without_label:
            note += f"; {self.share_without_label:.1%} of the answers are no label"
        if str(self.counts):
            note += f"; {self.counts}"
        for name, share in self.shares_without.items():
            requests = "the requests" if share == 1 else f"{share:.1%} of the requests"
            note += f"; {requests} had no {name}, which the endpoint refused"
        return Baseline(self.version.kind, None, self.score, True, note)


def fit_endpoint_baselines(
    contender: EndpointContender,
    *,
    train: Rows,
    validation: Rows,
    config: EvaluationConfig,
    seed: int,
    fetch_answers: FetchAnswers,
) -> tuple[tuple[Baseline, VersionConfig], ...]:
    """Return the baselines with their best settings on validation, and their versions.

    They are those of `fit_prompt_baselines` with the same settings, without the nearest row's own answer. All answers
    must be of the model that the endpoint reports first. Raises DataError for an empty label, which an endpoint cannot
    name, and the errors of `fetch_answers` and `require_answers`.
    """
    require_names(contender.config.classes)
    examples = label_conversations(train) if train.class_labels else train
    pinned = contender.endpoint

    def scored(kind: Kind, prompting: Prompting, detail: str) -> _Scored:
        nonlocal pinned
        version = contender.config.model_copy(update={"kind": kind, "prompting": prompting, "endpoint": pinned})
        answers = fetch_answers(request_bodies(validation, version=version, index=contender.index), pinned)
        require_answers(answers, rows=validation, version=version)
        predictions = endpoint_predictions(answers, rows=validation, version=version)
        shares_without = _shares_without_parameters([answer for answer in answers if answer.model])
        omitted = tuple(sorted({*pinned.omitted, *shares_without}))
        reported = next((answer.model for answer in answers if answer.model), pinned.reported_model)
        pinned = pinned.model_copy(update={"reported_model": reported, "omitted": omitted})
        version = version.model_copy(update={"endpoint": pinned})
        share_without_label = _share_without_label(answers, classes=version.classes)
        counts = count_answers(answers, classes=version.classes)
        score = score_table(config.metric, predictions)
        return _Scored(version, score, share_without_label, counts, shares_without, detail)

    def few_shot() -> Iterable[_Scored]:
        for draw in range(config.prompt_draws):
            sample = subsample(len(examples), size=config.prompt_shots, seed=seed + draw)
            prompting = replace_shots(contender.prompting, examples.take(sample))
            detail = f"{config.prompt_shots} examples in the prompt, best of {config.prompt_draws} random sets"
            yield scored("endpoint_few_shot", prompting, detail)

    def retrieved() -> Iterable[_Scored]:
        numbers = sorted({min(number, len(contender.index)) for number in config.retrieved_examples})
        for number in numbers:
            retrieval = contender.retrieval.model_copy(update={"num_examples": number})
            prompting = contender.prompting.model_copy(update={"retrieval": retrieval})
            detail = f"nearest training rows in the prompt: {number}, best of {', '.join(map(str, numbers))}"
            yield scored("endpoint_retrieved", prompting, detail)

    best = (
        scored("endpoint_zero_shot", contender.prompting, "no examples in the prompt"),
        *(max(tried, key=lambda result: result.score) for tried in (few_shot(), retrieved())),
    )
    return tuple((result.baseline(), result.version) for result in best)


def require_names(classes: Sequence[str]) -> None:
    """Raise DataError for an empty label."""
    if NO_LABEL in classes:
        raise DataError("a label is empty, and an endpoint cannot name it; give the label a name, or remove the rows")


def _share_without_label(answers: Sequence[EndpointAnswer], *, classes: tuple[str, ...]) -> float:
    if not classes:
        return 0.0
    return float(np.mean([label_of(answer.text, classes=classes) is None for answer in answers]))


def _shares_without_parameters(answers: Sequence[EndpointAnswer]) -> dict[str, float]:
    """Return the share of the answers whose request was sent without a parameter, for each that was left out."""
    names = sorted({name for answer in answers for name in answer.omitted})
    return {name: float(np.mean([name in answer.omitted for answer in answers])) for name in names}
