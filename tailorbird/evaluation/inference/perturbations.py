"""Perturb texts: swap a person's sex, age or name, or add a typing error."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from tailorbird.config.evaluation import GatesConfig
from tailorbird.data.rows import Rows


def _both_ways(*pairs: tuple[str, str]) -> dict[str, str]:
    return dict(pairs) | {second: first for first, second in pairs}


SEXES = _both_ways(
    ("man", "woman"),
    ("men", "women"),
    ("male", "female"),
    ("males", "females"),
    ("he", "she"),
    ("himself", "herself"),
    ("boy", "girl"),
    ("boys", "girls"),
    ("husband", "wife"),
    ("husbands", "wives"),
    ("father", "mother"),
    ("fathers", "mothers"),
    ("dad", "mum"),
    ("son", "daughter"),
    ("sons", "daughters"),
    ("brother", "sister"),
    ("brothers", "sisters"),
    ("uncle", "aunt"),
    ("uncles", "aunts"),
    ("nephew", "niece"),
    ("grandfather", "grandmother"),
    ("grandson", "granddaughter"),
    ("gentleman", "lady"),
    ("gentlemen", "ladies"),
    ("boyfriend", "girlfriend"),
    ("widower", "widow"),
    ("stepfather", "stepmother"),
    ("sir", "madam"),
)
POSSESSIVES = {"her": "his", "his": "her", "him": "her", "hers": "his"}
"""Pronouns before a noun."""
PRONOUNS = POSSESSIVES | {"her": "him", "his": "hers"}
TITLES = {"Mr": "Ms", "Ms": "Mr", "Mrs": "Mr"}

# Words that make a text specific to one sex. Swapping the sex would make the text meaningless.
SEX_BOUND = re.compile(
    r"\b(?:(?:non)?pregnan|obstet|gestation|matern|patern|puerper|(?:ante|pre|post|intra)?part(?:um|al\b)|(?:ante|pre|post)nat"
    r"|lactat|breast-?fe|abort|miscarr|menstru|menarche|menopaus|birth|labou?r\b|deliver|uter(?:us|i)|ovar|ovulat"
    r"|cervix|vagin|vulv|endometr|hysterect|fallopian|salping|eclamp|gyna?ec|prostat|test(?:is|es|ic)|peni(?:s|le)\b"
    r"|scrot|sperm|semen\b|semin|erect|ejacul|orchi|epididym|vasectom|phimosis|foreskin|circumcis|genit|(?:in)?fertil"
    r"|\w*hermaphrod|pelvi|newborn|neonat|infant|mother yaw)",
    re.IGNORECASE,
)

AGES = _both_ways(
    ("elderly", "young"), ("older", "younger"), ("child", "adult"), ("children", "adults"),
    ("teenager", "pensioner"), ("teenagers", "pensioners"), ("paediatric", "geriatric"),
)  # fmt: skip
AGES |= {"pediatric": "geriatric", "toddler": "adult", "toddlers": "adults"}
GROWN = {
    "child": "adult",
    "children": "adults",
    "boy": "man",
    "boys": "men",
    "girl": "woman",
    "girls": "women",
    "toddler": "adult",
    "teenager": "adult",
    "schoolboy": "man",
    "schoolgirl": "woman",
}
"""Words of a text with a stated age below `FULL_AGE`."""

# Words that make a text specific to an age group.
AGE_BOUND = re.compile(
    r"\b(?:newborn|neonat|perinat|infan|baby|babies|birth|congenital|pregnan|obstet|gestation|puerper|menarche|menopaus"
    r"|juvenile|adolescen|pubert|senil|dementia|school|retire|bone age|orphan|custody|tapeworm"
    r"|(?:day|week|month)s? old|adult (?:t-cell|respiratory))",
    re.IGNORECASE,
)
STATED_AGE = re.compile(
    r"(?<![\w.,/<>-])(\d{1,3})(?=[ -]years?[ -]olds?\b| ?y/?o\b)"
    r"|(?<=\baged )(\d{1,3})(?![\w/%-]|[.,]\d| (?:to|and|or|months?|weeks?|days?)\b)",
    re.IGNORECASE,
)
FULL_AGE = 18
OLDEST = 120
YEARS_MOVED = 30
MIDDLE_AGE = 50

# Five female and five male given names of each of eight origins, in this order. No name is an
# English word or the eponym of a disease. A name is replaced by the name with the same index of
# another origin, so two persons in a text keep different names.
NAMES = (
    (
        "Emily",
        "Megan",
        "Susan",
        "Deborah",
        "Jennifer",
        "Kevin",
        "Brian",
        "Stephen",
        "Andrew",
        "Matthew",
    ),
    (
        "Latoya",
        "Keisha",
        "Shanice",
        "Lakisha",
        "Tamika",
        "Jamal",
        "DeShawn",
        "Tyrone",
        "Darnell",
        "Terrell",
    ),
    (
        "Xochitl",
        "Carmen",
        "Itzel",
        "Marisol",
        "Ximena",
        "Alejandro",
        "Javier",
        "Fernando",
        "Jorge",
        "Esteban",
    ),
    (
        "Fatima",
        "Aisha",
        "Layla",
        "Khadija",
        "Zainab",
        "Mohammed",
        "Ahmed",
        "Omar",
        "Youssef",
        "Hassan",
    ),
    (
        "Priya",
        "Lakshmi",
        "Ananya",
        "Deepika",
        "Sunita",
        "Rajesh",
        "Sanjay",
        "Vikram",
        "Arjun",
        "Suresh",
    ),
    (
        "Xiuying",
        "Meiling",
        "Yanfang",
        "Lihua",
        "Xiaoyan",
        "Weiguo",
        "Jianhua",
        "Zhiqiang",
        "Guoqiang",
        "Haoran",
    ),
    (
        "Agnieszka",
        "Katarzyna",
        "Svetlana",
        "Olga",
        "Zofia",
        "Krzysztof",
        "Wojciech",
        "Dmitri",
        "Sergei",
        "Pavel",
    ),
    (
        "Adaeze",
        "Ngozi",
        "Abena",
        "Funmilayo",
        "Wanjiru",
        "Chukwuemeka",
        "Kwame",
        "Babajide",
        "Kofi",
        "Kamau",
    ),
)


def _name_positions() -> dict[str, tuple[int, int]]:
    positions = {}
    for origin, names in enumerate(NAMES):
        for index, name in enumerate(names):
            positions[name] = (origin, index)
    return positions


NAME_POSITIONS = _name_positions()
"""Origin and index of each name."""

# An article before an age, or before a word that may be an age word.
ARTICLE = re.compile(r"\b(an?)(?= (\d+(?=[ -]?y)|[^\W\d_]+))", re.IGNORECASE)

# A separate word, not a part of "man-made" or "HER-2".
WORD = re.compile(r"(?<![\w-])[^\W\d_]+(?![\w-])")
EPONYM = re.compile(
    r"(?:['’]s)? (?:disease|syndrome|sign|test|law|procedure|operation)\b", re.IGNORECASE
)
NOUN_AFTER = re.compile(
    r" (?!(?:and|or|in|on|at|to|for|from|with|was|is|by|as|after|before|when)\b)\w"
)
LONG_WORD = re.compile(r"(?<![\w])[^\W\d_]{4,}(?![\w])")


def perturbed_rows(rows: Rows, gates: GatesConfig) -> dict[str, Rows]:
    """Return the perturbed rows that the gates need, by set name (the suffix of their tables)."""
    return {name: PERTURBATIONS[name](rows) for name in gates.changed_sets}


def swap_demographics(rows: Rows) -> Rows:
    """Return rows with swapped sex, age or given names: up to three rows per text.

    The row ids are `<row_id>|sex`, `<row_id>|age` and `<row_id>|name`; other fields are unchanged.
    The swap uses lists of whole English words. Sex or age is not swapped in texts that match
    `SEX_BOUND` or `AGE_BOUND` (pregnancy, prostate, newborn), because the meaning of these texts
    depends on it.
    """
    positions = []
    row_ids = []
    texts = []
    for position, (row_id, text) in enumerate(zip(rows.row_ids, rows.texts, strict=True)):
        swapped = {
            "sex": swap_sex(text),
            "age": swap_age(text),
            "name": swap_name(text, seed=row_id),
        }
        for kind, changed in swapped.items():
            if changed != text:
                positions.append(position)
                row_ids.append(f"{row_id}|{kind}")
                texts.append(changed)
    return replace(rows.take(positions), row_ids=tuple(row_ids), texts=tuple(texts))


def add_typos(rows: Rows) -> Rows:
    """Return rows `<row_id>|noise` with a typing error, wrong case or extra space, selected by a
    hash of the row id."""
    pairs = zip(rows.row_ids, rows.texts, strict=True)
    texts = tuple(add_typo(text, seed=row_id) for row_id, text in pairs)
    return replace(rows, row_ids=tuple(f"{row_id}|noise" for row_id in rows.row_ids), texts=texts)


PERTURBATIONS: Mapping[str, Callable[[Rows], Rows]] = {
    "counterfactual": swap_demographics,
    "noise": add_typos,
}
"""Functions that return the changed rows of a set, by its name."""


def swap_sex(text: str) -> str:
    """Return the text with swapped words for a sex. If a word changes, known names get the other
    sex too."""
    if SEX_BOUND.search(text):
        return text

    def swapped(match: re.Match[str]) -> str:
        word = match.group()
        if word in TITLES:
            return TITLES[word]
        # HE is hepatic encephalopathy.
        is_acronym = len(word) <= 3 and word.isupper() and not text.isupper()
        if is_acronym or EPONYM.match(text, match.end()):
            return word
        is_before_noun = NOUN_AFTER.match(text, match.end()) is not None
        words = SEXES | (POSSESSIVES if is_before_noun else PRONOUNS)
        return _like(word, words.get(word.lower(), word))

    changed = WORD.sub(swapped, text)
    if changed == text:
        return changed
    return _rename(changed, lambda origin, index: NAMES[origin][index - 5])


def swap_age(text: str) -> str:
    """Return the text with each age moved by 30 years, and words for children replaced by words for
    adults.

    In a text without ages, swap the age words.
    """
    if AGE_BOUND.search(text):
        return text
    ages = [int(match.group()) for match in STATED_AGE.finditer(text)]
    words = AGES
    if ages:
        words = GROWN if min(ages) < FULL_AGE else {}

    def moved(match: re.Match[str]) -> str:
        age = int(match.group())
        if age > OLDEST:
            return match.group()
        return str(age + YEARS_MOVED if age < MIDDLE_AGE else age - YEARS_MOVED)

    def swapped(match: re.Match[str]) -> str:
        word = match.group()
        return _like(word, words.get(word.lower(), word))

    changed = WORD.sub(swapped, STATED_AGE.sub(moved, text))
    if changed == text:
        return text
    return ARTICLE.sub(_article, changed)


def swap_name(text: str, *, seed: str) -> str:
    """Return the text with each known given name replaced by a name of the same sex and another
    origin.

    The seed selects the origin.
    """
    shift = 1 + _hashed(seed, "name") % (len(NAMES) - 1)
    return _rename(text, lambda origin, index: NAMES[(origin + shift) % len(NAMES)][index])


def add_typo(text: str, *, seed: str) -> str:
    """Return the text with one typing error, wrong case or white space.

    The seed selects the kind of change; if this kind is impossible, the next kind is used.
    """
    kinds = (_typing_error, _wrong_case, _white_space)
    first = _hashed(seed, "slip") % len(kinds)
    for perturb in kinds[first:] + kinds[:first]:
        changed = perturb(text, seed)
        if changed != text:
            return changed
    raise AssertionError("white space can always be added")


def _typing_error(text: str, seed: str) -> str:
    """Swap two adjacent inner letters of a long word, or drop or double a letter."""
    words = list(LONG_WORD.finditer(text))
    if not words:
        return text
    word = words[_hashed(seed, "word") % len(words)]
    at = word.start() + 1 + _hashed(seed, "letter") % (len(word.group()) - 2)
    here = text[at]
    after = text[at + 1]
    errors = [here + here + after, after]
    if here != after:
        errors.append(after + here)
    return text[:at] + errors[_hashed(seed, "error") % len(errors)] + text[at + 2 :]


def _wrong_case(text: str, seed: str) -> str:
    cases = [changed for changed in (text.upper(), text.lower()) if changed != text]
    if cases:
        return cases[_hashed(seed, "case") % len(cases)]
    return text


def _white_space(text: str, seed: str) -> str:
    """Add a space next to another one, or at an end of the text."""
    spaces = [match.start() for match in re.finditer(" ", text)]
    positions = [0, *spaces, len(text)]
    at = positions[_hashed(seed, "blank") % len(positions)]
    return text[:at] + " " + text[at:]


def _rename(text: str, other: Callable[[int, int], str]) -> str:
    """Replace each known capitalised name by `other(origin, index)`."""

    def renamed(match: re.Match[str]) -> str:
        word = match.group()
        name = word.title() if text.isupper() else word
        if name not in NAME_POSITIONS or EPONYM.match(text, match.end()):
            return word
        return _like(word, other(*NAME_POSITIONS[name]))

    return WORD.sub(renamed, text)


def _article(match: re.Match[str]) -> str:
    """Return the article that fits the following word: a young man, an elderly man; a 30-year-old,
    an 80-year-old."""
    article = match.group(1)
    following = match.group(2)
    if following.isdecimal():
        has_vowel = following[0] == "8" or following in ("11", "18")
    elif following.lower() in AGES:
        has_vowel = following[0] in "aeiouAEIOU"
    else:
        return article
    if not has_vowel:
        return article[0]
    return article[0] + ("N" if following.isupper() else "n")


def _like(word: str, other: str) -> str:
    """Return `other` in the case of `word`."""
    if word.isupper() and len(word) > 1:
        return other.upper()
    if word[:1].isupper():
        return other[:1].upper() + other[1:]
    return other


def _hashed(seed: str, purpose: str) -> int:
    content = f"{purpose}|{seed}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
