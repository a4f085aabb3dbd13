"""Last before the registry: everything that led to a verdict as plain JSON, and the files that leave with it."""

import json
from typing import Any

from evaluation.metrics import wilson_interval
from evaluation.report import to_html, to_model_card
from evaluation.verdict import Question, Verdict
from recipes.schema import Recipe


def assemble(
    recipe: Recipe, *, run: str, question: Question, verdict: Verdict, parts: dict[str, Any]
) -> dict[str, Any]:
    """The content of `evidence.json`, with the keys that `evaluation.report` names.

    `parts` holds rungs, sweep, seeds, data, versions, champion, code and created_at as the pipeline has them.
    """
    rungs, sweep, seeds, versions = parts["rungs"], parts["sweep"], parts["seeds"], parts["versions"]
    best = max(seeds, key=lambda seed: float(seed["score"]))
    return {
        "name": recipe.name,
        "run": run,
        "created_at": parts["created_at"],
        "recipe": recipe.model_dump(mode="json"),
        "question": question.to_dict(),
        "verdict": verdict.to_dict(),
        "data": parts["data"],
        "ladder": _ladder(rungs, candidate=best["score"], verdict=verdict, versions=versions, data=parts["data"]),
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
        "seeds": [
            {"seed": recipe.training.seed + number, "validation": seed["score"]} for number, seed in enumerate(seeds)
        ],
        "training": {
            "samples_per_second": best["rows_per_second"],
            "padding_share": best["padding_share"],
            "seconds": best["step_seconds"],
            "epochs": best["epochs"],
            "zero_stage": recipe.training.zero_stage,
            "num_workers": recipe.training.num_workers,
            "selected": sweep["selected"],
        },
        "versions": versions,
        "champion": parts["champion"],
        "code": parts["code"],
    }


def _method(row: dict[str, Any], recipe: Recipe) -> str:
    return str(row["config"].get("method", recipe.training.method))


def files(evidence: dict[str, Any], *, role: str) -> dict[str, bytes]:
    """evidence.json, report.html and MODEL_CARD.md for the version in a role, by name."""
    return {
        "evidence.json": json.dumps(evidence, indent=1).encode(),
        "report.html": to_html(evidence).encode(),
        "MODEL_CARD.md": to_model_card(evidence, role=role).encode(),
    }


def _ladder(
    rungs: list[dict[str, Any]], *, candidate: float, verdict: Verdict, versions: dict[str, Any], data: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row a rung and one for the candidate; a test accuracy only where the one look at test gave it."""
    incumbent = max((rung for rung in rungs if rung["servable"]), key=lambda rung: float(rung["validation"]))
    rows = []
    for rung in rungs:
        role = "incumbent" if rung is incumbent else "reference" if rung["kind"] == "tf_idf" else None
        test = {"incumbent": verdict.incumbent_accuracy, "reference": verdict.reference_accuracy}.get(role or "")
        rows.append({"kind": rung["kind"], "validation": rung["validation"], "test": test, "role": role})
    rows.append(
        {
            "kind": versions["candidate"]["kind"],
            "validation": candidate,
            "test": verdict.candidate_accuracy,
            "role": "candidate",
        }
    )
    num = data["num_validation"]
    return [row | {"interval": list(wilson_interval(round(row["validation"] * num), n=num))} for row in rows]
