"""MedQuAD as Parquet, from files in the format of its repository."""

from pathlib import Path

import pytest

from tailorbird.data.datasets import medquad
from tailorbird.data.rows import SPLIT_NAMES, DataError

ANSWER = "Drink plenty of water, rest for a few days, and call a doctor if the fever stays ."


def document(folder: Path, focus: str, answers: dict[str, str]) -> None:
    pairs = "".join(
        f'<QAPair><Question qtype="treatment">{question}</Question><Answer>{answer}</Answer></QAPair>'
        for question, answer in answers.items()
    )
    site = folder / "9_CDC_QA"
    site.mkdir(exist_ok=True)
    (site / f"{focus}.xml").write_text(
        f'<Document source="CDC"><Focus>{focus}</Focus><QAPairs>{pairs}</QAPairs></Document>'
    )


def test_questions_about_a_disease_share_a_split(tmp_path: Path) -> None:
    for number in range(60):
        questions = {
            f"What helps {part} {number} ??": f"{number} {part}. {ANSWER}" for part in "ab"
        }
        document(tmp_path, f"disease {number}", questions)
    tables = medquad.build(tmp_path)
    assert tuple(tables) == SPLIT_NAMES
    focus = [set(table["focus"].to_pylist()) for table in tables.values()]
    assert sum(map(len, focus)) == 60
    assert sum(table.num_rows for table in tables.values()) == 120
    assert len(focus[0]) > len(focus[1]) + len(focus[2])
    assert medquad.build(tmp_path, seed=1)["test"] != tables["test"]
    row = tables["train"].to_pylist()[0]
    assert row["prompt"][-2:] in {f"{digit}?" for digit in range(10)}
    assert row["completion"].endswith("stays.")
    assert (row["group"], row["source"]) == ("treatment", "CDC")


def test_repeated_missing_short_and_long_answers_are_dropped(tmp_path: Path) -> None:
    answers = {"first": ANSWER, "same": ANSWER, "missing": "", "short": "Rest.", "long": ANSWER * 9}
    document(tmp_path, "fever", answers)
    rows = [row for table in medquad.build(tmp_path).values() for row in table.to_pylist()]
    assert [row["prompt"] for row in rows] == ["first"]


def test_a_folder_without_the_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="git clone"):
        medquad.build(tmp_path)
