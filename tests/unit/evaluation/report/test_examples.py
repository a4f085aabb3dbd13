"""Texts of rows on which the models differ are in the report only if the recipe allows it."""

from dataclasses import replace

import pytest

from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.data.rows import Rows
from tailorbird.evaluation.report.evidence import PairedExample
from tailorbird.evaluation.report.examples import MAX_CHARACTERS, paired_examples
from tailorbird.evaluation.report.html import to_html
from tests import build
from tests.unit.evaluation.report.test_html import Page, evidence_for

LABELS = ("a", "b") * 4
TABLES = {
    "candidate": build.predictions("abababbb", LABELS),
    "incumbent": build.predictions("aababaab", LABELS),
}


def rows(*, texts: dict[int, str] | None = None) -> Rows:
    written = [(texts or {}).get(row, f"text {row}") for row in range(8)]
    # in another order, because rows are found by id and not by position
    return build.rows(written, LABELS).take(range(7, -1, -1))


def test_a_recipe_without_the_field_has_no_texts_in_its_evidence() -> None:
    most = EvaluationConfig().report_examples
    assert paired_examples(TABLES, rows=rows(), metric="accuracy", most=most) == ()


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_examples_are_of_both_kinds_and_evenly_spaced(metric: str) -> None:
    examples = paired_examples(TABLES, rows=rows(), metric=metric, most=2)
    assert [example.row_id + example.better[0] for example in examples] == ["1c", "5c", "6i"]
    assert examples[0] == PairedExample(
        "1",
        "candidate",
        text="text 1",
        label="b",
        outputs={"candidate": "b", "incumbent": "a"},
        scores={"candidate": 1.0, "incumbent": 0.0},
    )


def test_texts_are_redacted_and_cut() -> None:
    long = "call +44 20 7946 0958 or write to ann@example.org, " + "please " * 100
    (example,) = paired_examples(TABLES, rows=rows(texts={6: long}), metric="accuracy", most=1)[1:]
    assert example.text.startswith("call [number] or write to [email], please")
    assert len(example.text) <= MAX_CHARACTERS + 2


def test_chat_examples_have_scores_and_the_reference_answer_but_no_answers_of_models() -> None:
    hashed = {
        role: replace(predictions, measures={"token_f1": predictions.scores * 0.5})
        for role, predictions in TABLES.items()
    }
    turns = tuple((("system", "be brief"), ("user", text)) for text in rows().texts)
    answers = tuple(f"answer {label}" for label in rows().labels)
    chat = replace(rows(), labels=answers, conversations=turns)
    first, *_ = paired_examples(hashed, rows=chat, metric="token_f1", most=1)
    assert (first.outputs, first.scores) == (None, {"candidate": 0.5, "incumbent": 0.0})
    assert first.label.startswith("answer ")
    assert first.text == "text 1"


def test_the_report_shows_the_examples_escaped() -> None:
    examples = paired_examples(
        TABLES, rows=rows(texts={1: "<b>bold</b>"}), metric="accuracy", most=3
    )
    page = Page(to_html(evidence_for().model_copy(update={"examples": examples})))
    assert ("examples.0.text", "<b>bold</b>") in page.figures
    assert ("examples.0.outputs.candidate", "b") in page.figures
