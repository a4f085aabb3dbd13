"""Classifiers whose encoder runs in ONNX Runtime, on CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tailorbird.models.classifier import Classifier
from tailorbird.models.errors import first_line
from tailorbird.registry.versions import EXPORTED_ENCODER

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "embedded"
INSTALL = (
    "run `pip install --editable '.[engines]'` in the project folder on the machines that run "
    "models"
)


class EngineError(ValueError):
    """ONNX Runtime is not installed, or cannot export or load a model."""


class ExportedClassifier(Classifier):
    """A classifier whose encoder and pooling run in a session of ONNX Runtime, and whose fp32 head
    runs in torch."""

    def __init__(self, session: Any, *, head: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.session = session
        self.head = head

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Return the embeddings [B, D], one row at a time.

        Activations are scaled by the largest value of a call, so each row of a batch would depend
        on the others. On AVX2, 32 texts of 16 tokens take 1.5 times as long as in one batch.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        embeddings = []
        for row, length in zip(input_ids.numpy(), attention_mask.sum(1).tolist(), strict=True):
            ids = row[None, :length]
            inputs = dict(zip(INPUTS, (ids, np.ones_like(ids)), strict=True))
            embeddings += self.session.run([OUTPUT], inputs)
        return torch.from_numpy(np.concatenate(embeddings))


def load_exported(folder: Path, *, head: nn.Linear) -> ExportedClassifier:
    """Load a classifier with `EXPORTED_ENCODER`. It runs with torch's current number of threads.
    Raises EngineError."""
    try:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        # Idle threads would use CPU.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        file = str(folder / EXPORTED_ENCODER)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except ImportError as error:
        raise EngineError(
            f"this version needs ONNX Runtime, which is not installed ({error}); {INSTALL}"
        ) from None
    except Exception as error:  # ONNX Runtime raises various exceptions
        raise EngineError(
            f"ONNX Runtime cannot load {folder / EXPORTED_ENCODER}: {first_line(error)}; export "
            "the version again"
        ) from None
    return ExportedClassifier(session, head=head)
