"""Demo data: diagnostic terms of ICD-10-CM with their chapters and codes, written as Parquet."""

import re
from collections import defaultdict
from importlib import import_module
from itertools import chain
from types import ModuleType
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from tailorbird.data.datasets.writing import write_splits
from tailorbird.data.rows import DataError
from tailorbird.data.splits import normalise, stratified_split

FOLDS = (13, 2, 3)  # of 18 folds: 72%, 11% and 17% of the rows
MAX_TITLED = len("A00.0")
"""Maximum length of codes whose titles are training texts. Longer codes only add side, stage or
encounter."""
CODER_TERMS = 6
CODER_HELD_OUT = 2
CODER_TEST_ROWS = 300
"""(chat only) Minimum inclusion terms of a code, held-out terms per code, and test rows."""

CHAPTER_NAMES = {
    "1": "infectious and parasitic diseases",
    "2": "neoplasms",
    "3": "diseases of the blood and immune mechanism",
    "4": "endocrine, nutritional and metabolic diseases",
    "5": "mental and behavioral disorders",
    "6": "diseases of the nervous system",
    "7": "diseases of the eye",
    "8": "diseases of the ear",
    "9": "diseases of the circulatory system",
    "10": "diseases of the respiratory system",
    "11": "diseases of the digestive system",
    "12": "diseases of the skin",
    "13": "diseases of the musculoskeletal system",
    "14": "diseases of the genitourinary system",
    "15": "pregnancy and childbirth",
    "16": "conditions of the newborn",
    "17": "congenital malformations",
    "18": "symptoms and abnormal findings",
    "19": "injury and poisoning",
    "20": "external causes of injury",
    "21": "health status and contact with health services",
}
"""Short name of each chapter, used as its label. Chapter 22 (codes for special purposes) is
omitted, since it is not a medical subject and has only about six terms."""

GROUP_RULES = {
    "newborn": r"newborns?|neonat\w*|perinatal|stillb\w+|premature infants?|preterm infants?",
    "maternal": r"matern\w+|mothers?|pregnan\w+|gestation\w*|obstetric\w*|puerper\w+|postpartum|antepartum|"
    r"child ?birth|labor|delivery|\w*eclampsia|abortion|trimester|placent\w+|lactation|amnio\w+|chorioamnio\w+",
    "paediatric": r"child|children|childhood|infants?|infantile|infancy|juvenile|adolescen\w+|p[a]?ediatric",
    "female": r"females?|wom[ae]n|girls?|vagin(?!alis)\w+|vulv\w+|uter(?:us|ine)|ovar\w+|cervicitis|cervix uteri|"
    r"menstru\w+|\w*men?orrh\w+|\w*menopaus\w+|endometri\w+|fallopian|hysterectomy|wife|daughter|sister",
    "male": r"males?|m[ae]n|boys?|prostat\w+|testi[sc]\w*|testes|penis|penile|scrot\w+|sperm\w*|epididym\w+|preputial|"
    r"husband|son|brother",
}
"""Regular expression of each patient group. The first that matches whole words of a term determines
its group."""
_GROUPS = {group: re.compile(rf"\b(?:{words})\b") for group, words in GROUP_RULES.items()}


class Code(NamedTuple):
    """A category or subcategory."""

    code: str
    title: str
    chapter: str  # number
    block: str


class Wording(NamedTuple):
    """A text under which diagnoses are coded."""

    text: str
    code: Code


def build(*, seed: int = 0) -> dict[str, pa.Table]:
    """Build train, validation and test with string columns text, code, title, chapter, block,
    category and group.

    A row is an inclusion term: a wording under which clinicians' diagnoses are coded. Terms in two
    chapters are dropped, and repeated terms are kept once. The split is 72/11/17 by three-character
    category, so that similar terms of one disease share a split. It is stratified by chapter,
    because categories differ in size: a split by hash gave a chapter 14% of one split and 7% of
    another. With another seed, the accuracy of any model changes by 3 to 4 points, so results of
    different splits are not comparable.

    Train also contains the titles of codes with up to four characters, from all categories that are
    not in validation or test. The titles double the number of rows and add 470 categories without a
    term. Validation and test contain terms only. Raises DataError if the package is not installed.
    """
    icd = _package()
    codes = _codes(icd)
    terms = _terms(icd, codes)
    whole = _table(_unambiguous(terms, by="chapter"))
    labels = whole["chapter"].to_pylist()
    parts = stratified_split(whole["category"].to_pylist(), labels=labels, folds=FOLDS, seed=seed)
    train = whole.filter(pa.array(parts == 0))
    validation = whole.filter(pa.array(parts == 1))
    test = whole.filter(pa.array(parts == 2))

    held_out = {*validation["category"].to_pylist(), *test["category"].to_pylist()}
    titled = [
        code for code in codes if len(code.code) <= MAX_TITLED and code.code[:3] not in held_out
    ]
    titles = _table(_unambiguous(_titles(titled, terms=terms), by="chapter"))
    return {"train": pa.concat_tables([train, titles]), "validation": validation, "test": test}


