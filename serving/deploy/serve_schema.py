"""Types for the JSON of Ray Serve's REST API. Keys that a deploy does not read are kept and sent
back."""

from itertools import chain
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Json = dict[str, Any]  # a part of the configuration with application-specific keys


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


class Deployment(_Schema):
    """Configuration of one deployment."""

    name: str
    user_config: Any = None
    """A dict for applications of this project, any value for others."""


class ServeApplication(_Schema):
    """Configuration of one application, as in a PUT request."""

    name: str
    route_prefix: str | None = None
    import_path: str | None = None
    runtime_env: Json = {}
    args: Json = {}
    deployments: tuple[Deployment, ...] = ()
    host: Any = Field(default=None, exclude=True)
    """Excluded because Serve returns it but rejects it in a PUT."""
    port: Any = Field(default=None, exclude=True)
    """Excluded for the same reason as `host`."""

    @property
    def code(self) -> str | None:
        """Return the URI of the code that the replicas run."""
        return self.runtime_env.get("working_dir")

    @property
    def max_replicas(self) -> int:
        """Return the maximum number of replicas."""
        autoscaling = self.args.get("serving", {}).get("autoscaling", {})
        return int(autoscaling.get("max_replicas", 1))

    @property
    def shares_chat_base(self) -> bool:
        """Return `ServingConfig.shares_chat_base` of the application."""
        return bool(self.args.get("serving", {}).get("engine") == "vllm")

    @property
    def user_config(self) -> Json:
        """Return the configuration of the replicas; an application of this project has one
        deployment."""
        config: Json = self.deployments[0].user_config
        return config

    def with_user_config(self, user_config: Json) -> "ServeApplication":
        """Return a copy with another configuration of the replicas."""
        deployment = self.deployments[0].model_copy(update={"user_config": user_config})
        return self.model_copy(update={"deployments": (deployment,)})

    def to_json(self) -> Json:
        """Return the application's part of a PUT body, without fields that were not set."""
        return self.model_dump(mode="json", exclude_unset=True)


class ReplicaDetails(_Schema):
    """One replica of a deployment."""

    replica_id: str
    state: str
    pid: int | None = None


class DeploymentDetails(_Schema):
    """Status of one deployment."""

    status: str
    message: str = ""
    target_num_replicas: int = 0
    replicas: tuple[ReplicaDetails, ...] = ()


class ApplicationDetails(_Schema):
    """Status of one application."""

    status: str
    message: str = ""
    route_prefix: str | None = None
    deployed_app_config: ServeApplication | None = None
    """None for an application that was not declared through the REST API."""
    deployments: dict[str, DeploymentDetails] = {}

    @property
    def replicas(self) -> list[ReplicaDetails]:
        """Return the replicas of all deployments of the application."""
        return list(chain.from_iterable(each.replicas for each in self.deployments.values()))


class HttpOptions(_Schema):
    """HTTP options of Serve."""

    host: str | None = None


class ServeInstance(_Schema):
    """Status of Serve."""

    http_options: HttpOptions | None = None
    """None before Serve is started."""
    applications: dict[str, ApplicationDetails] = {}
