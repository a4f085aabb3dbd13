"""Tests of the HTML report and the console lines against the evidence."""

import json
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from typing import Any

import pytest

from tailorbird.config.serving import ServingConfig
from tailorbird.evaluation.gates.cost import ServingDevice, ServingUsage, TrainingUsage
from tailorbird.evaluation.inference.endpoint_coverage import AnswerCounts
from tailorbird.evaluation.report.charts import factor_of
from tailorbird.evaluation.report.console import verdict_lines
from tailorbird.evaluation.report.costs import cost_sentence, costs_by_digest
from tailorbird.evaluation.report.evidence import (
    UNREGISTERED,
    Evidence,
)
from tailorbird.evaluation.report.html import load_duties, to_html
from tailorbird.evaluation.report.model_card import to_model_card
from tailorbird.registry.hybrid_routing import Routing
from tests.unit.evaluation.simulated import NOTHING_TO_GAIN, Simulation, evidence_of, on_cpu

SECONDS = {"incumbent": (1.0, 1.02, 0.98, 1.01, 1.0), "candidate": (0.6, 0.61, 0.59, 0.6, 0.62)}
SECONDS |= {"bag_of_words": (0.1, 0.11, 0.1, 0.1, 0.1), "centroid": (1.0, 1.01, 0.99, 1.0, 1.0)}
COST = {"value_of_correct": 0.5, "requests_per_month": 10000, "price_per_cpu_hour": 0.05}
SIMULATIONS = {
    "FINE_TUNE": Simulation(costs=on_cpu(SECONDS), evaluation={"cost": COST}),
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
    evaluation={"cost": COST | {"price_per_gpu_hour": 3.6}},
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


def is_printed(value: Any, text: str) -> bool:
    """Return True if a text is a value, rounded to the digits of the text, or its percentage."""
    if value is None or isinstance(value, bool):
        return text in ("yes" if value else "no", "none", "10,000,000 are not enough")
    if isinstance(value, str):
        return text == value
    if text == "p < 0.0001":
        return bool(value < 1e-4)
    number = text.removeprefix("p = ").removesuffix("%").replace(",", "")
    rounding = 0.51 * 10.0 ** -len(number.partition(".")[2])
    differences = (abs(float(number) - scale * value) for scale in (1, 100))
    return bool(min(differences) <= max(rounding, 5e-4 * abs(value)))


@pytest.mark.parametrize("outcome", SIMULATIONS)
def test_report_and_console_show_the_outcome_every_sentence_and_the_values_at_their_paths(
    outcome: str,
) -> None:
    evidence = evidence_for(outcome)
    verdict = evidence.verdict
    assert verdict.outcome == outcome
    page = Page(to_html(evidence))
    assert ("div", {"class": f"verdict {outcome}"}) in page.tags
    lines = "\n".join(verdict_lines(evidence))
    assert lines.startswith(f"{outcome}: {verdict.sentence()}")
    assert all(sentence in page.text and sentence in lines for sentence in verdict.sentences)

    numeric = ("verdict.", "scores.", "cost.", "reliability.")
    for path, text in page.figures:
        if path.startswith(numeric) and not path.endswith(".kind"):
            assert is_printed(value_at(evidence, path), text), path
    paths = {path for path, _ in page.figures}
    expected = {"verdict.outcome"}
    for number in range(len(verdict.relations)):
        fields = ("first", "second", "gain", "interval.0", "interval.1")
        expected |= {f"verdict.relations.{number}.{name}" for name in fields}
    for number, model in enumerate(verdict.models):
        expected.add(f"verdict.models.{number}.scores.accuracy")
        for position, gate in enumerate(model.gates):
            here = f"verdict.models.{number}.gates.{position}"
            expected.add(f"{here}.state")
            for bound in range(len(gate.bounds)):
                names = ("state", "estimate", "interval.0", "interval.1", "limit", "n")
                expected |= {f"{here}.bounds.{bound}.{name}" for name in names}
    for number in range(len(evidence.scores)):
        expected |= {f"scores.{number}.validation", f"scores.{number}.interval.0"}
    assert expected <= paths


@pytest.mark.parametrize("outcome", SIMULATIONS)
def test_the_page_is_well_formed_without_scripts_and_external_resources(outcome: str) -> None:
    source = to_html(evidence_for(outcome))
    parsed = Page(source)
    assert parsed.open == []
    assert "default-src 'none'" in source
    names: set[str] = set()
    links = set()
    targets = set()
    for tag, attrs in parsed.tags:
        assert tag not in ("script", "link", "img", "iframe", "object")
        names |= attrs.keys()
        links.add(attrs.get("href"))
        targets.add(f"#{attrs.get('id')}")
    assert not any(name.startswith("on") or name == "src" for name in names)
    assert links - {None} <= targets


def test_the_fields_of_the_duties_exist() -> None:
    fields = [field for duty in load_duties()["duties"] for field in duty["fields"]]
    assert all(value_at(evidence_for(), field) is not None for field in fields)


def test_everything_in_the_evidence_is_escaped() -> None:
    evidence = evidence_for()
    attack = '<script>alert("x")</script>\'"&'
    content = evidence.model_dump_json()
    status = "stopped: worse than other trials"
    texts = [*evidence.verdict.sentences, "an engineer", "debiased ECE", status]
    for text in texts:
        assert text in content
        content = content.replace(json.dumps(text)[1:-1], json.dumps(attack)[1:-1])
    names = dict.fromkeys(("name", "run"), attack)
    models = [model.model_copy(update={"kind": attack}) for model in evidence.verdict.models]
    changes: dict[str, Any] = {
        "verdict": evidence.verdict.model_copy(update={"models": tuple(models)}),
        "data": replace(evidence.data, sha256={attack: attack}),
        "scores": (replace(evidence.scores[0], kind=attack), *evidence.scores[1:]),
    }
    attacked = Evidence.model_validate_json(content).model_copy(update=names)
    for each in (attacked, attacked.model_copy(update=changes)):
        source = to_html(each)
        assert "<script" not in source
        assert Page(source).open == []
        assert attack in Page(source).text


def test_gpu_seconds_are_never_called_cpu_seconds() -> None:
    evidence = evidence_of(ON_GPU)
    sentence = cost_sentence(evidence)
    assert sentence is not None
    assert sentence.startswith("cost: measured on NVIDIA H100; training used 2 GPU-hours and 10 ")
    assert f"  {sentence}" in verdict_lines(evidence)
    assert f"- {sentence}" in to_model_card(evidence)
    recipe = evidence.recipe.model_copy(
        update={"serving": ServingConfig(engine="vllm", gpus_per_replica=1)}
    )
    other = cost_sentence(evidence.model_copy(update={"recipe": recipe}))
    assert "with transformers, although the service uses vllm" in str(other)

    page = Page(to_html(evidence))
    assert "GPU-seconds per thousand rows" in page.text
    assert ("cost.device.emulated.0", "candidate") in page.figures
    measured = [(path, text) for path, text in page.figures if path.startswith("cost.serving.")]
    assert {path.split(".")[3] for path, _ in measured} == {"cpu_s", "gpu_s"}
    assert all(is_printed(value_at(evidence, path), text) for path, text in measured)
    (gate,) = [gate for gate in evidence.verdict.gates if gate.name == "cost"]
    assert factor_of(gate) == 1  # its bounds are in the currency, not in points


def test_the_cost_of_registered_versions_is_in_words_by_digest() -> None:
    costs = costs_by_digest(evidence_for())
    digests = {version.digest for version in evidence_for().versions.values()}
    assert set(costs) == digests - {UNREGISTERED}
    assert all(cost.endswith(" a year at 10,000 requests a month") for cost in costs.values())
    unpriced = costs_by_digest(evidence_of(Simulation(costs=on_cpu(SECONDS))))
    assert "0.6 CPU-seconds for 1,000 answers" in unpriced.values()
    assert costs_by_digest(evidence_for("STAY")) == {}
    assert cost_sentence(evidence_for("STAY")) is None


def test_a_run_without_a_training_says_why_and_shows_no_candidate() -> None:
    costs = on_cpu({role: SECONDS[role] for role in ("incumbent", "bag_of_words", "centroid")})
    evidence = evidence_of(replace(NOTHING_TO_GAIN, costs=costs))
    page = Page(to_html(evidence))
    sections = {attrs.get("id") for tag, attrs in page.tags if tag == "section"}
    assert not sections & {"gain", "outcomes", "power", "sweep"}
    headroom = {("family.headroom.num_rows", "1,389"), ("family.headroom.most", "0.22")}
    assert headroom <= set(page.figures)
    assert "None" not in page.text
    card = to_model_card(evidence, role="incumbent")
    lines = "\n".join(verdict_lines(evidence))
    assert "candidate" not in card + lines
    for text in (page.text, card, lines):
        assert "No training was started" in text
        # bag_of_words is as good and needs less
        assert "CPU-seconds per row; set evaluation.cost to let the cost count." in text


def test_classes_are_listed_with_their_descriptions_and_answers_without_a_label_are_counted() -> (
    None
):
    evidence = evidence_for()
    assert evidence.confusions is not None
    descriptions = {evidence.confusions[0].label: "bones <and> joints"}
    data = evidence.recipe.data.model_copy(update={"label_descriptions": descriptions})
    counts = AnswerCounts(1800, refused=0, truncated=0, empty=0, invalid=37)
    changes = {
        "recipe": evidence.recipe.model_copy(update={"data": data}),
        "endpoint_answers": {"incumbent": counts},
    }
    page = Page(to_html(evidence.model_copy(update=changes)))
    table = page.text.partition("Errors that the candidate fixes and makes")[2]
    assert "bones <and> joints" in table
    assert ("endpoint_answers.incumbent.invalid", "37") in page.figures
