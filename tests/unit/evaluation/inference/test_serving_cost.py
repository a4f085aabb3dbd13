"""Tests of the cost measurement on a tiny encoder; no test checks a measured time."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tailorbird.data.rows import Rows
from tailorbird.evaluation.gates.cost import MIN_ROUNDS
from tailorbird.evaluation.inference import device, serving_cost
from tailorbird.evaluation.inference.device import DeviceError
from tailorbird.evaluation.inference.serving_cost import Seconds
from tailorbird.models.classifier import Classifier
from tailorbird.models.loading import LoadedClassifier, load_artifact
from tailorbird.registry.versions import read_artifact_config, write_config
from tests import build
from tests.unit.evaluation.test_mix import artifact, base

__all__ = ["base"]  # a fixture


@pytest.fixture
def uris(base: Path, tmp_path: Path) -> dict[str, str]:
    """Return the URIs of two fine-tuned classifiers."""
    return {
        role: artifact(tmp_path / role, kind="full", base=base)
        for role in ("candidate", "incumbent")
    }


def rows_of(texts: list[str]) -> Rows:
    return build.rows(texts, "a" * len(texts))


def test_the_order_alternates_after_a_warm_up_and_times_are_per_thousand_rows(
    uris: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[str] = []

    def counted(model: SimpleNamespace, rows: Rows, *, device: str) -> Seconds:
        assert device == "cpu"
        answered.append(model.uri.rpartition("/")[2])
        return Seconds(cpu=len(answered) * len(rows) / 1000, elapsed=1.0)

    monkeypatch.setattr(
        serving_cost, "_model", lambda uri, device, **_: SimpleNamespace(uri=uri, dtype=device)
    )
    monkeypatch.setattr(serving_cost, "_seconds", counted)
    in_order = {role: uris[role] for role in ("incumbent", "candidate")}
    in_order["probe"] = "file:///probe"
    costs = serving_cost.measure_serving(in_order, rows=rows_of(["heart"] * 7)).serving
    assert costs["incumbent"].unit == "CPU-seconds"
    assert "".join(role[0] for role in answered) == "icp" + "icppciicppciicp"
    assert costs["incumbent"].cpu_s == pytest.approx((4, 9, 10, 15, 16))
    assert costs["candidate"].cpu_s == pytest.approx((5, 8, 11, 14, 17))


def test_less_than_two_models_and_no_rows_are_refused_before_a_model_is_loaded() -> None:
    for roles, texts in ((("incumbent",), ["a"]), (("incumbent", "candidate"), [])):
        uris = dict.fromkeys(roles, "file:///nowhere")
        with pytest.raises(ValueError, match="at least 2 models"):
            serving_cost.measure_serving(uris, rows=rows_of(texts))


def test_all_gpus_of_a_replica_are_counted(
    uris: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The models run on CPU here; only the name of the device and the number of GPUs are those of a
    GPU."""
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError):
            serving_cost.measure_serving(uris, rows=rows_of(["heart"]), num_gpus=1)
    monkeypatch.setattr(
        serving_cost, "evaluation_device", lambda *, on_gpu: "cpu" if on_gpu else ""
    )
    monkeypatch.setattr(serving_cost, "_seconds", lambda *_, **__: Seconds(cpu=0.2, elapsed=0.5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    for num_gpus, name in ((1, "NVIDIA H100"), (2, "NVIDIA H100 (counted as 2)")):
        measured = serving_cost.measure_serving(
            uris, rows=rows_of(["heart"] * 50), num_gpus=num_gpus
        )
        assert measured.device.name == name
        for usage in measured.serving.values():
            assert (usage.cpu_s, usage.gpu_s) == ((4.0,) * 5, (10.0 * num_gpus,) * 5)
            assert (usage.unit, usage.device_s) == ("GPU-seconds", usage.gpu_s)


def test_a_model_whose_dtype_the_machine_emulates_is_named(
    uris: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(uris["candidate"].removeprefix("file://"))
    write_config(
        folder, read_artifact_config(uris["candidate"]).model_copy(update={"dtype": "bfloat16"})
    )
    for supported, emulated in ((True, ()), (False, ("candidate",))):
        monkeypatch.setattr(device, "cpu_supports_bfloat16", lambda supported=supported: supported)
        measured = serving_cost.measure_serving(uris, rows=rows_of(["heart"]))
        assert measured.device.emulated == emulated


def test_a_classifier_answers_in_passes_of_the_size_of_the_service(
    uris: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, passes of short texts that are larger than those of the service would be too
    cheap."""
    sizes: list[int] = []
    forward = Classifier.forward

    def recorded(model: Classifier, *inputs: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        sizes.append(len((*inputs, *named.values())[0]))
        return forward(model, *inputs, **named)

    monkeypatch.setattr(Classifier, "forward", recorded)
    serving_cost.measure_serving(uris, rows=rows_of(["heart"] * 10), batch_size=4)
    assert sizes == [4, 4, 2] * 2 * (1 + MIN_ROUNDS)  # two models, a warm-up and the rounds


def test_after_a_turn_the_weights_in_the_memory_of_the_host_are_used_again(
    uris: dict[str, str],
) -> None:
    """Copies from the device would take memory that weights mapped from files do not."""
    loaded = load_artifact(uris["candidate"], device="cpu")
    assert isinstance(loaded, LoadedClassifier)
    assert loaded.model is not None
    tensors = (*loaded.model.parameters(), *loaded.model.buffers())
    before = [tensor.data_ptr() for tensor in tensors]
    with serving_cost._on_device(loaded.model, device="cpu:0"):
        for tensor in tensors:
            tensor.data = tensor.data.clone()
    assert [tensor.data_ptr() for tensor in tensors] == before
