"""Texts of two classes that any model separates: a word of the class among random words."""

import random
import string

from tailorbird.data.rows import Rows


def separable_rows(size: int, *, seed: int) -> Rows:
    """Return rows with the labels `blue` and `red`, whose word is in the text."""
    generator = random.Random(seed)
    labels = tuple(("blue", "red")[row % 2] for row in range(size))
    texts = []
    for label in labels:
        words = ["".join(generator.choices(string.ascii_lowercase, k=7)) for _ in range(6)]
        texts.append(" ".join([*words[:3], label, *words[3:]]))
    return Rows(tuple(f"{seed}-{row}" for row in range(size)), tuple(texts), labels)
