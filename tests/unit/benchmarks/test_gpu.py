"""The acceptance test on a GPU: its coverage of settings, its report, its time limit, and the sets
of wheels."""

import importlib
import importlib.metadata
import itertools
import json
import multiprocessing
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
from benchmarks.gpu.report import LIMIT_S, Failed, Report, from_child, in_child, time_limit

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
    # Imported here, because the processes that other tests start import this module, and torch
    # takes seconds.
    from benchmarks.gpu.combinations import COMBINATIONS, Combination

    allowed = [
        Combination(*values)  # type: ignore[arg-type]
        for values in itertools.product(
            range(4), ("full", "lora"), ("chat", "classification"), (False, True), LEAST_STAGE
        )
        if values[0] >= LEAST_STAGE[values[4]]
    ]
    assert len(COMBINATIONS) == 10
    assert {pair for one in COMBINATIONS for pair in pairs(one)} == {
        pair for one in allowed for pair in pairs(one)
    }


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
    configs = [
        config_that_fits(stage, ranks, shape=shape, room=room)
        for ranks in (8, 32)
        for stage in (1, 2, 3)
    ]
    assert [config.parameter_dtype for config in configs] == ["bf16", *["fp32"] * 5]
    assert max(estimated_bytes(config, shape=shape) for config in configs) < room


def test_a_figure_out_of_its_bound_fails_the_part(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("a", reduced=False)
    report.add("rate", 2.0, ">= 1")
    with pytest.raises(Failed, match=r"^mfu is 0.3, but the bound is >= 0.4$"):
        report.add("mfu", 0.3, ">= 0.4", hardware=True)
    report.finish("mfu is too low")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["figures"], result["holds"]) == ({"rate": 2.0, "mfu": 0.3}, False)
    assert (result["bounds"], result["failed"]) == (
        {"rate": ">= 1", "mfu": ">= 0.4"},
        "mfu is too low",
    )


