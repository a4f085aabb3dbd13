"""Read a recipe's rows and split them."""

import numpy as np

from tailorbird.config.data import DataConfig
from tailorbird.data.parquet import concat_tables, read_table
from tailorbird.data.rows import SPLIT_NAMES, DataError, Rows, Splits, document_keys
from tailorbird.data.splits import split_by_key, subsample
from tailorbird.data.task_data import CLASSIFICATION, DataTask

SPLIT_FRACTIONS = (0.72, 0.11, 0.17)
SPLIT_SEED = 0


def read_splits(config: DataConfig, *, task: DataTask = CLASSIFICATION) -> Splits:
    """Read the three splits.

    Without `test`, `train` is split 72/11/17. Without `validation` only, `validation_share` of
    `train` is split off. The rows of a document (`document_keys`) stay in one split. Raises
    DataError like `read_rows`. `quality.clean` checks the splits against each other.
    """
    train = read_rows(*config.train_uris, config=config, task=task)
    if config.validation is not None:
        return Splits(train, *read_validation_and_test(config, task=task))
    if config.test is None:
        train, validation, test = _split(train, fractions=SPLIT_FRACTIONS, config=config)
        test = _at_most(test, config.max_test_rows)
    else:
        share = config.validation_share
        train, validation, _ = _split(train, fractions=(1 - share, share, 0.0), config=config)
        test = read_test(config, task=task)
    return Splits(train, _at_most(validation, config.max_validation_rows), test)


def read_validation_and_test(
    config: DataConfig, *, task: DataTask = CLASSIFICATION
) -> tuple[Rows, Rows]:
    """Read validation and test of a config that sets both; see `read_splits`."""
    assert config.validation is not None
    validation = read_rows(config.validation, config=config, task=task)
    test = read_test(config, task=task)
    return _at_most(validation, config.max_validation_rows), test


def read_test(config: DataConfig, *, task: DataTask = CLASSIFICATION) -> Rows:
    """Return the test rows of `read_splits`; read other splits only if the test rows are split off
    `train`."""
    if config.test is None:
        return read_splits(config, task=task).test
    return _at_most(read_rows(config.test, config=config, task=task), config.max_test_rows)


def read_rows(*uris: str, config: DataConfig, task: DataTask = CLASSIFICATION) -> Rows:
    """Read the rows of Parquet files or folders in the given order. Integer labels become strings.

    Raises DataError if a URI cannot be read, a file is not Parquet, a column is missing or has a
    wrong type, a text, label or split key is null, a conversation does not end with an answer, or
    there are no rows.
    """
    tables = [read_table(uri, columns=task.columns(config)) for uri in uris]
    uri = ", ".join(uris)
    return task.rows(concat_tables(tables, uri=uri), config=config, uri=uri)


def _at_most(rows: Rows, size: int | None) -> Rows:
    """Return a random subset of `size` rows, the same in every run; all rows if there are fewer."""
    if size is None:
        return rows
    return rows.take(subsample(len(rows), size=size, seed=SPLIT_SEED))


def _split(
    rows: Rows, *, fractions: tuple[float, float, float], config: DataConfig
) -> tuple[Rows, Rows, Rows]:
    """Return train, validation and test; raise DataError if there are too few documents for all of
    them."""
    keys = document_keys(rows)
    splits = split_by_key(keys, fractions=fractions, seed=SPLIT_SEED)
    parts = [rows.take(np.flatnonzero(splits == split)) for split in range(3)]
    shares = zip(SPLIT_NAMES, parts, fractions, strict=True)
    empty = [name for name, part, fraction in shares if fraction and not len(part)]
    if empty and (config.split_by is not None or not rows.class_labels):
        raise DataError(
            f"no row is left for {' and '.join(empty)}, because the rows to split have only "
            f"{len(set(keys)):,} documents. A document has one value of data.split_by, or "
            "conversations with the same beginning. Add other documents, change data.split_by, or "
            "set data.train, data.validation and data.test"
        )
    return parts[0], parts[1], parts[2]