def build_coder(*, seed: int = 0) -> dict[str, pa.Table]:
    """Build train, validation and test of the chat task, in which the answer to a term is its code
    and title.

    The string columns are prompt, completion, code, category and group. The data contains the 230
    codes with at least six inclusion terms. All of them are in train, so the test measures new
    wordings of known codes. Two random terms of each code are held out: 300 of these terms are the
    test rows, the others are the validation rows. Train contains the remaining terms and the
    titles. Training on them takes minutes on two cores.
    """
    icd = _package()
    terms = _unambiguous(_terms(icd, _codes(icd)), by="code")
    terms_of = defaultdict[Code, list[Wording]](list)
    for term in sorted(terms, key=lambda term: (term.code.code, term.text)):
        terms_of[term.code].append(term)
    codes = [code for code in sorted(terms_of) if len(terms_of[code]) >= CODER_TERMS]

    generator = np.random.default_rng(seed)
    codes = [codes[index] for index in generator.permutation(len(codes))]
    held_out = []
    for code in codes:
        remaining = terms_of[code]
        for _ in range(CODER_HELD_OUT):
            position = int(generator.integers(len(remaining)))
            held_out.append(remaining.pop(position))
    held_out = [held_out[index] for index in generator.permutation(len(held_out))]
    train = list(chain.from_iterable(terms_of[code] for code in codes))
    train += _titles(codes, terms=terms)
    parts = {
        "train": train,
        "validation": held_out[CODER_TEST_ROWS:],
        "test": held_out[:CODER_TEST_ROWS],
    }
    return {name: _coder_table(rows) for name, rows in parts.items()}


def write(uri_prefix: str, *, coder: bool = False, seed: int = 0) -> dict[str, int]:
    """Write the tables of `build`, or of `build_coder` if `coder`, to
    `<uri_prefix>/<split>/part-0.parquet`.

    `seed` determines which categories, or which terms of a code, are held out. Return the number of
    rows of each split.
    """
    tables = build_coder(seed=seed) if coder else build(seed=seed)
    return write_splits(tables, prefix=uri_prefix)


def group_of(text: str) -> str:
    """Return the patient group of a term by `GROUP_RULES`, or `unstated`."""
    normal = normalise(text)
    return next((group for group, words in _GROUPS.items() if words.search(normal)), "unstated")


def _package() -> ModuleType:
    try:
        return import_module("simple_icd_10_cm")  # in the optional extra `stack`
    except ModuleNotFoundError as error:
        raise DataError(
            "the ICD-10-CM data requires the package simple-icd-10-cm, which is not installed "
            f"({error}); run `pip install --editable '.[stack]'` in the project's folder"
        ) from None


def _codes(icd: ModuleType) -> list[Code]:
    codes = []
    for code in dict.fromkeys(icd.get_all_codes()):
        if icd.is_category_or_subcategory(code):
            *_, block, chapter = icd.get_ancestors(code)
            if chapter in CHAPTER_NAMES:
                codes.append(Code(code, icd.get_description(code), chapter=chapter, block=block))
    return codes


def _terms(icd: ModuleType, codes: list[Code]) -> list[Wording]:
    """Return the inclusion terms of the codes."""
    terms = []
    for code in codes:
        terms += [Wording(_joined(term), code) for term in icd.get_inclusion_term(code.code)]
    return terms


def _titles(codes: list[Code], *, terms: list[Wording]) -> list[Wording]:
    """Return the titles of the codes that are no terms."""
    known = {normalise(term.text) for term in terms}
    return [
        Wording(_joined(code.title), code) for code in codes if normalise(code.title) not in known
    ]


def _joined(text: str) -> str:
    return " ".join(text.split())


def _table(wordings: list[Wording]) -> pa.Table:
    rows = []
    for text, code in wordings:
        row = {
            "text": text,
            "code": code.code,
            "title": code.title,
            "chapter": CHAPTER_NAMES[code.chapter],
            "block": code.block,
            "category": code.code[:3],
            "group": group_of(text),
        }
        rows.append(row)
    return pa.Table.from_pylist(rows)


def _coder_table(wordings: list[Wording]) -> pa.Table:
    table = _table(wordings)
    answers = [f"{code.code} {_joined(code.title)}" for _, code in wordings]
    table = table.append_column("completion", pa.array(answers))
    table = table.rename_columns({"text": "prompt"})
    return table.select(["prompt", "completion", "code", "category", "group"])


def _unambiguous(wordings: list[Wording], *, by: Literal["code", "chapter"]) -> list[Wording]:
    """Return the first wording of each text that has a single code or chapter."""
    first: dict[str, Wording] = {}
    values = defaultdict[str, set[str]](set)
    for wording in wordings:
        text = normalise(wording.text)
        first.setdefault(text, wording)
        values[text].add(getattr(wording.code, by))
    return [wording for text, wording in first.items() if len(values[text]) == 1]
