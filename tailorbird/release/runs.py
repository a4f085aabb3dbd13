"""Find the finished run of a task whose verdict chose a version."""

from pydantic import ValidationError

from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.evaluation.report.evidence_files import MANIFEST, read_evidence
from tailorbird.registry.versions import ModelVersion, read_version
from tailorbird.storage import list_files
from tailorbird.storage.paths import TaskPaths


class PromotionRefused(ValueError):
    """Raised if a version must not become the champion."""


def evidence_for(task_uri: str, *, version: str | None) -> Evidence:
    """Return the latest run's evidence, or that of the latest run that chose `version`.

    Raise PromotionRefused if there is none.
    """
    files = list_files(TaskPaths(task_uri).runs, missing_ok=True)
    finished = [read_run_evidence(uri.removesuffix(f"/{MANIFEST}")) for uri in files if uri.endswith(f"/{MANIFEST}")]
    if not finished:
        raise PromotionRefused(f"{task_uri} has no finished run; run `tailorbird run RECIPE` first")
    chosen = [evidence for evidence in finished if version in (None, evidence.winner.uri)]
    if not chosen:
        winners = ", ".join(sorted({evidence.winner.uri for evidence in finished}))
        raise PromotionRefused(f"no verdict chose {version}; choose one of: {winners}")
    return max(chosen, key=lambda evidence: evidence.created_at)


def read_run_evidence(run: str) -> Evidence:
    """Return the evidence of a run; raise PromotionRefused if it was changed after it was written."""
    try:
        return read_evidence(run)
    except ValidationError as error:
        raise PromotionRefused(f"{run} has evidence from another version of Tailorbird: {error}") from None
    except ValueError as error:
        raise PromotionRefused(str(error)) from None


def read_winner(evidence: Evidence) -> ModelVersion:
    """Return the version that the verdict chose; raise PromotionRefused if it was changed after the verdict."""
    version = read_version(evidence.winner.uri)
    if version.digest != evidence.winner.digest:
        raise PromotionRefused(
            f"{version.uri} was changed after its evaluation: its digest differs; run the recipe again"
        )
    return version
