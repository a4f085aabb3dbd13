"""The preregistration of a run, stored before training, and the name of the run."""

from collections.abc import Mapping

from pydantic import JsonValue

from tailorbird.config.base import digest
from tailorbird.config.recipe import Recipe
from tailorbird.evaluation.report.evidence import BaseModelRecord
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.storage.stored_model import StoredModel

PROTOCOL_FILE = "protocol.json"  # file name of the `Preregistration` in the folder of a run or a version


class Preregistration(StoredModel):
    """The test protocol with recipe, code, data and base model; written once per run, before training."""

    protocol: TestProtocol
    request_sha256: str
    """Hash of recipe, code, data and base model: `request_digest`."""
    recipe: Recipe
    code: str
    """sha256 of the code."""
    data: dict[str, str]
    """sha256 of the rows of each split by name."""
    base_model: BaseModelRecord
    champion: str | None
    """URI of the champion, if there is one."""
    accepted_loss: float
    """Losses accepted for lower cost since the last proven champion."""
    requested_by: str
    requested_at: str
    """ISO 8601."""


def evaluated_recipe(recipe: Recipe) -> dict[str, JsonValue]:
    """Return the recipe as JSON without `serving` and `monitoring`, which may change without a new run."""
    return recipe.model_dump(mode="json", exclude={"serving", "monitoring"})


def request_digest(recipe: Recipe, *, code: str, data: Mapping[str, str], base_model: BaseModelRecord) -> str:
    """Return the hash of recipe, code, data and base model."""
    files = {"uri": base_model.uri, "files": dict(base_model.files)}
    return digest({"recipe": evaluated_recipe(recipe), "code": code, "data": dict(data), "base_model": files})


def run_name(request_sha256: str, *, champion: str | None) -> str:
    """Return the name of a run: a hash of the request digest and of the champion's URI, if there is a champion."""
    return digest({"request": request_sha256, "champion": champion})[:16]
