"""From a registered version to a running Serve application, declaratively: the whole configuration is PUT."""

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests

from cluster.code import shipped_sha256
from cluster.session import request_dashboard
from cluster.storage import read_bytes
from recipes.schema import ServingSection
from serving.protocol import LOCAL, PRETRAINED, config_id
from serving.trial import TRIAL

if TYPE_CHECKING:
    from models.registry import ModelVersion, Part

APPLICATIONS = "/api/serve/applications/"
IMPORT_PATH = "serving.app:build"
DEPLOYMENTS = {"classification": "classifier", "chat": "chat"}
ROUTES = {"classification": "/v1/classify", "chat": "/v1/chat/completions"}
DEPLOY_TIMEOUT_S = 240
POLL_S = 0.2
# Serve starts on the first PUT, which may fail while it does.
PUT_ATTEMPTS = 5
READY_ATTEMPTS = 5
# Final once it holds: right after a PUT, Serve may still show how the former deploy ended.
# What of the section only this side reads: the replicas hear of it by `user_config`, and need no restart.
OURS = {"pretrained", "trial", "versions"}
FAILED = ("DEPLOY_FAILED", "UNHEALTHY")
FAILED_HOLDS_S = 5


class DeployError(ValueError):
    """A deploy that Serve refused or did not finish in time; the message carries Serve's own status."""


class VersionRefusedError(DeployError):
    """The version cannot be loaded; the one that served before serves on."""


class OverwrittenError(DeployError):
    """Somebody else changed or removed the application while it was deployed."""


class TrialError(DeployError):
    """The version cannot be tried; the champion serves without it, as it was asked to or as before."""


def task_of(version: "ModelVersion") -> str:
    """The task that a version was made for: the recipe's `task`."""
    return "classification" if version.prompting is None else "chat"


def deploy(
    section: ServingSection,
    *,
    home: str,
    version: "ModelVersion",
    pretrained: "ModelVersion | Part | None" = None,
    verdict: str | None = None,
    trial: "ModelVersion | None" = None,
    others: Sequence["ModelVersion"] = (),
) -> str:
    """Makes the version the one that answers, waits until it does, and returns the base URL of its routes.

    Of a classification, `pretrained` answers beside it who asks for that; `verdict` is the sentence that chose it;
    `trial` gets the share of `section.trial`, and each of `others` answers under its version's name.

    Other applications are left as they are. A deploy that differs from the running one in its version alone
    or in its trial alone changes `user_config` only: the replicas stay, and swap when the new version is loaded. Raises
    DeployError (TrialError where all but the trial is as asked), or SessionError where Ray is not reachable.
    """
    name = application_name(home)
    instance = _instance()
    before = instance["applications"]
    if section.api_keys is None and not section.guarded:
        _refuse_open_door(instance)
    application = application_of(
        section, home=home, version=version, pretrained=pretrained, verdict=verdict, trial=trial, others=others
    ) | {"route_prefix": _route_prefix(name, before)}
    base_url = _apply(application, declared=_declared(before))
    if trial is not None:
        ready = next((found for found in (_ready(base_url) for _ in range(READY_ATTEMPTS)) if found), {})
        if ready.get("trial") != trial.digest:
            why = ready.get("absent", {}).get(TRIAL, "/readyz does not say why")
            raise TrialError(f"{version.uri} serves at {base_url}, but without {trial.uri} on trial: {why}")
    return base_url


def application_of(
    section: ServingSection,
    *,
    home: str,
    version: "ModelVersion",
    pretrained: "ModelVersion | Part | None" = None,
    verdict: str | None = None,
    trial: "ModelVersion | None" = None,
    others: Sequence["ModelVersion"] = (),
) -> dict[str, Any]:
    """The application as Serve is told of it, at `/`: what `deploy` puts and a manifest says. Arguments as there, and
    TrialError for a trial by other code than the champion's."""
    task = task_of(version)
    config: dict[str, Any] = _named(version) | {"verdict": verdict}
    config |= {"with_pretrained": section.pretrained, "versions": section.versions}  # which `move` goes by
    beside = {other.version: _named(other) for other in others if other.digest != version.digest}
    # A chat model beside would take as much memory again.
    if pretrained is not None and task == "classification" and section.pretrained:
        beside[PRETRAINED] = _named(pretrained)
    if beside:
        config["beside"] = beside
    if trial is not None:
        assert section.trial is not None
        if trial.code != version.code:
            raise TrialError(
                f"{trial.uri} was made by other code ({trial.code}) than the champion ({version.code}), in whose "
                "replicas it would run: what is tried would not be what is served later. Try one that was made by the "
                "champion's code, or promote this one: `tailorbird promote` lets it answer test rows by its own first"
            )
        config[TRIAL] = _named(trial) | section.trial.model_dump(exclude={"version"}, exclude_none=True)
    return {
        "name": application_name(home),
        "route_prefix": "/",
        "import_path": IMPORT_PATH,
        "runtime_env": {"working_dir": version.code},
        "args": _build_args(section, home=home, task=task),
        "deployments": [{"name": DEPLOYMENTS[task], "user_config": config}],
    }


