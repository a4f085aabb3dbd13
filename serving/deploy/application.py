"""The Serve application of a version: its code, its arguments and the configuration of its
replicas."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from serving.deploy.serve_client import ChallengerError
from serving.deploy.serve_schema import ApplicationDetails, Deployment, ServeApplication
from serving.http.schemas import BASELINE
from serving.replica.config import Challenger, ReplicaConfig, VersionRef
from serving.served_tasks import SERVED_TASKS
from tailorbird.config.serving import ServingConfig
from tailorbird.registry.champion import ChosenBy
from tailorbird.registry.versions import ModelVersion, PinnedVersion, spec_at

IMPORT_PATH = "serving.app:build"
USER_CONFIG_FIELDS = {"challenger"}
"""Fields of ServingConfig that are passed in `user_config`, so that a change does not restart the
replicas."""


@dataclass(frozen=True)
class AdditionalVersions:
    """The versions that replicas serve in addition to the champion."""

    baseline: ModelVersion | PinnedVersion | None = None  # selected by `model: baseline`
    challenger: ModelVersion | None = None  # receives the share in `serving.challenger`
    selectable: Sequence[ModelVersion] = ()  # selected by version


def application_of(
    config: ServingConfig,
    *,
    task_uri: str,
    version: ModelVersion,
    additional: AdditionalVersions = AdditionalVersions(),
    verdict: ChosenBy | None = None,
) -> ServeApplication:
    """Return the application with the route prefix `/`, for `deploy` or a manifest.

    Raises ChallengerError if the challenger and the champion were made by different code.
    """
    replicas = _replica_config(config, version=version, additional=additional, verdict=verdict)
    deployment = Deployment(
        name=SERVED_TASKS[version.task].deployment, user_config=replicas.to_user_config()
    )
    # Fields with their default values are omitted, because older code of a version may not know
    # them.
    serving = config.model_dump(mode="json", exclude_defaults=True, exclude=USER_CONFIG_FIELDS)
    application = ServeApplication(
        name=application_name(task_uri),
        route_prefix="/",
        import_path=IMPORT_PATH,
        runtime_env={"working_dir": version.code},
        args={
            "task_uri": task_uri,
            "task": version.task,
            "serving": serving,
        },  # `serving.app.BuildArgs`
        deployments=(deployment,),
    )
    return with_replicas(application, replicas)


def _replica_config(
    config: ServingConfig,
    *,
    version: ModelVersion,
    additional: AdditionalVersions,
    verdict: ChosenBy | None,
) -> ReplicaConfig:
    selectable = {
        other.version: version_ref(other)
        for other in additional.selectable
        if other.digest != version.digest
    }
    if is_baseline_served(
        additional.baseline, champion=version, shares_chat_base=config.shares_chat_base
    ):
        selectable[BASELINE] = version_ref(additional.baseline)
    return ReplicaConfig(
        champion=version_ref(version),
        **shown_of(verdict),
        challenger=_challenger(config, champion=version, challenger=additional.challenger),
        selectable=selectable,
    )


def shown_of(verdict: ChosenBy | None) -> dict[str, Any]:
    """Return the fields of ReplicaConfig that the page shows about the verdict that selected the
    champion."""
    if verdict is None:
        return {"verdict": None, "costs": {}}
    return {"verdict": verdict.sentence, "costs": verdict.costs}


def is_baseline_served(
    baseline: ModelVersion | PinnedVersion | None, *, champion: ModelVersion, shares_chat_base: bool
) -> TypeGuard[ModelVersion | PinnedVersion]:
    """Return True if requests can select this baseline (see `ServedTask.serves_baseline`).

    `shares_chat_base` is that of the `ServingConfig`. The baseline and an adapter of a run have the
    same base model.
    """
    if baseline is None:
        return False
    spec = spec_at(baseline.uri)
    is_champion = baseline.digest == champion.digest
    if spec.calls_endpoint:
        return is_champion  # otherwise, any client could cause costs
    if is_champion or not spec.uses_base or SERVED_TASKS[champion.task].serves_baseline:
        return True
    return shares_chat_base and champion.spec.shares_base and spec.shares_base


def _challenger(
    config: ServingConfig, *, champion: ModelVersion, challenger: ModelVersion | None
) -> Challenger | None:
    if challenger is None:
        return None
    assert config.challenger is not None
    if challenger.code != champion.code:
        raise ChallengerError(
            f"{challenger.uri} was made by code {challenger.code}, but the champion's replicas run "
            f"code {champion.code}. Choose a challenger made by the champion's code, or promote "
            "this version: `tailorbird promote` first checks its answers with its own code"
        )
    return Challenger(uri=challenger.uri, digest=challenger.digest, shadow=config.challenger.shadow)


def replica_config(application: ServeApplication) -> ReplicaConfig:
    """Return the configuration of the application's replicas."""
    return ReplicaConfig.model_validate(application.user_config)


def with_replicas(application: ServeApplication, config: ReplicaConfig) -> ServeApplication:
    """Return a copy with another configuration of its replicas, which get a GPU only if they hold a
    model.

    If this changes, the replicas restart.
    """
    args = {name: value for name, value in application.args.items() if name != "without_gpu"}
    refs = [ref for ref in (config.champion, config.challenger) if ref is not None]
    if uses_gpu(application) and all(spec_at(ref.uri).calls_endpoint for ref in refs):
        args["without_gpu"] = True
    return application.model_copy(update={"args": args}).with_user_config(config.to_user_config())


def uses_gpu(application: ServeApplication) -> bool:
    """Return True if replicas of the application that hold a model use a GPU."""
    return bool(application.args.get("serving", {}).get("gpus_per_replica"))


def can_hold(application: ServeApplication, *, version: ModelVersion) -> bool:
    """Return True if the application's replicas can load the version: they run its code, and have a
    GPU if needed."""
    has_gpu = not application.args.get("without_gpu", False)
    return application.code == version.code and (has_gpu or spec_at(version.uri).calls_endpoint)


def standalone_application(
    previous: ServeApplication, *, version: ModelVersion
) -> ServeApplication:
    """Return a separate application for the version, with one replica and the arguments of
    `previous`."""
    name = f"{previous.name}_candidate"  # recipe names cannot contain an underscore
    serving = dict(previous.args.get("serving", {}))
    serving.pop("autoscaling", None)
    update = {
        "name": name,
        "route_prefix": f"/{name}",
        "runtime_env": {"working_dir": version.code},
        "args": previous.args | {"serving": serving},
    }
    config = ReplicaConfig(champion=version_ref(version))
    return with_replicas(previous.model_copy(update=update), config)


def version_ref(version: ModelVersion | PinnedVersion) -> VersionRef:
    """Return the reference with which a replica loads the version."""
    return VersionRef(uri=version.uri, digest=version.digest)


def application_name(task_uri: str) -> str:
    """Return the name of a task's Serve application: the last part of `<registry>/<name>`."""
    return task_uri.rstrip("/").rsplit("/", 1)[-1]


def route_prefix(name: str, applications: dict[str, ApplicationDetails]) -> str:
    """Return the route prefix of an application.

    A deployed application keeps its prefix. A new one gets `/`, or `/<name>` if another application
    has `/`.
    """
    if name in applications and applications[name].route_prefix:
        return str(applications[name].route_prefix)
    if any(details.route_prefix == "/" for details in applications.values()):
        return f"/{name}"
    return "/"
