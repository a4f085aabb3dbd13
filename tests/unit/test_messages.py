"""The table of messages is that of the code."""

from tests import messages


def test_the_table_has_the_messages_of_the_code() -> None:
    written = messages.TABLE.read_text(encoding="utf-8")
    assert messages.table() == written, "run `python -m tests.messages` and read what changed"


def test_the_table_has_the_messages_of_each_package() -> None:
    lines = messages.table().splitlines()
    assert len(lines) > 500
    assert {line.split("/")[0] for line in lines} == set(messages.PACKAGES)
