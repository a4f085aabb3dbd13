"""Chat versions that can share a base model in memory."""

from contextlib import suppress

from tailorbird.registry.versions import ModelVersion, read_version, version_uris

MAX_SELECTABLE = 4
"""Maximum number of versions that are served by name next to the champion."""


def selectable_versions(
    version: ModelVersion, *, task_uri: str, shares_chat_base: bool
) -> list[ModelVersion]:
    """Return the newest `MAX_SELECTABLE` other versions that can share the version's base model in
    memory.

    These are prompts and adapters of a chat model with the same base model, dtype and code.
    `shares_chat_base` is that of the `ServingConfig`. For a classifier, and for a version with
    other weights, there are none, because its replicas hold no base model.
    """
    if not shares_chat_base or version.task != "chat" or not version.spec.shares_base:
        return []
    base = (version.base_model, version.dtype, version.code)
    sharing = []
    for uri in version_uris(task_uri):
        # A version that is damaged or has a newer format must not prevent serving.
        with suppress(ValueError):
            other = read_version(uri)
            shares_base = (
                other.spec.shares_base and (other.base_model, other.dtype, other.code) == base
            )
            if shares_base and other.digest != version.digest:
                sharing.append(other)
    return sorted(sharing, key=lambda other: other.created_at)[-MAX_SELECTABLE:]
