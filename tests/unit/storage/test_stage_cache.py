"""A stage is computed once per inputs, and its output is read back with its type."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tailorbird import storage
from tailorbird.storage.stage_cache import cached_stage, new_name


@dataclass(frozen=True)
class Output:
    name: str
    scores: tuple[float, ...]
    note: str | None = None


def test_a_stage_is_computed_once_per_inputs(tmp_path: Path) -> None:
    outputs = (Output("a", (0.1, 1 / 3, 1e-300)), Output("b", (), "ü"))
    calls: list[str] = []

    def compute(uri: str) -> tuple[Output, ...]:
        calls.append(uri)
        return outputs

    for inputs in ([1, {"b": None}], [1, {"b": None}], [2]):
        stored = cached_stage(
            tmp_path.as_uri(),
            "x",
            output=tuple[Output, ...],
            inputs={"a": inputs},
            compute=compute,
        )
        assert stored == outputs
    assert len(set(calls)) == len(calls) == 2
    assert all(uri.startswith(f"{tmp_path.as_uri()}/stages/x-") for uri in calls)


def test_an_interrupted_stage_leaves_no_files(tmp_path: Path) -> None:
    def interrupted(uri: str) -> float:
        storage.write_bytes(f"{uri}/weights/model", b"0.5")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_stage(tmp_path.as_uri(), "x", output=float, inputs={}, compute=interrupted)
    assert not storage.list_files(tmp_path.as_uri(), missing_ok=True)


@pytest.mark.parametrize("resumes", [False, True])
def test_two_processes_that_compute_a_stage_return_the_first_result_and_its_files(
    tmp_path: Path, resumes: bool
) -> None:
    inside: list[str] = []

    def stage(weights: bytes, *, meanwhile: Callable[[], object] = int) -> str:
        def compute(uri: str) -> str:
            inside.append(uri)
            meanwhile()
            folder = f"{uri}/weights-{new_name()}" if resumes else f"{uri}/weights"
            storage.write_bytes(f"{folder}/model", weights)
            return folder

        return cached_stage(
            tmp_path.as_uri(), "x", output=str, inputs={}, compute=compute, resumes=resumes
        )

    first: list[str] = []
    slow = stage(b"slow", meanwhile=lambda: first.append(stage(b"fast")))
    assert [slow] == first
    assert (
        storage.read_bytes(f"{slow}/model")
        == b"fast"
        == storage.read_bytes(f"{stage(b'late')}/model")
    )
    assert len(inside) == 2
    assert len(set(inside)) == (1 if resumes else 2)
    assert len(storage.list_files(tmp_path.as_uri())) == (3 if resumes else 2)


def test_a_stage_that_resumes_gets_the_folder_of_its_interrupted_computation(
    tmp_path: Path,
) -> None:
    def interrupted(uri: str) -> float:
        storage.write_bytes(f"{uri}/checkpoint", b"0.5")
        raise KeyboardInterrupt

    def resumed(uri: str) -> float:
        return float(storage.read_bytes(f"{uri}/checkpoint"))

    with pytest.raises(KeyboardInterrupt):
        cached_stage(
            tmp_path.as_uri(), "x", output=float, inputs={}, compute=interrupted, resumes=True
        )
    assert (
        cached_stage(tmp_path.as_uri(), "x", output=float, inputs={}, compute=resumed, resumes=True)
        == 0.5
    )
