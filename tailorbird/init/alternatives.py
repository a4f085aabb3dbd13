"""Alternatives that the data gives a reason to try, as lines of a drafted recipe that are commented
out."""

from collections import Counter
from collections.abc import Iterator
from statistics import median

from tailorbird.init.inspect_data import DataSummary, answers_in, max_length
from tailorbird.init.task_defaults import DEFAULTS

FEW_CLASS_ROWS = 50  # median rows of a class below which the base model matters more than training
FEW_CONVERSATIONS = 1_000
REPEATED_SHARE = 0.1  # share of answers that occur more than once, above which retrieval may help
LONG_TEXTS = 1.5  # factor of the tokens that the base model reads, above which they may be too few
LONGEST_CONTEXT = 8192  # tokens that the models below read
SMALL_ENCODER = "hf://BAAI/bge-small-en-v1.5"
LONG_ENCODER = "hf://Alibaba-NLP/gte-modernbert-base"
RETRIEVER = DEFAULTS["classification"].base_model


def base_models(summary: DataSummary) -> Iterator[str]:
    """Yield other base models, each as a field of the recipe with its reason."""
    defaults = DEFAULTS[summary.roles.task]
    if summary.base_model != defaults.base_model:
        return
    few = _few_class_rows(summary)
    if few is not None:
        yield (
            f"base_model: {SMALL_ENCODER}  # {few}, and with few the base model often matters more "
            "than its training; a list compares several"
        )
    p99 = summary.lengths.p99
    if summary.roles.label is not None and p99 > LONG_TEXTS * defaults.longest:
        yield (
            f"base_model: {LONG_ENCODER}  # with max_length: {_rounded(p99)}, because 1% of the "
            f"rows have over {p99:,} tokens and only {defaults.longest} are read; or split texts "
            "into chunks"
        )


def data_fields(summary: DataSummary) -> Iterator[str]:
    """Yield other values of section `data`, each with its reason."""
    p99 = summary.lengths.p99
    if summary.roles.label is None and p99 > max_length(summary):
        yield f"max_length: {_rounded(p99)}  # 1% of the rows have over {p99:,} tokens"


def label_descriptions(summary: DataSummary) -> str | None:
    """Return why the labels should be described; None if the data gives no reason."""
    few = _few_class_rows(summary)
    if few is None:
        return None
    return (
        f"{few}: with `label_descriptions: {{LABEL: its meaning in a sentence}}`, models that "
        "learn from no rows compare texts with the descriptions instead of the names"
    )


def evaluation_fields(summary: DataSummary) -> Iterator[str]:
    """Yield models to compare that section `evaluation` names, each with its reason."""
    few = _few_class_rows(summary)
    if summary.roles.label is None and summary.num_tuning < FEW_CONVERSATIONS:
        few = f"there are {summary.num_tuning:,} training rows"
    if few is not None:
        yield (
            "contenders: {hosted: {endpoint: {url: https://host/v1, model: MODEL}}}  # "
            f"{few}, and a large model with a prompt needs few; it gets the texts of the rows"
        )
    if summary.roles.label is not None:
        return
    counts = Counter(answers_in(summary.roles))
    repeated = sum(count for count in counts.values() if count > 1) / max(1, counts.total())
    if repeated >= REPEATED_SHARE:
        yield (
            f"retrieval_encoder: {RETRIEVER}  # {repeated:.0%} of the answers occur more than "
            "once: training rows are then compared by their meaning too"
        )


def _few_class_rows(summary: DataSummary) -> str | None:
    """Return the median rows of a class in the sample if they are few; None otherwise."""
    label = summary.roles.label
    if label is None or not summary.sample.is_whole:
        return None
    rows = median(label.column.counts.values())
    if rows >= FEW_CLASS_ROWS:
        return None
    return f"the median class has {rows:.0f} rows"


def _rounded(tokens: int) -> int:
    return min(LONGEST_CONTEXT, -(-tokens // 8) * 8)
