"""The S3 locations that a batch may read and write."""

import pytest

from serving.batch_jobs.locations import normalized_locations
from serving.batch_jobs.schema import BatchError

AMBIGUOUS = [
    "s3://lake/pre/../x",
    "s3://lake/pre/./x",
    "s3://lake/pre//x",
    "s3://lake/pre/x\nERROR forged",
    "s3://lake/pre/\x1b[2Jx",
    "file:///etc",
    "/etc",
    "S3://lake/pre/x",
    "s3://",
]


@pytest.mark.parametrize(
    ("input", "output"),
    [(uri, "s3://lake/pre/out") for uri in AMBIGUOUS]
    + [
        ("s3://lake/in", "out"),
        ("s3://lake/in", "s3://lake/../models/out"),
        ("s3://lake/in", "s3://lake/in/"),
        ("s3://lake/in", "s3://lake/in/out"),
        ("s3://lake/out/in", "s3://lake/out"),
    ],
)
def test_an_ambiguous_or_overlapping_location_is_refused(input: str, output: str) -> None:
    with pytest.raises(BatchError):
        normalized_locations(input=input, output=output)
