"""The first screen of the report, its chart, and the structure of the page for screen readers."""

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from tailorbird.evaluation.gates.cost import ServingUsage, Tokens
from tailorbird.evaluation.report import contender_chart as charts
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.evaluation.report.html import to_html
from tailorbird.evaluation.verdict.formatting import money
from tailorbird.pages.charts import Box, Dot, Text
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
EQUALLY_PRICED = Simulation(
    num_rows=3080,
    candidate=0.72,
    contenders={"bag_of_words": 0.705, "probe_bag": 0.70, "probe": 0.66},
    serving={"min_replicas": 1},
    costs=on_cpu(
        dict.fromkeys(
            ("incumbent", "candidate", "bag_of_words", "probe_bag", "probe"), SECONDS["incumbent"]
        )
    ),
    evaluation=SIMULATIONS["FINE_TUNE"].evaluation,
)
"""A run in which every model needs one replica that is always up, so that all cost the same."""
CLOSE = replace(
    EQUALLY_PRICED,
    candidate=0.701,
    contenders={"endpoint_zero_shot": 0.701, "bag_of_words": 0.70, "probe_bag": 0.70},
    costs={
        **on_cpu(
            dict.fromkeys(
                ("incumbent", "candidate", "bag_of_words", "probe_bag"), SECONDS["incumbent"]
            )
        ),
        "endpoint_zero_shot": ServingUsage(
            (0.1,) * 5,
            tokens=Tokens(
                "m at https://api.example.org/v1", (9e4, 1e5, 8e4, 9e4, 9e4), (500.0,) * 5
            ),
        ),
    },
    evaluation={
        **SIMULATIONS["FINE_TUNE"].evaluation,
        "endpoint": {
            "url": "https://api.example.org/v1",
            "model": "m",
            "price_input": 0.02,
            "price_output": 0.02,
        },
    },
)
"""A run with nearly the same scores, in which all models except an endpoint cost the same."""
CASCADE = Simulation(
    num_rows=1000,
    evaluation={"hybrid": {"by": "cascade"}},
    routing=Routing("cascade", threshold=0.7),
    costs=on_cpu(SECONDS),
)
"""A run that tested a cascade of the incumbent and the candidate."""


@pytest.mark.parametrize("outcome", SIMULATIONS)
def test_the_first_screen_answers_four_questions_and_draws_every_contender(outcome: str) -> None:
    evidence = evidence_for(outcome)
    page = Page(to_html(evidence))
    questions = (
        "What should I do?",
        "How sure is this?",
        "What does it cost?",
        "What would change it?",
    )
    places = [page.text.index(question) for question in (*questions, "Candidate against incumbent")]
    assert places == sorted(places)
    drawn = next(str(attrs["aria-label"]) for tag, attrs in page.tags if tag == "svg")
    roles = [model.role for model in evidence.verdict.models]
    assert re.findall(r"(\w+)(?: \(selected\))? [\d.]+%", drawn) == roles
    assert f"{evidence.verdict.selected} (selected)" in drawn
    assert ("yearly cost" in drawn) == bool(evidence.verdict.costs)


def test_the_band_of_the_first_chart_is_the_minimum_gain_above_the_incumbent() -> None:
    evidence = evidence_for("STAY")
    marks = charts.contenders(evidence).marks
    (band,) = [mark for mark in marks if isinstance(mark, Box) and mark.kind == "band"]
    models = {
        str(mark.title).removesuffix(" (selected)"): mark for mark in marks if isinstance(mark, Dot)
    }
    assert models["incumbent"].x == pytest.approx(band.x, abs=0.01)
    gain = evidence.verdict.relation("candidate", "incumbent").gain
    per_point = (models["candidate"].x - models["incumbent"].x) / gain
    assert band.width == pytest.approx(per_point * evidence.verdict.minimum_gain, abs=0.05)


def dots_of(evidence: Evidence) -> dict[str, list[float]]:
    """Return the horizontal positions of the dots by role: of the score, and of the cost if it is
    drawn."""
    dots: dict[str, list[float]] = {}
    for mark in charts.contenders(evidence).marks:
        if isinstance(mark, Dot):
            dots.setdefault(mark.title.removesuffix(" (selected)"), []).append(mark.x)
    return dots


