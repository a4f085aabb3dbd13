"""Comparison of two values as JSON."""

from pathlib import Path

from tailorbird.checks.differences import differences, read_content, read_value


def test_each_different_path_yields_a_sentence() -> None:
    stated = {"a": [1, {"b": True}], "c": "x", "d": 0.1 + 0.2}
    expected = {"a": [1, {"b": False}], "d": 0.3}
    assert list(differences(stated, expected, at="verdict", other="the recomputed value is")) == [
        "verdict.a.1.b is true in evidence.json; the recomputed value is false",
        'verdict.c is "x" in evidence.json; the recomputed value is "missing"',
    ]
    assert list(differences([1], [1, 2], at="", other="it is")) == [
        " is [1] in evidence.json; it is [1, 2]"
    ]
    assert list(differences(1, True, at="n", other="it is")) == [
        "n is 1 in evidence.json; it is true"
    ]


def test_a_missing_or_damaged_file_has_no_value(tmp_path: Path) -> None:
    (tmp_path / "damaged.json").write_text("{")
    assert read_value((tmp_path / "damaged.json").as_uri()) is None
    assert read_content((tmp_path / "missing.json").as_uri()) is None
    assert read_value((tmp_path / "missing.json").as_uri()) is None
