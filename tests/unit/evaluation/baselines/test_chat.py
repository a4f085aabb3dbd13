"""Chat baselines: settings that are selected on validation, stored artifacts with the same answers,
and their answers to suites."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.data.chat_template import conversation_tokens
from tailorbird.data.rows import Rows, SuiteColumns
from tailorbird.evaluation.baselines import chat
from tailorbird.evaluation.baselines.baseline import select_incumbent
from tailorbird.evaluation.baselines.chat import (
    ChatBaselines,
    fit_prompt_baselines,
    store_prompt_baselines,
)
from tailorbird.evaluation.inference.chat_answers import Answer
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.inference.suite_answers import suite_predictions
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.scoring import score_table
from tailorbird.evaluation.statistics.text_metrics import words_sha256
from tailorbird.models.generation import log_likelihoods
from tailorbird.models.loading import LoadedChat, PretrainedModels, load_artifact
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.versions import (
    PinnedEncoder,
    Prompting,
    VersionConfig,
    write_config,
)
from tests import build, small_encoder
from tests.build import pairs, version_config
from tests.endpoint_server import MODEL, Reply, completion, endpoint_server, question
from tests.small_chat import save

PAIRS = (("blue sky", "sky"), ("blue skies", "sky"), ("green leaf", "leaf"), ("red rose", "rose"))
VALIDATION = (("a blue sky", "sky"), ("leaf of green", "leaf"), ("", "sky"), ("zzz", "rose"))
PROMPTING = Prompting(system="s", max_new_tokens=3)


def rows_of(content: tuple[tuple[str, str], ...]) -> Rows:
    return pairs(content, chat=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a tiny chat model with a context of 256 tokens."""
    folder = tmp_path_factory.mktemp("chat") / "base"
    save(folder)
    return folder.as_uri()


def fit(
    base: str,
    *,
    train: tuple[tuple[str, str], ...] = PAIRS,
    validation: tuple[tuple[str, str], ...] = VALIDATION,
    encoder: PinnedEncoder | None = None,
    **fields: object,
) -> ChatBaselines:
    config = EvaluationConfig(metric="token_f1", prompt_shots=1, prompt_draws=1, **fields)  # type: ignore[arg-type]
    return fit_prompt_baselines(
        base,
        train=rows_of(train),
        validation=rows_of(validation),
        prompting=PROMPTING,
        config=config,
        seed=0,
        encoder=encoder,
    )


def config_of(base: str) -> VersionConfig:
    return version_config(base_model=base, prompting=PROMPTING)


