"""Demo data: diagnostic terms of ICD-10-CM with their chapters and codes, written as Parquet."""

import io
import re
from importlib import import_module
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tailorbird import storage
from tailorbird.data.rows import SPLIT_NAMES, DataError
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
Wording = tuple[str, str, str, str, str]  # (text, code, title of the code, chapter number, block)
# positions in a Wording
CODE = 1
CHAPTER = 3


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
    whole = _table(_unambiguous(terms, by=CHAPTER))
    labels = whole["chapter"].to_pylist()
    parts = stratified_split(whole["category"].to_pylist(), labels=labels, folds=FOLDS, seed=seed)
    tables = {
        name: whole.take(np.flatnonzero(parts == part)) for part, name in enumerate(SPLIT_NAMES)
    }
    held_out = {
        category for name in SPLIT_NAMES[1:] for category in tables[name]["category"].to_pylist()
    }
    worded = {normalise(term) for term, *_ in terms}
    titled = [row for row in codes if len(row[0]) <= MAX_TITLED and row[0][:3] not in held_out]
    titles = [(" ".join(row[1].split()), *row) for row in titled if normalise(row[1]) not in worded]
    return tables | {
        "train": pa.concat_tables([tables["train"], _table(_unambiguous(titles, by=CHAPTER))])
    }


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
    wordings = _unambiguous(_terms(icd, _codes(icd)), by=CODE)
    by_code: dict[str, list[Wording]] = {}
    for row in sorted(wordings, key=lambda row: (row[CODE], row[0])):
        by_code.setdefault(row[CODE], []).append(row)
    generator = np.random.default_rng(seed)
    chosen = [by_code[code] for code in sorted(by_code) if len(by_code[code]) >= CODER_TERMS]
    chosen = [chosen[index] for index in generator.permutation(len(chosen))]
    held_out = [
        terms.pop(int(generator.integers(len(terms))))
        for terms in chosen
        for _ in range(CODER_HELD_OUT)
    ]
    held_out = [held_out[index] for index in generator.permutation(len(held_out))]
    worded = {normalise(row[0]) for row in wordings}
    titles = [(" ".join(terms[0][2].split()), *terms[0][1:]) for terms in chosen]
    train = [term for terms in chosen for term in terms]
    train += [title for title in titles if normalise(title[0]) not in worded]
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
    for name, table in tables.items():
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        storage.write_bytes(f"{uri_prefix.rstrip('/')}/{name}/part-0.parquet", buffer.getvalue())
    return {name: table.num_rows for name, table in tables.items()}


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


def _terms(icd: ModuleType, codes: list[tuple[str, str, str, str]]) -> list[Wording]:
    return [
        (" ".join(term.split()), *row) for row in codes for term in icd.get_inclusion_term(row[0])
    ]


def _codes(icd: ModuleType) -> list[tuple[str, str, str, str]]:
    """Return (code, title, chapter number, block) of each category and subcategory."""
    codes = [
        code for code in dict.fromkeys(icd.get_all_codes()) if icd.is_category_or_subcategory(code)
    ]
    rows = [(code, icd.get_description(code), icd.get_ancestors(code)) for code in codes]
    return [
        (code, title, parents[-1], parents[-2])
        for code, title, parents in rows
        if parents[-1] in CHAPTER_NAMES
    ]


def _table(rows: list[Wording]) -> pa.Table:
    texts, codes, titles, chapters, blocks = (list(column) for column in zip(*rows, strict=True))
    columns = {
        "text": texts,
        "code": codes,
        "title": titles,
        "chapter": [CHAPTER_NAMES[chapter] for chapter in chapters],
        "block": blocks,
        "category": [code[:3] for code in codes],
        "group": [group_of(text) for text in texts],
    }
    return pa.table(columns)


def _coder_table(rows: list[Wording]) -> pa.Table:
    columns = {
        "prompt": [text for text, *_ in rows],
        "completion": [f"{code} {' '.join(title.split())}" for _, code, title, *_ in rows],
        "code": [code for _, code, *_ in rows],
        "category": [code[:3] for _, code, *_ in rows],
        "group": [group_of(text) for text, *_ in rows],
    }
    return pa.table(columns)


def _unambiguous(terms: list[Wording], *, by: int) -> list[Wording]:
    """Return the first wording of each text that has a single value at position `by`."""
    wordings: dict[str, list[Wording]] = {}
    for term in terms:
        wordings.setdefault(normalise(term[0]), []).append(term)
    return [same[0] for same in wordings.values() if len({term[by] for term in same}) == 1]
