"""Behind a batch: one worker of Ray Data's, which answers a part of the input's rows and writes it whole."""

import io
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from serving.engines.classify import predict_hybrid, predict_texts
from serving.version_checks import require_digest
from tailorbird import storage
from tailorbird.config.serving import ServingConfig
from tailorbird.data.parquet import conversations_of, groups_of, open_parquet, texts_of
from tailorbird.data.rows import DataError
from tailorbird.storage import s3

if TYPE_CHECKING:
    from tailorbird.models.loading import LoadedChat, LoadedHybrid, LoadedModel
    from tailorbird.registry.versions import ModelVersion

    Loaded = LoadedModel[ModelVersion] | LoadedHybrid | LoadedChat[ModelVersion]


SOURCE_KEY = b"tailorbird"
"""Where in a part's Parquet metadata it says what it is made of."""


@dataclass(frozen=True)
class Batch:
    """What goes through which version to where."""

    input: str
    """URI of a Parquet file or a folder of them on S3."""
    output: str
    """URI of a folder on S3."""
    version_uri: str
    digest: str
    column: str
    """With the texts; of a chat model with prompts or conversations."""
    id_column: str | None = None
    """What the output has as `id`."""


@dataclass(frozen=True)
class Part:
    """Rows that lie one after the other in one file, of which one worker makes one file."""

    number: int
    uri: str
    start: int
    """Position of the first row in its file."""
    first: int
    """The same among all rows of the input."""
    num_rows: int
    etag: str
    """Of the file, as it was when the rows were counted."""


def part_uri(output: str, number: int) -> str:
    """Where a part's answers lie."""
    return f"{output}/part-{number:06d}.parquet"


def columns_of(batch: Batch, version: "ModelVersion") -> list[str]:
    """The columns that are read, each once; a hybrid by group reads the one that routes."""
    named = (batch.column, batch.id_column, version.hybrid and version.hybrid.routing.column)
    return list(dict.fromkeys(name for name in named if name))


class PartScorer:
    """Used as an actor of Ray Data: holds the version, loaded at the first part that is not there yet."""

    def __init__(self, batch: dict[str, Any], config: dict[str, Any]) -> None:
        self._batch = Batch(**batch)
        self._section = ServingConfig.model_validate(config)
        self._loaded: Loaded | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        """The part in `row`; what is wrong with data or store is told: raised, it would be a traceback."""
        part = Part(**json.loads(row["part"]))
        uri = part_uri(self._batch.output, part.number)
        try:
            told: dict[str, Any] = {"part": part.number}
            if storage.exists(uri):
                with open_parquet(uri, columns=(), in_parts=True) as done:
                    _require_same_source(done, uri, self._made_of(part))
                    return {"told": json.dumps(told | {"num_rows": done.metadata.num_rows})}
            if self._loaded is None:
                self._loaded = self._load()
            began = time.time()
            table = score_part(part, self._batch, loaded=self._loaded, batch_size=self._section.max_batch_size)
            if storage.head(part.uri)[0] != part.etag:
                raise DataError(f"{part.uri} was changed while it was read; score it to another output")
            sink = io.BytesIO()
            pq.write_table(table.replace_schema_metadata({SOURCE_KEY: self._made_of(part)}), sink)
            storage.write_bytes(uri, sink.getvalue(), patient=True)
            told |= {"num_rows": table.num_rows, "began": began, "ended": time.time()}
        except (DataError, s3.StorageError) as error:
            told |= {"refused": str(error), "by_store": storage.is_behind(error)}
        return {"told": json.dumps(told)}

    def _made_of(self, part: Part) -> bytes:
        """What a part's file is made of, which it carries."""
        batch = self._batch
        told = {"part": asdict(part), "digest": batch.digest, "column": batch.column, "id_column": batch.id_column}
        return json.dumps(told, sort_keys=True).encode()

    def _load(self) -> "Loaded":
        try:
            return _load(self._batch, threads=self._section.cpus_per_replica)
        except s3.StorageError:
            raise
        except ValueError as error:  # what models and registry say of a version that is not whole
            raise DataError(str(error)) from None


def _require_same_source(done: Any, uri: str, made_of: bytes) -> None:
    if (done.schema_arrow.metadata or {}).get(SOURCE_KEY) != made_of:
        raise DataError(f"{uri} holds answers to other rows, or of another version; delete it and ask again")


