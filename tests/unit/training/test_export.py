"""The mean of the weights of several trainings."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tailorbird.registry.versions import INDEX_FILES
from training.export import average_weights


def weights(folder: Path, name: str, **tensors: torch.Tensor) -> str:
    (folder / name).mkdir()
    for file in ("encoder", "head"):
        save_file(
            {key: value + (file == "head") for key, value in tensors.items()}, folder / name / f"{file}.safetensors"
        )
    (folder / name / "config.json").write_text("{}")
    return (folder / name).as_uri()


def test_only_the_mean_of_the_weights_is_written(tmp_path: Path) -> None:
    uris = [weights(tmp_path, str(value), a=torch.full((2, 3), value), b=torch.ones(1)) for value in (1.0, 2.0, 6.0)]
    for name in INDEX_FILES:  # the index of a model with retrieved examples, which a former run has added
        (tmp_path / "1.0" / name).write_bytes(b"index")
    average_weights(uris, (tmp_path / "mean").as_uri())
    assert sorted(path.name for path in (tmp_path / "mean").iterdir()) == ["encoder.safetensors", "head.safetensors"]
    for file, more in (("encoder", 0), ("head", 1)):
        mean = load_file(tmp_path / "mean" / f"{file}.safetensors")
        assert torch.equal(mean["a"], torch.full((2, 3), 3.0 + more))
        assert torch.equal(mean["b"], torch.ones(1) + more)
        assert mean["a"].dtype == torch.float32


def test_weights_that_do_not_match_are_rejected(tmp_path: Path) -> None:
    first = weights(tmp_path, "first", a=torch.ones(2))
    names, shapes = weights(tmp_path, "names", b=torch.ones(2)), weights(tmp_path, "shapes", a=torch.ones(3))
    with pytest.raises(ValueError, match="different names"):
        average_weights([first, names], (tmp_path / "mean").as_uri())
    with pytest.raises(ValueError, match=r"'a' in .* have different shapes"):
        average_weights([first, shapes], (tmp_path / "mean").as_uri())
    (tmp_path / "names" / "head.safetensors").unlink()
    with pytest.raises(ValueError, match="do not contain the same safetensors files"):
        average_weights([first, names], (tmp_path / "mean").as_uri())
    assert not (tmp_path / "mean").exists()
