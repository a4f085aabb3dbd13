"""The preregistration of a run, stored before training, and the name of the run."""

from pydantic import JsonValue
from pydantic.main import IncEx

from tailorbird import storage
from tailorbird.config.base import digest
from tailorbird.config.endpoint import LIMITS
from tailorbird.config.recipe import Recipe
from tailorbird.evaluation.verdict.inputs import TrainedRows
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.models.base_model import BaseModelRecord
from tailorbird.registry.champion import Champion
from tailorbird.storage.paths import TaskPaths
from tailorbird.storage.stored_model import StoredModel

PROTOCOL_FILE = "protocol.json"
"""File name of the `Preregistration` in the folder of a run or a version."""


class Preregistration(StoredModel):
    """The test protocol with recipe, code, data and models; written once per run, before
    training."""

    protocol: TestProtocol
    request_sha256: str = ""
    """Hash of recipe, code, data, base models and encoder: `request_digest`."""
    recipe: Recipe
    code: str
    """sha256 of the code."""
    data: dict[str, str]
    """sha256 of the rows of each split by name."""
    base_models: tuple[BaseModelRecord, ...]
    retrieval_encoder: BaseModelRecord | None
    """Encoder for retrieval, if the recipe names one."""
    champion: str | None
    """URI of the champion, if there is one."""
    anchor: str | None
    """URI of the last champion that was proven better than its predecessor, unless it is the
    champion."""
    trained_rows: TrainedRows = TrainedRows()
    """The test rows that the champion and the contenders were trained on."""
    requested_by: str
    requested_at: str
    """ISO 8601."""


def evaluated_recipe(recipe: Recipe) -> dict[str, JsonValue]:
    """Return the recipe as JSON without fields that may change without a new run.

    These are `serving`, `monitoring`, the limits of requests to an endpoint, and the URIs of
    pretrained models, which can get a version and a hash: `BaseModelRecord` is exact.
    """
    excluded: dict[str, IncEx | bool] = {
        "serving": True,
        "monitoring": True,
        "base_model": True,
        "evaluation": {
            "retrieval_encoder": True,
            "contenders": {"__all__": {"endpoint": set(LIMITS)}},
        },
    }
    return recipe.model_dump(mode="json", exclude=excluded)


def request_digest(registration: Preregistration) -> str:
    """Return the hash of recipe, code, data and models."""
    request = registration.model_dump(
        mode="json", include={"code", "data", "base_models", "retrieval_encoder"}
    )
    return digest(request | {"recipe": evaluated_recipe(registration.recipe)})


def with_digest(registration: Preregistration) -> Preregistration:
    """Return the preregistration with its `request_sha256`."""
    return registration.model_copy(update={"request_sha256": request_digest(registration)})


def run_name(request_sha256: str, *, champion: str | None) -> str:
    """Return the name of a run: a hash of the request digest and of the champion's URI, if there is
    a champion."""
    return digest({"request": request_sha256, "champion": champion})[:16]


def run_uri(task_uri: str, request_sha256: str, *, champion: Champion | None) -> str:
    """Return the URI of the run with this request digest.

    If the request is that of the champion's own run, return the URI of that run, so its stored
    result is reused.
    """
    if champion is not None and champion.run and storage.exists(f"{champion.run}/{PROTOCOL_FILE}"):
        stored = Preregistration.model_validate_json(
            storage.read_bytes(f"{champion.run}/{PROTOCOL_FILE}")
        )
        if stored.request_sha256 == request_sha256:
            return champion.run
    return TaskPaths(task_uri).run(
        run_name(request_sha256, champion=champion.uri if champion else None)
    )
