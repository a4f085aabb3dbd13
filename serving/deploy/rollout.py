"""Deploy, stage, switch and undeploy versions declaratively: each step PUTs the whole configuration of Serve."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import requests
from pydantic import ConfigDict

from cluster.code_snapshot import shipped_sha256
from serving.deploy import serve_client
from serving.deploy.application import (
    AdditionalVersions,
    application_name,
    application_of,
    replica_config,
    route_prefix,
    standalone_application,
    version_ref,
)
from serving.deploy.serve_client import (
    PUT_ATTEMPTS,
    ChallengerError,
    DeployError,
    OverwrittenError,
    VersionRefusedError,
)
from serving.deploy.serve_schema import ServeApplication
from serving.http.schemas import PRETRAINED, Readiness
from serving.replica.config import config_id
from serving.replica.experiment import CHALLENGER
from serving.tasks import SERVED_TASKS
from tailorbird.config.serving import ServingConfig
from tailorbird.registry.versions import ModelVersion, PinnedVersion, versions_on_same_base, weights_digest
from tailorbird.storage import read_bytes

DEPLOY_TIMEOUT_S = 240
READY_ATTEMPTS = 5
FAILED = ("DEPLOY_FAILED", "UNHEALTHY")
FAILED_HOLDS_S = 5
"""How long a failure must last to be final: right after a PUT, Serve may still report the end of the former deploy."""


class ReplicaStatus(Readiness):
    """The answer of /readyz; ignores unknown keys, since the version's code may be newer than the client's."""

    model_config = ConfigDict(extra="ignore")


def deploy(
    config: ServingConfig,
    *,
    task_uri: str,
    version: ModelVersion,
    additional: AdditionalVersions = AdditionalVersions(),  # noqa: B008
    verdict: str | None = None,
) -> str:
    """Make the version the champion of the service, wait until it answers, and return the base URL of its routes.

    `verdict` is the sentence that chose it. Other applications are left as they are. A deploy that differs from the
    running one in its versions alone changes `user_config` only: the replicas stay, and swap when the new version is
    loaded. Raises DeployError (ChallengerError if all but the challenger is served), or SessionError if Ray cannot be
    reached.
    """
    name = application_name(task_uri)
    instance = serve_client.serve_instance()
    if config.api_keys is None and not config.guarded:
        serve_client.require_private_or_keys(instance)
    application = application_of(config, task_uri=task_uri, version=version, additional=additional, verdict=verdict)
    application = application.model_copy(update={"route_prefix": route_prefix(name, instance.applications)})
    base_url = _apply(application, declared=serve_client.declared_in(instance.applications))
    if additional.challenger is not None:
        _require_challenger(additional.challenger, champion=version, base_url=base_url)
    return base_url


def _require_challenger(challenger: ModelVersion, *, champion: ModelVersion, base_url: str) -> None:
    statuses = (_replica_status(base_url) for _ in range(READY_ATTEMPTS))
    status = next((status for status in statuses if status.status == "ready"), UNREACHABLE)
    if status.challenger != challenger.digest:
        reason = (status.absent or {}).get(CHALLENGER, "/readyz does not say why")
        raise ChallengerError(f"{champion.uri} serves at {base_url}, but without {challenger.uri} on trial: {reason}")


@contextmanager
def staged(task_uri: str, *, version: ModelVersion) -> Iterator[str | None]:
    """Serve the version next to the champion during the block, selectable by its name; yield its base URL, or None if
    the task is not served.

    The champion's replicas load it; if it needs other code than they run, it gets one replica in an application of its
    own, for which there must be room. After a block without error it stays loaded for `switch_version`; otherwise the
    former state is restored. Raises as `deploy`.
    """
    name, declared = application_name(task_uri), serve_client.declared_applications()
    former = declared.get(name)
    if former is None:
        yield None
        return
    config = replica_config(former)
    same_code = former.code == version.code
    if same_code and config.champion.digest == version.digest:
        yield serve_client.application_url(former)
        return
    if same_code:
        config_with = config.with_other(version.version, version_ref(version))
        candidate = former.with_user_config(config_with.to_user_config())
    else:
        candidate = standalone_application(former, version=version)
    try:
        url = _apply(candidate, declared=declared)
        absent = _replica_status(url).absent or {}
        if version.version in absent:
            raise VersionRefusedError(f"{name}: version refused, the former one serves on: {absent[version.version]}")
        yield url
    except BaseException:
        if same_code and version.version not in config.others:
            with suppress(DeployError):  # the first error is the one to report
                _unstage(name, version=version)
        raise
    finally:
        if not same_code:
            with suppress(DeployError):  # the candidate's answers stand
                undeploy(candidate.name)


def _unstage(name: str, *, version: ModelVersion) -> None:
    """Unload the version from the replicas, whatever their champion is by now."""
    declared = serve_client.declared_applications()
    if name in declared:
        config = replica_config(declared[name]).without_other(version.version)
        _apply(declared[name].with_user_config(config.to_user_config()), declared=declared)


def switch_version(
    task_uri: str, *, version: ModelVersion, pretrained: ModelVersion | PinnedVersion | None, verdict: str | None
) -> str | None:
    """Make the version the champion of the running service, whose other settings stay, and return the base URL; return
    None if the task is not served.

    The other versions over its base model and code, the former champion among them, stay selectable by name. The
    experiment ends if its challenger becomes the champion or is for other code. Raises as `deploy`.
    """
    declared = serve_client.declared_applications()
    former = declared.get(application_name(task_uri))
    if former is None:
        return None
    config = replica_config(former)
    others = versions_on_same_base(version, task_uri=task_uri, limit=config.max_versions)
    refs = {other.version: version_ref(other) for other in others}
    if config.serve_pretrained and pretrained is not None and SERVED_TASKS[version.task].serves_pretrained:
        refs[PRETRAINED] = version_ref(pretrained)
    challenger = config.challenger
    promoted = challenger is not None and challenger.digest in (version.digest, weights_digest(version))
    config = config.model_copy(
        update={
            "champion": version_ref(version),
            "verdict": verdict,
            "others": refs,
            "challenger": None if promoted or former.code != version.code else challenger,
        }
    )
    application = former.model_copy(update={"runtime_env": {"working_dir": version.code}})
    return _apply(application.with_user_config(config.to_user_config()), declared=declared)


def _apply(application: ServeApplication, *, declared: dict[str, ServeApplication]) -> str:
    """Replace the declared application of this name, wait until it answers as configured, and return its base URL; on
    failure raise DeployError after restoring the former one.

    Serve takes its configuration as a whole and without a precondition: a client that changes another application may
    put back what it had read of this one. Then it is put again; a change of this application by others is left, with
    DeployError.
    """
    name, former = application.name, declared.get(application.name)
    if former is None or former.runtime_env != application.runtime_env:
        require_unchanged(str(application.code))
    for _ in range(PUT_ATTEMPTS):
        _put_application(application)
        try:
            _wait_ready(application)
            _require_declared(application)
        except OverwrittenError:
            if serve_client.declared_applications().get(name) != former:
                raise
            continue
        except DeployError:
            if former is not None:  # replicas that start later must not load what cannot be loaded
                _put_application(former)
            raise
        return serve_client.application_url(application)
    raise DeployError(f"{name} was put back {PUT_ATTEMPTS} times by who changes other applications; try again")


def _put_application(application: ServeApplication) -> None:
    """Put the application next to the others as they are at this moment."""
    others = serve_client.declared_applications()
    others.pop(application.name, None)
    serve_client.put_applications([*others.values(), application])


def _require_declared(application: ServeApplication) -> None:
    """Raise OverwrittenError if the application was declared otherwise since."""
    name, declared = application.name, serve_client.declared_applications().get(application.name)
    if declared is None or config_id(declared.user_config) != config_id(application.user_config):
        raise OverwrittenError(f"somebody else changed or removed {name} meanwhile; `tailorbird serve` it again")


def require_unchanged(code: str) -> None:
    """Raise DeployError if the code's zip is not what its name says, which Ray does not check."""
    name = code.rpartition("/")[2].removesuffix(".zip")
    try:
        sha256 = shipped_sha256(read_bytes(code))
    except ValueError as error:  # StorageError among them
        raise DeployError(f"the code {code} cannot be served: {error}; run the recipe again, which ships it") from None
    if sha256 != name:
        change = f"its files give the sha256 {sha256}; find out who may write there"
        raise DeployError(f"the code {code} was changed: {change}")