def test_bounds_of_the_hardware_do_not_apply_in_the_reduced_form(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = Report("a", reduced=True)
    report.add("mfu", 0.3, ">= 0.4", hardware=True)
    with pytest.raises(Failed):
        report.add("failed_requests", 1, "<= 0")
    report.finish()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["not_applicable"] == {"mfu": ">= 0.4"}


def test_a_part_continues_after_a_figure_out_of_its_bound_if_requested(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = Report("a", reduced=False, keep_going=True)
    report.add_all({"mfu": 0.3, "rate": 0.9}, {"mfu": ">= 0.4", "rate": ">= 1"})
    assert report.missed == [
        "mfu is 0.3, but the bound is >= 0.4",
        "rate is 0.9, but the bound is >= 1",
    ]
    report.finish("mfu is 0.3")
    assert not json.loads(capsys.readouterr().out.splitlines()[-1])["holds"]


def test_figures_measured_together_are_all_recorded_before_one_of_them_fails() -> None:
    report = Report("a", reduced=False)
    with pytest.raises(Failed, match=r"^mfu is 0.3, but the bound is >= 0.4$"):
        report.add_all({"mfu": 0.3, "rate": 2.0}, {"mfu": ">= 0.4", "rate": ">= 1"})
    assert report.figures == {"mfu": 0.3, "rate": 2.0}


AT_BOUND: dict[str, dict[str, float]] = {
    "matmul": {"matmul_tflops": 700},
    "combinations": {"combinations": 10, "largest_loss_difference_after_resume": 1e-3},
    "1.2b": {
        "1.2b_full_2k.ratio_to_trainer": 1,
        "1.2b_full_2k.mfu": 0.4,
        "1.2b_full_2k.validation_tokens_per_second": 2000,
        "1.2b_full_8k.ratio_to_trainer": 1,
    },
    "8b": {"8b_lora_4k.ratio_to_trainer": 1, "8b_lora_4k.tokens_per_second": 8000},
    "memory": {"memory_32_ranks_stage_3_fp32_share_of_estimate": 1},
    "encoder": {
        "0.4b_encoder_128.ratio_to_trainer": 1,
        "0.4b_encoder_512.ratio_to_trainer": 1,
        "0.4b_encoder_512.mfu": 0.35,
    },
}
"""Figures of each section of part a that are just within their bounds."""


def run_part_a(
    monkeypatch: pytest.MonkeyPatch, report: Report, figures: dict[str, float], *sections: str
) -> list[str]:
    """Run part a with these figures instead of measured ones. Return the functions that ran as in a
    worker."""
    from benchmarks.gpu import part_a

    as_worker = []

    def called(function: Any, *_: Any, environment: Any = None) -> Any:
        if environment == part_a.worker_environment(reduced=False):
            as_worker.append(function.__name__)
        return figures

    monkeypatch.setattr(
        part_a, "in_child", lambda *arguments, **options: called(*arguments, **options)
    )
    monkeypatch.setattr(
        part_a, "from_child", lambda *arguments, **options: iter([called(*arguments, **options)])
    )
    if "matmul_tflops" in figures:
        monkeypatch.setattr(part_a, "in_child", lambda *_: figures["matmul_tflops"])
    part_a.run(report, sections)
    return as_worker


@pytest.mark.parametrize("section", AT_BOUND)
def test_each_figure_of_part_a_has_a_bound_that_it_may_reach_and_not_exceed(
    monkeypatch: pytest.MonkeyPatch, section: str
) -> None:
    figures, report = AT_BOUND[section], Report("a", reduced=False)
    run_part_a(monkeypatch, report, figures, section)
    assert report.passed
    assert report.bounds.keys() == figures.keys()
    for name, bound in report.bounds.items():
        worse = figures[name] * (0.99 if bound.startswith(">=") else 1.01)
        with pytest.raises(
            Failed, match=rf"^{re.escape(name)} is \S+, but the bound is {re.escape(bound)}$"
        ):
            run_part_a(monkeypatch, Report("a", reduced=False), figures | {name: worse}, section)


@pytest.mark.parametrize("section", [name for name in AT_BOUND if name != "matmul"])
def test_trainings_of_part_a_have_the_environment_of_a_worker(
    monkeypatch: pytest.MonkeyPatch, section: str
) -> None:
    assert run_part_a(monkeypatch, Report("a", reduced=False), AT_BOUND[section], section)


def test_a_process_has_the_given_variables_from_its_start() -> None:
    before = dict(os.environ)
    assert in_child(
        os.getenv, "GLIBC_TUNABLES", environment={"GLIBC_TUNABLES": "glibc.malloc.top_pad=131072"}
    )
    assert dict(os.environ) == before


def test_a_section_without_enough_time_is_named_and_the_part_does_not_hold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report("a", reduced=False)
    report.started -= LIMIT_S - 120
    figures = AT_BOUND["matmul"]
    monkeypatch.delitem(importlib.import_module("benchmarks.gpu.part_a").SECTIONS, "combinations")
    run_part_a(monkeypatch, report, figures)
    assert report.not_run == ["1.2b", "8b", "memory", "encoder"]
    report.finish()
    *lines, result = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("NOT RUN: section encoder takes about ")
    assert lines[-1].endswith("python -m benchmarks.gpu --part a --section encoder")
    assert (json.loads(result)["holds"], json.loads(result)["not_run"]) == (False, report.not_run)


def test_the_calls_of_part_a_contain_all_its_sections_and_fit_the_time_limit() -> None:
    from benchmarks.gpu.part_a import EXPECTED_S, SECTIONS

    calls = importlib.import_module("benchmarks.gpu.__main__").WITHOUT_RAY
    assert sorted(section for _, sections in calls for section in sections) == sorted(SECTIONS)
    for _, sections in calls:
        assert sum(EXPECTED_S[section] for section in sections) < LIMIT_S


@pytest.mark.parametrize("name", ["1.2b_full_2k", "8b_lora_4k"])
def test_all_weights_of_matrix_products_count_for_the_flops_of_a_token(name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from benchmarks.gpu.throughput import cases, flops_per_token
    from tailorbird.models.metadata import shape_of

    case = next(case for case in cases(reduced=False) if case.name == name)
    with torch.device("meta"):
        shape = shape_of(AutoModelForCausalLM.from_config(LlamaConfig(**case.size)))
    norms = (2 * shape.num_layers + 1) * shape.hidden
    unused = (
        0 if case.size.get("tie_word_embeddings") else shape.vocabulary * shape.hidden
    )  # of the input embedding
    passes = 6 if case.config.method == "full" else 4
    attention = 12 * shape.num_layers * shape.hidden * case.num_tokens / 2
    assert (
        flops_per_token(case, shape) == passes * (shape.num_parameters - norms - unused) + attention
    )


def test_a_part_ends_at_its_time_limit() -> None:
    with pytest.raises(Failed, match=r"^the time limit of 0.01 s is over$"), time_limit(0.01):
        time.sleep(60)


def test_an_interrupt_is_no_end_of_the_time_limit() -> None:
    with pytest.raises(KeyboardInterrupt), time_limit(60):
        raise KeyboardInterrupt


def numbers(limit: int) -> Iterator[int]:
    yield from range(limit)
    raise ValueError("no more\nnumbers")


def test_results_of_a_process_arrive_before_its_error() -> None:
    results = from_child(numbers, 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(Failed, match=r"^numbers: ValueError: no more$"):
        next(results)


def test_a_process_forks_its_own_processes() -> None:
    assert in_child(multiprocessing.get_start_method) == "fork"


def test_a_process_that_dies_is_reported() -> None:
    with pytest.raises(Failed, match=r"^the process of _exit died with exit code 7$"):
        in_child(os._exit, 7)


def test_wheels_are_divided_into_sets_of_limited_size() -> None:
    mib = 1 << 20
    sizes = {"a": 40 * mib, "b": 30 * mib, "c": 20 * mib, "d": 10 * mib, "e": 4 * mib}
    assert wheels.sets(sizes) == [["a", "d"], ["b", "c"], ["e"]]


def test_packages_that_the_machine_has_in_an_allowed_version_are_not_fetched() -> None:
    lines = ["pyarrow==26.0.1", "ray==2.60.0", "transformers==5.24.0"]
    installed = "pyarrow==25.0.0\npip @ file:///pip.whl\ntransformers==5.17.0\n"
    assert wheels.missing(lines, installed=installed) == lines[1:]


def test_the_machine_s_own_packages_are_not_fetched() -> None:
    lock = (
        "# header\nray==2.60.0 \\\n    --hash=sha256:1\ntorch==2.13.0 \\\nnvidia-nccl-cu13==2.0 "
        "; x\npeft==0.21.2\n"
    )
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
        [sys.executable, "-S", "-c", IMPORT_ALL],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
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
        for name, content in (
            ("ray/a.py", "a"),
            ("ray/jars/b.jar", "b"),
            ("ray-1.dist-info/RECORD", record),
        ):
            archive.writestr(name, content)
    wheels.without(wheel, wheels.RAY_UNUSED)
    with zipfile.ZipFile(wheel) as archive:
        assert archive.namelist() == ["ray/a.py", "ray-1.dist-info/RECORD"]
        assert (
            archive.read("ray-1.dist-info/RECORD").decode()
            == "ray/a.py,sha256=1,1\nray-1.dist-info/RECORD,,\n"
        )
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name]


def run_part_d(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, dict[str, Any]]:
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


def test_part_d_is_skipped_without_vllm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
