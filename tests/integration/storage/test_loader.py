"""Rows are read from a real S3 server, and every error of a bucket is reported."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailorbird import storage
from tailorbird.config.data import DataConfig
from tailorbird.data.datasets import icd10
from tailorbird.data.loader import read_splits
from tailorbird.data.parquet import read_table
from tailorbird.data.quality import clean
from tailorbird.data.rows import DataError
from tailorbird.data.upload import upload_data

NAMES = ("train", "validation", "test")


def write_rows(uri: str, **columns: Any) -> str:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    storage.write_bytes(uri, buffer.getvalue())
    return uri


def test_the_demo_data_is_written_and_read_completely(bucket: str) -> None:
    counts = icd10.write(f"{bucket}/icd10")
    config = DataConfig(
        train=f"{bucket}/icd10/train",
        validation=f"{bucket}/icd10/validation/",
        test=f"{bucket}/icd10/test/part-0.parquet",
        label="chapter",
        split_by="category",
        groups=("group",),
    )
    splits, report = clean(read_splits(config))
    assert {name: len(rows) for name, rows in splits.items()} == counts | {
        "train": report.num_train
    }
    assert counts["train"] - report.num_train == report.near_copies


def test_an_uploaded_folder_is_read_by_its_uris(bucket: str, tmp_path: Path) -> None:
    for name in NAMES:
        rows = [f"{name} {number}" for number in range(4)]
        pq.write_table(
            pa.table({"text": rows, "label": ["x", "y"] * 2}), tmp_path / f"{name}.parquet"
        )
    uploaded = upload_data(tmp_path, bucket)
    assert [file.uri for file in uploaded] == sorted(f"{bucket}/{name}.parquet" for name in NAMES)
    config = DataConfig(
        train=f"{bucket}/train.parquet",
        validation=f"{bucket}/validation.parquet",
        test=f"{bucket}/test.parquet",
    )
    assert read_splits(config).validation.texts == (
        "validation 0",
        "validation 1",
        "validation 2",
        "validation 3",
    )


def test_the_files_of_a_prefix_are_read_in_order(bucket: str) -> None:
    for number in (2, 0, 1):
        write_rows(f"{bucket}/rows/part-{number}.parquet", text=[f"text {number}"], label=["x"])
    storage.write_bytes(f"{bucket}/rows/_SUCCESS", b"done")
    assert read_table(f"{bucket}/rows", columns=["text"])["text"].to_pylist() == [
        "text 0",
        "text 1",
        "text 2",
    ]


def test_an_invalid_file_in_a_folder_prevents_the_upload(bucket: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "label": ["x"]}), tmp_path / "train.parquet")
    (tmp_path / "validation.parquet").write_text("not Parquet")
    with pytest.raises(DataError, match=r"validation.parquet"):
        upload_data(tmp_path, bucket)
    assert not storage.exists(bucket)
