"""The page and the terminal lines say what the evidence says, escaped, self-contained, each figure with its place."""

import json
from functools import cache
from html.parser import HTMLParser
from typing import Any

import pytest

from tailorbird.evaluation.gates.cost import CpuRounds
from tailorbird.evaluation.report.console import verdict_lines
from tailorbird.evaluation.report.html import to_html
from tailorbird.evaluation.report.model_card import to_model_card
from tailorbird.registry.routing import Routing
from tests.unit.evaluation.simulated import Simulation, evidence_of

CPU = CpuRounds((1.0, 1.02, 0.98, 1.01, 1.0), (0.6, 0.61, 0.59, 0.6, 0.62))
CURVE = {
    "sizes": [2000, 4000, 8967], "scores": [0.68, 0.71, 0.744], "at_double": 0.768, "interval": [0.751, 0.786],
    "sentence": "twice the data (17,934 rows) would give a validation score of about 0.768",
}  # fmt: skip
SIMULATIONS = {
    "FINE_TUNE": Simulation(
        cpu=CPU,
        curve=CURVE,
        evaluation={"cost": {"value_of_correct": 0.5, "requests_per_month": 10000, "price_per_cpu_hour": 0.05}},
    ),
    "STAY": Simulation(num_rows=3000, candidate=0.66),
    "INSUFFICIENT_EVIDENCE": Simulation(num_rows=150, candidate=0.72, look=2),
    "HYBRID": Simulation(
        num_rows=4000,
        candidate=0.82,
        by_group={"female": 0.62},
        evaluation={"hybrid": {"by": "group", "column": "sex"}},
        routing=Routing("group", "sex", ("male", "unstated"), None),
    ),
}
VOID = ("meta", "br")


@cache
def _serialised(outcome: str) -> str:
    return json.dumps(evidence_of(SIMULATIONS[outcome]))


def some_evidence(outcome: str = "FINE_TUNE") -> dict[str, Any]:
    return dict(json.loads(_serialised(outcome)))


class Page(HTMLParser):
    """Collects tags, attributes, text, and the text of each element that names its source."""

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


def place(evidence: Any, path: str) -> Any:
    for key in path.split("."):
        evidence = evidence[int(key)] if isinstance(evidence, list) else evidence[key]
    return evidence


def shown(value: Any) -> list[str]:
    """Every way in which the page may write a value."""
    if isinstance(value, bool) or value is None:
        return ["yes" if value else "no", "none", "no number"]
    if isinstance(value, int | float):
        forms = (
            "+.2f", "+.1g", ".2f", ".3f", ".4f", ",.4g", ",.0f", ",", ".3g", ".0%", "+,.0f", ".1f",
        )  # fmt: skip
        ways = [format(scale * value, form) for scale in (1, 100) for form in forms]
        return [*ways, f"p = {value:.3g}", "p < 0.0001" if value < 1e-4 else "", f"{100 * value:.1f} %", str(value)]
    return [str(value)]


@pytest.mark.parametrize("outcome", SIMULATIONS)
def test_each_outcome_has_its_page_and_lines(outcome: str) -> None:
    evidence = some_evidence(outcome)
    assert evidence["verdict"]["outcome"] == outcome
    page = Page(to_html(evidence))
    assert ("verdict.outcome", outcome) in page.figures
    assert ("div", {"class": f"verdict {outcome}"}) in page.tags
    assert f"n = {evidence['verdict']['n']:,}" in page.text
    for reason in evidence["verdict"]["reasons"]:
        assert reason in page.text
        assert f"  - {reason}" in verdict_lines(evidence)
    assert verdict_lines(evidence)[0].startswith(outcome)


@pytest.mark.parametrize("outcome", SIMULATIONS)
def test_each_figure_is_what_stands_at_its_place_in_the_evidence(outcome: str) -> None:
    evidence = some_evidence(outcome)
    figures = Page(to_html(evidence)).figures
    for path, text in figures:
        value = place(evidence, path)
        if path.startswith(("verdict.", "ladder.", "measured.", "curve.", "reliability.")) and not path.endswith(
            ".kind"
        ):
            assert text in shown(value), path
    told = {path for path, _ in figures}
    assert {"verdict.gain", "verdict.interval.0", "verdict.interval.1", "verdict.p_value", "verdict.n"} <= told
    for number, gate in enumerate(evidence["verdict"]["gates"]):
        assert f"verdict.gates.{number}.state" in told
        for bound in range(len(gate["bounds"])):
            for name in ("state", "estimate", "interval.0", "interval.1", "limit", "n"):
                assert f"verdict.gates.{number}.bounds.{bound}.{name}" in told
    for number in range(len(evidence["ladder"])):
        assert {f"ladder.{number}.validation", f"ladder.{number}.interval.0"} <= told


