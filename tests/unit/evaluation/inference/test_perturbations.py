"""Tests of swaps and typing errors, and of texts that must not change."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.evaluation.inference.perturbations import (
    NAME_POSITIONS,
    add_typo,
    add_typos,
    swap_age,
    swap_demographics,
    swap_name,
    swap_sex,
)
from tests import build

TEXTS = st.text(st.sampled_from("aAbB éßİ9.,-'\n\t😀"), max_size=30) | st.text(max_size=30)


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("He hurt himself", "She hurt herself"),
        ("WOMAN WITH A COUGH, HE SAID", "MAN WITH A COUGH, SHE SAID"),
        ("We saw her and left her arm", "We saw him and left his arm"),
        ("his arm is his", "her arm is hers"),
        ("the man's wife", "the woman's husband"),
        ("Mr. Smith and his sons", "Ms. Smith and her daughters"),
        ("Emily said she coughs", "Kevin said he coughs"),
        ("Kevin said he coughs", "Emily said she coughs"),
        # specific to a sex
        ("nonpregnant woman", None),
        ("Man with prostatic hyperplasia", None),
        # without a word for a sex; HE is hepatic encephalopathy, and HER-2 a receptor
        ("HE after liver failure, HER-2 positive, MS", None),
        ("man-made fibres, human, mankind", None),
        ("Hers disease", None),
        ("Emily has a cough", None),
    ],
)
def test_words_for_a_sex_are_swapped_with_their_case(text: str, swapped: str | None) -> None:
    assert swap_sex(text) == (swapped or text)


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("men aged 50, women aged 49", "men aged 20, women aged 79"),
        ("62 years old; a 70yo; a 50y/o", "32 years old; a 40yo; a 20y/o"),
        ("A 6-year-old boy, the child coughs", "A 36-year-old man, the adult coughs"),
        ("a young adult and an older child", "an elderly child and a younger adult"),
        ("A 50-year-old, an 18-year-old, 5 mm", "A 20-year-old, a 48-year-old, 5 mm"),
        ("AN ELDERLY PATIENT", "A YOUNG PATIENT"),
        ("a 110-year-old", "an 80-year-old"),
        ("Children with asthma", "Adults with asthma"),
        ("45-year-old adult", "75-year-old adult"),
        # specific to an age
        ("Newborn with jaundice, a child", None),
        ("a child under 29 days old", None),
        ("adult T-cell leukaemia", None),
        # not the age of a person
        ("men aged 30-69", None),
        ("patients aged 18 to 65, aged 3 weeks", None),
        ("121-year-old", None),
        ("Child-Pugh class B", None),
        ("1.5-year-old", None),
        ("restless (<2 years old)", None),
    ],
)
def test_ages_and_age_words_are_swapped(text: str, swapped: str | None) -> None:
    assert swap_age(text) == (swapped or text)


def test_names_are_replaced_by_names_of_another_origin_and_the_same_sex() -> None:
    for name, (origin, index) in NAME_POSITIONS.items():
        for seed in ("0", "1", "2"):
            other = swap_name(f"{name} has a cough", seed=seed).removesuffix(" has a cough")
            assert NAME_POSITIONS[other][1] == index
            assert NAME_POSITIONS[other][0] != origin
    # not a name, or the eponym of a disease
    text = "jamal, KEVIN's chart, Jamal-Brian, Hassan syndrome and Omar's disease"
    assert swap_name(text, seed="0") == text
    upper = swap_name("KEVIN HAS A COUGH", seed="0")
    assert upper != "KEVIN HAS A COUGH"
    assert upper.isupper()


def test_changed_rows_have_the_other_fields_of_their_rows() -> None:
    texts = ("A cough", "Emily is a 45-year-old woman", "An elderly patient", "", "5")
    columns: dict[str, Any] = {"split_keys": tuple("vwxyz"), "groups": {"site": tuple("mnopq")}}
    rows = build.rows(texts, "abcde", **columns)
    swapped = swap_demographics(rows)
    assert swapped.row_ids == ("1|sex", "1|age", "1|name", "2|age")
    assert swapped.texts[:2] == ("Kevin is a 45-year-old man", "Emily is a 75-year-old woman")
    assert (swapped.labels, swapped.split_keys) == (tuple("bbbc"), tuple("wwwx"))
    assert swapped.groups == {"site": tuple("nnno")}
    assert swap_demographics(rows) == swapped
    noise = add_typos(rows)
    assert noise.row_ids == ("0|noise", "1|noise", "2|noise", "3|noise", "4|noise")
    assert all(before != after for before, after in zip(texts, noise.texts, strict=True))
    assert (noise.labels, noise.split_keys) == (rows.labels, rows.split_keys)
    # The typo of a row does not depend on its position.
    assert add_typos(rows.take([3])).texts[0] == noise.texts[3]


def test_all_kinds_of_typos_occur() -> None:
    text = "Typhoid fever with heart involvement"
    kinds = {"case": 0, "space": 0, "typing": 0}
    for number in range(300):
        changed = add_typo(text, seed=str(number))
        if changed.lower() == text.lower():
            kinds["case"] += 1
        elif changed.split() == text.split():
            kinds["space"] += 1
        else:
            kinds["typing"] += 1
            assert abs(len(changed) - len(text)) <= 1
            assert [word[0] for word in changed.split()] == [word[0] for word in text.split()]
    assert min(kinds.values()) > 70


@given(TEXTS, st.text(max_size=5))
def test_a_typo_changes_any_text(text: str, seed: str) -> None:
    assert add_typo(text, seed=seed) != text
