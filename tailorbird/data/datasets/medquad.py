"""Questions of patients with answers of NIH web pages, from a clone of github.com/abachaa/MedQuAD.

Source: Ben Abacha and Demner-Fushman, BMC Bioinformatics 20:511, 2019. License: CC BY 4.0.
"""

import re
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa

from tailorbird.data.rows import SPLIT_NAMES, DataError
from tailorbird.data.splits import split_by_key

FRACTIONS = (0.8, 0.1, 0.1)
MIN_CHARACTERS = 60
MAX_CHARACTERS = 600  # longer answers are lists of many paragraphs
SPACE_BEFORE_MARK = re.compile(r"\s+(?=[?.,])")


def build(folder: Path, *, seed: int = 0) -> dict[str, pa.Table]:
    """Build train, validation and test with string columns prompt, completion, group (the type of
    the question), focus (the disease) and source (the web site).

    Answers of other lengths, repeated answers and missing ones are dropped. All questions about a
    disease are in the same split. Raises DataError if `folder` is no clone of the data set.
    """
    pairs: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob("*_QA*/*.xml")):
        document = ElementTree.parse(path).getroot()
        focus = _text(document.find("Focus"))
        for pair in document.iter("QAPair"):
            question = pair.find("Question")
            answer = _text(pair.find("Answer"))
            if question is None or not MIN_CHARACTERS <= len(answer) <= MAX_CHARACTERS:
                continue
            row = {
                "prompt": _text(question).replace("??", "?"),
                "completion": answer,
                "group": question.get("qtype", ""),
                "focus": focus,
                "source": document.get("source", ""),
            }
            pairs.setdefault(answer, row)
    if not pairs:
        raise DataError(
            f"{folder} has no questions; run `git clone https://github.com/abachaa/MedQuAD`, and "
            "give the folder MedQuAD"
        )
    table = pa.Table.from_pylist(list(pairs.values()))
    parts = split_by_key(table["focus"].to_pylist(), fractions=FRACTIONS, seed=seed)
    return {name: table.filter(pa.array(parts == part)) for part, name in enumerate(SPLIT_NAMES)}


def _text(element: ElementTree.Element | None) -> str:
    """Return the text of an element with single spaces, and none before punctuation marks."""
    if element is None or element.text is None:
        return ""
    return SPACE_BEFORE_MARK.sub("", " ".join(element.text.split()))
