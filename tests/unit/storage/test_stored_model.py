"""Stored values record their format, and a newer format is rejected."""

import pytest

from tailorbird.storage.stored_model import FORMAT, StoredModel


class Note(StoredModel):
    text: str


def test_a_stored_value_records_its_format_and_is_read_back() -> None:
    note = Note(text="a")
    assert note.model_dump(mode="json") == {"format": FORMAT, "text": "a"}
    assert Note.model_validate_json(note.model_dump_json()) == note


def test_a_newer_format_is_rejected() -> None:
    with pytest.raises(ValueError, match=f"this Note has format {FORMAT + 1}"):
        Note.model_validate({"format": FORMAT + 1, "text": "a"})
