"""`tailorbird init`: draft a recipe from Parquet, with a comment on why each value is what it is."""

import os
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tailorbird.config.loader import parse_recipe
from tailorbird.config.recipe import Recipe
from tailorbird.data.profiling.sample import NEAR_EMPTY, num_copies, num_near_empty
from tailorbird.data.profiling.token_lengths import TOKENS_PER_WORD
from tailorbird.data.quality import DataReport
from tailorbird.init import inspect_data as inspection
from tailorbird.init.inspect_data import DataSummary, DraftOptions, SplitCheck, conversations_in
from tailorbird.init.task_defaults import DEFAULTS, expected_gain, minimum_gain

UNEVEN = 0.6  # share of the largest class above which accuracy says little
FEW_CLASS_ROWS = 10
LONGEST_ANSWER = 512
NUM_LISTED = 12
EPOCHS = ((1_000, 6), (5_000, 4), (30_000, 3), (200_000, 2))  # epochs for at most so many training rows; for more, one


class DraftError(ValueError):
    """A recipe that is not written; the message says why."""


def write_recipe(source: str, path: Path, *, options: DraftOptions, force: bool = False) -> Recipe:
    """Write a recipe for the Parquet at `source`, a URI or a local path, and return it.

    Raises DraftError if a file exists and not `force`, or none can be written, DataError if the data make no task.
    """
    if os.path.exists(path) and not force:  # Path.exists raises if a folder above cannot be read
        raise DraftError(f"{path} is there already; name another by --output, or overwrite it by --force")
    summary = inspection.inspect_data(source, options=options)
    name = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:63] or "my-task"
    text = recipe_text(summary, inspection.check_splits(summary), name=name, registry=options.registry)
    recipe = parse_recipe(text.encode(), path=path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DraftError(f"{path}: {error.strerror or error}; name a file that can be written by --output") from None
    return recipe


def recipe_text(summary: DataSummary, check: SplitCheck, *, name: str, registry: str) -> str:
    lines = [*_head(summary, name=name, registry=registry), *_data(summary, check)]
    lines += [*_training(summary), *_evaluation(summary)]
    lines += ["# The licence of the models made, for their cards: license: apache-2.0", f"registry: {_yaml(registry)}"]
    return "\n".join(lines) + "\n"


def _head(summary: DataSummary, *, name: str, registry: str) -> Iterator[str]:
    sample = summary.sample
    yield "# Drafted by `tailorbird init` from what the rows look like: every value is a guess to look at."
    read = f"{sample.num_sampled:,} of {sample.num_rows:,} rows"
    read = f"all {read.split()[0]} rows" if sample.is_whole else f"the first {read} (counts and shares are of these)"
    yield f"# Read: {read} of {sample.uri}."
    if sample.uri.startswith("file://"):
        yield "# The rows lie on this machine, where no cluster reads them. Put them on S3, and name that below:"
        yield f"#   tailorbird data put FOLDER s3://lake/{name}"
    yield "# Then, before anything costs anything, and for the work itself (RECIPE is this file):"
    yield "#   tailorbird preflight RECIPE"
    yield "#   tailorbird run RECIPE"
    yield f"name: {_yaml(name)}  # models, runs and champion lie under {registry}/{name}/"
    yield f"task: {summary.roles.task}"
    yield f"base_model: {_yaml(summary.base_model)}"


def _data(summary: DataSummary, check: SplitCheck) -> Iterator[str]:
    roles, config = summary.roles, inspection.data_config(summary, split_by=check.split_by)
    yield "data:"
    if summary.uris.test is None:
        yield "  # No test rows are named, so 72 % train, 11 % choose and 17 % judge, drawn by split_by or by text."
    for name in ("train", "validation", "test"):
        value = getattr(config, name)
        if value is not None:
            yield f"  {name}: {_yaml(list(value) if isinstance(value, tuple) else value)}"
    for name in inspection.COLUMNS:
        role = getattr(roles, name)
        if role is not None:
            yield f"  {name}: {_yaml(role.name)}  # {role.reason}"
    yield from _comments(_rows_seen(summary))
    yield from _split_by(summary, check)
    if roles.groups:
        reasons = "; ".join(f"{group.name} {group.reason}" for group in roles.groups)
        text = f"Results are reported by group, and no group may lose much: {reasons}. Remove what is no group"
        yield from _comments([text])
        yield f"  groups: {_yaml([group.name for group in roles.groups])}"
    else:
        yield "  # No column looks like a group (2 to 20 values), by which results would be read and protected."
    yield from _length(summary)
    if summary.num_train > config.stream_above_rows and config.test is None:
        yield "  # More rows than are held in memory by default, and of more the test rows must be named."
        yield f"  stream_above_rows: {summary.num_train}"
    if check.fault is not None:
        yield from _comments([f"MEND THIS FIRST, a run refuses these rows: {check.fault}"])
    elif check.report is not None:
        yield from _comments(_checked(check.report))
    else:
        yield "  # Only part of the rows was read, so they were not checked as a run does; preflight and run say more."


def _rows_seen(summary: DataSummary) -> Iterator[str]:
    text, label = summary.roles.text, summary.roles.label
    if text is None or label is None:
        conversations = conversations_in(summary.roles)
        texts = ["\n".join(content for _, content in conversation[:-1]) for conversation in conversations]
        left = summary.sample.num_sampled - len(texts)
        yield f"{len(texts):,} conversations end with an answer" + (f", {left:,} do not: drop them" if left else "")
    else:
        texts, counts = [value or "" for value in text.column.values], label.column.counts
        largest = ", ".join(f"{name!r} {count:,}" for name, count in counts.most_common(NUM_LISTED))
        more = f" and {len(counts) - NUM_LISTED} more" if len(counts) > NUM_LISTED else ""
        yield f"{len(counts)} classes with their rows: {largest}{more}"
        rare = [name for name, count in counts.items() if count < FEW_CLASS_ROWS]
        if rare:
            yield f"{len(rare)} classes have under {FEW_CLASS_ROWS} rows, hardly to be learned: join them, or get more"
        nulls = text.column.num_null + label.column.num_null
        if nulls:
            yield f"{nulls:,} texts or labels are null, which a run refuses: fill or drop them"
    copies, empty = num_copies(texts), num_near_empty(texts)
    yield f"Rows that repeat the text of another: {copies:,}; with under {NEAR_EMPTY} characters: {empty:,}"


def _split_by(summary: DataSummary, check: SplitCheck) -> Iterator[str]:
    keys = {key.name: key.reason for key in summary.roles.keys}
    if check.split_by is not None:
        yield "  # Rows that share a value of it must not stand in two splits, or the test is easier than the work."
        yield f"  split_by: {_yaml(check.split_by)}  # {keys[check.split_by]}"
    elif not keys:
        yield "  # No column looks like a document or person that several rows share; if one is, name it in split_by."
    others = [f"{name} ({why})" for name, why in keys.items() if name != check.split_by]
    yield from _comments(check.refused)
    if others and not check.refused:
        yield from _comments([f"other columns that several rows share: {'; '.join(others)}"])


def _length(summary: DataSummary) -> Iterator[str]:
    lengths = summary.lengths
    how = f"by the tokenizer of {summary.base_model}"
    if not lengths.counted:
        how = f"reckoned as {TOKENS_PER_WORD} a word, since no tokenizer was at hand"
    yield f"  # Tokens a row, {how}: half have up to {lengths.median}, 99 of 100 up to {lengths.p99}."
    yield f"  max_length: {inspection.max_length(summary)}"
    if summary.roles.label is None:
        yield f"  # Of 100 answers 99 have up to {lengths.answer_p99} tokens."
        yield f"  max_new_tokens: {max(8, min(LONGEST_ANSWER, -(-lengths.answer_p99 // 8) * 8))}"


def _checked(report: DataReport) -> Iterator[str]:
    copies = report.train_copies_of_test + report.train_copies_of_validation + report.validation_copies_of_test
    yield (
        f"Checked as a run does: {report.num_train:,} rows train, {report.num_validation:,} choose, "
        f"{report.num_test:,} judge, after {copies:,} copies of later rows were dropped"
    )
    if report.near_duplicates_of_test:
        near, compared = report.near_duplicates_of_test, report.near_duplicates_compared
        yield f"{near:,} of {compared:,} test rows are nearly the same as a training row"
    if report.conflicting_texts:
        yield f"{report.conflicting_texts:,} texts stand with more than one label or answer"
    if report.rare_classes:
        yield f"{len(report.rare_classes)} classes have under {FEW_CLASS_ROWS} training rows"


def _training(summary: DataSummary) -> Iterator[str]:
    rows, defaults = summary.num_train, DEFAULTS[summary.roles.task]
    epochs = next((epochs for most, epochs in EPOCHS if rows <= most), 1)
    yield "training:"
    yield "  # a model this small trains fastest in one process; for a larger one see num_workers and zero_stage."
    yield "  num_workers: 1"
    yield f"  cpus_per_worker: {min(2, os.cpu_count() or 1)}"
    yield "  zero_stage: 0"
    yield f"  method: {defaults.method}"
    yield f"  epochs: {min(epochs, defaults.max_epochs)}  # over {rows:,} rows; the more rows, the fewer it takes"
    yield f"  batch_size: {defaults.batch_sizes[rows >= 2_000]}"
    yield "  learning_rate: 1.0e-4"
    yield f"  num_seeds: {defaults.num_seeds}"
    yield "tuning:"
    yield "  num_trials: 4"
    if epochs > 1:
        yield f"  grace_epochs: {min(2, epochs) if rows < 2_000 else 1}"
    yield "  space:"
    if defaults.tuned_methods:
        yield f"    method: {{choice: {defaults.tuned_methods}}}"
    yield "    learning_rate: {log_uniform: [5.0e-5, 4.0e-4]}"


def _evaluation(summary: DataSummary) -> Iterator[str]:
    task, rows = summary.roles.task, summary.num_test
    gain = expected_gain(rows, task=task)
    yield "evaluation:"
    yield f"  metric: {_metric(summary)}"
    text = f"About {rows:,} rows judge, on which a true gain of {100 * gain:g} points is found 4 times in 5, supposing "
    text += f"that {DEFAULTS[task].assumption}; a smaller one takes more rows. minimum_gain is what makes a change "
    yield from _comments([text + "worth while to you"])
    yield f"  minimum_gain: {minimum_gain(gain):g}"
    yield f"  expected_gain: {gain:g}"
    if task == "classification" and not summary.roles.groups:
        yield "  # For work that is regulated: regulated: true, with gates: {groups: null} as there are no groups."
    elif task == "classification":
        yield "  # For work that is regulated, where a gate that cannot be assessed stops the change: regulated: true"


def _metric(summary: DataSummary) -> str:
    if summary.roles.label is None:
        answers = [conversation[-1][1].split() for conversation in conversations_in(summary.roles)]
        words = sum(map(len, answers)) / max(1, len(answers))
        metric = "rouge_l" if words > 8 else "token_f1" if words > 1.5 else "exact_match"
        return f"{metric}  # answers have {words:.1f} words"
    counts = summary.roles.label.column.counts
    share = max(counts.values()) / sum(counts.values())
    if share > UNEVEN:
        return f"macro_f1  # one class has {share:.0%} of the rows, so that always saying it looks accurate"
    return f"accuracy  # the largest class has {share:.0%} of the rows; macro_f1 counts all classes alike"


def _comments(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        text = " ".join(f"{text}.".split())
        first, *rest = textwrap.wrap(text, 114, break_long_words=False, break_on_hyphens=False)
        yield f"  # {first}"
        yield from (f"  #   {line}" for line in rest)


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
