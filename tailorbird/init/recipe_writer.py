"""`tailorbird init`: draft a recipe from Parquet files, with a reason for each value."""

import os
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.progress import current_progress
from tailorbird.config.answers import AnswersConfig, JsonFieldsConfig
from tailorbird.config.loader import parse_recipe
from tailorbird.config.recipe import Recipe
from tailorbird.data.answers import unreadable
from tailorbird.data.profiling.token_lengths import TOKENS_PER_WORD
from tailorbird.init import alternatives
from tailorbird.init import inspect_data as inspection
from tailorbird.init.data_warnings import uneven_classes
from tailorbird.init.inspect_data import (
    DataSummary,
    DraftOptions,
    SplitCheck,
    answers_in,
    texts_in,
)
from tailorbird.init.task_defaults import DEFAULTS, expected_gain, minimum_gain
from tailorbird.init.time_budget import RunSettings, draft_settings

FEW_CLASS_ROWS = 10
LONGEST_ANSWER = 512
NUM_LISTED = 12  # classes whose rows are stated
# tokens of a row from which fused attention saves much of the time of a training step on CPUs
LONG_TEXT = 128
EPOCHS = ((1_000, 6), (5_000, 4), (30_000, 3), (200_000, 2))
"""Pairs (maximum training rows, epochs). More rows get one epoch."""


class DraftError(ValueError):
    """A recipe that cannot be written."""


@dataclass(frozen=True)
class Draft:
    """A drafted recipe, and what its author must know about the data. The file contains the
    warnings, too."""

    recipe: Recipe
    warnings: tuple[str, ...]


