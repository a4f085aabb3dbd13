"""Checks that a replica runs the version and the code that were evaluated."""

from pathlib import Path

from tailorbird.registry.versions import ModelVersion


def require_digest(version: ModelVersion, *, digest: str) -> None:
    """Raise ValueError if the version's digest is not `digest`."""
    if version.digest != digest:
        raise ValueError(
            f"{version.uri} has digest {version.digest}, but {digest} was evaluated; deploy the "
            "registered version"
        )


def require_shipped_code() -> None:
    """Raise RuntimeError if the process runs code installed on the node instead of the
    application's shipped code.

    Ray imports from the folder in which its head was started first. Packages of this project there
    hide the shipped ones.
    """
    import ray

    shipped = ray.get_runtime_context().runtime_env.get("working_dir")
    if shipped and not Path(__file__).resolve().is_relative_to(Path.cwd().resolve()):
        raise RuntimeError(
            f"{__file__} was imported instead of {shipped}; start Ray in a folder without packages "
            "of this project"
        )