def undeploy(name: str) -> None:
    """Remove an application and leave the others; does nothing if there is none of this name."""
    before = serve_client.serve_applications()
    if name not in before:
        return
    others = serve_client.declared_in(before)
    others.pop(name, None)
    serve_client.put_applications(list(others.values()))
    deadline = time.monotonic() + DEPLOY_TIMEOUT_S
    while name in serve_client.serve_applications():
        if time.monotonic() > deadline:
            status = serve_client.application_status(name)
            raise DeployError(f"application {name!r} is still there after {DEPLOY_TIMEOUT_S} s: {status}")
        time.sleep(serve_client.POLL_S)


def challenger_digest(base_url: str) -> str | None:
    """Return the digest of the challenger that serves next to the champion, if there is one."""
    return _replica_status(base_url).challenger


def _wait_ready(application: ServeApplication) -> None:
    """Poll /readyz until every running replica has the configuration: Serve's status lags behind by up to 30 s. The
    proxy picks a replica a request, so it takes twice as many answers in a row as there may be replicas."""
    name, base_url = application.name, serve_client.application_url(application)
    num_answers = 2 * application.max_replicas
    digest, wanted = replica_config(application).champion.digest, config_id(application.user_config)
    deadline = time.monotonic() + DEPLOY_TIMEOUT_S
    failed_since: float | None = None
    in_a_row, answered = 0, set[str | None]()
    while time.monotonic() < deadline:
        status = _replica_status(base_url)
        if status.config != wanted:  # of a former configuration
            status = UNREACHABLE
        if status.refused == digest:
            raise VersionRefusedError(f"{name}: version refused, the former one serves on: {status.reason}")
        matches = status.digest == digest
        in_a_row, answered = (in_a_row + 1, {*answered, status.replica}) if matches else (0, set())
        if in_a_row >= num_answers and _running_replicas(name) <= answered:
            return
        if 0 < in_a_row < num_answers:
            continue
        _require_declared(application)
        message = serve_client.application_status(name)
        if not message.startswith(FAILED):
            failed_since = None
        elif failed_since is None:
            failed_since = time.monotonic()
        elif time.monotonic() - failed_since > FAILED_HOLDS_S:
            raise DeployError(f"{name} could not be deployed: {message}")
        time.sleep(serve_client.POLL_S)
    summary = serve_client.application_status(name)
    raise DeployError(f"{name} did not answer with digest {digest} in {DEPLOY_TIMEOUT_S} s: {summary}")


def _running_replicas(name: str) -> set[str | None]:
    """Return the ids of the application's running replicas, as Serve and /readyz name them."""
    return {replica.replica_id for replica in serve_client.replicas_of(name) if replica.state == "RUNNING"}


UNREACHABLE = ReplicaStatus(status="loading")


def _replica_status(base_url: str) -> ReplicaStatus:
    """Return a replica's answer to /readyz; UNREACHABLE if there is none."""
    try:
        return ReplicaStatus.model_validate(requests.get(f"{base_url}/readyz", timeout=5).json())
    except (requests.RequestException, ValueError):
        return UNREACHABLE
