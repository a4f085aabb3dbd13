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
from tailorbird.data.profiling.column_roles import ColumnRoles, infer_column_roles
from tailorbird.data.profiling.sample import SAMPLE_ROWS, Sample, count_rows, read_sample
from tailorbird.data.profiling.token_lengths import TokenLengths, conversation_lengths, text_lengths
from tailorbird.data.quality import DataReport, clean
from tailorbird.data.rows import Conversation, DataError
from tailorbird.data.task_data import data_task
from tailorbird.init.data_warnings import split_warnings
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


@dataclass(frozen=True)
class DataSummary:
    """Properties of the data from which a recipe is drafted."""

    uris: SplitUris
    sample: Sample
    roles: ColumnRoles
    lengths: TokenLengths
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
    if "://" not in source:
        source = Path(source).resolve().as_uri()
    uris = find_splits(source)
    sample = read_sample(uris.train[0])
    if not sample.num_sampled:
        raise DataError(f"{sample.uri} has no rows; give Parquet files with at least one row")
    roles = infer_column_roles(sample, text=options.text, label=options.label)
    base_model = options.base_model or DEFAULTS[roles.task].base_model
    tokenizer, prompt = _offline_tokenizer(base_model, registry=options.registry)
    lengths = _lengths(roles, tokenizer=tokenizer, prompt=prompt)
    num_train = sample.num_rows + sum(count_rows(uri) for uri in uris.train[1:])
    num_validation, num_test = _held_out(uris, num_train=num_train)
    return DataSummary(
        uris=uris,
        sample=sample,
        roles=roles,
        lengths=lengths,
        num_train=num_train,
        num_validation=num_validation,
        num_test=num_test,
        base_model=base_model,
    )


def _held_out(uris: SplitUris, *, num_train: int) -> tuple[int, int]:
    """Return the numbers of validation and test rows, which a run splits off `train` if they have
    no file."""
    if uris.test is None:
        _, validation, test = SPLIT_FRACTIONS
        return int(validation * num_train), int(test * num_train)
    if uris.validation is None:
        share: float = DataConfig.model_fields["validation_share"].default
        return int(share * num_train), count_rows(uris.test)
    return count_rows(uris.validation), count_rows(uris.test)


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
    if "train" not in named:
        return SplitUris((uri,))

    by_split: dict[str, str] = {}
    for split in ("validation", "test"):
        uris = list(dict.fromkeys(named.get(split, ())))
        if len(uris) > 1:
            raise DataError(
                f"{uri}: the {split} split has {len(uris)} files or folders; move them into one "
                f"folder {split}/"
            )
        if uris:
            by_split[split] = uris[0]
    train = tuple(dict.fromkeys(named["train"]))
    if "validation" in by_split and "test" not in by_split:
        # A recipe with `validation` also needs `test`.
        return SplitUris((*train, by_split["validation"]))
    return SplitUris(train, by_split.get("validation"), by_split.get("test"))


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
    texts = []
    for conversation in conversations_in(roles):
        contents = [content for _, content in conversation[:-1]]
        texts.append("\n".join(contents))
    return texts


def answers_in(roles: ColumnRoles) -> list[str]:
    """Return the answers of the sample's conversations."""
    return [turns[-1][1] for turns in conversations_in(roles)]


def data_config(summary: DataSummary, *, split_by: str | None) -> DataConfig:
    """Return the fields of the recipe's data section that determine how rows are read."""
    roles = summary.roles
    uris = summary.uris
    columns = {}
    for name in COLUMNS:
        role = getattr(roles, name)
        if role is not None:
            columns[name] = role.name
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

    If the data is too large to read, return the most likely column for a random split, without a
    check.
    """
    keys = [key.name for key in summary.roles.keys[:MAX_KEYS]]
    is_random = summary.uris.test is None
    if not summary.sample.is_whole or summary.num_train + summary.num_test > 2 * SAMPLE_ROWS:
        return SplitCheck(keys[0] if keys and is_random else None)

    task = data_task(summary.roles.task)
    rejected: list[str] = []
    for key in (*keys, None):
        try:
            splits = read_splits(data_config(summary, split_by=key), task=task)
            report = clean(splits)[1]
        except DataError as error:
            fault = str(error)
            if key is not None:
                rejected.append(f"{key} cannot be split_by: {error}")
            continue
        warnings = () if is_random else split_warnings(splits)
        return SplitCheck(key, report, rejected=tuple(rejected), warnings=warnings)
    return SplitCheck(None, fault=fault, rejected=tuple(rejected))


def _offline_tokenizer(base_model: str, *, registry: str) -> tuple[Any, str]:
    """Return the base model's tokenizer and its prompt for classification.

    They are None and "" if the model is neither on the local disk nor already on S3, or if it
    cannot be used.
    """
    with suppress(ValueError, OSError):
        model = parse_model_uri(base_model)
        if model.store != "file" and not any(os.environ.get(name) for name in S3_SETTINGS):
            return None, ""
        folder = model.folder
        if not folder:
            staged = staged_base_model(model, registry=registry)
            folder = staged.uri if staged else ""
        if folder:
            # These modules import torch, which takes seconds.
            from tailorbird.models.metadata import read_tokenizer
            from tailorbird.models.pooling.declared import read_pooling

            return read_tokenizer(folder), read_pooling(folder, purpose="classification").prompt
    return None, ""
