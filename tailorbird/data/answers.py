"""Values of structured answers: fields of JSON, a group of a regular expression, numbers, and
choices.

Each metric reads a value from the answer and from the reference, and compares the two. An answer
without a value has the score 0. A reference without one is an error of the data.
"""

import json
import operator
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, DecimalException
from typing import Any

import regex

from tailorbird.config.answers import (
    AnswersConfig,
    ChoiceConfig,
    JsonFieldsConfig,
    NumericConfig,
    RegexConfig,
    folded,
    words_with_case,
)
from tailorbird.data.rows import DataError, Splits

PATTERN_SECONDS = 2.0  # limit for one search of a regular expression
_FENCED = re.compile(r"\s*```\w*\n(.*)\n```\s*", re.DOTALL)
_NUMBER = re.compile(
    r"(?<!\w)(?<!\d\.)(?<![^\W\d_][-\u2010])"
    r"[-+]?(?:(?!0)\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3}(?!\d))?"
    r"|(?<![\w.])[-+]?\.\d+"
)
"""A number, with a comma between thousands or none. A hyphen after a digit separates the numbers of
a range. A hyphen after a letter joins the parts of a code (`COVID-19`)."""
_JOINT = re.compile(r"(?<=\d)(?:,(?=\d)|[ '\u2019](?=\d{3}(?!\d)))")
"""A decimal comma, or a space or apostrophe between thousands, as they are after NFKC. What it
joins is not split."""
_MISSING = object()


class PatternTimeout(ValueError):
    """A regular expression that takes too long on a text."""


@dataclass(frozen=True)
class AnswerMetric:
    """A metric of answers with a value."""

    what: str  # value that a reference must have
    read: Callable[[str], Any]  # value of a text, None if it has none
    compare: Callable[[Any, Any], float]
    """Score of the value of an answer and that of the reference."""

    def __call__(self, answer: str, reference: str) -> float:
        """Return the score of an answer; raise ValueError if the reference has no value."""
        expected = self.read(reference)
        given = self.read(answer)
        if expected is None:
            raise ValueError(f"the reference answer {reference[:80]!r} has no {self.what}")
        if given is None:
            return 0.0
        return float(self.compare(given, expected))


def answer_metrics(config: AnswersConfig | None) -> dict[str, AnswerMetric]:
    """Return the metrics that a recipe configures, by name."""
    kinds: dict[str, Callable[[Any], AnswerMetric]] = {
        "json_fields": json_fields,
        "regex": regex_group,
        "numeric": numeric,
        "choice": choice,
    }
    metrics = {}
    for name, metric_of in kinds.items():
        section = getattr(config, name, None)
        if section is not None:
            metrics[name] = metric_of(section)
    return metrics


def suite_metric(metric: str, *, options: Sequence[str]) -> AnswerMetric:
    """Return the metric `numeric`, `json_fields` or `choice` of a row of a suite, with the options
    of the row."""
    if metric == "choice":
        return choice(ChoiceConfig(options=tuple(options)))
    if metric == "numeric":
        return numeric(NumericConfig())
    return json_fields(JsonFieldsConfig())


def require_readable_answers(splits: Splits) -> None:
    """Raise DataError for a validation or test row whose answer has no value for a metric of
    `evaluation.answers`."""
    for name, rows in (("validation", splits.validation), ("test", splits.test)):
        if (fault := unreadable(rows.labels, config=rows.answers)) is not None:
            position, what = fault
            raise DataError(
                f"the answer of {name} row {rows.row_ids[position]} has no {what}; correct the "
                "row, or evaluation.answers in the recipe"
            )


def unreadable(
    references: Sequence[str], *, config: AnswersConfig | None
) -> tuple[int, str] | None:
    """Return the position of the first reference without a value for a metric, and the value; None
    if there is none."""
    for metric in answer_metrics(config).values():
        for position, reference in enumerate(references):
            if metric.read(reference) is None:
                return position, metric.what
    return None


