"""Beside a version, what traffic is compared with: the rows it was chosen on, as embeddings, confidences and groups."""

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.remote import remotely
from tailorbird import storage
from tailorbird.config.data import DataConfig
from tailorbird.config.recipe import Recipe
from tailorbird.data.arrow_safety import made_by_code
from tailorbird.data.loader import read_later, read_splits
from tailorbird.data.pii import redacted
from tailorbird.data.rows import Rows
from tailorbird.monitoring.drift import Asked
from tailorbird.monitoring.quality import Before
from tailorbird.registry.versions import ModelVersion

MOST_ROWS = 4_000
"""Each is compared with each: a part of the rows, drawn by lot, where there are more."""
SEED = 1979


class ReferenceMissing(ValueError):
    """There is nothing to compare traffic with; the message says how to make it."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A version's answers to validation rows, without their texts."""

    digest: str
    """Of the version."""
    made_at: str
    asked: Asked
    right: NDArray[np.bool_]
    """[N]"""
    groups: dict[str, tuple[str, ...]]
    """Group columns by name, one value a row."""

    def before(self) -> dict[str, Before]:
        """How often the version was right in each group, `column = value`."""
        found = {}
        for column, values in self.groups.items():
            for value in sorted(set(values)):
                mask = np.array([one == value for one in values])
                found[f"{column} = {value}"] = Before(int(mask.sum()), int(self.right[mask].sum()))
        return found


def reference_uri(task_uri: str, digest: str) -> str:
    """Where a version's reference lies. Embeddings can be turned back into words: it is as personal as the rows are."""
    return f"{task_uri}/references/{digest}.parquet"


def remember(recipe: Recipe, version: ModelVersion, *, made_at: str) -> str:
    """Makes the version's reference from the recipe's validation rows, on the cluster, where there is none; its URI."""
    uri = reference_uri(recipe.task_uri, version.digest)
    if not storage.exists(uri):
        rows = validation_rows(recipe.data)
        if len(rows) > MOST_ROWS:
            rows = rows.take(np.sort(np.random.default_rng(SEED).permutation(len(rows))[:MOST_ROWS]))
        content = remotely(made, recipe.training)(version.uri, rows=rows, made_at=made_at)
        storage.write_bytes(uri, content)
    return uri


def read_reference(task_uri: str, version: ModelVersion) -> Reference:
    """What `remember` made of the version; raises ReferenceMissing where it did not."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    uri = reference_uri(task_uri, version.digest)
    if not storage.exists(uri):
        raise ReferenceMissing(f"{uri} is not there; `tailorbird watch RECIPE` makes it of validation rows")
    table = pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
    if made_by_code(table.schema):
        raise ReferenceMissing(f"{uri} holds values that code would make; delete it: `tailorbird watch` makes it")
    told = json.loads(table.schema.metadata[b"tailorbird"])
    flat = table["embedding"].combine_chunks().flatten().to_numpy()
    asked = Asked(
        table["confidence"].to_numpy().astype(np.float64),
        table["output"].to_pylist(),
        flat.reshape(len(table), -1).astype(np.float32),
        table["key"].to_numpy() if "key" in table.column_names else None,
    )
    groups = {name: tuple(table[f"group:{name}"].to_pylist()) for name in told["groups"]}
    right = np.array(table["right"].to_pylist(), bool)
    return Reference(told["digest"], told["made_at"], asked, right, groups)


def validation_rows(config: DataConfig) -> Rows:
    """The rows that a champion is chosen on."""
    if config.validation is not None and config.test is not None:
        return read_later(config, chat=False)[0]
    return read_splits(config).validation


def made(uri: str, *, rows: Rows, made_at: str) -> bytes:
    """A version's reference as Parquet: what it answers to the rows, and their embeddings.

    Embedded are the texts as a log would keep them, redacted: else any task with numbers in its texts would look as if
    its traffic had left the reference.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tailorbird.evaluation.inference.predict import predict_rows
    from tailorbird.registry.versions import read_version

    version = read_version(uri)
    table = predict_rows(uri, rows=rows)
    kept = tuple(map(redacted, rows.texts))
    embeddings = embedded(version.base_model, kept, max_length=version.max_length)
    columns: dict[str, Any] = {
        "output": pa.array(table.outputs, pa.string()),
        "confidence": pa.array(table.calibrated),
        "right": pa.array(table.scores == 1.0),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel(), pa.float32()), embeddings.shape[1]),
    }
    columns |= {f"group:{name}": pa.array(values, pa.string()) for name, values in table.groups.items()}
    if rows.split_keys is not None:  # by number: a key may be a patient
        columns["key"] = pa.array(np.unique(np.array(rows.split_keys), return_inverse=True)[1])
    told = {"digest": version.digest, "made_at": made_at, "groups": list(table.groups)}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata({"tailorbird": json.dumps(told)}), sink)
    return sink.getvalue()


def embedded(base_model: str, texts: tuple[str, ...], *, max_length: int) -> NDArray[np.float32]:
    """[N, D] of the pretrained encoder, which no training moved: the same space whoever is the champion."""
    from tailorbird.data.tokenize import encode_texts, load_tokenizer
    from tailorbird.models.classifier import Classifier, embed_rows, zero_head
    from tailorbird.models.loading import load_encoder
    from tailorbird.storage.node_cache import local_copy

    base = local_copy(base_model)
    tokenizer = load_tokenizer(base)
    encoder = load_encoder(base)
    model = Classifier(encoder, zero_head(int(encoder.config.hidden_size), 1))  # type: ignore[union-attr, arg-type]
    tokens = encode_texts(texts, tokenizer=tokenizer, max_length=max_length)
    return embed_rows(model, tokens, pad_id=int(tokenizer.pad_token_id))
