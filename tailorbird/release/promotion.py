"""Makes the winner of a run the champion by conditional write, or goes back to the one before it, and serves it."""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from cluster.progress import Show
from tailorbird.evaluation.verdict.rules import Outcome, winner
from tailorbird.evaluation.verdict.runtime_equivalence import ENGINE_EVIDENCE
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.registry.champion import WAY_BACK, Champion, Former, champion_version, read_champion, set_champion
from tailorbird.registry.versions import UNTOUCHED, ModelVersion, Part, read_version, weights_digest
from tailorbird.release.engine_selection import choose_engine
from tailorbird.release.parity import prove, sample_of
from tailorbird.release.runs import PromotionRefused, evidence_for, read_run_evidence, winner_of
from tailorbird.release.serving import stage_version, switch_service
from tailorbird.storage.s3 import Conflict

KEPT = ("run", "verdict", "pretrained")
"""What a champion keeps of another with the same weights."""
SAY_WHY = "say why it may serve again: `tailorbird promote RECIPE --override REASON`"


def promote_version(
    task_uri: str,
    *,
    version: str | None = None,
    override: str | None = None,
    engine: str | None = None,
    show: Show = lambda _event: None,
) -> Champion:
    """Makes `version` (a URI; without one, the winner of the latest run) the champion.

    `engine` is what is to run it, as `engine_choice.choose_engine` takes it; without one a champion with these weights
    stays as it is, and another is run as it was judged. Where the task is served, the version answers test rows there
    first, beside the champion; then the champion is changed, and then the service. Without a Ray in the environment, or
    where the task is not served, `serve_champion` asks.

    `override` is the reason to promote on a verdict that is not confirmatory, or a version that was rolled back, and is
    kept with the champion; for any other it has no effect. Raises PromotionRefused where no verdict chose the version,
    where the verdict expired, is not confirmatory and not overridden, or compared with another champion than the one
    that serves, and where somebody else changed the champion meanwhile; ParityRefused where it answers otherwise than
    evaluated; EngineError as `choose_engine`; DeployError and SessionError as `deploy`.
    """
    if override is not None and not override.strip():
        raise PromotionRefused("the override is empty; give the reason, which is kept with the champion")
    found = read_champion(task_uri)  # before the decision: a change after this moment makes the write fail
    evidence = evidence_for(task_uri, version=version.rstrip("/") if version else None)
    judged = read_version(winner_of(evidence)["uri"])
    if judged.digest != winner_of(evidence)["digest"]:
        raise PromotionRefused(f"{judged.uri} is not what was judged: its digest changed; run the recipe again")
    weights, of_weights = _as_judged(judged, evidence=evidence, task_uri=task_uri)
    former = found[0] if found else None
    serves = former is not None and _weights_of(former) == weights.digest
    if former is not None and serves and engine is None:
        return _stays(task_uri, former)
    if former is not None and not serves:
        _refuse_other_comparison(evidence, champion=former)
    if former is not None and serves:
        reason = f"another engine than {former.version} had"
    else:
        _refuse_expired(evidence)
        again = former is not None and bool({judged.digest, weights.digest} & set(former.rolled_back))
        unseen = former is not None and winner(Outcome(evidence["verdict"]["outcome"])) == "incumbent"
        reason = _reason(evidence, override=override, again=again, unseen=former if unseen else None)
    if engine is None:
        chosen = judged
    else:
        chosen = choose_engine(weights, evidence=of_weights, engine=engine, task_uri=task_uri, show=show)
    if former is not None and former.digest == chosen.digest:
        return _stays(task_uri, former)
    if former is not None and chosen.digest in former.rolled_back and override is None:
        raise PromotionRefused(f"{chosen.version} was rolled back; {SAY_WHY}")
    if chosen.exported_from is not None:
        reason += f"; run by {chosen.engine} in {chosen.dtype} ({ENGINE_EVIDENCE})"
    fields = _fields(evidence) if former is None or not serves else former.model_dump(include=set(KEPT))
    if former is not None:
        left = tuple(digest for digest in former.rolled_back if digest not in (chosen.digest, weights.digest))
        fields |= {"before": (*former.before, _former(former)), "rolled_back": left}
    with stage_version(task_uri, version=chosen) as url:
        parity = None
        if url is not None:
            told = evidence if chosen.digest == judged.digest else of_weights
            parity = prove(sample_of(told, place=told["run"], version=chosen), url=url, version=chosen)
        etag = found[1] if found else None
        champion = _set(task_uri, chosen, etag=etag, reason=reason, parity=parity, **fields)
    switch_service(task_uri, chosen, champion=champion)
    return champion


def roll_back(task_uri: str, *, reason: str, of: Champion | None = None) -> Champion:
    """Makes the version that served before the champion the champion again; before the first one that was the incumbent
    of its verdict. Where the task is served, the service moves along.

    `reason` is kept with it. No verdict is asked for, and no test row: this is the way back. Raises PromotionRefused
    where nothing served before, that version was changed since, or another serves by now than the reason is about
    (`of`); DeployError and SessionError as `deploy`.
    """
    if not reason.strip():
        raise PromotionRefused("the reason is empty; say why, which is kept with the champion")
    champion, former, etag = _way_back(task_uri)
    if of is not None and (champion.digest, champion.since) != (of.digest, of.since):
        raise PromotionRefused(f"nothing is done: {champion.version} serves by now, the reason is about {of.version}")
    version = read_version(former.uri)
    gone = [champion.digest]
    weights = _weights_of(champion)
    if weights is not None and weights not in (champion.digest, weights_digest(version)):
        gone.append(weights)  # not the engine alone is left, but what it runs
    back = _set(
        task_uri,
        version,
        etag=etag,
        reason=f"{WAY_BACK} {champion.version}: {reason.strip()}",
        run=former.run,
        verdict=former.verdict,
        pretrained=former.pretrained,
        parity=former.parity,
        before=champion.before[:-1],
        rolled_back=(*champion.rolled_back, *gone),
    )
    switch_service(task_uri, version, champion=back)
    return back