def json_fields(config: JsonFieldsConfig) -> AnswerMetric:
    """Return the metric that compares fields of JSON objects. Fields that both lack do not
    count."""
    compared = [_names(pointer) for pointer in config.paths]

    def compare(given: Any, expected: Any) -> float:
        equal = []
        for path in compared or dict.fromkeys((*_leaves(expected), *_leaves(given))):
            values = [_value_at(given, path), _value_at(expected, path)]
            if values != [_MISSING, _MISSING]:
                equal.append(values[0] == values[1])
        return sum(equal) / len(equal) if equal else 1.0

    return AnswerMetric("JSON object", _json_object, compare)


def regex_group(config: RegexConfig) -> AnswerMetric:
    """Return the metric that compares a group of a regular expression."""
    compiled = regex.compile(config.pattern)
    group_number = min(compiled.groups, 1)

    def read(text: str) -> str | None:
        match = search(compiled, text)
        group = None if match is None else match.group(group_number)
        if group is None:
            return None
        return str(group).strip()

    return AnswerMetric(f"match of {config.pattern!r}", read, operator.eq)


def search(pattern: regex.Pattern[str], text: str) -> regex.Match[str] | None:
    """Return the first match in a text; raise PatternTimeout if it takes too long."""
    try:
        return pattern.search(text, timeout=PATTERN_SECONDS)
    except TimeoutError:
        raise PatternTimeout(
            f"the regular expression {pattern.pattern!r} takes more than {PATTERN_SECONDS:g} s on "
            f"a text of {len(text):,} characters; give a pattern without nested repetitions such "
            "as (a+)+"
        ) from None


def numeric(config: NumericConfig) -> AnswerMetric:
    """Return the metric that compares the last numbers of two texts, in decimal arithmetic."""
    tolerance = Decimal(str(config.absolute))

    def compare(given: Decimal, expected: Decimal) -> float:
        return abs(given - expected) <= tolerance

    return AnswerMetric("number", _last_number, compare)


def choice(config: ChoiceConfig) -> AnswerMetric:
    """Return the metric that compares the only option that occurs in a text."""
    options = {folded(words_with_case(option)): option for option in config.options}
    longest = max(map(len, options))

    def read(text: str) -> str | None:
        tokens = words_with_case(text)
        chosen = set()
        position = 0
        while position < len(tokens):
            size = longest
            while size > 1 and folded(tokens[position : position + size]) not in options:
                size -= 1
            chosen.add(options.get(folded(tokens[position : position + size])))
            position += size
        chosen.discard(None)
        if len(chosen) == 1:
            return chosen.pop()
        return None

    return AnswerMetric(f"single option of {', '.join(config.options)}", read, operator.eq)


def _json_object(text: str) -> dict[str, Any] | None:
    """Return the JSON object that is the whole text, or the only content of its code block; None if
    it is not one.

    Numbers are read so that 1 and 1.0 are equal, and 1 and true are not.
    """
    fenced = _FENCED.fullmatch(text)
    content = fenced[1] if fenced else text
    try:
        value = json.loads(
            content, parse_int=_number, parse_float=_number, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError, DecimalException):
        return None
    if isinstance(value, dict):
        return value
    return None


def _number(text: str) -> tuple[Decimal]:
    return (Decimal(text),)  # unlike a bare number, a tuple is equal to no boolean


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON value")


def _names(pointer: str) -> tuple[str, ...]:
    """Return the names and positions of which a JSON Pointer (RFC 6901) consists."""
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:])


def _leaves(value: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the paths of the fields that are no objects, or are empty."""
    pending: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while pending:
        prefix, item = pending.pop()
        if isinstance(item, dict) and (item or not prefix):
            pending += [((*prefix, name), inner) for name, inner in reversed(item.items())]
        else:
            yield prefix


def _value_at(document: Any, path: Sequence[str]) -> Any:
    """Return the value at a path; _MISSING if there is none."""
    value = document
    for name in path:
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return _MISSING
    return value


def _last_number(text: str) -> Decimal | None:
    """Return the last number of a text; None if there is none, or if it is only the last part of a
    number."""
    normalized = unicodedata.normalize("NFKC", text).replace("\N{MINUS SIGN}", "-")
    numbers = list(_NUMBER.finditer(normalized))
    if not numbers or _JOINT.match(normalized, numbers[-1].start() - 1):
        return None
    try:
        return Decimal(numbers[-1][0].replace(",", ""))
    except DecimalException:
        return None