def instance_of(applications: Sequence[dict[str, Any]], *, url: str) -> dict[str, Any]:
    """What Serve is told as a whole: its applications, and that it listens where clients call `url`."""
    address = urlsplit(url)
    return {
        "proxy_location": "EveryNode",
        # Serve reads these once, when it starts: on loopback only this machine may call, else HAProxies of all nodes.
        "http_options": {
            "host": "127.0.0.1" if _is_local(address.hostname) else "0.0.0.0",
            "port": address.port or 8000,
        },
        "applications": list(applications),
    }


@contextmanager
def rehearsed(home: str, *, version: "ModelVersion") -> Iterator[str | None]:
    """The base URL at which the version answers, while the block lasts, whoever asks for it by its name; None where the
    task is not served.

    It is loaded beside the champion, whose replicas stay. Where it runs other code than they do, it gets a replica in
    an application of its own for the time, so there must be room for one. Where the block ends well, it stays loaded
    for `move`, or else what was there before is put back. Raises as `deploy`.
    """
    name, declared = application_name(home), _declared(_applications())
    former = declared.get(name)
    if former is None:
        yield None
        return
    config = former["deployments"][0]["user_config"]
    alike = former.get("runtime_env") == {"working_dir": version.code}
    was_beside = version.version in config.get("beside", {})
    if alike and config["digest"] == version.digest:
        yield _base_url(former)
        return
    if alike:
        trial = _with_config(former, config | {"beside": config.get("beside", {}) | {version.version: _named(version)}})
    else:
        trial = _apart(former, version=version)
    try:
        url = _apply(trial, declared=declared)
        absent = _ready(url).get("absent", {})
        if version.version in absent:
            raise VersionRefusedError(f"{name}: version refused, the former one serves on: {absent[version.version]}")
        yield url
    except BaseException:
        if alike and not was_beside:
            with suppress(DeployError):  # what went wrong before is what is told
                _withdraw(name, version=version)
        raise
    finally:
        if not alike:
            with suppress(DeployError):  # what was asked of it stands
                undeploy(trial["name"])


def _withdraw(name: str, *, version: "ModelVersion") -> None:
    """Takes the version from beside the champion, whoever that is by now."""
    declared = _declared(_applications())
    if name not in declared:
        return
    config = declared[name]["deployments"][0]["user_config"]
    beside = {other: one for other, one in config.get("beside", {}).items() if other != version.version}
    _apply(_with_config(declared[name], config | {"beside": beside}), declared=declared)


def move(
    home: str, *, version: "ModelVersion", pretrained: "ModelVersion | Part | None", verdict: str | None
) -> str | None:
    """Makes the version the one that answers where the task is served, with the section it is served with, as `deploy`:
    beside it the versions that are for its base model and code, the former champion among them.

    Returns the base URL, or None where the task is not served.
    """
    from models.registry import over_same_base, weights_digest

    declared = _declared(_applications())
    former = declared.get(application_name(home))
    if former is None:
        return None
    config = former["deployments"][0]["user_config"]
    alike = former.get("runtime_env") == {"working_dir": version.code}
    most = config["versions"]  # by the section of then
    beside = {other.version: _named(other) for other in over_same_base(version, home=home, most=most)}
    if config["with_pretrained"] and pretrained is not None and task_of(version) == "classification":
        beside[PRETRAINED] = _named(pretrained)
    changed = _with_config(former, config | _named(version) | {"verdict": verdict, "beside": beside})
    tried = config.get(TRIAL, {}).get("digest") in (version.digest, weights_digest(version))
    if TRIAL in config and (tried or not alike):
        del changed["deployments"][0]["user_config"][TRIAL]
    return _apply(changed | {"runtime_env": {"working_dir": version.code}}, declared=declared)