@pytest.mark.parametrize("outcome", SIMULATIONS)
def test_the_page_is_well_formed_and_loads_and_runs_nothing(outcome: str) -> None:
    source = to_html(some_evidence(outcome))
    parsed = Page(source)
    assert parsed.open == []
    assert {tag for tag, _ in parsed.tags}.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert not any(name.startswith("on") or name in ("src", "href") for _, attrs in parsed.tags for name in attrs)
    for needed in ("default-src 'none'", "prefers-color-scheme: dark", "@media print", "width=device-width"):
        assert needed in source


def test_what_was_not_asked_for_has_no_section() -> None:
    whole, bare = (Page(to_html(some_evidence(outcome))).text for outcome in ("FINE_TUNE", "STAY"))
    for title in ("Learning curve", "Cost to serve"):
        assert title in whole
        assert title not in bare
    assert "The hybrid" in Page(to_html(some_evidence("HYBRID"))).text
    assert "The hybrid" not in whole


def test_a_later_look_is_said_to_confirm_nothing() -> None:
    assert "2 (not the first, so not confirmatory)" in Page(to_html(some_evidence("INSUFFICIENT_EVIDENCE"))).text
    assert "1 (the first: confirmatory)" in Page(to_html(some_evidence())).text


def test_the_page_says_who_asked_when_it_expires_and_which_duties_it_serves() -> None:
    evidence = some_evidence()
    text = Page(to_html(evidence)).text
    for expected in (evidence["asked_by"], evidence["expires_at"], "Annex IV 2(g)", "Annex IV 3", "MEASURE 2"):
        assert expected in text


def test_the_page_names_the_metric_that_its_ladder_holds() -> None:
    text = Page(to_html(evidence_of(Simulation(evaluation={"metric": "macro_f1"})))).text
    assert "On validation: macro-F1; bars" in text
    assert "On validation: accuracy with Wilson's interval; bars" in Page(to_html(some_evidence())).text


def test_the_four_paired_outcomes_are_told_and_add_up() -> None:
    evidence = some_evidence()
    text = Page(to_html(evidence)).text
    verdict = evidence["verdict"]
    both = round(verdict["candidate_score"] * verdict["n"]) - verdict["only_candidate_right"]
    assert f"both right{both:,}" in text


def test_whatever_the_evidence_holds_is_escaped() -> None:
    evidence = some_evidence()
    attack = '<script>alert("x")</script>\'"&'
    evidence["name"] = evidence["run"] = evidence["asked_by"] = attack
    evidence["ladder"][0]["kind"] = attack
    evidence["sweep"][0] |= {"kind": attack, "config": {attack: attack}, "status": attack}
    evidence["data"][attack] = [attack]
    evidence["training"][attack] = attack
    evidence["recipe"]["data"]["train"] = attack
    evidence["verdict"]["reasons"] = [attack]
    evidence["verdict"]["gates"][0] |= {"note": attack, "name": attack}
    evidence["verdict"]["gates"][1]["bounds"][0]["what"] = attack
    evidence["versions"]["candidate"]["uri"] = attack
    evidence["curve"]["sentence"] = attack
    source = to_html(evidence)
    assert "<script" not in source
    assert Page(source).open == []
    assert attack in Page(source).text


def test_few_seeds_give_no_spread() -> None:
    evidence = some_evidence() | {"sweep": [], "seeds": [{"seed": 0, "validation": 0.7}]}
    assert "spread not assessed" in to_html(evidence)
    assert "0.736 to 0.744; the mean of their weights 0.742" in to_html(some_evidence())


def test_the_mean_of_the_seeds_weights_is_told_where_it_was_in_the_running() -> None:
    chosen = {"averaged": {"validation": 0.744, "chosen": True}}
    assert "the mean of their weights 0.744, the candidate" in to_html(some_evidence() | chosen)
    assert "mean of their weights" not in to_html(some_evidence() | {"averaged": None})


def test_who_saw_a_part_of_streamed_rows_is_told_on_page_card_and_terminal() -> None:
    evidence = some_evidence()
    evidence["data"] |= {"num_train": 10_000_000, "num_in_memory": 500_000}
    told = (
        "raining rows were streamed: the candidate learned from all 10,000,000, the pretrained rungs and the reference"
    )
    assert told in to_html(evidence)
    assert told in to_model_card(evidence, role="candidate")
    assert told in "\n".join(verdict_lines(evidence))
    assert "were streamed" not in to_html(some_evidence())


def test_the_evidence_is_plain_json_and_the_report_does_not_change_it() -> None:
    evidence = some_evidence("HYBRID")
    before = json.dumps(evidence)
    to_html(evidence)
    verdict_lines(evidence)
    assert json.dumps(evidence) == before


def test_a_sweep_that_ended_itself_says_why() -> None:
    evidence = evidence_of(Simulation())
    assert "ended itself" not in to_html(evidence)
    told = to_html(evidence | {"sweep_ended": "0.900 is out of reach"})
    assert 'The sweep ended itself: <span data-from="sweep_ended">0.900 is out of reach</span>' in told
