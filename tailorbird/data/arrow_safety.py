"""Find Arrow columns whose values Python code would instantiate."""

from collections.abc import Iterable

import pyarrow as pa


def extension_columns(schema: pa.Schema, *, columns: Iterable[str] | None = None) -> list[str]:
    """Return the columns (of all, or of `columns`) with an extension type that Python code instantiates, at any depth.

    They are unsafe in untrusted files: the file names the type, and Ray Data registers one whose values are pickles, so
    reading a value runs code. pyarrow's own extension types, such as UUID, are safe.
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
