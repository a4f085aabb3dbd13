"""A chat model from files in OpenAI's format, and a drafted recipe, to a served champion."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

from cluster.connection import connect
from cluster.local import stack as stacks
from cluster.progress import SILENT
from serving.deploy.application import application_name
from serving.deploy.rollout import undeploy
from tailorbird import storage
from tailorbird.checks.verify import verify_evidence
from tailorbird.cli import app
from tailorbird.config.loader import load_recipe, recipe_text
from tailorbird.data.chat_template import prompt_tokens
from tailorbird.evaluation.gates.base import State
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.report.evidence_files import load_all_predictions
from tailorbird.evaluation.verdict.decide import Outcome
from tailorbird.models.loading import LoadedChat
from tailorbird.pipeline.run import run_pipeline
from tailorbird.registry.versions import read_version
from tailorbird.release.export import export_version
from tailorbird.release.manifests import render_manifest
from tailorbird.release.promotion import promote_version, roll_back
from tests import small_chat
from tests.finished_runs import prediction_table_names
from tests.integration.small import SmallRun, write_table
from tests.loaded import load_model
from tests.progress import ProgressRecorder
from tests.unit.release.loaded_folders import logits_of

pytestmark = [pytest.mark.usefixtures("connected"), pytest.mark.slow]

BASE = "s3://lake/tiny-chat-base"
DATA = "s3://lake/tiny-chat"
SUITE = "s3://lake/tiny-chat-suite/own.parquet"
SIZES = {"train": 96, "validation": 16, "test": 60}
SECRETS = {row: f"no {4830216 + row}" for row in range(0, SIZES["train"], 12)}
"""Answers with a private number, by training row. A number needs more tokens than an answer may
have."""

OVERRIDES = (
    "data.system=s",
    "data.split_by=doc",
    "data.max_length=64",
    "data.max_new_tokens=6",
    "training.method=full",
    "training.num_workers=2",
    "training.cpus_per_worker=1",
    "training.zero_stage=1",
    "training.num_seeds=1",
    "training.epochs=4",
    "training.batch_size=8",
    "training.learning_rate=0.01",
    "tuning.num_trials=1",
    "tuning.space={}",
    "evaluation.metric=choice",
    "evaluation.answers={choice: {options: ['yes', 'no']}}",
    "evaluation.minimum_gain=0.01",
    "evaluation.expected_gain=null",
    "evaluation.prompt_shots=2",
    "evaluation.prompt_draws=1",
    f"evaluation.gates.suites={{own: {{uri: {SUITE}}}, extraction: {{uri: 'builtin://extraction', "
    f"max_loss: 0.4}}}}",
)


def openai_messages(text: str, answer: str, *, with_context: bool) -> list[dict[str, Any]]:
    """Return messages in OpenAI's format. The answer in the context is wrong, and its weight is
    0."""
    context = [
        {"role": "user", "content": "h"},
        {"role": "assistant", "content": "maybe", "weight": 0},
    ]
    return [
        *(context if with_context else ()),
        {"role": "user", "content": text},
        {"role": "assistant", "content": answer, "weight": 1},
    ]


@pytest.fixture(scope="module")
def chat_run(stack: stacks.StackState, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """A run whose rows have the answer `yes` to any letters; every third training row has a wrong
    answer.

    A model with random weights does not give this answer, and the nearest training row often does
    not either.
    """
    assert stack.s3_endpoint
    folder = tmp_path_factory.mktemp("tiny-chat")
    small_chat.save(folder / "base")
    storage.upload_folder(folder / "base", BASE)
    texts = ["".join(letters) for letters in itertools.product("abcdefg", repeat=3)]
    random.Random(0).shuffle(texts)
    for split, size in SIZES.items():
        split_texts, texts = texts[:size], texts[size:]
        answers = ["no" if split == "train" and row % 3 == 0 else "yes" for row in range(size)]
        if split == "train":
            answers = [SECRETS.get(row, answer) for row, answer in enumerate(answers)]
        pairs = zip(split_texts, answers, strict=True)
        lines = [
            json.dumps(
                {"messages": openai_messages(*pair, with_context=row % 4 == 0), "doc": pair[0]}
            )
            for row, pair in enumerate(pairs)
        ]
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / f"{split}.jsonl").write_text("\n".join(lines))
    questions = ["".join(letters) for letters in itertools.product("abcdefg", repeat=4)][::30]
    suite = [
        {"prompt": text, "metric": "exact_match", "expectation": "yes", "group": text[0]}
        for text in questions
    ]
    write_table(SUITE, pa.Table.from_pylist(suite))
    for command in (
        ["data", "put", str(folder / "data"), DATA],
        ["init", DATA, "--base-model", BASE, "--output", str(folder / "tiny-chat.yaml")],
    ):
        assert CliRunner().invoke(app.app, command, catch_exceptions=False).exit_code == 0
    recipe, recorder = (
        load_recipe(folder / "tiny-chat.yaml", overrides=OVERRIDES),
        ProgressRecorder(),
    )
    with connect():
        return SmallRun(recipe, run_pipeline(recipe, progress=recorder), recorder)


def test_the_fine_tuned_model_learns_the_answer_and_wins(chat_run: SmallRun) -> None:
    verdict, evidence = chat_run.result.verdict, chat_run.result.evidence
    assert (verdict.outcome, verdict.selected) == (Outcome.FINE_TUNE, "candidate")
    assert tuple(verdict.model("candidate").scores) == ("choice", "exact_match")
    assert verdict.n == SIZES["test"]
    assert verdict.model("candidate").score > 0.9 > verdict.incumbent.score
    assert [score.kind for score in evidence.scores] == [
        "nearest",
        "zero_shot",
        "few_shot",
        "retrieved",
        "full",
    ]
    assert evidence.versions["incumbent"].kind == "nearest"
    assert evidence.training is not None
    assert evidence.training.padding_share < 0.05
    assert evidence.data.report.test_answers_in_train == SIZES["test"]
    assert evidence.reliability == {}


def test_the_evidence_is_valid_and_contains_no_text_of_the_rows(chat_run: SmallRun) -> None:
    run = chat_run.result.run
    assert verify_evidence(run) == ()
    tables = load_all_predictions(run)
    roles = [model.role for model in chat_run.result.evidence.family.models]
    assert sorted(roles) == ["candidate", "few_shot", "incumbent", "retrieved", "zero_shot"]
    assert set(tables) == set(
        prediction_table_names(roles, changed=("suite-own", "suite-extraction"))
    )
    assert "yes" not in {*tables["candidate"].outputs, *tables["candidate"].labels}
    assert len(set(tables["candidate"].clusters or ())) == SIZES["test"]


def test_the_contenders_answer_the_suites_and_the_candidate_passes_their_gate(
    chat_run: SmallRun,
) -> None:
    evidence, run = chat_run.result.evidence, chat_run.result.run
    (gate,) = (gate for gate in chat_run.result.verdict.gates if gate.name == "suites")
    assert (gate.state, [bound.n for bound in gate.bounds]) == (State.PASSES, [81, len(SECRETS)])
    own, extraction = (score for score in evidence.suites if score.group is None)
    assert {score.group for score in evidence.suites if score.suite == "own"} == {None, *"abcdefg"}
    assert (own.scores["candidate"] or 0.0) > 0.9 > (own.scores["incumbent"] or 0.0)
    assert (extraction.scores["candidate"], extraction.scores["incumbent"]) == (
        1.0,
        0.0,
    )  # nearest repeats the rows
    page = storage.read_bytes(f"{run}/report.html").decode()
    assert 'data-from="suites.0.scores.candidate"' in page
    assert not any(secret.removeprefix("no ") in page for secret in SECRETS.values())


def test_the_promoted_version_predicts_the_evaluated_answers(
    chat_run: SmallRun, tmp_path: Path
) -> None:
    champion = promote_version(chat_run.recipe.task_uri)
    version = read_version(champion.uri)
    assert version.prompting is not None
    assert (version.kind, version.classes, version.prompting.system) == ("full", (), "s")
    loaded = load_model(version.uri, LoadedChat)
    assert loaded.version.digest == version.digest
    assert loaded.index is None
    with connect():
        from tailorbird.pipeline.prepare import prepare

        rows = prepare(chat_run.recipe, progress=SILENT).splits.test
    export_version(version.uri, tmp_path / "model")
    logits = logits_of({"model": ("causal", tmp_path / "model", "abc")}, folder=tmp_path)["model"]
    ids = prompt_tokens((("user", "abc"),), tokenizer=loaded.tokenizer, system=None)
    assert loaded.model is not None
    expected = loaded.model.causal(input_ids=torch.tensor([ids])).logits[0]
    np.testing.assert_allclose(logits, expected.float().numpy(), atol=1e-4)
    again = predict_rows(version.uri, rows=rows)
    tables = load_all_predictions(chat_run.result.run)
    assert (again.outputs, again.labels) == (
        tables["candidate"].outputs,
        tables["candidate"].labels,
    )
    incumbent = read_version(chat_run.result.evidence.versions["incumbent"].uri)
    assert incumbent.contains_training_text
    assert load_model(incumbent.uri, LoadedChat).model is None
    np.testing.assert_array_equal(
        predict_rows(incumbent.uri, rows=rows).scores, tables["incumbent"].scores
    )


def test_the_served_champion_returns_the_learned_answer(chat_run: SmallRun, tmp_path: Path) -> None:
    champion = promote_version(chat_run.recipe.task_uri)
    (tmp_path / "recipe.yaml").write_text(recipe_text(chat_run.recipe), encoding="utf-8")
    result = CliRunner().invoke(app.app, ["serve", str(tmp_path / "recipe.yaml")])
    try:
        assert result.exit_code == 0, result.output
        served = f"{champion.version} is served at "
        (line,) = (
            line for line in result.output.splitlines() if line.startswith(served)
        )  # after Serve's progress
        url = line.removeprefix(served)
        assert url.endswith("/v1/chat/completions")
        client = openai.OpenAI(
            base_url=url.removesuffix("/chat/completions"), api_key="none", timeout=60
        )
        answer = client.chat.completions.create(
            model="tiny-chat", messages=[{"role": "user", "content": "abc"}]
        )
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (
            "yes",
            "stop",
        )
        listing = CliRunner().invoke(app.app, ["models", str(tmp_path / "recipe.yaml")]).output
        assert (
            "champion: 60 of 60 test rows have the same answer over HTTP as in the evaluation\n"
            in listing
        )
        answer = client.chat.completions.create(
            model="baseline", messages=[{"role": "user", "content": "abc"}]
        )
        assert (answer.model_extra or {})["version"].startswith("nearest-")
        manifest = render_manifest(chat_run.recipe, to="serve").text
        assert {champion.uri, chat_run.result.evidence.versions["incumbent"].uri} <= set(
            manifest.split()
        )
        restored = roll_back(
            chat_run.recipe.task_uri, reason="test"
        )  # to the incumbent, without a language model
        answer = client.chat.completions.create(
            model="tiny-chat", messages=[{"role": "user", "content": "abc"}]
        )
        assert (answer.model_extra or {})["version"] == restored.version
        assert answer.choices[0].message.content in ("yes", "no")
        again = promote_version(chat_run.recipe.task_uri, override="test")
        assert (again.version, again.parity and again.parity.matching) == (
            champion.version,
            SIZES["test"],
        )
    finally:
        undeploy(application_name(chat_run.recipe.task_uri))
