"""A fake loader of engines, replicas with it, stored keys, and helpers to change configurations."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from starlette.testclient import TestClient

from serving.http.api_keys import new_key
from serving.replica.base import Replica
from serving.replica.served_versions import ServedVersions
from tailorbird.config.serving import ServingConfig

UNWRITABLE = "file:///dev/null/registry/task"  # in a file, there are no folders


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

        return ServedVersions(self.load, unload=unload)


def new_replica(task_uri: str = UNWRITABLE, **serving: Any) -> Replica[Any]:
    """Return a replica of a classifier; `serving` are fields of its configuration."""
    config = ServingConfig(**serving)
    return Replica(Loads().versions(), task="classification", task_uri=task_uri, config=config)


def client_of(replica: Replica[Any], url: str = "http://127.0.0.1") -> TestClient:
    return TestClient(replica.asgi_app({}, page="classify"), base_url=url)


def stored_keys(folder: Path, **options: str) -> tuple[str, dict[str, str]]:
    """Store keys with these names and options; return the URI of their file, and them by name."""
    made = {name: new_key(name, options=option.split()) for name, option in options.items()}
    (folder / "keys").write_text("\n".join(stored.to_line() for _, stored in made.values()))
    return (folder / "keys").as_uri(), {name: key for name, (key, _) in made.items()}


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
