"""Memory and files of an export, and the mean of the weights of several trainings."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tailorbird.config.training import TrainingConfig
from tailorbird.models.causal_lm import ChatModel
from tailorbird.models.metadata import shape_of
from tests.small_chat import language_model
from tests.tracked_memory import TrackedMemory
from tests.unit.training.small import trained
from tests.unit.training.test_chat_task import runtime_of
from training.chat_task import ChatRuntime
from training.engine.tensor_file import save_tensors
from training.export import average_weights, export_weights


def weights(folder: Path, name: str, **tensors: torch.Tensor) -> str:
    (folder / name).mkdir()
    for file in ("encoder", "head"):
        save_file(
            {key: value + (file == "head") for key, value in tensors.items()},
            folder / name / f"{file}.safetensors",
        )
    (folder / name / "config.json").write_text("{}")
    return (folder / name).as_uri()


def test_only_the_mean_of_the_weights_is_written(tmp_path: Path) -> None:
    uris = [
        weights(tmp_path, str(value), a=torch.full((2, 3), value), b=torch.ones(1))
        for value in (1.0, 2.0, 6.0)
    ]
    average_weights(uris, (tmp_path / "mean").as_uri())
    assert {path.stem for path in (tmp_path / "mean").iterdir()} == {"encoder", "head"}
    for file, more in (("encoder", 0), ("head", 1)):
        mean = load_file(tmp_path / "mean" / f"{file}.safetensors")
        assert torch.equal(mean["a"], torch.full((2, 3), 3.0 + more))
        assert torch.equal(mean["b"], torch.ones(1) + more)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_export_of_all_weights_holds_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    monkeypatch.setattr(ChatRuntime, "score", lambda *_: 0.0)
    monkeypatch.setattr("training.loop.inference_dtype", lambda: torch.float32)
    runtime = replace(runtime_of(), lm=language_model(width=256, layers=8))
    memory, load = TrackedMemory(runtime.lm), ChatRuntime.load

    def load_mapped(self: ChatRuntime, folder: Path, *, config: TrainingConfig) -> ChatModel:
        before, loaded = memory.peak, load(self, folder, config=config)
        memory.share(loaded)  # mapped from the files
        memory.peak = before
        return loaded

    monkeypatch.setattr(ChatRuntime, "load", load_mapped)
    with memory, trained(runtime, epochs=1, zero_stage=stage) as (engine, config):
        memory.reset_peak()
        held = memory.bytes
        export_weights(engine, config, runtime=runtime, folder=tmp_path)
        peak = memory.peak - held
    largest = 4 * max(parameter.numel() for parameter in runtime.lm.parameters())
    assert largest < peak < 4 * largest
    assert peak < 0.25 * 4 * shape_of(runtime.lm).num_parameters


TENSORS = {
    "matrix": torch.arange(6.0).reshape(2, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "größe": torch.tensor([float("nan"), float("inf"), -0.0]),
}


def test_a_file_has_the_values_and_names_that_safetensors_reads(tmp_path: Path) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    save_tensors(iter(TENSORS.items()), tmp_path / "streamed", shapes=shapes)
    loaded = load_file(tmp_path / "streamed")
    torch.testing.assert_close(loaded, TENSORS, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "shapes", [{"other": (2, 3)}, {"matrix": (3, 2)}, {"matrix": (2, 3), "other": (1,)}]
)
def test_other_tensors_than_announced_are_refused(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]]
) -> None:
    matrix = ("matrix", TENSORS["matrix"])
    with pytest.raises(ValueError, match="matrix" if len(shapes) == 1 else "other"):
        save_tensors(iter([matrix]), tmp_path / "file", shapes=shapes)
