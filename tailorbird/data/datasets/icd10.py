"""Makes the demo's data: the diagnostic terms of ICD-10-CM with their chapters, from a Python package, as Parquet."""

import io
import re
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tailorbird import storage
from tailorbird.data.rows import SPLIT_NAMES, DataError
from tailorbird.data.splits import normalise, stratified_split

FOLDS = (13, 2, 3)  # of 18: 72 %, 11 % and 17 % of the rows
SPLIT_SEED = 0
TITLED = len("A00.0")
"""The longest code whose title is a training text: longer ones repeat theirs with side, stage or encounter added."""
CODER_TERMS, CODER_HELD_OUT, CODER_TEST_ROWS = 6, 2, 300
"""Of the chat task: inclusion terms that a code must have, those of them that are held out, and how many judge."""

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
"""Our short English name of each chapter, which is its label. Chapter 22 (codes for special purposes) is left out: it
is where new codes wait, no subject, and carries half a dozen terms."""

GROUP_RULES = (
    ("newborn", r"newborns?|neonat\w*|perinatal|stillb\w+|premature infants?|preterm infants?"),
    (
        "maternal",
        r"matern\w+|mothers?|pregnan\w+|gestation\w*|obstetric\w*|puerper\w+|postpartum|antepartum|child ?birth|labor|"
        r"delivery|\w*eclampsia|abortion|trimester|placent\w+|lactation|amnio\w+|chorioamnio\w+",
    ),
    ("paediatric", r"child|children|childhood|infants?|infantile|infancy|juvenile|adolescen\w+|p[a]?ediatric"),
    (
        "female",
        r"females?|wom[ae]n|girls?|vagin(?!alis)\w+|vulv\w+|uter(?:us|ine)|ovar\w+|cervicitis|cervix uteri|menstru\w+|"
        r"\w*men?orrh\w+|\w*menopaus\w+|endometri\w+|fallopian|hysterectomy|wife|daughter|sister",
    ),
    (
        "male",
        r"males?|m[ae]n|boys?|prostat\w+|testi[sc]\w*|testes|penis|penile|scrot\w+|sperm\w*|epididym\w+|preputial|"
        r"husband|son|brother",
    ),
)
"""(group, words that state it), read in this order: the first rule with a whole word in the term decides."""

_GROUPS = tuple((group, re.compile(rf"\b(?:{words})\b")) for group, words in GROUP_RULES)


Wording = tuple[str, str, str, str, str]
"""(text, code, title of the code, chapter number, block)."""


def build() -> dict[str, pa.Table]:
    """Tables train, validation and test with string columns text, code, title, chapter, block, category and group.

    A row is an *inclusion term*, the wording under which a clinician's diagnosis is coded. A wording that stands in two
    chapters is dropped, a wording repeated within one is kept once. Split by three-character category, 72/11/17, so
    that near-identical wordings of one disease do not sit on both sides, and stratified by chapter: categories are of
    uneven size, and a split by hash gave a chapter 14 % of one split and 7 % of another. Under another seed whole
    categories change sides, and any model's accuracy with them, by 3 to 4 points: figures of different splits do not
    compare.

    Train also holds, as texts, the titles of the codes of up to four characters in every category that is in no other
    split: twice the rows, and 470 categories that have no term. What is chosen and judged by stays terms alone.
    Raises DataError without the package.
    """
    icd = _package()
    codes = _codes(icd)
    terms = [(" ".join(term.split()), *row) for row in codes for term in icd.get_inclusion_term(row[0])]
    whole = _table(_unambiguous(terms))
    labels = whole["chapter"].to_pylist()
    parts = stratified_split(whole["category"].to_pylist(), labels=labels, folds=FOLDS, seed=SPLIT_SEED)
    tables = {name: whole.take(np.flatnonzero(parts == part)) for part, name in enumerate(SPLIT_NAMES)}
    held_out = {category for name in SPLIT_NAMES[1:] for category in tables[name]["category"].to_pylist()}
    worded = {normalise(term) for term, *_ in terms}
    titles = [(" ".join(row[1].split()), *row) for row in codes if len(row[0]) <= TITLED and row[0][:3] not in held_out]
    titles = [row for row in titles if normalise(row[0]) not in worded]
    return tables | {"train": pa.concat_tables([tables["train"], _table(_unambiguous(titles))])}


