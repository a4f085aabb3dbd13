"""Deploy the champion of a task, and switch a running service to another version."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

from cluster.auth import SessionError
from cluster.dashboard import has_dashboard
from cluster.progress import SILENT, ProgressReporter
from serving.deploy import serve_client
from serving.deploy.application import (
    AdditionalVersions,
    application_name,
    is_baseline_served,
)
from serving.deploy.rollout import deploy, staged, switch_version, undeploy
from serving.deploy.serve_client import ChallengerError, DeployError
from tailorbird.config.serving import ServingConfig
from tailorbird.registry.champion import Champion, champion_version, read_champion, write_champion
from tailorbird.registry.shared_base import selectable_versions
from tailorbird.registry.version_files import require_intact
from tailorbird.registry.versions import (
    ModelVersion,
    PinnedVersion,
    read_version,
)
from tailorbird.release.kube_api import KubernetesError
from tailorbird.release.parity import check_parity, sample_probes
from tailorbird.release.rayservice import rayservice_of_environment, record_deployed
from tailorbird.release.runs import PromotionRefused, evidence_for, read_run_evidence, read_winner
from tailorbird.storage.paths import TaskPaths
from tailorbird.storage.s3 import PreconditionFailed


def serve_champion(
    config: ServingConfig, *, task_uri: str, progress: ProgressReporter = SILENT
) -> tuple[str, ModelVersion]:
    """Deploy the champion with the recipe's baseline and challenger; return the base URL and the
    champion.

    A champion that was promoted while the task was not served must pass the parity gate first. If
    another version is in service, the champion is checked next to it, and the other version stays
    in service if the check fails. Otherwise the champion is checked before the URL is returned.

    Raises PromotionRefused if there is no champion, RegistryError if a file of a version to serve
    was changed, is missing or was added, ParityRefused, and DeployError as `deploy` does.
    """
    stored = read_champion(task_uri)
    if stored is None:
        raise PromotionRefused(f"{task_uri} has no champion; run `tailorbird promote RECIPE` first")
    champion, etag = stored
    version = champion_version(champion)
    additional = additional_versions(config, task_uri=task_uri, champion=champion, version=version)
    for pinned in _deployed(version, config=config, additional=additional):
        require_intact(pinned)
    deploy_with = partial(
        deploy,
        config,
        task_uri=task_uri,
        version=version,
        verdict=champion.verdict,
        progress=progress,
    )
    if not champion.needs_parity:
        with _recorded(task_uri, version):
            return deploy_with(additional=additional), version
    uri = champion.run or champion.uri
    probes = sample_probes(read_run_evidence(uri), uri=uri, version=version)
    with staged(task_uri, version=version, progress=progress) as url:
        parity = None
        if url is not None:
            parity = check_parity(probes, url=url, version=version)
    # There is no challenger before the champion has passed.
    url = deploy_with(additional=replace(additional, challenger=None))
    if parity is None:
        try:
            parity = check_parity(probes, url=url, version=version)
        except ValueError:
            undeploy(application_name(task_uri))
            raise
    with suppress(PreconditionFailed):  # another version was promoted meanwhile; drop the result
        write_champion(task_uri, champion.model_copy(update={"parity": parity}), etag=etag)
    with _recorded(task_uri, version):
        if additional.challenger is not None:
            url = deploy_with(additional=additional)
    return url, version


def stop_service(task_uri: str) -> None:
    """Remove the service of a task, with its replicas, and wait until it is gone. Other services do
    not change.

    Raises DeployError if the task is not served, or if a RayService deploys it, whose operator
    would start it again.
    """
    service = rayservice_of_environment()
    if service is not None:
        raise DeployError(
            f"the RayService {service} would start the service again; to stop it, run `kubectl "
            f"delete rayservice {service.name} --namespace {service.namespace}`"
        )
    name = application_name(task_uri)
    served = serve_client.serve_applications()
    if name not in served:
        running = ", ".join(sorted(served)) or "none"
        raise DeployError(f"{name} is not served; running services: {running}")
    undeploy(name)


def _deployed(
    version: ModelVersion, *, config: ServingConfig, additional: AdditionalVersions
) -> set[PinnedVersion]:
    """Return the versions to check before a deploy. Replicas check all versions, and serve without
    the `others`."""
    pinned = {version.pinned}
    if additional.challenger is not None:
        pinned.add(additional.challenger.pinned)
    if is_baseline_served(
        additional.baseline, champion=version, shares_chat_base=config.shares_chat_base
    ):
        pinned.add(PinnedVersion(uri=additional.baseline.uri, digest=additional.baseline.digest))
    return pinned


def additional_versions(
    config: ServingConfig, *, task_uri: str, champion: Champion, version: ModelVersion
) -> AdditionalVersions:
    """Return the versions that are served next to the champion; omit a challenger that is
    the champion.

    Raises the errors of `challenger_version`.
    """
    challenger = None
    if config.challenger:
        named = challenger_version(config.challenger.version, task_uri=task_uri)
        if named.digest != version.digest:
            challenger = named
    others = selectable_versions(
        version, task_uri=task_uri, shares_chat_base=config.shares_chat_base
    )
    return AdditionalVersions(champion.baseline, challenger, others)


def challenger_version(name: str, *, task_uri: str) -> ModelVersion:
    """Return the version that `serving.challenger.version` names: a name, a URI or `candidate`.

    Raises PromotionRefused or RegistryError if there is no such version.
    """
    if name == "candidate":
        return read_winner(evidence_for(task_uri, version=None))
    versions = f"{TaskPaths(task_uri).versions}/"
    uri = f"{versions}{name}"
    if "://" in name:
        uri = name.rstrip("/")
    if not uri.startswith(versions) or "/" in uri.removeprefix(versions):
        raise PromotionRefused(
            f"serving.challenger.version {name!r} is not a version under {versions}; "
            "run `tailorbird models` to list the versions"
        )
    return read_version(uri)


def switch_service(
    task_uri: str, version: ModelVersion, *, champion: Champion, progress: ProgressReporter = SILENT
) -> None:
    """Switch the service, if the task is served, to the new champion."""
    if not has_dashboard():
        return
    with _recorded(task_uri, version):
        try:
            switch_version(
                task_uri,
                version=version,
                baseline=champion.baseline,
                verdict=champion.verdict,
                progress=progress,
            )
        except ChallengerError:
            raise
        except (DeployError, SessionError) as error:
            raise DeployError(
                f"{version.version} is the champion now, but the service was not switched to it: "
                f"{error}; run `tailorbird serve RECIPE` to try again"
            ) from None


@contextmanager
def _recorded(task_uri: str, version: ModelVersion) -> Iterator[None]:
    """Write what the block deploys to the RayService, if there is one, so that its operator does
    not revert it.

    If only the challenger cannot be served, the champion is deployed and recorded.
    """
    try:
        yield
    except ChallengerError:
        _record(task_uri, version)
        raise
    _record(task_uri, version)


def _record(task_uri: str, version: ModelVersion) -> None:
    try:
        record_deployed(task_uri)
    except KubernetesError as error:
        raise DeployError(
            f"{version.version} is served, but the RayService was not updated, so a restart of the "
            "operator or the loss of the cluster would restore the previous configuration: "
            f"{error}; run the command again"
        ) from None