def write_recipe(source: str, path: Path, *, options: DraftOptions, force: bool = False) -> Draft:
    """Write a recipe for the Parquet files at `source`, a URI or a local path, and return it with
    its warnings.

    Raises DraftError if `path` exists and `force` is false, or if `path` cannot be written. Raises
    DataError if no task can be inferred from the data.
    """
    if os.path.exists(path) and not force:  # Path.exists raises if a parent folder cannot be read
        raise DraftError(
            f"{path} already exists; give another path with --output, or overwrite it with --force"
        )

    progress = current_progress()
    progress.activity(f"reading a sample of {source}, and the base model")
    summary = inspection.inspect_data(source, options=options)
    progress.activity("comparing the splits of the sample")
    check = inspection.check_splits(summary)
    warnings = _warnings(summary, check)

    name = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:63] or "my-task"
    settings = _settings(summary)
    lines = [
        *_head(summary, settings, name=name, registry=options.registry),
        *_comments((f"WARNING: {warning}" for warning in warnings), indent=""),
        *_data(summary, check, settings),
        *_training(summary, settings),
        *_evaluation(summary, settings),
        f"registry: {_yaml(options.registry)}",
    ]
    text = "\n".join(lines) + "\n"

    recipe = parse_recipe(text.encode(), path=path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DraftError(
            f"{path}: {error.strerror or error}; give a writable path with --output"
        ) from None
    return Draft(recipe, warnings)


def _settings(summary: DataSummary) -> RunSettings:
    defaults = DEFAULTS[summary.roles.task]
    if summary.base_model != defaults.base_model:
        return RunSettings(_epochs(summary))
    return draft_settings(
        summary.num_tuning,
        num_test=summary.num_test,
        epochs=_epochs(summary),
        lengths=summary.lengths,
        defaults=defaults,
    )


def _warnings(summary: DataSummary, check: SplitCheck) -> tuple[str, ...]:
    uneven = _uneven_classes(summary)
    if uneven is None:
        return check.warnings
    return (f"evaluation.metric is macro_f1: {uneven}", *check.warnings)


def _uneven_classes(summary: DataSummary) -> str | None:
    label = summary.roles.label
    if label is None:
        return None
    return uneven_classes(label.column.counts, least=FEW_CLASS_ROWS)


def _head(
    summary: DataSummary, settings: RunSettings, *, name: str, registry: str
) -> Iterator[str]:
    sample = summary.sample
    yield "# Drafted by `tailorbird init` from the data. Review every value."
    rows = f"all {sample.num_rows:,} rows"
    if not sample.is_whole:
        rows = f"the first {sample.num_sampled:,} of {sample.num_rows:,} rows"
    yield f"# The draft is based on {rows} of {sample.uri}."
    if sample.uri.startswith("file://"):
        yield (
            "# The files are on this machine. A cluster cannot read them, so upload them and use "
            "their S3 URIs below:"
        )
        yield f"#   tailorbird data put FOLDER s3://lake/{name}"
    yield "# `#field: value` is an alternative: remove the `#`, and the same field above."
    yield "# Check the recipe before you train, then run it (RECIPE is the path of this file):"
    yield "#   tailorbird preflight RECIPE"
    yield "#   tailorbird run RECIPE"
    if settings.is_reduced:
        text = (
            f"Trials, epochs or rows are limited, because a run on {os.cpu_count() or 1} CPU "
            "cores would take long; raise them for better models"
        )
        yield from _comments([text], indent="")
    yield (
        f"name: {_yaml(name)}  # runs, models and the champion are stored under {registry}/{name}/"
    )
    yield f"task: {summary.roles.task}"
    yield f"base_model: {_yaml(summary.base_model)}"
    yield from _alternatives(alternatives.base_models(summary), indent="")


def _data(summary: DataSummary, check: SplitCheck, settings: RunSettings) -> Iterator[str]:
    config = inspection.data_config(summary, split_by=check.split_by)
    yield "data:"
    if summary.uris.test is None:
        yield (
            "  # Without a test split, a run splits `train` at random: about 72% train, 11% "
            "validation and 17% test."
        )
    for name in ("train", "validation", "test"):
        uris = getattr(config, name)
        if uris is not None:
            yield f"  {name}: {_yaml(uris)}"
    for name in inspection.COLUMNS:
        role = getattr(summary.roles, name)
        if role is not None:
            yield f"  {name}: {_yaml(role.name)}  # {role.reason}"
    yield from _comments(_rows_seen(summary))
    described = alternatives.label_descriptions(summary)
    if described is not None:
        yield from _comments([described])
    yield from _split_by(summary, check)
    yield from _groups(summary)
    yield from _length(summary)

    if settings.max_train_rows is not None:
        yield "  # Rows for fine-tuning, to save time. The baselines learn from all training rows."
    for limit in ("max_train_rows", "max_validation_rows", "max_test_rows"):
        num_rows = getattr(settings, limit)
        if num_rows is not None:
            yield f"  {limit}: {num_rows}"
    yield from _comments([_result_of(check)])


def _groups(summary: DataSummary) -> Iterator[str]:
    groups = summary.roles.groups
    if not groups:
        yield "  # No column looks like a group (2 to 20 values)."
        return
    yield (
        "  # Results are reported by group, and the groups gate checks that no group loses "
        "accuracy. Remove columns that are not groups."
    )
    yield f"  groups: {_yaml([group.name for group in groups])}"


def _result_of(check: SplitCheck) -> str:
    """Return what a run will say about the rows, as a sentence without its period."""
    if check.fault is not None:
        return f"FIX THIS FIRST, a run rejects these rows: {check.fault}"
    if check.report is None:
        return (
            "`tailorbird init` did not check all rows, because there are too many. `tailorbird "
            "preflight` checks them"
        )
    return (
        f"The rows passed the checks of a run: {check.report.num_train:,} train, "
        f"{check.report.num_validation:,} validation and {check.report.num_test:,} test rows. "
        "`tailorbird run` lists copies and rare classes"
    )


def _rows_seen(summary: DataSummary) -> Iterator[str]:
    label = summary.roles.label
    if label is None:
        yield f"{len(texts_in(summary.roles)):,} conversations end with an answer"
        return
    counts = label.column.counts
    largest = [f"{name!r} {count:,}" for name, count in counts.most_common(NUM_LISTED)]
    if len(counts) > NUM_LISTED:
        largest.append(f"{len(counts) - NUM_LISTED} more")
    yield f"Rows per class ({len(counts)} classes): {', '.join(largest)}"


def _split_by(summary: DataSummary, check: SplitCheck) -> Iterator[str]:
    keys = {key.name: key.reason for key in summary.roles.keys}
    if check.split_by is not None:
        yield (
            "  # Rows with the same value stay in one split. Otherwise test scores would be too "
            "high."
        )
        yield f"  split_by: {_yaml(check.split_by)}  # {keys[check.split_by]}"
    elif not keys:
        yield (
            "  # If several rows come from one document or person, set split_by to the column "
            "that identifies it."
        )
    yield from _comments(check.rejected)


def _length(summary: DataSummary) -> Iterator[str]:
    lengths = summary.lengths
    method = f"counted with the tokenizer of {summary.base_model}"
    if not lengths.counted:
        method = f"estimated at {TOKENS_PER_WORD} per word, because no tokenizer was available"
    yield f"  # Tokens per row: median {lengths.median}, 99th percentile {lengths.p99} ({method})."
    yield f"  max_length: {inspection.max_length(summary)}"
    yield from _alternatives(alternatives.data_fields(summary))
    if summary.roles.label is None:
        yield f"  # Tokens per answer: 99th percentile {lengths.answer_p99}."
        yield f"  max_new_tokens: {max(8, min(LONGEST_ANSWER, -(-lengths.answer_p99 // 8) * 8))}"


def _epochs(summary: DataSummary) -> int:
    max_epochs = DEFAULTS[summary.roles.task].max_epochs
    for max_rows, epochs in EPOCHS:
        if summary.num_train <= max_rows:
            return min(epochs, max_epochs)
    return 1


def _training(summary: DataSummary, settings: RunSettings) -> Iterator[str]:
    defaults = DEFAULTS[summary.roles.task]
    rows = settings.max_train_rows or summary.num_train
    epochs = settings.epochs
    is_small = rows < 2_000
    small, large = defaults.batch_sizes
    batch_size = small if is_small else large
    yield "training:"
    yield (
        "  # A small model trains fastest in one process. For a larger model, raise num_workers "
        "and zero_stage."
    )
    yield "  num_workers: 1"
    yield f"  cpus_per_worker: {min(2, os.cpu_count() or 1)}"
    yield "  zero_stage: 0"
    yield f"  method: {defaults.method}"
    yield f"  epochs: {epochs}  # for {rows:,} training rows; more rows need fewer epochs"
    yield f"  batch_size: {batch_size}"
    yield "  learning_rate: 1.0e-4"
    yield f"  num_seeds: {defaults.num_seeds}"
    is_long = summary.lengths.p99 >= LONG_TEXT and summary.roles.label is not None
    if is_long and summary.base_model == defaults.base_model:
        yield (
            "  # On CPUs, attention without dropout is fused, which makes steps of long texts up "
            "to 3 times as fast."
        )
        yield "  attention_dropout: 0"

    yield "tuning:"
    yield f"  num_trials: {settings.num_trials}"
    if epochs > 1:
        yield f"  grace_epochs: {2 if is_small else 1}"
    yield "  space:"
    if defaults.tuned_methods:
        yield f"    method: {{choice: {defaults.tuned_methods}}}"
    if _uneven_classes(summary) is not None:
        yield (
            "    class_weights: {choice: [equal, square-root]}  # macro-F1 counts rare classes "
            "as much"
        )
    yield "    learning_rate: {log_uniform: [5.0e-5, 4.0e-4]}"


def _evaluation(summary: DataSummary, settings: RunSettings) -> Iterator[str]:
    task = summary.roles.task
    rows = settings.max_test_rows or summary.num_test
    gain = expected_gain(rows, task=task)
    yield "evaluation:"
    yield from _metric(summary)
    yield (
        f"  minimum_gain: {minimum_gain(gain):g}  # smallest gain for which you would replace the "
        "model"
    )

    power = (
        f"With about {rows:,} test rows, the test detects a true gain of {100 * gain:g} points "
        f"with a power of 80%, assuming that {DEFAULTS[task].assumption}. To detect a smaller "
        "gain, use more test rows"
    )
    yield from _comments([power])
    yield f"  expected_gain: {gain:g}"
    yield from _alternatives(alternatives.evaluation_fields(summary))

    if comment := DEFAULTS[task].regulated:
        yield f"  # {comment}."
        if not summary.roles.groups:
            yield "  # Also set `gates: {groups: null}`, because the data has no groups."


def _metric(summary: DataSummary) -> Iterator[str]:
    if summary.roles.label is None:
        yield from _answer_metric(answers_in(summary.roles))
        return
    reason = _uneven_classes(summary)
    if reason is not None:
        yield f"  metric: macro_f1  # {reason}"
    else:
        yield "  metric: accuracy  # to weight all classes equally, use macro_f1"


def _answer_metric(answers: Sequence[str]) -> Iterator[str]:
    structured = AnswersConfig(json_fields=JsonFieldsConfig())
    if answers and unreadable(answers, config=structured) is None:
        yield "  metric: json_fields  # every answer is a JSON object"
        yield (
            "  # All fields are compared. To compare some of them, set `paths`, for example "
            "`paths: [/total]`."
        )
        yield "  answers: {json_fields: {}}"
        return
    num_words = sum(len(answer.split()) for answer in answers) / max(1, len(answers))
    metric = "rouge_l"
    if num_words <= 1.5:
        metric = "exact_match"
    elif num_words <= 8:
        metric = "token_f1"
    yield f"  metric: {metric}  # answers have {num_words:.1f} words on average"


def _alternatives(fields: Iterable[str], *, indent: str = "  ") -> Iterator[str]:
    yield from (f"{indent}#{field}" for field in fields)


def _comments(texts: Iterable[str], *, indent: str = "  ") -> Iterator[str]:
    for text in texts:
        text = " ".join(f"{text}.".split())
        first, *rest = textwrap.wrap(text, 114, break_long_words=False, break_on_hyphens=False)
        yield f"{indent}# {first}"
        yield from (f"{indent}#   {line}" for line in rest)


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
