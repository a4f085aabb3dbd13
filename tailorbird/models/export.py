"""Export an evaluated version for another inference engine."""

import json
import logging
import shutil
import tempfile
from importlib import import_module
from pathlib import Path

import torch

from tailorbird.models.classifier import Classifier
from tailorbird.models.loading import checked_copy, load_weights
from tailorbird.models.pretrained import cpu_supports_bfloat16, load_encoder
from tailorbird.models.runtimes import INPUTS, INSTALL, OUTPUT, EngineError
from tailorbird.registry.versions import (
    BAG_FILES,
    EXPORTED_ENCODER,
    TRAINING_ROWS,
    ModelVersion,
    PinnedVersion,
    VersionConfig,
    now,
    read_version,
    write_config,
)
from tailorbird.storage import MANIFEST, upload_folder
from tailorbird.storage.node_cache import local_copy

TARGETS = ("torch-bfloat16", "openvino", "onnxruntime-int8")
EXAMPLE = (2, 8)  # rows and tokens of the traced batch; the export would treat a size of 1 as constant


class _Embedding(torch.nn.Module):
    """The exported part of a classifier, which maps token ids and mask, both [B, T], to embeddings [B, D]."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model.embed(input_ids, attention_mask)


def export_version(uri: str, *, target: str, code: str, to: str) -> None:
    """Export the version at `uri` for one of `TARGETS` and write it as an artifact to the URI `to`.

    For torch, copy the version's files and change the dtype. For other engines, write `EXPORTED_ENCODER`, with the
    adapter merged, and copy the head, the bag of words and the fingerprints of the training rows. OpenVINO uses
    bfloat16 if this machine supports it. `code` is the URI of the code that can load the artifact. Raises EngineError
    if a package or bfloat16 support is missing or the encoder cannot be exported, and the errors of
    `tailorbird.models.loading.load_model`.
    """
    version = read_version(uri)
    if version.exported_from is not None:
        raise EngineError(f"{uri} is already an export; export {version.exported_from.uri} instead")
    if not version.spec.uses_base:
        raise EngineError(f"{uri} is a {version.kind} model, which has no encoder to export; serve it with torch")
    engine, dtype = _engine_of(target, evaluated=version)
    source = checked_copy(version.pinned)
    config = VersionConfig.model_validate(
        version.model_dump(include=set(VersionConfig.model_fields))
        | {"engine": engine, "dtype": dtype, "code": code, "created_at": now()}
        | {"exported_from": PinnedVersion(uri=version.uri, digest=version.digest)}
    )
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as name:
        folder = Path(name)
        if engine == "torch":
            files = json.loads((source / MANIFEST).read_bytes())  # without the evidence of the original version
            for file in files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / file, folder / file)
        else:
            for file in ("head.safetensors", *(BAG_FILES if version.spec.has_bag else ())):
                shutil.copy(source / file, folder)
            if (source / TRAINING_ROWS).exists():
                shutil.copy(source / TRAINING_ROWS, folder)
            encoder = load_encoder(local_copy(version.base_model))
            model = load_weights(source, encoder=encoder, kind=version.kind, pooling=version.pooling).eval()
            write_graph(model, folder / EXPORTED_ENCODER, max_length=version.max_length)
            if engine == "onnxruntime-int8":
                _quantize(folder / EXPORTED_ENCODER)
        write_config(folder, config)
        upload_folder(folder, to)


def _engine_of(target: str, *, evaluated: ModelVersion) -> tuple[str, str]:
    """Return the engine and the dtype of a target."""
    in_bfloat16 = cpu_supports_bfloat16()  # these engines run on CPU, even if there is a GPU
    if target != "torch-bfloat16":
        return target, "bfloat16" if target == "openvino" and in_bfloat16 else "float32"
    if evaluated.dtype == "bfloat16":
        raise EngineError(f"{evaluated.version} already uses bfloat16")
    if not in_bfloat16:
        raise EngineError("the CPU of this machine does not support bfloat16")
    return "torch", "bfloat16"


def write_graph(model: Classifier, file: Path, *, max_length: int) -> None:
    """Write encoder and pooling to an ONNX file, for any batch size and up to `max_length` tokens."""
    _require("onnx", "onnxscript")
    ids = torch.ones((EXAMPLE[0], min(EXAMPLE[1], max_length)), dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[0, ids.shape[1] // 2 :] = 0  # without padding, transformers omits the mask from the graph
    sizes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("tokens", min=1, max=max_length)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # silences warnings about unused operators
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
        first = str(error).strip().split("\n")[0]
        raise EngineError(f"the encoder cannot be exported to ONNX: {first}; serve it with torch") from None


def _quantize(file: Path) -> None:
    """Quantize matrix products to int8: weights statically per column, activations dynamically.

    Weights use 7 bits, because 8 bits overflow on machines without VNNI (ONNX Runtime, Quantize ONNX models).
    """
    _require("onnx", "onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    unquantized = file.rename(file.with_suffix(".fp32.onnx"))
    products = ["MatMul", "Gemm"]
    try:
        quantize_dynamic(unquantized, file, products, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
    except Exception as error:  # onnx and onnxruntime raise various exceptions
        raise EngineError(f"the encoder cannot be quantized: {error}; serve it with torch") from None
    unquantized.unlink()


def _require(*packages: str) -> None:
    for name in packages:
        try:
            import_module(name)
        except ImportError as error:
            raise EngineError(
                f"the export needs the package {name}, which cannot be imported ({error}); {INSTALL}"
            ) from None
