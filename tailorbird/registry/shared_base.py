"""Versions that can share a base model in memory."""

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
    others = []
    for uri in version_uris(task_uri):
        try:
            other = read_version(uri)
        except (
            ValueError
        ):  # a version that is damaged or has a newer format must not prevent serving
            continue
        same_base = (other.base_model, other.dtype, other.code) == (
            version.base_model,
            version.dtype,
            version.code,
        )
        if other.digest != version.digest and other.shares_base and same_base:
            others.append(other)
    return sorted(others, key=lambda other: other.created_at)[-limit:]
