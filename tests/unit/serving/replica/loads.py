"""A fake loader of engines, and helpers to change configurations."""

import threading
from types import SimpleNamespace
from typing import Any

from serving.replica.served_versions import ServedVersions

SECRET = b"s" * 32  # of the draws


class Loads:
    """A loader that waits for the event `go`, and fails for the version `bad`."""

    def __init__(self, *, waits: bool = False) -> None:
        self.go = threading.Event()
        self.loaded: list[str] = []
        self.unloaded: list[str] = []
        if not waits:
            self.go.set()

    def load(self, uri: str, digest: str) -> Any:
        assert self.go.wait(10)
        if uri == "bad":
            raise ValueError("the version is damaged")
        self.loaded.append(uri)
        return SimpleNamespace(version=SimpleNamespace(name="task", version=uri, digest=digest))

    def versions(self) -> ServedVersions[Any]:
        def unload(previous: Any) -> None:
            self.unloaded.append(previous.version.version)

        return ServedVersions(self.load, read_secret=lambda: SECRET, unload=unload)


def ref(uri: str, **shares: float) -> dict[str, Any]:
    return {"uri": uri, "digest": f"d-{uri}", **shares}


def config(champion: str, **fields: Any) -> dict[str, Any]:
    """Return a `user_config`."""
    return {"champion": ref(champion), **fields}


async def settle(versions: ServedVersions[Any]) -> None:
    """Wait for the pending changes."""
    if versions._changes is not None:
        await versions._changes


async def change(versions: ServedVersions[Any], user_config: dict[str, Any]) -> None:
    await versions.reconfigure(user_config)
    await settle(versions)
