"""Entry point of Ray Serve: `serving.app:build` makes the application that a declarative deploy names."""

from importlib import import_module
from typing import Literal

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application

from serving.autoscaling import deployment_options
from serving.tasks import SERVED_TASKS
from tailorbird.config.serving import ServingConfig


class BuildArgs(BaseModel):
    """Arguments of the application; the versions come by `user_config`, so that they change without a restart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_uri: str
    """`<registry>/<name>`."""
    task: Literal["classification", "chat"]
    serving: ServingConfig = ServingConfig()


def build(args: BuildArgs) -> Application:
    """Return one ingress deployment that holds the models itself: a second hop would cost more than a forward pass."""
    module, _, name = SERVED_TASKS[args.task].replica_class.partition(":")
    replica = getattr(import_module(module), name)
    deployment = serve.deployment(serve.ingress()(replica)).options(**deployment_options(args.serving, task=args.task))
    application: Application = deployment.bind(args.task_uri, args.serving.model_dump_json())
    return application
