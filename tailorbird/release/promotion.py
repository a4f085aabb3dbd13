"""Promote the winner of a run to champion, or roll back to the previous champion, and switch the
service to it."""

from contextlib import suppress
from datetime import UTC, datetime

from cluster.progress import SILENT, ProgressReporter
from serving.deploy.rollout import staged
from tailorbird.evaluation.report.costs import costs_by_digest
from tailorbird.evaluation.report.evidence import CandidateRecord, Evidence
from tailorbird.evaluation.verdict.decide import INCUMBENT
from tailorbird.registry.champion import (
    Champion,
    ChangeReason,
    ChosenBy,
    ParityResult,
    PreviousChampion,
    champion_version,
    read_champion,
    write_champion,
)
from tailorbird.registry.kinds import spec_of
from tailorbird.registry.version_files import require_intact
from tailorbird.registry.versions import (
    ModelVersion,
    PinnedVersion,
    now,
    read_pinned,
    read_version,
)
from tailorbird.release.parity import check_parity, sample_probes
from tailorbird.release.runs import PromotionRefused, find_evidence, read_run_evidence, read_winner
from tailorbird.release.serving import switch_service
from tailorbird.storage.s3 import PreconditionFailed

OVERRIDE = "`tailorbird promote RECIPE --override REASON`"


def promote_version(
    task_uri: str,
    *,
    version: str | None = None,
    override: str | None = None,
    progress: ProgressReporter = SILENT,
) -> Champion:
    """Make `version` (a name or a URI; by default the winner of the latest run) the champion.

    If the task is served, the version must first pass the parity gate next to the current champion;
    then the champion is changed, and then the service. Otherwise `serve_champion` runs the parity
    gate.

    `override` is the reason to promote a version that was rolled back. It is stored with the
    champion, and ignored if no override is required.

    Raises RegistryError if a file of the version was changed, is missing or was added;
    PromotionRefused if no verdict chose the version, if the verdict expired, requires an override
    or compared the version with another champion, and if another promotion came first;
    ParityRefused; DeployError and SessionError as `deploy` does.
    """
    if override is not None and not override.strip():
        raise PromotionRefused(
            "--override is empty; give a reason, which is stored with the champion"
        )
    # Read before the decision, so that a concurrent change makes the write fail.
    stored = read_champion(task_uri)
    champion, etag = stored or (None, None)
    evidence = find_evidence(task_uri, version=version)
    chosen = read_winner(evidence)
    if champion is not None and champion.digest == chosen.digest:
        return _keep(task_uri, champion)
    reason = _promotion_reason(chosen, evidence=evidence, champion=champion, override=override)
    require_intact(chosen.pinned)
    with staged(task_uri, version=chosen, progress=progress) as url:
        parity = None
        if url is not None:
            parity = check_parity(
                sample_probes(evidence, uri=evidence.run, version=chosen), url=url, version=chosen
            )
        promoted = _promoted(
            chosen, evidence=evidence, previous=champion, reason=reason, parity=parity
        )
        _write(task_uri, promoted, etag=etag)
    switch_service(task_uri, chosen, champion=promoted, progress=progress)
    return promoted


def _promoted(
    version: ModelVersion,
    *,
    evidence: Evidence,
    previous: Champion | None,
    reason: ChangeReason,
    parity: ParityResult | None,
) -> Champion:
    """Return the version as champion."""
    verdict = evidence.verdict
    promoted = Champion(
        version=version.version,
        uri=version.uri,
        digest=version.digest,
        run=evidence.run,
        verdict=ChosenBy(
            outcome=verdict.outcome, sentence=verdict.sentence(), costs=costs_by_digest(evidence)
        ),
        anchor=_anchor(evidence, previous=previous),
        baseline=_baseline(version, evidence=evidence, previous=previous),
        parity=parity,
        reason=reason,
        since=now(),
    )
    if previous is None:
        return promoted
    changes: dict[str, object] = {
        "previous": (*previous.previous, previous.as_previous),
        "rolled_back": tuple(each for each in previous.rolled_back if each != version.digest),
    }
    return promoted.model_copy(update=changes)


def _anchor(evidence: Evidence, *, previous: Champion | None) -> PinnedVersion | None:
    """Return the last champion that was proven better than its predecessor; None if that is the
    promoted version itself."""
    if evidence.verdict.replaces_for_cost and previous is not None:
        return previous.anchor or previous.pinned
    return None


def roll_back(
    task_uri: str,
    *,
    reason: str,
    of: Champion | None = None,
    progress: ProgressReporter = SILENT,
) -> Champion:
    """Make the previous champion the champion again, and switch the service to it if the task is
    served.

    The first champion is replaced by the incumbent of its verdict. Neither a verdict nor the parity
    gate is required. `reason` is stored with the champion. `of` is the champion to roll back.

    Raises RegistryError if a file of the previous champion was changed, is missing or was added;
    PromotionRefused if there is no previous champion, if its files changed, or if `of` is no longer
    the champion; DeployError and SessionError as `deploy` does.
    """
    if not reason.strip():
        raise PromotionRefused(
            "--reason is empty; give a reason, which is stored with the champion"
        )
    champion, previous, etag = rollback_target(task_uri)
    if of is not None and (champion.digest, champion.since) != (of.digest, of.since):
        raise PromotionRefused(
            f"not rolled back: {of.version} is no longer the champion; the champion is "
            f"{champion.version}"
        )
    require_intact(previous.pinned)
    version = read_pinned(previous.pinned)
    restored = Champion(
        **dict(previous),
        version=version.version,
        reason=ChangeReason(
            change="rollback", text=f"rolled back from {champion.version}: {reason.strip()}"
        ),
        since=now(),
        previous=champion.previous[:-1],
        rolled_back=(*champion.rolled_back, champion.digest),
    )
    _write(task_uri, restored, etag=etag)
    switch_service(task_uri, version, champion=restored, progress=progress)
    return restored


