"""Read the rows of a suite and check its columns."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import regex

from tailorbird.config.suites import BUILTIN, LIKELIHOOD_METRICS, SUITE_METRICS, WITHOUT_EXPECTATION
from tailorbird.data.answers import suite_metric
from tailorbird.data.parquet import (
    LABEL_KINDS,
    kind_of,
    open_parquet,
    parquet_files,
    read_strings,
    read_table,
    texts_of,
)
from tailorbird.data.rows import NO_GROUP, DataError, Rows, SuiteColumns

REQUIRED = ("prompt", "metric", "expectation")
OPTIONAL = ("group", "options", "counterpart")
WITH_OPTIONS = ("choice", *LIKELIHOOD_METRICS)


def read_suite(uri: str) -> Rows:
    """Return the rows of a suite: a Parquet file or folder, or `builtin://NAME` for a suite of this
    package.

    The texts are the prompts, the labels the expectations. Raises DataError if the suite has no
    rows, lacks a column, or has a row whose metric is unknown or whose values do not fit its
    metric.
    """
    if uri.startswith(BUILTIN):
        table = _builtin(uri.removeprefix(BUILTIN))
    else:
        table = _parquet(uri)
    prompts = texts_of(table, "prompt", uri=uri, first=0)
    groups = {}
    if _has(table, "group"):
        groups["group"] = read_strings(table, "group", uri=uri, first=0, fill=NO_GROUP)
    rows = Rows(
        row_ids=tuple(map(str, range(len(prompts)))),
        texts=prompts,
        labels=_texts(table, "expectation", uri=uri),
        groups=groups,
        conversations=tuple((("user", prompt),) for prompt in prompts),
        suite=SuiteColumns(
            metrics=texts_of(table, "metric", uri=uri, first=0),
            options=_options(table, uri=uri),
            counterparts=_texts(table, "counterpart", uri=uri),
            starts=("",) * len(prompts),
        ),
    )
    for position in range(len(rows)):
        if (fault := _fault(rows, position)) is not None:
            raise DataError(
                f"{uri}: row {position} of the suite cannot be used: {fault}. Correct or drop it"
            )
    return rows


def _parquet(uri: str) -> pa.Table:
    with open_parquet(parquet_files(uri)[0], columns=REQUIRED) as file:
        names = file.schema_arrow.names
    return read_table(uri, columns=[name for name in (*REQUIRED, *OPTIONAL) if name in names])


def _builtin(name: str) -> pa.Table:
    lines = Path(__file__).with_name(f"{name}.ndjson").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    types = dict.fromkeys((*REQUIRED, *OPTIONAL), pa.string()) | {"options": pa.list_(pa.string())}
    return pa.Table.from_pylist(records, schema=pa.schema(types))


def _has(table: pa.Table, name: str) -> bool:
    return name in table.column_names and bool(table.column(name).null_count < table.num_rows)


def _texts(table: pa.Table, name: str, *, uri: str) -> tuple[str, ...]:
    """Return a column of strings or integers with nulls as empty strings; empty strings without the
    column."""
    if not _has(table, name):
        return ("",) * int(table.num_rows)
    return read_strings(table, name, uri=uri, first=0, allowed=LABEL_KINDS, fill="")


def _options(table: pa.Table, *, uri: str) -> tuple[tuple[str, ...], ...]:
    if not _has(table, "options"):
        return ((),) * int(table.num_rows)
    kind = table.schema.field("options").type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not is_list or kind_of(kind.value_type) != "string":
        raise DataError(
            f"{uri}: column 'options' has type {kind}, but must have lists of strings; convert it"
        )
    return tuple(tuple(options or ()) for options in table.column("options").to_pylist())


def _fault(rows: Rows, position: int) -> str | None:
    """Return why a row cannot be used; None if it can."""
    suite = rows.suite
    assert suite is not None
    metric = suite.metrics[position]
    options = suite.options[position]
    expectation = rows.labels[position]
    if metric not in SUITE_METRICS:
        return f"its metric is {metric!r}, not one of {', '.join(SUITE_METRICS)}"
    if not rows.texts[position].strip():
        return "its prompt is empty"
    if not expectation.strip() and metric not in WITHOUT_EXPECTATION:
        return f"it has no expectation, which {metric} needs"
    if metric in WITH_OPTIONS and not _are_options(options):
        return f"its options are {list(options)}, but {metric} needs two or more different texts"
    if metric in ("choice", "forced_choice") and expectation not in options:
        return f"its expectation {expectation!r} is not one of its options {list(options)}"
    if metric == "same_choice" and not suite.counterparts[position].strip():
        return "it has no counterpart, the second prompt that same_choice compares"
    try:
        if metric == "regex":
            regex.compile(expectation)
        elif metric in ("numeric", "json_fields", "choice"):
            suite_metric(metric, options=options)(expectation, expectation)
    except (regex.error, ValueError, RecursionError, OverflowError) as error:
        return f"its expectation {expectation[:80]!r} does not fit the metric {metric}: {error}"
    if metric in ("contains", "not_contains") and not any(map(str.isalnum, expectation)):
        return f"its expectation {expectation[:80]!r} has no letter or digit"
    return None


def _are_options(options: Sequence[str | None]) -> bool:
    return (
        len(options) > 1
        and len(set(options)) == len(options)
        and all(option and option.strip() for option in options)
    )
