"""Versions that can share a base model in memory."""

from contextlib import suppress

from tailorbird.registry.versions import ModelVersion, read_version, version_uris


def versions_on_same_base(
    version: ModelVersion, *, task_uri: str, limit: int
) -> list[ModelVersion]:
    """Return the newest `limit` other versions that can share the version's base model in memory.

    These are heads, prompts and adapters with the same base model, dtype and code. For a version
    that uses no base model, and for a chat version with other weights, there are none, because its
    replicas hold no base model.
    """
    if (
        not limit
        or not version.spec.uses_base
        or (version.task == "chat" and not version.shares_base)
    ):
        return []
    base = (version.base_model, version.dtype, version.code)
    sharing = []
    for uri in version_uris(task_uri):
        # A version that is damaged or has a newer format must not prevent serving.
        with suppress(ValueError):
            other = read_version(uri)
            shares_base = other.shares_base and (other.base_model, other.dtype, other.code) == base
            if shares_base and other.digest != version.digest:
                sharing.append(other)
    return sorted(sharing, key=lambda other: other.created_at)[-limit:]
