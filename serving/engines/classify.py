"""Behind the batcher: texts go through a version's model, or to those of a hybrid's two models that are to answer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from serving.http.schemas import ClassifyRequest
from tailorbird.data.length_batches import length_batches
from tailorbird.models.temperature import softened
from tailorbird.registry.routing import Routing, to_candidate

if TYPE_CHECKING:
    from tailorbird.models.loading import LoadedHybrid, LoadedModel
    from tailorbird.models.shared_encoder import SharedEncoder
    from tailorbird.registry.versions import ModelVersion


PASS_TOKENS = 50
"""Fixed cost of a forward pass, in tokens: about 5 ms against 0.13 ms a token for a six-layer encoder on one core. Only
the order of magnitude matters."""


def pass_cost(num_rows: np.ndarray, longest: np.ndarray) -> np.ndarray:
    """Return the cost of forward passes, in tokens; see `length_batches`."""
    return np.asarray(PASS_TOKENS + num_rows * longest, dtype=np.float64)


class Prediction(NamedTuple):
    """One text's answer."""

    label: str
    score: float
    """The label's probability, after temperature."""
    scores: Any
    """Probabilities of all classes of the model that answered, [L]."""
    answered_by: Literal["incumbent", "candidate"] | None = None
    """Which part of a hybrid it was."""


def predict_texts(loaded: "LoadedModel[ModelVersion]", texts: Sequence[str], *, batch_size: int) -> list[Prediction]:
    """The same encoder and forward pass as the evaluation's, on texts: one prediction each, in order."""
    from tailorbird.data.tokenize import encode_texts
    from tailorbird.models.classifier import logits_rows

    token_lists = encode_texts(texts, tokenizer=loaded.tokenizer, max_length=loaded.max_length)
    logits = np.empty((len(texts), len(loaded.classes)), dtype=np.float32)
    for rows in length_batches([len(tokens) for tokens in token_lists], max_rows=batch_size, cost=pass_cost):
        part = [token_lists[row] for row in rows]
        logits[rows] = logits_rows(loaded.model, part, pad_id=loaded.tokenizer.pad_token_id, batch_size=batch_size)
    return _predictions(loaded, logits)


def predict_shared(
    encoder: "SharedEncoder", rows: Sequence[tuple["LoadedModel[ModelVersion]", str]], *, batch_size: int
) -> list[Prediction]:
    """Texts, each with its version over the encoder, mixed in one pass: one prediction each, in order.

    Each is the prediction that `predict_texts` makes of it with its version alone, but for rounding.
    """
    members = {loaded.version.digest: loaded for loaded, _ in rows}
    if len(members) == 1:
        return predict_texts(rows[0][0], [text for _, text in rows], batch_size=batch_size)
    import torch

    from tailorbird.data.tokenize import collate, encode_texts
    from tailorbird.models.shared_encoder import adapter_of

    whose = np.array([loaded.version.digest for loaded, _ in rows])
    token_lists: list[Any] = [None] * len(rows)
    results: list[Any] = [None] * len(rows)
    for digest, loaded in members.items():
        own = np.flatnonzero(whose == digest).tolist()
        texts = [rows[row][1] for row in own]
        encoded = encode_texts(texts, tokenizer=encoder.tokenizer, max_length=loaded.max_length)
        for row, tokens in zip(own, encoded, strict=True):
            token_lists[row] = tokens
    with torch.inference_mode():
        for chosen in length_batches([len(tokens) for tokens in token_lists], max_rows=batch_size, cost=pass_cost):
            ids, mask = collate([token_lists[row] for row in chosen], pad_id=int(encoder.tokenizer.pad_token_id))
            adapters = [adapter_of(rows[row][0]) for row in chosen]
            embedded = encoder.embed(ids.to(encoder.device), mask.to(encoder.device), adapters=adapters)
            for digest, loaded in members.items():
                part = np.flatnonzero(whose[chosen] == digest)
                if not part.size:
                    continue
                head = loaded.model.head
                logits = head(embedded[part].to(head.weight.dtype)).float().cpu().numpy()
                for row, prediction in zip(chosen[part], _predictions(loaded, logits), strict=True):
                    results[row] = prediction
    return results


def _predictions(loaded: "LoadedModel[ModelVersion]", logits: np.ndarray) -> list[Prediction]:
    """Of one model's logits [N, L]."""
    scores = softened(logits, temperature=loaded.version.temperature)
    best = logits.argmax(axis=-1).tolist()  # of the logits: a high temperature rounds close probabilities to a tie
    highest = scores.max(axis=-1).tolist()
    return [
        Prediction(loaded.classes[index], score, row) for index, score, row in zip(best, highest, scores, strict=True)
    ]


def hybrid_rows(routing: Routing, request: ClassifyRequest) -> list[tuple[str, str | None]]:
    """Each text with its value of the attribute that routes; None where there is none, or none is looked at."""
    texts, given = request.texts, request.attributes
    if given is None or routing.column is None:
        return [(text, None) for text in texts]
    rows = given if isinstance(given, list) else [given] * len(texts)
    return [(text, attributes.get(routing.column)) for text, attributes in zip(texts, rows, strict=True)]


def predict_hybrid(
    loaded: "LoadedHybrid", rows: Sequence[tuple[str, str | None]], *, batch_size: int
) -> list[Prediction]:
    """The answer of the part that `to_candidate` names, for each row of `hybrid_rows`, in order.

    By confidence the incumbent reads every text first, and the candidate those that it is not sure of.
    """
    texts = [text for text, _ in rows]
    results: list[Any] = [None] * len(rows)

    def answer(who: Literal["incumbent", "candidate"], chosen: np.ndarray) -> None:
        if not chosen.size:
            return
        part = loaded.incumbent if who == "incumbent" else loaded.candidate
        found = predict_texts(part, [texts[row] for row in chosen], batch_size=batch_size)
        for row, prediction in zip(chosen, found, strict=True):
            results[row] = prediction._replace(answered_by=who)

    if loaded.routing.by == "group":
        routed = to_candidate(loaded.routing, groups=[value for _, value in rows])
        answer("incumbent", np.flatnonzero(~routed))
    else:
        answer("incumbent", np.arange(len(rows)))
        routed = to_candidate(loaded.routing, confidences=[prediction.score for prediction in results])
    answer("candidate", np.flatnonzero(routed))
    return results


def scores_by_class(loaded: "LoadedModel[ModelVersion] | LoadedHybrid", prediction: Prediction) -> dict[str, float]:
    """Probability of each class; 0 where the part of a hybrid that answered does not know it."""
    scores = dict(zip(classes_of(loaded, prediction), prediction.scores.tolist(), strict=True))
    return scores if prediction.answered_by is None else dict.fromkeys(loaded.classes, 0.0) | scores


def classes_of(loaded: "LoadedModel[ModelVersion] | LoadedHybrid", prediction: Prediction) -> tuple[str, ...]:
    """What the prediction's scores are of: the classes of the model, or of the part of a hybrid, that answered."""
    part = loaded if prediction.answered_by is None else getattr(loaded, prediction.answered_by)
    return tuple(part.classes)
