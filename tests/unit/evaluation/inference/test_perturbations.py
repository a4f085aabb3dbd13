"""Tests of swaps and typing errors, and of texts that must not change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.data.rows import Rows
from tailorbird.evaluation.inference.perturbations import (
    AGES,
    NAME_POSITIONS,
    SEXES,
    add_typo,
    add_typos,
    swap_age,
    swap_demographics,
    swap_name,
    swap_sex,
)

TEXTS = st.text(st.sampled_from("aAbB éßİ9.,-'\n\t😀"), max_size=30) | st.text(max_size=30)


def rows_of(*texts: str) -> Rows:
    """Return rows with different labels, split keys and groups."""
    n = len(texts)
    numbers = tuple(str(number) for number in range(n))
    return Rows(
        row_ids=numbers,
        texts=texts,
        labels=tuple(f"label {number}" for number in numbers),
        split_keys=tuple(f"key {number}" for number in numbers),
        groups={"site": tuple(f"site {number}" for number in numbers)},
    )


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("A woman with chest pain", "A man with chest pain"),
        ("He hurt himself", "She hurt herself"),
        ("WOMAN WITH A COUGH, HE SAID", "MAN WITH A COUGH, SHE SAID"),
        ("her left arm", "his left arm"),
        ("We treated her.", "We treated him."),
        ("We saw her and left", "We saw him and left"),
        ("his arm is his", "her arm is hers"),
        ("the man's wife", "the woman's husband"),
        ("Mr. Smith and his sons", "Ms. Smith and her daughters"),
        ("Emily said she coughs", "Kevin said he coughs"),
    ],
)
def test_words_for_a_sex_are_swapped_with_their_case(text: str, swapped: str) -> None:
    assert swap_sex(text) == swapped


@pytest.mark.parametrize(
    "text",
    [
        "Pregnant woman with a cough",
        "Male erectile dysfunction",
        "carcinoma of the female genital organs",
        "Man with prostatic hyperplasia",
        "female infertility",
        "nonpregnant woman",
        "HE after liver failure, HER-2 positive",  # HE: hepatic encephalopathy; HER-2: a receptor
        "man-made fibres, human, mankind",
        "a mandatory test in Manchester",
        "patient with MS",
        "Hers disease",
        "Emily has a cough",  # a name alone is not a word for a sex
    ],
)
def test_texts_specific_to_a_sex_or_without_a_sex_do_not_change(text: str) -> None:
    assert swap_sex(text) == text


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("A 45-year-old woman", "A 75-year-old woman"),
        ("80 year old man", "50 year old man"),
        ("men aged 50, women aged 49", "men aged 20, women aged 79"),
        ("62 years old", "32 years old"),
        ("a 70yo", "a 40yo"),
        ("A 6-year-old boy, the child coughs", "A 36-year-old man, the adult coughs"),
        ("An elderly patient", "A young patient"),
        ("a young adult and an older child", "an elderly child and a younger adult"),
        (
            "A 50-year-old, an 18-year-old and a 5 mm cyst",
            "A 20-year-old, a 48-year-old and a 5 mm cyst",
        ),
        ("a 58 year old woman, AN ADULT", "a 28 year old woman, AN ADULT"),
        ("a 30-year-old, a 58-yo", "a 60-year-old, a 58-yo"),
        ("AN ELDERLY PATIENT", "A YOUNG PATIENT"),
        ("a 50y/o; a 48-year-old", "a 20y/o; a 78-year-old"),
        ("a 110-year-old", "an 80-year-old"),
        ("Children with asthma", "Adults with asthma"),
        ("CHILD NEGLECT", "ADULT NEGLECT"),
        ("45-year-old adult", "75-year-old adult"),
    ],
)
def test_ages_and_age_words_are_swapped(text: str, swapped: str) -> None:
    assert swap_age(text) == swapped


@pytest.mark.parametrize(
    "text",
    [
        "Newborn with jaundice, a child",
        "juvenile arthritis of a child",
        "a child under 29 days old",
        "a 6-month-old",
        "men aged 30-69",
        "patients aged 18 to 65",
        "aged 3 weeks",
        "121-year-old",
        "old myocardial infarction",
        "Child-Pugh class B",
        "1.5-year-old",
        "restless (<2 years old)",
        "adult T-cell leukaemia",
    ],
)
def test_texts_specific_to_an_age_or_without_a_persons_age_do_not_change(text: str) -> None:
    assert swap_age(text) == text


def test_names_are_replaced_by_names_of_another_origin_and_the_same_sex() -> None:
    for name, (origin, index) in NAME_POSITIONS.items():
        for seed in ("0", "1", "2"):
            other = swap_name(f"{name} has a cough", seed=seed).removesuffix(" has a cough")
            assert NAME_POSITIONS[other][1] == index
            assert NAME_POSITIONS[other][0] != origin


def test_only_capitalised_names_that_are_not_eponyms_are_replaced() -> None:
    assert (
        swap_name("jamal, KEVIN's chart, Jamal-Brian", seed="0")
        == "jamal, KEVIN's chart, Jamal-Brian"
    )
    assert (
        swap_name("Hassan syndrome and Omar's disease", seed="0")
        == "Hassan syndrome and Omar's disease"
    )
    upper = swap_name("KEVIN HAS A COUGH", seed="0")
    assert upper != "KEVIN HAS A COUGH"
    assert upper.isupper()


def test_counterfactuals_are_one_row_per_kind_with_other_fields_unchanged() -> None:
    rows = rows_of("A cough", "Emily is a 45-year-old woman", "An elderly patient")
    changed = swap_demographics(rows)
    assert changed.row_ids == ("1|sex", "1|age", "1|name", "2|age")
    assert changed.texts[:2] == ("Kevin is a 45-year-old man", "Emily is a 75-year-old woman")
    assert changed.labels == ("label 1",) * 3 + ("label 2",)
    assert changed.split_keys == ("key 1",) * 3 + ("key 2",)
    assert changed.groups == {"site": ("site 1",) * 3 + ("site 2",)}
    assert swap_demographics(rows) == changed


def test_add_typos_changes_each_text_and_no_other_field() -> None:
    rows = rows_of("Typhoid fever with heart involvement", "", "5", "AB", "Kinking of ureter")
    changed = add_typos(rows)
    assert changed.row_ids == ("0|noise", "1|noise", "2|noise", "3|noise", "4|noise")
    assert all(before != after for before, after in zip(rows.texts, changed.texts, strict=True))
    assert (changed.labels, changed.split_keys, changed.groups) == (
        rows.labels,
        rows.split_keys,
        rows.groups,
    )
    assert add_typos(rows) == changed


def test_all_kinds_of_typos_occur_and_the_typo_of_a_row_does_not_depend_on_its_position() -> None:
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
    rows = rows_of(*[text] * 5)
    assert add_typos(rows.take([3])).texts[0] == add_typos(rows).texts[3]


@given(TEXTS, st.text(max_size=5))
def test_a_typo_changes_any_text(text: str, seed: str) -> None:
    assert add_typo(text, seed=seed) != text


@given(
    st.lists(
        st.sampled_from([*SEXES, *AGES, "her", "his", "Emily", "45-year-old", "pain", "."]),
        max_size=8,
    )
)
def test_swaps_keep_the_number_of_words_and_swapping_sex_twice_restores_the_text(
    words: list[str],
) -> None:
    text = " ".join(words)
    for swapped in (swap_sex(text), swap_age(text), swap_name(text, seed="0")):
        assert len(swapped.split()) == len(words)
    if not {"her", "his"} & set(words):
        assert swap_sex(swap_sex(text)) == text
