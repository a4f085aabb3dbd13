"""Makes the winner of a run the champion by conditional write; a version that no verdict chose is refused."""

from typing import Any

from cluster.storage import Conflict, StorageError, exists, list_files, read_json
from models.registry import Champion, ModelVersion, read_champion, read_version, set_champion


class PromotionRefused(ValueError):
    """The version may not become the champion; the message says why."""


def promote(home: str, *, version: str | None = None) -> Champion:
    """Makes `version` (a URI; without one, the winner of the latest run) the champion.

    Raises PromotionRefused where no verdict chose the version, or somebody else changed the champion meanwhile.
    """
    found = read_champion(home)  # before the decision: a change after this moment makes the write fail
    chosen = read_version(version or latest_winner(home))
    evidence = _evidence(chosen)
    verdict = evidence["verdict"]
    role = "candidate" if verdict["outcome"] == "FINE_TUNE" else "incumbent"
    if evidence["versions"][role].get("uri") != chosen.uri:
        raise PromotionRefused(
            f"{chosen.uri} did not win: the verdict {verdict['outcome']} chose {evidence['versions'][role]['uri']}"
        )
    if found is not None and found[0].digest == chosen.digest:
        return found[0]
    reason = f"{verdict['outcome']} by rule {verdict['rule']}, run {evidence['run']}"
    try:
        return set_champion(home, chosen, etag=found[1] if found else None, reason=reason)
    except Conflict:
        raise PromotionRefused("another promotion came first; look at `tailorbird models` and ask again") from None


def latest_winner(home: str) -> str:
    """URI of the version that the latest finished run chose; raises PromotionRefused where there is no run."""
    runs = list_files(f"{home}/runs") if exists(f"{home}/runs") else []
    finished = [uri for uri in runs if uri.endswith("/evidence.json")]
    if not finished:
        raise PromotionRefused(f"no run is finished under {home}; `tailorbird run RECIPE` makes one")
    latest = max((read_json(uri) for uri in finished), key=lambda evidence: str(evidence["created_at"]))
    role = "candidate" if latest["verdict"]["outcome"] == "FINE_TUNE" else "incumbent"
    return str(latest["versions"][role]["uri"])


def _evidence(version: ModelVersion) -> dict[str, Any]:
    try:
        return dict(read_json(f"{version.uri}/evidence.json"))
    except StorageError:
        raise PromotionRefused(
            f"{version.uri} has no evidence, so no verdict chose it; promote a run's winner"
        ) from None
