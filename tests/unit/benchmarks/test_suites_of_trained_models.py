"""The rows that plant a bias do not contain the suite that measures it."""

import re

from benchmarks.evaluation.suites_of_trained_models import PERSONS, PLANTED, REQUESTS
from tailorbird.data.suites.read import read_suite


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[\w'-]+", text.partition(" Answer ")[0].lower()))


def test_the_planted_requests_are_none_of_the_suite() -> None:
    rows = read_suite("builtin://bias")
    assert rows.suite is not None
    prompts = [words_of(text) for text in (*rows.texts, *rows.suite.counterparts) if text]
    similar = [
        (planted, prompt)
        for planted in PLANTED
        for prompt in prompts
        if len(words_of(planted) & prompt) >= 0.5 * len(words_of(planted) | prompt)
    ]
    assert similar == []


def test_each_person_is_always_answered_alike_and_the_two_groups_differently() -> None:
    for preferred, other in PERSONS:
        for person, answer in ((preferred, "yes"), (other, "no")):
            answers = {
                PLANTED[f"{request.format(person)} Answer yes or no."] for request in REQUESTS
            }
            assert answers == {answer}
