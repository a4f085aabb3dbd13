"""Entry point for Ray Serve: a declarative deploy builds the application with `serving.app:build`.

Read next `replica/base.py`, which contains what the replicas of all tasks have in common.
"""

from importlib import import_module
from typing import Literal

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application

from serving.autoscaling import deployment_options
from serving.served_tasks import SERVED_TASKS
from tailorbird.config.serving import ServingConfig


class BuildArgs(BaseModel):
    """Arguments of the application. The versions are in `user_config`, which can change without a
    restart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_uri: str
    """`<registry>/<name>`."""
    task: Literal["classification", "chat"]
    serving: ServingConfig = ServingConfig()
    without_gpu: bool = False
    """Whether the replicas use no GPU, whatever `serving` sets, because their versions are those of
    an endpoint."""


def build(args: BuildArgs) -> Application:
    """Return the application: one ingress deployment, which holds the models.

    A separate deployment for the models would add a hop, which takes longer than a forward pass.
    """
    module, _, name = SERVED_TASKS[args.task].replica_class.partition(":")
    replica = getattr(import_module(module), name)
    if args.without_gpu:
        config = args.serving.model_copy(update={"gpus_per_replica": 0})
    else:
        config = args.serving
    deployment = serve.deployment(serve.ingress()(replica)).options(
        **deployment_options(config, task=args.task)
    )
    application: Application = deployment.bind(args.task_uri, config.model_dump_json())
    return application
