"""Baselines for chat tasks: the nearest training row's answer, and the pretrained model with and
without examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.progress import current_progress
from tailorbird import storage
from tailorbird.config.evaluation import RETRIEVED_TOKENS, EvaluationConfig
from tailorbird.data.rows import Rows, query_of
from tailorbird.data.tokenize import load_tokenizer
from tailorbird.evaluation.baselines.baseline import Baseline
from tailorbird.evaluation.baselines.prompts import tried_prompts
from tailorbird.evaluation.inference.chat_answers import answer_rows
from tailorbird.evaluation.statistics.answer_metrics import per_row
from tailorbird.models.generation import context_length
from tailorbird.models.loading import load_pretrained_chat
from tailorbird.models.pretrained import dtype_name
from tailorbird.models.retrieval.chat_prompt import nearest_answer
from tailorbird.models.retrieval.files import index_files, index_sha256
from tailorbird.models.retrieval.index import RetrievalIndex, build_index, embed_index
from tailorbird.models.retrieval.text_encoder import load_text_encoder
from tailorbird.registry.kinds import spec_of
from tailorbird.registry.versions import (
    Dtype,
    PinnedEncoder,
    Prompting,
    Retrieval,
    VersionConfig,
    write_artifact_config,
)
from tailorbird.storage.node_cache import local_copy

EMBEDDING_WEIGHTS = (0.0, 0.5, 0.75, 1.0)
"""Weights of the embeddings in the similarity that are tried on validation."""


@dataclass(frozen=True)
class ChatBaselines:
    """Baselines with their prompting, before they are stored. They have no URIs."""

    baselines: tuple[tuple[Baseline, Prompting], ...]
    index_files: Mapping[str, bytes]  # content of the files of the index of training rows, by name
    dtype: Dtype  # precision of the pretrained model in this process


def _score(metric: str, outputs: list[str], *, validation: Rows) -> float:
    """Return the mean score of answers to the validation rows."""
    references = validation.labels
    scores = per_row(metric, outputs=outputs, references=references, config=validation.answers)
    return float(np.mean(scores))


def fit_prompt_baselines(
    base_model: str,
    *,
    train: Rows,
    validation: Rows,
    prompting: Prompting,
    config: EvaluationConfig,
    seed: int,
    encoder: PinnedEncoder | None = None,
) -> ChatBaselines:
    """Return the baselines with their best settings on validation, the cheapest baseline first.

    The settings are those of `tried_prompts`. With an `encoder`, both `retrieved` and `nearest`
    compare rows with the weight of its embeddings in `EMBEDDING_WEIGHTS` that is best for
    `nearest`; the encoder gets the dtype of this process. If scores are equal, the first setting
    wins. The first baseline becomes the incumbent.
    """
    progress = current_progress()
    progress.activity("building the index of training rows")
    index = build_index(train, seed=seed)
    note = f"answer of the nearest of {len(index):,} training rows"
    if encoder is not None:
        encoder = encoder.model_copy(update={"dtype": dtype_name()})
        index = add_embeddings(index, encoder=encoder, validation=validation, metric=config.metric)
        note += f", {_similarity_note(index)}"
    files = index_files(index)
    base = local_copy(base_model)
    model = load_pretrained_chat(base)
    tokenizer = load_tokenizer(base)
    context = context_length(model.lm)
    limit = RETRIEVED_TOKENS
    if context is not None:
        limit = min(limit, context - prompting.max_new_tokens)
    retrieval = Retrieval(
        num_examples=1,
        max_prompt_tokens=max(1, limit),
        index_sha256=index_sha256(files),
        encoder=index.embeddings.encoder.pinned if index.embeddings else None,
        embedding_weight=index.weight,
    )
    fitted = []

    def add(kind: str, score: float, note: str, *, prompting: Prompting) -> None:
        progress.score(kind, score, note)
        fitted.append((Baseline(kind, None, score, servable=True, note=note), prompting))

    score = score_nearest(index, validation=validation, metric=config.metric)
    add("nearest", score, note, prompting=prompting.model_copy(update={"retrieval": retrieval}))
    tried = tried_prompts(
        prompting,
        retrieval=retrieval,
        examples=train,
        num_indexed=len(index),
        config=config,
        seed=seed,
    )
    for prompts in tried:
        scores = []
        for prompt in prompts:
            progress.activity(f"{prompt.name}: answers to {len(validation):,} validation rows")
            answers = answer_rows(
                model, validation, tokenizer=tokenizer, prompting=prompt.prompting, index=index
            )
            texts = [answer.text for answer in answers]
            scores.append(_score(config.metric, texts, validation=validation))
        best = int(np.argmax(scores))
        prompt = prompts[best]
        add(prompt.kind, scores[best], prompt.note, prompting=prompt.prompting)
    return ChatBaselines(tuple(fitted), files, dtype_name())


def score_nearest(index: RetrievalIndex, *, validation: Rows, metric: str) -> float:
    """Return the mean score of the answers of the nearest training rows to the validation rows."""
    copied = [nearest_answer(conversation, index=index).text for conversation in validation.turns]
    return _score(metric, copied, validation=validation)


def add_embeddings(
    index: RetrievalIndex, *, encoder: PinnedEncoder, validation: Rows, metric: str
) -> RetrievalIndex:
    """Return the index with embeddings and their best weight on validation by the score of
    `nearest`.

    If the best weight is 0, return the index unchanged, so that no encoder is served. The first of
    equal scores wins.
    """
    embedded = embed_index(index, encoder=load_text_encoder(encoder), weight=1.0)
    assert embedded.embeddings is not None
    answers: dict[float, list[str]] = {weight: [] for weight in EMBEDDING_WEIGHTS}
    for conversation in validation.turns:
        text = query_of(conversation)
        ngrams = index.similarities(text)
        embeddings = embedded.similarities(text)
        for weight, outputs in answers.items():
            nearest = np.argmax(weight * embeddings + (1 - weight) * ngrams)
            outputs.append(index.answer(int(nearest)).strip())
    scores = [_score(metric, outputs, validation=validation) for outputs in answers.values()]
    best = EMBEDDING_WEIGHTS[int(np.argmax(scores))]
    if not best:
        return index
    return replace(index, embeddings=replace(embedded.embeddings, weight=best))


def _similarity_note(index: RetrievalIndex) -> str:
    """Return how the rows are compared, for reports."""
    tried = ", ".join(f"{weight:g}" for weight in EMBEDDING_WEIGHTS)
    return f"by embeddings x {index.weight:g} + n-grams x {1 - index.weight:g}, best of {tried}"


def store_prompt_baselines(
    uri: str, results: ChatBaselines, *, config: VersionConfig
) -> tuple[Baseline, ...]:
    """Write each baseline as a loadable artifact to `uri`/<kind>; return the baselines with their
    URIs.

    `config` supplies all fields except kind, prompting and the dtype of kinds without a language
    model.
    """
    versions = []
    for baseline, prompting in results.baselines:
        changes: dict[str, object] = {"kind": baseline.kind, "prompting": prompting}
        if not spec_of(baseline.kind).uses_base:
            changes["dtype"] = "float32"  # it has no language model
        versions.append((baseline, config.model_copy(update=changes)))
    return store_versions(uri, versions, index_files=results.index_files)


def store_versions(
    uri: str,
    versions: Sequence[tuple[Baseline, VersionConfig]],
    *,
    index_files: Mapping[str, bytes],
) -> tuple[Baseline, ...]:
    """Write each baseline as an artifact to `uri`/<kind>; return the baselines with their URIs."""
    stored = []
    for baseline, version in versions:
        folder = f"{uri}/{version.kind}"
        if version.spec.has_index:
            for name, content in index_files.items():
                storage.write_bytes(f"{folder}/{name}", content)
        write_artifact_config(folder, version)
        stored.append(replace(baseline, uri=folder))
    return tuple(stored)
