"""Read, write, list and conditionally change objects on S3 or in local folders."""

# mypy: implicit-reexport
# ruff: noqa: F401

from tailorbird.storage.conditional import (
    delete,
    read_versioned,
    update_bytes,
    write_if_match,
    write_once,
)
from tailorbird.storage.listing import file_entries, file_entry, list_folder
from tailorbird.storage.objects import (
    MANIFEST,
    comes_from_storage,
    delete_folder,
    download_folder,
    exists,
    list_files,
    open_file,
    read_bytes,
    read_json,
    sha256_file,
    sha256_object,
    upload_file,
    upload_folder,
    write_bytes,
    write_json,
)
from tailorbird.storage.s3 import PreconditionFailed, StorageError, filesystem, storage_errors