def build_coder() -> dict[str, pa.Table]:
    """Tables train, validation and test of the chat task: from a term to its code and title, in the release's words.

    String columns prompt, completion, code, category and group. The codes are the 230 with six inclusion terms or
    more, which stand in train all of them: a coder knows the book, and meets new wordings. Of each code two terms, by
    lot, are held out, for test (300 in all) or validation (the rest); train holds the others, and the title as one
    more: as many rows as two cores learn in minutes.
    """
    icd = _package()
    rows = [(" ".join(term.split()), *row) for row in _codes(icd) for term in icd.get_inclusion_term(row[0])]
    codes: dict[str, set[str]] = {}
    for term, code, *_ in rows:
        codes.setdefault(normalise(term), set()).add(code)
    first = {normalise(row[0]): row for row in reversed(rows) if len(codes[normalise(row[0])]) == 1}
    by_code: dict[str, list[Wording]] = {}
    for row in sorted(first.values(), key=lambda row: (row[1], row[0])):
        by_code.setdefault(row[1], []).append(row)
    generator = np.random.default_rng(SPLIT_SEED)
    chosen = [by_code[code] for code in sorted(by_code) if len(by_code[code]) >= CODER_TERMS]
    chosen = [chosen[place] for place in generator.permutation(len(chosen))]
    held_out = [terms.pop(int(generator.integers(len(terms)))) for terms in chosen for _ in range(CODER_HELD_OUT)]
    held_out = [held_out[place] for place in generator.permutation(len(held_out))]
    train = [term for terms in chosen for term in terms]
    worded = set(first)
    titles = [(" ".join(terms[0][2].split()), *terms[0][1:]) for terms in chosen]
    train += [title for title in titles if normalise(title[0]) not in worded]
    parts = {"train": train, "validation": held_out[CODER_TEST_ROWS:], "test": held_out[:CODER_TEST_ROWS]}
    return {name: _coder_table(some) for name, some in parts.items()}


def write(uri_prefix: str, *, coder: bool = False) -> dict[str, int]:
    """Writes `<uri_prefix>/<split>/part-0.parquet` for each split, over what was there; returns the rows of each.

    The chapters of `build`, or, with `coder`, the chat task of `build_coder`.
    """
    tables = build_coder() if coder else build()
    for name, table in tables.items():
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        storage.write_bytes(f"{uri_prefix.rstrip('/')}/{name}/part-0.parquet", buffer.getvalue())
    return {name: table.num_rows for name, table in tables.items()}


def group_of(text: str) -> str:
    """The group of people a term speaks of, by the words of `GROUP_RULES`, or `unstated`."""
    normal = normalise(text)
    return next((group for group, words in _GROUPS if words.search(normal)), "unstated")


def _package() -> ModuleType:
    try:
        import simple_icd_10_cm  # in the optional extra `stack`
    except ModuleNotFoundError as error:
        raise DataError(
            f"the ICD-10-CM data comes with the package simple-icd-10-cm, which is not installed ({error}); "
            "install it with `pip install --editable '.[stack]'` in the project's folder"
        ) from None
    module: ModuleType = simple_icd_10_cm
    return module


def _codes(icd: ModuleType) -> list[tuple[str, str, str, str]]:
    """(code, title, chapter number, block) of each category and subcategory; blocks carry rules, no diagnoses."""
    codes = [code for code in dict.fromkeys(icd.get_all_codes()) if icd.is_category_or_subcategory(code)]
    placed = [(code, icd.get_description(code), icd.get_ancestors(code)) for code in codes]
    return [(code, title, above[-1], above[-2]) for code, title, above in placed if above[-1] in CHAPTER_NAMES]


def _table(rows: list[Wording]) -> pa.Table:
    texts, codes, titles, chapters, blocks = (list(column) for column in zip(*rows, strict=True))
    return pa.table(
        {
            "text": texts,
            "code": codes,
            "title": titles,
            "chapter": [CHAPTER_NAMES[chapter] for chapter in chapters],
            "block": blocks,
            "category": [code[:3] for code in codes],
            "group": [group_of(text) for text in texts],
        }
    )


def _coder_table(rows: list[Wording]) -> pa.Table:
    texts, codes, titles, *_ = (list(column) for column in zip(*rows, strict=True))
    return pa.table(
        {
            "prompt": texts,
            "completion": [f"{code} {' '.join(title.split())}" for code, title in zip(codes, titles, strict=True)],
            "code": codes,
            "category": [code[:3] for code in codes],
            "group": [group_of(text) for text in texts],
        }
    )


def _unambiguous(terms: list[Wording]) -> list[Wording]:
    chapters: dict[str, set[str]] = {}
    first: dict[str, Wording] = {}
    for term in terms:
        normal = normalise(term[0])
        chapters.setdefault(normal, set()).add(term[3])
        first.setdefault(normal, term)
    return [term for normal, term in first.items() if len(chapters[normal]) == 1]
