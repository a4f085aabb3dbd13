"""Types of batch jobs: the specification, the parts, and the metadata files of an output folder."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class BatchError(ValueError):
    """A batch that cannot be scored as requested. The message states what to change."""


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class BatchSpec(_Stored):
    """The input, the version and the output of a batch."""

    input: str
    """URI of a Parquet file or of a folder of Parquet files on S3."""
    output: str
    """URI of a folder on S3."""
    version_uri: str
    digest: str
    column: str
    """Column with the texts; for chat models, with prompts or conversations."""
    id_column: str | None = None
    """Input column to copy to the output as `id`."""


class InputFile(_Stored):
    """A file of the input at the start of the batch."""

    uri: str
    etag: str
    size_bytes: int
    num_rows: int
    read_bytes: int
    """Uncompressed size of the columns that are read."""


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
    """The file's ETag at the start of the batch."""

    def output_uri(self, output: str) -> str:
        """Return the URI of the part's output file."""
        return f"{output}/part-{self.number:06d}.parquet"


class PartResult(_Stored):
    """A worker's report on a part."""

    part: int
    num_rows: int = 0
    is_new: bool = False
    """False if the part was already stored."""
    error: str | None = None
    """Reason why the part cannot be scored, or None."""
    cause: str | None = None
    """Name of the class of an error of storage or an endpoint, for example `EndpointSpendExceeded`;
    None for an error in the input."""
    num_unanswered: int = 0
    """Rows that the endpoint refused, or for which it named no class."""


class PartSource(_Stored):
    """The source of a part's output file, stored in its Parquet metadata."""

    part: Part
    digest: str
    column: str
    id_column: str | None


class OutputClaim(_Stored):
    """The batch to which an output folder belongs: `batch.json`, the first file in the folder."""

    format: Literal[1] = 1
    batch: BatchSpec
    inputs: tuple[InputFile, ...]
    part_rows: int


class OutputManifest(OutputClaim):
    """The contents of a complete output folder: `manifest.json`, the last file in the folder."""

    model: str
    version: str
    num_rows: int
    num_parts: int
    num_unanswered: int = 0
    """Rows that the endpoint refused, or for which it named no class. Their label or answer is
    null."""
