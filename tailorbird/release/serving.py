"""Deploy the champion of a task, and move a running service to another version."""

from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace

from cluster.auth import SessionError
from cluster.dashboard import has_dashboard
from serving.deploy.application import AdditionalVersions, application_name
from serving.deploy.rollout import deploy, staged, switch_version, undeploy
from serving.deploy.serve_client import DeployError
from tailorbird.config.serving import ServingConfig
from tailorbird.registry.champion import WAY_BACK, Champion, champion_version, change_champion, read_champion
from tailorbird.registry.versions import ModelVersion, over_same_base, read_version, weights_digest
from tailorbird.release.parity import prove, sample_of
from tailorbird.release.runs import PromotionRefused, evidence_for, read_run_evidence, winner_of
from tailorbird.storage.s3 import PreconditionFailed


def serve_champion(config: ServingConfig, *, task_uri: str) -> tuple[str, ModelVersion]:
    """Deploys the champion, with the pretrained model and the trial of the recipe beside it, and returns its base URL
    and version.

    One that was promoted while the task was not served answers test rows first: beside the version that serves, which
    serves on where the champion is refused, or else before anybody is told the URL. A trial of the champion itself is
    none: the recipe may go on naming it. Raises PromotionRefused where there is no champion, RegistryError where it was
    changed or there is no version to try, ParityRefused as `promote_version`, DeployError as `deploy`.
    """
    found = read_champion(task_uri)
    if found is None:
        raise PromotionRefused(f"{task_uri} has no champion; `tailorbird promote RECIPE` makes one")
    champion, version = found[0], champion_version(found[0])
    additional = additional_versions(config, task_uri=task_uri, champion=champion, version=version)

    def deployed(additional: AdditionalVersions) -> str:
        return deploy(config, task_uri=task_uri, version=version, additional=additional, verdict=champion.verdict)

    if champion.parity is not None or champion.reason.startswith(WAY_BACK):
        return deployed(additional), version
    place = champion.run or champion.uri
    asked = sample_of(read_run_evidence(place), place=place, version=version)
    with staged(task_uri, version=version) as url:
        parity = None if url is None else prove(asked, url=url, version=version)
    url = deployed(replace(additional, challenger=None))  # no experiment before the champion is proven
    if parity is None:
        try:
            parity = prove(asked, url=url, version=version)
        except ValueError:
            undeploy(application_name(task_uri))
            raise
    _record_parity(task_uri, champion.model_copy(update={"parity": parity}), etag=found[1])
    return url if additional.challenger is None else deployed(additional), version


def additional_versions(
    config: ServingConfig, *, task_uri: str, champion: Champion, version: ModelVersion
) -> AdditionalVersions:
    """Return what is served next to the champion; a challenger with the champion's weights is none.

    Raises PromotionRefused or RegistryError if there is no version of the challenger's name.
    """
    challenger = challenger_version(config.challenger.version, task_uri=task_uri) if config.challenger else None
    if challenger is not None and weights_digest(challenger) == weights_digest(version):
        challenger = None
    others = over_same_base(version, task_uri=task_uri, most=config.versions)
    return AdditionalVersions(champion.pretrained, challenger, others)


def challenger_version(name: str, *, task_uri: str) -> ModelVersion:
    """What a recipe's `serving.challenger.version` names; PromotionRefused or RegistryError where there is none."""
    versions = f"{task_uri}/versions/"
    if name == "candidate":
        winner = winner_of(evidence_for(task_uri, version=None))
        version = read_version(winner["uri"])
        if version.digest != winner["digest"]:
            raise PromotionRefused(f"{version.uri} is not what was judged: its digest changed; run the recipe again")
        return version
    uri = name.rstrip("/") if "://" in name else f"{versions}{name}"
    if not uri.startswith(versions) or "/" in uri.removeprefix(versions):
        raise PromotionRefused(
            f"serving.challenger.version {name!r} is none of {versions}; `tailorbird models` lists them"
        )
    return read_version(uri)


def stage_version(task_uri: str, *, version: ModelVersion) -> AbstractContextManager[str | None]:
    return staged(task_uri, version=version) if has_dashboard() else nullcontext()


def switch_service(task_uri: str, version: ModelVersion, *, champion: Champion) -> None:
    """The service, where there is one, to its new champion."""
    if not has_dashboard():
        return
    try:
        switch_version(task_uri, version=version, pretrained=champion.pretrained, verdict=champion.verdict)
    except (DeployError, SessionError) as error:
        told = f"{version.version} is the champion now, but the service stays with what it had: {error}"
        raise DeployError(f"{told}; `tailorbird serve RECIPE` tries again") from None


def _record_parity(task_uri: str, champion: Champion, *, etag: str) -> None:
    """Keeps with the champion how it answered; whoever promoted another meanwhile made that void."""
    with suppress(PreconditionFailed):
        change_champion(task_uri, champion, etag=etag)
