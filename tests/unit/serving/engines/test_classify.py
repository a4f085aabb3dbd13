"""Predictions of hybrids equal those of the selected model alone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from serving.engines.classify import Prediction, hybrid_rows, predict_texts, scores_by_class
from serving.http.schemas import parse_request
from serving.offline import InputRow, offline_hybrid, offline_model
from serving.replica.classifier import _result
from tailorbird.data.rows import Rows
from tailorbird.data.tokenize import load_tokenizer
from tailorbird.evaluation.inference.predict import _predict_labels
from tailorbird.evaluation.predictions import Predictions
from tailorbird.models.classifier import Classifier
from tailorbird.models.loading import LoadedClassifier
from tailorbird.models.pretrained import without_pooler
from tailorbird.registry.hybrid_routing import Routing, routes_to_second
from tailorbird.registry.hybrids import hybrid_config
from tailorbird.registry.versions import ModelVersion
from tests.unit.data.test_tokenize import BERT, WORDS, wordpiece

TEXTS = ["acute pain", "chest pains", "fever", "", "pain pain pain acute fever", "fever chest"]
BY_GROUP = Routing(by="group", column="sex", values=("f",))
BATCH = 4


def part(
    tokenizer: Any, *, seed: int, classes: tuple[str, ...], temperature: float
) -> LoadedClassifier[ModelVersion]:
    """Return a small model with random weights."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    model = Classifier(without_pooler(BertModel(config)), torch.nn.Linear(16, len(classes))).eval()
    version = ModelVersion(
        kind="probe",
        classes=classes,
        base_model="s3://none",
        max_length=16,
        dtype="float32",
        code="s3://none.zip",
        recipe_hash="0" * 64,
        created_at="2026-01-01T00:00:00+00:00",
        temperature=temperature,
        name="task",
        version=f"probe-{seed}",
        uri=f"s3://probe-{seed}",
        digest=str(seed),
    )
    return LoadedClassifier(model, tokenizer, classes, 16, version)


@dataclass(frozen=True)
class LoadedHybrid:
    """A hybrid in memory."""

    version: ModelVersion
    first: LoadedClassifier[ModelVersion]
    second: LoadedClassifier[ModelVersion]

    def predict(self, rows: Sequence[tuple[str, str | None]]) -> Sequence[Prediction]:
        """Return the predictions of texts with their groups."""
        model = offline_hybrid(
            self.version,
            *(offline_model(part, batch_size=BATCH) for part in (self.first, self.second)),
        )
        return model.answer([InputRow((("user", text),), "row", group) for text, group in rows])

    def routed_by(self, routing: Routing) -> "LoadedHybrid":
        """Return the hybrid with another routing."""
        assert self.version.hybrid is not None
        hybrid = self.version.hybrid.model_copy(update={"routing": routing})
        return replace(self, version=self.version.model_copy(update={"hybrid": hybrid}))


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> LoadedHybrid:
    """Return a hybrid of two models with different classes that routes by group."""
    tokenizer = load_tokenizer(wordpiece(tmp_path_factory.mktemp("bert"), **BERT))
    first = part(tokenizer, seed=0, classes=("a", "b", "c"), temperature=0.5)
    second = part(tokenizer, seed=1, classes=("a", "b", "d"), temperature=2.0)
    config = hybrid_config(first.version, second=second.version, routing=BY_GROUP)
    version = ModelVersion(
        **config.model_dump(), name="task", version="hybrid-1", uri="s3://hybrid-1", digest="3"
    )
    return LoadedHybrid(version, first, second)


def check(loaded: LoadedHybrid, rows: list[tuple[str, str | None]], routed: np.ndarray) -> None:
    """Assert that each row is answered by the model in `routed`, with the prediction of that model
    alone."""
    texts = [text for text, _ in rows]
    alone = {
        "first": predict_texts(loaded.first, texts, batch_size=BATCH),
        "second": predict_texts(loaded.second, texts, batch_size=BATCH),
    }
    predictions = loaded.predict(rows)
    assert [prediction.answered_by for prediction in predictions] == [
        "second" if to else "first" for to in routed
    ]
    for number, prediction in enumerate(predictions):
        assert prediction.answered_by is not None
        expected = alone[prediction.answered_by][number]
        assert prediction.label == expected.label
        assert prediction.score == pytest.approx(expected.score, abs=1e-5)
        np.testing.assert_allclose(prediction.scores, expected.scores, atol=1e-5)


generated_rows = st.lists(
    st.tuples(st.sampled_from(TEXTS), st.sampled_from(["f", "m", "(none)", None])), max_size=12
)


