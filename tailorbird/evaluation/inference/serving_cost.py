"""Measure the cost of the compared models on the device that serves them, in alternating rounds."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch

from tailorbird.config.serving import BATCH_SIZE
from tailorbird.data.rows import Rows
from tailorbird.evaluation.gates.cost import (
    MIN_ROUNDS,
    MeasuredCosts,
    ServingDevice,
    ServingUsage,
    Tokens,
)
from tailorbird.evaluation.inference.chat_answers import answer_texts
from tailorbird.evaluation.inference.device import emulates, evaluation_device
from tailorbird.evaluation.inference.endpoint_predictions import request_bodies
from tailorbird.models.devices import move_to_device, move_to_host
from tailorbird.models.generation import answer_prompts
from tailorbird.models.loading import (
    AnyLoaded,
    LoadedClassifier,
    PretrainedModels,
    load_artifact,
    load_retrieval_index,
)
from tailorbird.registry.versions import VersionConfig, read_artifact_config
from tailorbird.storage.node_cache import local_copy

Loaded = AnyLoaded[VersionConfig]
CPU_NAME = "CPU"


class Seconds(NamedTuple):
    """The time of one pass over the rows."""

    cpu: float  # CPU-seconds of all threads of this process
    elapsed: float  # from start to end, with the device idle at both


@dataclass(frozen=True)
class _Model:
    """A model that answers rows, with the weights that must be on the device meanwhile."""

    answer: Callable[[Rows], object]
    weights: torch.nn.Module | None
    dtype: str  # empty without weights


def measure_serving(
    uris: Mapping[str, str],
    *,
    rows: Rows,
    num_gpus: int = 0,
    tokens: Mapping[str, Tokens] | None = None,
    batch_size: int = BATCH_SIZE,
) -> MeasuredCosts:
    """Return the resources for a thousand rows, from text to answer, by role and round.

    `uris` has the URIs of the artifacts by role, none of which is a hybrid. `num_gpus` is the
    number of GPUs of a replica, rounded up. All models run in this process, on its GPU if replicas
    have any, else on CPU. After a warm-up on all rows, all models answer all rows in each round;
    every second round has the reverse order. CPU-seconds include all threads of the process.
    GPU-seconds are the elapsed time
    between two synchronizations of the GPU, times `num_gpus`: while a replica answers, it keeps its
    GPUs from other work. A model that needs no GPU is charged for them too, because every replica
    has them.

    If a replica has several GPUs, GPU-seconds count all of these, although one of them computes at
    a time. They are an upper bound, also of the difference between two models, provided that a
    replica, which uses its GPUs together, answers no slower.

    `batch_size` is that of the service: the maximum number of rows of a forward pass or, for a
    language model, of rows that are answered at the same time. A language model runs in
    transformers, even if the service uses vLLM.

    `tokens` has the tokens of each external endpoint by role. No request is sent: the CPU-seconds
    of an endpoint are those in which its requests are prepared, and its replicas have no GPU.

    Raises ValueError for fewer than two models or no rows, and DeviceError without a GPU.
    """
    if len(uris) < 2 or not len(rows):
        raise ValueError(
            f"cannot measure the cost of {sorted(uris)} on {len(rows)} rows; give at least 2 "
            "models and at least 1 row"
        )
    device = evaluation_device(on_gpu=True) if num_gpus else "cpu"
    load = partial(_model, device=device, batch_size=batch_size, pretrained={})
    models = {role: load(uri) for role, uri in uris.items()}
    for model in models.values():
        _seconds(model, rows, device=device)

    measured: dict[str, list[Seconds]] = {role: [] for role in models}
    order = list(models)
    for _ in range(MIN_ROUNDS):
        for role in order:
            measured[role].append(_seconds(models[role], rows, device=device))
        order.reverse()

    costs = {}
    for role, seconds in measured.items():
        costs[role] = usage_of(seconds, num_rows=len(rows), num_gpus=num_gpus)
        if tokens is not None and role in tokens:
            costs[role] = replace(costs[role], gpu_s=None, tokens=tokens[role])
    emulated = [role for role, model in models.items() if emulates(model.dtype, device=device)]
    return MeasuredCosts(ServingDevice(_device_name(num_gpus), tuple(emulated)), costs)


def _device_name(num_gpus: int) -> str:
    """Return the name of the GPUs, such as `NVIDIA H100 (counted as 8)`, or that of the CPU."""
    if not num_gpus:
        return CPU_NAME
    name = torch.cuda.get_device_name()
    return name if num_gpus == 1 else f"{name} (counted as {num_gpus})"


def usage_of(rounds: Sequence[Seconds], *, num_rows: int, num_gpus: int) -> ServingUsage:
    """Return the resources for a thousand rows, from the times of the rounds; `num_gpus` is 0 on
    CPU."""
    cpu_s = tuple(1000 * seconds.cpu / num_rows for seconds in rounds)
    gpu_s = tuple(1000 * num_gpus * seconds.elapsed / num_rows for seconds in rounds)
    return ServingUsage(cpu_s, gpu_s if num_gpus else None)


def _seconds(model: _Model, rows: Rows, *, device: str) -> Seconds:
    with _on_device(model.weights, device=device):
        if device != "cpu":
            torch.cuda.synchronize()
        cpu = time.process_time()
        elapsed = time.perf_counter()
        model.answer(rows)
        if device != "cpu":
            torch.cuda.synchronize()
        return Seconds(time.process_time() - cpu, time.perf_counter() - elapsed)


@contextmanager
def _on_device(model: torch.nn.Module | None, *, device: str) -> Iterator[None]:
    """Keep a model on the device during the block only, so that each model has all of its memory,
    as in serving.

    The weights in the host's memory stay there, so that those that are mapped from files take no
    memory. Those of a model that is divided among GPUs are moved instead.
    """
    if model is None or device == "cpu":
        yield
        return
    on_host = {tensor: tensor.data for tensor in (*model.parameters(), *model.buffers())}
    try:
        move_to_device(model, device)
        yield
    finally:
        for tensor, data in on_host.items():
            tensor.data = data
        move_to_host(model)
        torch.cuda.empty_cache()


def _model(uri: str, *, device: str, batch_size: int, pretrained: PretrainedModels) -> _Model:
    """Load the artifact as a model whose weights wait in the host's memory for their turn.

    Artifacts that use the same language model unchanged share it.
    """
    config = read_artifact_config(uri)
    if config.endpoint is not None:
        return _endpoint_model(uri, config=config)
    loaded = load_artifact(uri, device=device, weights_device="cpu", pretrained=pretrained)
    answer = partial(_answer, loaded, batch_size=batch_size)
    return _Model(answer, loaded.model, str(loaded.version.dtype))


def _endpoint_model(uri: str, *, config: VersionConfig) -> _Model:
    """Return a model that prepares the requests to an endpoint, and sends none."""
    assert config.prompting is not None  # `VersionConfig` requires it for an endpoint
    index = load_retrieval_index(
        local_copy(uri), retrieval=config.prompting.retrieval, device="cpu"
    )

    def prepare(rows: Rows) -> list[str]:
        return [json.dumps(body) for body in request_bodies(rows, version=config, index=index)]

    return _Model(prepare, weights=None, dtype="")


def _answer(loaded: Loaded, rows: Rows, *, batch_size: int) -> object:
    """Return the logits of a classifier, or the answers of a chat version."""
    if isinstance(loaded, LoadedClassifier):
        return loaded.logits(rows.texts, batch_size=batch_size)
    return answer_texts(loaded, rows, generate=partial(answer_prompts, max_requests=batch_size))
