"""Safetensors files that are written one tensor after another."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.engine.tensor_file import save_tensors

TENSORS = {
    "matrix": torch.arange(6.0).reshape(2, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "größe": torch.tensor([float("nan"), float("inf"), -0.0]),
}
SHAPES = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}


def test_a_file_has_the_values_and_names_that_safetensors_reads(tmp_path: Path) -> None:
    save_tensors(iter(TENSORS.items()), tmp_path / "streamed", shapes=SHAPES)
    loaded = load_file(tmp_path / "streamed")
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == torch.float32
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"other": (2, 3)}, r"has no place for matrix of shape \[2, 3\]"),
        ({"matrix": (3, 2)}, r"has no place for matrix of shape \[2, 3\]"),
        ({}, r"has no place for matrix of shape \[2, 3\]"),
        ({"matrix": (2, 3), "other": (1,)}, "lacks other"),
    ],
)
def test_other_tensors_than_announced_are_refused(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        save_tensors(iter([("matrix", TENSORS["matrix"])]), tmp_path / "file", shapes=shapes)
