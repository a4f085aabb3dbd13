"""A tiny chat model answers suites, in all ways in which a version answers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.data.chat_template import conversation_tokens
from tailorbird.data.rows import Rows, SuiteColumns
from tailorbird.evaluation.baselines.chat import fit_prompt_baselines, store_prompt_baselines
from tailorbird.evaluation.inference.chat_answers import Answer
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.inference.suite_answers import suite_predictions
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.text_metrics import words_sha256
from tailorbird.models.generation import log_likelihoods
from tailorbird.models.loading import LoadedChat, load_artifact
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.versions import Prompting, write_config
from tests import build
from tests.build import version_config
from tests.endpoint_server import MODEL, Reply, completion, endpoint_server, question
from tests.small_chat import save

PROMPTING = Prompting(system="s", max_new_tokens=4)


def suite(*rows: tuple[str, str, str, tuple[str, ...], str]) -> Rows:
    """Return a suite from prompt, metric, expectation, options and counterpart of each row."""
    prompts, metrics, expectations, options, counterparts = (
        tuple(column) for column in zip(*rows, strict=True)
    )
    return build.rows(
        prompts,
        expectations,
        chat=True,
        groups={"group": ("a",) * len(rows)},
        suite=SuiteColumns(metrics, options, counterparts, ("",) * len(rows)),
    )


SUITE = suite(
    ("blue", "forced_choice", "no", ("yes", "no"), ""),
    ("blue?", "contains", "zebra", (), ""),
    ("red", "same_choice", "", ("yes", "no"), "red"),
    ("red one", "same_choice", "", ("yes", "no"), "a blue one"),
)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of the folder of the chat baselines of a tiny model."""
    folder = tmp_path_factory.mktemp("chat")
    save(folder / "base")
    base = (folder / "base").as_uri()
    train = build.pairs((("a zebra", "zebra"), ("b", "x")), chat=True)
    results = fit_prompt_baselines(
        base,
        train=train,
        validation=train,
        prompting=PROMPTING,
        config=EvaluationConfig(metric="token_f1", prompt_shots=1, prompt_draws=1),
        seed=0,
    )
    config = version_config(base_model=base, prompting=PROMPTING)
    store_prompt_baselines((folder / "stored").as_uri(), results, config=config)
    return (folder / "stored").as_uri()


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


def test_a_model_without_language_model_answers_only_the_rows_that_it_can(artifacts: str) -> None:
    table = predict_rows(f"{artifacts}/nearest", rows=SUITE)
    np.testing.assert_array_equal(np.isnan(table.scores), [True, False, True, True])


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
        return completion(f"a zebra: {question(body)}", logprobs=(-1.0, -1.0))

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
