"""Types of a batch job: what is scored, its parts, and what an output folder stores about itself."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class BatchError(ValueError):
    """A batch that cannot be scored as requested; the message says what to do."""


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class BatchSpec(_Stored):
    """What to score, by which version, and where the answers go."""

    input: str
    """URI of a Parquet file or a folder of them on S3."""
    output: str
    """URI of a folder on S3."""
    version_uri: str
    digest: str
    column: str
    """The column with the texts; for a chat model, with prompts or conversations."""
    id_column: str | None = None
    """The input column that the output repeats as `id`."""


class InputFile(_Stored):
    """A file of the input, as it was when the batch began."""

    uri: str
    etag: str
    size_bytes: int
    num_rows: int
    read_bytes: int
    """Uncompressed bytes of the columns that are read."""


class Part(_Stored):
    """Consecutive rows of one input file, which one worker scores into one output file."""

    number: int
    uri: str
    start: int
    """Position of the first row in its file."""
    first: int
    """Position of the first row in the whole input."""
    num_rows: int
    etag: str
    """The file's ETag when its rows were counted."""

    def output_uri(self, output: str) -> str:
        """URI of the part's answers."""
        return f"{output}/part-{self.number:06d}.parquet"


class PartResult(_Stored):
    """What a worker reports of a part."""

    part: int
    num_rows: int = 0
    started: float | None = None
    """`time.time()`; None if the part was stored already."""
    ended: float | None = None
    error: str | None = None
    """Why the part cannot be scored."""
    is_storage_error: bool = False


class PartSource(_Stored):
    """What a part's file was made from, stored in its Parquet metadata."""

    part: Part
    digest: str
    column: str
    id_column: str | None


class OutputClaim(_Stored):
    """What an output folder was begun for: `batch.json`, its first file."""

    format: Literal[1] = 1
    batch: BatchSpec
    inputs: tuple[InputFile, ...]
    part_rows: int


class OutputManifest(_Stored):
    """What a complete output folder holds: `manifest.json`, its last file."""

    format: Literal[1] = 1
    batch: BatchSpec
    model: str
    version: str
    inputs: tuple[InputFile, ...]
    num_rows: int
    num_parts: int
