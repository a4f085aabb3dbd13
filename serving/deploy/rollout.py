"""From a registered version to a running Serve application, declaratively: the whole configuration is PUT."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import requests

from cluster.code_snapshot import shipped_sha256
from serving.http.schemas import PRETRAINED, config_id
from serving.replica.experiment import CHALLENGER
from tailorbird.config.serving import ServingConfig
from tailorbird.storage import read_bytes

if TYPE_CHECKING:
    from tailorbird.registry.versions import ModelVersion, Part

from serving.deploy.application import (
    standalone_application,
    application_name,
    application_of,
    route_prefix,
    task_of,
    version_name,
    with_config,
)
from serving.deploy.serve_client import (
    POLL_S,
    PUT_ATTEMPTS,
    DeployError,
    OverwrittenError,
    ChallengerError,
    VersionRefusedError,
    application_status,
    application_url,
    declared_applications,
    put_applications,
    require_private_or_keys,
    serve_applications,
    serve_instance,
)

DEPLOY_TIMEOUT_S = 240
READY_ATTEMPTS = 5
FAILED = ("DEPLOY_FAILED", "UNHEALTHY")
FAILED_HOLDS_S = 5


def deploy(
    config: ServingConfig,
    *,
    task_uri: str,
    version: "ModelVersion",
    pretrained: "ModelVersion | Part | None" = None,
    verdict: str | None = None,
    trial: "ModelVersion | None" = None,
    others: Sequence["ModelVersion"] = (),
) -> str:
    """Makes the version the one that answers, waits until it does, and returns the base URL of its routes.

    Of a classification, `pretrained` answers beside it who asks for that; `verdict` is the sentence that chose it;
    `trial` gets the share of `section.challenger`, and each of `others` answers under its version's name.

    Other applications are left as they are. A deploy that differs from the running one in its version alone
    or in its trial alone changes `user_config` only: the replicas stay, and swap when the new version is loaded. Raises
    DeployError (TrialError where all but the trial is as asked), or SessionError where Ray is not reachable.
    """
    name = application_name(task_uri)
    instance = serve_instance()
    before = instance["applications"]
    if config.api_keys is None and not config.guarded:
        require_private_or_keys(instance)
    application = application_of(
        config, task_uri=task_uri, version=version, pretrained=pretrained, verdict=verdict, trial=trial, others=others
    ) | {"route_prefix": route_prefix(name, before)}
    base_url = _apply(application, declared=declared_applications(before))
    if trial is not None:
        ready = next((found for found in (_ready(base_url) for _ in range(READY_ATTEMPTS)) if found), {})
        if ready.get("trial") != trial.digest:
            why = ready.get("absent", {}).get(CHALLENGER, "/readyz does not say why")
            raise ChallengerError(f"{version.uri} serves at {base_url}, but without {trial.uri} on trial: {why}")
    return base_url


@contextmanager
def staged(task_uri: str, *, version: "ModelVersion") -> Iterator[str | None]:
    """The base URL at which the version answers, while the block lasts, whoever asks for it by its name; None where the
    task is not served.

    It is loaded beside the champion, whose replicas stay. Where it runs other code than they do, it gets a replica in
    an application of its own for the time, so there must be room for one. Where the block ends well, it stays loaded
    for `move`, or else what was there before is put back. Raises as `deploy`.
    """
    name, declared = application_name(task_uri), declared_applications(serve_applications())
    former = declared.get(name)
    if former is None:
        yield None
        return
    config = former["deployments"][0]["user_config"]
    alike = former.get("runtime_env") == {"working_dir": version.code}
    was_beside = version.version in config.get("beside", {})
    if alike and config["digest"] == version.digest:
        yield application_url(former)
        return
    if alike:
        trial = with_config(
            former, config | {"beside": config.get("beside", {}) | {version.version: version_name(version)}}
        )
    else:
        trial = standalone_application(former, version=version)
    try:
        url = _apply(trial, declared=declared)
        absent = _ready(url).get("absent", {})
        if version.version in absent:
            raise VersionRefusedError(f"{name}: version refused, the former one serves on: {absent[version.version]}")
        yield url
    except BaseException:
        if alike and not was_beside:
            with suppress(DeployError):  # what went wrong before is what is told
                _unstage(name, version=version)
        raise
    finally:
        if not alike:
            with suppress(DeployError):  # what was asked of it stands
                undeploy(trial["name"])


def _unstage(name: str, *, version: "ModelVersion") -> None:
    """Takes the version from beside the champion, whoever that is by now."""
    declared = declared_applications(serve_applications())
    if name not in declared:
        return
    config = declared[name]["deployments"][0]["user_config"]
    beside = {other: one for other, one in config.get("beside", {}).items() if other != version.version}
    _apply(with_config(declared[name], config | {"beside": beside}), declared=declared)


def switch_version(
    task_uri: str, *, version: "ModelVersion", pretrained: "ModelVersion | Part | None", verdict: str | None
) -> str | None:
    """Makes the version the one that answers where the task is served, with the section it is served with, as `deploy`:
    beside it the versions that are for its base model and code, the former champion among them.

    Returns the base URL, or None where the task is not served.
    """
    from tailorbird.registry.versions import over_same_base, weights_digest

    declared = declared_applications(serve_applications())
    former = declared.get(application_name(task_uri))
    if former is None:
        return None
    config = former["deployments"][0]["user_config"]
    alike = former.get("runtime_env") == {"working_dir": version.code}
    most = config["versions"]  # by the section of then
    beside = {other.version: version_name(other) for other in over_same_base(version, task_uri=task_uri, most=most)}
    if config["with_pretrained"] and pretrained is not None and task_of(version) == "classification":
        beside[PRETRAINED] = version_name(pretrained)
    changed = with_config(former, config | version_name(version) | {"verdict": verdict, "beside": beside})
    tried = config.get(CHALLENGER, {}).get("digest") in (version.digest, weights_digest(version))
    if CHALLENGER in config and (tried or not alike):
        del changed["deployments"][0]["user_config"][CHALLENGER]
    return _apply(changed | {"runtime_env": {"working_dir": version.code}}, declared=declared)


def _apply(application: dict[str, Any], *, declared: dict[str, dict[str, Any]]) -> str:
    """Puts the application in the place of the one that was declared, waits until it answers as configured, and returns
    its base URL; where it does not, raises DeployError with what was there before put back.

    Serve takes its configuration as a whole and on no condition: who changes another application may put back what he
    had read of ours. Then it is put again; what somebody else made of ours is left, with DeployError.
    """
    name, base_url, former = application["name"], application_url(application), declared.get(application["name"])
    if (former or {}).get("runtime_env") != application["runtime_env"]:
        require_unchanged(application["runtime_env"]["working_dir"])
    config = application["deployments"][0]["user_config"]
    max_replicas = application["args"].get("serving", {}).get("max_replicas", 1)
    for _ in range(PUT_ATTEMPTS):
        _put_application(application)
        try:
            _wait_ready(name, base_url=base_url, config=config, num_answers=2 * max_replicas)
            _require_declared(name, config=config)
        except OverwrittenError:
            if declared_applications(serve_applications()).get(name) != former:
                raise
            continue
        except DeployError:
            if former is not None:  # a replica that starts later must not be told to load what none can load
                _put_application(former)
            raise
        return base_url
    raise DeployError(f"{name} was put back {PUT_ATTEMPTS} times by who changes other applications; try again")


def _put_application(application: dict[str, Any]) -> None:
    """The others as they are at this moment."""
    put_applications(
        [
            *(
                one
                for other, one in declared_applications(serve_applications()).items()
                if other != application["name"]
            ),
            application,
        ]
    )


def _require_declared(name: str, *, config: dict[str, Any]) -> None:
    """Raises OverwrittenError where Serve was told something else of the application since."""
    found = declared_applications(serve_applications()).get(name)
    if found is None or config_id(found["deployments"][0]["user_config"]) != config_id(config):
        raise OverwrittenError(f"somebody else changed or removed {name} meanwhile; `tailorbird serve` it again")


def require_unchanged(code: str) -> None:
    """Raises DeployError where the code that replicas are to run is not what its name says: Ray does not look."""
    name = code.rpartition("/")[2].removesuffix(".zip")
    try:
        found = shipped_sha256(read_bytes(code))
    except ValueError as error:  # StorageError among them
        raise DeployError(f"the code {code} cannot be served: {error}; run the recipe again, which ships it") from None
    if found != name:
        raise DeployError(
            f"the code {code} was changed: its files give the sha256 {found}; find out who may write there"
        )


def undeploy(name: str) -> None:
    """Takes an application off the cluster and leaves the others; where it is not, nothing happens."""
    before = serve_applications()
    if name not in before:
        return
    put_applications([config for other, config in declared_applications(before).items() if other != name])
    deadline = time.monotonic() + DEPLOY_TIMEOUT_S
    while name in serve_applications():
        if time.monotonic() > deadline:
            raise DeployError(
                f"application {name!r} is still there after {DEPLOY_TIMEOUT_S} s: {application_status(name)}"
            )
        time.sleep(POLL_S)


def challenger_digest(base_url: str) -> str | None:
    """Digest of the version on trial beside the champion, where there is one."""
    found = _ready(base_url).get("trial")
    return None if found is None else str(found)


def _wait_ready(name: str, *, base_url: str, config: dict[str, Any], num_answers: int) -> dict[str, Any]:
    """Asks /readyz until every replica that runs has the configuration, and returns the last answer: Serve's status
    lags behind it by up to half a minute. It takes `num_answers` in a row."""
    digest, asked = config["digest"], config_id(config)
    deadline = time.monotonic() + DEPLOY_TIMEOUT_S
    failed_since: float | None = None
    in_a_row, heard = 0, set[Any]()
    while time.monotonic() < deadline:
        ready = _ready(base_url)
        if ready.get("config") != asked:  # what was said of a former one
            ready = {}
        if ready.get("refused") == digest:
            raise VersionRefusedError(f"{name}: version refused, the former one serves on: {ready.get('reason')}")
        right = ready.get("digest") == digest
        in_a_row, heard = (in_a_row + 1, {*heard, ready.get("replica")}) if right else (0, set())
        if in_a_row >= num_answers and _running_replicas(name) <= heard:
            return ready
        if 0 < in_a_row < num_answers:
            continue
        _require_declared(name, config=config)
        status = application_status(name)
        if not status.startswith(FAILED):
            failed_since = None
        elif failed_since is None:
            failed_since = time.monotonic()
        elif time.monotonic() - failed_since > FAILED_HOLDS_S:
            raise DeployError(f"{name} could not be deployed: {status}")
        time.sleep(POLL_S)
    raise DeployError(f"{name} did not answer with digest {digest} in {DEPLOY_TIMEOUT_S} s: {application_status(name)}")


def _running_replicas(name: str) -> set[str]:
    """The application's replicas that answer, as Serve names them."""
    deployments = serve_applications().get(name, {}).get("deployments", {}).values()
    replicas = [replica for deployment in deployments for replica in deployment["replicas"]]
    return {replica["replica_id"] for replica in replicas if replica["state"] == "RUNNING"}


def _ready(base_url: str) -> dict[str, Any]:
    try:
        answer = requests.get(f"{base_url}/readyz", timeout=5)
        found = answer.json()
    except (requests.RequestException, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
