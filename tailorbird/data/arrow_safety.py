"""Before a value of an Arrow column is looked at: whether it would be made by code, which a file may name."""

from collections.abc import Iterable

import pyarrow as pa


def extension_columns(schema: pa.Schema, *, columns: Iterable[str] | None = None) -> list[str]:
    """Names of the columns (of all, or of these) whose values a Python class would make, at any depth.

    A file says itself what extension type a column has. Ray Data registers one whose values are pickles: where it is
    imported, to look at such a value runs whatever code is in it. Types that pyarrow itself has, a UUID's, are none.
    """
    named = schema.names if columns is None else columns
    return [name for name in named if _is_made_by_code(schema.field(name).type)]


def _is_made_by_code(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.ExtensionType):
        return True
    if isinstance(kind, pa.BaseExtensionType):
        return _is_made_by_code(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _is_made_by_code(kind.value_type)
    return any(_is_made_by_code(kind.field(place).type) for place in range(kind.num_fields))
