"""Codes of draws, and the secret from which they are computed."""

from pathlib import Path

import numpy as np
import pytest

from tailorbird import storage
from tailorbird.registry.draws import DrawSecret, draw_code, draw_secret
from tailorbird.storage.paths import TaskPaths
from tailorbird.storage.s3 import StorageError

SECRET = b"s" * 32


def test_codes_are_uniform_and_differ_between_secrets_and_purposes() -> None:
    codes = (
        np.array([draw_code(SECRET, "row", str(number)) for number in range(4000)], np.float64)
        / 2**64
    )
    assert np.histogram(codes, 4, (0, 1))[0] == pytest.approx(1000, abs=140)  # five standard errors
    different = [
        (SECRET, ("row", "a")),
        (SECRET, ("unit", "a")),
        (SECRET, ("row", "", "a")),
        (b"t" * 32, ("row", "a")),
    ]
    assert len({draw_code(secret, *parts) for secret, parts in different}) == 4
    assert draw_code(SECRET, "row", "\ud800") != draw_code(SECRET, "row", "\ud801")


def test_a_stored_secret_is_returned_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    task_uri = f"{tmp_path.as_uri()}/task"
    uri = TaskPaths(task_uri).draw_secret
    storage.write_bytes(uri, DrawSecret(key=SECRET.hex()).model_dump_json().encode())
    assert draw_secret(task_uri) == SECRET
    for damaged in (b"{}", b'{"format": 1, "key": "not hex"}', b'{"format": 1, "key": ""}'):
        storage.write_bytes(uri, damaged)
        with pytest.raises(StorageError, match="is not a valid secret"):
            draw_secret(task_uri)
