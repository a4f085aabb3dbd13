"""Tests of the HTML report and the console lines against the evidence."""

import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from typing import Any

import pytest

from tailorbird.config.serving import ServingConfig
from tailorbird.evaluation.gates.cost import ServingDevice, ServingUsage, TrainingUsage
from tailorbird.evaluation.report.charts import factor_of
from tailorbird.evaluation.report.console import verdict_lines
from tailorbird.evaluation.report.costs import cost_sentence, costs_by_digest
from tailorbird.evaluation.report.evidence import (
    UNREGISTERED,
    CurveRecord,
    Evidence,
)
from tailorbird.evaluation.report.html import load_duties, to_html
from tailorbird.evaluation.report.model_card import to_model_card
from tailorbird.registry.hybrid_routing import Routing
from tests.unit.evaluation.simulated import NOTHING_TO_GAIN, Simulation, evidence_of, on_cpu

SECONDS = {"incumbent": (1.0, 1.02, 0.98, 1.01, 1.0), "candidate": (0.6, 0.61, 0.59, 0.6, 0.62)}
SECONDS |= {"bag_of_words": (0.1, 0.11, 0.1, 0.1, 0.1), "centroid": (1.0, 1.01, 0.99, 1.0, 1.0)}
CURVE = CurveRecord(
    sizes=(2000, 4000, 8967),
    scores=(0.68, 0.71, 0.744),
    at_double=0.768,
    interval=(0.751, 0.786),
    sentence="twice the data (17,934 rows) would give a validation score of about 0.768",
)
COST = {"value_of_correct": 0.5, "requests_per_month": 10000, "price_per_cpu_hour": 0.05}
SIMULATIONS = {
    "FINE_TUNE": Simulation(
        costs=on_cpu(SECONDS),
        curve=CURVE,
        evaluation={"cost": COST},
    ),
    "STAY": Simulation(num_rows=3000, candidate=0.66),
    "INSUFFICIENT_EVIDENCE": Simulation(
        num_rows=150, candidate=0.72, access_number=2, num_rows_seen=140
    ),
    "HYBRID": Simulation(
        num_rows=4000,
        candidate=0.86,
        by_group={"female": 0.55},
        evaluation={"hybrid": "sex"},
        routing=Routing("group", "sex", ("male", "unstated"), None),
    ),
}
ON_GPU = Simulation(
    costs={
        role: ServingUsage(cpu_s, tuple(4 * second for second in cpu_s))
        for role, cpu_s in SECONDS.items()
    },
    device=ServingDevice("NVIDIA H100", emulated=("candidate",)),
    training=TrainingUsage(cpu_s=36_000, gpu_s=7200),
    evaluation={
        "cost": {
            "value_of_correct": 0.5,
            "requests_per_month": 10000,
            "price_per_cpu_hour": 0.1,
            "price_per_gpu_hour": 3.6,
        }
    },
    serving={"autoscaling": {"min_replicas": 0}, "gpus_per_replica": 1},
)
VOID = ("meta", "br")


@cache
def evidence_for(outcome: str = "FINE_TUNE") -> Evidence:
    """Return the evidence of the simulated run with this outcome."""
    return evidence_of(SIMULATIONS[outcome])


