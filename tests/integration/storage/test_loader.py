"""Rows are read from a real S3 server, and every error of a bucket is reported."""

import pyarrow as pa

from tailorbird import storage
from tailorbird.config.data import DataConfig
from tailorbird.data.datasets import icd10
from tailorbird.data.loader import read_splits
from tailorbird.data.parquet import read_table
from tailorbird.data.quality import clean
from tests.integration.small import write_table


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


def test_the_files_of_a_prefix_are_read_in_order(bucket: str) -> None:
    for number in (2, 0, 1):
        table = pa.table({"text": [f"text {number}"]})
        write_table(f"{bucket}/rows/part-{number}.parquet", table)
    storage.write_bytes(f"{bucket}/rows/_SUCCESS", b"done")
    texts = read_table(f"{bucket}/rows", columns=["text"])["text"].to_pylist()
    assert texts == ["text 0", "text 1", "text 2"]
