"""Last before the registry: everything that led to a verdict as plain JSON, and the files that leave with it."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from tailorbird.config.recipe import Recipe
from tailorbird.evaluation.gates.calibration import NUM_BINS
from tailorbird.evaluation.predictions import ROW_METRICS, Predictions
from tailorbird.evaluation.report.html import to_html
from tailorbird.evaluation.report.model_card import to_model_card
from tailorbird.evaluation.statistics.paired import wilson_interval
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.rules import Outcome, winner
from tailorbird.evaluation.verdict.types import Verdict

UNREGISTERED = "not registered"
"""Stands for the digest of a version that was not registered, because the verdict did not choose it."""
PAGES = ("report.html", "MODEL_CARD.md")


def build_evidence(
    recipe: Recipe, *, run: str, question: TestProtocol, verdict: Verdict, parts: dict[str, Any]
) -> dict[str, Any]:
    """The content of `evidence.json`, with the keys that `evaluation.report` names.

    `parts` holds rungs, sweep, seeds, averaged, candidate (its score on validation), data, versions, champion, code,
    base_model, created_at, look, ledger, routing (a `Routing` as JSON or None), measured, curve, asked_by and
    expires_at as the pipeline has them, and the tables of predictions by name.
    """
    rungs, sweep, seeds, versions = parts["rungs"], parts["sweep"], parts["seeds"], parts["versions"]
    best = max(seeds, key=lambda seed: float(seed["score"]))
    tables: Mapping[str, Predictions] = parts["tables"]
    told = (
        "created_at", "asked_by", "expires_at", "look", "ledger", "routing", "measured", "curve", "data", "champion",
        "code", "base_model",
    )  # fmt: skip
    return {
        "name": recipe.name,
        "run": run,
        **{name: parts[name] for name in told},
        "recipe": recipe.model_dump(mode="json"),
        "question": question.to_dict(),
        "verdict": verdict.to_dict(),
        "ladder": _ladder(rungs, candidate=parts["candidate"], verdict=verdict, versions=versions, data=parts["data"]),
        "reliability": reliability_by_role(tables),
        "measures": mean_measures(tables),
        "sweep": [
            {
                "trial": row["trial"],
                "kind": row["trial"] if row["status"] == "pretrained" else _method(row, recipe),
                "config": row["config"],
                "epochs": len(row["scores"]),
                "validation": row["score"],
                "seconds": row["seconds"],
                "status": row["status"],
            }
            for row in sweep["rows"]
        ],
        "sweep_ended": sweep["ended"],
        "seeds": [
            {"seed": recipe.training.seed + number, "validation": seed["score"]} for number, seed in enumerate(seeds)
        ],
        "averaged": parts["averaged"],
        "training": {
            "samples_per_second": best["rows_per_second"],
            "padding_share": best["padding_share"],
            "seconds": best["step_seconds"],
            "epochs": best["epochs"],
            "zero_stage": recipe.training.zero_stage,
            "num_workers": recipe.training.max_workers,
            "selected": sweep["selected"],
        },
        "versions": versions,
    }


def render_files(evidence: dict[str, Any], *, role: str) -> dict[str, bytes]:
    """evidence.json, report.html and MODEL_CARD.md for the version in a role, by name."""
    return {"evidence.json": json.dumps(evidence, indent=1).encode(), **render_pages(evidence, role=role)}


def render_pages(evidence: Mapping[str, Any], *, role: str) -> dict[str, bytes]:
    """What people read, a pure function of the evidence: `PAGES` by name."""
    return {
        "report.html": to_html(evidence).encode(),
        "MODEL_CARD.md": to_model_card(evidence, role=role).encode(),
    }


def role_at(uri: str, *, evidence: Mapping[str, Any]) -> str:
    """The role of the version at a URI; of a run, the role that its verdict chose."""
    roles = [role for role, version in evidence["versions"].items() if version["uri"] == uri]
    return roles[0] if roles else winner(Outcome(evidence["verdict"]["outcome"]))


def reliability_by_role(tables: Mapping[str, Predictions]) -> dict[str, list[dict[str, float]]]:
    """`reliability_bins` of candidate and incumbent; a chat model's confidence is of tokens, not of being right."""
    return (
        {} if mean_measures(tables) else {role: reliability_bins(tables[role]) for role in ("candidate", "incumbent")}
    )


def mean_measures(tables: Mapping[str, Predictions]) -> dict[str, dict[str, float]]:
    """Of a chat task: the mean log-likelihood of the reference answers, in nats a token, by role."""
    roles, name = ("candidate", "incumbent"), "log_likelihood"
    if not all(name in tables[role].measures for role in roles):
        return {}
    return {name: {role: float(np.mean(tables[role].measures[name])) for role in roles}}


def reliability_bins(table: Predictions, *, num_bins: int = NUM_BINS) -> list[dict[str, float]]:
    """Of equally wide bins of confidence after temperature, those with rows: `{confidence, accuracy, n}`, means both.

    The bins of `evaluation.calibration.ece`, which is their mean gap, weighted by n.
    """
    right = np.array(table.labels, dtype=object) == np.array(table.outputs, dtype=object)
    bins = np.minimum((table.calibrated * num_bins).astype(np.int64), num_bins - 1)
    return [
        {
            "confidence": float(table.calibrated[bins == place].mean()),
            "accuracy": float(right[bins == place].mean()),
            "n": int(np.sum(bins == place)),
        }
        for place in sorted(set(bins.tolist()))
    ]


def _method(row: dict[str, Any], recipe: Recipe) -> str:
    return str(row["config"].get("method", recipe.training.method))


def _ladder(
    rungs: list[dict[str, Any]], *, candidate: float, verdict: Verdict, versions: dict[str, Any], data: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row a rung and one for the candidate; a test score only where the one look at test gave it."""
    incumbent = max((rung for rung in rungs if rung["servable"]), key=lambda rung: float(rung["validation"]))
    rows = []
    for rung in rungs:
        role = "incumbent" if rung is incumbent else "reference" if rung["kind"] == "tf_idf" else None
        test = {"incumbent": verdict.incumbent_score, "reference": verdict.reference_score}.get(role or "")
        rows.append({"kind": rung["kind"], "validation": rung["validation"], "test": test, "role": role})
    rows.append(
        {
            "kind": versions["candidate"]["kind"],
            "validation": candidate,
            "test": verdict.candidate_score,
            "role": "candidate",
        }
    )
    num = data["num_validation"]
    if verdict.metric not in ROW_METRICS:  # no closed formula gives another metric's interval from a score
        return [row | {"interval": None} for row in rows]
    return [row | {"interval": list(wilson_interval(round(row["validation"] * num), n=num))} for row in rows]
