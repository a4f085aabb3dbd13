"""Predictions of hybrids equal those of the selected model alone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engines.classify import Prediction, hybrid_rows, predict_texts, scores_by_class
from serving.http.schemas import parse_request
from serving.offline import InputRow, offline_hybrid, offline_model
from serving.replica.classifier import _result
from tailorbird.evaluation.inference.predict import _predict_labels
from tailorbird.models.loading import LoadedClassifier
from tailorbird.registry.hybrid_routing import Routing, routes_to_second
from tailorbird.registry.hybrids import hybrid_config
from tailorbird.registry.versions import ModelVersion
from tests.build import rows, version
from tests.unit.serving.engines.test_sharing import (
    BATCH,
    TEXTS,
    make_version,
    separate,
    tiny_bert,
)

__all__ = ["TEXTS"]
BY_GROUP = Routing(by="group", column="sex", values=("f",))


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
    base = tiny_bert(tmp_path_factory.mktemp("bert"))
    first, second = [
        separate(make_version(base, tmp_path_factory.mktemp(name), name=name), base)
        for name in ("a", "c")
    ]
    config = hybrid_config(first.version, second=second.version, routing=BY_GROUP)
    return LoadedHybrid(version("hybrid-1", digest="3", **dict(config)), first, second)


@pytest.mark.parametrize("by", ["group", "cascade"])
@given(
    rows=st.lists(
        st.tuples(st.sampled_from(TEXTS), st.sampled_from(["f", "m", "(none)", None])), max_size=12
    ),
    threshold=st.floats(0, 1),
)
def test_each_row_has_the_prediction_of_the_part_to_which_it_is_routed_alone(
    hybrid: LoadedHybrid, by: str, rows: list[tuple[str, str | None]], threshold: float
) -> None:
    texts = [text for text, _ in rows]
    alone = {
        "first": predict_texts(hybrid.first, texts, batch_size=BATCH),
        "second": predict_texts(hybrid.second, texts, batch_size=BATCH),
    }
    if by == "group":
        routing = BY_GROUP
        routed = routes_to_second(routing, groups=[group for _, group in rows])
    else:
        routing = Routing(by="cascade", threshold=threshold)
        confidences = [prediction.score for prediction in alone["first"]]
        routed = routes_to_second(routing, confidences=confidences)
    predictions = hybrid.routed_by(routing).predict(rows)
    for number, (prediction, to_second) in enumerate(zip(predictions, routed, strict=True)):
        name = "second" if to_second else "first"
        expected = alone[name][number]
        assert (prediction.answered_by, prediction.label) == (name, expected.label)
        np.testing.assert_allclose(prediction.scores, expected.scores, atol=1e-5)
        assert prediction.score == pytest.approx(expected.score, abs=1e-5)


def test_offsets_decide_for_a_less_probable_class_and_leave_the_scores(
    hybrid: LoadedHybrid,
) -> None:
    before = predict_texts(hybrid.first, TEXTS, batch_size=BATCH)
    offsets = {"offsets": (0.0, 1e3, 0.0)}
    decided: Any = replace(hybrid.first, version=hybrid.first.version.model_copy(update=offsets))
    after = predict_texts(decided, TEXTS, batch_size=BATCH)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old.scores, new.scores)
        assert (new.label, new.score) == ("y", new.scores[1])
        assert old.is_most_probable
        assert new.is_most_probable == (old.label == "y")
        result = _result(new, version=decided.version)
        assert result.get("most_probable", True) == new.is_most_probable
    assert "most_probable" not in _result(before[0], version=decided.version)
    evaluated = _predict_labels(decided, rows(TEXTS, ["a"] * len(TEXTS)))
    assert list(evaluated.outputs) == ["y"] * len(TEXTS)
    scores = [prediction.score for prediction in after]
    np.testing.assert_allclose(evaluated.calibrated, scores, rtol=1e-6)


def test_a_class_that_the_model_does_not_have_gets_probability_zero(hybrid: LoadedHybrid) -> None:
    for prediction, absent in zip(
        hybrid.predict([("fever", "m"), ("fever", "f")]), ("c", "a"), strict=True
    ):
        scores = scores_by_class(prediction, classes=hybrid.version.classes)
        assert set(scores) == {"x", "y", "a", "c"}
        assert scores[absent] == 0.0
        assert scores[prediction.label] == prediction.score


@pytest.mark.parametrize(
    ("routing", "attributes", "values"),
    [
        (BY_GROUP, None, [None, None]),
        (BY_GROUP, {"sex": "f", "age": "9"}, ["f", "f"]),
        (BY_GROUP, [{"sex": "f"}, {"age": "9"}], ["f", None]),
        (Routing(by="cascade", threshold=0.5), {"sex": "f"}, [None, None]),
    ],
)
def test_each_text_gets_its_routing_value(
    routing: Routing, attributes: Any, values: list[str | None]
) -> None:
    body = json.dumps({"input": ["one", "two"], "attributes": attributes}).encode()
    routed = hybrid_rows(routing, parse_request(body, max_texts=100, max_text_bytes=100))
    assert routed == list(zip(["one", "two"], values, strict=True))