@given(generated_rows)
def test_routing_by_group_selects_the_model_by_the_attribute(
    hybrid: LoadedHybrid, rows: list[tuple[str, str | None]]
) -> None:
    check(hybrid, rows, routes_to_second(BY_GROUP, groups=[value for _, value in rows]))


@given(generated_rows, st.floats(0, 1))
def test_a_cascade_sends_uncertain_texts_to_the_second_part(
    hybrid: LoadedHybrid, rows: list[tuple[str, str | None]], threshold: float
) -> None:
    routing = Routing(by="cascade", threshold=threshold)
    sure = predict_texts(hybrid.first, [text for text, _ in rows], batch_size=BATCH)
    check(
        hybrid.routed_by(routing),
        rows,
        routes_to_second(routing, confidences=[prediction.score for prediction in sure]),
    )


def test_temperature_changes_scores_but_not_labels(hybrid: LoadedHybrid) -> None:
    warm = hybrid.first
    plain = replace(warm, version=warm.version.model_copy(update={"temperature": 1.0}))
    flat = replace(warm, version=warm.version.model_copy(update={"temperature": 1e9}))
    labels = [
        [p.label for p in predict_texts(loaded, TEXTS, batch_size=BATCH)]
        for loaded in (warm, plain, flat)
    ]
    assert labels[0] == labels[1] == labels[2]
    for sure, less in zip(
        *(predict_texts(m, TEXTS, batch_size=BATCH) for m in (warm, plain)), strict=True
    ):
        assert sure.score > less.score
        assert sure.score == pytest.approx(
            less.scores.max() ** 2 / (less.scores**2).sum(), abs=1e-5
        )


def test_offsets_decide_for_a_less_probable_class_and_leave_the_scores(
    hybrid: LoadedHybrid,
) -> None:
    plain = hybrid.first
    before = predict_texts(plain, TEXTS, batch_size=BATCH)
    assert {prediction.is_most_probable for prediction in before} == {True}
    decided = replace(plain, version=plain.version.model_copy(update={"offsets": (0.0, 1e3, 0.0)}))
    after = predict_texts(decided, TEXTS, batch_size=BATCH)
    assert {prediction.label for prediction in after} == {"b"}
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old.scores, new.scores)
        assert new.score == new.scores[1]
        assert new.is_most_probable == (old.label == "b")
        answer = _result(new, version=decided.version)
        assert answer.get("most_probable", True) == new.is_most_probable
    assert "most_probable" not in _result(before[0], version=plain.version)
    evaluated = label_rows(decided, TEXTS)
    assert list(evaluated.outputs) == [prediction.label for prediction in after]
    np.testing.assert_allclose(
        evaluated.calibrated, [prediction.score for prediction in after], rtol=1e-6
    )


def label_rows(loaded: Any, texts: list[str]) -> Predictions:
    """Return the predictions of the evaluation."""
    return _predict_labels(
        loaded, Rows(tuple(map(str, range(len(texts)))), tuple(texts), ("a",) * len(texts))
    )


def test_a_class_that_the_model_does_not_have_gets_probability_zero(hybrid: LoadedHybrid) -> None:
    first, second = hybrid.predict([("fever", "m"), ("fever", "f")])
    classes = hybrid.version.classes
    by_first, by_second = (scores_by_class(each, classes=classes) for each in (first, second))
    assert set(by_first) == set(by_second) == {"a", "b", "c", "d"}
    assert (by_first["d"], by_second["c"]) == (0.0, 0.0)
    assert by_first[first.label] == first.score
    assert by_second[second.label] == second.score
    alone = predict_texts(hybrid.second, ["fever"], batch_size=BATCH)[0]
    assert set(scores_by_class(alone, classes=hybrid.second.classes)) == {"a", "b", "d"}


@pytest.mark.parametrize(
    ("routing", "attributes", "values"),
    [
        (BY_GROUP, None, [None, None]),
        (BY_GROUP, {}, [None, None]),
        (BY_GROUP, {"sex": "f", "age": "9"}, ["f", "f"]),
        (BY_GROUP, [{"sex": "f"}, {"age": "9"}], ["f", None]),
        (Routing(by="cascade", threshold=0.5), {"sex": "f"}, [None, None]),
    ],
)
def test_each_text_gets_its_routing_value(
    routing: Routing, attributes: Any, values: list[str | None]
) -> None:
    body = json.dumps({"input": ["one", "two"], "attributes": attributes}).encode()
    rows = hybrid_rows(routing, parse_request(body, max_texts=100, max_text_bytes=100))
    assert rows == list(zip(["one", "two"], values, strict=True))
