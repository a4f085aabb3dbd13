"""Selection of audited rows."""

from dataclasses import replace

from tailorbird.data.fingerprints import fingerprints
from tailorbird.data.rows import Conversation, Rows, Splits
from tailorbird.operate.audited_data import usable_rows


def test_a_text_is_used_once_and_not_if_it_is_in_a_split_before_redaction() -> None:
    def rows(**texts: str) -> Rows:
        return Rows(row_ids=tuple(texts), texts=tuple(texts.values()), labels=("x",) * len(texts))

    splits = Splits(
        rows(t="my card 4111 1111 1111 1111 was refused"), rows(v="a cough"), rows(e="a rash")
    )
    audited = rows(
        a="my card [number] was refused",
        b="My knee",
        c="my knee",
        f="An eye",
        d="an eye",
        e="a cough",
    )
    usable, dropped = usable_rows(audited, splits, evaluated={"d"})
    assert usable.row_ids == ("b", "d")  # not f: its text was evaluated as d
    counted = {reason: num for reason, num in dropped.items() if num}
    assert counted == {"train": 1, "validation": 1, "duplicate": 2}
    usable, dropped = usable_rows(audited, splits, learned=fingerprints(["an eye!", "a hand"]))
    assert (usable.row_ids, dropped["trained"]) == (("b",), 2)


CHAT = Rows(
    ("a:0", "b:0"),
    ("my knee", "hello\nhi\na rash"),
    ("rest", "a cream"),
    conversations=(
        (("user", "my knee"),),
        (("user", "hello"), ("assistant", "hi"), ("user", "a rash")),
    ),
)


def test_a_conversation_with_a_redacted_correct_answer_is_not_used() -> None:
    usable, dropped = usable_rows(
        replace(CHAT, labels=("call [number]", "a cream")), Splits(*[Rows((), (), ())] * 3)
    )
    assert (usable.labels, dropped["redacted"]) == (("a cream",), 1)


def test_a_system_message_does_not_hide_a_row_of_a_split() -> None:
    def rows(*turns: Conversation) -> Rows:
        texts = tuple("\n".join(content for _, content in conversation) for conversation in turns)
        return Rows(
            tuple(map(str, range(len(turns)))), texts, ("rest",) * len(turns), conversations=turns
        )

    system, knee, eye = (("system", "be brief"), ("user", "my knee"), ("user", "my eye"))
    splits = Splits(rows((("system", "be kind"), knee)), rows(), rows())
    usable, dropped = usable_rows(rows((system, knee), (knee,), (system, eye), (eye,)), splits)
    assert usable.conversations == ((system, eye),)
    assert (dropped["train"], dropped["duplicate"]) == (2, 1)