def way_back(task_uri: str) -> tuple[Champion, Former]:
    """The champion, and what a rollback would make the champion; PromotionRefused where there is none of either."""
    champion, former, _ = _way_back(task_uri)
    return champion, former


def _way_back(task_uri: str) -> tuple[Champion, Former, str]:
    found = read_champion(task_uri)
    if found is None:
        raise PromotionRefused(f"{task_uri} has no champion, so there is nothing to go back from")
    champion, etag = found
    former = champion.before[-1] if champion.before else _incumbent_of(champion)
    if read_version(former.uri).digest != former.digest:
        raise PromotionRefused(f"{former.uri} is not what served: its digest changed; restore it from a copy")
    return champion, former, etag


def _as_judged(
    version: ModelVersion, *, evidence: dict[str, Any], task_uri: str
) -> tuple[ModelVersion, dict[str, Any]]:
    """The version that torch runs, of whatever engine's, and the evidence of the run that judged it."""
    if version.exported_from is None:
        return version, evidence
    uri = version.exported_from.uri
    return read_version(uri), evidence_for(task_uri, version=uri)


def _fields(evidence: dict[str, Any]) -> dict[str, Any]:
    """What a champion keeps of the verdict that chose it."""
    pretrained = _untouched(evidence["versions"]["incumbent"])
    return {
        "run": evidence["run"],
        "verdict": Verdict.from_dict(evidence["verdict"]).sentence(),
        "pretrained": pretrained,
    }


def _stays(task_uri: str, champion: Champion) -> Champion:
    """The champion as it is, and the service, which may not have followed, along with it."""
    if champion.parity is not None:
        switch_service(task_uri, champion_version(champion), champion=champion)
    return champion


def _weights_of(champion: Champion) -> str | None:
    """Digest of the version that a verdict was about, whatever engine runs it; None where the champion is damaged."""
    with suppress(ValueError):
        return weights_digest(read_version(champion.uri))
    return None


def _former(champion: Champion) -> Former:
    return Former(**{name: getattr(champion, name) for name in Former.model_fields})


def _incumbent_of(champion: Champion) -> Former:
    """What the first champion was compared with, which no verdict chose."""
    incumbent = read_run_evidence(champion.run)["versions"]["incumbent"] if champion.run else {"uri": champion.uri}
    if incumbent["uri"] == champion.uri:
        raise PromotionRefused(f"nothing served before {champion.uri}; run the recipe and promote what it chooses")
    return Former(uri=incumbent["uri"], digest=incumbent["digest"], run="", pretrained=_untouched(incumbent))


def _untouched(version: dict[str, Any]) -> Part | None:
    return Part(uri=version["uri"], digest=version["digest"]) if version["kind"] in UNTOUCHED else None


def _refuse_other_comparison(evidence: dict[str, Any], *, champion: Champion) -> None:
    """The verdict must be about who serves: as the champion, or as the incumbent of before there was one."""
    if champion.uri in (evidence["champion"], evidence["versions"]["incumbent"]["uri"]):
        return
    raise PromotionRefused(
        f"the verdict compared with {evidence['champion'] or 'no champion'}, but {champion.uri} serves now; "
        "run the recipe again: it will compare with that"
    )


def _set(task_uri: str, version: ModelVersion, **fields: Any) -> Champion:
    try:
        return set_champion(task_uri, version, **fields)
    except Conflict:
        raise PromotionRefused("another promotion came first; look at `tailorbird models` and ask again") from None


def _refuse_expired(evidence: dict[str, Any]) -> None:
    """What was true of the rows of then may be no more."""
    told = evidence["expires_at"]
    expires = datetime.fromisoformat(told)
    if (expires if expires.tzinfo else expires.replace(tzinfo=UTC)) <= datetime.now(UTC):
        raise PromotionRefused(
            f"the verdict of {evidence['run']} expired at {told}; give fresh test rows and run the recipe again: the "
            "same rows would only say the same"
        )


def _reason(evidence: dict[str, Any], *, override: str | None, again: bool, unseen: Champion | None) -> str:
    """Why the version becomes the champion; raises PromotionRefused where nobody answers for a later look at test, or,
    `again`, for a version that was rolled back: it must not return by itself, as by a schedule that runs and promotes;
    or for a verdict that chose no candidate, but an incumbent that was ahead of the champion, `unseen` on test, on
    validation alone.
    """
    verdict = evidence["verdict"]
    reason, confirmatory = f"{verdict['outcome']} by rule {verdict['rule']}", verdict["confirmatory"]
    if confirmatory and not again and unseen is None:
        return reason
    if override is None and again:
        raise PromotionRefused(f"that version was rolled back; {SAY_WHY}")
    if override is None and unseen is not None:
        raise PromotionRefused(
            f"{unseen.version} serves on: {verdict['outcome']} says that the candidate does not replace "
            f"{winner_of(evidence)['uri']}, which was ahead of {unseen.version} on validation alone and was not compared "
            "with it on test rows; to serve it all the same: `tailorbird promote RECIPE --override REASON`"
        )
    if override is None:
        raise PromotionRefused(
            f"the verdict of {evidence['run']} is not confirmatory: its test rows had been looked at before, so its "
            "numbers flatter; give fresh test rows and run again, or say why it may stand: "
            "`tailorbird promote RECIPE --override REASON`"
        )
    return f"{reason}; override: {override.strip()}"
