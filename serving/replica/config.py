"""The `user_config` of a replica: the versions that it serves. Serve applies a change without a
restart."""

import hashlib
import json
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from serving.http.schemas import CHAMPION

CHALLENGER = "challenger"
Arm = Literal["champion", "shadow"]
"""Arm of an experiment: the champion, or the challenger as its shadow."""


class _Config(BaseModel):
    """Base class that ignores unknown keys: the client that deploys may be newer than the replica's
    code."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class VersionRef(_Config):
    """A reference to a registered version. `digest` is the SHA-256 of its manifest."""

    uri: str
    digest: str


class Challenger(VersionRef):
    """The version that is compared with the champion."""

    shadow: float
    """Share of the champion's requests that the challenger also answers."""


class ReplicaConfig(_Config):
    """The versions that a replica loads."""

    champion: VersionRef
    verdict: str | None = None
    """Summary of the verdict that selected the champion."""
    costs: dict[str, str] = {}
    """Measured cost of serving a version, in words, by digest."""
    challenger: Challenger | None = None
    selectable: dict[str, VersionRef] = {}
    """Other versions, by the name that selects them in requests."""

    @property
    def versions(self) -> dict[str, VersionRef]:
        """Return all versions by name, the champion first."""
        if self.challenger is None:
            challenger = {}
        else:
            challenger = {CHALLENGER: self.challenger}
        return {CHAMPION: self.champion, **self.selectable, **challenger}

    def with_other(self, name: str, version: VersionRef) -> Self:
        """Return a copy that also loads `version` as `name`."""
        return self.model_copy(update={"selectable": self.selectable | {name: version}})

    def without_other(self, name: str) -> Self:
        """Return a copy without the version `name`."""
        return self.model_copy(
            update={"selectable": {key: ref for key, ref in self.selectable.items() if key != name}}
        )

    def to_user_config(self) -> dict[str, Any]:
        """Return Serve's `user_config`."""
        return self.model_dump(mode="json", exclude_none=True)


def config_id(user_config: dict[str, Any]) -> str:
    """Return a digest of a `user_config`. /readyz reports it, and a deploy waits for it."""
    return hashlib.sha256(json.dumps(user_config, sort_keys=True).encode()).hexdigest()[:16]
