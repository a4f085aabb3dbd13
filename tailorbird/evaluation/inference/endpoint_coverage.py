"""Rows without a usable answer of an endpoint: requests that it refused, and answers that ended at
`max_tokens`."""

from collections.abc import Sequence
from dataclasses import dataclass

from tailorbird.data.quality import listed
from tailorbird.data.rows import Rows
from tailorbird.models.endpoint.completion import EndpointAnswer
from tailorbird.models.endpoint.errors import EndpointAnswersMissing
from tailorbird.models.endpoint.fault import TOO_LONG
from tailorbird.models.endpoint.prompts import label_of
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.versions import VersionConfig

MAX_SHARE = 0.02
"""Largest share of the rows without a usable answer for one reason. One row is always allowed."""


@dataclass(frozen=True)
class AnswerCounts:
    """Numbers of rows by what the endpoint answered. Rows without a label or a text count as
    wrong."""

    rows: int
    refused: int  # the endpoint refused the request because of its texts
    truncated: int  # the answer ended at the maximum number of tokens
    empty: int  # of the truncated ones, those without a label or, for chat, without a text
    invalid: int = 0  # complete answers without a label or, for chat, without a text

    def __str__(self) -> str:
        """Return a description for notes; empty if all answers are complete and usable."""
        parts = []
        if self.refused:
            parts.append(
                f"{self.refused:,} of {self.rows:,} rows refused for the text, counted as wrong"
            )
        if self.truncated:
            parts.append(
                f"{self.truncated:,} of {self.rows:,} rows with an answer that ends at max_tokens, "
                f"{self.empty:,} of them empty and wrong"
            )
        if self.invalid:
            parts.append(
                f"{self.invalid:,} of {self.rows:,} rows with a complete answer without a label or "
                "text, counted as wrong"
            )
        return "; ".join(parts)


def count_answers(answers: Sequence[EndpointAnswer], *, classes: tuple[str, ...]) -> AnswerCounts:
    """Return the counts of the answers to rows; `classes` is empty for chat."""
    without = [answer for answer in answers if not _has_result(answer, classes=classes)]
    complete = [answer for answer in without if not answer.refused and not answer.truncated]
    return AnswerCounts(
        len(answers),
        refused=sum(answer.refused for answer in answers),
        truncated=sum(answer.truncated for answer in answers),
        empty=sum(answer.truncated for answer in without),
        invalid=len(complete),
    )


def require_answers(
    answers: Sequence[EndpointAnswer], *, rows: Rows, version: VersionConfig
) -> None:
    """Raise EndpointAnswersMissing if more than `MAX_SHARE` of the validation rows have no usable
    answer, for one reason.

    This is a check of the settings before a version exists. The answers of a version are its
    behaviour, so on other rows those that are missing count as wrong. The message names rows by id,
    without their texts.
    """
    assert version.endpoint is not None
    assert version.prompting is not None
    counts = count_answers(answers, classes=version.classes)
    limit = max(1.0, MAX_SHARE * counts.rows)
    stated = f"{version.endpoint.model!r} at {version.endpoint.url}"
    if counts.empty > limit:
        raise EndpointAnswersMissing(
            f"{counts.empty / counts.rows:.0%} of the answers of {stated} ({version.kind}) to "
            f"validation rows end at {version.prompting.max_new_tokens} tokens without a label or "
            "text, so they show this limit and not what the model can do; a model that reasons "
            "counts its hidden tokens. Raise max_tokens of the endpoint, or set the model to "
            "reason less, and start the run again"
        )
    if counts.refused > limit:
        refused = [
            row_id for row_id, answer in zip(rows.row_ids, answers, strict=True) if answer.refused
        ]
        codes = sorted({str(answer.finish_reason) for answer in answers if answer.refused})
        raise EndpointAnswersMissing(
            f"{stated} ({version.kind}) refused {counts.refused:,} of {counts.rows:,} requests "
            f"because of their texts ({', '.join(codes)}), and at most {MAX_SHARE:.0%} may be: the "
            f"validation rows at the positions {listed(refused)} of their file. If they are too "
            "long, lower max_tokens of the endpoint or evaluation.prompt_shots; if the "
            "provider accepts them now, set "
            "revision of the endpoint to a new text; else remove these rows. Start the run "
            "again"
        )


def require_room(answer: EndpointAnswer, *, endpoint: Endpoint, max_tokens: int) -> None:
    """Raise EndpointAnswersMissing if `answer`, to the shortest validation row, is a refusal
    because of its length."""
    if answer.finish_reason == TOO_LONG:
        raise EndpointAnswersMissing(
            f"{endpoint.model!r} at {endpoint.url} refused the request for the shortest validation "
            f"row as too long ({TOO_LONG}): its context has no room for this prompt and an answer "
            f"of {max_tokens:,} tokens. Lower max_tokens of the endpoint, or let the server "
            "accept longer requests and set revision of the endpoint to a new text; start the "
            "run again"
        )


def _has_result(answer: EndpointAnswer, *, classes: tuple[str, ...]) -> bool:
    if classes:
        return label_of(answer.text, classes=classes) is not None
    return bool(answer.text)