def rollback_target(task_uri: str) -> tuple[Champion, PreviousChampion, str]:
    """Return the champion, the version that `roll_back` restores, and the ETag of the champion.

    Raise PromotionRefused if there is no champion or nothing to restore.
    """
    stored = read_champion(task_uri)
    if stored is None:
        raise PromotionRefused(f"{task_uri} has no champion, so there is nothing to roll back")
    champion, etag = stored
    if champion.previous:
        previous = champion.previous[-1]
    else:
        previous = _first_incumbent(champion)
    if read_version(previous.uri).digest != previous.digest:
        raise PromotionRefused(
            f"{previous.uri} was changed after it was the champion: its digest differs; restore it "
            "from a copy"
        )
    return champion, previous, etag


def _first_incumbent(champion: Champion) -> PreviousChampion:
    """Return the incumbent that the first champion was compared with."""
    incumbent = None
    if champion.run:
        incumbent = read_run_evidence(champion.run).versions["incumbent"]
    if incumbent is None or incumbent.uri == champion.uri:
        raise PromotionRefused(
            f"there was no champion before {champion.uri}; run the recipe and promote its winner"
        )
    return PreviousChampion(
        uri=incumbent.uri, digest=incumbent.digest, run="", baseline=_pinned_baseline(incumbent)
    )


def _keep(task_uri: str, champion: Champion) -> Champion:
    """Return the champion unchanged; switch the service to it in case an earlier switch failed."""
    if champion.parity is not None:
        switch_service(task_uri, champion_version(champion), champion=champion)
    return champion


def _baseline(
    version: ModelVersion, *, evidence: Evidence, previous: Champion | None
) -> PinnedVersion | None:
    """Return the baseline to serve next to the version: the baseline that its run chose, or else
    the previous champion's.

    That is the version itself if it is a baseline, or the incumbent. The previous champion's
    baseline must be undamaged and have the base model and the code of the version.
    """
    baseline = _pinned_baseline(evidence.winner) or _pinned_baseline(evidence.versions["incumbent"])
    if baseline is not None or previous is None or previous.baseline is None:
        return baseline
    with suppress(ValueError):
        served = read_version(previous.baseline.uri)
        if (served.pinned, served.base_model, served.code) == (
            previous.baseline,
            version.base_model,
            version.code,
        ):
            return previous.baseline
    return None


def _pinned_baseline(incumbent: CandidateRecord) -> PinnedVersion | None:
    """Return the incumbent if it is a baseline, else None."""
    if not spec_of(incumbent.kind).is_baseline:
        return None
    return PinnedVersion(uri=incumbent.uri, digest=incumbent.digest)


def _write(task_uri: str, champion: Champion, *, etag: str | None) -> None:
    try:
        write_champion(task_uri, champion, etag=etag)
    except PreconditionFailed:
        raise PromotionRefused(
            "another promotion came first; run `tailorbird models`, then promote again"
        ) from None


def _promotion_reason(
    version: ModelVersion,
    *,
    evidence: Evidence,
    champion: Champion | None,
    override: str | None,
) -> ChangeReason:
    """Return why the version becomes the champion; raise PromotionRefused if its verdict does not
    allow it.

    An override is required if the version was rolled back, which a scheduled promotion must not
    undo.
    """
    verdict = evidence.verdict
    incumbent = evidence.versions["incumbent"].uri
    if evidence.champion not in (None, incumbent):
        raise PromotionRefused(
            f"the verdict of {evidence.run} compared with {incumbent}, which is not the champion "
            f"of the run, {evidence.champion}; run the recipe again"
        )
    if champion is not None and champion.uri != incumbent:
        raise PromotionRefused(
            f"the verdict compared with {evidence.champion or 'no champion'}, but the champion is "
            f"now {champion.uri}; run the recipe again to compare with it"
        )
    if datetime.fromisoformat(evidence.expires_at) <= datetime.now(UTC):
        raise PromotionRefused(
            f"the verdict of {evidence.run} expired at {evidence.expires_at}; run the recipe again "
            "with fresh test rows"
        )
    why = f"{verdict.selected} dominates the incumbent"
    if verdict.selected == INCUMBENT:
        why = "the incumbent stays"
    reason = ChangeReason(change="promotion", text=f"{verdict.outcome}: {why}")
    if champion is None or version.digest not in champion.rolled_back:
        return reason
    if override is None:
        raise PromotionRefused(
            f"{version.version} was rolled back; to promote it again, give the reason: {OVERRIDE}"
        )
    return reason.model_copy(update={"override": override.strip()})
