"""Metrics of structured answers, and their configuration."""

import json
import math
import re
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tailorbird.config.answers import AnswersConfig
from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.data import answers as metrics
from tailorbird.data.answers import PatternTimeout, require_readable_answers, unreadable
from tailorbird.data.rows import DataError, Rows, Splits
from tailorbird.evaluation.statistics.answer_metrics import per_row

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
)
OBJECTS = st.dictionaries(st.text(max_size=3), JSON, max_size=4)


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
    equal, third = (
        '{"address": {"city": "Bonn"}, "codes": [0, 2]}',
        '{"address": {"city": "Bonn"}, "unknown": 1}',
    )
    assert score(equal, REFERENCE, json_fields={"paths": paths}) == 1
    assert score(third, REFERENCE, json_fields={"paths": paths}) == pytest.approx(1 / 3)
    assert score('{"a/b": true}', '{"a/b": 1}', json_fields={"paths": ["/a~1b"]}) == 0


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("{}", '{"f0": 1, "f1": null}', 0.0),
        ('{"f0": 1}', '{"f0": 1, "f1": null}', 0.5),
        ('{"f0": 1, "f1": null}', '{"f0": 1, "f1": null}', 1.0),
        ('{"f0": 1, "f2": 1}', '{"f0": 1}', 0.5),
        ("{}", "{}", 1.0),
        ('{"f0": 1}', "{}", 0.0),
    ],
)
def test_fields_that_are_missing_in_both_texts_do_not_count(
    answer: str, reference: str, expected: float
) -> None:
    names = [f"f{number}" for number in range(20)]
    assert (
        score(answer, reference, json_fields={"paths": [f"/{name}" for name in names]}) == expected
    )


@given(document=OBJECTS, other=OBJECTS)
def test_json_fields_is_1_for_the_same_document_in_another_order(document: Any, other: Any) -> None:
    reordered = dict(reversed(list(document.items())))
    assert score(json.dumps(reordered, indent=1), json.dumps(document), json_fields={}) == 1
    value = score(json.dumps(other), json.dumps(document), json_fields={})
    assert 0 <= value <= 1
    assert value == score(json.dumps(document), json.dumps(other), json_fields={})


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("So it is 4.\n#### 42 ", 1.0), ("#### 43", 0.0), ("42", 0.0), ("#### 42\n#### 43", 1.0)],
)
def test_regex_compares_the_group_of_the_first_match(answer: str, expected: float) -> None:
    assert score(answer, "6 times 7\n#### 42", regex={"pattern": r"#### (.*)"}) == expected
    assert score(answer, "6 times 7\n#### 42", regex={"pattern": r"####\s*(?P<n>\d+)"}) == expected


def test_a_group_that_did_not_take_part_in_the_match_has_no_value() -> None:
    assert score("b", "a", regex={"pattern": "(a)|b"}) == 0
    assert score("b", "b", regex={"pattern": "a|b"}) == 1


def test_a_regular_expression_that_does_not_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "PATTERN_SECONDS", 0.05)
    with pytest.raises(
        PatternTimeout, match=r"takes more than 0.05 s on a text of 61 characters; give a pattern"
    ):
        score("a" * 60 + "!", "a", regex={"pattern": r"((?:(a|aa)+)+)$"})


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("1234.5", 1.0),
        ("The sum of 2 and 3 is $1,234.50.", 1.0),
        ("+1.2345e3", 1.0),
        ("１２３４．５", 1.0),
        ("-1234.5", 0.0),
        ("1234.5 or 7", 0.0),
        ("none", 0.0),
        ("", 0.0),
        ("9" * 5000, 0.0),
        ("1e999", 0.0),
    ],
)
def test_numeric_compares_the_last_number(answer: str, expected: float) -> None:
    assert score(answer, "1234.5", numeric={}) == expected


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("from 2019-2020", "2020"),
        ("range 3\N{EN DASH}5", "5"),
        ("minus \N{MINUS SIGN}5", "-5"),
        ("code N13.5", None),
        ("version 1.2.3", "1.2"),
        ("a list 1, 2, 3", "3"),
        ("a list 1,2,3", None),
        ("12,50 \N{EURO SIGN}", None),
        ("0,125", None),
        ("1.234,56", None),
        ("1234,567", None),
        ("1,000,00", None),
        ("100 000", None),
        ("100 000.50", None),
        ("100 234,567", None),
        ("100\N{NO-BREAK SPACE}000 km", None),
        ("100\N{NARROW NO-BREAK SPACE}000", None),
        ("1\N{THIN SPACE}000", None),
        ("1'000.50", None),
        ("1\N{RIGHT SINGLE QUOTATION MARK}000", None),
        ("12,50 or 7", "7"),
        ("options 3 4000", "4000"),
        ("the points (1,-5)", "-5"),
        ("5 cases of COVID-19", "5"),
        ("COVID\N{NON-BREAKING HYPHEN}19", None),
        ("1,000,000 people", "1000000"),
        (".5 mg", "0.5"),
        ("No.7", "7"),
        ("5kg", "5"),
    ],
)
def test_numbers_in_text_are_recognized(text: str, number: str | None) -> None:
    metric = metrics.answer_metrics(AnswersConfig.model_validate({"numeric": {}}))["numeric"]
    assert metric.read(text) == (None if number is None else Decimal(number))


