"""Upload a folder of Parquet files to S3."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tailorbird import storage
from tailorbird.data.rows import DataError


def upload_parquet_folder(folder: Path, uri_prefix: str) -> list[str]:
    """Upload every `*.parquet` under `folder` to the same relative path under `uri_prefix`; return their sorted URIs.

    All files are checked before the first upload. Raises DataError if there are no files, or if a file is not Parquet
    or has no rows. Raises StorageError if an upload fails.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give a folder with Parquet files")
    files = sorted(path for path in folder.rglob("*.parquet") if path.is_file())
    if not files:
        raise DataError(f"{folder} contains no *.parquet file; give a folder with Parquet files")
    for path in files:
        try:
            num_rows = pq.read_metadata(path).num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path} is not a valid Parquet file ({error}); write it again or remove it") from None
        if num_rows == 0:
            raise DataError(f"{path} has no rows; write it again with rows, or remove it")
    uris = {f"{uri_prefix.rstrip('/')}/{path.relative_to(folder).as_posix()}": path for path in files}
    for uri, path in uris.items():
        storage.upload_file(path, uri)
    return sorted(uris)
