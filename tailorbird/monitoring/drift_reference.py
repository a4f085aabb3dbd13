"""The drift reference of a version: its answers to validation rows, as embeddings, classes and
groups.

For chat, it has the embeddings and the lengths of the last messages only, because the answers to
thousands of rows would take hours. Scores of live answers are compared with those of the test rows
of the champion's run.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.remote import run_remote
from cluster.resources import worker_resources
from tailorbird import storage
from tailorbird.config.recipe import Recipe
from tailorbird.data.arrow_safety import extension_columns
from tailorbird.data.loader import read_splits, read_validation_and_test
from tailorbird.data.pii import redact
from tailorbird.data.rows import Rows
from tailorbird.data.task_data import recipe_task
from tailorbird.data.tokenize import encode_texts, load_tokenizer
from tailorbird.evaluation.inference.endpoint_requests import RequestLimits
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.models.base_model import stage_base_model
from tailorbird.models.classifier import Classifier, embed_rows, zero_head
from tailorbird.models.pooling.declared import read_pooling
from tailorbird.models.pretrained import load_encoder
from tailorbird.monitoring.drift import TrafficSample
from tailorbird.monitoring.monitored_tasks import MONITORED_TASKS
from tailorbird.monitoring.quality import GroupAccuracy, group_accuracies
from tailorbird.registry.versions import ModelVersion, read_version
from tailorbird.storage.node_cache import local_copy
from tailorbird.storage.paths import TaskPaths
from tailorbird.storage.stored_model import StoredModel

MAX_ROWS = 4_000  # more rows are sampled, because all pairs of rows are compared
SEED = 1979
PROMPT_TOKENS = 128  # of a prompt that are embedded, as for retrieval
NGRAM_LENGTHS = (3, 4)
NGRAM_COLUMNS = 512
"""Characters of the n-grams, and number of columns into which they are hashed."""
MAX_CHARACTERS = 2_000  # of a prompt that are hashed
METADATA = b"tailorbird"  # key in the metadata of the Parquet schema


class ReferenceMissing(ValueError):
    """Raised if there is no drift reference."""


class ReferenceMetadata(StoredModel):
    """The metadata in the Parquet file of a reference."""

    digest: str  # digest of the version
    made_at: str
    groups: tuple[str, ...]  # group columns
    encoder: str | None = None
    """(chat) URI of the staged encoder of the prompts; None for hashed n-grams."""


@dataclass(frozen=True, eq=False)
class DriftReference:
    """The answers of a version to validation rows, without the texts."""

    made_at: str
    sample: TrafficSample
    right: NDArray[np.bool_]  # [N]; empty for chat
    groups: dict[str, tuple[str, ...]]  # group columns by name, one value per row
    encoder: str | None = None  # URI of the encoder of the texts; None for hashed n-grams
    max_length: int = PROMPT_TOKENS  # of a text that is embedded

    def group_accuracies(self) -> dict[str, GroupAccuracy]:
        """Return the accuracy in each group by name, `column = value`."""
        return group_accuracies(
            self.right.astype(np.float64), groups=self.groups, keys=self.sample.row_keys
        )


def ensure_reference(recipe: Recipe, version: ModelVersion, *, made_at: str) -> str:
    """Return the URI of the version's reference; build it from validation rows on the cluster if it
    does not exist.

    Texts can be reconstructed from embeddings, so the file is as sensitive as the rows.
    """
    uri = TaskPaths(recipe.task_uri).drift_reference(version.digest)
    if storage.exists(uri):
        return uri
    task = recipe_task(recipe)
    if recipe.data.validation is not None and recipe.data.test is not None:
        rows = read_validation_and_test(recipe.data, task=task)[0]
    else:
        rows = read_splits(recipe.data, task=task).validation
    if len(rows) > MAX_ROWS:
        rows = rows.take(np.sort(np.random.default_rng(SEED).permutation(len(rows))[:MAX_ROWS]))

    if MONITORED_TASKS[recipe.task].compares_answers:
        build = run_remote(build_reference, resources=worker_resources(recipe.training))
        limits = RequestLimits.from_config(recipe.evaluation)
        content = build(version.uri, rows=rows, made_at=made_at, limits=limits)
    else:
        content = _texts_reference(recipe, version, rows=rows, made_at=made_at)
    storage.write_bytes(uri, content)
    return uri


def read_reference(task_uri: str, version: ModelVersion) -> DriftReference:
    """Return the version's reference; raise ReferenceMissing if `ensure_reference` has not built
    one."""
    uri = TaskPaths(task_uri).drift_reference(version.digest)
    if not storage.exists(uri):
        raise ReferenceMissing(
            f"{uri} does not exist; run `tailorbird watch RECIPE` to build it from validation rows"
        )
    table = pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
    if extension_columns(table.schema):
        raise ReferenceMissing(
            f"{uri} has extension types, which are unsafe to read; delete it and run `tailorbird "
            "watch RECIPE`"
        )
    metadata = ReferenceMetadata.model_validate_json(table.schema.metadata[METADATA])
    has_answers = "output" in table.column_names
    flat = table["embedding"].combine_chunks().flatten().to_numpy()
    sample = TrafficSample(
        outputs=table["output"].to_pylist() if has_answers else (),
        embeddings=flat.reshape(len(table), -1),
        keys=_column(table, "key"),
        lengths=_column(table, "length"),
    )
    reference = DriftReference(
        made_at=metadata.made_at,
        sample=sample,
        right=np.array(table["right"].to_pylist() if has_answers else (), bool),
        groups={name: tuple(table[f"group:{name}"].to_pylist()) for name in metadata.groups},
        encoder=metadata.encoder,
    )
    if has_answers:
        return replace(reference, encoder=version.base_model, max_length=version.max_length)
    return reference


def _column(table: pa.Table, name: str) -> NDArray[Any] | None:
    if name in table.column_names:
        return np.asarray(table[name].to_numpy())
    return None


def build_reference(
    uri: str, *, rows: Rows, made_at: str, limits: RequestLimits | None = None
) -> bytes:
    """Return the reference of a version as Parquet: its answers to the rows, and the embeddings of
    the texts.

    Requests to an external endpoint are sent within `limits`, and not again for rows whose answers
    are stored. Texts are redacted before embedding, as in the request log. Otherwise traffic with
    numbers in its texts would look like drift.
    """
    version = read_version(uri)
    predictions = predict_rows(uri, rows=rows, limits=limits)
    texts = tuple(map(redact, rows.texts))
    embeddings = embed_texts(version.base_model, texts, max_length=version.max_length)
    columns: dict[str, pa.Array] = {
        "output": pa.array(predictions.outputs, pa.string()),
        "right": pa.array(predictions.scores == 1.0),
    }
    columns |= {
        f"group:{name}": pa.array(values, pa.string())
        for name, values in predictions.groups.items()
    }
    metadata = ReferenceMetadata(
        digest=version.digest, made_at=made_at, groups=tuple(predictions.groups)
    )
    return _to_parquet(columns, embeddings=embeddings, keys=rows.split_keys, metadata=metadata)


def _texts_reference(recipe: Recipe, version: ModelVersion, *, rows: Rows, made_at: str) -> bytes:
    """Return a reference without answers as Parquet: lengths and embeddings of the last
    messages."""
    encoder = None
    if recipe.evaluation.retrieval_encoder is not None:
        staged = stage_base_model(recipe.evaluation.retrieval_encoder, registry=recipe.registry)
        encoder = staged.uri
    embeddings = embed_on_cluster(recipe, tuple(map(redact, rows.queries)), encoder=encoder)
    metadata = ReferenceMetadata(digest=version.digest, made_at=made_at, groups=(), encoder=encoder)
    columns = {"length": pa.array([len(text) for text in rows.queries], pa.int32())}
    return _to_parquet(columns, embeddings=embeddings, keys=rows.split_keys, metadata=metadata)


def _to_parquet(
    columns: Mapping[str, pa.Array],
    *,
    embeddings: NDArray[np.float32],
    keys: Sequence[str] | None,
    metadata: ReferenceMetadata,
) -> bytes:
    flat = pa.array(embeddings.ravel(), pa.float32())
    written = {**columns, "embedding": pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])}
    if keys is not None:  # as integers, because a key may identify a patient
        written["key"] = pa.array(np.unique(np.array(keys), return_inverse=True)[1])
    sink = io.BytesIO()
    pq.write_table(
        pa.table(written).replace_schema_metadata({METADATA: metadata.model_dump_json()}), sink
    )
    return sink.getvalue()


def embed_on_cluster(
    recipe: Recipe, texts: tuple[str, ...], *, encoder: str | None, max_length: int = PROMPT_TOKENS
) -> NDArray[np.float32]:
    """Return embeddings [N, D] of texts by the encoder (URI), on the cluster, or else by hashed
    n-grams."""
    if encoder is None:
        return hashed_ngrams(texts)
    embed = run_remote(embed_texts, resources=worker_resources(recipe.training))
    return embed(encoder, texts, max_length=max_length)


def hashed_ngrams(texts: Sequence[str]) -> NDArray[np.float32]:
    """Return vectors [N, 512] of the character n-grams in texts, hashed into columns; zeros for a
    text without any.

    They need no model. Two texts are near if they share words or parts of words, whatever these
    mean.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(
        analyzer="char_wb",
        ngram_range=NGRAM_LENGTHS,
        n_features=NGRAM_COLUMNS,
        binary=True,
        dtype=np.float32,
    )
    return np.asarray(
        vectorizer.transform([text[:MAX_CHARACTERS] for text in texts]).toarray(), np.float32
    )


def embed_texts(base_model: str, texts: tuple[str, ...], *, max_length: int) -> NDArray[np.float32]:
    """Return embeddings [N, D] by the pretrained encoder, which all champions of a base model
    share.

    The pooling is the encoder's own.
    """
    base = local_copy(base_model)
    pooling = read_pooling(base.as_uri(), purpose="classification")
    tokenizer = load_tokenizer(base)
    encoder = load_encoder(base)
    head = zero_head(int(encoder.config.hidden_size), 1)  # type: ignore[union-attr, arg-type]
    model = Classifier(encoder, head, pooling=pooling)
    tokens = encode_texts(texts, tokenizer=tokenizer, max_length=max_length, prompt=pooling.prompt)
    return embed_rows(model, tokens, pad_id=int(tokenizer.pad_token_id))