def _with_config(application: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    return application | {"deployments": [application["deployments"][0] | {"user_config": config}]}


def _apart(former: dict[str, Any], *, version: "ModelVersion") -> dict[str, Any]:
    """The version in an application of its own, with one replica."""
    name = f"{former['name']}_candidate"  # which no recipe may be called
    args = former["args"]
    serving = args.get("serving", {}) | {"min_replicas": 1, "max_replicas": 1}
    return _with_config(former, _named(version)) | {
        "name": name,
        "route_prefix": f"/{name}",
        "runtime_env": {"working_dir": version.code},
        "args": args | {"serving": serving},
    }


def _apply(application: dict[str, Any], *, declared: dict[str, dict[str, Any]]) -> str:
    """Puts the application in the place of the one that was declared, waits until it answers as configured, and returns
    its base URL; where it does not, raises DeployError with what was there before put back.

    Serve takes its configuration as a whole and on no condition: who changes another application may put back what he
    had read of ours. Then it is put again; what somebody else made of ours is left, with DeployError.
    """
    name, base_url, former = application["name"], _base_url(application), declared.get(application["name"])
    if (former or {}).get("runtime_env") != application["runtime_env"]:
        require_unchanged(application["runtime_env"]["working_dir"])
    config = application["deployments"][0]["user_config"]
    max_replicas = application["args"].get("serving", {}).get("max_replicas", 1)
    for _ in range(PUT_ATTEMPTS):
        _put_beside_others(application)
        try:
            _wait_ready(name, base_url=base_url, config=config, num_answers=2 * max_replicas)
            _require_declared(name, config=config)
        except OverwrittenError:
            if _declared(_applications()).get(name) != former:
                raise
            continue
        except DeployError:
            if former is not None:  # a replica that starts later must not be told to load what none can load
                _put_beside_others(former)
            raise
        return base_url
    raise DeployError(f"{name} was put back {PUT_ATTEMPTS} times by who changes other applications; try again")


def _put_beside_others(application: dict[str, Any]) -> None:
    """The others as they are at this moment."""
    _put([*(one for other, one in _declared(_applications()).items() if other != application["name"]), application])


def _require_declared(name: str, *, config: dict[str, Any]) -> None:
    """Raises OverwrittenError where Serve was told something else of the application since."""
    found = _declared(_applications()).get(name)
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


def _base_url(application: dict[str, Any]) -> str:
    return serve_url() + str(application["route_prefix"]).rstrip("/")


def _named(version: "ModelVersion | Part") -> dict[str, str]:
    return {"version_uri": version.uri, "digest": version.digest}


def undeploy(name: str) -> None:
    """Takes an application off the cluster and leaves the others; where it is not, nothing happens."""
    before = _applications()
    if name not in before:
        return
    _put([config for other, config in _declared(before).items() if other != name])
    deadline = time.monotonic() + DEPLOY_TIMEOUT_S
    while name in _applications():
        if time.monotonic() > deadline:
            raise DeployError(f"application {name!r} is still there after {DEPLOY_TIMEOUT_S} s: {_status(name)}")
        time.sleep(POLL_S)


def on_trial(base_url: str) -> str | None:
    """Digest of the version on trial beside the champion, where there is one."""
    found = _ready(base_url).get("trial")
    return None if found is None else str(found)


def application_name(home: str) -> str:
    """The Serve application of a task's home, `<registry>/<name>`: its name."""
    return home.rstrip("/").rsplit("/", 1)[-1]


def serve_url() -> str:
    """Where Serve's HTTP listens, by TAILORBIRD_SERVE_URL; else Serve's own default."""
    return os.environ.get("TAILORBIRD_SERVE_URL", "http://127.0.0.1:8000").rstrip("/")


def _build_args(section: ServingSection, *, home: str, task: str) -> dict[str, Any]:
    """`serving.app.BuildArgs`, as the version's own code reads them: of a field that code may not have, nothing."""
    fields = section.model_dump(mode="json", exclude_defaults=True, exclude=OURS)
    args = {"home": home, "serving": fields}
    return args if task == "classification" else args | {"task": task}


def _route_prefix(name: str, applications: dict[str, Any]) -> str:
    """Where it is already, else `/`, else, where another application holds that, `/<name>`."""
    if name in applications and applications[name].get("route_prefix"):
        return str(applications[name]["route_prefix"])
    taken = {application.get("route_prefix") for application in applications.values()}
    return "/" if "/" not in taken else f"/{name}"


def _declared(applications: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Configurations to send again: without `host` and `port`, which Serve may show but does not take."""
    return {
        name: {key: value for key, value in application["deployed_app_config"].items() if key not in ("host", "port")}
        for name, application in applications.items()
        if application.get("deployed_app_config") and application.get("status") != "DELETING"
    }


def _applications() -> dict[str, Any]:
    applications: dict[str, Any] = _instance()["applications"]
    return applications


def _instance() -> dict[str, Any]:
    """What Serve says of itself and its applications."""
    answer = request_dashboard("GET", APPLICATIONS)
    if answer.status_code != 200:
        raise DeployError(f"Serve's status cannot be read ({answer.status_code}): {answer.text[:500]}")
    return {"applications": {}, **answer.json()}


def _refuse_open_door(instance: dict[str, Any]) -> None:
    """Raises DeployError where whoever reaches the machine could ask, and no key would keep them out."""
    options = instance.get("http_options")  # none before Serve is started: then we say where it listens
    listens = "127.0.0.1" if options is None else options.get("host") or "an address that it does not tell"
    if _is_local(urlsplit(serve_url()).hostname) and _is_local(listens):
        return
    raise DeployError(
        f"Serve at {serve_url()} (it listens on {listens}) can be reached from other machines, and serving.api_keys is "
        "not set: `tailorbird key NAME` makes a key; let TAILORBIRD_SERVE_URL name 127.0.0.1, before Serve starts; or, "
        "where a gateway keeps strangers out, set serving.guarded"
    )


def _is_local(host: str | None) -> bool:
    return host in LOCAL


def _put(applications: list[dict[str, Any]]) -> None:
    body = instance_of(applications, url=serve_url())
    for attempt in range(PUT_ATTEMPTS):
        answer = request_dashboard("PUT", APPLICATIONS, body=body)
        if answer.status_code == 200:
            return
        if answer.status_code < 500:
            break
        time.sleep(attempt + 1)
    raise DeployError(f"Serve refused the configuration ({answer.status_code}): {_end(answer.text)}")


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
        if in_a_row >= num_answers and _running(name) <= heard:
            return ready
        if 0 < in_a_row < num_answers:
            continue
        _require_declared(name, config=config)
        status = _status(name)
        if not status.startswith(FAILED):
            failed_since = None
        elif failed_since is None:
            failed_since = time.monotonic()
        elif time.monotonic() - failed_since > FAILED_HOLDS_S:
            raise DeployError(f"{name} could not be deployed: {status}")
        time.sleep(POLL_S)
    raise DeployError(f"{name} did not answer with digest {digest} in {DEPLOY_TIMEOUT_S} s: {_status(name)}")


def _running(name: str) -> set[str]:
    """The application's replicas that answer, as Serve names them."""
    deployments = _applications().get(name, {}).get("deployments", {}).values()
    replicas = [replica for deployment in deployments for replica in deployment["replicas"]]
    return {replica["replica_id"] for replica in replicas if replica["state"] == "RUNNING"}


def _ready(base_url: str) -> dict[str, Any]:
    try:
        answer = requests.get(f"{base_url}/readyz", timeout=5)
        found = answer.json()
    except (requests.RequestException, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _status(name: str) -> str:
    """Serve's status of the application and of its deployments; begins with the status itself."""
    application = _applications().get(name)
    if application is None:
        return "not there"
    parts = [f"{application['status']} {_end(application.get('message', ''))}".strip()]
    for deployment, details in application.get("deployments", {}).items():
        if details.get("message"):
            parts.append(f"{deployment} {details['status']}: {_end(details['message'])}")
    return "; ".join(parts)


def _end(text: str) -> str:
    """The end of a message, where a traceback says what happened, without colours."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).strip()
    return plain if len(plain) <= 1500 else f"[...] {plain[-1500:]}"
