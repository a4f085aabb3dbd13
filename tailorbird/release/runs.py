"""Find the finished run of a task whose verdict chose a version."""

import json

from pydantic import ValidationError

from tailorbird.evaluation.report.evidence import EVIDENCE_FILE, Evidence
from tailorbird.evaluation.report.evidence_files import MANIFEST, read_evidence
from tailorbird.registry.versions import ModelVersion, read_version
from tailorbird.storage import list_files, read_bytes
from tailorbird.storage.paths import TaskPaths


class PromotionRefused(ValueError):
    """Raised if a version must not become the champion."""


def find_evidence(task_uri: str, *, version: str | None) -> Evidence:
    """Return the evidence of `version`, a name or a URI, or that of the latest run; see
    `evidence_for`."""
    uri = version and version.rstrip("/")
    if uri and "://" not in uri:
        uri = TaskPaths(task_uri).version(uri)
    return evidence_for(task_uri, version=uri or None)


def evidence_for(task_uri: str, *, version: str | None) -> Evidence:
    """Return the latest run's evidence, or that of the latest run that chose `version`.

    Runs are read from the newest to the first that matches, so older runs may have evidence from
    another version of Tailorbird. Raise PromotionRefused if no run matches, or if the evidence of a
    newer run cannot be read.
    """
    files = list_files(TaskPaths(task_uri).runs, missing_ok=True)
    runs = [uri.removesuffix(f"/{MANIFEST}") for uri in files if uri.endswith(f"/{MANIFEST}")]
    if not runs:
        raise PromotionRefused(f"{task_uri} has no finished run; run `tailorbird run RECIPE` first")
    winners = set()
    for run in sorted(runs, key=_created_at, reverse=True):
        evidence = read_run_evidence(run)
        if version in (None, evidence.winner.uri):
            return evidence
        winners.add(evidence.winner.uri)
    raise PromotionRefused(
        f"no verdict chose {version}; choose one of: {', '.join(sorted(winners))}"
    )


def _created_at(run: str) -> str:
    """Return when the evidence of a run was written; damaged evidence counts as the newest, so that
    it is reported."""
    try:
        return str(json.loads(read_bytes(f"{run}/{EVIDENCE_FILE}"))["created_at"])
    except (ValueError, KeyError, TypeError):
        return "9999"


def read_run_evidence(run: str) -> Evidence:
    """Return the evidence of a run; raise PromotionRefused if it was changed after it was
    written."""
    try:
        return read_evidence(run)
    except ValidationError as error:
        raise PromotionRefused(
            f"{run} has evidence from another version of Tailorbird: {error}"
        ) from None
    except ValueError as error:
        raise PromotionRefused(str(error)) from None


def read_winner(evidence: Evidence) -> ModelVersion:
    """Return the version that the verdict chose; raise PromotionRefused if it was changed after the
    verdict."""
    version = read_version(evidence.winner.uri)
    if version.digest != evidence.winner.digest:
        raise PromotionRefused(
            f"{version.uri} was changed after its evaluation: its digest differs; run the recipe "
            "again"
        )
    return version
