"""The config of a hybrid, from those of its parts, and the endpoints and base models that a version
uses."""

from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.hybrid_routing import Routing
from tailorbird.registry.versions import (
    Hybrid,
    ModelVersion,
    RegistryError,
    VersionConfig,
    read_parts,
)


def hybrid_config(first: ModelVersion, *, second: ModelVersion, routing: Routing) -> VersionConfig:
    """Return the config of a hybrid, with the classes of both parts and other fields of the second
    part.

    The prompting is that of a part that contains training rows as text, if there is one. Raises
    RegistryError if the parts have different tasks.
    """
    if first.task != second.task:
        raise RegistryError(
            f"{first.uri} is a version for {first.task} and {second.uri} for {second.task}; a "
            "hybrid needs two versions for the same task"
        )
    with_text = (part.prompting for part in (second, first) if part.contains_training_text)
    return VersionConfig(
        kind="hybrid",
        classes=tuple(dict.fromkeys(second.classes + first.classes)),
        integer_labels=first.integer_labels and second.integer_labels,
        base_model=second.base_model,
        max_length=second.max_length,
        dtype=second.dtype,
        code=second.code,
        recipe_hash=second.recipe_hash,
        created_at=max(second.created_at, first.created_at),
        hybrid=Hybrid(routing=routing, first=first.pinned, second=second.pinned),
        prompting=next(with_text, second.prompting),
    )


def called_endpoints(version: ModelVersion) -> tuple[Endpoint, ...]:
    """Return the endpoints that a version and its parts call; raise RegistryError if a part cannot
    be used."""
    return tuple(part.endpoint for part in _parts(version) if part.endpoint is not None)


def _parts(version: ModelVersion) -> tuple[ModelVersion, ...]:
    if version.hybrid is None:
        return (version,)
    return read_parts(version.hybrid)
