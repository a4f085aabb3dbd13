"""From a version that a verdict was about to the same weights for another engine."""

import json
import logging
import shutil
import tempfile
from importlib import import_module
from pathlib import Path

import torch

from tailorbird.models.classifier import Classifier
from tailorbird.models.loading import checked_copy, cpu_supports_bfloat16, load_encoder, load_weights
from tailorbird.models.runtimes import ENCODER_FILE, INPUTS, INSTALL, OUTPUT, EngineError
from tailorbird.registry.versions import ModelVersion, PinnedVersion, VersionConfig, now, read_version, write_config
from tailorbird.storage import MANIFEST, upload_folder
from tailorbird.storage.node_cache import local_copy

TARGETS = ("torch-bfloat16", "openvino", "onnxruntime-int8")
"""What a version can be exported for."""
EXAMPLE = (2, 8)
"""Rows and tokens of the batch that the export traces; neither may be 1, which would become part of the graph."""


class _Embedding(torch.nn.Module):
    """The part that is exported: token ids and mask, both [B, T], to embeddings [B, D]."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model.embed(input_ids, attention_mask)


def export_version(uri: str, *, target: str, code: str, to: str) -> None:
    """Writes the version at `uri`, for one of `TARGETS`, as an artifact at the URI `to`.

    For torch that is the version's own files with another dtype; for the others its head and `ENCODER_FILE`, an adapter
    merged. OpenVINO gets bfloat16 where this machine computes in it. `code` is the URI of the code that can load it.
    Raises EngineError where packages or bfloat16 are missing here, or the encoder cannot be exported; RegistryError and
    ModelError as `tailorbird.models.loading.load_model`.
    """
    version = read_version(uri)
    if version.exported_from is not None:
        raise EngineError(f"{uri} was exported itself; export {version.exported_from.uri}")
    engine, dtype = _engine_of(target, judged=version)
    source = checked_copy(uri)
    config = VersionConfig.model_validate(
        version.model_dump(include=set(VersionConfig.model_fields))
        | {"engine": engine, "dtype": dtype, "code": code, "created_at": now()}
        | {"exported_from": PinnedVersion(uri=version.uri, digest=version.digest)}
    )
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as name:
        folder = Path(name)
        if engine == "torch":
            for file in json.loads((source / MANIFEST).read_bytes()):  # and no evidence, which is of that version
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / file, folder / file)
        else:
            shutil.copy(source / "head.safetensors", folder)
            encoder = load_encoder(local_copy(version.base_model))
            model = load_weights(source, encoder=encoder, kind=version.kind).eval()
            write_graph(model, folder / ENCODER_FILE, max_length=version.max_length)
            if engine == "onnxruntime-int8":
                _quantise(folder / ENCODER_FILE)
        write_config(folder, config)
        upload_folder(folder, to)


def _engine_of(target: str, *, judged: ModelVersion) -> tuple[str, str]:
    """Engine and dtype."""
    in_bfloat16 = cpu_supports_bfloat16()  # also with GPUs: these engines run on CPU
    if target != "torch-bfloat16":
        return target, "bfloat16" if target == "openvino" and in_bfloat16 else "float32"
    if judged.dtype == "bfloat16":
        raise EngineError(f"{judged.version} was judged in bfloat16 already")
    if not in_bfloat16:
        raise EngineError("this machine does not compute in bfloat16")
    return "torch", "bfloat16"


def write_graph(model: Classifier, file: Path, *, max_length: int) -> None:
    """Encoder and pooling as one ONNX file, for batches of any size of texts of up to `max_length` tokens."""
    _require("onnx", "onnxscript")
    ids = torch.ones((EXAMPLE[0], min(EXAMPLE[1], max_length)), dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[0, ids.shape[1] // 2 :] = 0  # with none masked, transformers would leave the mask out of the graph
    sizes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("tokens", min=1, max=max_length)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # of operators that the encoder does not have
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
    except Exception as error:  # of torch, onnxscript and onnx, each with classes of its own
        first = str(error).strip().split("\n")[0]
        raise EngineError(f"the encoder cannot be exported to ONNX: {first}; serve it by torch") from None


def _quantise(file: Path) -> None:
    """Products with weights in int8, the weights once and a scale for each column, activations at each call.

    Weights in 7 bits: with 8 the products overflow on machines without VNNI (ONNX Runtime, Quantize ONNX models).
    """
    _require("onnx", "onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = file.rename(file.with_suffix(".fp32.onnx"))
    products = ["MatMul", "Gemm"]
    try:
        quantize_dynamic(whole, file, products, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
    except Exception as error:  # of onnx and onnxruntime, each with classes of its own
        raise EngineError(f"the encoder cannot be quantised: {error}; serve it by torch") from None
    whole.unlink()


def _require(*packages: str) -> None:
    for name in packages:
        try:
            import_module(name)
        except ImportError as error:
            raise EngineError(f"an encoder is not exported without {name} ({error}); {INSTALL}") from None
