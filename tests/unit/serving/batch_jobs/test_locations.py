"""The locations that a batch may read and write."""

import re

import pytest

from serving.batch_jobs.locations import location_error, normalized_locations
from serving.batch_jobs.schema import BatchError
from tailorbird.config.serving import ServingConfig

TASK_URI = "s3://models/task"
CONFIG = ServingConfig(
    batch_prefixes=("s3://lake/pre", "s3://models"), request_log="s3://lake/pre/requests"
)
REFUSED = [
    "s3://lake/prefix/in",
    "s3://lake/pre-/in",
    "s3://lake/Pre/in",
    "s3://lake",
    "s3://lake2/pre/in",
    "s3://lake/pre%2Fin",
    "s3://lake/\\pre/in",
    "s3://lake/\0/pre/in",
    "s3://models/task/versions/full-1",
    "s3://models/other",
    "s3://models",
    "s3://lake/pre/requests/day=1",
    "s3://lake/pre",
]
"""Locations that are refused. The last ones overlap the registry or the request log."""
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


@pytest.mark.parametrize("uri", REFUSED)
def test_a_location_outside_the_prefixes_or_in_the_registry_or_the_log_is_refused(uri: str) -> None:
    error = location_error(uri, task_uri=TASK_URI, config=CONFIG)
    assert error is not None
    assert not re.search(
        r"s3://(lake/pre|models)\b", error.removeprefix(uri)
    )  # the client may not know them


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
