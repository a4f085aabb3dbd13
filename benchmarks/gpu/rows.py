"""Generated rows. A token is a letter, so the lengths of rows are exact."""

import random
import string

from tailorbird.data.rows import Rows

CLASSES = ("a", "b", "c", "d")
PROMPT_LETTERS = 12  # of a training prompt


def chat_rows(num: int, *, answer_letters: int) -> Rows:
    """Return conversations of one random prompt and one random answer each."""
    generator = random.Random(num)
    prompts = tuple(letters(generator, PROMPT_LETTERS) for _ in range(num))
    answers = tuple(letters(generator, answer_letters) for _ in range(num))
    return Rows(
        _ids(num), prompts, answers, conversations=tuple((("user", prompt),) for prompt in prompts)
    )


def labelled_rows(num: int, *, num_letters: int) -> Rows:
    """Return random texts with random classes."""
    generator = random.Random(num)
    texts = tuple(letters(generator, num_letters) for _ in range(num))
    return Rows(_ids(num), texts, tuple(generator.choice(CLASSES) for _ in range(num)))


def letters(generator: random.Random, num: int) -> str:
    """Return a text of random letters."""
    return "".join(generator.choices(string.ascii_lowercase, k=num))


def _ids(num: int) -> tuple[str, ...]:
    return tuple(map(str, range(num)))
