"""The console and its listings on a real S3 server."""

from datetime import UTC, datetime, timedelta

from tailorbird import storage
from tailorbird.console.site import Site, page_at
from tailorbird.storage.listing import file_entry, list_folder
from tailorbird.storage.paths import TaskPaths
from tests import console_registry as made


def test_a_folder_is_listed_one_level_deep_and_a_tag_changes_with_the_content(bucket: str) -> None:
    for name in ("b.json", "a/x.json", "a/y/z.json"):
        storage.write_bytes(f"{bucket}/{name}", b"1")
    entries = list_folder(bucket)
    assert [(entry.uri, entry.is_folder) for entry in entries] == [
        (f"{bucket}/a", True),
        (f"{bucket}/b.json", False),
    ]
    file = file_entry(f"{bucket}/b.json")
    assert file is not None
    assert file == entries[1]
    assert file.changed_at is not None
    assert abs(datetime.now(UTC) - file.changed_at) < timedelta(minutes=10)
    storage.write_bytes(f"{bucket}/b.json", b"2")  # the same size, within the second
    changed = file_entry(f"{bucket}/b.json")
    assert changed is not None
    assert changed.tag != file.tag
    assert [file_entry(f"{bucket}/{name}") for name in ("none", "a")] == [None, None]
    assert list_folder(f"{bucket}/none") == ()


def test_the_pages_show_what_is_on_s3_and_change_with_it(bucket: str) -> None:
    paths, now = TaskPaths(f"{bucket}/icd10-chapters"), datetime.now(UTC)
    site, run = Site(bucket), "0" * 16
    assert "The registry contains no task yet" in page_at(site, None, now=now)[1]
    made.add_progress(paths, run, started=now - timedelta(minutes=9), updated=now)
    assert "Run under way" in page_at(site, None, now=now)[1]
    evidence = made.add_run(paths, run, at=now)
    made.add_looks(paths, evidence)
    made.add_progress(paths, run, started=now, updated=now, status="finished")
    assert "Run under way" not in page_at(site, None, now=now)[1]
    status, page = page_at(site, f"icd10-chapters/runs/{run}", now=now)
    assert (status, "Some records could not be read" in page, run in page) == (200, False, True)
