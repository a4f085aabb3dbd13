"""A classifier whose encoder another engine than torch runs: OpenVINO or ONNX Runtime, on CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tailorbird.models.classifier import Classifier

ENCODER_FILE = "encoder.onnx"
INPUTS, OUTPUT = ("input_ids", "attention_mask"), "embedded"
PRECISION = {"float32": "f32", "bfloat16": "bf16"}
"""OpenVINO's names for dtypes."""
INSTALL = "install it where models run: pip install --editable '.[engines]' in the project's folder"


class EngineError(ValueError):
    """An engine that is not there, or a file that it does not take; the message says what to do."""


class ExportedClassifier(Classifier):
    """A classifier whose encoder and pooling are a graph outside torch; its head, in fp32, is torch's as ever.

    `run` maps token ids [B, T] and attention mask [B, T], both int64, to embeddings [B, D] in fp32.
    """

    def __init__(self, run: Callable[[np.ndarray, np.ndarray], np.ndarray], *, head: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.run = run
        self.head = head

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.run(input_ids.numpy(), attention_mask.numpy()))


def load_exported(folder: Path, *, head: nn.Linear, engine: str, dtype: str) -> ExportedClassifier:
    """The classifier of a folder with `ENCODER_FILE`, run by as many threads as torch has now.

    `dtype` is what OpenVINO computes in; a quantised graph says for itself. Raises EngineError.
    """
    start = {"openvino": _openvino, "onnxruntime-int8": _onnxruntime}[engine]
    try:
        return ExportedClassifier(start(folder / ENCODER_FILE, dtype=dtype), head=head)
    except ImportError as error:
        raise EngineError(f"this version runs on {engine}, which is not here ({error}); {INSTALL}") from None
    except Exception as error:  # for a file that they do not take, each raises classes of its own
        first = str(error).strip().split("\n")[0]
        raise EngineError(f"{engine} does not take {folder / ENCODER_FILE}: {first}; export it again") from None


def _openvino(file: Path, *, dtype: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    import openvino

    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": PRECISION[dtype],  # left alone it takes bf16 where the machine has it
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # replicas on one node would pin the same cores
    }
    request = openvino.Core().compile_model(file, "CPU", settings).create_infer_request()

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        found = request.infer(dict(zip(INPUTS, (input_ids, attention_mask), strict=True)))
        return np.array(found[OUTPUT])  # a copy: the next call writes over it

    return run


def _onnxruntime(file: Path, *, dtype: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    import onnxruntime

    assert dtype == "float32"  # what the int8 products are scaled back to
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would burn CPU
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def embed(row: np.ndarray) -> np.ndarray:
        [found] = session.run([OUTPUT], dict(zip(INPUTS, (row[None], np.ones_like(row[None])), strict=True)))
        return np.asarray(found[0])

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Row by row: activations are scaled by the largest in a call, so in a batch a text's answer would hang on the
        others. Of 32 texts of 16 tokens that took half as long again as one batch, on AVX2."""
        lengths = attention_mask.sum(1).tolist()
        return np.stack([embed(row[:length]) for row, length in zip(input_ids, lengths, strict=True)])

    return run
