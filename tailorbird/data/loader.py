"""Read a recipe's rows and split them."""

import numpy as np

from tailorbird.config.data import DataConfig
from tailorbird.data.parquet import concat_tables, read_table
from tailorbird.data.rows import Rows, Splits
from tailorbird.data.splits import normalise, split_by_key, subsample
from tailorbird.data.tasks import CLASSIFICATION, DataTask

SPLIT_FRACTIONS = (0.72, 0.11, 0.17)
SPLIT_SEED = 0


def read_splits(config: DataConfig, *, task: DataTask = CLASSIFICATION) -> Splits:
    """Read the three splits; without `validation` and `test`, split `train` 72/11/17.

    Without `validation` alone, draw `validation_share` of `train`. Both split by `split_by`, or by normalised text if
    the recipe has none (so copies of a text stay together). Raises DataError as `read_rows`; whether the splits fit
    each other is checked by `quality.clean`.
    """
    train = read_rows(*config.train_uris, config=config, task=task)
    if config.test is None:
        train, validation, test = _split(train, fractions=SPLIT_FRACTIONS)
    elif config.validation is None:
        share = config.validation_share
        train, validation, _ = _split(train, fractions=(1 - share, share, 0.0))
        test = read_rows(config.test, config=config, task=task)
    else:
        return Splits(train, *read_validation_and_test(config, task=task))
    return Splits(train, _at_most(validation, config.max_validation_rows), _at_most(test, config.max_test_rows))


def read_validation_and_test(config: DataConfig, *, task: DataTask = CLASSIFICATION) -> tuple[Rows, Rows]:
    """Read validation and test of a config that names both; see `read_splits`."""
    assert config.validation is not None
    assert config.test is not None
    validation, test = (read_rows(uri, config=config, task=task) for uri in (config.validation, config.test))
    return _at_most(validation, config.max_validation_rows), _at_most(test, config.max_test_rows)


def read_test(config: DataConfig, *, task: DataTask = CLASSIFICATION) -> Rows:
    """Read the test rows alone, the same as in `read_splits`, which is run if they are a part of `train`."""
    if config.test is None:
        return read_splits(config, task=task).test
    return _at_most(read_rows(config.test, config=config, task=task), config.max_test_rows)


def read_rows(*uris: str, config: DataConfig, task: DataTask = CLASSIFICATION) -> Rows:
    """Read rows of Parquet files or folders, one after the other; integer labels become strings.

    Raises DataError if the store cannot be read, a file is not Parquet, a column is missing or of a wrong type, a
    text, label or split key is null, a conversation does not end with an answer, or there are no rows.
    """
    tables = [read_table(uri, columns=task.columns(config)) for uri in uris]
    uri = ", ".join(uris)
    return task.rows(concat_tables(tables, uri=uri), config=config, uri=uri)


def _at_most(rows: Rows, size: int | None) -> Rows:
    """Return a random subset of `size` rows, the same in every run; all rows if there are fewer."""
    return rows if size is None else rows.take(subsample(len(rows), size=size, seed=SPLIT_SEED))


def _split(rows: Rows, *, fractions: tuple[float, float, float]) -> tuple[Rows, Rows, Rows]:
    keys = rows.split_keys if rows.split_keys is not None else [normalise(text) for text in rows.texts]
    splits = split_by_key(keys, fractions=fractions, seed=SPLIT_SEED)
    train, validation, test = (rows.take(np.flatnonzero(splits == split)) for split in range(3))
    return train, validation, test
