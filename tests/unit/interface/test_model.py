"""A loaded version predicts as the evaluation and the service do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tailorbird
from serving.offline import offline_hybrid, offline_model
from tailorbird.data.rows import DataError
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.interface.model import Model
from tailorbird.models.causal_lm import ChatModel
from tailorbird.models.loading import LoadedChat
from tailorbird.registry.versions import ModelVersion, Prompting, RegistryError, register
from tests import small_chat
from tests.unit.evaluation.test_mix import CLASSES, ROWS, TEXTS, artifact
from tests.unit.serving.batch_jobs.test_scoring import version
from tests.unit.serving.engines.test_classify import TEXTS as HYBRID_TEXTS
from tests.unit.serving.engines.test_classify import LoadedHybrid, hybrid

__all__ = ["hybrid"]  # a fixture


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URI of a registered bag of words."""
    folder = tmp_path_factory.mktemp("model")
    artifact(folder / "bag", kind="bag_of_words", base=folder)
    return register((folder / "registry" / "task").as_uri(), folder / "bag").uri


@pytest.fixture(scope="module")
def chat() -> Model:
    prompting = Prompting(system="be brief", max_new_tokens=8)
    loaded: Any = LoadedChat(
        ChatModel(small_chat.language_model()),
        small_chat.tokenizer(),
        prompting,
        version(prompting),
    )
    return Model(
        offline_model(loaded, batch_size=4), uri=loaded.version.uri, kind=loaded.version.kind
    )


def test_outputs_have_the_type_of_the_label_column(
    registered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelVersion, "typed_label", lambda _version, label: CLASSES.index(label))
    evaluated = predict_rows(registered, rows=ROWS).outputs
    answers = tailorbird.load(registered).predict(list(TEXTS))
    assert [answer.output for answer in answers] == [CLASSES.index(label) for label in evaluated]


def test_a_loaded_classifier_has_the_outputs_and_confidences_of_the_evaluation(
    registered: str,
) -> None:
    model = tailorbird.load(f"{registered}/")
    assert (model.uri, model.kind) == (registered, "bag_of_words")
    assert repr(model) == f"Model(uri={registered!r}, kind='bag_of_words')"
    answers, evaluated = model.predict(list(TEXTS)), predict_rows(registered, rows=ROWS)
    assert tuple(answer.output for answer in answers) == evaluated.outputs
    np.testing.assert_allclose([answer.confidence or 0 for answer in answers], evaluated.calibrated)
    assert [answer.input for answer in answers] == list(TEXTS)
    one = model.predict(TEXTS[2])
    assert one.output == evaluated.outputs[2]
    assert one.scores is not None
    assert set(one.scores) == set(CLASSES)
    assert sum(one.scores.values()) == pytest.approx(1)
    assert model.predict([]) == ()


def test_a_damaged_version_is_not_loaded(registered: str, tmp_path: Path) -> None:
    with pytest.raises(RegistryError):
        tailorbird.load(f"{tmp_path.as_uri()}/task/versions/nothing-1")
    with pytest.raises(ValueError, match="give texts instead of conversations"):
        tailorbird.load(registered).predict([[{"role": "user", "content": "fever"}]])


@pytest.mark.parametrize("groups", [["f", "m", None, "f", "m", "f"]])
def test_a_hybrid_routes_by_the_groups(hybrid: LoadedHybrid, groups: Sequence[str | None]) -> None:
    parts = (offline_model(part, batch_size=4) for part in (hybrid.first, hybrid.second))
    model = Model(offline_hybrid(hybrid.version, *parts), uri="s3://hybrid", kind="hybrid")
    expected = hybrid.predict(list(zip(HYBRID_TEXTS, groups, strict=True)))
    answers = model.predict(list(HYBRID_TEXTS), groups=groups)
    assert [(answer.output, answer.answered_by) for answer in answers] == [
        (prediction.label, prediction.answered_by) for prediction in expected
    ]
    assert {answer.answered_by for answer in answers} == {"first", "second"}
    for wrong in (None, groups[:2]):
        with pytest.raises(
            ValueError,
            match="groups: give one value of the column 'sex' per input, that is 6 values",
        ):
            model.predict(list(HYBRID_TEXTS), groups=wrong)


def test_a_chat_model_answers_prompts_and_conversations_alike(chat: Model) -> None:
    prompts = ["abc", "what is a dog"]
    answers = chat.predict([prompts[0], [{"role": "user", "content": prompts[1]}]])
    assert [answer.input for answer in answers] == prompts
    alone = [chat.predict(prompt) for prompt in prompts]
    assert [answer.output for answer in answers] == [answer.output for answer in alone]
    assert all(
        answer.finish_reason in ("stop", "length") and 0 < (answer.confidence or 0) <= 1
        for answer in answers
    )
    with pytest.raises(DataError, match="inputs: row 0 does not end with a user message"):
        chat.predict([[{"role": "assistant", "content": "x"}]])
    with pytest.raises(ValueError, match="a conversation is a list of messages"):
        chat.predict([{"role": "user", "content": "x"}])  # type: ignore[list-item]
