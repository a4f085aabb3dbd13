"""Load a registered version in this process, and predict with it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, overload

from tailorbird.interface.answer import Answer, Input, last_text
from tailorbird.interface.answers import Answers
from tailorbird.interface.environment import use_running_stack
from tailorbird.interface.predicted_tasks import PREDICTED_TASKS

if TYPE_CHECKING:
    from serving.offline import OfflineModel
    from tailorbird.registry.versions import ModelVersion

BATCH_SIZE = 64
"""Maximum number of texts in a forward pass, as in the service by default."""


@dataclass(frozen=True)
class Model:
    """A loaded version. Its answers are those of the service, without requests, limits and the
    request log."""

    loaded: "OfflineModel" = field(repr=False)
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
    def predict(
        self, inputs: Sequence[Input], *, groups: Sequence[str | None] | None = ...
    ) -> Answers: ...

    def predict(
        self, inputs: str | Sequence[Input], *, groups: Sequence[str | None] | None = None
    ) -> Answer | Answers:
        """Return the answer to a text, or the answers to a list of texts; a chat model takes
        prompts and conversations.

        Texts longer than the version's maximum are truncated, as in the evaluation. Chat models
        answer with greedy decoding. `groups` are the values of the routing column, one per input,
        for a hybrid that routes by group. Raises DataError for an input that the model cannot
        answer, and ValueError for an input of another type, or if `groups` has another length or is
        missing.
        """
        listed: list[Input] = [inputs] if isinstance(inputs, str) else list(inputs)
        routing = self.version.hybrid.routing if self.version.hybrid else None
        by_group = routing is not None and routing.column is not None
        if (by_group and groups is None) or (groups is not None and len(groups) != len(listed)):
            if by_group and routing:
                column = f" of the column {routing.column!r}"
            else:
                column = ""
            raise ValueError(
                f"groups: give one value{column} per input, that is {len(listed)} values"
            )
        if not listed:
            return Answers()
        from serving.offline import InputRow

        task = PREDICTED_TASKS[self.version.task]
        by_row = groups or [None] * len(listed)
        rows = [
            InputRow(task.turns(value), f"inputs: row {row}", group)
            for row, (value, group) in enumerate(zip(listed, by_row, strict=True))
        ]
        answers = [task.answer(answer, self.version) for answer in self.loaded.answer(rows)]
        complete = Answers(
            replace(answer, input=last_text(value), row=row)
            for row, (value, answer) in enumerate(zip(listed, answers, strict=True))
        )
        if isinstance(inputs, str):
            return complete[0]
        return complete


def load(uri: str, *, device: str | None = None) -> Model:
    """Download, check and load the version at a URI, for example `run.winner`.

    `device` is a torch device, for example `cpu`; by default, the GPU if there is one. A version of
    an endpoint has no model to load: predictions are requests to its endpoint, with the prompt and
    the `max_spend` of the version, and not again for an input whose answer is stored in the
    registry. Raises RegistryError if a file is missing or was changed, StorageError if S3 cannot be
    reached, and EndpointKeyMissing if the environment has no key for the endpoint.
    """
    use_running_stack()
    from serving.offline import load_offline
    from tailorbird.models.endpoint.client import read_key
    from tailorbird.registry.versions import read_parts, read_version

    version = read_version(uri.rstrip("/"))
    for part in read_parts(version.hybrid) if version.hybrid else (version,):
        if part.endpoint is not None:
            read_key(part.endpoint)  # before the first prediction
    loaded = load_offline(version, batch_size=BATCH_SIZE, device=device)
    return Model(loaded, uri=version.uri, kind=version.kind)
