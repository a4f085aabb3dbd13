"""Registered versions of a task `t` without files, for tests that do not load them."""

from tailorbird.registry.versions import ModelVersion, Prompting
from tests.build import version


def registered(
    name: str, *, code: str = "s3://models/code/a.zip", prompting: Prompting | None = None
) -> ModelVersion:
    uri = f"s3://models/t/versions/{name}"
    return version(name, kind="full", code=code, prompting=prompting, uri=uri, digest=f"d-{name}")
