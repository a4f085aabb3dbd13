"""What a run will test, registered before anything is trained; a run's name is a hash of it."""

from collections.abc import Mapping

from pydantic import JsonValue

from tailorbird.config.base import digest
from tailorbird.config.recipe import Recipe
from tailorbird.evaluation.report.evidence import BaseModelRecord
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.storage.stored_model import StoredModel

PROTOCOL_FILE = "protocol.json"  # name of the `Preregistration` in a run's and a version's folder


class Preregistration(StoredModel):
    """The protocol and what it is about; written once per run, before training."""

    protocol: TestProtocol
    request_sha256: str
    """Hash of recipe, code, data and base model: `request_digest`."""
    recipe: Recipe
    code: str
    """sha256 of the code."""
    data: dict[str, str]
    """sha256 of each split's rows, by its name."""
    base_model: BaseModelRecord
    champion: str | None
    """URI of the version that served."""
    requested_by: str
    requested_at: str
    """ISO 8601."""


def evaluated_recipe(recipe: Recipe) -> dict[str, JsonValue]:
    """Return the recipe as JSON without the sections that name no run: serving and monitoring may change afterwards."""
    return recipe.model_dump(mode="json", exclude={"serving", "monitoring"})


def request_digest(recipe: Recipe, *, code: str, data: Mapping[str, str], base_model: BaseModelRecord) -> str:
    """Return the hash of what a run is requested to do."""
    files = {"uri": base_model.uri, "files": dict(base_model.files)}
    return digest({"recipe": evaluated_recipe(recipe), "code": code, "data": dict(data), "base_model": files})


def run_name(request_sha256: str, *, champion: str | None) -> str:
    """Return a run's name: a hash of the request and of the champion's URI, if there is a champion."""
    return digest({"request": request_sha256, "champion": champion})[:16]
