"""Upload data to S3 as Parquet: Parquet files as they are, JSON Lines and CSV files converted."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tailorbird import storage
from tailorbird.data.importing.convert import Report, Schema, check_file, write_parquet
from tailorbird.data.importing.records import SUFFIXES
from tailorbird.data.rows import DataError

PARQUET = ".parquet"
ALLOWED = ", ".join((PARQUET, *SUFFIXES))


@dataclass(frozen=True)
class UploadedFile:
    """A file on S3, and what it contains."""

    uri: str
    format: str  # of the source: Parquet, table, or the name of a chat format
    num_rows: int
    columns: tuple[str, ...]


def upload_data(
    source: Path, uri_prefix: str, *, report: Report = lambda *_: None
) -> list[UploadedFile]:
    """Upload a file, or every data file under a folder, to the same relative path under
    `uri_prefix`, as `.parquet`.

    All files are checked, and converted into a temporary folder, before the first upload. Returns
    the files sorted by URI. Raises DataError if there are no files, and for a file that is invalid,
    has no rows or has lines that cannot be kept. Raises StorageError if an upload fails.
    """
    base = source if source.is_dir() else source.parent
    targets: dict[str, Path] = {}
    for path in _data_files(source):
        target = path.relative_to(base).with_suffix(PARQUET).as_posix()
        if target in targets:
            raise DataError(f"{targets[target]} and {path} would both become {target}; rename one")
        targets[target] = path
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as folder:
        schemas = {target: _check(path, report=report) for target, path in targets.items()}
        ready: dict[str, Path] = {}
        for number, (target, path) in enumerate(targets.items()):
            ready[target] = path
            schema = schemas[target]
            if isinstance(schema, Schema):
                ready[target] = Path(folder) / f"{number}{PARQUET}"
                write_parquet(path, ready[target], schema=schema, report=report)
        total = sum(path.stat().st_size for path in ready.values())
        done = 0
        uploaded = []
        for target, path in ready.items():
            uri = f"{uri_prefix.rstrip('/')}/{target}"
            report(f"uploading {len(ready):,} files", done, total)
            storage.upload_file(path, uri)
            done += path.stat().st_size
            uploaded.append(_description(uri, schemas[target]))
    return sorted(uploaded, key=lambda file: file.uri)


def _data_files(source: Path) -> list[Path]:
    """Return the data files at or under a path; raise DataError if there are none."""
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.is_file() and _is_data(path))
        if not files:
            raise DataError(
                f"{source} contains no data file; give a folder with files of the types {ALLOWED}"
            )
        return files
    if not source.is_file():
        raise DataError(
            f"{source} does not exist; give a data file ({ALLOWED}) or a folder of them"
        )
    if not _is_data(source):
        raise DataError(f"{source} is not a data file by its name; allowed: {ALLOWED}")
    return [source]


def _is_data(path: Path) -> bool:
    return path.suffix.lower() in (PARQUET, *SUFFIXES)


def _check(path: Path, *, report: Report) -> Schema | pq.FileMetaData:
    """Return the schema of a file to convert, or the footer of a Parquet file."""
    if path.suffix.lower() != PARQUET:
        return check_file(path, report=report)
    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path} is not a valid Parquet file ({error}); write it again or remove it"
        ) from None
    if metadata.num_rows == 0:
        raise DataError(f"{path} has no rows; write it again with rows, or remove it")
    return metadata


def _description(uri: str, schema: Schema | pq.FileMetaData) -> UploadedFile:
    if isinstance(schema, Schema):
        format_name = schema.format_name
        columns = schema.arrow().names
    else:
        format_name = "Parquet"
        columns = schema.schema.to_arrow_schema().names
    return UploadedFile(uri, format_name, num_rows=schema.num_rows, columns=tuple(columns))
