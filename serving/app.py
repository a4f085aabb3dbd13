"""Ray Serve's entry: `serving.app:build` makes the application that a declarative deploy names."""

from typing import Literal

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application

from serving.autoscaling import deployment_options
from serving.replica.chat import Chat
from serving.replica.classifier import Classifier
from tailorbird.config.serving import ServingConfig


class BuildArgs(BaseModel):
    """Arguments of the application; the version comes by `user_config`, so that it changes without a restart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_uri: str
    """`<registry>/<name>`."""
    serving: ServingConfig = ServingConfig()
    task: Literal["classification", "chat"] = "classification"
    """The recipe's."""


def build(args: BuildArgs) -> Application:
    """One ingress deployment that holds the model itself: a second hop would cost more than a forward pass."""
    config = args.serving
    replica = Chat if args.task == "chat" else Classifier
    deployment = serve.deployment(serve.ingress()(replica)).options(**deployment_options(config, task=args.task))
    application: Application = deployment.bind(args.task_uri, config.model_dump())
    return application
