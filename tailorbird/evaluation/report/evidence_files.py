"""The evidence as files: what a run or a version keeps next to its model."""

import hashlib
import json
from collections.abc import Mapping

from tailorbird import storage
from tailorbird.evaluation.prediction_store import load_predictions
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report.evidence import EVIDENCE_FILE, Evidence
from tailorbird.evaluation.report.html import to_html
from tailorbird.evaluation.report.model_card import to_model_card
from tailorbird.evaluation.verdict.inputs import CHANGED_SETS

MANIFEST = "evidence_manifest.json"
"""sha256 of every file of the evidence, written last: its presence means that the evidence is complete."""
PAGES = ("report.html", "MODEL_CARD.md")
ROLES = ("incumbent", "candidate")
VALIDATION = "validation"
"""The rows on which everything is chosen; both models' predictions of them are kept, so that choices can be checked."""


def prediction_table_names(*, changed: bool, reference: bool = True) -> tuple[str, ...]:
    """Return the names of a run's tables, under `predictions/`; `changed`: True if gates ask for changed rows."""
    sets = (VALIDATION, *(CHANGED_SETS if changed else ()))
    return (*ROLES, *(("reference",) if reference else ()), *(f"{role}_{name}" for role in ROLES for name in sets))


def load_all_predictions(uri: str) -> dict[str, Predictions]:
    """Return every table under `<uri>/predictions/` by its name."""
    files = [file for file in storage.list_files(f"{uri}/predictions") if file.endswith(".parquet")]
    return {file.rsplit("/", 1)[-1].removesuffix(".parquet"): load_predictions(file) for file in files}


def read_evidence(uri: str) -> Evidence:
    """Return the evidence of a run or a version; raise ValueError if it was changed since it was written."""
    content = storage.read_bytes(f"{uri}/{EVIDENCE_FILE}")
    if hashlib.sha256(content).hexdigest() != storage.read_json(f"{uri}/{MANIFEST}")[EVIDENCE_FILE]:
        raise ValueError(f"{uri}/{EVIDENCE_FILE} was changed; `tailorbird verify {uri}` lists what else was")
    return Evidence.model_validate_json(content)


def write_evidence(uri: str, files: Mapping[str, bytes]) -> None:
    """Write the files of the evidence under a run's or a version's URI, and their manifest last."""
    for name, content in files.items():
        storage.write_bytes(f"{uri}/{name}", content)
    manifest = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    storage.write_bytes(f"{uri}/{MANIFEST}", json.dumps(manifest, indent=1).encode())


def render_files(evidence: Evidence, *, role: str) -> dict[str, bytes]:
    """Return evidence.json and `render_pages` for the version in a role, by file name."""
    return {EVIDENCE_FILE: evidence.model_dump_json(indent=1).encode(), **render_pages(evidence, role=role)}


def render_pages(evidence: Evidence, *, role: str) -> dict[str, bytes]:
    """Return report and model card, pure functions of the evidence, by file name: `PAGES`."""
    return {"report.html": to_html(evidence).encode(), "MODEL_CARD.md": to_model_card(evidence, role=role).encode()}
