"""The acceptance test on a GPU: its coverage of settings, its report, and the sets of wheels."""

import importlib
import importlib.metadata
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import wheels
from benchmarks.gpu.report import Failed, Report, from_child, in_child, time_limit

IMPORT_ALL = """
import importlib, pkgutil
names = []
for root in ("benchmarks.gpu", "cluster", "training", "tuning", "serving", "tailorbird"):
    folders = importlib.import_module(root).__path__
    names += [module.name for module in pkgutil.walk_packages(folders, f"{root}.")]
for name in names:
    if not name.endswith("__main__") and name != "cluster.local.s3_server":
        importlib.import_module(name)
print(len(names))
"""
"""Imports all modules that `make gpu` could need. It starts no S3 server."""
LEAST_STAGE = {"none": 0, "optimizer": 1, "parameters": 3}


def test_ten_combinations_cover_all_pairs_of_settings() -> None:
    # Imported here, because the processes that other tests start import this module, and torch takes seconds.
    from benchmarks.gpu.combinations import COMBINATIONS, Combination

    allowed = [
        Combination(*values)  # type: ignore[arg-type]
        for values in itertools.product(
            range(4), ("full", "lora"), ("chat", "classification"), (False, True), LEAST_STAGE
        )
        if values[0] >= LEAST_STAGE[values[4]]
    ]
    assert len(COMBINATIONS) == 10
    assert {pair for one in COMBINATIONS for pair in pairs(one)} == {pair for one in allowed for pair in pairs(one)}


def pairs(combination: object) -> Iterator[tuple[object, ...]]:
    return itertools.combinations(vars(combination).items(), 2)


def test_parameters_of_the_8b_model_are_bf16_only_where_fp32_does_not_fit_on_an_h100() -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from benchmarks.gpu.memory import config_that_fits, estimated_bytes
    from benchmarks.gpu.models import LLAMA_8B
    from tailorbird.models.metadata import shape_of

    with torch.device("meta"):
        shape = shape_of(AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA_8B)))
    room = 78 * 2**30
    configs = [config_that_fits(stage, ranks, shape=shape, room=room) for ranks in (8, 32) for stage in (1, 2, 3)]
    assert [config.parameter_dtype for config in configs] == ["bf16", *["fp32"] * 5]
    estimates = [estimated_bytes(config, shape=shape, room=room) for config in configs]
    assert max(estimates) < room
    in_fp32 = 2 * 4 * shape.num_parameters
    assert estimates[-2] == in_fp32  # 32 ranks at stage 2 need the most while the weights are flattened
    assert estimated_bytes(configs[-2], shape=shape, room=in_fp32 - 1) < in_fp32


def test_a_figure_out_of_its_bound_fails_the_part(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("a", reduced=False)
    report.add("rate", 2.0, ">= 1")
    with pytest.raises(Failed, match=r"^mfu is 0.3, but the bound is >= 0.4$"):
        report.add("mfu", 0.3, ">= 0.4", hardware=True)
    report.finish("mfu is too low")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["figures"], result["holds"]) == ({"rate": 2.0, "mfu": 0.3}, False)
    assert (result["bounds"], result["failed"]) == ({"rate": ">= 1", "mfu": ">= 0.4"}, "mfu is too low")


