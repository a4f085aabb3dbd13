import numpy as np
import pytest

from tailorbird.data.fingerprints import fingerprints, letters_and_digits, user_texts
from tailorbird.data.rows import Rows


@pytest.mark.parametrize("changed", ["Hello, world!", "hello\u200b WORLD.", " Hello  World\n", "ｈｅｌｌｏ world"])
def test_punctuation_case_and_zero_width_characters_do_not_change_a_fingerprint(changed: str) -> None:
    assert fingerprints([changed]) == fingerprints(["hello world"])


def test_marks_belong_to_their_letters() -> None:
    assert letters_and_digits("हिन्दी, में") == "हिन्दी में"


def test_texts_without_letters_differ() -> None:
    assert len(np.unique(fingerprints(["...", "?!", ""]))) == 3


def test_a_conversation_is_known_by_the_turns_of_its_user() -> None:
    conversation = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Why?"))
    rows = Rows(("0",), ("all turns",), ("answer",), conversations=(conversation,))
    assert user_texts(rows) == ("Hi\nWhy?",)
    assert user_texts(Rows(("0",), ("text",), ("label",))) == ("text",)
