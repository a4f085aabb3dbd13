"""Deploy, stage, switch and undeploy versions. Each step PUTs Serve's complete configuration."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cluster.code_snapshot import shipped_sha256
from cluster.dashboard import has_dashboard
from cluster.progress import SILENT, ProgressReporter
from serving.deploy import serve_client
from serving.deploy.application import (
    AdditionalVersions,
    application_name,
    application_of,
    can_hold,
    is_baseline_served,
    replica_config,
    route_prefix,
    shown_of,
    standalone_application,
    version_ref,
    with_replicas,
)
from serving.deploy.readiness import UNREACHABLE, replica_status, wait_ready
from serving.deploy.serve_client import (
    PUT_ATTEMPTS,
    ChallengerError,
    DeployError,
    OverwrittenError,
    VersionRefusedError,
)
from serving.deploy.serve_schema import ServeApplication
from serving.http.api_keys import KeysError, read_keys
from serving.http.schemas import BASELINE
from serving.replica.config import CHALLENGER
from tailorbird.config.serving import ServingConfig
from tailorbird.registry.champion import ChosenBy
from tailorbird.registry.shared_base import selectable_versions
from tailorbird.registry.versions import ModelVersion, PinnedVersion
from tailorbird.storage import StorageError, read_bytes

REMOVAL_TIMEOUT_S = 240
READY_ATTEMPTS = 5


def deploy(
    config: ServingConfig,
    *,
    task_uri: str,
    version: ModelVersion,
    additional: AdditionalVersions = AdditionalVersions(),  # noqa: B008
    verdict: ChosenBy | None = None,
    progress: ProgressReporter = SILENT,
) -> str:
    """Make the version the champion of the service, wait until it answers, and return the base URL
    of its routes.

    `verdict` is the verdict that selected it. Other applications do not change. If only the
    versions differ from the running deploy, only `user_config` changes: the replicas keep running
    and swap when the new version is loaded. `progress` receives Serve's status whenever it changes.
    Raises DeployError (ChallengerError if everything except the challenger is served), or
    SessionError if Ray cannot be reached.
    """
    name = application_name(task_uri)
    instance = serve_client.serve_instance()
    if config.api_keys is None and not config.guarded:
        serve_client.require_private_or_keys(instance)
    if config.api_keys is not None:
        require_valid_keys(config.api_keys)
    application = application_of(
        config, task_uri=task_uri, version=version, additional=additional, verdict=verdict
    )
    application = application.model_copy(
        update={"route_prefix": route_prefix(name, instance.applications)}
    )
    base_url = _apply(
        application, declared=serve_client.declared_in(instance.applications), progress=progress
    )
    if additional.challenger is not None:
        _require_challenger(additional.challenger, champion=version, base_url=base_url)
    return base_url


def require_valid_keys(source: str) -> None:
    """Raise DeployError if a line of the API keys cannot be read: replicas would start without it.

    Does nothing if this process cannot read the keys, for example because they are in a variable of
    the nodes.
    """
    try:
        file = read_keys(source)
    except (KeysError, StorageError):
        return
    if file.errors:
        raise DeployError(f"{file.errors[0]}; correct the line, and run the command again")


def _require_challenger(challenger: ModelVersion, *, champion: ModelVersion, base_url: str) -> None:
    statuses = (replica_status(base_url) for _ in range(READY_ATTEMPTS))
    status = next((status for status in statuses if status.status == "ready"), UNREACHABLE)
    if status.challenger != challenger.digest:
        reason = (status.absent or {}).get(CHALLENGER, "/readyz reports no reason")
        raise ChallengerError(
            f"{champion.uri} serves at {base_url} without the challenger {challenger.uri}: {reason}"
        )


@contextmanager
def staged(
    task_uri: str, *, version: ModelVersion, progress: ProgressReporter = SILENT
) -> Iterator[str | None]:
    """Serve the version alongside the champion during the block, and yield the base URL that serves
    it.

    Yields None if the task is not served, or if no dashboard is set. The champion's replicas load
    the version, and requests select it by name. A version with other code, or one that needs a GPU
    that the replicas do not have, gets a separate application with one replica, for which the
    cluster must have resources. After a block without an error, a version in the champion's
    replicas stays loaded for `switch_version`. After an error, the previous state is restored.
    Raises the errors of `deploy`.
    """
    name = application_name(task_uri)
    declared = serve_client.declared_applications() if has_dashboard() else {}
    previous = declared.get(name)
    if previous is None:
        yield None
        return
    config = replica_config(previous)
    if previous.code == version.code and config.champion.digest == version.digest:
        yield serve_client.application_url(previous)
        return
    is_in_replicas = can_hold(previous, version=version)
    if is_in_replicas:
        config_with = config.with_other(version.version, version_ref(version))
        candidate = previous.with_user_config(config_with.to_user_config())
    else:
        candidate = standalone_application(previous, version=version)
    try:
        url = _apply(candidate, declared=declared, progress=progress)
        absent = replica_status(url).absent or {}
        if version.version in absent:
            reason = absent[version.version]
            raise VersionRefusedError(
                f"{name}: the previous version still serves, the new one cannot be loaded: {reason}"
            )
        yield url
    except BaseException:
        if is_in_replicas and version.version not in config.selectable:
            with suppress(DeployError):  # report the first error
                _unstage(name, version=version)
        raise
    finally:
        if not is_in_replicas:
            with suppress(DeployError):  # a failed cleanup must not hide the result of the block
                undeploy(candidate.name)


def _unstage(name: str, *, version: ModelVersion) -> None:
    """Unload the version from the replicas, even if another client has changed their champion."""
    declared = serve_client.declared_applications()
    if name in declared:
        config = replica_config(declared[name]).without_other(version.version)
        _apply(declared[name].with_user_config(config.to_user_config()), declared=declared)


def switch_version(
    task_uri: str,
    *,
    version: ModelVersion,
    baseline: ModelVersion | PinnedVersion | None,
    verdict: ChosenBy | None,
    progress: ProgressReporter = SILENT,
) -> str | None:
    """Make the version the champion of the running service, and return the base URL, or None if the
    task is not served.

    Other settings do not change. On vLLM, other versions with the same base model and code,
    including the previous champion, stay selectable by name. An experiment ends if its challenger
    becomes the champion, or if the code changes. Raises the errors of `deploy`.
    """
    declared = serve_client.declared_applications()
    previous = declared.get(application_name(task_uri))
    if previous is None:
        return None
    config = replica_config(previous)
    refs = {
        other.version: version_ref(other)
        for other in selectable_versions(
            version, task_uri=task_uri, shares_chat_base=previous.shares_chat_base
        )
    }
    if is_baseline_served(baseline, champion=version, shares_chat_base=previous.shares_chat_base):
        refs[BASELINE] = version_ref(baseline)
    challenger = config.challenger
    is_promoted = challenger is not None and challenger.digest == version.digest
    config = config.model_copy(
        update={
            "champion": version_ref(version),
            **shown_of(verdict),
            "selectable": refs,
            "challenger": None if is_promoted or previous.code != version.code else challenger,
        }
    )
    application = previous.model_copy(update={"runtime_env": {"working_dir": version.code}})
    return _apply(with_replicas(application, config), declared=declared, progress=progress)


def _apply(
    application: ServeApplication,
    *,
    declared: dict[str, ServeApplication],
    progress: ProgressReporter = SILENT,
) -> str:
    """Replace the application of this name, wait until it serves the new configuration, and return
    its base URL.

    On failure, restore the previous application and raise DeployError. Serve accepts only complete
    configurations and no preconditions, so a client that changes another application can overwrite
    this one with its previous state. In that case the application is put again. If another client
    changed this application, leave that change and raise DeployError.
    """
    previous = declared.get(application.name)
    if previous is None or previous.runtime_env != application.runtime_env:
        require_unchanged(str(application.code))
    name = application.name
    for _ in range(PUT_ATTEMPTS):
        _put_application(application)
        try:
            wait_ready(application, progress=progress)
        except OverwrittenError:
            if serve_client.declared_applications().get(name) != previous:
                raise
            continue
        except DeployError:
            if previous is not None:  # otherwise, new replicas would fail to load the version
                _put_application(previous)
            raise
        return serve_client.application_url(application)
    raise DeployError(
        f"other clients overwrote the configuration of {name} {PUT_ATTEMPTS} times during the "
        "deploy; try again"
    )


def _put_application(application: ServeApplication) -> None:
    """Put the application together with the current configurations of the others."""
    declared = serve_client.declared_applications() | {application.name: application}
    serve_client.put_applications(list(declared.values()))


def require_unchanged(code: str) -> None:
    """Raise DeployError if the sha256 of the code's files is not the name of its zip. Ray does not
    check this."""
    name = code.rpartition("/")[2].removesuffix(".zip")
    try:
        sha256 = shipped_sha256(read_bytes(code))
    except ValueError as error:  # includes StorageError
        raise DeployError(
            f"the code {code} cannot be served: {error}; run the recipe again to upload the code"
        ) from None
    if sha256 != name:
        raise DeployError(
            f"the code {code} was changed: its files have the sha256 {sha256}; check who has write "
            "access to it"
        )


def undeploy(name: str) -> None:
    """Remove an application. Do nothing if it does not exist; other applications do not change."""
    before = serve_client.serve_applications()
    if name not in before:
        return
    declared = serve_client.declared_in(before)
    declared.pop(name, None)
    serve_client.put_applications(list(declared.values()))
    deadline = time.monotonic() + REMOVAL_TIMEOUT_S
    while name in serve_client.serve_applications():
        if time.monotonic() > deadline:
            status = serve_client.application_status(name)
            raise DeployError(
                f"application {name!r} still exists {REMOVAL_TIMEOUT_S} s after its removal: "
                f"{status}"
            )
        time.sleep(serve_client.POLL_S)
