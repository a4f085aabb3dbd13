"""Training rows on disk and a job that shards them."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tailorbird.config.data import DataConfig
from tailorbird.data.quality import EvaluatedRows, evaluated_rows
from tailorbird.data.sharding.worker import ShardingJob
from tailorbird.data.task_data import CLASSIFICATION
from tests.build import rows

LONG = "one two three four five six seven eight nine ten"
NEAR_COPY = LONG.replace("ten", "six")
VALIDATION = ("copied validation", LONG, "copied test")


def label_of(text: str) -> str:
    return "ab"[len(text) % 2]


def write(
    folder: Path,
    texts: Sequence[str],
    *,
    name: str = "train",
    group_rows: int = 100,
    **columns: object,
) -> str:
    labels = list(map(label_of, texts))
    table = pa.table(
        {"text": list(texts), "label": labels, "key": [f"k{index}" for index in range(len(texts))]}
        | columns
    )
    path = folder / f"{name}.parquet"
    pq.write_table(table, path, row_group_size=group_rows)
    return path.as_uri()


def texts_of(num: int) -> list[str]:
    return [
        "abcdefgh"[index % 8] * (1 + index % 50) + " " + "xyz"[index % 3] * (1 + index // 50)
        for index in range(num)
    ]


def evaluated(*, test: Sequence[str] = (), validation: Sequence[str] = ()) -> EvaluatedRows:
    return evaluated_rows(
        rows(test, list(map(label_of, test))),
        validation=rows(validation, list(map(label_of, validation))),
    )


def job_of(config: DataConfig, folder: Path, **fields: object) -> ShardingJob:
    values = {
        "config": config.model_copy(update={"max_length": 16}),
        "task": CLASSIFICATION,
        "base_model": "",
        "uri": (folder / "shards").as_uri(),
        "sample_share": 0.2,
        "evaluated": evaluated(test=["copied test"], validation=VALIDATION),
        "evaluation_keys": frozenset({"k1", "k2", "t"}),
    }
    return ShardingJob(**values | fields)  # type: ignore[arg-type]
