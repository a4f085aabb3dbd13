"""Inspect Parquet files for a drafted recipe: splits, column roles, token lengths, and the checks
of a run."""

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailorbird.config.data import DataConfig
from tailorbird.config.model_uri import parse_model_uri
from tailorbird.data.conversations import answer_fault, conversation_of
from tailorbird.data.loader import SPLIT_FRACTIONS, read_splits
from tailorbird.data.parquet import parquet_files
from tailorbird.data.profiling.column_roles import ColumnRoles, infer_column_roles, roles_of
from tailorbird.data.profiling.languages import Languages, languages_of
from tailorbird.data.profiling.sample import SAMPLE_ROWS, Sample, count_rows, read_sample
from tailorbird.data.profiling.token_lengths import TokenLengths, conversation_lengths, text_lengths
from tailorbird.data.quality import DataReport, clean
from tailorbird.data.rows import Conversation, DataError
from tailorbird.data.task_data import data_task
from tailorbird.evaluation.statistics.split_differences import SplitSample
from tailorbird.init.data_warnings import sample_warnings, split_warnings
from tailorbird.init.task_defaults import DEFAULTS
from tailorbird.models.base_model import staged_base_model

SPLITS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
"""File and folder names of each split."""
COLUMNS = ("text", "label", "prompt", "completion", "messages")
MAX_KEYS = 3  # candidate columns for `split_by` that are checked
S3_SETTINGS = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_ROLE_ARN",
)


@dataclass(frozen=True)
class DraftOptions:
    """Options of `tailorbird init`."""

    text: str | None = None
    label: str | None = None
    registry: str = "s3://models"
    base_model: str | None = None


@dataclass(frozen=True)
class SplitUris:
    train: tuple[str, ...]
    validation: str | None = None
    test: str | None = None


@dataclass(frozen=True)
class SplitCheck:
    """The column to split by, and the result of the checks that a run makes."""

    split_by: str | None
    report: DataReport | None = None
    fault: str | None = None  # reason why a run would reject the rows
    rejected: tuple[str, ...] = ()  # reasons why candidate columns cannot be `split_by`
    warnings: tuple[str, ...] = ()  # differences between named splits that are larger than chance
    compared: str | None = None  # rows of each split that were compared, if not all


@dataclass(frozen=True)
class DataSummary:
    """Properties of the data from which a recipe is drafted."""

    uris: SplitUris
    sample: Sample
    roles: ColumnRoles
    lengths: TokenLengths
    languages: Languages
    num_train: int  # rows of the training files, with those that a run splits off
    num_validation: int
    num_test: int
    base_model: str

    @property
    def num_tuning(self) -> int:
        """Rows that a run trains on."""
        train = self.num_train
        if self.uris.validation is None:
            train -= self.num_validation
        if self.uris.test is None:
            train -= self.num_test
        return train


def inspect_data(source: str, *, options: DraftOptions) -> DataSummary:
    """Read the footers of all files and a sample of the training rows; raise DataError if no task
    can be inferred."""
    uris = find_splits(source if "://" in source else Path(source).resolve().as_uri())
    sample = read_sample(uris.train[0])
    if not sample.num_sampled:
        raise DataError(f"{sample.uri} has no rows; give Parquet files with at least one row")
    roles = infer_column_roles(sample, text=options.text, label=options.label)
    base_model = options.base_model or DEFAULTS[roles.task].base_model
    tokenizer, prompt = _offline_tokenizer(base_model, registry=options.registry)
    lengths = _lengths(roles, tokenizer=tokenizer, prompt=prompt)
    num_train = sample.num_rows + sum(count_rows(uri) for uri in uris.train[1:])
    num_validation, num_test = _held_out(uris, num_train=num_train)
    languages = languages_of(texts_in(roles))
    return DataSummary(
        uris, sample, roles, lengths, languages, num_train, num_validation, num_test, base_model
    )


