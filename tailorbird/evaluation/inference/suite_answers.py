"""Answer the rows of a suite: generate answers, and compute the log-likelihoods of options."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tailorbird.config.suites import LIKELIHOOD_METRICS
from tailorbird.data.chat_template import Tokens
from tailorbird.data.copies import documents
from tailorbird.data.rows import Conversation, Rows, SuiteColumns
from tailorbird.evaluation.inference.chat_answers import Answer, answer_texts, answer_tokens
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.suite_metrics import choice_score, score_answer
from tailorbird.evaluation.statistics.text_metrics import words_sha256
from tailorbird.models.generation import log_likelihoods
from tailorbird.models.loading import LoadedChat
from tailorbird.registry.versions import VersionConfig

PRIVATE = "not_contains"  # metric of rows whose expectation is a text that must not be written


def predict_suite(loaded: LoadedChat[VersionConfig], rows: Rows) -> Predictions:
    """Return the predictions of a chat version for the rows of a suite.

    The kind `nearest` has no language model, so its rows with a metric of log-likelihoods have no
    score.
    """
    positions = generated_positions(rows)
    answers: list[Answer] = []
    if positions:
        answers = answer_texts(loaded, rows.take(positions))
    return suite_predictions(
        loaded.version.kind,
        rows=rows,
        answers=dict(zip(positions, answers, strict=True)),
        likelihoods={} if loaded.model is None else _likelihoods(loaded, rows),
    )


def generated_positions(rows: Rows) -> list[int]:
    """Return the positions of the rows of a suite whose answers are generated."""
    metrics = suite_of(rows).metrics
    return [position for position, metric in enumerate(metrics) if metric not in LIKELIHOOD_METRICS]


def suite_predictions(
    model: str,
    *,
    rows: Rows,
    answers: Mapping[int, Answer],
    likelihoods: Mapping[int, tuple[Sequence[float], float]] | None = None,
) -> Predictions:
    """Return scores and hashes of the answers to a suite, from the values of each row by position.

    `likelihoods` has the log-likelihoods of a row's options and the confidence in the likeliest
    one. They are stored as `logprobs`. Rows with the same prompt and options share a cluster. A row
    with neither an answer nor log-likelihoods has the score NaN: the model cannot answer it.

    Rows with the metric `not_contains` have constant hashes: an unsalted hash of a short private
    text can be reversed.
    """
    suite = suite_of(rows)
    likelihoods = likelihoods or {}
    scores = np.full(len(rows), np.nan)
    confidences = np.zeros(len(rows))
    labels = _hashes(rows.labels, metrics=suite.metrics)
    outputs = [words_sha256("")] * len(rows)
    logprobs: list[tuple[float, ...]] = [()] * len(rows)
    columns = zip(suite.metrics, suite.options, rows.labels, strict=True)
    for position, (metric, options, expectation) in enumerate(columns):
        if position in answers:
            answer = answers[position]
            scores[position] = score_answer(
                answer.text, metric=metric, expectation=expectation, options=options
            )
            confidences[position] = answer.confidence
            [outputs[position]] = _hashes([answer.text], metrics=[metric])
        elif position in likelihoods:
            values, confidences[position] = likelihoods[position]
            scores[position] = choice_score(
                values, metric=metric, options=options, expectation=expectation
            )
            outputs[position] = words_sha256(options[int(np.argmax(values[: len(options)]))])
            logprobs[position] = tuple(values)
    pairs = zip(rows.texts, suite.options, strict=True)
    questions = tuple("\n".join((text, *options)) for text, options in pairs)
    return Predictions(
        model=model,
        row_ids=rows.row_ids,
        labels=labels,
        outputs=tuple(outputs),
        scores=scores,
        confidences=confidences,
        calibrated=confidences,
        groups=rows.groups,
        clusters=documents(replace(rows, texts=questions, conversations=None)),
        logprobs=tuple(logprobs) if likelihoods else None,
    )


def _hashes(texts: Sequence[str], *, metrics: Sequence[str]) -> tuple[str, ...]:
    """Return the hash of each text, and that of an empty text for a private one."""
    pairs = zip(texts, metrics, strict=True)
    return tuple(words_sha256("" if metric == PRIVATE else text) for text, metric in pairs)


def suite_of(rows: Rows) -> SuiteColumns:
    """Return the columns of a suite's rows."""
    assert rows.suite is not None
    return rows.suite


def _likelihoods(
    loaded: LoadedChat[VersionConfig], rows: Rows
) -> dict[int, tuple[tuple[float, ...], float]]:
    """Return, by position, the log-likelihoods in nats of the options of each row that needs them,
    and the confidence.

    An option is scored as an answer with its end-of-turn token. The confidence is exp of the mean
    log-probability of the likeliest option's tokens. The options after a counterpart follow those
    after the prompt.
    """
    suite = suite_of(rows)
    positions: list[int] = []  # of the row of each option
    tokens: list[Tokens] = []
    for position, (turns, metric) in enumerate(zip(rows.turns, suite.metrics, strict=True)):
        if metric not in LIKELIHOOD_METRICS:
            continue
        prompts: list[Conversation] = [turns]
        if metric == "same_choice":
            prompts.append((("user", suite.counterparts[position]),))
        options = suite.options[position]
        for prompt in prompts:
            positions += [position] * len(options)
            tokens += answer_tokens(loaded, prompt, answers=options)
    if not tokens:
        return {}
    assert loaded.model is not None
    means = log_likelihoods(loaded.model, tokens, pad_id=int(loaded.tokenizer.pad_token_id))
    sums = means * [row.assistant_mask.sum() for row in tokens]
    result = {}
    for position in dict.fromkeys(positions):
        is_option = np.array(positions) == position
        values = sums[is_option]
        best = int(np.argmax(values[: len(suite.options[position])]))
        result[position] = (tuple(values.tolist()), float(np.exp(means[is_option][best])))
    return result
