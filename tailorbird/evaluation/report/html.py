"""Render the HTML report of a run from its evidence; `templates/` has its sections."""

import json
from functools import cache
from importlib.resources import files
from pathlib import Path

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
from tailorbird.registry.hybrid_routing import PARTS


class Duty(BaseModel):
    """A documentation duty, its requirement, and the fields of `evidence.json` that support it."""

    duty: str
    requires: str
    fields: tuple[str, ...]


class DutyTable(BaseModel):
    """The content of `documentation_duties.yaml`."""

    duties: tuple[Duty, ...]
    caveat: str


def to_html(evidence: Evidence) -> str:
    """Return a self-contained page for light and dark mode, phones and print.

    The attribute `data-from` of an element is the path of its value in `evidence.json`; the element
    links to the exact value at the end of the page.
    """
    template = _templates().get_template("report.html")
    return template.render(
        evidence=evidence,
        verdict=evidence.verdict,
        figures=Figures(evidence),
        contents=[],  # filled with the id and the title of each section
        draw=charts,
        contender_chart=contender_chart,
        parts=PARTS,
        duties=load_duties(),
        protocol_sha256=digest(evidence.protocol),
        why_no_hybrid=why_no_hybrid,
        details=details(evidence),
        cost_answer=costs.cost_answer(evidence),
        terms=costs.terms_sentence(evidence.protocol.cost) if evidence.protocol.cost else "",
    )


@cache
def _templates() -> Environment:
    templates = environment(Path(__file__).parent / "templates")
    templates.globals |= {"metrics": METRICS, "tones": TONES, "roles": COMPARED}
    templates.globals["share_metrics"] = [
        name for name, metric in METRICS.items() if metric.is_share
    ]
    templates.globals |= {"field_names": FIELD_NAMES, "baseline": BASELINE}
    templates.filters |= FILTERS
    templates.filters["as_json"] = _as_json
    return templates


def _as_json(value: BaseModel | JsonValue) -> str:
    content = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return json.dumps(content, indent=2, ensure_ascii=False)


def load_duties() -> DutyTable:
    """Return the content of `documentation_duties.yaml`."""
    text = (files(__package__) / "documentation_duties.yaml").read_text("utf-8")
    return DutyTable.model_validate(yaml.safe_load(text))