def _load(batch: Batch, *, threads: int) -> "Loaded":
    import torch

    from tailorbird.models.loading import load_chat_version, load_served
    from tailorbird.registry.versions import read_version

    torch.set_num_threads(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the cores are the workers'
    chat = read_version(batch.version_uri).prompting is not None
    loaded: Loaded = load_chat_version(batch.version_uri) if chat else load_served(batch.version_uri)
    require_digest(loaded.version, digest=batch.digest)
    return loaded


def _max_length(lm: Any) -> int | None:
    """Tokens that a prompt and its answer may have together; None where nothing here says."""
    import torch

    from tailorbird.models.generation import CACHE_TOKENS

    positions = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
    known = [most for most in (positions, None if torch.cuda.is_available() else CACHE_TOKENS) if most]
    return min(known, default=None)


def score_part(part: Part, batch: Batch, *, loaded: "Loaded", batch_size: int) -> pa.Table:
    """The part's rows with their answers, in their order; DataError for a text that is none."""
    table = _read(part, columns=columns_of(batch, loaded.version))
    columns: dict[str, Any] = {"row": pa.array(range(part.first, part.first + part.num_rows), pa.int64())}
    if batch.id_column is not None:
        columns["id"] = table.column(batch.id_column)
    columns |= _answer_columns(table, part, batch, loaded=loaded, batch_size=batch_size)
    columns["version"] = pa.array([loaded.version.version] * part.num_rows)
    return pa.table(columns)


def _answer_columns(table: pa.Table, part: Part, batch: Batch, *, loaded: "Loaded", batch_size: int) -> dict[str, Any]:
    from tailorbird.models.loading import LoadedChat, LoadedHybrid

    if isinstance(loaded, LoadedChat):
        return _chat_answers(table, part, batch, loaded=loaded)
    texts = texts_of(table, batch.column, uri=part.uri, first=part.start)
    columns: dict[str, Any] = {}
    if isinstance(loaded, LoadedHybrid):
        groups: Sequence[str | None] = [None] * len(texts)
        if loaded.routing.column is not None:
            groups = groups_of(table, loaded.routing.column, uri=part.uri, first=part.start)
            columns["group"] = pa.array(groups)
        found = predict_hybrid(loaded, list(zip(texts, groups, strict=True)), batch_size=batch_size)
        columns["answered_by"] = pa.array([prediction.answered_by for prediction in found])
    else:
        found = predict_texts(loaded, texts, batch_size=batch_size)
    labels, scores = [one.label for one in found], [one.score for one in found]
    return {"label": pa.array(labels), "score": pa.array(scores, pa.float32())} | columns


def _chat_answers(table: pa.Table, part: Part, batch: Batch, *, loaded: "LoadedChat[ModelVersion]") -> dict[str, Any]:
    """A chat model's most likely answers, as it is evaluated: by continuous batching over the whole part."""
    from tailorbird.data.chat_template import prompt_tokens
    from tailorbird.models.generation import answer_prompts

    if pa.types.is_list(table.schema.field(batch.column).type):
        conversations = conversations_of(table, batch.column, uri=part.uri, first=part.start)
    else:
        texts = texts_of(table, batch.column, uri=part.uri, first=part.start)
        conversations = [(("user", text),) for text in texts]
    prompting, tokenizer, most = loaded.prompting, loaded.tokenizer, _max_length(loaded.model.lm)
    prompts = []
    for position, conversation in enumerate(conversations, start=part.start):
        if not conversation or conversation[-1][0] != "user":
            raise DataError(
                f"{part.uri}: the conversation in row {position} does not end with a turn of the user, so there is "
                "nothing to answer; leave out what follows that turn"
            )
        try:
            asked = prompt_tokens(conversation, tokenizer=tokenizer, system=prompting.system, shots=prompting.shots)
        except DataError as error:
            raise DataError(f"{part.uri}: row {position}: {error}") from None
        if most is not None and len(asked) + prompting.max_new_tokens > most:
            raise DataError(
                f"{part.uri}: row {position} has {len(asked)} tokens and its answer may have "
                f"{prompting.max_new_tokens}, together more than the {most} that this model takes; shorten the row"
            )
        prompts.append(asked)
    end_id = int(tokenizer.eos_token_id)
    found = answer_prompts(loaded.model.lm, prompts, max_new_tokens=prompting.max_new_tokens, end_id=end_id)
    answers = [str(tokenizer.decode(answer.tokens, skip_special_tokens=True)).strip() for answer in found]
    return {
        "answer": pa.array(answers),
        "finish_reason": pa.array(["stop" if answer.finished else "length" for answer in found]),
        "confidence": pa.array([answer.confidence for answer in found], pa.float32()),
    }


def _read(part: Part, *, columns: list[str]) -> pa.Table:
    """The part's rows; of row groups that it shares with other parts it holds no more than that."""
    with open_parquet(part.uri, columns=columns, in_parts=True) as file:
        groups, skip, begin = [], part.start, 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if begin + size <= part.start:
                skip = part.start - begin - size
            elif begin < part.start + part.num_rows:
                groups.append(group)
            begin += size
        found: list[pa.RecordBatch] = []
        left = part.num_rows
        for batch in file.iter_batches(batch_size=part.num_rows, row_groups=groups, columns=columns):
            taken = batch.slice(skip, left)
            skip = max(0, skip - batch.num_rows)
            left -= taken.num_rows
            if taken.num_rows:
                found.append(taken)
            if not left:
                break
    if left:
        raise DataError(f"{part.uri} was changed while it was read; give files that stay, and an output of its own")
    return pa.Table.from_batches(found)


def part_row(part: Part) -> dict[str, str]:
    """A part as Ray Data carries it."""
    return {"part": json.dumps(asdict(part))}
