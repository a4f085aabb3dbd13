"""Refuse versions and code other than those that were judged."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tailorbird.registry.versions import ModelVersion


def require_digest(version: "ModelVersion", *, digest: str) -> None:
    """Raises where a version is not the one that was evaluated."""
    if version.digest != digest:
        raise ValueError(
            f"{version.uri} has digest {version.digest}, not {digest} that was evaluated; deploy the registered version"
        )


def require_shipped_code() -> None:
    """Raises where the node's installed code runs instead of the code that the application ships.

    Ray searches the folder in which its head was started first: with our packages in it, it hides the shipped ones.
    """
    import ray

    shipped = ray.get_runtime_context().runtime_env.get("working_dir")
    if shipped and not Path(__file__).resolve().is_relative_to(Path.cwd().resolve()):
        raise RuntimeError(f"{__file__} was imported, not {shipped}: start Ray in a folder without our packages")
