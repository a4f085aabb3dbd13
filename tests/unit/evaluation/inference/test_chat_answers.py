"""Answers in a response format (evaluation, validation at ZeRO stage 3 and batch jobs with one
model), and their predictions."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from serving.offline import InputRow, offline_model
from tailorbird.config.formats.response_format import (
    ChoiceFormat,
)
from tailorbird.data.rows import Rows, SuiteColumns
from tailorbird.evaluation.inference.chat_answers import Answer, answer_rows
from tailorbird.evaluation.inference.row_predictions import label_predictions
from tailorbird.models.causal_lm import ChatModel
from tailorbird.models.loading import LoadedChat
from tailorbird.registry.versions import Prompting
from tests import build
from tests.unit.byte_level import language_model, tokenizer
from tests.unit.serving.batch_jobs.test_scoring import version

TOKENIZER = tokenizer()
LM = language_model()
LIMIT = 40
ROWS = build.rows(("how old", "is it", "x", "yes or no"), chat=True)
CHOICE = ChoiceFormat(type="choice", choice=("yes", "no", "not sure"))


def prompting_of(format: Any) -> Prompting:
    return Prompting(system=None, max_new_tokens=LIMIT, response_format=format)


def answers_of(format: Any, **columns: Any) -> list[Answer]:
    rows = replace(ROWS, **columns)
    return answer_rows(ChatModel(LM), rows, tokenizer=TOKENIZER, prompting=prompting_of(format))


def test_answers_to_suites_have_no_format() -> None:
    empty = ("",) * len(ROWS)
    suite = SuiteColumns(("contains",) * len(ROWS), ((),) * len(ROWS), empty, empty)
    assert answers_of(CHOICE, suite=suite) == answers_of(None)


def test_a_batch_answers_as_the_evaluation() -> None:
    prompting = prompting_of(CHOICE)
    loaded = LoadedChat(ChatModel(LM), TOKENIZER, prompting, version(prompting))
    rows = [InputRow(turns, "row") for turns in ROWS.turns]
    answers = offline_model(loaded, batch_size=4).answer(rows)
    evaluated = answers_of(CHOICE)
    assert {answer.text for answer in evaluated} <= set(CHOICE.choice)
    assert [answer.text for answer in answers] == [answer.text for answer in evaluated]
    confidences = [answer.confidence for answer in evaluated]
    assert [answer.confidence for answer in answers] == pytest.approx(confidences, abs=1e-5)
    assert {answer.finish_reason for answer in answers} == {"stop"}


def test_rows_with_the_same_text_share_a_cluster_unless_split_keys_define_clusters() -> None:
    def clusters_of(rows: Rows) -> tuple[str, ...] | None:
        ones = np.ones(len(rows))
        return label_predictions(
            "probe", rows=rows, outputs=rows.labels, confidences=ones, calibrated=ones
        ).clusters

    texts = ("One text", "another", "one  TEXT")
    assert clusters_of(build.rows(texts[:2])) is None
    assert clusters_of(build.rows(texts)) == ("0", "1", "0")
    keys = ("patient 3", "patient 9", "patient 9")
    assert clusters_of(build.rows(texts, split_keys=keys)) == ("0", "1", "1")