class Page(HTMLParser):
    """A parser that collects tags, attributes, text, and the text of each element with
    `data-from`."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str | None]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.figures: list[tuple[str, str]] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("data-from")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1][1] is not None:
            self.figures.append((self.open[-1][1], data))


def value_at(evidence: Evidence, path: str) -> Any:
    """Return the value at a `data-from` path."""
    value = evidence.model_dump(mode="json")
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def formats_of(value: Any) -> list[str]:
    """Return all formats in which the page may print a value."""
    if isinstance(value, bool) or value is None:
        return ["yes" if value else "no", "none", "10,000,000 are not enough"]
    if isinstance(value, int | float):
        forms = (
            "+.2f",
            "+.1g",
            ".2f",
            ".3f",
            ".4f",
            ",.4g",
            ",.0f",
            ",",
            ".3g",
            ".0%",
            "+,.0f",
            ".1f",
            ",.2f",
            ".2g",
        )
        formatted = [format(scale * value, form) for scale in (1, 100) for form in forms]
        return [
            *formatted,
            f"p = {value:.3g}",
            "p < 0.0001" if value < 1e-4 else "",
            f"{100 * value:.1f}%",
            str(value),
        ]
    return [str(value)]


@pytest.mark.parametrize("outcome", SIMULATIONS)
def test_report_and_console_show_the_outcome_every_sentence_and_the_values_at_their_paths(
    outcome: str,
) -> None:
    evidence = evidence_for(outcome)
    assert evidence.verdict.outcome == outcome
    page = Page(to_html(evidence))
    assert ("verdict.outcome", outcome) in page.figures
    assert ("div", {"class": f"verdict {outcome}"}) in page.tags
    lines = verdict_lines(evidence)
    assert lines[0] == f"{outcome}: {evidence.verdict.sentence()}"
    for number, sentence in enumerate(evidence.verdict.sentences[1:], start=2):
        assert lines[number - 1] == f"  {number}. {sentence}"
    assert all(sentence in page.text for sentence in evidence.verdict.sentences)

    for path, text in page.figures:
        value = value_at(evidence, path)
        if path.startswith(
            ("verdict.", "scores.", "cost.", "curve.", "reliability.")
        ) and not path.endswith(".kind"):
            assert text in formats_of(value), path
    paths = {path for path, _ in page.figures}
    for number, relation in enumerate(evidence.verdict.relations):
        here = f"verdict.relations.{number}"
        assert {
            f"{here}.{name}" for name in ("first", "second", "gain", "interval.0", "interval.1")
        } <= paths
        assert (f"{here}.cost_ratio.0" in paths) == (relation.cost_ratio is not None)
    for number, model in enumerate(evidence.verdict.models):
        here = f"verdict.models.{number}"
        assert f"{here}.scores.accuracy" in paths
        for position, gate in enumerate(model.gates):
            assert f"{here}.gates.{position}.state" in paths
            for bound in range(len(gate.bounds)):
                for name in ("state", "estimate", "interval.0", "interval.1", "limit", "n"):
                    assert f"{here}.gates.{position}.bounds.{bound}.{name}" in paths
    for number in range(len(evidence.scores)):
        assert {f"scores.{number}.validation", f"scores.{number}.interval.0"} <= paths


@pytest.mark.parametrize("outcome", SIMULATIONS)
def test_the_page_is_well_formed_without_scripts_and_external_resources(outcome: str) -> None:
    source = to_html(evidence_for(outcome))
    parsed = Page(source)
    assert parsed.open == []
    assert {tag for tag, _ in parsed.tags}.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert not any(
        name.startswith("on") or name == "src" for _, attrs in parsed.tags for name in attrs
    )
    links = {attrs["href"] for _, attrs in parsed.tags if "href" in attrs}
    assert links <= {f"#{attrs['id']}" for _, attrs in parsed.tags if "id" in attrs}
    for needed in (
        "default-src 'none'",
        "prefers-color-scheme: dark",
        "@media print",
        "width=device-width",
    ):
        assert needed in source


def test_a_further_access_to_the_test_rows_is_reported_with_its_level() -> None:
    page = Page(to_html(evidence_for("INSUFFICIENT_EVIDENCE"))).text
    alpha = evidence_for("INSUFFICIENT_EVIDENCE").verdict.alpha
    assert "test rows known from earlier tests" in page
    assert f"140 of 150 different rows; alpha {alpha:.2g}" in page
    assert alpha < 0.05
    assert "different rows; alpha 0.05" in Page(to_html(evidence_for())).text


def test_the_fields_of_the_duties_exist_and_the_rows_on_which_both_models_are_right_are_printed() -> (
    None
):
    evidence = evidence_for()
    fields = [field for duty in load_duties()["duties"] for field in duty["fields"]]
    assert all(value_at(evidence, field) is not None for field in fields)
    text = Page(to_html(evidence)).text
    verdict = evidence.verdict
    gained = verdict.relation("candidate", "incumbent").only_first_right
    both = round(verdict.model("candidate").score * verdict.n) - gained
    assert f"both right{both:,}" in text


def test_everything_in_the_evidence_is_escaped() -> None:
    evidence = evidence_for()
    attack = '<script>alert("x")</script>\'"&'
    verdict, recipe = evidence.verdict, evidence.recipe
    incumbent, candidate, *others = verdict.models
    noted, bounded, *gates = candidate.gates
    bound, *bounds = bounded.bounds
    gated = {
        "gates": (
            replace(noted, note=attack, name=attack),
            replace(bounded, bounds=(replace(bound, what=attack), *bounds)),
            *gates,
        )
    }
    assert evidence.curve is not None
    assert evidence.training is not None
    changes = {
        **dict.fromkeys(("name", "run", "requested_by", "sweep_ended"), attack),
        "scores": (replace(evidence.scores[0], kind=attack), *evidence.scores[1:]),
        "sweep": (replace(evidence.sweep[0], kind=attack, config={attack: attack}, status=attack),),
        "data": replace(
            evidence.data,
            report=replace(evidence.data.report, rare_classes=(attack,)),
            sha256={attack: attack},
        ),
        "training": replace(evidence.training, selected={attack: attack}),
        "recipe": recipe.model_copy(
            update={"data": recipe.data.model_copy(update={"train": attack})}
        ),
        "verdict": verdict.model_copy(
            update={
                "sentences": (attack,) * 4,
                "models": (
                    incumbent.model_copy(update={"kind": attack}),
                    candidate.model_copy(update=gated),
                    *others,
                ),
            }
        ),
        "versions": evidence.versions
        | {"candidate": replace(evidence.versions["candidate"], uri=attack)},
        "curve": replace(evidence.curve, sentence=attack),
    }
    source = to_html(evidence.model_copy(update=changes))
    assert "<script" not in source
    assert Page(source).open == []
    assert attack in Page(source).text


def test_gpu_seconds_are_never_called_cpu_seconds() -> None:
    evidence = evidence_of(ON_GPU)
    sentence = cost_sentence(evidence)
    assert sentence == (
        "cost: measured on NVIDIA H100; training used 2 GPU-hours and 10 CPU-hours; 10,000 "
        "requests a month, with the training paid in one year, at least 0 replicas, each with "
        "1 CPU core and 1 GPU; prices in the recipe's currency: 0.1 per CPU-hour, 3.6 per "
        "GPU-hour"
    )
    ratio = (
        "To serve, the candidate costs 0.60 (0.59 to 0.62) times what the incumbent costs (by "
        "price at the recipe's"
    )
    assert any(ratio in line for line in verdict_lines(evidence))
    assert f"  {sentence}" in verdict_lines(evidence)
    assert f"- {sentence}" in to_model_card(evidence)
    served_by_vllm = ServingConfig(engine="vllm", gpus_per_replica=1)
    recipe = evidence.recipe.model_copy(update={"serving": served_by_vllm})
    other = cost_sentence(evidence.model_copy(update={"recipe": recipe}))
    assert other is not None
    assert "measured on NVIDIA H100 with transformers, although the service uses vllm" in other
    page = Page(to_html(evidence))
    assert "GPU-seconds per thousand rows, of each of the alternating rounds" in page.text
    assert "GPU-seconds of training, including the sweep" in page.text
    assert ("cost.device.emulated.0", "candidate") in page.figures
    measured = [(path, text) for path, text in page.figures if path.startswith("cost.serving.")]
    assert {path.split(".")[3] for path, _ in measured} == {"cpu_s", "gpu_s"}
    assert all(text in formats_of(value_at(evidence, path)) for path, text in measured)
    (gate,) = [gate for gate in evidence.verdict.gates if gate.name == "cost"]
    assert "training -8.20" in gate.note
    # Its bounds are in the currency, not in points.
    assert factor_of(gate) == 1
    at = f"verdict.models.1.gates.{evidence.verdict.gates.index(gate)}.bounds.0.estimate"
    assert (at, f"{gate.bounds[0].estimate:,.0f}") in page.figures


def test_the_cost_of_registered_versions_is_in_words_by_digest() -> None:
    costs = costs_by_digest(evidence_for())
    assert set(costs) == {version.digest for version in evidence_for().versions.values()} - {
        UNREGISTERED
    }
    assert all(
        re.fullmatch(r"[\d.,e-]+ a year at 10,000 requests a month", cost)
        for cost in costs.values()
    )
    unpriced = costs_by_digest(evidence_of(Simulation(costs=on_cpu(SECONDS))))
    assert "0.6 CPU-seconds for 1,000 answers" in unpriced.values()
    assert costs_by_digest(evidence_for("STAY")) == {}
    assert cost_sentence(evidence_for("STAY")) is None


def test_a_missing_price_is_shown_as_not_assessable_and_not_as_0() -> None:
    cost = {"value_of_correct": 0.5, "requests_per_month": 10000}
    evidence = evidence_of(Simulation(costs=on_cpu(SECONDS), evaluation={"cost": cost}))
    assert evidence.verdict.relation("candidate", "incumbent").cost_ratio is None
    page, card = Page(to_html(evidence)), to_model_card(evidence)
    assert (
        "verdict.costs.0.missing.0",
        "evaluation.cost.price_per_cpu_hour is not set",
    ) in page.figures
    assert not any(path.startswith("verdict.costs.0.total") for path, _ in page.figures)
    assert "The costs of the candidate and of the incumbent cannot be compared" in card


CHEAP_BAG = replace(
    NOTHING_TO_GAIN,
    costs=on_cpu({role: SECONDS[role] for role in ("incumbent", "bag_of_words", "centroid")}),
)


def test_the_report_of_a_run_without_a_training_says_why_and_shows_no_candidate() -> None:
    evidence = evidence_of(CHEAP_BAG)
    page = Page(to_html(evidence))
    sections = {str(attrs["id"]) for tag, attrs in page.tags if tag == "section" and "id" in attrs}
    assert not sections & {"gain", "outcomes", "power", "sweep"}
    assert "Fine-tuning has nothing to gain: keep the incumbent" in page.text
    assert (
        "at most 0.22 points can be gained (95% bound), below the minimum gain of 1 point"
        in page.text
    )
    assert {("family.headroom.num_rows", "1,389"), ("family.headroom.most", "0.22")} <= set(
        page.figures
    )
    assert "No model was trained." in page.text
    assert "None" not in page.text


def test_the_report_names_a_cheaper_model_that_is_not_worse_although_the_recipe_has_no_prices() -> (
    None
):
    named = "ag_of_words is at most 0.28 points below the incumbent and needs 10% of its "
    named += "CPU-seconds per row; set evaluation.cost to let the cost count."
    evidence = evidence_of(CHEAP_BAG)
    assert named in Page(to_html(evidence)).text
    assert any(named in line for line in verdict_lines(evidence))
    assert named in to_model_card(evidence, role="incumbent")
    priced = replace(CHEAP_BAG, evaluation={"cost": COST})
    assert "set evaluation.cost" not in Page(to_html(evidence_of(priced))).text


def test_the_card_and_the_lines_of_a_run_without_a_training_have_no_figures_of_a_candidate() -> (
    None
):
    evidence = evidence_of(NOTHING_TO_GAIN)
    card = to_model_card(evidence, role="incumbent")
    lines = "\n".join(verdict_lines(evidence))
    assert "candidate" not in card
    assert "candidate" not in lines
    assert "No training was started: the incumbent scores 100%" in card
