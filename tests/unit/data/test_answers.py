"""Metrics of structured answers, and their configuration."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from tailorbird.config.answers import AnswersConfig
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.data import answers as metrics
from tailorbird.data.answers import PatternTimeout, require_readable_answers
from tailorbird.data.rows import DataError, Splits
from tailorbird.evaluation.statistics.answer_metrics import per_row
from tests.build import rows


def score(answer: str, reference: str, **config: Any) -> float:
    [metric] = config
    answers = AnswersConfig.model_validate(config)
    return float(per_row(metric, outputs=[answer], references=[reference], config=answers)[0])


REFERENCE = '{"name": "Ann", "age": 40, "address": {"city": "Bonn", "zip": "1"}, "codes": [1, 2]}'


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (REFERENCE, 1.0),
        (f"```json\n{REFERENCE}\n```\n", 1.0),
        (
            '{"codes": [1, 2.0], "address": {"zip": "1", "city": "Bonn"}, "age": 40.0, "name": '
            '"Ann"}',
            1.0,
        ),
        (
            '{"name": "ann", "age": 40, "address": {"city": "Bonn", "zip": "1"}, "codes": [1, 2]}',
            0.8,
        ),
        ('{"name": "Ann", "age": 40, "address": {"city": "Bonn", "zip": 1}, "codes": [2, 1]}', 0.6),
        ('{"name": "Ann"}', 0.2),
        (REFERENCE[:-1] + ', "more": 1}', 5 / 6),
        ("{}", 0.0),
        ("[]", 0.0),
        (f"Here it is: {REFERENCE}", 0.0),
        (REFERENCE[:-1], 0.0),
        ('{"age": NaN}', 0.0),
        ('{"a":' * 100_000, 0.0),
    ],
)
def test_json_fields_is_the_share_of_equal_fields(answer: str, expected: float) -> None:
    assert score(answer, REFERENCE, json_fields={}) == pytest.approx(expected)


def test_json_fields_compares_the_given_paths_only() -> None:
    paths = ["/address/city", "/codes/1", "/unknown", "/a~1b"]
    equal = '{"address": {"city": "Bonn"}, "codes": [0, 2]}'
    third = '{"address": {"city": "Bonn"}, "unknown": 1}'
    assert score(equal, REFERENCE, json_fields={"paths": paths}) == 1
    assert score(third, REFERENCE, json_fields={"paths": paths}) == pytest.approx(1 / 3)
    assert score('{"a/b": true}', '{"a/b": 1}', json_fields={"paths": ["/a~1b"]}) == 0
    missing = {"paths": ["/f0", "/f1", "/f2"]}
    assert score('{"f0": 1}', '{"f0": 1, "f1": null}', json_fields=missing) == 0.5
    assert score("{}", "{}", json_fields=missing) == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("So it is 4.\n#### 42 ", 1.0), ("#### 43", 0.0), ("42", 0.0), ("#### 42\n#### 43", 1.0)],
)
def test_regex_compares_the_group_of_the_first_match(answer: str, expected: float) -> None:
    assert score(answer, "6 times 7\n#### 42", regex={"pattern": r"#### (.*)"}) == expected
    assert score(answer, "6 times 7\n#### 42", regex={"pattern": r"####\s*(?P<n>\d+)"}) == expected
    assert score("b", "a", regex={"pattern": "(a)|b"}) == 0  # the group is not in the match
    assert score("b", "b", regex={"pattern": "a|b"}) == 1


def test_a_regular_expression_that_does_not_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "PATTERN_SECONDS", 0.05)
    with pytest.raises(PatternTimeout):
        score("a" * 60 + "!", "a", regex={"pattern": r"((?:(a|aa)+)+)$"})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", None),
        ("１２３４．５", "1234.5"),
        ("+1.2345e3", "1234.5"),
        ("from 2019-2020", "2020"),
        ("minus \N{MINUS SIGN}5", "-5"),
        ("code N13.5", None),
        ("version 1.2.3", "1.2"),
        ("a list 1,2,3", None),
        ("12,50 \N{EURO SIGN}", None),
        ("1,000,00", None),
        ("100\N{NO-BREAK SPACE}000 km", None),
        ("1\N{RIGHT SINGLE QUOTATION MARK}000", None),
        ("options 3 4000", "4000"),
        ("the points (1,-5)", "-5"),
        ("5 cases of COVID-19", "5"),
        ("COVID\N{NON-BREAKING HYPHEN}19", None),
        ("1,000,000 people", "1000000"),
        (".5 mg", "0.5"),
    ],
)
def test_numbers_in_text_are_recognized(text: str, number: str | None) -> None:
    metric = metrics.answer_metrics(AnswersConfig.model_validate({"numeric": {}}))["numeric"]
    assert metric.read(text) == (None if number is None else Decimal(number))


def test_a_difference_within_the_tolerance_counts_as_equal() -> None:
    assert score("1.1", "1.0", numeric={"absolute": 0.1}) == 1  # in decimal arithmetic
    assert score("-98.9", "-100", numeric={"absolute": 1}) == 0
    assert score("9" * 5000, "1e999", numeric={}) == 0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", 1.0),
        ("The answer is: YES.", 1.0),
        ("no", 0.0),
        ("yes and no", 0.0),
        ("yes, yes", 1.0),
        ("yesterday", 0.0),
    ],
)
def test_choice_compares_the_only_option_in_the_answer(answer: str, expected: float) -> None:
    assert score(answer, "yes", choice={"options": ["yes", "no"]}) == expected


def test_the_longest_option_is_chosen_and_letters_have_a_case() -> None:
    options = {"options": ["likely", "not likely"]}
    assert score("It is not likely.", "not likely", choice=options) == 1
    assert score("It is not likely.", "likely", choice=options) == 0
    assert score("a patient has (B)", "B", choice={"options": ["A", "B"]}) == 1


def test_a_reference_without_a_value_is_an_error() -> None:
    with pytest.raises(ValueError, match="12,50"):
        score("99,50", "12,50", numeric={})


@pytest.mark.parametrize(
    "config",
    [
        {"json_fields": {"paths": ["name"]}},
        {"regex": {"pattern": "("}},
        {"numeric": {"absolute": -1}},
        {"numeric": {"absolute": "inf"}},
        {"choice": {"options": ["yes"]}},
        {"choice": {"options": ["yes", "Yes"]}},
        {"choice": {"options": ["-1", "0", "1"]}},
        {"choice": {"options": ["C", "C++"]}},
        {"choice": {"options": ["grade 1", "Grade: \uff11"]}},
        {"choice": {"options": ["yes", "-"]}},
    ],
)
def test_an_unusable_setting_is_rejected(config: Any) -> None:
    with pytest.raises(ValidationError):
        AnswersConfig.model_validate(config)


@pytest.mark.parametrize("metric", ["json_fields", "regex", "numeric", "choice"])
def test_a_metric_requires_its_section(metric: str) -> None:
    with pytest.raises(ValidationError, match=metric):
        EvaluationConfig.model_validate({"metric": metric})


def test_a_test_row_whose_answer_has_no_value_is_refused_with_its_id() -> None:
    answers = AnswersConfig.model_validate({"numeric": {}})
    valid = rows(["a", "b"], ["1", "2"], chat=True, first=7, answers=answers)
    faulty = replace(valid, labels=("1", "two"))
    require_readable_answers(Splits(faulty, valid, valid))
    with pytest.raises(DataError, match="test row 8"):
        require_readable_answers(Splits(valid, valid, faulty))
    with pytest.raises(DataError, match="validation row 8"):
        require_readable_answers(Splits(valid, faulty, valid))
