"""Detect Arrow columns with values that Python code instantiates."""

from collections.abc import Iterable

import pyarrow as pa


def extension_columns(schema: pa.Schema, *, columns: Iterable[str] | None = None) -> list[str]:
    """Return the columns (of `columns`, or of all) that contain an extension type implemented in
    Python, at any depth.

    Such columns are unsafe in untrusted files: Ray Data registers a type whose values are pickles,
    and a file can use it, so reading a value runs code. The extension types of pyarrow itself, such
    as UUID, are safe.
    """
    names = schema.names if columns is None else columns
    return [name for name in names if _has_extension(schema.field(name).type)]


def _has_extension(type_: pa.DataType) -> bool:
    if isinstance(type_, pa.ExtensionType):
        return True
    if isinstance(type_, pa.BaseExtensionType):
        return _has_extension(type_.storage_type)
    if pa.types.is_dictionary(type_) or pa.types.is_run_end_encoded(type_):
        return _has_extension(type_.value_type)
    return any(_has_extension(type_.field(index).type) for index in range(type_.num_fields))
