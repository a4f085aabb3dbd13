"""Load a registered version in this process, and predict with it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

from tailorbird.interface.answer import Answer, Input
from tailorbird.interface.answers import Answers
from tailorbird.interface.endpoint_model import EndpointModel
from tailorbird.interface.environment import use_running_stack
from tailorbird.interface.predicted_tasks import PREDICTED_TASKS

if TYPE_CHECKING:
    from tailorbird.models.loading import AnyLoaded
    from tailorbird.registry.versions import ModelVersion


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
        task = PREDICTED_TASKS[self.version.task]
        task.texts(listed)  # raises ValueError
        if isinstance(self.loaded, EndpointModel):
            answers = self.loaded.answers(listed, groups=groups)
        else:
            answers = task.predict(self.loaded, listed, groups)
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
