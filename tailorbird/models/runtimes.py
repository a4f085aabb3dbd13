"""Classifiers whose encoder runs in ONNX Runtime, on CPU."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tailorbird.models.classifier import Classifier
from tailorbird.registry.versions import EXPORTED_ENCODER

INPUTS, OUTPUT = ("input_ids", "attention_mask"), "embedded"
INSTALL = "run `pip install --editable '.[engines]'` in the project folder on the machines that run models"


class EngineError(ValueError):
    """An inference engine is not installed, or cannot export or load a model."""


class ExportedClassifier(Classifier):
    """A classifier whose encoder and pooling run in another engine, and whose fp32 head runs in torch.

    `run` maps token ids [B, T] and attention mask [B, T], both int64, to embeddings [B, D] in fp32.
    """

    def __init__(self, run: Callable[[np.ndarray, np.ndarray], np.ndarray], *, head: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.run = run
        self.head = head

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return torch.from_numpy(self.run(input_ids.numpy(), mask.numpy()))


def load_exported(folder: Path, *, head: nn.Linear) -> ExportedClassifier:
    """Load a classifier with `EXPORTED_ENCODER`. It runs with torch's current number of threads. Raises EngineError."""
    try:
        return ExportedClassifier(_onnxruntime(folder / EXPORTED_ENCODER), head=head)
    except ImportError as error:
        raise EngineError(f"this version needs ONNX Runtime, which is not installed ({error}); {INSTALL}") from None
    except Exception as error:  # ONNX Runtime raises various exceptions
        first = str(error).strip().split("\n")[0]
        raise EngineError(
            f"ONNX Runtime cannot load {folder / EXPORTED_ENCODER}: {first}; export the version again"
        ) from None


def _onnxruntime(file: Path) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would use CPU
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def embed(row: np.ndarray) -> np.ndarray:
        [embedding] = session.run([OUTPUT], dict(zip(INPUTS, (row[None], np.ones_like(row[None])), strict=True)))
        return np.asarray(embedding[0])

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Run one row at a time.

        Activations are scaled by the largest value of a call, so each row of a batch would depend on the others. On
        AVX2, 32 texts of 16 tokens take 1.5 times as long as in one batch.
        """
        lengths = attention_mask.sum(1).tolist()
        return np.stack([embed(row[:length]) for row, length in zip(input_ids, lengths, strict=True)])

    return run