def _held_out(uris: SplitUris, *, num_train: int) -> tuple[int, int]:
    """Return the numbers of validation and test rows, which a run splits off `train` if they have
    no file."""
    if uris.test is None:
        _, validation, test = SPLIT_FRACTIONS
        return int(validation * num_train), int(test * num_train)
    num_test = count_rows(uris.test)
    if uris.validation is not None:
        return count_rows(uris.validation), num_test
    share: float = DataConfig.model_fields["validation_share"].default
    return int(share * num_train), num_test


def _lengths(roles: ColumnRoles, *, tokenizer: Any, prompt: str) -> TokenLengths:
    if roles.text is not None:
        return text_lengths(texts_in(roles), tokenizer=tokenizer, prompt=prompt)
    try:
        return conversation_lengths(conversations_in(roles), tokenizer=tokenizer)
    except DataError:  # The chat template rejects a conversation. A run reports it.
        return conversation_lengths(conversations_in(roles), tokenizer=None)


def find_splits(uri: str) -> SplitUris:
    """Return the splits of a folder, recognized by file and folder names (see SPLITS).

    Without a `train` split, the whole folder is training data. Raises DataError if the folder has
    no Parquet files, or if validation or test is more than one file or folder.
    """
    uri = uri.rstrip("/")
    named: dict[str, list[str]] = {}
    for file in parquet_files(uri):
        first = file.removeprefix(f"{uri}/").partition("/")[0]
        stem = re.split(r"[-_.0-9]", first.lower())[0]
        split = next((split for split, names in SPLITS.items() if stem in names), None)
        if split is not None and file != uri:
            named.setdefault(split, []).append(f"{uri}/{first}")
    by_split = {split: tuple(dict.fromkeys(uris)) for split, uris in named.items()}
    if "train" not in by_split:
        return SplitUris((uri,))
    for split in ("validation", "test"):
        num = len(by_split.get(split, ()))
        if num > 1:
            raise DataError(
                f"{uri}: the {split} split has {num} files or folders; move them into one folder "
                f"{split}/"
            )
    test = by_split.get("test", (None,))[0]
    validation = by_split.get("validation", (None,))[0]
    if test is None and validation is not None:  # A recipe with `validation` also needs `test`.
        return SplitUris((*by_split["train"], validation))
    return SplitUris(by_split["train"], validation, test)


def conversations_in(roles: ColumnRoles) -> list[Conversation]:
    """Return the sample's conversations that end with an answer."""
    if roles.messages is not None:
        conversations = []
        for messages in roles.messages.column.values:
            with suppress(ValueError):  # a run reports it
                conversations.append(conversation_of(messages or ()).turns)
    else:
        assert roles.prompt is not None
        assert roles.completion is not None
        pairs = zip(roles.prompt.column.values, roles.completion.column.values, strict=True)
        conversations = [
            (("user", prompt), ("assistant", answer))
            for prompt, answer in pairs
            if prompt and answer
        ]
    return [turns for turns in conversations if answer_fault(turns) is None]


def texts_in(roles: ColumnRoles) -> list[str]:
    """Return the sample's texts, or the turns of its conversations before the answer."""
    if roles.text is not None:
        return [text or "" for text in roles.text.column.values]
    return ["\n".join(content for _, content in turns[:-1]) for turns in conversations_in(roles)]


def data_config(summary: DataSummary, *, split_by: str | None) -> DataConfig:
    """Return the fields of the recipe's data section that determine how rows are read."""
    roles = summary.roles
    uris = summary.uris
    columns = {name: role.name for name in COLUMNS if (role := getattr(roles, name)) is not None}
    return DataConfig(
        train=uris.train[0] if len(uris.train) == 1 else uris.train,
        validation=uris.validation,
        test=uris.test,
        split_by=split_by,
        groups=tuple(group.name for group in roles.groups),
        max_length=max_length(summary),
        **columns,
    )


