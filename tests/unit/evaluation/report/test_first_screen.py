"""The first screen of the report, its chart, and the structure of the page for screen readers."""

import json

from tailorbird.evaluation.gates.cost import ServingUsage, Tokens
from tailorbird.evaluation.report.html import to_html
from tailorbird.evaluation.verdict.formatting import money
from tailorbird.registry.hybrid_routing import Routing
from tests.unit.evaluation.report.test_html import SECONDS, SIMULATIONS, Page, evidence_for
from tests.unit.evaluation.simulated import Simulation, evidence_of, on_cpu

PARTLY_PRICED = Simulation(
    candidate=0.70,
    contenders={"endpoint_zero_shot": 0.69, "bag_of_words": 0.66},
    costs={
        **on_cpu({role: SECONDS[role] for role in ("incumbent", "candidate", "bag_of_words")}),
        "endpoint_zero_shot": ServingUsage(
            (0.1,) * 5, tokens=Tokens("m at https://api.example.org/v1", (), ())
        ),
    },
    evaluation=SIMULATIONS["FINE_TUNE"].evaluation,
)
"""A run with an external endpoint that has no prices and does not report its tokens."""


CASCADE = Simulation(
    num_rows=1000,
    evaluation={"hybrid": "cascade"},
    routing=Routing("cascade", threshold=0.7),
    costs=on_cpu(SECONDS),
)
"""A run that tested a cascade of the incumbent and the candidate."""


def test_a_cost_that_is_not_known_is_not_shown_as_0_and_hides_none_of_the_known_costs() -> None:
    evidence = evidence_of(PARTLY_PRICED)
    page = Page(to_html(evidence))
    first = page.text[: page.text.index("Candidate against incumbent")]
    paths = {path for path, _ in page.figures}
    for number, cost in enumerate(evidence.verdict.costs):
        is_unknown = cost.role == "endpoint_zero_shot"
        assert (f"verdict.costs.{number}.missing.0" in paths) == is_unknown
        assert (f"verdict.costs.{number}.total" in paths) != is_unknown
        assert is_unknown or (cost.total is not None and money(cost.total) in first)
    assert "The cost of endpoint_zero_shot is not assessable" in first


def test_every_value_links_to_its_exact_value_and_every_section_is_in_the_contents() -> None:
    evidence = evidence_for()
    page = Page(to_html(evidence))
    links = {
        attrs["data-from"]: attrs["href"]
        for tag, attrs in page.tags
        if tag == "a" and "data-from" in attrs
    }
    assert len(links) > 100
    assert all(href == f"#evidence.{path}" for path, href in links.items())
    assert json.dumps(evidence.verdict.relation("candidate", "incumbent").gain) in page.text
    sections = {attrs["id"] for tag, attrs in page.tags if tag == "section" and "id" in attrs}
    assert {"gain", "gates", "relations", "costs", "values"} <= sections
    assert sections <= {str(attrs.get("href"))[1:] for tag, attrs in page.tags if tag == "a"}
