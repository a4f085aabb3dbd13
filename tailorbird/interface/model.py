"""Load a registered version in this process, and predict with it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

from tailorbird.interface.answer import Answer, Input, last_text
from tailorbird.interface.answers import Answers
from tailorbird.interface.endpoint_model import EndpointModel
from tailorbird.interface.environment import use_running_stack

if TYPE_CHECKING:
    from tailorbird.models.loading import AnyLoaded, LoadedClassifier, LoadedHybrid
    from tailorbird.registry.versions import ModelVersion

BATCH_SIZE = 64
"""Maximum number of texts in a forward pass, as in the service by default."""


@dataclass(frozen=True)
class Model:
    """A loaded version. Its answers are those of the service, without requests, limits and the request log."""

    loaded: "AnyLoaded | EndpointModel" = field(repr=False)
    uri: str
    kind: str
    """For example `probe`, `full` or `hybrid`."""

    @property
    def version(self) -> "ModelVersion":
        """The registered version."""
        return self.loaded.version

    @overload
    def predict(  # type: ignore[overload-overlap]  # a text is a sequence of texts too
        self, inputs: str, *, groups: Sequence[str | None] | None = ...
    ) -> Answer: ...

    @overload
    def predict(self, inputs: Sequence[Input], *, groups: Sequence[str | None] | None = ...) -> Answers: ...

    def predict(self, inputs: str | Sequence[Input], *, groups: Sequence[str | None] | None = None) -> Answer | Answers:
        """Return the answer to a text, or the answers to a list of texts; a chat model takes prompts and conversations.

        Texts longer than the version's maximum are truncated, as in the evaluation. Chat models answer with greedy
        decoding. `groups` are the values of the routing column, one per input, for a hybrid that routes by group.
        Raises DataError for an input that the model cannot answer, and ValueError for an input of another type, or if
        `groups` has another length or is missing.
        """
        listed: list[Input] = [inputs] if isinstance(inputs, str) else list(inputs)
        routing = self.version.hybrid.routing if self.version.hybrid else None
        by_group = routing is not None and routing.column is not None
        if (by_group and groups is None) or (groups is not None and len(groups) != len(listed)):
            column = f" of the column {routing.column!r}" if by_group and routing else ""
            raise ValueError(f"groups: give one value{column} per input, that is {len(listed)} values")
        if not listed:
            return Answers()
        if isinstance(self.loaded, EndpointModel):
            if self.version.task == "classification":
                _texts(listed)
            answers = self.loaded.answers(listed, groups=groups)
        elif self.version.task == "classification":
            answers = _classify(self.loaded, _texts(listed), groups=groups)  # type: ignore[arg-type]
        else:
            answers = _answer(self.loaded, listed)
        return answers[0] if isinstance(inputs, str) else answers


def load(uri: str, *, device: str | None = None) -> Model:
    """Download, check and load the version at a URI, for example `run.winner`.

    `device` is a torch device, for example `cpu`; by default, the GPU if there is one. A version of an endpoint has no
    model to load: predictions are requests to its endpoint, see `EndpointModel`. Raises RegistryError if a file is
    missing or was changed, StorageError if S3 cannot be reached, and EndpointKeyMissing if the environment has no key
    for the endpoint.
    """
    use_running_stack()
    from tailorbird.registry.versions import calls_endpoint, read_version

    version = read_version(uri.rstrip("/"))
    loaded = _with_endpoint(version, device=device) if calls_endpoint(version) else _load(version.uri, device=device)
    return Model(loaded, uri=loaded.version.uri, kind=loaded.version.kind)


def _load(uri: str, *, device: str | None) -> "AnyLoaded":
    from tailorbird.models.loading import load_model

    return load_model(uri, device=device)


def _with_endpoint(version: "ModelVersion", *, device: str | None) -> EndpointModel:
    from tailorbird.models.endpoint.client import read_key
    from tailorbird.models.loading import checked_copy
    from tailorbird.registry.versions import read_parts

    checked_copy(version.pinned)
    if version.endpoint is not None:
        read_key(version.endpoint)  # before the first prediction
    if version.hybrid is None:
        return EndpointModel(version)
    first, second = (load(part.uri, device=device) for part in read_parts(version.hybrid))
    return EndpointModel(version, (first.predict, second.predict))


def _texts(inputs: list[Input]) -> list[str]:
    texts = [value for value in inputs if isinstance(value, str)]
    if len(texts) != len(inputs):
        raise ValueError("a classifier predicts texts; give texts instead of conversations")
    return texts


def _classify(
    loaded: "LoadedClassifier[ModelVersion] | LoadedHybrid", texts: list[str], *, groups: Sequence[str | None] | None
) -> Answers:
    from serving.engines.classify import predict_hybrid, predict_texts, scores_by_class
    from tailorbird.models.loading import LoadedHybrid

    if isinstance(loaded, LoadedHybrid):
        rows = list(zip(texts, groups or [None] * len(texts), strict=True))
        predictions = predict_hybrid(loaded, rows, batch_size=BATCH_SIZE)
    else:
        predictions = predict_texts(loaded, texts, batch_size=BATCH_SIZE)
    return Answers(
        Answer(
            input=text,
            output=loaded.version.typed_label(prediction.label),
            confidence=prediction.known_score,
            version=loaded.version.version,
            scores=scores_by_class(loaded, prediction),
            answered_by=prediction.answered_by,
            row=row,
        )
        for row, (text, prediction) in enumerate(zip(texts, predictions, strict=True))
    )


def _answer(loaded: "AnyLoaded", inputs: list[Input]) -> Answers:
    """Return the answers of a chat model, by the code that scores batches."""
    import pyarrow as pa

    from serving.batch_jobs.schema import Part
    from serving.batch_jobs.scorers import SCORERS, PartRows

    prompts = [last_text(value) for value in inputs]
    conversations = [
        [{"role": "user", "content": value}] if isinstance(value, str) else list(value) for value in inputs
    ]
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    table = pa.table({"messages": pa.array(conversations, messages)})
    part = Part(number=0, uri="inputs", start=0, first=0, num_rows=len(inputs), etag="")
    columns = SCORERS["chat"].answer(loaded, PartRows(table, part, "messages"), batch_size=BATCH_SIZE)
    values = {name: column.to_pylist() for name, column in columns.items()}
    return Answers(
        Answer(
            input=prompt,
            output=values["answer"][row],
            confidence=values["confidence"][row],
            version=loaded.version.version,
            answered_by=values["answered_by"][row] if "answered_by" in values else None,
            finish_reason=values["finish_reason"][row],
            row=row,
        )
        for row, prompt in enumerate(prompts)
    )
