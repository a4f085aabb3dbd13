"""Export an evaluated version for ONNX Runtime, with int8 weights."""

import logging
import shutil
import tempfile
from pathlib import Path

import torch

from tailorbird.models.classifier import Classifier
from tailorbird.models.errors import first_line
from tailorbird.models.loading import checked_copy, load_weights
from tailorbird.models.pretrained import load_encoder
from tailorbird.models.runtimes import INPUTS, INSTALL, OUTPUT, EngineError
from tailorbird.registry.versions import (
    BAG_FILES,
    EXPORTED_ENCODER,
    TRAINING_ROWS,
    PinnedVersion,
    VersionConfig,
    now,
    read_version,
    write_config,
)
from tailorbird.storage import upload_folder
from tailorbird.storage.node_cache import local_copy

# of the traced batch, in which the export would treat a size of 1 as constant
EXAMPLE_ROWS = 2
EXAMPLE_TOKENS = 8


class _Embedding(torch.nn.Module):
    """The exported part of a classifier, which maps token ids and mask, both [B, T], to embeddings
    [B, D]."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model.embed(input_ids, attention_mask)


def export_int8(uri: str, *, code: str, to: str) -> None:
    """Export the version at `uri` and write it as an artifact to the URI `to`.

    The artifact has `EXPORTED_ENCODER`, with the adapter merged, and the version's head, bag of
    words and fingerprints of training rows. `code` is the URI of the code that can load it. Raises
    EngineError if a package is missing or the encoder cannot be exported, and the errors of
    `tailorbird.models.loading.load_weights`.
    """
    version = read_version(uri)
    source = checked_copy(version.pinned)
    config = VersionConfig.model_validate(
        version.model_dump(include=set(VersionConfig.model_fields))
        | {"engine": "onnxruntime-int8", "dtype": "float32", "code": code, "created_at": now()}
        | {"exported_from": PinnedVersion(uri=version.uri, digest=version.digest)}
    )
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as name:
        folder = Path(name)
        for file in ("head.safetensors", *BAG_FILES, TRAINING_ROWS):
            if (source / file).exists():
                shutil.copy(source / file, folder)
        encoder = load_encoder(local_copy(version.base_model))
        model = load_weights(
            source, encoder=encoder, kind=version.kind, pooling=version.pooling
        ).eval()
        write_graph(model, folder / EXPORTED_ENCODER, max_length=version.max_length)
        _quantize(folder / EXPORTED_ENCODER)
        write_config(folder, config)
        upload_folder(folder, to)


def write_graph(model: Classifier, file: Path, *, max_length: int) -> None:
    """Write encoder and pooling to an ONNX file, for any batch size and up to `max_length`
    tokens."""
    ids = torch.ones((EXAMPLE_ROWS, min(EXAMPLE_TOKENS, max_length)), dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[0, ids.shape[1] // 2 :] = 0  # without padding, transformers omits the mask from the graph
    sizes = {
        0: torch.export.Dim("batch", min=1),
        1: torch.export.Dim("tokens", min=1, max=max_length),
    }
    # Silence warnings about unused operators.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        torch.onnx.export(
            _Embedding(model),
            (ids, mask),
            file,
            input_names=INPUTS,
            output_names=[OUTPUT],
            dynamic_shapes=dict.fromkeys(INPUTS, sizes),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    except Exception as error:  # torch, onnxscript and onnx raise various exceptions
        raise _export_error(error) from None


def _quantize(file: Path) -> None:
    """Quantize matrix products to int8: weights statically per column, activations dynamically.

    Weights use 7 bits, because 8 bits overflow on machines without VNNI (ONNX Runtime, Quantize
    ONNX models).
    """
    unquantized = file.rename(file.with_suffix(".fp32.onnx"))
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            unquantized,
            file,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
    except Exception as error:  # onnx and onnxruntime raise various exceptions
        raise _export_error(error) from None
    unquantized.unlink()


def _export_error(error: Exception) -> EngineError:
    return EngineError(
        f"the encoder cannot be exported to ONNX: {first_line(error)}; if a package is missing, "
        f"{INSTALL}; otherwise serve it with torch"
    )
