"""Render the HTML report of a run from its evidence; `templates/` has its sections."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment
from pydantic import BaseModel, JsonValue

from tailorbird.config.base import digest
from tailorbird.config.metrics import METRICS
from tailorbird.evaluation.report import charts, contender_chart, costs
from tailorbird.evaluation.report.evidence import BASELINE, Evidence
from tailorbird.evaluation.report.figures import FIELD_NAMES, FILTERS, TONES, Figures
from tailorbird.evaluation.report.model_scores import COMPARED
from tailorbird.evaluation.report.sentences import details
from tailorbird.evaluation.verdict.explain import why_no_hybrid
from tailorbird.pages.environment import environment

FOLDER = Path(__file__).parent


def to_html(evidence: Evidence) -> str:
    """Return a self-contained page for light and dark mode, phones and print.

    The attribute `data-from` of an element is the path of its value in `evidence.json`; the element
    links to the exact value at the end of the page.
    """
    terms = ""
    if evidence.protocol.cost is not None:
        terms = costs.terms_sentence(evidence.protocol.cost)
    template = _templates().get_template("report.html")
    return template.render(
        evidence=evidence,
        verdict=evidence.verdict,
        figures=Figures(evidence),
        contents=[],  # filled with the id and the title of each section
        draw=charts,
        contender_chart=contender_chart,
        duties=load_duties(),
        protocol_sha256=digest(evidence.protocol),
        why_no_hybrid=why_no_hybrid,
        details=details(evidence),
        cost_answer=costs.cost_answer(evidence),
        terms=terms,
    )


@cache
def _templates() -> Environment:
    templates = environment(FOLDER / "templates")
    templates.globals |= {
        "metrics": METRICS,
        "share_metrics": [name for name, metric in METRICS.items() if metric.is_share],
        "tones": TONES,
        "roles": COMPARED,
        "field_names": FIELD_NAMES,
        "baseline": BASELINE,
    }
    templates.filters |= FILTERS
    templates.filters["as_json"] = _as_json
    return templates


def _as_json(value: BaseModel | JsonValue) -> str:
    if isinstance(value, BaseModel):
        return value.model_dump_json(indent=2)
    return json.dumps(value, indent=2, ensure_ascii=False)


def load_duties() -> dict[str, Any]:
    """Return the content of `documentation_duties.yaml`: duties, each with the fields of
    `evidence.json` that support it, and a caveat."""
    text = (FOLDER / "documentation_duties.yaml").read_text("utf-8")
    duties: dict[str, Any] = yaml.safe_load(text)
    return duties