@pytest.mark.parametrize("simulation", [SIMULATIONS["FINE_TUNE"], EQUALLY_PRICED, CLOSE])
def test_each_dot_is_at_its_score_and_at_its_cost(simulation: Simulation) -> None:
    evidence = evidence_of(simulation)
    models, dots = charts.contenders_of(evidence), dots_of(evidence)
    assert list(dots) == [model.role for model in models]
    first, second = models[:2]
    a_point = (dots[second.role][0] - dots[first.role][0]) / (second.score - first.score)
    largest = max(end for model in models for end in model.cost_interval or ())
    for model in models:
        score, cost = dots[model.role]
        assert score == pytest.approx(
            dots[first.role][0] + a_point * (model.score - first.score), abs=0.05
        )
        assert score < charts.SCORES_END < charts.COSTS_START <= cost
        share = (cost - charts.COSTS_START) / (100 - charts.COSTS_START)
        assert model.cost == pytest.approx(share * 1.1 * largest, abs=1e-3 * largest)


def test_a_cost_that_is_not_known_hides_none_of_the_known_costs() -> None:
    evidence = evidence_of(PARTLY_PRICED)
    costs = {model.role: model.cost for model in charts.contenders_of(evidence)}
    assert [role for role, cost in costs.items() if cost is None] == ["endpoint_zero_shot"]
    dots = {role: len(positions) for role, positions in dots_of(evidence).items()}
    assert dots == {"incumbent": 2, "candidate": 2, "endpoint_zero_shot": 1, "bag_of_words": 2}
    chart = charts.contenders(evidence)
    assert [mark.text for mark in chart.marks if isinstance(mark, Text) and "not" in mark.text] == [
        "not assessable"
    ]
    assert "endpoint_zero_shot 71.7%, yearly cost not assessable" in chart.label
    page = Page(to_html(evidence))
    first = page.text[: page.text.index("Candidate against incumbent")]
    assert all(f"{money(cost)}" in first for cost in costs.values() if cost is not None)
    why = "m at https://api.example.org/v1 does not report its tokens"
    assert f"The cost of endpoint_zero_shot is not assessable: {why}" in first
    assert (
        f"a year costs, in the recipe's currency: the incumbent {money(costs['incumbent'] or 0)}"
        in first
    )


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        (
            "STAY",
            "because the recipe has no evaluation.hybrid. To test one in the next run, add "
            "hybrid: {by: cascade}",
        ),
        ("HYBRID", "The parts and the rule were fixed on validation"),
    ],
)
def test_the_report_says_whether_a_hybrid_was_tested_and_how_to_test_one(
    outcome: str, line: str
) -> None:
    assert line in Page(to_html(evidence_for(outcome))).text


@pytest.mark.parametrize(
    ("hybrid", "why"),
    [
        ({"by": "cascade"}, "on validation, none scores as high as the best single model."),
        ({"by": "group", "column": "sex"}, "on validation one model would answer every row"),
    ],
)
def test_the_report_says_why_a_hybrid_of_the_recipe_was_not_tested(
    hybrid: dict[str, str], why: str
) -> None:
    evidence = evidence_of(Simulation(num_rows=300, evaluation={"hybrid": hybrid}))
    assert f"No hybrid of two models was tested: {why}" in Page(to_html(evidence)).text


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


def test_every_table_has_a_caption_and_headings_do_not_skip_a_level() -> None:
    tags = Page(to_html(evidence_for("HYBRID"))).tags
    names = [tag for tag, _ in tags]
    assert names.count("table") == names.count("caption") > 5
    levels = [int(tag[1]) for tag in names if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all("aria-label" in attrs for tag, attrs in tags if tag == "svg")


@pytest.mark.parametrize("outcome", SIMULATIONS)
def test_ids_are_unique(outcome: str) -> None:
    ids = Counter(
        attrs["id"] for _, attrs in Page(to_html(evidence_for(outcome))).tags if "id" in attrs
    )
    assert [name for name, number in ids.items() if number > 1] == []