def max_length(summary: DataSummary) -> int:
    """Return the 99th percentile of tokens per row, rounded up to a multiple of 8, up to the task's
    maximum."""
    return max(16, min(DEFAULTS[summary.roles.task].longest, -(-summary.lengths.p99 // 8) * 8))


def check_splits(summary: DataSummary) -> SplitCheck:
    """Read and check the rows as a run does, and return the first column that separates them, if
    any.

    If the data is too large to read, return the most likely column without a check, and compare
    samples of the splits.
    """
    keys = [key.name for key in summary.roles.keys[:MAX_KEYS]]
    if not summary.sample.is_whole or summary.num_train + summary.num_test > 2 * SAMPLE_ROWS:
        if summary.uris.test is None:  # a run draws the splits at random
            return SplitCheck(keys[0] if keys else None)
        return _compare_samples(summary)
    rejected: list[str] = []
    for key in (*keys, None):
        try:
            splits = read_splits(
                data_config(summary, split_by=key), task=data_task(summary.roles.task)
            )
            if summary.uris.test is not None:
                warnings = split_warnings(splits)
            else:
                warnings = ()
            return SplitCheck(key, clean(splits)[1], rejected=tuple(rejected), warnings=warnings)
        except DataError as error:
            if key is None:
                return SplitCheck(None, fault=str(error), rejected=tuple(rejected))
            rejected.append(f"{key} cannot be split_by: {error}")
    raise AssertionError("the last key is None")


def _compare_samples(summary: DataSummary) -> SplitCheck:
    """Return the differences between samples of the named splits, or what one of them lacks."""
    assert summary.uris.test is not None
    if summary.uris.validation is not None:
        samples = {"validation": read_sample(summary.uris.validation)}
    else:
        samples = {}
    samples |= {"train": summary.sample, "test": read_sample(summary.uris.test)}
    try:
        compared = {
            name: _split_sample(sample, roles=summary.roles) for name, sample in samples.items()
        }
    except DataError as error:
        return SplitCheck(None, fault=str(error))
    seen = ", ".join(
        f"{sample.num_sampled:,} of {sample.num_rows:,} {name}" for name, sample in samples.items()
    )
    note = f"init compared the first rows only ({seen} rows), which differ if the files are sorted"
    return SplitCheck(
        None,
        warnings=tuple(f"{warning}; {note}" for warning in sample_warnings(compared)),
        compared=seen,
    )


def _split_sample(sample: Sample, *, roles: ColumnRoles) -> SplitSample:
    """Return the labels and text lengths of a sample, with the most likely column to split by as
    documents."""
    own = roles_of(sample, roles=roles)
    texts = texts_in(own)
    if not texts:
        raise DataError(
            f"the first {sample.num_sampled:,} rows of {sample.uri} contain no text that a run can "
            "use"
        )
    labels: tuple[str, ...] = ()
    if own.label is not None:
        labels = tuple(str(label) for label in own.label.column.values)
    if roles.keys and own.label is not None:
        key = sample.column(roles.keys[0].name)
    else:
        key = None
    if key is None:
        documents = None
    else:
        documents = tuple(value or f"row {row}" for row, value in enumerate(key.values))
    return SplitSample(labels, texts, documents)


def _offline_tokenizer(base_model: str, *, registry: str) -> tuple[Any, str]:
    """Return the base model's tokenizer and its prompt for classification.

    They are None and "" if the model is neither on the local disk nor already on S3, or if it
    cannot be used.
    """
    with suppress(ValueError, OSError):
        model = parse_model_uri(base_model)
        if model.store != "file" and not any(os.environ.get(name) for name in S3_SETTINGS):
            return None, ""
        if model.folder:
            staged = None
        else:
            staged = staged_base_model(model, registry=registry)
        folder = model.folder or (staged and staged.uri)
        if folder:
            from tailorbird.models.metadata import (
                read_tokenizer,
            )  # imports torch, which takes seconds
            from tailorbird.models.pooling.declared import read_pooling

            return read_tokenizer(folder), read_pooling(folder, purpose="classification").prompt
    return None, ""