def test_a_difference_within_one_of_the_tolerances_counts_as_equal() -> None:
    assert score("1.1", "1.0", numeric={"absolute": 0.1}) == 1
    assert score("1.11", "1.0", numeric={"absolute": 0.1}) == 0
    assert score("-99", "-100", numeric={"absolute": 1}) == 1
    assert score("-98.9", "-100", numeric={"absolute": 1}) == 0


@given(number=st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12))
def test_a_number_equals_its_own_text(number: float) -> None:
    assert score(f"It is {number!r}", repr(number), numeric={}) == 1
    assert score(repr(number), repr(math.nextafter(number, math.inf)), numeric={}) == 0


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


@given(options=st.lists(st.text("aAbB1-+ .,'", max_size=4), min_size=2, max_size=4))
def test_each_accepted_option_has_a_value_of_its_own(options: list[str]) -> None:
    try:
        config = AnswersConfig.model_validate({"choice": {"options": options}})
    except ValidationError:
        return
    choice = metrics.answer_metrics(config)["choice"]
    assert [choice.read(option) for option in options] == options


@pytest.mark.parametrize(
    ("config", "references", "expected"),
    [
        ({"json_fields": {}}, ["{}", "text"], (1, "JSON object")),
        ({"regex": {"pattern": "x(.)"}}, ["xy", "z"], (1, "match of 'x(.)'")),
        ({"numeric": {}}, ["one", "1"], (0, "number")),
        ({"choice": {"options": ["a", "b"]}}, ["a", "a or b"], (1, "single option of a, b")),
        ({"choice": {"options": ["a", "b"]}}, ["a", "b"], None),
        (None, ["text"], None),
    ],
)
def test_references_without_a_value_are_reported(
    config: Any, references: list[str], expected: Any
) -> None:
    assert (
        unreadable(references, config=config and AnswersConfig.model_validate(config)) == expected
    )


def test_a_reference_without_a_value_is_an_error() -> None:
    with pytest.raises(ValueError, match="the reference answer 'one' has no number"):
        score("1", "one", numeric={})
    with pytest.raises(ValueError, match="the reference answer '12,50' has no number"):
        score("99,50", "12,50", numeric={})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"json_fields": {"paths": ["name"]}}, "'name' is not a JSON Pointer"),
        ({"regex": {"pattern": "("}}, "is not a regular expression"),
        ({"numeric": {"absolute": -1}}, "greater than or equal to 0"),
        ({"numeric": {"absolute": "inf"}}, "finite number"),
        ({"choice": {"options": ["yes"]}}, "at least 2 items"),
        (
            {"choice": {"options": ["yes", "Yes"]}},
            "the options 'yes' and 'Yes' have the same words",
        ),
        (
            {"choice": {"options": ["-1", "0", "1"]}},
            "the options '-1' and '1' have the same words, because",
        ),
        (
            {"choice": {"options": ["C", "C++"]}},
            "remove or rename one, or compare numbers with `numeric`",
        ),
        ({"choice": {"options": ["grade 1", "Grade: \uff11"]}}, "have the same words"),
        ({"choice": {"options": ["A", "A"]}}, "the options 'A' and 'A' have the same words"),
        ({"choice": {"options": ["yes", "-"]}}, "the option '-' has no letter or digit"),
    ],
)
def test_an_unusable_setting_is_rejected(config: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        AnswersConfig.model_validate(config)


@pytest.mark.parametrize("metric", ["json_fields", "regex", "numeric", "choice"])
def test_a_metric_requires_its_section(metric: str) -> None:
    with pytest.raises(
        ValidationError,
        match=rf"metric '{metric}' requires the section answers\.{metric}; .*`answers:",
    ):
        EvaluationConfig.model_validate({"metric": metric})


def test_a_test_row_whose_answer_has_no_value_is_refused_with_its_id() -> None:
    answers = AnswersConfig.model_validate({"numeric": {}})
    rows = Rows(
        ("7", "8"), ("a", "b"), ("1", "2"), conversations=((("user", "a"),),) * 2, answers=answers
    )
    faulty = replace(rows, labels=("1", "two"))
    require_readable_answers(Splits(faulty, rows, rows))
    with pytest.raises(
        DataError, match=r"the answer of test row 8 has no number; correct the row, or evaluation\."
    ):
        require_readable_answers(Splits(rows, rows, faulty))
    with pytest.raises(DataError, match="the answer of validation row 8 has no number"):
        require_readable_answers(Splits(rows, faulty, rows))