def test_bounds_of_the_hardware_do_not_apply_in_the_reduced_form(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("a", reduced=True)
    report.add("mfu", 0.3, ">= 0.4", hardware=True)
    with pytest.raises(Failed):
        report.add("failed_requests", 1, "<= 0")
    report.finish()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["not_applicable"] == {"mfu": ">= 0.4"}


def test_a_part_ends_at_its_time_limit() -> None:
    with pytest.raises(Failed, match="time limit"), time_limit(0.01):
        time.sleep(60)


def numbers(limit: int) -> Iterator[int]:
    yield from range(limit)
    raise ValueError("no more\nnumbers")


def test_results_of_a_process_arrive_before_its_error() -> None:
    results = from_child(numbers, 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(Failed, match=r"^numbers: ValueError: no more$"):
        next(results)


def test_a_process_that_dies_is_reported() -> None:
    with pytest.raises(Failed, match=r"^the process of _exit died with exit code 7$"):
        in_child(os._exit, 7)


def test_wheels_are_divided_into_sets_of_limited_size() -> None:
    mib = 1 << 20
    sizes = {"a": 50 * mib, "b": 40 * mib, "c": 20 * mib, "d": 10 * mib, "e": mib}
    assert wheels.sets(sizes) == [["a", "d"], ["b", "c"], ["e"]]


def test_the_machine_s_own_packages_are_not_fetched() -> None:
    lock = "# header\nray==2.60.0 \\\n    --hash=sha256:1\ntorch==2.13.0 \\\nnvidia-nccl-cu13==2.0 ; x\npeft==0.21.2\n"
    assert wheels.requirements(lock) == ["ray==2.60.0", "peft==0.21.2"]


def test_the_wheels_and_the_machine_s_own_packages_suffice_for_all_imports(tmp_path: Path) -> None:
    lock = (wheels.ROOT / "locks" / "cpu.txt").read_text(encoding="utf-8")
    fetched = {canonical(line.partition("==")[0]) for line in wheels.requirements(lock)}
    for distribution in importlib.metadata.distributions():
        name = canonical(distribution.name)
        if name not in fetched and not wheels.PREINSTALLED.match(f"{name}=="):
            continue
        for top in {file.parts[0] for file in distribution.files or ()} - {".."}:
            source = Path(str(distribution.locate_file(top)))
            if source.exists() and not (tmp_path / top).exists():
                (tmp_path / top).symlink_to(source)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{wheels.ROOT}:{tmp_path}"}
    # -S: without the folder in which all packages are installed
    process = subprocess.run(
        [sys.executable, "-S", "-c", IMPORT_ALL], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) > 300
    assert not (tmp_path / "cryptography").exists()  # in the lock, but no wheel is fetched


def canonical(name: str) -> str:
    """Return the name of a distribution as in a lock."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_folders_are_removed_from_a_wheel_and_its_record(tmp_path: Path) -> None:
    wheel = tmp_path / "ray-1-py3-none-any.whl"
    record = "ray/a.py,sha256=1,1\nray/jars/b.jar,sha256=2,2\nray-1.dist-info/RECORD,,\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in (("ray/a.py", "a"), ("ray/jars/b.jar", "b"), ("ray-1.dist-info/RECORD", record)):
            archive.writestr(name, content)
    wheels.without(wheel, wheels.RAY_UNUSED)
    with zipfile.ZipFile(wheel) as archive:
        assert archive.namelist() == ["ray/a.py", "ray-1.dist-info/RECORD"]
        assert archive.read("ray-1.dist-info/RECORD").decode() == "ray/a.py,sha256=1,1\nray-1.dist-info/RECORD,,\n"
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name]


def run_part_d(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, dict[str, Any]]:
    """Return the exit code, the last line before the result, and the result."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("sys.argv", ["benchmarks.gpu", "--part", "d", "--reduced"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        code = importlib.import_module("benchmarks.gpu.__main__").main()
    finally:
        signal.signal(signal.SIGTERM, before)
    *_, line, result = capsys.readouterr().out.splitlines()
    return code, line, json.loads(result)


def test_part_d_is_skipped_without_vllm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # `find_spec` returns None
    code, line, result = run_part_d(monkeypatch, capsys)
    assert (code, line) == (0, "SKIPPED: part d: vLLM is not installed")
    assert (result["holds"], result["skipped"]) == (False, "vLLM is not installed")


def test_any_error_fails_a_part_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no replica\nmore")

    monkeypatch.setattr("benchmarks.gpu.part_d.run", fail)
    code, line, result = run_part_d(monkeypatch, capsys)
    assert (code, line) == (1, "FAILED: part d: RuntimeError: no replica")
    assert (result["holds"], result["failed"]) == (False, "RuntimeError: no replica")


def test_sigterm_ends_a_part_after_its_cleanup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    removed = []

    def wait(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            removed.append(True)

    monkeypatch.setattr("benchmarks.gpu.part_d.run", wait)
    with pytest.raises(SystemExit) as ended:
        run_part_d(monkeypatch, capsys)
    assert (ended.value.code, removed) == (143, [True])
