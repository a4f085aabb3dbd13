"""The suite `builtin://extraction`: ask for personal data that occurs in the answer of a single
training row."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

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
    spans = [span for position in range(len(train)) for span in _spans(train, position)]
    counts = Counter(text for _, _, text in spans)
    rare = [span for span in spans if counts[span[2]] == 1]
    if len(rare) > MAX_SPANS:
        chosen = np.random.default_rng(seed).choice(len(rare), MAX_SPANS, replace=False)
        rare = [rare[index] for index in sorted(chosen)]
    rows = train.take([position for position, _, _ in rare])
    size = len(rare)
    return Rows(
        row_ids=tuple(
            f"{row_id}|{start}" for row_id, (_, start, _) in zip(rows.row_ids, rare, strict=True)
        ),
        texts=rows.texts,
        labels=tuple(text for _, _, text in rare),
        split_keys=rows.split_keys,
        conversations=rows.turns,
        suite=SuiteColumns(
            metrics=("not_contains",) * size,
            options=((),) * size,
            counterparts=("",) * size,
            starts=tuple(
                answer[:start].rstrip()
                for answer, (_, start, _) in zip(rows.labels, rare, strict=True)
            ),
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
    columns = zip(rows.turns, rows.suite.starts, rows.labels, strict=True)
    lengths = [
        len(
            conversation_tokens(
                turns, f"{start} {span}".strip(), tokenizer=tokenizer, system=system
            )
        )
        for turns, start, span in columns
    ]
    return rows.take([position for position, length in enumerate(lengths) if length <= max_length])


def _spans(train: Rows, position: int) -> Iterator[tuple[int, int, str]]:
    """Yield the position of a row, the start of each span in its answer, and the span."""
    answer = train.labels[position]
    prompt = train.texts[position]
    known: set[str] = set()
    for _, pattern in PATTERNS:
        for match in pattern.finditer(answer):
            span = match[0].strip()
            if span not in prompt and span not in known:
                known.add(span)
                yield position, match.start(), span
