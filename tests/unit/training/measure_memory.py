"""Train a model of MiniLM's shape in a separate process, and print its peak memory in bytes.

Run `python -m tests.unit.training.measure_memory CONFIG LENGTH`.
"""

import os
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from transformers import BertConfig, BertModel

import training.worker  # noqa: F401  a worker's process imports it
from tailorbird.config.training import TrainingConfig
from tailorbird.data.rows import Rows
from tailorbird.data.tokenized import TokenizedRows, TokenLists
from tailorbird.models.pretrained import without_pooler
from training.classification_task import ClassificationTrainingTask, ClassifierRuntime
from training.dataset import InMemoryDataset
from training.export import export_weights
from training.loop import build_engine, train

SHAPE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
CLASSES = ("0", "1", "2")


def main(config: TrainingConfig, length: int) -> None:
    """Train, validate and export, then print the peak memory."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = "0"
    folder = Path(tempfile.mkdtemp())
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    runtime = random_runtime(config.batch_size, length)
    engine = build_engine(config, runtime)
    train(engine, config, runtime=runtime)
    export_weights(engine, config, runtime=runtime, folder=folder / "weights")
    print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)
    os._exit(0)


def random_runtime(num_rows: int, length: int) -> ClassifierRuntime:
    """Return a runtime with random tokens and an encoder with random weights."""
    tokens = np.random.default_rng(0).integers(5, 5000, size=(num_rows, length)).tolist()
    names, labels = tuple(map(str, range(num_rows))), np.arange(num_rows) % len(CLASSES)
    rows = Rows(names, names, tuple(map(str, labels)))
    task = ClassificationTrainingTask(
        base_model="", train=rows, validation=rows.take([0]), classes=CLASSES, max_length=length
    )
    return ClassifierRuntime(
        encoder=without_pooler(BertModel(BertConfig(**SHAPE))),
        task=task,
        train=InMemoryDataset(TokenizedRows.from_lists(names, TokenLists(tokens, labels=rows.labels), classes=CLASSES)),
        validation_tokens=tokens[:1],
        validation_labels=labels[:1],
        pad_id=0,
    )


if __name__ == "__main__":
    main(TrainingConfig.model_validate_json(sys.argv[1]), int(sys.argv[2]))
