"""The applications of replicas before a version is loaded."""

from typing import Any

from serving.http.asgi import ASGIApp
from serving.replica.base import Replica
from serving.replica.served_versions import ServedVersions
from tailorbird.config.serving import ServingConfig


def application(service: type, config: ServingConfig) -> ASGIApp:
    """Return the application of a deployment's class, for example `Classifier`."""

    def load(_uri: str, _digest: str) -> Any:
        raise AssertionError

    deployment: Any = object.__new__(service)
    deployment._config = config
    deployment._replica = Replica(ServedVersions(load, read_secret=bytes), task_uri="s3://models/task", config=config)
    app: ASGIApp = deployment.__serve_build_asgi_app__()
    return app
