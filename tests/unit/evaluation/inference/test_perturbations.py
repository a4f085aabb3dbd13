"""Swaps and slips, word for word, and what is left alone because it would become nonsense."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.data.rows import Rows
from tailorbird.evaluation.inference.perturbations import (
    AGES,
    NAME_POSITIONS,
    NAMES,
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
    """Rows with a label, a split key and a group each."""
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
def test_sex_is_swapped_word_for_word_with_case_kept(text: str, swapped: str) -> None:
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
        "HE after liver failure, HER-2 positive",  # hepatic encephalopathy; a receptor
        "man-made fibres, human, mankind",
        "a mandatory test in Manchester",
        "patient with MS",
        "Hers disease",
        "Emily has a cough",  # a name alone is no word for a sex
    ],
)
def test_sex_is_left_where_it_is_the_matter_or_no_sex_is_meant(text: str) -> None:
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
        ("A 50-year-old, an 18-year-old and a 5 mm cyst", "A 20-year-old, a 48-year-old and a 5 mm cyst"),
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
def test_ages_move_to_another_time_of_life(text: str, swapped: str) -> None:
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
def test_ages_are_left_where_they_are_the_matter_or_no_age_of_a_person(text: str) -> None:
    assert swap_age(text) == text


def test_names_become_names_of_another_origin_and_of_the_same_sex() -> None:
    for name, (origin, sex, _) in NAME_POSITIONS.items():
        for seed in ("0", "1", "2"):
            other = swap_name(f"{name} has a cough", seed=seed).removesuffix(" has a cough")
            assert NAME_POSITIONS[other][1] == sex
            assert NAME_POSITIONS[other][0] != origin


def test_two_people_of_a_text_stay_two_and_one_named_twice_stays_one() -> None:
    first, second, again = swap_name("Fatima called Emily, and Fatima came", seed="7").replace(",", "").split()[::2][:3]
    assert {first, second, again} & set(NAME_POSITIONS)
    words = re.findall(r"\w+", swap_name("Fatima called Emily, and Fatima came", seed="7"))
    assert words[0] == words[4] != words[2]


def test_names_are_capitalised_and_no_eponyms() -> None:
    assert swap_name("jamal, KEVIN's chart, Jamal-Brian", seed="0") == "jamal, KEVIN's chart, Jamal-Brian"
    assert swap_name("Hassan syndrome and Omar's disease", seed="0") == "Hassan syndrome and Omar's disease"
    shouted = swap_name("KEVIN HAS A COUGH", seed="0")
    assert shouted != "KEVIN HAS A COUGH"
    assert shouted.isupper()


def test_the_lists_fit_together() -> None:
    assert len(NAME_POSITIONS) == sum(len(names) for sexes in NAMES for names in sexes) == 80  # no name stands twice
    assert {len(names) for sexes in NAMES for names in sexes} == {5}
    assert all(SEXES[SEXES[word]] == word for word in SEXES)
    assert not set(SEXES) & set(AGES)


def test_counterfactuals_are_one_row_a_kind_with_all_else_kept() -> None:
    rows = rows_of("A cough", "Emily is a 45-year-old woman", "An elderly patient")
    changed = swap_demographics(rows)
    assert changed.row_ids == ("1|sex", "1|age", "1|name", "2|age")
    assert changed.texts[:2] == ("Kevin is a 45-year-old man", "Emily is a 75-year-old woman")
    assert changed.labels == ("label 1",) * 3 + ("label 2",)
    assert changed.split_keys == ("key 1",) * 3 + ("key 2",)
    assert changed.groups == {"site": ("site 1",) * 3 + ("site 2",)}
    assert swap_demographics(rows) == changed


def test_rows_that_name_nobody_give_no_row() -> None:
    changed = swap_demographics(rows_of("Kinking of ureter", "", "Typhoid fever"))
    assert len(changed) == 0
    assert changed.groups == {"site": ()}


def test_misspelt_changes_each_text_and_keeps_all_else() -> None:
    rows = rows_of("Typhoid fever with heart involvement", "", "5", "AB", "Kinking of ureter")
    changed = add_typos(rows)
    assert changed.row_ids == ("0|noise", "1|noise", "2|noise", "3|noise", "4|noise")
    assert all(before != after for before, after in zip(rows.texts, changed.texts, strict=True))
    assert (changed.labels, changed.split_keys, changed.groups) == (rows.labels, rows.split_keys, rows.groups)
    assert add_typos(rows) == changed


def test_all_three_slips_occur_and_a_row_has_the_same_one_wherever_it_stands() -> None:
    text = "Typhoid fever with heart involvement"
    slips = {"case": 0, "space": 0, "typing": 0}
    for number in range(300):
        changed = add_typo(text, seed=str(number))
        if changed.lower() == text.lower():
            slips["case"] += 1
        elif changed.split() == text.split():
            slips["space"] += 1
        else:
            slips["typing"] += 1
            assert abs(len(changed) - len(text)) <= 1
            assert [word[0] for word in changed.split()] == [word[0] for word in text.split()]
    assert min(slips.values()) > 70
    rows = rows_of(*[text] * 5)
    assert add_typos(rows.take([3])).texts[0] == add_typos(rows).texts[3]


@given(TEXTS, st.text(max_size=5))
def test_any_text_is_misspelt(text: str, seed: str) -> None:
    assert add_typo(text, seed=seed) != text


@given(st.lists(st.sampled_from([*SEXES, *AGES, "her", "his", "Emily", "45-year-old", "pain", "."]), max_size=8))
def test_swaps_keep_the_number_of_words_and_sex_comes_back(words: list[str]) -> None:
    text = " ".join(words)
    for swapped in (swap_sex(text), swap_age(text), swap_name(text, seed="0")):
        assert len(swapped.split()) == len(words)
    if not {"her", "his"} & set(words):
        assert swap_sex(swap_sex(text)) == text
