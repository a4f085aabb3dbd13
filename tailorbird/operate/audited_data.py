"""Select audited rows for a re-evaluation."""

from collections.abc import Set

import numpy as np

from tailorbird.data.fingerprints import Hashes, fingerprints, user_texts
from tailorbird.data.pii import is_redacted, redact
from tailorbird.data.rows import Rows, Splits
from tailorbird.data.splits import normalise
from tailorbird.evaluation.trained_rows import NO_ROWS


def usable_rows(
    rows: Rows, splits: Splits, *, evaluated: Set[str] = frozenset(), learned: Hashes = NO_ROWS
) -> tuple[Rows, dict[str, int]]:
    """Return the rows that are in no split, and the number of dropped rows by reason.

    A row is also dropped if its fingerprint is one of `learned`, those of the training rows of the
    compared versions. For chat, a row with a redacted correct answer is dropped: no answer of a
    model is equal to it. A row is also dropped if its text occurs in an earlier row or in a row of
    `evaluated` (ids), which are kept. Texts are compared in the form of the request log: normalised
    and redacted. Conversations are compared without system messages, because an application may add
    one to a question of a training row.
    """
    split_texts = {name: set(_as_logged(split)) for name, split in splits.items()}
    dropped = dict.fromkeys((*split_texts, "trained", "duplicate", "redacted"), 0)
    is_trained = np.isin(fingerprints(user_texts(rows)), learned)
    texts = _as_logged(rows)
    seen = {text for row_id, text in zip(rows.row_ids, texts, strict=True) if row_id in evaluated}
    usable = []
    for index, (row_id, text) in enumerate(zip(rows.row_ids, texts, strict=True)):
        reasons = {name: text in in_split for name, in_split in split_texts.items()}
        reasons["trained"] = bool(is_trained[index])
        reasons["duplicate"] = text in seen and row_id not in evaluated
        reasons["redacted"] = not rows.class_labels and is_redacted(rows.labels[index])
        seen.add(text)
        reason = next((name for name, applies in reasons.items() if applies), None)
        if reason is None:
            usable.append(index)
        else:
            dropped[reason] += 1
    return rows.take(np.array(usable, np.int64)), dropped


def _as_logged(rows: Rows) -> list[str]:
    contents = ([content for role, content in turns if role != "system"] for turns in rows.turns)
    return [normalise(redact("\n".join(texts))) for texts in contents]
