"""The evidence as files: what a run or a version keeps beside its model, and the case that is read back from it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from tailorbird import storage
from tailorbird.evaluation.gates.cost import CpuRounds
from tailorbird.evaluation.prediction_store import load_predictions
from tailorbird.evaluation.predictions import ModelPredictions, Predictions
from tailorbird.evaluation.verdict.inputs import CHANGED_SETS, VerdictInputs
from tailorbird.registry.routing import Routing

MANIFEST = "evidence_manifest.json"
"""sha256 of every file of the evidence, written last: its presence means that all is there."""
ROLES = ("incumbent", "candidate")


VALIDATION = "validation"
"""The set of rows on which everything is chosen; both models' answers to it are kept, for the choices to be checked."""


def prediction_table_names(*, changed: bool, reference: bool = True) -> tuple[str, ...]:
    """Names of the tables of a run, under `predictions/`; `changed`: whether gates asked for changed rows."""
    sets = (VALIDATION, *(CHANGED_SETS if changed else ()))
    return (*ROLES, *(("reference",) if reference else ()), *(f"{role}_{name}" for role in ROLES for name in sets))


def case_of(evidence: Mapping[str, Any], tables: Mapping[str, Predictions]) -> VerdictInputs:
    """The case that the evidence's verdict was decided on, from its JSON and its tables by name."""
    measured, routing = evidence["measured"], evidence["routing"]
    cpu = measured["cpu"]
    return VerdictInputs(
        incumbent=model_predictions("incumbent", tables),
        candidate=model_predictions("candidate", tables),
        reference=tables.get("reference"),
        test_sha256=evidence["data"]["sha256_test"],
        leaks=tuple(evidence["data"]["leaks"]),
        look=evidence["look"],
        routing=as_routing(routing) if routing else None,
        cpu=CpuRounds(tuple(cpu["incumbent"]), tuple(cpu["candidate"])) if cpu else None,
        training_cpu_s=measured["training_cpu_s"],
    )


def model_predictions(role: str, tables: Mapping[str, Predictions]) -> ModelPredictions:
    """One model's tables, by its role."""
    return ModelPredictions(
        tables[role], {name: tables[f"{role}_{name}"] for name in CHANGED_SETS if f"{role}_{name}" in tables}
    )


def as_routing(value: Mapping[str, Any]) -> Routing:
    """A routing from its JSON."""
    return Routing(**{**value, "values": tuple(value["values"])})


def load_all_predictions(uri: str) -> dict[str, Predictions]:
    """Every table under `<uri>/predictions/` by its name."""
    found = [file for file in storage.list_files(f"{uri}/predictions") if file.endswith(".parquet")]
    return {file.rsplit("/", 1)[-1].removesuffix(".parquet"): load_predictions(file) for file in found}


def write_evidence(uri: str, files: Mapping[str, bytes]) -> None:
    """Writes the files of the evidence under a run's or a version's URI, and their manifest last."""
    for name, content in files.items():
        storage.write_bytes(f"{uri}/{name}", content)
    manifest = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    storage.write_bytes(f"{uri}/{MANIFEST}", json.dumps(manifest, indent=1).encode())
