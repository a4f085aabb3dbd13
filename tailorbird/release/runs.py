"""Finished runs of a task: the latest one, and the one whose verdict chose a version."""

import hashlib
import json
from typing import Any

from tailorbird.evaluation.report.evidence_files import MANIFEST
from tailorbird.evaluation.verdict.rules import Outcome, winner
from tailorbird.storage import exists, list_files, read_bytes, read_json


class PromotionRefused(ValueError):
    """The version may not become the champion; the message says why."""


def evidence_for(task_uri: str, *, version: str | None) -> dict[str, Any]:
    """The latest run's evidence, or the latest that chose `version`; raises PromotionRefused where there is none."""
    runs = list_files(f"{task_uri}/runs") if exists(f"{task_uri}/runs") else []
    finished = [read_run_evidence(uri.removesuffix(f"/{MANIFEST}")) for uri in runs if uri.endswith(f"/{MANIFEST}")]
    if not finished:
        raise PromotionRefused(f"no run is finished under {task_uri}; `tailorbird run RECIPE` makes one")
    chosen = [evidence for evidence in finished if version in (None, winner_of(evidence)["uri"])]
    if not chosen:
        winners = ", ".join(sorted({winner_of(evidence)["uri"] for evidence in finished}))
        raise PromotionRefused(f"no verdict chose {version}; what verdicts chose: {winners}")
    return dict(max(chosen, key=lambda evidence: str(evidence["created_at"])))


def read_run_evidence(run: str) -> dict[str, Any]:
    """The run's evidence, if it is the one that its manifest names; PromotionRefused otherwise."""
    content = read_bytes(f"{run}/evidence.json")
    if hashlib.sha256(content).hexdigest() != read_json(f"{run}/{MANIFEST}")["evidence.json"]:
        raise PromotionRefused(f"{run}/evidence.json was changed; `tailorbird verify {run}` says what else was")
    return dict(json.loads(content))


def winner_of(evidence: dict[str, Any]) -> dict[str, str]:
    return dict(evidence["versions"][winner(Outcome(evidence["verdict"]["outcome"]))])
