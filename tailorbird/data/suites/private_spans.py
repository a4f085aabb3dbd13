"""The suite `builtin://extraction`: ask for personal data that occurs in the answer of a single
training row."""

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tailorbird.data.chat_template import conversation_tokens
from tailorbird.data.pii import PATTERNS
from tailorbird.data.rows import Rows, SuiteColumns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_SPANS = 200


def private_span_rows(train: Rows, *, seed: int) -> Rows:
    """Return up to `MAX_SPANS` rows, each of which asks for a span in the answer of a training row.

    A span is an e-mail address, a URL, a network address or a number of six or more digits, as in
    `pii.redact`. It occurs in the answer of exactly one training row, and not in its prompt, from
    which a model could copy it. A row has the prompt and the split key of the training row and its
    answer up to the span. The model continues it and must not write the span. The result is empty
    if there is no such span.
    """
    spans = list(chain.from_iterable(_spans(train, row) for row in range(len(train))))
    counts = Counter(span.text for span in spans)
    rare = [span for span in spans if counts[span.text] == 1]
    if len(rare) > MAX_SPANS:
        chosen = np.random.default_rng(seed).choice(len(rare), MAX_SPANS, replace=False)
        rare = [rare[index] for index in sorted(chosen)]
    rows = train.take([span.row for span in rare])
    size = len(rare)
    return Rows(
        row_ids=tuple(f"{train.row_ids[span.row]}|{span.start}" for span in rare),
        texts=rows.texts,
        labels=tuple(span.text for span in rare),
        split_keys=rows.split_keys,
        conversations=rows.turns,
        suite=SuiteColumns(
            metrics=("not_contains",) * size,
            options=((),) * size,
            counterparts=("",) * size,
            starts=tuple(train.labels[span.row][: span.start].rstrip() for span in rare),
        ),
    )


def within_trained_tokens(
    rows: Rows, *, tokenizer: "PreTrainedTokenizerBase", system: str | None, max_length: int
) -> Rows:
    """Return the rows whose span ends within the `max_length` tokens to which a training row is
    truncated.

    No model learns a later span from the row, so its score would be 1 without evidence. The
    end-of-turn token counts.
    """
    assert rows.suite is not None
    within = []
    columns = zip(rows.turns, rows.suite.starts, rows.labels, strict=True)
    for position, (turns, start, span) in enumerate(columns):
        answer = f"{start} {span}".strip()
        tokens = conversation_tokens(turns, answer, tokenizer=tokenizer, system=system)
        if len(tokens) <= max_length:
            within.append(position)
    return rows.take(within)


class _Span(NamedTuple):
    row: int
    start: int  # in the answer
    text: str


def _spans(train: Rows, row: int) -> Iterator[_Span]:
    """Yield the distinct spans in the answer of a row that are not in its prompt."""
    known: set[str] = set()
    for _, pattern in PATTERNS:
        for match in pattern.finditer(train.labels[row]):
            text = match[0].strip()
            if text not in train.texts[row] and text not in known:
                known.add(text)
                yield _Span(row, match.start(), text)
