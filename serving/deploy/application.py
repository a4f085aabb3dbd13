"""A Serve application's declaration: import path, arguments and replica configuration."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from serving.http.schemas import PRETRAINED
from serving.replica.experiment import CHALLENGER
from tailorbird.config.serving import ServingConfig

if TYPE_CHECKING:
    from tailorbird.registry.versions import ModelVersion, Part

from serving.deploy.serve_client import ChallengerError

IMPORT_PATH = "serving.app:build"
DEPLOYMENTS = {"classification": "classifier", "chat": "chat"}
ROUTES = {"classification": "/v1/classify", "chat": "/v1/chat/completions"}
# Final once it holds: right after a PUT, Serve may still show how the former deploy ended.
# What of the section only this side reads: the replicas hear of it by `user_config`, and need no restart.
OURS = {"pretrained", "trial", "versions"}


def task_of(version: "ModelVersion") -> str:
    """The task that a version was made for: the recipe's `task`."""
    return "classification" if version.prompting is None else "chat"


def application_of(
    section: ServingConfig,
    *,
    task_uri: str,
    version: "ModelVersion",
    pretrained: "ModelVersion | Part | None" = None,
    verdict: str | None = None,
    trial: "ModelVersion | None" = None,
    others: Sequence["ModelVersion"] = (),
) -> dict[str, Any]:
    """The application as Serve is told of it, at `/`: what `deploy` puts and a manifest says. Arguments as there, and
    TrialError for a trial by other code than the champion's."""
    task = task_of(version)
    config: dict[str, Any] = version_name(version) | {"verdict": verdict}
    config |= {"with_pretrained": section.pretrained, "versions": section.versions}  # which `move` goes by
    beside = {other.version: version_name(other) for other in others if other.digest != version.digest}
    # A chat model beside would take as much memory again.
    if pretrained is not None and task == "classification" and section.pretrained:
        beside[PRETRAINED] = version_name(pretrained)
    if beside:
        config["beside"] = beside
    if trial is not None:
        assert section.challenger is not None
        if trial.code != version.code:
            raise ChallengerError(
                f"{trial.uri} was made by other code ({trial.code}) than the champion ({version.code}), in whose "
                "replicas it would run: what is tried would not be what is served later. Try one that was made by the "
                "champion's code, or promote this one: `tailorbird promote` lets it answer test rows by its own first"
            )
        config[CHALLENGER] = version_name(trial) | section.challenger.model_dump(exclude={"version"}, exclude_none=True)
    return {
        "name": application_name(task_uri),
        "route_prefix": "/",
        "import_path": IMPORT_PATH,
        "runtime_env": {"working_dir": version.code},
        "args": _build_args(section, task_uri=task_uri, task=task),
        "deployments": [{"name": DEPLOYMENTS[task], "user_config": config}],
    }


def with_config(application: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    return application | {"deployments": [application["deployments"][0] | {"user_config": config}]}


def standalone_application(former: dict[str, Any], *, version: "ModelVersion") -> dict[str, Any]:
    """The version in an application of its own, with one replica."""
    name = f"{former['name']}_candidate"  # which no recipe may be called
    args = former["args"]
    serving = args.get("serving", {}) | {"min_replicas": 1, "max_replicas": 1}
    return with_config(former, version_name(version)) | {
        "name": name,
        "route_prefix": f"/{name}",
        "runtime_env": {"working_dir": version.code},
        "args": args | {"serving": serving},
    }


def version_name(version: "ModelVersion | Part") -> dict[str, str]:
    return {"version_uri": version.uri, "digest": version.digest}


def application_name(task_uri: str) -> str:
    """The Serve application of a task's home, `<registry>/<name>`: its name."""
    return task_uri.rstrip("/").rsplit("/", 1)[-1]


def _build_args(config: ServingConfig, *, task_uri: str, task: str) -> dict[str, Any]:
    """`serving.app.BuildArgs`, as the version's own code reads them: of a field that code may not have, nothing."""
    fields = config.model_dump(mode="json", exclude_defaults=True, exclude=OURS)
    args = {"task_uri": task_uri, "serving": fields}
    return args if task == "classification" else args | {"task": task}


def route_prefix(name: str, applications: dict[str, Any]) -> str:
    """Where it is already, else `/`, else, where another application holds that, `/<name>`."""
    if name in applications and applications[name].get("route_prefix"):
        return str(applications[name]["route_prefix"])
    taken = {application.get("route_prefix") for application in applications.values()}
    return "/" if "/" not in taken else f"/{name}"
