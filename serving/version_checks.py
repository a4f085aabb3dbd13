"""Refuse versions and code other than those that were evaluated."""

from pathlib import Path

from tailorbird.registry.versions import ModelVersion


def require_digest(version: ModelVersion, *, digest: str) -> None:
    """Raise ValueError if a version is not the one that was evaluated."""
    if version.digest != digest:
        raise ValueError(
            f"{version.uri} has digest {version.digest}, not {digest} that was evaluated; deploy the registered version"
        )


def require_shipped_code() -> None:
    """Raise RuntimeError if code installed on the node runs instead of the code that the application ships.

    Ray searches the folder in which its head was started first: packages of ours there hide the shipped ones.
    """
    import ray

    shipped = ray.get_runtime_context().runtime_env.get("working_dir")
    if shipped and not Path(__file__).resolve().is_relative_to(Path.cwd().resolve()):
        raise RuntimeError(f"{__file__} was imported, not {shipped}: start Ray in a folder without our packages")
