"""A role whose s3:ListBucket is limited to a prefix: S3 answers 403 for the bucket and for keys
that do not exist."""

from collections.abc import Iterator

import pytest

from tailorbird import storage
from tailorbird.storage import s3
from tests.prefix_policy import BUCKET, serve_objects

OBJECTS = {"team/data/part.parquet": b"rows", "team/data-2": b"2", "other/secret": b"secret"}
TEAM = f"s3://{BUCKET}/team"


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with serve_objects(OBJECTS) as url:
        for name, value in {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
        }.items():
            monkeypatch.setenv(name, value)
        yield


def test_files_and_folders_below_the_prefix_exist_and_other_names_do_not() -> None:
    present = {
        name: storage.exists(f"{TEAM}/{name}")
        for name in ("data/part.parquet", "data", "data/", "dat", "none")
    }
    assert present == {
        "data/part.parquet": True,
        "data": True,
        "data/": True,
        "dat": False,
        "none": False,
    }
    assert storage.list_files(f"{TEAM}/data") == [f"{TEAM}/data/part.parquet"]
    assert storage.read_versioned(f"{TEAM}/none") is None


@pytest.mark.parametrize("read", [storage.read_bytes, storage.list_files])
def test_the_error_for_a_missing_object_does_not_name_the_role(read: object) -> None:
    assert callable(read)
    with pytest.raises(s3.StorageError, match=r"/none does not exist; check the URI"):
        read(f"{TEAM}/none")


def test_the_bucket_exists_and_another_one_does_not() -> None:
    s3.require_bucket(f"{TEAM}/data")
    with pytest.raises(s3.StorageError, match="bucket 'missing' does not exist"):
        s3.require_bucket("s3://missing/data")


def test_a_refused_read_or_write_is_reported_as_such() -> None:
    for use in (
        lambda: storage.read_bytes(f"s3://{BUCKET}/other/secret"),
        lambda: storage.exists(f"s3://{BUCKET}/other/none"),
        lambda: storage.write_bytes(f"{TEAM}/new", b"1"),
        lambda: storage.write_if_match(f"{TEAM}/new", b"1", etag=None),
    ):
        with pytest.raises(s3.StorageError, match="access denied by"):
            use()
