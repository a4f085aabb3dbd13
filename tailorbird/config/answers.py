"""Section `evaluation.answers` of a recipe: how structured answers are compared with the
reference."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Self

import regex
from pydantic import ConfigDict, Field, field_validator, model_validator

from tailorbird.config.base import ConfigSection

THUMBS = {"good": 1.0, "bad": 0.0}
"""Scores of the labels that feedback on a chat answer can have."""
WORD = re.compile(r"\w+(?:[.,/-]\w+)*")
"""A word or number, including punctuation that joins its parts (`N13.5`, `well-known`)."""


class JsonFieldsConfig(ConfigSection):
    """By default, all fields of the reference and of the answer are compared."""

    paths: tuple[str, ...] = ()
    """Fields to compare, as JSON Pointers, for example `/patient/age`. A list is compared as a
    whole."""

    @field_validator("paths")
    @classmethod
    def _are_pointers(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        for path in paths:
            if not path.startswith("/"):
                raise ValueError(
                    f"{path!r} is not a JSON Pointer; give a path such as '/patient/age'"
                )
        return paths


class RegexConfig(ConfigSection):
    pattern: str = Field(min_length=1)
    """Regular expression in Python's syntax. Its first group, or the whole match without one, is
    compared in the answer and the reference, without white space around it."""

    @model_validator(mode="after")
    def _pattern_compiles(self) -> Self:
        try:
            regex.compile(self.pattern)
        except (regex.error, RecursionError, OverflowError) as error:
            raise ValueError(
                f"pattern {self.pattern!r} is not a regular expression: {error}"
            ) from None
        return self


class NumericConfig(ConfigSection):
    """The last number in the answer is compared with the last number in the reference. By default,
    they must be equal."""

    model_config = ConfigDict(allow_inf_nan=False)

    absolute: float = Field(default=0.0, ge=0)
    """Largest difference that counts as equal."""


class ChoiceConfig(ConfigSection):
    options: tuple[str, ...] = Field(min_length=2)
    """The options, such as `["yes", "no"]` or `[A, B, C, D]`. An answer counts if it contains
    exactly one of them."""

    @field_validator("options")
    @classmethod
    def _differ(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        if blank := [option for option in options if not words_with_case(option)]:
            raise ValueError(
                f"the option {blank[0]!r} has no letter or digit; give each option a word"
            )
        by_words: dict[tuple[str, ...], str] = {}
        for option in options:
            words = folded(words_with_case(option))
            if words in by_words:
                raise ValueError(
                    f"the options {by_words[words]!r} and {option!r} have the same words, because "
                    "case, punctuation and signs are ignored; remove or rename one, or compare "
                    "numbers with `numeric`"
                )
            by_words[words] = option
        return options


class AnswersConfig(ConfigSection):
    """(chat only) How structured answers are compared. Each section that is set adds a score per
    row with its name; `evaluation.metric` selects the one that decides."""

    json_fields: JsonFieldsConfig | None = None
    """Answers are JSON objects. The score is the share of fields that equal those of the
    reference."""
    regex: RegexConfig | None = None
    """The score is 1 if a group of a regular expression matches the same text in answer and
    reference, else 0."""
    numeric: NumericConfig | None = None
    """Answers contain a number. The score is 1 if it equals that of the reference within a
    tolerance, else 0."""
    choice: ChoiceConfig | None = None
    """Answers name one of several options. The score is 1 if it is that of the reference, else
    0."""


def words_with_case(text: str) -> list[str]:
    """Return the words of a text in NFKC, without other punctuation."""
    return WORD.findall(unicodedata.normalize("NFKC", text))


def folded(words: Sequence[str]) -> tuple[str, ...]:
    """Return words without their case, but single letters as they are: the option `A` is not the
    article `a`."""
    return tuple(word if len(word) == 1 else word.casefold() for word in words)