@pytest.fixture(scope="module")
def artifacts(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of the folder of the stored baselines."""
    uri = (tmp_path_factory.mktemp("stored") / "baselines").as_uri()
    store_prompt_baselines(uri, fit(base), config=config_of(base))
    return uri


def test_the_best_number_of_retrieved_examples_that_fit_the_prompt_is_selected(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def answer(_: object, rows: Rows, *, prompting: Prompting, **__: object) -> list[Answer]:
        tried.append(prompting.retrieval.num_examples if prompting.retrieval else 0)
        return [Answer(str(tried[-1]), 1.0)] * len(rows)

    def score(_: str, outputs: list[str], *, validation: Rows) -> float:
        assert len(outputs) == len(validation)
        return {"1": 0.2, "2": 0.9}.get(outputs[0], 0.1)

    monkeypatch.setattr(chat, "answer_rows", answer)
    monkeypatch.setattr(chat, "_score", score)
    baseline, prompting = fit(base).baselines[-1]
    assert baseline.validation == 0.9
    assert tried == [0, 0, 1, 2, 4]
    assert prompting.retrieval is not None
    assert prompting.retrieval.num_examples == 2
    assert prompting.retrieval.max_prompt_tokens == 253  # of a context of 256


def test_stored_baselines_have_their_validation_scores(base: str, artifacts: str) -> None:
    baselines = [baseline for baseline, _ in fit(base).baselines]
    kinds = ["nearest", "zero_shot", "few_shot", "retrieved"]
    assert [baseline.kind for baseline in baselines] == kinds
    assert baselines[0].validation == 0.75  # wrong in the last row, which has no known n-gram
    assert select_incumbent(baselines).kind == "nearest"
    tables = {}
    for baseline in baselines:
        table = predict_rows(f"{artifacts}/{baseline.kind}", rows=rows_of(VALIDATION))
        assert score_table("token_f1", table) == pytest.approx(baseline.validation)
        tables[baseline.kind] = table
    nearest = tables["nearest"]
    np.testing.assert_array_equal(nearest.confidences[2:], [0, 0])
    [copy] = predict_rows(f"{artifacts}/nearest", rows=rows_of(PAIRS[:1])).confidences
    assert 0 < nearest.confidences[0] < copy == pytest.approx(1, abs=1e-6)


def test_artifacts_with_the_same_language_model_share_its_memory(artifacts: str) -> None:
    pretrained: PretrainedModels = {}
    uris = [f"{artifacts}/{kind}" for kind in ("zero_shot", "few_shot", "retrieved")]
    together, alone = (
        [load_artifact(uri, pretrained=known) for uri in uris] for known in (pretrained, None)
    )
    models = [loaded.model for loaded in (*together, *alone) if isinstance(loaded, LoadedChat)]
    assert models[0] is models[1] is models[2]
    assert len({id(model) for model in models[2:]}) == 4
    assert len(pretrained) == 1


SYNONYMS = (("azure", "sky"), ("azure a", "sky"), ("leaf of green", "leaf"))
"""Validation rows, most of which share no n-gram with the training row that answers them."""


def test_an_encoder_is_used_with_the_weight_that_is_best_on_validation(
    base: str, tmp_path: Path
) -> None:
    encoder = small_encoder.save(tmp_path / "encoder")
    # The most frequent answer is not that of "azure".
    train = (*PAIRS, ("red leaf", "leaf"), ("rose leaf", "leaf"))
    without = fit(base, train=train, validation=SYNONYMS)
    results = fit(base, train=train, validation=SYNONYMS, encoder=encoder)
    by_kind = {
        baseline.kind: (baseline, prompting.retrieval) for baseline, prompting in results.baselines
    }
    nearest, retrieval = by_kind["nearest"]
    assert without.baselines[0][0].validation < nearest.validation == 1
    assert "by embeddings x 0.5 + n-grams x 0.5" in nearest.note
    for settings in (retrieval, by_kind["retrieved"][1]):
        assert settings is not None
        assert settings.encoder == encoder.model_copy(update={"dtype": results.dtype})
        assert settings.embedding_weight == 0.5
    stored = (tmp_path / "stored").as_uri()
    store_prompt_baselines(stored, results, config=config_of(base))
    for kind in ("nearest", "retrieved"):
        table = predict_rows(f"{stored}/{kind}", rows=rows_of(SYNONYMS))
        assert score_table("token_f1", table) == pytest.approx(by_kind[kind][0].validation)


def test_an_encoder_that_is_no_better_on_validation_is_not_served(
    base: str, tmp_path: Path
) -> None:
    validation = VALIDATION[:2]  # n-grams find the answers of these rows
    results = fit(base, validation=validation, encoder=small_encoder.save(tmp_path / "encoder"))
    baseline, prompting = results.baselines[0]
    assert "by embeddings x 0 + n-grams x 1" in baseline.note
    assert prompting.retrieval is not None
    assert prompting.retrieval.encoder is None
    assert results.index_files == fit(base, validation=validation).index_files


def suite(*rows: tuple[str, str, str, tuple[str, ...], str]) -> Rows:
    """Return a suite from prompt, metric, expectation, options and counterpart of each row."""
    prompts, metrics, expectations, options, counterparts = zip(*rows, strict=True)
    table = build.rows(prompts, expectations, chat=True, groups={"group": ("a",) * len(rows)})
    starts = ("",) * len(rows)
    return replace(table, suite=SuiteColumns(metrics, options, counterparts, starts))


SUITE = suite(
    ("blue", "forced_choice", "no", ("yes", "no"), ""),
    ("blue?", "contains", "sky", (), ""),
    ("red", "same_choice", "", ("yes", "no"), "red"),
    ("red one", "same_choice", "", ("yes", "no"), "a blue one"),
)


def likelihood(uri: str, prompt: str, option: str) -> float:
    """Return the log-likelihood of an answer, from a pass of its own."""
    loaded = load_artifact(uri)
    assert isinstance(loaded, LoadedChat)
    assert loaded.model is not None
    row = conversation_tokens((("user", prompt),), option, tokenizer=loaded.tokenizer, system="s")
    return float(log_likelihoods(loaded.model, [row], pad_id=0)[0] * row.assistant_mask.sum())


def test_options_are_scored_by_their_likelihood_as_an_answer(artifacts: str) -> None:
    uri = f"{artifacts}/zero_shot"
    table = predict_rows(uri, rows=SUITE)
    expected = [likelihood(uri, "blue", option) for option in ("yes", "no")]
    assert table.logprobs_of(0) == pytest.approx(expected, rel=1e-4)
    shares = np.exp(expected) / np.exp(expected).sum()
    assert table.scores[0] == pytest.approx(shares[1], rel=1e-4)  # the right option is the second
    assert 0 < table.confidences[0] < 1
    pair = [
        likelihood(uri, prompt, option)
        for prompt in ("red one", "a blue one")
        for option in ("yes", "no")
    ]
    assert table.logprobs_of(3) == pytest.approx(pair, rel=1e-4)
    assert table.scores[2] == pytest.approx(1, abs=1e-4)
    assert 0 < table.scores[3] < 1
    assert table.logprobs_of(1) == ()
    assert Predictions.from_table(table.to_table()).logprobs_of(3) == pytest.approx(pair, rel=1e-4)


def test_the_answers_are_those_of_the_version_without_the_suite_after_their_start(
    artifacts: str,
) -> None:
    table = predict_rows(f"{artifacts}/zero_shot", rows=SUITE)
    plain = predict_rows(f"{artifacts}/zero_shot", rows=replace(SUITE, suite=None).take([1]))
    assert table.outputs[1] == plain.outputs[0]
    assert table.confidences[1] == plain.confidences[0]
    assert (table.model, table.groups) == ("zero_shot", {"group": ("a",) * 4})
    assert SUITE.suite is not None
    started = replace(SUITE, suite=replace(SUITE.suite, starts=("", "q", "", ""))).take([1])
    continued = predict_rows(f"{artifacts}/zero_shot", rows=started)
    assert continued.confidences[0] != plain.confidences[0]


def test_the_evidence_has_no_hash_of_a_private_span_or_of_an_answer_that_may_contain_it() -> None:
    rows = suite(("q", "not_contains", "123456", (), ""), ("q?", "contains", "a", (), ""))
    answers = {0: Answer("123456", 0.5), 1: Answer("a", 0.5)}
    table = suite_predictions("full", rows=rows, answers=answers)
    assert table.scores.tolist() == [0, 1]
    assert table.labels == table.outputs == (words_sha256(""), words_sha256("a"))


def test_an_endpoint_answers_the_rows_that_need_no_likelihoods_and_gets_no_other_request(
    tmp_path: Path,
) -> None:
    def reply(body: dict[str, Any], _: int) -> Reply:
        return completion(f"a sky: {question(body)}", logprobs=(-1.0, -1.0))

    with endpoint_server(reply) as server:
        uri = tmp_path / "task" / "stages" / "endpoint"
        uri.mkdir(parents=True)
        endpoint = Endpoint(url=server.url, model="m", reported_model=MODEL)
        config = version_config(kind="endpoint_zero_shot", prompting=PROMPTING, endpoint=endpoint)
        write_config(uri, config)
        table = predict_rows(uri.as_uri(), rows=SUITE)
        np.testing.assert_array_equal(table.scores, [np.nan, 1, np.nan, np.nan])
        assert table.confidences[1] == pytest.approx(np.exp(-1))
        assert [question(body) for body in server.bodies] == ["blue?"]
        assert np.isnan(predict_rows(uri.as_uri(), rows=SUITE.take([0])).scores).all()
        assert len(server.bodies) == 1
