"""Registered versions of a task `t` without files, for tests that do not load them."""

from tailorbird.registry.versions import ModelVersion, Prompting


def registered(
    name: str, *, code: str = "s3://models/code/a.zip", prompting: Prompting | None = None
) -> ModelVersion:
    return ModelVersion(
        kind="full",
        classes=(),
        base_model="s3://models/base",
        max_length=64,
        dtype="float32",
        code=code,
        recipe_hash="0" * 64,
        created_at="2026-01-01T00:00:00+00:00",
        prompting=prompting,
        name="t",
        version=name,
        uri=f"s3://models/t/versions/{name}",
        digest=f"d-{name}",
    )
