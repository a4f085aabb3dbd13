"""Predictions of hybrids equal those of the selected model alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from serving.engines.classify import Prediction, hybrid_rows, predict_texts, scores_by_class
from serving.http.schemas import ClassifyRequest
from serving.offline import InputRow, offline_hybrid, offline_model
from serving.replica.classifier import _result
from tailorbird.evaluation.inference.predict import _predict_labels
from tailorbird.models.loading import LoadedClassifier
from tailorbird.registry.hybrid_routing import Routing
from tailorbird.registry.hybrids import hybrid_config
from tailorbird.registry.versions import ModelVersion
from tests.build import rows, version
from tests.unit.serving.engines.tiny_versions import (
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


def test_the_label_is_the_class_with_the_highest_score_with_offsets_too(
    hybrid: LoadedHybrid,
) -> None:
    before = predict_texts(hybrid.first, TEXTS, batch_size=BATCH)
    offsets = {"offsets": (0.0, 1e3, 0.0)}
    decided: Any = replace(hybrid.first, version=hybrid.first.version.model_copy(update=offsets))
    after = predict_texts(decided, TEXTS, batch_size=BATCH)
    for old, new in zip(before, after, strict=True):
        assert old.score == max(old.scores)
        assert (new.label, new.score) == ("y", max(new.scores))
        assert new.score > 0.99
        assert _result(new, version=decided.version)["score"] == new.score
    evaluated = _predict_labels(decided, rows(TEXTS, ["a"] * len(TEXTS)))
    assert list(evaluated.outputs) == ["y"] * len(TEXTS)
    served = [prediction.score for prediction in after]
    np.testing.assert_array_equal(evaluated.calibrated, served)


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
    request = ClassifyRequest(input=["one", "two"], attributes=attributes)
    assert hybrid_rows(routing, request) == list(zip(["one", "two"], values, strict=True))
