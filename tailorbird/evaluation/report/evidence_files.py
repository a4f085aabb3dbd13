"""Read and write the evidence files of a run or a version."""

import hashlib
import json
from collections.abc import Mapping

from tailorbird import storage
from tailorbird.evaluation.prediction_store import load_predictions
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report.evidence import EVIDENCE_FILE, Evidence
from tailorbird.evaluation.report.html import to_html
from tailorbird.evaluation.report.model_card import to_model_card

MANIFEST = "evidence_manifest.json"
"""File with the sha256 of every evidence file; it is written last, so its presence means the
evidence is complete."""
PAGES = ("report.html", "MODEL_CARD.md")
VALIDATION = "validation"
"""Set name of the validation tables; they are stored so that selections on validation can be
checked."""


def load_all_predictions(uri: str) -> dict[str, Predictions]:
    """Return every table in `<uri>/predictions/` by name."""
    files = [file for file in storage.list_files(f"{uri}/predictions") if file.endswith(".parquet")]
    return {
        file.rsplit("/", 1)[-1].removesuffix(".parquet"): load_predictions(file) for file in files
    }


def intact_evidence(uri: str) -> Evidence | None:
    """Return the evidence of a run or a version; None if the file differs from its manifest."""
    content = storage.read_bytes(f"{uri}/{EVIDENCE_FILE}")
    is_intact = (
        hashlib.sha256(content).hexdigest() == storage.read_json(f"{uri}/{MANIFEST}")[EVIDENCE_FILE]
    )
    if is_intact:
        return Evidence.model_validate_json(content)
    return None


def read_evidence(uri: str) -> Evidence:
    """Return the evidence of a run or a version; raise ValueError if the file differs from its
    manifest."""
    evidence = intact_evidence(uri)
    if evidence is None:
        raise ValueError(
            f"{uri}/{EVIDENCE_FILE} was changed; run `tailorbird verify {uri}` to check all files"
        )
    return evidence


def write_evidence(uri: str, files: Mapping[str, bytes]) -> None:
    """Write the evidence files under the URI of a run or a version, then their manifest."""
    for name, content in files.items():
        storage.write_bytes(f"{uri}/{name}", content)
    manifest = {
        name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())
    }
    storage.write_bytes(f"{uri}/{MANIFEST}", json.dumps(manifest, indent=1).encode())


def render_files(evidence: Evidence, *, role: str) -> dict[str, bytes]:
    """Return the content of evidence.json and of `render_pages` for the version in a role, by file
    name."""
    return {
        EVIDENCE_FILE: evidence.model_dump_json(indent=1).encode(),
        **render_pages(evidence, role=role),
    }


def render_pages(evidence: Evidence, *, role: str) -> dict[str, bytes]:
    """Return the content of the report and of the model card by file name (`PAGES`)."""
    return {
        "report.html": to_html(evidence).encode(),
        "MODEL_CARD.md": to_model_card(evidence, role=role).encode(),
    }
